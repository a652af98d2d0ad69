"""The paper's Tables 1 to 3, and one row a run, from result files: Markdown, LaTeX or CSV, the best of a column marked.

A table shows valid radii or published ones and says which.
"""

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from idrc_jax.core import validate
from idrc_jax.report import paper_numbers
from idrc_jax.results import equal_terms, metrics, runs
from idrc_jax.results.runs import Run

VALID = "Certified accuracy (valid {norm} radii)"
SURE = (
    "Share of images predicted rightly whose class has at least probability p under the noise, by its lower bound "
    "p_lower; what makes up the ACR. Blank where n votes cannot show so much; a plan that stops early leaves p_lower "
    "where it stopped"
)
ACR = "ACR"  # the column of it
PUBLISHED = "Accuracy at published {norm} radii, which are no certificates but for gaussian"
_KINDS = {False: VALID, True: PUBLISHED}  # of radii, by whether they are the published ones
_PAPER = "Rows of the paper are at its published radii (ResNet-110, n = 100,000)"
_MIXED = "The runs are not of the same images, so none is marked as the best"
_UNEQUAL = "Unless n, alpha and k are known to be equal none is marked as the best"
_TO_RADIUS = (
    "Under the plan to_radius the ACR, and accuracy at radii that it was not asked for (0, too), are too low to compare"
)
_UNDECIDED = "The plan of {} was not asked for published radii (sampling.published), so accuracy at them is too low"
_CORRECT_ONLY = (
    "The plan of {} decided correct predictions alone (sampling.correct_only): abstentions are those of few votes"
)


@dataclass(frozen=True)
class Row:
    """One line of a table: its name and a value a column, None where there is none.

    `ours` is False for the paper's numbers, which are not among those compared for the best.
    """

    name: str
    values: tuple[float | None, ...]
    ours: bool = True


