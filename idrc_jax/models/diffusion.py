"""Denoising by a diffusion model: variance schedules, one-shot and DDIM denoising.

A diffusion model works on images in [-1, 1] and at the time t sees x_t = sqrt(a) x + sqrt(1 - a) e, e ~ N(0, I), where
the signal a (alpha-bar) falls with t (Ho et al. 2020). Noise of level sigma on pixels in [0, 1] is of level 2 sigma on
[-1, 1]; times sqrt(a) it is x_t at the time where (1 - a) / a = (2 sigma)^2, so a = 1 / (1 + 4 sigma^2) exactly
(Carlini et al. 2023). Times are counted from 0 and may be fractions, between which log((1 - a) / a) is linear.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np

from idrc_jax.core import validate
from idrc_jax.core.validate import SettingError
from idrc_jax.models.interchangeable import Interchangeable
from idrc_jax.models.tensors import Description, PyTree

KINDS = ("linear", "scaled_linear", "cosine")
PREDICTIONS = ("epsilon", "v", "sample")
_MAX_BETA = 0.999


@dataclass(frozen=True)
class Schedule:
    """How the signal falls over the time.

    Attributes:
      kind: of beta, the share of the signal's power that a step takes: "linear" from beta_start to beta_end (Ho et al.
        2020), "scaled_linear" (its square root is linear), or "cosine" (Nichol & Dhariwal 2021, without further
        settings).
      steps: number of times.
    """

    kind: str = "linear"
    steps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02

    def __post_init__(self) -> None:
        validate.one_of("kind", self.kind, KINDS)
        validate.count("steps", self.steps, 2)
        if not 0 < self.beta_start <= self.beta_end < 1:
            raise SettingError(
                f"Expected 0 < beta_start <= beta_end < 1, got {self.beta_start} and {self.beta_end}.", "beta_start"
            )

    @cached_property
    def log_noise(self) -> np.ndarray:
        """Float64 [steps], rising: log((1 - a) / a) at the times 0, 1, ..."""
        if self.kind == "cosine":
            at = np.arange(self.steps + 1) / self.steps
            signal = np.cos((at + 0.008) / 1.008 * np.pi / 2) ** 2
            beta = np.minimum(1 - signal[1:] / signal[:-1], _MAX_BETA)
        elif self.kind == "scaled_linear":
            beta = np.linspace(self.beta_start**0.5, self.beta_end**0.5, self.steps) ** 2
        else:
            beta = np.linspace(self.beta_start, self.beta_end, self.steps)
        log_signal = np.cumsum(np.log1p(-beta))
        return np.log(-np.expm1(log_signal)) - log_signal

    @property
    def sigmas(self) -> tuple[float, float]:
        """The lowest and the highest noise level, in pixel units."""
        low, high = np.exp(self.log_noise[[0, -1]] / 2) / 2
        return float(low), float(high)

    def time(self, sigma: float) -> float:
        """Find the time whose x_t has noise of level sigma (pixel units); ValueError outside `sigmas`."""
        low, high = self.sigmas
        if not low <= sigma <= high:
            raise ValueError(
                f"Expected a noise level in [{low:.4g}, {high:.4g}], which the diffusion schedule spans, got {sigma}."
            )
        return float(np.interp(np.log(4 * sigma**2), self.log_noise, np.arange(self.steps)))

    def signal(self, time: float) -> float:
        """Compute the signal a at a time."""
        return float(1 / (1 + np.exp(np.interp(time, np.arange(self.steps), self.log_noise))))

    def sigma(self, time: float) -> float:
        """Find the noise level of a time, in pixel units: the inverse of `time`."""
        return float(np.exp(np.interp(time, np.arange(self.steps), self.log_noise) / 2) / 2)


def signal_of(sigma: float) -> float:
    """Compute the signal a at the time that belongs to the noise level sigma (pixel units)."""
    return 1 / (1 + 4 * sigma**2)


def clean_estimate(prediction: str, predicted: jax.Array, x: jax.Array, a: jax.Array | float) -> jax.Array:
    """Compute the clean image in [-1, 1] that a prediction at x = x_t stands for.

    Args:
      prediction: what was predicted: the noise ("epsilon"), "v" or the clean image ("sample").
      predicted: the prediction, of the shape of x.
      x: noisy images x_t.
      a: their signal, which broadcasts with x.
    """
    if prediction == "sample":
        return predicted
    if prediction == "v":
        return jnp.sqrt(a) * x - jnp.sqrt(1 - a) * predicted
    return (x - jnp.sqrt(1 - a) * predicted) / jnp.sqrt(a)


def ddim_step(clean: jax.Array, x: jax.Array, a: jax.Array | float, a_next: jax.Array | float) -> jax.Array:
    """Take the deterministic step of DDIM (Song et al. 2021) from x = x_t to the time with signal a_next.

    Args:
      clean: the estimate of the clean image at x_t.
      x: noisy images x_t.
      a, a_next: the signals at both times.
    """
    noise = (x - jnp.sqrt(a) * clean) / jnp.sqrt(1 - a)
    return jnp.sqrt(a_next) * clean + jnp.sqrt(1 - a_next) * noise


@dataclass(frozen=True)
class Denoiser(Interchangeable):
    """A diffusion model as a remover of noise: a pure function of the noisy image and a fixed noise level.

    Attributes:
      apply_fn: (params, x_t float32 [N, H, W, C], time float32 []) -> [N, H, W, C]; further channels, which hold a
        learned variance, are dropped.
      params: the pytree that `apply_fn` takes.
      image_shape: (H, W, C).
      schedule: of the variance it was trained with.
      prediction: what it predicts: the noise ("epsilon"), "v", or the clean image ("sample").
      sigmas: lowest and highest noise level that it was trained for, in pixel units.
      dtype, kernel, sha256, description, alternatives: see `Classifier`.
    """

    apply_fn: Callable[[PyTree, jax.Array, jax.Array], jax.Array]
    params: PyTree = field(repr=False)
    image_shape: tuple[int, int, int]
    schedule: Schedule
    prediction: str = "epsilon"
    sigmas: tuple[float, float] = (0.0, float("inf"))
    dtype: str = "float32"
    kernel: str = "xla"
    sha256: str = ""
    description: Description = field(default_factory=dict)

    def check(self, sigma: float, steps: int = 1) -> None:
        """ValueError unless it can denoise this level in so many steps."""
        validate.one_of("prediction", self.prediction, PREDICTIONS)
        validate.count("steps", steps, 1)
        time = self.schedule.time(sigma)
        low, high = self.sigmas
        if not low * (1 - 1e-6) <= sigma <= high * (1 + 1e-6):
            raise ValueError(
                f"Expected a noise level in [{low:.4g}, {high:.4g}], for which the denoiser was trained, got {sigma}."
            )
        last = sigma if steps == 1 else self.schedule.sigma(time / steps)
        if last < low * (1 - 1e-6):
            raise SettingError(
                f"Expected steps whose levels are all >= {low:.4g}, for which the denoiser was trained, got {last:.4g} "
                f"in the last of {steps}: take fewer.",
                "steps",
            )

    def describe(self) -> dict[str, object]:
        """Say what a guarantee says of it: beside the tensors' hash the settings that the hash does not cover."""
        return {
            "weights_sha256": self.sha256,
            "dtype": self.dtype,
            "prediction": self.prediction,
            "schedule": asdict(self.schedule),
            "unet": self.description.get("unet", {}),
        }

    def __call__(self, noisy: jax.Array, *, sigma: float, steps: int = 1) -> jax.Array:
        """Call `denoise` with its own params."""
        self.check(sigma, steps)
        return self.denoise(self.params, noisy, sigma=sigma, steps=steps)

    def denoise(self, params: PyTree, noisy: jax.Array, *, sigma: float, steps: int = 1) -> jax.Array:
        """Estimate the clean image.

        Args:
          params: as `apply_fn` takes them.
          noisy: float32 [N, H, W, C]: an image in [0, 1] plus noise of level sigma, not clipped.
          sigma: in pixel units; a constant, from which every factor is computed when the program is made.
          steps: 1 takes the network's estimate at the noisy image; k takes k - 1 steps of DDIM to lower noise first.

        Returns:
          float32 [N, H, W, C] within [0, 1].
        """
        time = self.schedule.time(sigma)
        times = [time * (1 - k / steps) for k in range(steps)]
        signals = [signal_of(sigma), *(self.schedule.signal(one) for one in times[1:])]

        def estimate(x: jax.Array, time: jax.Array | float, a: jax.Array | float) -> jax.Array:
            predicted = self.apply_fn(params, x, jnp.asarray(time, jnp.float32))
            if predicted.shape[:-1] != x.shape[:-1] or predicted.shape[-1] < x.shape[-1]:
                raise ValueError(f"Expected the denoiser to give {list(x.shape)}, got {list(predicted.shape)}.")
            kept = predicted[..., : x.shape[-1]].astype(jnp.float32)
            return clean_estimate(self.prediction, kept, x, a)

        def step(x: jax.Array, levels: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
            time, a, a_next = levels
            return ddim_step(estimate(x, time, a), x, a, a_next), None

        x = signals[0] ** 0.5 * (2 * noisy - 1)
        if steps > 1:
            levels = (times[:-1], signals[:-1], signals[1:])
            x, _ = jax.lax.scan(step, x, tuple(jnp.asarray(level, jnp.float32) for level in levels))
        return (jnp.clip(estimate(x, times[-1], signals[-1]), -1, 1) + 1) / 2
