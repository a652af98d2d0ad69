"""Figures drawn from result files, with matplotlib and without a display: curves, and the noise itself.

`idrc-figures` draws each by one command; the paper's Figures 4 to 8 are `noisy`, `sigmas` and `training`.
"""

import string
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from scipy import special

from idrc_jax.certificates import confidence_bounds
from idrc_jax.results import Results, gallery_file, metrics, runs
from idrc_jax.results.gallery_file import Gallery
from idrc_jax.results.runs import Run

# Okabe and Ito's colours, told apart by colour-blind readers; letters at the curves tell them apart in grey.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_BAND = "95 % interval of the certified accuracy at each radius"
_SHARE_BAND = "95 % interval of the share of images at each p"
_TICKS = (0.5, 0.7, 0.9, 0.99, 0.999, 0.9999)
_FAINT = 0.15
_NO_CERTIFICATE = "published (not a certificate)"
_SUFFIXES = (".png", ".pdf", ".svg")
# The same drawing makes the same file.
_NO_DATE = {".png": {}, ".pdf": {"CreationDate": None}, ".svg": {"Date": None}}


def plot_certified_accuracy(
    results: Sequence[Results],
    path: str | Path | None = None,
    *,
    labels: Sequence[str] | None = None,
    title: str = "",
) -> Figure:
    """Certified accuracy against radius, one colour a file.

    Solid lines with pointwise 95 % bands are valid radii; dashed ones the paper's published radii, drawn where they
    differ from the valid ones. The legend says so, and names each of several curves by the letter that stands on it.

    Args:
      path: where to save; the suffix chooses the format. None draws only.
      labels: one a file; by default its scheme and sigma, or its file name.
    """
    labels = runs.labels(results) if labels is None else labels
    if len(labels) != len(results):
        raise ValueError(f"Expected {len(results)} labels, got {len(labels)}.")
    norm = runs.norm_of(results)
    figure = Figure(layout="constrained")
    axes = figure.add_subplot()
    for number, (one, label) in enumerate(zip(results, labels, strict=True)):
        _draw(axes, one, number, label)
    _finish(axes, norm, title)
    figure.set_size_inches(6.4, 4.0 + 0.23 * (1 + len(axes.get_lines())))
    _explain(figure)
    if path is not None:
        save(figure, Path(path))
    return figure


def plot_panels(several: Sequence[Run], label: Callable[[Run], str], title: str = "") -> Figure:
    """Certified accuracy against radius, a panel a scheme and a curve a run, drawn as by `plot_certified_accuracy`.

    Args:
      label: names a run's curve; curves of one name have one colour in all panels.
    """
    norm = runs.norm_of([run.results for run in several])
    schemes = list(dict.fromkeys(run.scheme for run in several))
    names = list(dict.fromkeys(label(run) for run in several))
    figure = Figure(layout="constrained", figsize=(3.4 * max(len(schemes), 1.6), 4.2 + 0.12 * len(names)))
    panels = figure.subplots(1, len(schemes), sharex=True, sharey=True, squeeze=False)[0]
    for axes, scheme in zip(panels, schemes, strict=True):
        inside = [run for run in several if run.scheme == scheme]
        if len({label(run) for run in inside}) < len(inside):
            twice = [label(run) for run in inside]
            raise ValueError(f"Expected one run a curve, got {', '.join(twice)} for {scheme}: name them, NAME=RUN.")
        for run in inside:
            _draw(axes, run.results, names.index(label(run)), label(run))
    for axes, scheme in zip(panels, schemes, strict=True):  # after all curves, whose limits the panels share
        _finish(axes, norm, scheme)
    for axes in panels[1:]:
        axes.set_ylabel("")
    _explain(figure, columns=1 if len(schemes) < 3 else 2)
    figure.suptitle(title)
    return figure


def plot_sigmas(several: Sequence[Run]) -> Figure:
    """The paper's Figures 5 and 7: a panel a scheme, a curve a prediction sigma."""
    return plot_panels(several, lambda run: run.name if run.sigma is None else f"σ = {run.sigma:g}")


