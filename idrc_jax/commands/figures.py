"""idrc-figures: figures of result files."""

import sys
from collections.abc import Sequence

from idrc_jax.core import command_line
from idrc_jax.report.figures import (
    plot_certified_accuracy,
    plot_noisy,
    plot_probabilities,
    plot_sigmas,
    plot_training,
    save,
)
from idrc_jax.results import gallery_file, runs
from idrc_jax.results.gallery_file import Gallery
from idrc_jax.results.runs import Run

_BY_RUNS = {"probabilities": plot_probabilities, "sigmas": plot_sigmas, "training": plot_training}


def _read_galleries(several: Sequence[Run]) -> dict[tuple[str, float], Gallery]:
    shown = {}
    for run in several:
        gallery = gallery_file.read(run.results.path.parent)
        if gallery is None or run.sigma is None:
            raise ValueError(
                f"Expected {gallery_file.NAME} beside {run.results.path}, got none: make it by idrc-gallery."
            )
        shown.setdefault((run.scheme, run.sigma), gallery)
    return shown


def main() -> None:
    """Draw a figure from result files: accuracy (all runs in one), probabilities (how sure the votes are, and what
    makes up the ACR), sigmas (the paper's Figures 5 and 7: a panel a scheme, a curve a sigma), training (6 and 8: a
    curve a training noise) or noisy (4: the noise itself)."""
    with command_line.one_line_errors():
        parser = command_line.Parser("idrc-figures", main.__doc__)
        parser.add_argument("figure", choices=("accuracy", "noisy", *_BY_RUNS))
        parser.add_argument("runs", nargs="+", help="a run's folder, a result file, or NAME=FILE")
        parser.add_argument("--out", type=command_line.path, nargs="+", required=True, help="files: .png, .pdf, .svg")
        parser.add_argument("--title", default="", help="of accuracy")
        parser.add_argument("--image", type=int, help="of noisy: its index; the first common one by default")
        asked = parser.parse_args()
        several = runs.read(runs.with_rows(asked.runs))
        if asked.figure == "accuracy":
            drawn = plot_certified_accuracy(
                [run.results for run in several], labels=[run.name for run in several], title=asked.title
            )
        elif asked.figure == "noisy":
            drawn = plot_noisy(_read_galleries(several), asked.image)
        else:
            drawn = _BY_RUNS[asked.figure](several)
        for path in asked.out:
            save(drawn, path)
            print(f"Figure: {path}")
    sys.exit(0)


if __name__ == "__main__":
    main()
