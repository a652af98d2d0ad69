"""Makes the gallery of a finished run (see `gallery_file`): its images, and the noise they were classified under."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from idrc_jax import data
from idrc_jax.certificates import schemes, user_schemes
from idrc_jax.certificates.schemes import Routed, Scheme
from idrc_jax.core.json_values import Json
from idrc_jax.models.diffusion import Denoiser
from idrc_jax.results import Results, gallery_file
from idrc_jax.results.gallery_file import Gallery
from idrc_jax.results.manifest import seed_of, told_by_level
from idrc_jax.sampling import exact_noise, noise_laws, random_keys


def gallery(
    read: Results, dataset: data.Dataset, denoiser: Denoiser | None = None, scheme: Scheme | None = None
) -> Gallery:
    """The chosen images of a run, each under the first noise whose vote was counted in its estimation.

    Args:
      read: a finished run, with its manifest.
      dataset: the images it certified.
      denoiser: that of a denoised run; without it the gallery has no denoised images, nor under a router's noise where
        the levels are told each.
      scheme: that of the run, if it is the user's own.

    Raises:
      ValueError: other images or another denoiser or scheme than the run's, or a run without rows, manifest or seed.
    """
    if read.manifest is None or not read.rows:
        raise ValueError(f"Expected a run with rows and a manifest, got {read.path}.")
    made = read.manifest["guarantee"]
    certified = np.sort([row.idx for row in read.rows])
    if certified[-1] >= len(dataset) or dataset.fingerprint(certified) != made["data_sha256"]:
        raise ValueError(f"Expected the images of {read.path}, {made['data']}, got others in {dataset.name}.")
    chosen = np.asarray([row.idx for row in gallery_file.choose(read.rows)], np.int64)
    images, scheme = data.to_unit(dataset.images[chosen]), user_schemes.of_results(made, scheme=scheme)
    _, sigma_x = schemes.host_scale(scheme, images)
    noisy = add_first_noise(scheme, images, sigma_x, indices=chosen, seed=seed_of(made, read.path))
    denoised = None
    of_router = isinstance(scheme, Routed) and len(set(told_by_level(made))) > 1  # its noise, of which none is told
    if denoiser is not None and not of_router:
        if denoiser.sha256 != made.get("denoiser_weights_sha256"):
            raise ValueError(f"Expected the denoiser of {read.path}, got another one.")
        told = _told(made, sigma_x)
        run = jax.jit(partial(denoiser.denoise, steps=made["denoiser_steps"]), static_argnames="sigma")
        denoised = np.empty_like(to_bytes(noisy))
        for sigma in np.unique(told):
            seen = told == sigma
            denoised[seen] = to_bytes(np.asarray(run(denoiser.params, noisy[seen], sigma=float(sigma))))
    return Gallery(chosen, to_bytes(images), to_bytes(noisy), sigma_x, denoised)


def _told(made: Json, sigma_x: np.ndarray) -> np.ndarray:
    """The level that the denoiser is told of each image's noise: of those told by level the nearest one."""
    several = [sigma for sigma in told_by_level(made) if sigma is not None]
    told = np.asarray(several or [made["denoiser_sigma"]])
    return told[np.argmin(np.abs(sigma_x[:, None] - told), axis=1)]


def add_first_noise(
    scheme: Scheme, images: np.ndarray, sigma_x: np.ndarray, *, indices: np.ndarray, seed: int
) -> np.ndarray:
    """Images [N, H, W, C] in [0, 1] with estimation sample 0 of a run's noise: float32, not clipped."""
    key = random_keys.stage(random_keys.root(seed), random_keys.ESTIMATION)
    levels = exact_noise.tables(sigma_x) if scheme.exact else jnp.asarray(sigma_x, jnp.float32)
    slot = jnp.arange(len(images), dtype=jnp.int32)
    sample = jnp.zeros(len(images), jnp.uint32)
    return np.asarray(_noisy(scheme.law, key, images, jnp.asarray(indices, jnp.uint32), levels, slot, sample))


_noisy = jax.jit(noise_laws.noisy, static_argnums=0)


def to_bytes(images: np.ndarray) -> np.ndarray:
    """Floats, clipped to [0, 1], as uint8: to be seen, not to be classified."""
    return np.rint(255 * np.clip(images, 0, 1)).astype(np.uint8)