def plot_training(several: Sequence[Run]) -> Figure:
    """The paper's Figures 6 and 8: one prediction sigma, a panel a scheme, a curve a training noise.

    A run whose files do not say how its network was trained goes by its name.
    """
    sigmas = sorted({run.sigma for run in several if run.sigma is not None})
    if len(sigmas) > 1:
        raise ValueError(f"Expected runs of one prediction sigma, got {', '.join(f'{sigma:g}' for sigma in sigmas)}.")

    def label(run: Run) -> str:
        trained = runs.trained_under(run.results)
        return f"trained under {trained}" if trained else run.name

    return plot_panels(several, label, f"prediction noise σ = {sigmas[0]:g}" if sigmas else "")


def plot_probabilities(several: Sequence[Run]) -> Figure:
    """The distribution of p_lower, which ACR alone hides, a colour a run.

    On the left the share of images that are predicted rightly with a p_lower of at least p, with pointwise 95 % bands;
    on the right the part of the ACR that these images make up. p stands on the scale of the normal quantile, on which
    the radius under constant Gaussian noise is a straight line.

    Raises ValueError for a run without p_lower.
    """
    figure = Figure(layout="constrained")
    shares, parts = figure.subplots(1, 2, sharex=True)
    top = 0.0
    for number, run in enumerate(several):
        found = metrics.right_probabilities(run.results)
        if found is None:
            raise ValueError(f"Expected files with p_lower, got the six columns of {run.results.path}.")
        probits = special.ndtri(found)
        _curve(shares, probits, number, run.name, linestyle="-")
        _band(shares, probits, number)
        if metrics.has_certificates(run.results):
            radii = np.maximum(metrics.correct_radii(run.results), 0)
            if radii.any():
                _curve(parts, probits, number, run.name, weights=radii / np.sum(radii), linestyle="-")
        top = max(top, _steps(probits)[0][-1])
    shares.set(ylabel="share of images, predicted rightly", title="images with p_lower of at least p")
    parts.set(ylabel="part of the ACR", title="and what they make up of the ACR")
    ticks = [p for p in _TICKS if special.ndtri(p) <= top] or [0.5]
    for axes in (shares, parts):
        axes.set(xlabel="p", xlim=(0, top), ylim=(0, 1))
        axes.set_xticks([float(special.ndtri(p)) for p in ticks], [f"{p:g}".removeprefix("0") for p in ticks])
        easy = float(special.ndtri(metrics.EASY))
        if easy < top:
            axes.vlines(easy, 0, 1, colors="#606060", linestyles=":", linewidth=1)
            axes.text(easy, 0.99, " easy", va="top", size=8, color="#606060")
        axes.grid(alpha=0.3)
    figure.set_size_inches(9.6, 3.8 + 0.23 * (1 + len(several)))
    _explain(figure, band=_SHARE_BAND)
    return figure


