"""What the functions for images in memory are given: checked, and what to do about a probable mistake."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from idrc_jax import data
from idrc_jax.certificates import schemes
from idrc_jax.certificates.schemes import Scheme
from idrc_jax.models import Classifier
from idrc_jax.sampling import random_keys


def check_classifier(given: object) -> Classifier:
    """The classifier, or ValueError that says how what was given becomes one."""
    if isinstance(given, Classifier):
        return given
    kinds = {f"{kind.__module__}.{kind.__name__}" for kind in type(given).__mro__}
    got = type(given).__name__
    if "torch.nn.modules.module.Module" in kinds:
        call = "idrc_jax.from_torch(module, image_shape=(H, W, C), mean=..., std=...)"
        got = f"the PyTorch module {got}: {call} makes one of it"
    elif isinstance(given, str | Path):
        got = f"{str(given)!r}: idrc_jax.load_classifier reads one from a file or a run's folder"
    elif isinstance(given, Scheme):
        got = f"{given!r}: the classifier comes first, then the noise scheme"
    elif hasattr(given, "predict") and hasattr(given, "certify"):
        got += ", which is smoothed already: call its own predict or certify"
    elif callable(given):
        call = "idrc_jax.Classifier(apply_fn=..., params=..., classes=K, image_shape=(H, W, C))"
        got += f": {call} makes one of a function"
    raise ValueError(f"Expected an idrc_jax.Classifier, got {got}.")


def check_scheme(given: Scheme | str, sigma: float | None) -> Scheme:
    """The noise scheme, or the one of this name and sigma; ValueError that says what is missing or too much."""
    if isinstance(given, str):
        if sigma is None:
            raise ValueError(f"Expected sigma with the scheme {given!r}, in pixel units, such as sigma=0.25, got none.")
        return schemes.make(given, sigma=sigma)
    if not isinstance(given, Scheme):
        got = f"the class {given.__name__}: call it with its sigma" if isinstance(given, type) else repr(given)[:80]
        raise ValueError(f"Expected a noise scheme, idrc_jax.schemes.Gaussian(sigma=0.25) or 'gaussian', got {got}.")
    if sigma is not None:
        raise ValueError(f"Expected sigma in the scheme alone, got {given!r} and sigma = {sigma}.")
    return given


def check_seed(seed: int | None, key: jax.Array | None) -> int | None:
    """The seed, that of the key, or None where neither is given; ValueError for both."""
    if key is None:
        return None if seed is None else random_keys.check_seed(seed)
    if seed is not None:
        raise ValueError(f"Expected seed or key, got both: seed = {seed} and a key.")
    return random_keys.seed_of(key)


def check_pixels(images: Any, classifier: Classifier) -> np.ndarray:
    """uint8 images [N, H, W, C] as they are, floats in [0, 1] as float32; ValueError that says how others get there."""
    if isinstance(images, data.Dataset):
        raise ValueError("Expected an array of images, got a Dataset: give its images, and its labels as labels.")
    pixels = np.asarray(images)
    _check_shape(pixels.shape, classifier.image_shape)
    if pixels.dtype == np.uint8:
        return pixels
    if not np.issubdtype(pixels.dtype, np.floating):
        raise ValueError(
            f"Expected images of uint8, or floats in [0, 1], got {pixels.dtype}: if they are from 0 to 255, "
            "images.astype('uint8')."
        )
    low, high = (float(bound(initial=0)) for bound in (pixels.min, pixels.max))
    if not np.isfinite(low + high):
        raise ValueError("Expected finite images, got values that are NaN or infinite: look at how they were read.")
    if not (low >= 0 and high <= 1):
        hint = "divide by 255" if low >= 0 and 1 < high <= 255 else "a normalisation belongs in the classifier"
        raise ValueError(f"Expected float images in [0, 1], got values from {low:g} to {high:g}: {hint}.")
    return pixels.astype(np.float32)


def _check_shape(shape: tuple[int, ...], wanted: tuple[int, int, int]) -> None:
    if len(shape) == 4 and shape[1:] == wanted:
        return
    channels_first = (wanted[2], *wanted[:2])
    hint = "."
    if shape == wanted:
        hint = ": one image is images[None]."
    elif len(shape) == 4 and shape[1:] == channels_first:
        hint = ": channels come last here, images.transpose(0, 2, 3, 1)."
    elif shape == channels_first:
        hint = ": channels come last here, and one image is images.transpose(1, 2, 0)[None]."
    elif wanted[2] == 1 and shape[-2:] == wanted[:2] and len(shape) == 3:
        hint = ": the one channel has an axis of its own, images[..., None]."
    height, width, channels = wanted
    raise ValueError(
        f"Expected images [N, {height}, {width}, {channels}], as the classifier takes, got shape {list(shape)}{hint}"
    )
