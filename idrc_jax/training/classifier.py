"""Training a classifier under noise: the noisy batch and one step of it."""

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from idrc_jax import data, models
from idrc_jax.certificates.schemes import Gaussian, Scheme
from idrc_jax.kernels import resnet_training_cpu
from idrc_jax.models.diffusion import Denoiser
from idrc_jax.sampling import devices, noise_laws, random_keys
from idrc_jax.training import implementation, loop
from idrc_jax.training.loop import State, descend, images_of_step
from idrc_jax.training.recipe import Recipe

# What the weights to start from must have in common with the network that is to be trained.
_NETWORK = ("architecture", "depth", "classes", "image_shape", "shortcut", "mean", "std")


# (params, stats, images float32 [N, H, W, C]) -> (logits float32 [N, classes], new stats), by batch statistics.
Network = Callable[[models.Tensors, models.Tensors, jax.Array], tuple[jax.Array, models.Tensors]]


class Metrics(NamedTuple):
    """Mean loss and accuracy on a step's noisy batch."""

    loss: jax.Array
    accuracy: jax.Array


def make_batch(
    recipe: Recipe, scheme: Scheme, seed: int, *, split: bool = False
) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """The function (step, order of its epoch, images, labels) -> (noisy batch float32 [B, H, W, C], its labels [B]).

    Images and labels are those of the whole set. Augmentation and noise follow from the seed and the step alone,
    whether devices share the batch (`split`) or not.
    """
    key = jax.random.fold_in(random_keys.stage(random_keys.root(seed), random_keys.TRAINING), 1)

    def batch(step: jax.Array, order: jax.Array, images: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
        chosen = images_of_step(order, step, recipe.batch)
        augment_key, noise_key, sigma_key = jax.random.split(jax.random.fold_in(key, step), 3)
        picked = data.to_unit(images[chosen])
        if recipe.augment:
            picked = data.augment(picked, augment_key, split=split)
        factor = None
        if recipe.sigma_low > 0:
            low = recipe.sigma_low / scheme.sigma
            factor = jax.random.uniform(sigma_key, (recipe.batch,), jnp.float32, low, 1.0)
        return noise_laws.add(scheme, picked, noise_key, factor), labels[chosen]

    return batch


def network_on(mesh: Mesh, description: dict[str, Any], kernel: str = "auto") -> Network:
    """The network in training, by the fastest that runs on those devices ("auto") or plainly ("xla")."""
    if implementation.kernel_on(mesh, description, kernel) == "resnet_training_cpu":
        return resnet_training_cpu.network(
            depth=description["depth"],
            shortcut=description["shortcut"],
            mean=tuple(description["mean"]),
            std=tuple(description["std"]),
        )
    graph = implementation.graph_on(mesh, description, kernel)

    def apply(params: models.Tensors, stats: models.Tensors, images: jax.Array) -> tuple[jax.Array, models.Tensors]:
        model = models.merge(graph, params, stats)
        return model(images, train=True), models.split(model)[2]

    return apply


def make_step(
    network: Network,
    recipe: Recipe,
    scheme: Scheme,
    optimiser: optax.GradientTransformation,
    seed: int,
    mesh: Mesh,
    denoise: Callable[..., jax.Array] | None = None,
) -> Callable[..., tuple[State, Metrics]]:
    """The training step (state, order of the epoch, images, labels of the whole set) -> (state, metrics); not jitted.

    Batch statistics are those of the whole batch, on however many devices it lies. With `denoise` the step also takes
    its params, and the network sees denoised images.
    """
    batch_of = make_batch(recipe, scheme, seed, split=mesh.size > 1)
    whole = devices.replicated(mesh)
    dealt = devices.split_first_axis(mesh)

    def step(
        state: State, order: jax.Array, images: jax.Array, labels: jax.Array, *frozen: Any
    ) -> tuple[State, Metrics]:
        noisy, targets = batch_of(state.step, order, images, labels)
        noisy = jax.lax.with_sharding_constraint(noisy, dealt)
        targets = jax.lax.with_sharding_constraint(targets, dealt)
        seen = denoise(*frozen, noisy) if denoise else noisy

        def loss_of(params: models.Tensors) -> tuple[jax.Array, tuple[models.Tensors, jax.Array]]:
            logits, stats = network(params, state.stats, seen)
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
            accuracy = jnp.mean(jnp.argmax(logits, -1) == targets)
            return jnp.mean(losses), (stats, accuracy)

        (loss, (stats, accuracy)), gradients = jax.value_and_grad(loss_of, has_aux=True)(state.params)
        new = descend(state, optimiser, gradients, stats)
        return jax.lax.with_sharding_constraint((new, Metrics(loss, accuracy)), whole)

    return step


def train(
    train_set: data.Dataset,
    scheme: Scheme,
    recipe: Recipe,
    description: dict[str, Any],
    workdir: Path,
    *,
    seed: int = 0,
    mesh: Mesh | None = None,
    start: str = "",
    denoiser: Denoiser | None = None,
    denoiser_steps: int = 1,
    kernel: str = "auto",
    **limits: Any,
) -> bool:
    """Train until the recipe is done or the time is up; call again to go on.

    The processes of `jax.distributed` train one network: each calls this with the same arguments, `workdir` is a folder
    that all of them see, and process 0 writes the files. When one is to stop, all do after the same step.

    Args:
      description: of the network (see `checkpoints.build`), with its compute `dtype`.
      workdir: gets `checkpoints/`, `metrics.csv`, `train_status.json` and at the end `weights.safetensors`.
      start: weights of the same network to start from (a file or a run's folder) instead of new ones.
      denoiser, denoiser_steps: take the noise off before the network sees the images, told the scheme's sigma.
      kernel: "auto" trains by the fastest that runs here, "xla" by the plain network; weights differ by rounding.
      limits: max_minutes of this call, which stops cleanly before (0: no limit), checkpoint_minutes between two
        checkpoints, steps_per_dispatch on accelerators (on the CPU a dispatch is one step), tensorboard.

    Returns:
      Whether training is finished.

    Raises:
      ValueError: images without labels, the recipe does not fit the data, another run's checkpoints lie in `workdir`,
        or processes differ in their settings, data or folder.
      FloatingPointError: the loss is no longer finite; the last good checkpoint is kept.
    """
    if not train_set.labelled:
        raise ValueError(f"Expected labels to train a classifier, got none (absent, or -1) in {train_set.source}.")
    if recipe.sigma_low > scheme.sigma:
        raise ValueError(f"Expected train.sigma_low <= train.sigma = {scheme.sigma}, got {recipe.sigma_low}.")
    facts: dict[str, Any] = {"scheme": {"name": scheme.name, **asdict(scheme)}, "recipe": asdict(recipe), "seed": seed}
    facts |= {"data": train_set.name, "data_sha256": train_set.fingerprint()}
    tensors = None
    if start:
        tensors, facts["start"] = loop.start_from(start, description, _NETWORK)
    denoise, frozen = None, ()
    if denoiser is not None:
        if scheme.name != Gaussian.name:
            raise ValueError(f"Expected train.scheme = gaussian with a denoiser, got {scheme.name}.")
        if recipe.sigma_low:
            raise ValueError(f"Expected train.sigma_low = 0 with a denoiser of one level, got {recipe.sigma_low}.")
        if list(denoiser.image_shape) != list(description["image_shape"]):
            raise ValueError(f"Expected a denoiser of {description['image_shape']} images, got {denoiser.image_shape}.")
        if not denoiser.sha256:
            raise ValueError("Expected a denoiser loaded from a file, which names it, got one without a hash.")
        denoiser.check(scheme.sigma, denoiser_steps)
        denoise = partial(denoiser.denoise, sigma=scheme.sigma, steps=denoiser_steps)
        frozen = (denoiser.params,)
        facts["denoiser"] = denoiser.describe() | {"steps": denoiser_steps}
    job = loop.Job(
        description=description | {"training": facts},
        recipe=recipe,
        images=len(train_set),
        data=(train_set.images, train_set.labels, *frozen),
        make_step=lambda optimiser, mesh: make_step(
            network_on(mesh, description, kernel), recipe, scheme, optimiser, seed, mesh, denoise
        ),
        metrics=Metrics._fields,
        first_stats=lambda params, stats: stats,
        tensors=lambda state: state.params | state.stats,
        start=tensors,
    )
    return loop.run(job, workdir, seed=seed, mesh=mesh or devices.global_mesh(), **limits)