def plot_noisy(shown: Mapping[tuple[str, float], Gallery], image: int | None = None) -> Figure:
    """The paper's Figure 4: an image under the noise of each scheme (a row) and sigma (a column), clipped to [0, 1].

    Args:
      shown: the galleries of runs, by scheme and sigma.
      image: its data-set index; by default the first that all of them have.
    """
    common = set.intersection(*(set(gallery.index.tolist()) for gallery in shown.values()))
    if image is not None and image not in common:
        raise ValueError(f"Expected an image in every gallery, got {image}; they share {sorted(common)[:10]}.")
    if not common:
        raise ValueError("Expected galleries of runs over the same images, got none in all of them.")
    index = min(common) if image is None else image
    schemes = list(dict.fromkeys(scheme for scheme, _ in shown))
    sigmas = sorted({sigma for _, sigma in shown})
    figure = Figure(layout="constrained", figsize=(1.5 * (len(sigmas) + 1), 1.6 * len(schemes) + 0.2))
    grid = figure.subplots(len(schemes), len(sigmas) + 1, squeeze=False)
    for row, scheme in zip(grid, schemes, strict=True):
        row[0].set_ylabel(scheme)
        for axes, sigma in zip(row, [None, *sigmas], strict=True):
            axes.set(xticks=[], yticks=[])
            gallery = next(one for (name, _), one in shown.items() if name == scheme)
            if sigma is None:
                pixels = gallery.images[gallery.index == index][0]
            elif (scheme, sigma) in shown:
                gallery = shown[scheme, sigma]
                pixels = gallery.noisy[gallery.index == index][0]
                axes.set_xlabel(f"σ(x) = {gallery.sigma_x[gallery.index == index][0]:.3g}", fontsize=8)
            else:
                axes.set_axis_off()
                continue
            axes.imshow(gallery_file.visible(pixels), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    for axes, sigma in zip(grid[0], [None, *sigmas], strict=True):
        axes.set_title("clean" if sigma is None else f"σ = {sigma:g}")
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write a figure; the suffix, .png, .pdf or .svg, chooses the format."""
    if path.suffix not in _SUFFIXES:
        raise ValueError(f"Expected a figure with suffix {', '.join(_SUFFIXES)}, got {path}.")
    if not path.parent.is_dir():
        raise ValueError(f"Expected a folder that exists for the figure, got {path}.")
    with rc_context({"svg.hashsalt": "idrc_jax"}):
        figure.savefig(path, dpi=150, metadata=_NO_DATE[path.suffix])


def _draw(axes: Axes, one: Results, number: int, label: str) -> None:
    """The curves of one file, in the colour of its number."""
    valid = metrics.correct_radii(one) if metrics.has_certificates(one) else None
    if valid is not None:
        _curve(axes, valid, number, label, linestyle="-")
        _band(axes, valid, number)
    if metrics.has_published(one):
        published = metrics.correct_radii(one, published=True)
        if valid is None or not np.allclose(valid, published, rtol=1e-6):
            _curve(axes, published, number, f"{label}, {_NO_CERTIFICATE}", linestyle="--")


def _finish(axes: Axes, norm: str, title: str) -> None:
    axes.set(xlabel=f"{norm} radius (pixels in [0, 1])", ylabel="certified accuracy", ylim=(0, 1), title=title)
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)


def _curve(
    axes: Axes, radii: np.ndarray, number: int, label: str, weights: np.ndarray | None = None, **style: Any
) -> None:
    """The share of images with at least a radius or, with `weights` of the images, the sum of theirs."""
    at, counts = _steps(radii)
    heights = counts / len(radii) if weights is None else [np.sum(weights[radii >= one]) for one in at]
    axes.step(at, heights, where="pre", color=_COLOURS[number % len(_COLOURS)], label=label, **style)


def _explain(figure: Figure, columns: int = 1, band: str = _BAND) -> None:
    """The legend below: each curve with its letter, where there are several, and what the bands are."""
    lines = [line for axes in figure.axes for line in axes.get_lines()]
    shown = {str(line.get_label()): line for line in lines}
    letters = dict(zip(shown, string.ascii_uppercase + string.ascii_lowercase, strict=False)) if len(shown) > 1 else {}
    for axes in figure.axes:
        own = axes.get_lines()
        for place, line in enumerate(own):
            if line.get_label() in letters:
                _letter(axes, line, letters[str(line.get_label())], (place + 0.5) / len(own))
    handles: list[Any] = list(shown.values())
    texts = [f"{letters[text]}   {text}" if text in letters else text for text in shown]
    if any(axes.collections for axes in figure.axes):
        handles.append(Patch(facecolor="#808080", alpha=_FAINT, linewidth=0))
        texts.append(band)
    figure.legend(handles, texts, loc="outside lower center", frameon=False, ncols=columns)


def _letter(axes: Axes, line: Line2D, letter: str, share: float) -> None:
    """A letter on a curve, at that share of its largest radius."""
    at, heights = (np.asarray(values, np.float64) for values in line.get_data())
    x = share * at[-2]  # the last point ends the line, beyond all radii
    height = float(heights[np.searchsorted(at, x)])
    halo = {"boxstyle": "circle,pad=0.15", "facecolor": "white", "edgecolor": "none"}
    axes.text(x, height, letter, color=line.get_color(), size=8, weight="bold", ha="center", va="center", bbox=halo)


def _band(axes: Axes, radii: np.ndarray, number: int) -> None:
    at, counts = _steps(radii)
    low, high = confidence_bounds.proportion_interval(counts, len(radii))
    axes.fill_between(at, low, high, step="pre", color=_COLOURS[number % len(_COLOURS)], alpha=_FAINT, linewidth=0)


def _steps(radii: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the number of radii >= r falls (just after each radius), and that number there."""
    ends = np.unique(radii[radii >= 0])
    at = np.concatenate([[0.0], ends, [max(ends, default=0.0) + 0.02]])
    return at, len(radii) - np.searchsorted(np.sort(radii), at)
