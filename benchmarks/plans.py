"""What sampling plans cost and give: the figure and the replayed table of docs/explanation/plans.md.

The figure: mean number of samples against the probability of the class. The table: the 500 images of Cohen et al.'s
published sigma = .25 log, their class probabilities inferred from its radii, votes drawn anew 10 times for each plan.

Command:   make plans LOG=FILE        (ten minutes; FILE is the log's file)
"""

import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from scipy import special

import idrc_jax as idrc
from idrc_jax import certificates
from idrc_jax.certificates import confidence_bounds, sampling_plans, schemes

SIGMA, ALPHA = 0.25, 0.001
SCHEME = schemes.Gaussian(sigma=SIGMA)
RADII = sampling_plans.ToRadius.radii
PLANS = {
    "fixed": sampling_plans.Fixed(),
    "selection_free": sampling_plans.SelectionFree(),
    "to_radius": sampling_plans.ToRadius(),
    "to_radius, union bound": sampling_plans.ToRadius(sequence="union"),
    "to_precision, .05": sampling_plans.ToPrecision(),
    "to_precision, .05, union bound": sampling_plans.ToPrecision(sequence="union"),
}
FIGURE = Path(__file__).parent.parent / "docs" / "images" / "plans.png"


def radius_of(p: np.ndarray) -> np.ndarray:
    return certificates.radius(SCHEME, 0.0, p, dim=3072)


class Replay:
    """Votes of a plan for images whose class has a known probability; decisions are kept, as they repeat."""

    def __init__(self, plan: sampling_plans.Plan) -> None:
        self._plan, self._stop = plan, plan.stopping(radius_of, ALPHA)
        self._stops: dict[tuple[int, int], bool] = {}

    def __call__(self, p: np.ndarray, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Samples drawn and lower bound for each p."""
        k, n = np.zeros(len(p), int), np.zeros(len(p), int)
        alive, before = np.ones(len(p), bool), 0
        for look in self._plan.looks():
            k[alive] += generator.binomial(look - before, p[alive])
            n[alive] = before = look
            alive[alive] = [not self._decide(one, look) for one in k[alive]]
        return n + self._plan.selection, self._plan.lower(k, n, ALPHA)

    def _decide(self, k: int, n: int) -> bool:
        if (k, n) not in self._stops:
            self._stops[k, n] = n == self._plan.n or self._stop(np.array([k, 0, n - k]))
        return self._stops[k, n]


def power() -> None:
    """Mean samples against the probability, 8 runs each."""
    quantiles = np.linspace(0, 5, 51)
    p = special.ndtr(quantiles)
    figure = Figure(layout="constrained", figsize=(7, 4.6))
    axes = figure.add_subplot()
    generator = np.random.default_rng(0)
    for name, plan in PLANS.items():
        if name == "selection_free":
            continue
        replay = Replay(plan)
        mean = np.mean([replay(p, generator)[0] for _ in range(8)], axis=0)
        axes.plot(quantiles, mean, label=name)
    ticks = (0.5, 0.841, 0.977, 0.9986, 0.99997)
    axes.set_xticks(special.ndtri(ticks), [str(tick) for tick in ticks])
    axes.set(
        yscale="log", xlabel="probability of the class", ylabel="mean samples an image", title="σ = .25, n = 100,000"
    )
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(FIGURE, dpi=150)


def replay_table(log: Path, repetitions: int = 10) -> str:
    """Markdown: a row a plan."""
    rows = idrc.read_results(log).rows
    k = np.arange(50_000, 100_001)
    bounds = confidence_bounds.clopper_pearson_lower(k, 100_000, ALPHA)
    p = np.array([k[np.argmin(np.abs(bounds - special.ndtr(row.radius / SIGMA)))] / 1e5 for row in rows])
    right = np.array([row.correct == 1 and row.predict >= 0 for row in rows])
    header = " | ".join(f"{radius:g}" for radius in RADII)
    lines = [f"| plan | samples an image | share | {header} | ACR |", "|---" * (len(RADII) + 4) + "|"]
    generator = np.random.default_rng(0)
    for name, plan in PLANS.items():
        replay = Replay(plan)
        drawn, accuracy, acr = 0.0, np.zeros(len(RADII)), 0.0
        for _ in range(repetitions):
            n, lower = replay(p, generator)
            radii = np.where(right, radius_of(lower), 0.0)
            drawn += np.mean(n) / repetitions
            accuracy += np.mean(radii[:, None] >= RADII, axis=0) / repetitions
            acr += np.mean(radii) / repetitions
        cells = " | ".join(f"{value:.3f}" for value in accuracy)
        lines.append(f"| `{name}` | {drawn:,.0f} | {drawn / 100_100:.3f} | {cells} | {acr:.3f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(replay_table(Path(sys.argv[1])))
    power()