@dataclass(frozen=True)
class Table:
    """A table of accuracies, ACR and counts; accuracies to the nearest thousandth, ACR down, to the places of `norm`.

    `ranked` says of which columns the largest value above 0 is marked (see `_comparable`).
    """

    caption: str
    columns: tuple[str, ...]
    ranked: tuple[bool, ...]
    rows: tuple[Row, ...]
    norm: str = "l2"

    def cells(self) -> list[list[str]]:
        """The values as printed: the ACR to the places of its norm, others to three, the paper's to its two."""
        return [
            [
                _number(value, metrics.PLACES[self.norm]) if name == ACR else _number(value, 3 if row.ours else 2)
                for name, value in zip(self.columns, row.values, strict=True)
            ]
            for row in self.rows
        ]

    def best(self) -> list[list[bool]]:
        """Which cells, as they are printed, are the largest of their column, of more than one: `[rows][columns]`."""
        shown = [
            [
                float(text) if text and ranked and row.ours else 0.0
                for text, ranked in zip(cells, self.ranked, strict=True)
            ]
            for row, cells in zip(self.rows, self.cells(), strict=True)
        ]
        tops = [max(column) for column in zip(*shown, strict=True)]
        several = sum(row.ours for row in self.rows) > 1
        return [[several and value == top > 0 for value, top in zip(one, tops, strict=True)] for one in shown]

    def markdown(self) -> str:
        """A pipe table, the best in bold, the caption above."""
        lines = [_pipes(["", *map(_pipe_safe, self.columns)]), "|---" * (len(self.columns) + 1) + "|"]
        for row, cells, best in self._lines():
            marked = [f"**{cell}**" if top else cell for cell, top in zip(cells, best, strict=True)]
            lines.append(_pipes([_pipe_safe(row.name), *marked]))
        return f"{_pipe_safe(self.caption)}.\n\n" + "\n".join(lines) + "\n"

    def latex(self) -> str:
        """A `tabular` for the package booktabs, the best in bold."""
        head = " & ".join(["", *map(_latex_safe, self.columns)])
        lines = [
            f"% {' '.join(self.caption.split())}.",
            rf"\begin{{tabular}}{{l{'r' * len(self.columns)}}}",
            r"\toprule",
            rf"{head} \\",
        ]
        lines.append(r"\midrule")
        for row, cells, best in self._lines():
            marked = [rf"\textbf{{{cell}}}" if top else cell for cell, top in zip(cells, best, strict=True)]
            lines.append(rf"{' & '.join([_latex_safe(row.name), *marked])} \\")
        return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"

    def csv(self) -> str:
        """A header and the rows; in `best` the columns of which a row is the best; the caption in the first column."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow([self.caption, *self.columns, "best"])
        for row, cells, best in self._lines():
            names = ";".join(name for name, top in zip(self.columns, best, strict=True) if top)
            writer.writerow([row.name, *cells, names])
        return out.getvalue()

    def _lines(self) -> list[tuple[Row, list[str], list[bool]]]:
        return list(zip(self.rows, self.cells(), self.best(), strict=True))


def by_run(
    several: Sequence[Run], radii: Sequence[float] | None = None, *, published: bool = False, paper_too: bool = False
) -> Table:
    """A row a run: images, accuracy at each radius, average certified radius, share of abstentions.

    Args:
      several: the runs.
      radii: of the columns; by default those of `metrics.RADII_IN` for the runs' norm.
      published: show the paper's radii instead of the valid ones.
      paper_too: add the paper's own numbers.
    """
    norm = _norm(several)
    radii = metrics.RADII_IN[norm] if radii is None else radii
    rows = []
    for run in several:
        found = _radii(run, published)
        acr = None if found is None else _rounded_down(float(np.mean(np.maximum(found, 0))), norm)
        abstained = metrics.abstention_rate(run.results)
        rows.append(Row(run.name, (len(run.results.rows), *_accuracies(found, radii), acr, abstained)))
        if paper_too and run.sigma in paper_numbers.ACCURACY.get(run.scheme, {}):
            rows.append(_of_paper(run.scheme, run.sigma, (None, *_paper(run.scheme, run.sigma, radii), None, None)))
    columns = ("images", *map(_radius, radii), ACR, "abstained")
    ranked = (False, *_comparable(several, [*radii, math.inf], published), False)
    return Table(_caption(several, _KINDS[published], paper_too), columns, ranked, tuple(rows), norm)


def by_sigma(
    several: Sequence[Run],
    radii: Sequence[float] | None = None,
    *,
    published: bool = False,
    paper_too: bool = False,
) -> Table:
    """The paper's Tables 1 and 2: a row a sigma, a column a radius and scheme. Arguments as of `by_run`.

    Raises ValueError for two runs of one scheme and sigma, or one without a manifest.
    """
    radii = _positive_radii(several) if radii is None else radii
    found: dict[tuple[str, float], tuple[float | None, ...]] = {}
    for run in several:
        if run.sigma is None:
            raise ValueError(f"Expected runs with a manifest, which says scheme and sigma, got {run.results.path}.")
        if (run.scheme, run.sigma) in found:
            raise ValueError(f"Expected one run of a scheme and sigma, got another {run.name} in {run.results.path}.")
        found[run.scheme, run.sigma] = _accuracies(_radii(run, published), radii)
    schemes = list(dict.fromkeys(scheme for scheme, _ in found))
    rows = []
    for sigma in sorted({sigma for _, sigma in found}):
        nothing = (None,) * len(radii)
        ours = [found.get((scheme, sigma), nothing) for scheme in schemes]
        rows.append(Row(f"σ = {sigma:g}", _interleave(ours)))
        if paper_too and any(sigma in paper_numbers.ACCURACY.get(scheme, {}) for scheme in schemes):
            theirs = [_paper(scheme, sigma, radii) for scheme in schemes]
            rows.append(Row(f"paper, σ = {sigma:g}", _interleave(theirs), ours=False))
    columns = tuple(f"{_radius(radius)} {scheme}" for radius in radii for scheme in schemes)
    ranked = tuple(one for one in _comparable(several, radii, published) for _ in schemes)
    return Table(_caption(several, _KINDS[published], paper_too), columns, ranked, tuple(rows))


def by_method(
    several: Sequence[Run],
    radii: Sequence[float] | None = None,
    *,
    published: bool = False,
    paper_too: bool = False,
) -> Table:
    """The paper's Table 3: the runs of one name are a method; its best run at each radius, then each of its runs.

    Which run is best was chosen on the images that are counted: with several sigmas the first row is optimistic. Where
    the runs are not of the same images there is none. Arguments as of `by_run`.
    """
    radii = _positive_radii(several) if radii is None else radii
    methods: dict[str, list[Run]] = {}
    mixed = _mixed(several) or equal_terms.claim_differs(several)
    for run in several:
        methods.setdefault(run.name, []).append(run)
    rows, singles = [], []
    for name, own in methods.items():
        values = [_accuracies(_radii(run, published), radii) for run in own]
        if len(own) == 1 or not mixed:
            rows.append(Row(f"{name}, best σ" if len(own) > 1 else name, _maximum(values)))
        if len(own) > 1:
            made = [f"{name}, {'σ unknown' if run.sigma is None else f'σ = {run.sigma:g}'}" for run in own]
            singles += [Row(each, value) for each, value in zip(made, values, strict=True)]
    if paper_too:
        for name, numbers in paper_numbers.METHODS.items():
            values = [tuple(_at(row, radius) for radius in radii) for row in numbers.values()]
            rows.append(Row(f"paper, {name}, best σ", _maximum(values), ours=False))
            made = [f"paper, {name}, σ = {sigma:g}" for sigma in numbers]
            singles += [Row(each, value, ours=False) for each, value in zip(made, values, strict=True)]
    columns = tuple(map(_radius, radii))
    ranked = _comparable(several, radii, published)
    return Table(_caption(several, _KINDS[published], paper_too), columns, ranked, (*rows, *singles))


def by_probability(several: Sequence[Run], probabilities: Sequence[float] = metrics.PROBABILITIES) -> Table:
    """A row a run: images, share of them with p_lower >= each probability, ACR, the part of it from easy images.

    Nothing but the ACR is ranked: another sigma gives another probability, of another worth.

    Raises ValueError for a run without p_lower, or a probability outside (0, 1).
    """
    for probability in probabilities:
        validate.in_open_unit_interval("probability", probability)
    norm, rows = _norm(several), []
    for run in several:
        found = metrics.right_probabilities(run.results)
        if found is None:
            raise ValueError(f"Expected files with p_lower, got the six columns of {run.results.path}.")
        most = metrics.largest_probability(run.results) or 1.0
        shares = [float(np.mean(found >= p)) if p <= most else None for p in probabilities]
        acr = easy = None
        if metrics.has_certificates(run.results):
            acr = _rounded_down(metrics.average_certified_radius(run.results), norm)
            easy = metrics.radius_share(run.results, metrics.EASY) if most >= metrics.EASY else None
        rows.append(Row(run.name, (len(found), *shares, acr, easy)))
    at = [f"p ≥ {p:g}".replace(" 0.", " .") for p in (*probabilities, metrics.EASY)]
    (best,) = _comparable(several, [math.inf])
    columns = ("images", *at[:-1], ACR, f"of it from {at[-1]}")
    ranked = (False, *[False] * len(probabilities), best, False)
    return Table(_caption(several, SURE), columns, ranked, tuple(rows), norm)


def _norm(several: Sequence[Run]) -> str:
    return runs.norm_of([run.results for run in several])


def _positive_radii(several: Sequence[Run]) -> tuple[float, ...]:
    """The paper's, in its norm."""
    return metrics.RADII_IN[_norm(several)][1:]


