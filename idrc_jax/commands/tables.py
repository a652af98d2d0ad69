"""idrc-tables: tables of result files."""

import sys
from dataclasses import replace
from pathlib import Path

from idrc_jax.core import command_line, files
from idrc_jax.report.tables import by_method, by_run, by_sigma
from idrc_jax.results import equal_terms, metrics, runs

_ONCE = "Valid = published for these runs"
_LAYOUTS = {"runs": by_run, "sigmas": by_sigma, "methods": by_method}


def main() -> None:
    """Print a table of result files: runs (a row a run), sigmas (the paper's Tables 1 and 2: a row a sigma, a column a
    radius and scheme) or methods (Table 3: runs of one NAME, the best of them at each radius)."""
    with command_line.one_line_errors():
        parser = command_line.Parser("idrc-tables", main.__doc__)
        parser.add_argument("table", choices=_LAYOUTS)
        parser.add_argument("runs", nargs="+", help="a run's folder, a result file, or NAME=FILE")
        parser.add_argument("--at", type=float, nargs="+", help="radii of the columns")
        parser.add_argument("--kind", choices=("valid", "published", "both"), default="both", help="of radii")
        parser.add_argument("--format", choices=("markdown", "latex", "csv"), default="markdown")
        parser.add_argument("--paper", action="store_true", help="the paper's numbers beside")
        parser.add_argument("--out", type=command_line.path, help="file; printed by default")
        parser.add_argument("--mark", help="replace what stands in that file between <!-- MARK --> and <!-- /MARK -->")
        asked = parser.parse_args()
        several = runs.read(runs.with_rows(asked.runs))
        if told := equal_terms.warning(several):
            print(f"warning: {told}", file=sys.stderr)
        parts = []
        once = asked.kind == "both" and all(metrics.published_is_valid(run.results) for run in several)
        for published in {"valid": (False,), "published": (True,), "both": (False, True)}[asked.kind]:
            if published and (once or not any(metrics.has_published(run.results) for run in several)):
                continue
            radii = {"radii": asked.at} if asked.at else {}
            made = _LAYOUTS[asked.table](several, **radii, published=published, paper_too=asked.paper)
            made = replace(made, caption=f"{made.caption}. {_ONCE}") if once else made
            parts.append(getattr(made, asked.format)())
        if not parts:
            paths = ", ".join(str(run.results.path) for run in several)
            raise ValueError(
                f"Expected published radii for --kind published, got none in {paths}: six-column logs do not have "
                "them, nor do schemes that are not in the paper. Use --kind valid."
            )
        text = "\n".join(parts)
        if asked.out:
            files.write_text(asked.out, _between(asked.out, asked.mark, text) if asked.mark else text)
            print(f"Table: {asked.out}")
        else:
            print(text, end="")
    sys.exit(0)


def _between(path: Path, mark: str, text: str) -> str:
    """A file's content with this text between its two marks."""
    before, opening, rest = files.read_text(path).partition(f"<!-- {mark} -->\n")
    _, closing, after = rest.partition(f"<!-- /{mark} -->")
    if not closing:
        raise ValueError(f"Expected <!-- {mark} --> and <!-- /{mark} --> in {path}, got no such pair.")
    return f"{before}{opening}\n{text}\n{closing}{after}"


if __name__ == "__main__":
    main()
