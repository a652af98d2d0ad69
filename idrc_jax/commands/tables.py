"""idrc-tables: tables of result files."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from idrc_jax.core import command_line, files
from idrc_jax.report.tables import Table, by_method, by_probability, by_run, by_sigma
from idrc_jax.results import equal_terms, metrics, runs
from idrc_jax.results.runs import Run

_ONCE = "Valid = published for these runs"
_LAYOUTS = {"runs": by_run, "sigmas": by_sigma, "methods": by_method}
_PROBABILITIES = "probabilities"


def main() -> None:
    """Print a table of result files: runs (a row a run), sigmas (the paper's Tables 1 and 2: a row a sigma, a column a
    radius and scheme), methods (Table 3: runs of one NAME, the best of them at each radius) or probabilities (how sure
    the votes are, and what makes up the ACR)."""
    with command_line.one_line_errors():
        parser = command_line.Parser("idrc-tables", main.__doc__)
        parser.add_argument("table", choices=(*_LAYOUTS, _PROBABILITIES))
        parser.add_argument("runs", nargs="+", help="a run's folder, a result file, or NAME=FILE")
        parser.add_argument("--at", type=float, nargs="+", help="radii of the columns, or probabilities")
        parser.add_argument("--kind", choices=("valid", "published", "both"), default="both", help="of radii")
        parser.add_argument("--format", choices=("markdown", "latex", "csv"), default="markdown")
        parser.add_argument("--paper", action="store_true", help="the paper's numbers beside")
        parser.add_argument("--out", type=command_line.path, help="file; printed by default")
        parser.add_argument("--mark", help="replace what stands in that file between <!-- MARK --> and <!-- /MARK -->")
        asked = parser.parse_args()
        several = runs.read(runs.with_rows(asked.runs))
        if told := equal_terms.warning(several):
            print(f"warning: {told}", file=sys.stderr)
        made = _probabilities(several, asked) if asked.table == _PROBABILITIES else _of_radii(several, asked)
        text = "\n".join(getattr(one, asked.format)() for one in made)
        if asked.out:
            files.write_text(asked.out, _between(asked.out, asked.mark, text) if asked.mark else text)
            print(f"Table: {asked.out}")
        else:
            print(text, end="")
    sys.exit(0)


def _probabilities(several: Sequence[Run], asked: argparse.Namespace) -> list[Table]:
    if asked.paper or asked.kind == "published":
        raise ValueError("Expected the table probabilities without --paper and --kind published, which are of radii.")
    return [by_probability(several, **({"probabilities": asked.at} if asked.at else {}))]


def _of_radii(several: Sequence[Run], asked: argparse.Namespace) -> list[Table]:
    """The tables of the kinds of radii that are asked for and that there are."""
    parts = []
    once = asked.kind == "both" and all(metrics.published_is_valid(run.results) for run in several)
    for published in {"valid": (False,), "published": (True,), "both": (False, True)}[asked.kind]:
        if published and (once or not any(metrics.has_published(run.results) for run in several)):
            continue
        radii = {"radii": asked.at} if asked.at else {}
        made = _LAYOUTS[asked.table](several, **radii, published=published, paper_too=asked.paper)
        parts.append(replace(made, caption=f"{made.caption}. {_ONCE}") if once else made)
    if not parts:
        paths = ", ".join(str(run.results.path) for run in several)
        raise ValueError(
            f"Expected published radii for --kind published, got none in {paths}: six-column logs do not have "
            "them, nor do schemes that are not in the paper. Use --kind valid."
        )
    return parts


def _between(path: Path, mark: str, text: str) -> str:
    """A file's content with this text between its two marks."""
    before, opening, rest = files.read_text(path).partition(f"<!-- {mark} -->\n")
    _, closing, after = rest.partition(f"<!-- /{mark} -->")
    if not closing:
        raise ValueError(f"Expected <!-- {mark} --> and <!-- /{mark} --> in {path}, got no such pair.")
    return f"{before}{opening}\n{text}\n{closing}{after}"


if __name__ == "__main__":
    main()