def _radii(run: Run, published: bool) -> np.ndarray | None:
    there = metrics.has_published(run.results) if published else metrics.has_certificates(run.results)
    return metrics.correct_radii(run.results, published=published) if there else None


def _accuracies(found: np.ndarray | None, radii: Sequence[float]) -> tuple[float | None, ...]:
    return tuple(None if found is None else float(np.mean(found >= radius)) for radius in radii)


def _paper(scheme: str, sigma: float, radii: Sequence[float]) -> tuple[float | None, ...]:
    numbers = paper_numbers.ACCURACY.get(scheme, {}).get(sigma)
    return tuple(None if numbers is None else _at(numbers, radius) for radius in radii)


def _at(numbers: Sequence[float], radius: float) -> float | None:
    return numbers[paper_numbers.RADII.index(radius)] if radius in paper_numbers.RADII else None


def _of_paper(scheme: str, sigma: float, values: tuple[float | None, ...]) -> Row:
    return Row(f"paper, {scheme}, σ = {sigma:g}", values, ours=False)


def _interleave(groups: Sequence[tuple[float | None, ...]]) -> tuple[float | None, ...]:
    return tuple(value for at_radius in zip(*groups, strict=True) for value in at_radius)


def _maximum(rows: Sequence[tuple[float | None, ...]]) -> tuple[float | None, ...]:
    known = [[value for value in column if value is not None] for column in zip(*rows, strict=True)]
    return tuple(max(values) if values else None for values in known)


