"""Runs under schemes of several levels: of few images from votes to rows, and simulated from known probabilities."""

import numpy as np
import pytest

from idrc_jax import certification, data, results, sampling
from idrc_jax.certificates import sampling_plans
from idrc_jax.certificates.courses import LevelVotes
from idrc_jax.certification import Settings

PLANS = {
    "fixed": sampling_plans.Fixed(n0=20, n=200),
    "to_radius": sampling_plans.ToRadius(n=1000, radii=(0.05, 0.2, 0.4)),
}


def made_images():
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (24, 4, 4, 1)).astype(np.uint8)
    return data.from_arrays(images, generator.integers(0, 3, 24), name="made", classes=3)


def certify(classifier, scheme, dataset, workdir, plan="to_radius", indices=range(24), chunk=64, **more):
    certification.certify_dataset(
        classifier, scheme, dataset, np.asarray(indices), Settings(PLANS[plan], 0.01, seed=5), workdir, chunk=chunk,
        **more,
    )  # fmt: skip
    return results.read_results(workdir)


def without_time(read):
    return sorted(repr(row)[: repr(row).index("time=")] + repr(row.votes_by_level) for row in read.rows)


def require_rows_that_depend_on_nothing_else(classifier, scheme, dataset, folder):
    """Than image and settings: not on chunks, order, a restart or workers."""

    def rows(name, **more):
        return without_time(certify(classifier, scheme, dataset, folder / name, **more))

    whole = rows("a")
    assert rows("b", indices=np.arange(24)[::-1], chunk=200) == whole
    rows("c")
    path = folder / "c" / "certificates.tsv"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:9])[:-3])  # killed within a row
    with pytest.warns(UserWarning, match="cut off"):
        results.read_results(folder / "c")
    assert rows("c") == whole
    for index in (0, 1):
        certification.certify_dataset(
            classifier, scheme, dataset, np.arange(24), Settings(PLANS["to_radius"], 0.01, seed=5), folder / "d",
            chunk=64, worker=sampling.batch_systems.Worker(index, 2),
        )  # fmt: skip
    results.merge(results.result_files(folder / "d"), folder / "d")
    assert without_time(results.read_results(folder / "d")) == whole


def simulated(course, law_of, generator):
    """The votes of one image, as the scheduler draws them from each level's probabilities, and how many."""
    plan, found, level, total = course.bounds.plan, {}, 0, 0
    while level is not None:
        law, selected = law_of(level), None
        if plan.selection:
            selected = int(np.argmax(generator.multinomial(plan.selection, law)))
            total += plan.selection
        votes = np.asarray(found[level].votes) if level in found else np.zeros(len(law) + 1, int)
        for n in [look for look in plan.looks() if look > votes.sum()]:
            more = n - votes.sum()
            votes[:-1] += generator.multinomial(more, law)
            total += more
            found[level] = votes_of(level, *votes.tolist(), selected=selected)
            if n == plan.n or course.stops(list(found.values()), level):
                break
        level = course.next_level(list(found.values()))
    return list(found.values()), total


def votes_of(level, *votes, selected=None):
    return LevelVotes(level, int(np.argmax(votes[:-1])) if selected is None else selected, votes)
