"""How a network runs fastest on this machine: by which implementation, on how many devices, in which chunks.

That is measured on the network itself before a long job and remembered in the user's cache. It concerns speed alone:
votes are the same, up to ties that rounding breaks differently.
"""

import logging
import sys
import time
from dataclasses import replace
from pathlib import Path

from jax.sharding import Mesh

from idrc_jax.certificates.schemes import Scheme
from idrc_jax.models import Classifier
from idrc_jax.sampling import devices
from idrc_jax.sampling.execution import Execution, check_chunk, unmeasured
from idrc_jax.sampling.implementation_choice_cache import ChoiceCache, identity
from idrc_jax.sampling.implementation_contest import Contest, Trial, disagreements


def choose(
    classifier: Classifier,
    scheme: Scheme,
    *,
    samples: int,
    seconds: float = 0.0,
    mesh: Mesh | None = None,
    chunk: int = 0,
    trial: Trial | None = None,
    folder: Path | None = None,
) -> Execution:
    """The fastest way to run a classifier, of those that what is given leaves open.

    Candidates are all implementations of the classifier, on all devices and, on a CPU, on one device of all cores, with
    larger and smaller chunks. They take turns at certification's own program. Where implementations disagree about
    logits, the plainest is believed. Measuring takes about a tenth of the time that the job would take, and at most a
    minute; a job too short for that runs as it is: the first implementation that is not known to disagree, all devices,
    the default chunk. A candidate must be 3 % faster than those before it.

    Args:
      classifier: with the alternatives that may stand in for it.
      scheme: whose noise is drawn.
      samples: that the job will draw, at most.
      seconds: that the job may take; 0 for no limit.
      mesh, chunk: kept, if given.
      trial: what runs the candidates.
      folder: of what is remembered; the user's cache by default.

    A candidate that fails or disagrees is named in one warning, and so is a cache that cannot be written. A router and
    the network of each level are chosen for by themselves, on the same devices in the same chunk, which is no larger
    than fits each of them.

    Raises:
      ValueError: a chunk that cannot be (see `check_chunk`).
    """
    chosen = _choose(classifier, scheme, samples, seconds, mesh, chunk, trial, folder)
    if classifier.router is None and not classifier.by_level:
        return chosen

    def fastest(network: Classifier) -> Classifier:
        return _choose(network, scheme, samples, seconds, chosen.mesh, chosen.chunk, trial, folder).classifier

    router = fastest(classifier.router) if classifier.router else None
    by_level = tuple(fastest(one) for one in classifier.by_level)
    return replace(chosen, classifier=replace(chosen.classifier, router=router, by_level=by_level))


def _choose(
    classifier: Classifier,
    scheme: Scheme,
    samples: int,
    seconds: float,
    mesh: Mesh | None,
    chunk: int,
    trial: Trial | None,
    folder: Path | None,
) -> Execution:
    """`choose` for one network."""
    check_chunk(classifier, mesh, chunk)
    meshes = [mesh] if mesh else _layouts()
    implementations = classifier.implementations
    first = unmeasured(implementations[0], meshes[0], chunk)
    if not samples or (len(implementations) == len(meshes) == 1 and chunk):
        return first
    cache = ChoiceCache(folder, identity(classifier, scheme, meshes, chunk))
    trial = trial or Trial(scheme)
    remembered = cache.recall(classifier, meshes, samples)
    if remembered and (len(implementations) == 1 or cache.recall_agreement(classifier)):
        return remembered
    found = disagreements(classifier, trial) if remembered else {}  # by other weights of the same network
    if remembered and not found:
        cache.remember_agreement(classifier)
    if remembered and remembered.classifier.kernel not in found:
        return replace(remembered, left_out=remembered.left_out | found)
    contest = Contest(trial, first, samples, seconds)
    if not found and (not contest.has_time() or (contest.empty and not classifier.alternatives)):
        return first  # without a word: a network that fails in every way tells so itself
    _say(f"Measuring how {' or '.join(one.kernel for one in implementations)} runs fastest here ...", end=" ")
    begun = time.perf_counter()
    contest.compare_logits(classifier)
    contest.compare([unmeasured(one, on, chunk) for on in meshes for one in implementations])
    if not chunk:
        contest.vary_chunk()
    best = contest.best()
    rate = f"{best.rates[best.name]:,.0f} samples/s" if best.rates else "none does"
    _say(f"{best.name}: {rate} (measured in {time.perf_counter() - begun:.0f} s).")
    for name, why in best.left_out.items():
        logging.getLogger("idrc_jax").warning("Left out %s: %s", name, why)
    if best.rates and not found:  # else the memory stays that of the weights that agree
        of = classifier if contest.disagree else None
        cache.remember(best, samples=None if contest.complete else samples, of=of)
        if not best.left_out:
            cache.remember_agreement(classifier)
    return best


def _layouts() -> list[Mesh]:
    """All local devices; on a CPU one device, too, whose kernels use all cores."""
    every = devices.mesh()
    return [every, devices.mesh(1)] if every.size > 1 and devices.is_cpu() else [every]


def _say(text: str, end: str = "\n") -> None:
    print(text, end=end, file=sys.stderr, flush=True)