def _mixed(several: Sequence[Run]) -> bool:
    """Whether the runs are not all of the same images."""
    return any(runs.other_images(several[0].results, run.results) for run in several)


def _comparable(several: Sequence[Run], radii: Sequence[float], published: bool = False) -> tuple[bool, ...]:
    """At which radii one run may be called better than another: at none if they are of other images or claim something
    else, and only up to the radii that each plan asked for; the ACR counts as an infinite one."""
    last = min(metrics.last_radius(run.results) for run in several)
    same = not (_mixed(several) or equal_terms.claim_differs(several) or (published and _undecided(several)))
    return tuple(same and radius <= last for radius in radii)


def _undecided(several: Sequence[Run]) -> list[str]:
    """The runs whose plans left published radii open."""
    return [run.name for run in several if not metrics.published_decided(run.results)]


def _caption(several: Sequence[Run], what: str, paper_too: bool = False) -> str:
    norm = _norm(several)
    if paper_too and norm != "l2":
        raise ValueError(f"Expected runs of l2 radii beside the paper's numbers, which are l2, got {norm}.")
    data = {run.results.manifest["guarantee"]["data"] for run in several if run.results.manifest}
    if paper_too and data - {"cifar10/test"}:
        raise ValueError(f"Expected runs of CIFAR-10's test images beside the paper's numbers, got {sorted(data)}.")
    plans = {run.results.manifest["guarantee"].get("plan") for run in several if run.results.manifest}
    notes = [
        what.format(norm=norm),
        *([_PAPER] if paper_too else []),
        *([_MIXED] if _mixed(several) else []),
    ]
    notes += [_TO_RADIUS] if "to_radius" in plans else []
    if what == PUBLISHED and (open_ones := _undecided(several)):
        notes.append(_UNDECIDED.format(runs.quoted(open_ones)))
    if alone := [run.name for run in several if metrics.correct_only(run.results)]:
        notes.append(_CORRECT_ONLY.format(runs.quoted(alone)))
    notes += [told.removesuffix(".")] if (told := equal_terms.differences(several)) else []
    notes += [_UNEQUAL] if equal_terms.claim_differs(several) and not _mixed(several) else []
    cut = {run.name: runs.cut_short(run.results) for run in several}
    notes += [f"Of “{name}” {told.removesuffix('.')}" for name, told in cut.items() if told]
    return ". ".join(notes)


def _rounded_down(radius: float, norm: str) -> float:
    return float(metrics.value_text(radius, norm))


def _radius(radius: float) -> str:
    return f"r = {metrics.rounded_down(radius):g}".replace(" 0.", " .")


def _number(value: float | None, places: int = 3) -> str:
    """A count as it is; a share to so many places without the zero before the point; nothing for None."""
    if value is None:
        return ""
    if isinstance(value, int):
        return str(value)
    if value == 0:
        return "0"
    text = f"{value:.{places}f}"
    return text[1:] if text.startswith("0") else text


def _pipes(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _pipe_safe(text: str) -> str:
    return " ".join(text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").split())


def _latex_safe(text: str) -> str:
    special = {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "σ": r"$\sigma$",
        "≥": r"$\geq$",
    }
    special |= {one: rf"\{one}" for one in "&%$#_{}"}
    return "".join(special.get(one, one) for one in " ".join(text.split()))
