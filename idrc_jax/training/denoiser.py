"""Training a denoiser: noisy images of every level, and the loss of denoising diffusion (Ho et al. 2020).

With the prediction "sample" and one noise level it is the Gaussian denoiser of Salman et al. (2020), trained for the
mean squared error of the image.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from idrc_jax import data, models
from idrc_jax.core import validate
from idrc_jax.core.time_budget import Budget
from idrc_jax.core.validate import SettingError
from idrc_jax.models import Description, Schedule, Tensors, diffusion
from idrc_jax.sampling import devices, random_keys
from idrc_jax.training import loop, moving_average, training_kernel
from idrc_jax.training.job import Job, RunOptions
from idrc_jax.training.recipe import Recipe
from idrc_jax.training.steps import State, descend, images_of_step

# What the weights to start from must have in common with the denoiser that is to be trained.
_COMPARABLE = ("architecture", "image_shape", "unet", "diffusion.schedule", "diffusion.prediction")


@dataclass(frozen=True)
class Target:
    """What a denoiser learns.

    Attributes:
      schedule: of the variance.
      prediction: what it predicts: "epsilon", "v" or "sample".
      sigma_low, sigma_high: noise levels to train for, in pixel units; 0 for the schedule's lowest and highest.
      ema: decay of the moving average of the weights, which is what is kept, in [0, 1).
    """

    schedule: Schedule
    prediction: str = "epsilon"
    sigma_low: float = 0.0
    sigma_high: float = 0.0
    ema: float = 0.999

    def __post_init__(self) -> None:
        validate.one_of("prediction", self.prediction, diffusion.PREDICTIONS)
        validate.fraction("ema", self.ema)
        low, high = self.sigmas
        if low > high:
            raise SettingError(f"Expected sigma_low <= sigma_high, got {low} and {high}.", "sigma_low")
        for sigma in (low, high):
            self.schedule.time(sigma)

    @property
    def sigmas(self) -> tuple[float, float]:
        """The lowest and the highest noise level."""
        low, high = self.schedule.sigmas
        return self.sigma_low or low, self.sigma_high or high


class Metrics(NamedTuple):
    """Mean loss of a step's batch, and the PSNR in dB of the one-shot denoised images."""

    loss: jax.Array
    psnr: jax.Array


class Batch(NamedTuple):
    """Noisy images x [B, H, W, C], their times [B], signals a [B, 1, 1, 1], clean images in [-1, 1], and targets."""

    x: jax.Array
    time: jax.Array
    a: jax.Array
    clean: jax.Array
    target: jax.Array


def make_batch(recipe: Recipe, target: Target, seed: int) -> Callable[[jax.Array, jax.Array, jax.Array], Batch]:
    """Make the function (step, order of its epoch, images of the whole set) -> batch.

    Times are uniform between those of the lowest and the highest level. Flips, times and noise follow from the seed
    and the step alone.
    """
    key = jax.random.fold_in(random_keys.stage(random_keys.root(seed), random_keys.TRAINING), 1)
    low, high = (target.schedule.time(sigma) for sigma in target.sigmas)
    log_noise = jnp.asarray(target.schedule.log_noise, jnp.float32)

    def batch(step: jax.Array, order: jax.Array, images: jax.Array) -> Batch:
        picked = data.to_unit(images[images_of_step(order, step, recipe.batch)])
        flip_key, noise_key, time_key = jax.random.split(jax.random.fold_in(key, step), 3)
        if recipe.augment:
            picked = data.flip(picked, flip_key)
        clean = 2 * picked - 1
        time = jax.random.uniform(time_key, (recipe.batch,), jnp.float32, low, high)
        ratio = jnp.interp(time, jnp.arange(len(log_noise), dtype=jnp.float32), log_noise)
        a = jax.nn.sigmoid(-ratio)[:, None, None, None]
        noise = jax.random.normal(noise_key, clean.shape, jnp.float32)
        x = jnp.sqrt(a) * clean + jnp.sqrt(1 - a) * noise
        targets = {"epsilon": noise, "v": jnp.sqrt(a) * noise - jnp.sqrt(1 - a) * clean, "sample": clean}
        return Batch(x, time, a, clean, targets[target.prediction])

    return batch


def make_step(
    graph: nnx.GraphDef, recipe: Recipe, target: Target, optimiser: optax.GradientTransformation, seed: int, mesh: Mesh
) -> Callable[[State, jax.Array, jax.Array], tuple[State, Metrics]]:
    """Make the training step (state, order of the epoch, images of the whole set) -> (state, metrics); not jitted.

    The state's stats are the moving average of its params.

    Args:
      graph: the network's, see `models.split`.
      recipe, target, seed: see `make_batch`.
      optimiser: the recipe's.
      mesh: the devices that share a batch.
    """
    batch_of = make_batch(recipe, target, seed)
    whole, dealt = devices.replicated(mesh), devices.split_first_axis(mesh)

    def step(state: State, order: jax.Array, images: jax.Array) -> tuple[State, Metrics]:
        batch = jax.lax.with_sharding_constraint(batch_of(state.step, order, images), dealt)

        def loss_of(params: Tensors) -> tuple[jax.Array, jax.Array]:
            predicted = models.merge(graph, params)(batch.x, batch.time)
            return jnp.mean(jnp.square(predicted - batch.target)), predicted

        (loss, predicted), gradients = jax.value_and_grad(loss_of, has_aux=True)(state.params)
        denoised = jnp.clip(diffusion.clean_estimate(target.prediction, predicted, batch.x, batch.a), -1, 1)
        psnr = -10 * jnp.log10(jnp.mean(jnp.square(denoised - batch.clean)) / 4)
        new = descend(state, optimiser, gradients, state.stats)
        average = moving_average.updated(state.stats, new.params, state.step, target.ema)
        return jax.lax.with_sharding_constraint((new._replace(stats=average), Metrics(loss, psnr)), whole)

    return step


def train(
    train_set: data.Dataset,
    target: Target,
    recipe: Recipe,
    description: Description,
    workdir: Path,
    *,
    seed: int = 0,
    mesh: Mesh | None = None,
    start: str = "",
    kernel: str = "auto",
    options: RunOptions | None = None,
    budget: Budget | None = None,
) -> bool:
    """Train a denoiser until the recipe is done or the time is up; call again to go on.

    What is kept is the moving average of the weights. Results and errors are those of `training.train`.

    Args:
      train_set: the images; labels play no part.
      target: what the denoiser learns.
      recipe, description, workdir, seed, mesh, start, kernel, options, budget: see `training.train`.
    """
    low, high = target.sigmas
    diffused = {"schedule": asdict(target.schedule), "prediction": target.prediction}
    description = description | {"diffusion": {**diffused, "sigma_low": low, "sigma_high": high}}

    def step_on(
        optimiser: optax.GradientTransformation, mesh: Mesh, epoch: int
    ) -> Callable[..., tuple[State, Metrics]]:
        return make_step(training_kernel.graph_on(mesh, description, kernel), recipe, target, optimiser, seed, mesh)

    job = Job(
        description=description,
        train_set=train_set,
        recipe=recipe,
        seed=seed,
        start=start,
        comparable=_COMPARABLE,
        facts={"ema": target.ema},
        data=(train_set.images,),
        make_step=step_on,
        metrics=Metrics._fields,
        averaged=True,
    )
    return loop.run(job, workdir, mesh=mesh, options=options, budget=budget)
