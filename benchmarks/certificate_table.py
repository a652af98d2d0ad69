"""Valid against published radii over p_lower for 3,072 values: tables and figure of docs/explanation/certificates.md.

Command:   make certificate-table        (two seconds; a test holds the page against `tables()`)
"""

import math
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from scipy import special

from idrc_jax import certificates
from idrc_jax.certificates import schemes

DIM = 3072
SIGMAS = (0.12, 0.25, 0.5, 1.0)
PROBABILITIES = (0.6, 0.9, 0.99, 0.999, 0.99993)
MEAN_ABS, NORM = 0.47658, 28.673  # of CIFAR-10's test images: mean and median
FIGURE = Path(__file__).parent.parent / "docs" / "images" / "valid_against_published.png"

# Name, scheme at a sigma, statistic of the image.
CASES = (
    ("`gaussian`", lambda sigma: schemes.Gaussian(sigma=sigma), 0.0),
    ("`l1`, ref = 1", lambda sigma: schemes.L1(sigma=sigma), MEAN_ABS),
    ("`l1`, ref = .47658", lambda sigma: schemes.L1(sigma=sigma, ref=MEAN_ABS), MEAN_ABS),
    ("`inverse_sqrt_norm`, ref = 1", lambda sigma: schemes.InverseSqrtNorm(sigma=sigma), NORM),
    ("`inverse_sqrt_norm`, ref = 28.673", lambda sigma: schemes.InverseSqrtNorm(sigma=sigma, ref=NORM), NORM),
    ("`l2`", lambda sigma: schemes.L2(sigma=sigma), 0.0),
    ("`uniform`", lambda sigma: schemes.Uniform(sigma=sigma), NORM),
    (
        "`stepped` by ‖x‖, level 1, an edge 1.0 away",
        lambda sigma: schemes.Stepped(sigma=sigma, edges=(NORM + 1.0,), levels=(1.0, 1.3)),
        NORM,
    ),
)


def tables() -> str:
    """Markdown: a table a sigma, a row a case; numbers rounded down."""
    parts = []
    for sigma in SIGMAS:
        header = " | ".join(f"p = {str(p)[1:]}" for p in PROBABILITIES)
        lines = [f"**σ = {sigma:g}**\n", f"| | {header} |", "|---" * (len(PROBABILITIES) + 1) + "|"]
        published = certificates.published_radius(schemes.Gaussian(sigma=sigma), np.array(PROBABILITIES))
        lines.append(f"| *published, whatever the scheme* | {_cells(published)} |")
        for name, scheme, statistic in CASES:
            radii = certificates.radius(scheme(sigma), statistic, np.array(PROBABILITIES), dim=DIM)
            lines.append(f"| {name} | {_cells(radii)} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _cells(radii: np.ndarray) -> str:
    return " | ".join(f"{math.floor(1e4 * radius) / 1e4:.4f}" for radius in radii)


def draw() -> None:
    """The curves of the tables for two sigmas."""
    figure = Figure(layout="constrained", figsize=(9.5, 4.6))
    colours = dict(
        zip(
            (name for name, _, _ in CASES[1:7]),
            ("#D55E00", "#E69F00", "#009E73", "#56B4E9", "#CC79A7", "#000000"),
            strict=True,
        )
    )
    quantiles = np.linspace(0.01, special.ndtri(0.99993), 80)
    p = special.ndtr(quantiles)
    for axes, sigma in zip(figure.subplots(1, 2), (0.25, 1.0), strict=True):
        axes.plot(
            quantiles, sigma * quantiles, "--", color="#0072B2", label="published for every scheme; valid for gaussian"
        )
        for name, scheme, statistic in CASES[1:7]:
            radii = certificates.radius(scheme(sigma), statistic, p, dim=DIM)
            axes.plot(quantiles, radii, color=colours[name], label=f"{name.replace('`', '')}, valid")
        axes.set(xlabel="lower bound on the class's probability", ylabel="l2 radius", title=f"σ = {sigma:g}, d = 3,072")
        ticks = (0.5, 0.9, 0.99, 0.999, 0.9999)
        axes.set_xticks(special.ndtri(ticks), [str(tick) for tick in ticks])
        axes.grid(alpha=0.3)
        axes.set_ylim(bottom=-0.02 * axes.get_ylim()[1])
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(FIGURE, dpi=150)


if __name__ == "__main__":
    print(tables())
    draw()
