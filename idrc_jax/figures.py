"""Figures drawn from result files, with matplotlib and without a display."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from idrc_jax import statistics, summary
from idrc_jax.results import Results

# Okabe and Ito's colours, told apart by colour-blind readers.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def plot_certified_accuracy(
    results: Sequence[Results],
    path: str | Path | None = None,
    *,
    labels: Sequence[str] | None = None,
    title: str = "",
) -> Figure:
    """Certified accuracy against l2 radius, one colour a file.

    Solid lines with pointwise 95 % bands are valid radii; dashed ones the paper's published radii, drawn where they
    differ from the valid ones.

    Args:
      path: where to save; the suffix chooses the format. None draws only.
      labels: one a file; by default its scheme and sigma, or its file name.
    """
    labels = labels or [_label(one) for one in results]
    if len(labels) != len(results):
        raise ValueError(f"Expected {len(results)} labels, got {len(labels)}.")
    figure = Figure(layout="constrained")
    axes = figure.add_subplot()
    for number, (one, label) in enumerate(zip(results, labels, strict=True)):
        colour = _COLOURS[number % len(_COLOURS)]
        valid = summary.correct_radii(one) if summary.has_certificates(one) else None
        if valid is not None:
            _curve(axes, valid, colour, "-", label)
            _band(axes, valid, colour)
        if summary.has_published(one):
            published = summary.correct_radii(one, published=True)
            if valid is None or not np.allclose(valid, published, rtol=1e-6):
                _curve(axes, published, colour, "--", f"{label}, published (not a certificate)")
    axes.set(xlabel="l2 radius (pixels in [0, 1])", ylabel="certified accuracy", ylim=(0, 1), title=title)
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", frameon=False)
    figure.set_size_inches(6.4, 4.0 + 0.23 * len(axes.get_lines()))
    if path is not None:
        figure.savefig(path, dpi=150)
    return figure


def _curve(axes: Axes, radii: np.ndarray, colour: str, style: str, label: str) -> None:
    at, counts = _steps(radii)
    axes.step(at, counts / len(radii), style, where="pre", color=colour, label=label)


def _band(axes: Axes, radii: np.ndarray, colour: str) -> None:
    at, counts = _steps(radii)
    low, high = statistics.proportion_interval(counts, len(radii))
    axes.fill_between(at, low, high, step="pre", color=colour, alpha=0.15, linewidth=0)


def _steps(radii: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the number of radii >= r falls (just after each radius), and that number there."""
    ends = np.unique(radii[radii >= 0])
    at = np.concatenate([[0.0], ends, [max(ends, default=0.0) + 0.02]])
    return at, (radii[:, None] >= at).sum(axis=0)


def _label(one: Results) -> str:
    if not one.manifest:
        return one.path.name
    made = one.manifest["guarantee"]
    return f"{made['scheme']}, σ = {made['sigma']:g}"
