"""Certify a variant of a network from the network's own run and from pairs of both on the same noise.

A pair is one sample: both networks see the same noisy image, and its outcome is what the first answers if the second
answers something else. So pairs are drawn, counted, divided and gone on with like votes. The noise is that of a stage
of its own: pairs do not depend on the votes that chose the class (see `certificates.Pairs`).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from idrc_jax import data, models, sampling
from idrc_jax.certificates import INCREMENTAL, Pairs, SelectionFree
from idrc_jax.certificates.courses import Course, OneLevel
from idrc_jax.certificates.schemes import Scheme, Splitting, host_levels, level_count
from idrc_jax.certification.guarantee import check_fits, check_indices, check_rows, check_unique, describe_guarantee
from idrc_jax.certification.job import Job, run, warn_of_training_images
from idrc_jax.certification.provenance import asked, checked_scheme
from idrc_jax.certification.settings import Settings
from idrc_jax.core.json_values import Json, as_json
from idrc_jax.core.time_budget import Budget
from idrc_jax.models import Classifier
from idrc_jax.results import MANIFEST, Results, Row
from idrc_jax.results.recertify import certificates_of, counts
from idrc_jax.results.result_rows import by_class
from idrc_jax.results.resume_check import same_guarantee
from idrc_jax.sampling import implementation_choice, random_keys
from idrc_jax.sampling.batch_systems import ALONE, Worker
from idrc_jax.sampling.dispatch_ahead import Drawn
from idrc_jax.sampling.execution import Execution, unmeasured

# What a run's guarantee says of its certificates beyond its votes, which is for the variant's to say.
_OF_CERTIFICATES = ("alpha", "certificate", "k")


def certify_variant(
    variant: Classifier,
    reference: Classifier,
    read: Results,
    scheme: Scheme,
    dataset: data.Dataset,
    indices: np.ndarray,
    settings: Settings,
    workdir: Path,
    *,
    pairs: Pairs | None = None,
    chunk: int = 0,
    mesh: Mesh | None = None,
    max_minutes: float = 0.0,
    worker: Worker = ALONE,
    provenance: dict[str, Any] | None = None,
    budget: Budget | None = None,
) -> bool:
    """Certify `dataset[indices]` under `variant` into `workdir/certificates.tsv`; call again to go on.

    Rows have the votes of `reference`'s run, the pairs that differ, and certificates of `variant`.

    Args:
      variant: the network that is certified: `reference` in another compute type, pruned, imported ...
      reference: the network of the run, of the same classes and images.
      read: that run, with a row of each of the images.
      scheme, dataset, indices, settings: those of the run, but for alpha; `settings.certificate` does not matter.
      pairs: how many pairs an image gets, and how alpha is split.
      Others: as for `certify_dataset`.

    Returns:
      Whether every image of this worker's share is done.

    Raises:
      ValueError: another network, noise, plan or images than the run's, images that it has no row of, a run that is
        incremental itself, networks of other classes or images, or anything that `certify_dataset` refuses.

    Guarantee: for each image on its own, with probability at least 1 - alpha over votes and pairs, `radius` is valid
    for the smoothed variant, as far as the reference computes on the pairs what it computed in its run.
    """
    sampling.check_chunk(variant, mesh, chunk)
    job = _prepare(variant, reference, read, scheme, dataset, indices, settings, pairs or Pairs(), worker)
    return run(
        job,
        workdir,
        chunk=chunk,
        mesh=mesh,
        max_minutes=max_minutes,
        worker=worker,
        provenance=provenance,
        budget=budget,
    )


def paired(first: Classifier, second: Classifier) -> Classifier:
    """Classify an image by how two networks of K classes answer to it.

    Returns:
      A classifier of K + 2 outcomes: c, where the first answers c and the second does not; K, where they answer alike;
      K + 1, where the first answers nothing, its logits not being finite.
    """
    classes = first.classes

    def answer(classifier: Classifier, params: Any, images: jax.Array) -> jax.Array:
        logits = models.check_logits(classifier.apply_fn(params, images), len(images), classes)
        return jnp.where(jnp.isfinite(logits).all(axis=-1), jnp.argmax(logits, axis=-1), classes)

    def apply_fn(params: Any, images: jax.Array) -> jax.Array:
        one, other = (answer(each, own, images) for each, own in zip((first, second), params, strict=True))
        outcome = jnp.where(one == classes, classes + 1, jnp.where(one == other, classes, one))
        return jax.nn.one_hot(outcome, classes + 2, dtype=jnp.float32)

    kernel = ", ".join(dict.fromkeys((first.kernel, second.kernel)))
    return Classifier(apply_fn, (first.params, second.params), classes + 2, first.image_shape, kernel=kernel)


@dataclass(frozen=True)
class _Pairing(Job):
    """Of pairs.

    Attributes:
      reference: the network of the votes.
      rows: of its run, one an image.
      votes: int [N, K + 1], these rows'.
    """

    reference: Classifier
    rows: list[Row]
    votes: np.ndarray
    stage: ClassVar[int] = random_keys.PAIRING

    def execution(self, samples: int, seconds: float, mesh: Mesh | None, chunk: int) -> Execution:
        """Each network by the implementation that is the fastest of its own."""

        def fastest(classifier: Classifier, mesh: Mesh | None) -> Execution:
            return implementation_choice.choose(
                classifier, self.scheme, samples=samples, seconds=seconds / 2, mesh=mesh, chunk=chunk
            )

        first = fastest(self.reference, mesh)
        second = fastest(self.classifier, first.mesh)
        return unmeasured(paired(first.classifier, second.classifier), first.mesh, chunk)

    def course(self, position: int) -> Course:
        return OneLevel(lambda votes: True)

    def row(self, drawn: Drawn, seconds: float) -> Row:
        position, classes = drawn.position, self.classifier.classes
        (only,) = drawn.levels
        outcomes, old = np.asarray(only.votes), self.rows[position]
        (made,) = certificates_of(
            self.guarantee,
            self.scheme,
            np.asarray([old.statistic], np.float64),
            np.asarray([old.selected]),
            self.votes[[position]],
            labels=self.dataset.labels[self.indices[[position]]],
            lost=outcomes[[old.selected or 0]],
        )
        differing = by_class([*outcomes[:classes].tolist(), int(outcomes[classes + 1])])
        return Row.from_certificate(made, old.idx, old.label, seconds, differing)


def _prepare(
    variant: Classifier,
    reference: Classifier,
    read: Results,
    scheme: Scheme,
    dataset: data.Dataset,
    indices: np.ndarray,
    settings: Settings,
    pairs: Pairs,
    worker: Worker,
) -> _Pairing:
    """The worker's job, or ValueError for what cannot be certified."""
    if level_count(scheme) > 1 or isinstance(scheme, Splitting):
        raise ValueError(
            f"Expected a scheme of one level of drawn noise for a variant of a network, got {scheme.name}: certify the "
            "variant itself."
        )
    if reference.by_level or variant.by_level:
        raise ValueError("Expected a variant and a network of one network each, got a network for each level.")
    for classifier in (reference, variant):
        check_fits(classifier, dataset)
    if (variant.classes, variant.image_shape) != (reference.classes, reference.image_shape):
        raise ValueError(
            f"Expected two networks of the same classes and images, got {variant.classes} classes of "
            f"{variant.image_shape} and, in the run's network, {reference.classes} of {reference.image_shape}."
        )
    indices = check_unique(check_indices(indices, dataset))
    checked = checked_scheme(scheme, dataset.images, indices)
    stored = _check_run(read, as_json(describe_guarantee(reference, scheme, dataset, indices, settings)))
    check_rows(dataset, read)
    known = {row.idx: (row, votes) for row, votes in zip(read.rows, counts(read), strict=True)}
    missing = [int(index) for index in indices if index not in known]
    if missing:
        raise ValueError(
            f"Expected a row of each image in {read.path}, got none of {len(missing)} of them, {missing[0]} first: "
            "certify them there, or fewer here."
        )
    own = Settings(settings.plan, settings.alpha, settings.seed, INCREMENTAL)
    _check_enough(own, pairs)
    guarantee = describe_guarantee(variant, scheme, dataset, indices, own)
    described = as_json(guarantee)
    of = {name: value for name, value in stored.items() if described.get(name) != value}
    guarantee["paired"] = {"n": pairs.n, "share": pairs.share, "of": of}
    warn_of_training_images(variant, dataset, guarantee)
    share = worker.share(indices)
    images = sampling.check_images(data.to_unit(dataset.images[share]), variant, scheme)
    _, levels = host_levels(scheme, images)
    rows = [known[int(index)][0] for index in share]
    votes = np.asarray([known[int(index)][1] for index in share]).reshape(len(share), -1)
    return _Pairing(
        variant, scheme, dataset, share, images, levels, SelectionFree(n=pairs.n), settings.seed,
        guarantee, checked, asked(indices), reference, rows, votes,
    )  # fmt: skip


