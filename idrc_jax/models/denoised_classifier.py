"""Diffusion denoised smoothing (Salman et al. 2020; Carlini et al. 2023): a denoiser in front of a classifier."""

import dataclasses

import jax

from idrc_jax.core import validate
from idrc_jax.models.classifier import Classifier
from idrc_jax.models.diffusion import Denoiser
from idrc_jax.models.tensors import PyTree


def denoised(classifier: Classifier, denoiser: Denoiser, *, sigma: float, steps: int = 1) -> Classifier:
    """Put a denoiser in front of a classifier.

    The result is again a function of the noisy image alone, to be certified like any other. Each implementation of the
    denoiser goes with each of the classifier.

    Args:
      classifier: any, trained without noise or on denoised images. If it takes images of another height and width than
        the denoiser's, they are resized: by a Vision Transformer itself, for others bilinear.
      denoiser: its noise levels must hold `sigma`.
      sigma: the level that the denoiser is told, in pixel units. It is the same for every image: a level read off the
        clean image would make the network another one at every image, and its certificate void.
      steps: see `Denoiser.denoise`.

    Raises:
      ValueError: the channels differ, the classifier has a denoiser already or a network for each level, or this
        denoiser cannot denoise that level.
    """
    if classifier.by_level:
        raise ValueError("Expected one network, got one for each level: put the denoiser in front of each of them.")
    if "denoiser" in classifier.description:
        raise ValueError("Expected a classifier without a denoiser, got one that has one in front already.")
    sigma, steps = float(sigma), validate.count("steps", steps, 1)
    shape, wanted = denoiser.image_shape, classifier.image_shape
    if shape[-1] != wanted[-1]:
        raise ValueError(
            f"Expected a denoiser of images with {wanted[-1]} channels, as the classifier takes, got {shape}."
        )
    denoiser.check(sigma, steps)

    resizes = all("vit" in one for one in classifier.description.get("members", [classifier.description]))
    told = denoiser.describe() | {"sigma": sigma, "steps": steps, "classifier_shape": list(wanted)}

    def behind(before: Denoiser, after: Classifier) -> Classifier:
        def apply_fn(params: PyTree, images: jax.Array) -> jax.Array:
            clean = before.denoise(params["denoiser"], images, sigma=sigma, steps=steps)
            if shape != wanted and not resizes:
                clean = jax.image.resize(clean, (clean.shape[0], *wanted), "bilinear")
            return after.apply_fn(params["classifier"], clean)

        return dataclasses.replace(
            after,
            apply_fn=apply_fn,
            params={"denoiser": before.params, "classifier": after.params},
            image_shape=shape,
            kernel=f"{before.kernel}, {after.kernel}",
            sha256=classifier.sha256 if denoiser.sha256 else "",
            description={**classifier.description, "denoiser": told},
        )

    plain = f"{denoiser.reference.kernel}, {classifier.reference.kernel}"
    first, *others = (
        behind(before, after) for before in denoiser.implementations for after in classifier.implementations
    )
    return first.with_alternatives(*sorted(others, key=lambda one: one.kernel != plain))
