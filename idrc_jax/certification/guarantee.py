"""What a run's guarantee rests on: the checks before it, and the description that a run that goes on is held to."""

from collections.abc import Collection, Sequence
from dataclasses import fields
from typing import Any

import numpy as np

from idrc_jax import certificates, data, models, sampling, several_levels
from idrc_jax.certificates import sampling_plans
from idrc_jax.certificates.sampling_plans import Plan
from idrc_jax.certificates.schemes import Routed, Scheme, constant_levels, describe
from idrc_jax.certification.settings import Settings
from idrc_jax.models import Classifier
from idrc_jax.results import Results
from idrc_jax.sampling import threefry


def check_settings(classifier: Classifier, scheme: Scheme, settings: Settings) -> None:
    """ValueError for a certificate or published radii that the scheme does not have, a plan that several levels do not
    allow, or votes too few for each of them."""
    certificates.check_certificate(settings.certificate, scheme, settings.plan)
    if settings.plan.asks_published and np.isnan(certificates.published_radius(scheme, 0.9)):
        raise ValueError(
            f"Expected sampling.published=False for {scheme.name}, got True: the paper, which has no such noise, "
            "publishes no radius for it."
        )
    bounds = several_levels.bounds_of(scheme, settings.plan, settings.alpha, _dim(classifier))
    if bounds is not None:
        if settings.plan.asks_labels:
            raise ValueError(
                f"Expected sampling.correct_only=False for {scheme.name}, got True: under several levels votes are "
                "drawn for whichever class they choose."
            )
        bounds.check()


def describe_guarantee(
    classifier: Classifier, scheme: Scheme, dataset: data.Dataset, indices: np.ndarray, settings: Settings
) -> dict[str, Any]:
    """Everything that the certificates of a file depend on: compared when a run goes on.

    Args:
      classifier, scheme, settings: by which the images are certified.
      dataset, indices: whose images are, and which of them.

    Returns:
      JSON values.

    Raises:
      ValueError: a field of the user's own scheme has the name of something else that is described.
    """
    described = classifier.description
    others = {
        **_network(described),
        **{f"denoiser_{name}": value for name, value in described.get("denoiser", {}).items()},
        **sampling_plans.describe(settings.plan),
        "certificate": settings.certificate,
        "norm": scheme.norm,
        "alpha": settings.alpha,
        "seed": settings.seed,
        "generator": threefry.NAME,
        "classes": classifier.classes,
        "dim": _dim(classifier),
        "dtype": classifier.dtype,
        "weights_sha256": classifier.sha256 or models.fingerprint(classifier),
        "data": f"{dataset.name}/{dataset.split}",
        "data_sha256": dataset.fingerprint(indices),
        **({"router": _router(classifier.router)} if classifier.router and isinstance(scheme, Routed) else {}),
    }
    if classifier.by_level and constant_levels(scheme):
        others["by_level"] = [describe_network(one) for one in classifier.by_level]
    _check_fields(scheme, others)
    return describe(scheme) | others


def _dim(classifier: Classifier) -> int:
    """Values of an image, H * W * C."""
    return int(np.prod(classifier.image_shape))


def _check_fields(scheme: Scheme, others: Collection[str]) -> None:
    """ValueError if a field of the scheme has the name of another entry, of which only one could be told."""
    taken = {
        *others,
        *sampling_plans.SWITCHES,
        "scheme",
        "scheme_class",
        "scheme_sha256",
        "k",
        "paired",
        "subsampled_from",
        "by_level",
    }
    met = [field.name for field in fields(scheme) if field.name in taken]
    if met:
        raise ValueError(
            f"Expected fields of {type(scheme).__name__} with other names than the settings beside them, got "
            f"{', '.join(met)}: rename them."
        )


def _network(described: models.Description) -> dict[str, Any]:
    """What the weights' hash does not cover of a network: neither an imported one's normalisation, which is the
    importing user's, nor a Vision Transformer's heads and resizing, nor code, nor when an ensemble's first members
    decide; and what its members are."""
    names = (*(("mean", "std") if "imported" in described else ()), "vit", "factory", "consensus")
    found = {name: described[name] for name in names if name in described}
    members = [{"weights_sha256": one["weights_sha256"], **_network(one)} for one in described.get("members", ())]
    return found | ({"members": members} if members else {})


def _router(router: Classifier) -> dict[str, Any]:
    """What the votes of a router depend on."""
    return {**_weights(router), "answers": router.classes, **_network(router.description)}