def _check_enough(settings: Settings, pairs: Pairs) -> None:
    """ValueError unless unanimous votes and pairs that all agree would certify something."""
    looks = np.asarray(settings.plan.looks())
    best = float(np.max(pairs.lower(settings.plan.lower, looks, looks, np.zeros_like(looks), settings.alpha)))
    if best <= 0.5:
        raise ValueError(
            f"Expected more pairs than {pairs.n} or a larger share of alpha for them than {pairs.share:g}: even votes "
            f"and pairs that all agree would only show a probability of {best:.3f}."
        )


def _check_run(read: Results, expected: Json) -> Json:
    """What a run's guarantee says of its votes, or ValueError unless that is what is expected."""
    if read.manifest is None:
        raise ValueError(f"Expected {MANIFEST} beside {read.path}, with the scheme of its votes, got none.")
    made = read.manifest["guarantee"]
    if "paired" in made:
        raise ValueError(
            f"Expected a run of a network's own votes in {read.path}, got an incremental one: take the run it rests on."
        )
    stored, wanted = (
        {name: value for name, value in one.items() if name not in _OF_CERTIFICATES} for one in (made, expected)
    )
    advice = "a variant is paired with the network, noise, plan and images of its run"
    same_guarantee(stored, wanted, read.path, advice=advice)
    return stored
