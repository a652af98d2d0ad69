"""idrc-report: one HTML page about runs."""

import sys
import warnings
from collections.abc import Sequence

from idrc_jax.core import command_line, files
from idrc_jax.report import class_names
from idrc_jax.report.page import NAME, PICTURES, render
from idrc_jax.results import equal_terms, runs
from idrc_jax.results.runs import Run


def _read(arguments: Sequence[str]) -> tuple[list[Run], list[str]]:
    """The runs, and what reading them warned of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        several = runs.read(arguments)
    return several, [str(one.message) for one in caught]


def main() -> None:
    """Make one self-contained HTML page about runs: OUT/index.html."""
    with command_line.one_line_errors():
        parser = command_line.Parser("idrc-report", main.__doc__)
        parser.add_argument("runs", nargs="+", help="a run's folder, a result file, or NAME=FILE")
        parser.add_argument("--out", type=command_line.path, required=True, help="folder for index.html")
        parser.add_argument("--classes", type=command_line.path, help="text file of class names, one a line")
        parser.add_argument("--pictures", type=int, default=PICTURES, help="most of each kind in a gallery")
        asked = parser.parse_args()
        several, notes = _read(runs.with_rows(asked.runs))
        for note in filter(None, [*notes, equal_terms.warning(several)]):
            print(f"warning: {note}", file=sys.stderr)
        names = class_names.read(asked.classes) if asked.classes else ()
        page = render(several, names=names, pictures=asked.pictures, notes=notes)
        files.make_folder(asked.out)
        files.write_text(asked.out / NAME, page)
        print(f"Report: {asked.out / NAME} ({len(page.encode()) / 1e6:.1f} MB)")
    sys.exit(0)


if __name__ == "__main__":
    main()