def describe_network(network: Classifier) -> dict[str, Any]:
    """What the votes of a network depend on, such as a level's own."""
    denoiser = network.description.get("denoiser")
    return {**_weights(network), **_network(network.description), **({"denoiser": denoiser} if denoiser else {})}


def _weights(network: Classifier) -> dict[str, Any]:
    return {"weights_sha256": network.sha256 or models.fingerprint(network), "dtype": network.dtype}


def describe_prediction(
    classifier: Classifier,
    scheme: Scheme,
    dataset: data.Dataset,
    indices: np.ndarray,
    *,
    plan: Plan,
    alpha: float,
    seed: int,
) -> dict[str, Any]:
    """Everything that predictions depend on, as `describe_guarantee` has it for certificates."""
    described = describe_guarantee(classifier, scheme, dataset, indices, Settings(alpha=alpha, seed=seed))
    drawn = sampling_plans.describe(plan)
    _check_fields(scheme, drawn)
    return {name: value for name, value in described.items() if name not in ("certificate", "norm")} | drawn


def labels_for(plan: Plan, dataset: data.Dataset, indices: np.ndarray) -> np.ndarray | None:
    """The labels of some images for a plan that asks for them, None for others; ValueError where there are none."""
    if not plan.asks_labels:
        return None
    if not dataset.labelled:
        raise ValueError(
            f"Expected sampling.correct_only=False for images without labels, which {dataset.source} has, got True."
        )
    return dataset.labels[indices]


def check_fits(classifier: Classifier, dataset: data.Dataset) -> None:
    """ValueError unless the classifier gives logits of its classes and the data set's images and labels are its."""
    for network in (classifier, *classifier.by_level):
        network.check()
    if dataset.images.shape[1:] != classifier.image_shape:
        height, width, channels = classifier.image_shape
        resized = dataset.files and height == width and dataset.images.shape[1:3] != (height, width)
        hint = f": --config.data.size={height} resizes the shorter side and cuts out the centre." if resized else "."
        if dataset.images.shape[1:] == (channels, height, width):
            hint = ": channels come last here, images.transpose(0, 2, 3, 1)."
        raise ValueError(
            f"Expected images of shape {classifier.image_shape} as the classifier takes, got "
            f"{dataset.images.shape[1:]} in {dataset.source}{hint}"
        )
    names, networks = dataset.class_names, (classifier, *classifier.by_level)
    known = next((one.description["class_names"] for one in networks if one.description.get("class_names")), None)
    if names and (len(names) != classifier.classes or (known and list(names) != list(known))):
        wanted = f", {_few(known)}" if known else ""
        raise ValueError(
            f"Expected the classifier's {classifier.classes} classes{wanted}, got {len(names)} in {dataset.source}, "
            f"{_few(names)}: labels follow the order of the folders' names, unless {dataset.source}/classes.txt lists "
            "all classes in the classifier's order, one a line."
        )
    if dataset.labels.max() >= classifier.classes:
        raise ValueError(
            f"Expected labels below the classifier's {classifier.classes} classes, got {dataset.labels.max()} in "
            f"{dataset.source}."
        )


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (" ..." if len(names) > 5 else "")


def check_rows(dataset: data.Dataset, read: Results) -> None:
    """ValueError for a row of an image that the data set does not have, or has under another label."""
    of = f"{dataset.name}/{dataset.split}"
    for row in read.rows:
        if not 0 <= row.idx < len(dataset):
            raise ValueError(f"Expected images 0 .. {len(dataset) - 1} of {of} in {read.path}, got {row.idx}.")
        if dataset.labels[row.idx] != row.label:
            raise ValueError(
                f"Expected image {row.idx} of {of} in {read.path} with its label {dataset.labels[row.idx]}, got "
                f"{row.label}."
            )


def check_unique(indices: np.ndarray) -> np.ndarray:
    """The indices, or ValueError for one that comes twice."""
    if len(np.unique(indices)) < len(indices):
        raise ValueError("Expected each image once, got an index that comes twice.")
    return indices


def check_indices(indices: np.ndarray, dataset: data.Dataset) -> np.ndarray:
    """Indices of the data set's images, or ValueError."""
    indices = sampling.check_indices(indices, indices)
    if len(indices) and not (np.min(indices) >= 0 and np.max(indices) < len(dataset)):
        raise ValueError(
            f"Expected indices in 0 .. {len(dataset) - 1}, the images of {dataset.source}, got {np.min(indices)} to "
            f"{np.max(indices)}."
        )
    return indices
