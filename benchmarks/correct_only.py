"""What `sampling.correct_only` saves: the votes of runs under to_radius drawn anew, with and without it.

Each image's classes have as probabilities the shares of its stored votes; both plans read the same new votes.

Command:   python -m benchmarks.correct_only RUN ...        (runs under gaussian; a minute each)
"""

import sys
from collections.abc import Callable

import numpy as np

import idrc_jax as idrc
from idrc_jax import certificates
from idrc_jax.certificates import schemes
from idrc_jax.certificates.sampling_plans import ToRadius
from idrc_jax.core.json_values import Json
from idrc_jax.results import Results
from idrc_jax.results.recertify import counts

REPETITIONS = 4


def drawn(
    plan: ToRadius, stop: Callable[[np.ndarray], bool], votes: np.ndarray, alpha: float
) -> tuple[int, int, float]:
    """How many samples an image gets, the class that leads there, and its lower bound; votes are int [looks, K + 1]."""
    looks = plan.looks()
    last = next((at for at, one in enumerate(votes[:-1]) if stop(one)), len(looks) - 1)
    leader = int(np.argmax(votes[last, :-1]))
    return looks[last], leader, float(plan.lower(int(votes[last, leader]), looks[last], alpha))


def replay(read: Results, *, correct_only: bool) -> tuple[float, np.ndarray]:
    """Mean samples an image, and certified accuracy at the radii of the run's plan."""
    made: Json = read.manifest["guarantee"] if read.manifest else {"plan": "", "scheme": ""}
    if (made["plan"], made["scheme"]) != (ToRadius.name, schemes.Gaussian.name):
        raise ValueError(f"Expected a run of the plan to_radius under gaussian, got {read.path}.")
    plan = ToRadius(n=made["n"], sequence=made["sequence"], radii=tuple(made["radii"]), correct_only=correct_only)
    scheme, alpha, dim = schemes.from_description(made), made["alpha"], made["dim"]
    generator, samples, certified = np.random.default_rng(0), 0, np.zeros(len(plan.radii))
    steps = np.diff([0, *plan.looks()])

    def radius_of(p: np.ndarray) -> np.ndarray:
        return certificates.radius(scheme, 0.0, p, dim=dim)

    for row, stored in zip(read.rows, counts(read), strict=True):
        stop = plan.stopping(radius_of, alpha, row.label if correct_only else None)
        for _ in range(REPETITIONS):
            votes = np.cumsum(generator.multinomial(steps, stored / stored.sum()), axis=0)
            n, leader, lower = drawn(plan, stop, votes, alpha)
            samples += n
            certified += (leader == row.label) * (radius_of(np.array([lower]))[0] >= plan.radii)
    total = REPETITIONS * len(read.rows)
    return samples / total, certified / total


def table(paths: list[str]) -> str:
    """Markdown: two rows a run."""
    lines = ["| run | correct_only | samples an image | certified accuracy at its radii |", "|---|---|---|---|"]
    for path in paths:
        read = idrc.read_results(path)
        for switch in (False, True):
            samples, accuracy = replay(read, correct_only=switch)
            lines.append(f"| {path} | {switch} | {samples:,.0f} | {' '.join(f'{one:.3f}' for one in accuracy)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(sys.argv[1:]))
