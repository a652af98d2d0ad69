"""Training a classifier under noise: the noisy batch and one step of it."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from idrc_jax import data, losses, models
from idrc_jax.certificates.schemes import Gaussian, Scheme, parameters, with_exact_noise
from idrc_jax.core import validate
from idrc_jax.core.time_budget import Budget
from idrc_jax.core.validate import SettingError
from idrc_jax.losses import Batch, Loss, Network
from idrc_jax.models import Arrays, Classifier, Denoiser, Description, Tensors
from idrc_jax.sampling import devices, noise_laws, random_keys
from idrc_jax.training import loop, moving_average, training_kernel, validation
from idrc_jax.training.job import Facts, Job, RunOptions
from idrc_jax.training.recipe import Recipe
from idrc_jax.training.steps import State, descend, images_of_step
from idrc_jax.training.training_votes import Inference, Teacher, WeightedDrawing, Worths
from idrc_jax.training.validation import Validator

# What the weights to start from must have in common with the network that is to be trained.
_COMPARABLE = ("architecture", "depth", "classes", "image_shape", "shortcut", "mean", "std")

# (params, stats, batch, key, epoch, frozen params of a denoiser) -> ((loss, outcome), gradients)
_Gradients = Callable[..., tuple[tuple[jax.Array, losses.Outcome], Tensors]]

STATISTICS = ("batch", "device")


class Metrics(NamedTuple):
    """Mean loss and accuracy on a step's noisy batch."""

    loss: jax.Array
    accuracy: jax.Array


def make_batch(
    recipe: Recipe, scheme: Scheme, seed: int, *, noises: int = 1, split: bool = False
) -> Callable[..., Batch]:
    """Make the function (step, epoch's order, images, labels) -> a noisy batch of recipe.batch / noises images.

    Images and labels are those of the whole set. Augmentation and noise follow from the seed and the step alone.

    Args:
      recipe: for the batch's size, augmentation and lowest noise.
      scheme: the noise's.
      seed: of all that is drawn.
      noises: of each image, which is augmented once.
      split: whether several devices share the batch; it is the same.
    """
    count = recipe.batch // noises

    def batch(step: jax.Array, order: jax.Array, images: jax.Array, labels: jax.Array) -> Batch:
        chosen = images_of_step(order, step, count)
        augment_key, noise_key, sigma_key = jax.random.split(_step_key(seed, step), 3)
        picked = data.to_unit(images[chosen])
        if recipe.augment:
            picked = data.augment(picked, augment_key, split=split)
        factor = None
        if recipe.sigma_low > 0:
            low = recipe.sigma_low / scheme.sigma
            factor = jax.random.uniform(sigma_key, (count,), jnp.float32, low, 1.0)
        each = None if factor is None else jnp.repeat(factor, noises)
        noise = noise_laws.of_images(scheme, jnp.repeat(picked, noises, axis=0), noise_key, each)
        return Batch(picked, labels[chosen], noise, noise_laws.levels(scheme, picked, factor))

    return batch


def _step_key(seed: int, step: jax.Array) -> jax.Array:
    stage = random_keys.stage(random_keys.root(seed), random_keys.TRAINING)
    return jax.random.fold_in(jax.random.fold_in(stage, 1), step)


def make_step(
    network: Network,
    recipe: Recipe,
    scheme: Scheme,
    optimiser: optax.GradientTransformation,
    seed: int,
    mesh: Mesh,
    denoise: Callable[..., jax.Array] | None = None,
    statistics: str = "batch",
    loss: Loss | None = None,
    ema: float = 0.0,
) -> Callable[..., tuple[State, Metrics]]:
    """Make the training step (state, epoch's order, images, labels of the whole set) -> (state, metrics); not jitted.

    Args:
      network: in training, see `network_on`.
      recipe, scheme, seed: see `make_batch`.
      optimiser: the recipe's.
      mesh: the devices that share a batch.
      denoise: (params, noisy images) -> the images that the network sees; the step then takes those params, too.
      statistics: what a batch normalisation sees: the whole "batch", on however many devices it lies, or each
        "device" its share, as in PyTorch's DataParallel; running statistics then are the mean of the devices'.
      loss: None for that of noise augmentation. One that needs a teacher takes its predictions of the whole set last.
      ema: decay of the moving average of the weights, which the state then holds; 0 for none.
    """
    loss = loss or losses.Gaussian()
    gradients_of = _gradients(loss, network, denoise)
    if statistics == "device":
        gradients_of = _mean_of_shares(gradients_of, mesh)
    batch_of = make_batch(recipe, scheme, seed, noises=loss.noises, split=mesh.size > 1)
    whole = devices.replicated(mesh)
    dealt = devices.split_first_axis(mesh)

    def step(
        state: State, order: jax.Array, images: jax.Array, labels: jax.Array, *frozen: object
    ) -> tuple[State, Metrics]:
        batch = batch_of(state.step, order, images, labels)
        if loss.needs_teacher:
            frozen, predictions = frozen[:-1], frozen[-1]
            chosen = images_of_step(order, state.step, batch.labels.shape[0])
            batch = batch._replace(teacher=jnp.asarray(predictions)[chosen])
        batch = jax.lax.with_sharding_constraint(batch, dealt)
        # Beside the keys of augmentation, noise and levels, which are the key's first three.
        key = jax.random.fold_in(_step_key(seed, state.step), 3)
        epoch = state.step // (order.shape[0] // batch.labels.shape[0])

        running, average = moving_average.parted(state.params, state.stats)
        (value, outcome), gradients = gradients_of(state.params, running, batch, key, epoch, frozen)
        new = descend(state, optimiser, gradients, outcome.stats)
        if ema:
            average = moving_average.updated(average, new.params | new.stats, state.step, ema)
            new = new._replace(stats=moving_average.joined(new.stats, average))
        return jax.lax.with_sharding_constraint((new, Metrics(value, outcome.accuracy)), whole)

    return step


def _gradients(loss: Loss, network: Network, denoise: Callable[..., jax.Array] | None) -> _Gradients:
    def loss_of(
        params: Tensors,
        stats: Tensors,
        batch: Batch,
        key: jax.Array,
        epoch: jax.Array,
        frozen: tuple[object, ...],
    ) -> tuple[jax.Array, losses.Outcome]:
        seen = _behind(denoise, frozen, network) if denoise else network
        return loss(seen, params, stats, batch, key, epoch)

    return jax.value_and_grad(loss_of, has_aux=True)


def _mean_of_shares(gradients_of: _Gradients, mesh: Mesh) -> _Gradients:
    """The same on each device's share of the batch by itself; all that results is averaged over devices, at once."""

    def on_one_device(params: Tensors, stats: Tensors, batch: Batch, key: jax.Array, *others: Any) -> Any:
        key = jax.random.fold_in(key, jax.lax.axis_index(devices.AXIS))
        return jax.lax.pmean(gradients_of(params, stats, batch, key, *others), devices.AXIS)

    specs = (P(), P(), P(devices.AXIS), P(), P(), P())
    return jax.shard_map(on_one_device, mesh=mesh, in_specs=specs, out_specs=P(), check_vma=False)


def _behind(denoise: Callable[..., jax.Array], frozen: tuple[object, ...], network: Network) -> Network:
    """The network that sees what a denoiser makes of the images."""

    def train(params: Tensors, stats: Tensors, images: jax.Array) -> tuple[jax.Array, Tensors]:
        return network.train(params, stats, denoise(*frozen, images))

    def fixed(params: Tensors, stats: Tensors) -> Callable[[jax.Array], jax.Array]:
        behind = network.fixed(params, stats)
        return lambda images: behind(denoise(*frozen, images))

    return Network(train, fixed)


def train(
    train_set: data.Dataset,
    scheme: Scheme,
    recipe: Recipe,
    description: Description,
    workdir: Path,
    *,
    seed: int = 0,
    mesh: Mesh | None = None,
    start: str = "",
    denoiser: Denoiser | None = None,
    denoiser_steps: int = 1,
    held_out: int = 0,
    statistics: str = "batch",
    loss: Loss | None = None,
    teacher: Teacher | Worths | None = None,
    ema: float = 0.0,
    kernel: str = "auto",
    options: RunOptions | None = None,
    budget: Budget | None = None,
) -> bool:
    """Train until the recipe is done or the time is up; call again to go on.

    The processes of `jax.distributed` train one network: each calls this with the same arguments, `workdir` is a folder
    that all of them see, and process 0 writes the files. When one is to stop, all do after the same step.

    Args:
      train_set: images and their labels.
      scheme: the noise's; if it is exact, that of the validation is, and that of the steps has the same law in float32.
      recipe: how long, how fast.
      description: of the network (see `models.build`), with its compute `dtype`.
      workdir: gets `checkpoints/`, `metrics.csv`, `train_status.json` and at the end `weights.safetensors`.
      seed: of all that is drawn.
      mesh: the devices that share a batch; None takes all of every process.
      start: weights of the same network to start from (a file or a run's folder) instead of new ones; if it has
        another number of classes, its last layer is new.
      denoiser, denoiser_steps: take the noise off before the network sees the images, told the scheme's sigma.
      held_out: images that are not trained on, chosen by the seed; their accuracy, clean and noisy, is logged.
      statistics: see `make_step`; weights then follow from the number of devices, which must stay the same.
      loss: see `idrc_jax.losses`; None for that of noise augmentation.
      teacher: for a loss that needs one.
      ema: decay, in [0, 1), of the moving average of the weights, which then is what is validated and kept; 0 for none.
      kernel: "auto" trains by the fastest that runs here, "xla" by the plain network; weights differ by rounding.
      options: how this call goes: its time limit, checkpoints, dispatches, how often it looks at the held-out images.
      budget: instead of one of the options' time limit.

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
        raise SettingError(
            f"Expected sigma_low <= sigma = {scheme.sigma}, got {recipe.sigma_low}.", "sigma_low", "sigma"
        )
    validate.one_of("statistics", statistics, STATISTICS)
    mesh = mesh or devices.global_mesh()
    loss = loss or losses.Gaussian()
    _check_loss(loss, scheme, recipe, teacher)
    validate.fraction("ema", ema)
    judged_under, scheme = scheme, with_exact_noise(scheme, False)  # steps draw float32 normals
    facts: Facts = {"scheme": {"name": scheme.name, **parameters(scheme)}}
    if loss != losses.Gaussian():  # runs that were begun before there were others say nothing of it
        facts["loss"] = loss.describe()
    if teacher is not None:
        teacher.check(description)
        facts["teacher"] = teacher.describe()
    if ema:
        facts["ema"] = ema
    denoise, frozen = None, ()
    if denoiser is not None:
        _check_denoiser(denoiser, denoiser_steps, scheme, recipe, description)
        denoise = partial(denoiser.denoise, sigma=scheme.sigma, steps=denoiser_steps)
        frozen = (denoiser.params,)
        facts["denoiser"] = denoiser.describe() | {"steps": denoiser_steps}

    if statistics == "device":
        facts["statistics"] = {"of": statistics, "devices": mesh.size}

    def step_on(
        optimiser: optax.GradientTransformation, mesh: Mesh, epoch: int
    ) -> Callable[..., tuple[State, Metrics]]:
        network, now = training_kernel.network_on(mesh, description, kernel), loss.at(epoch)
        return make_step(network, recipe, scheme, optimiser, seed, mesh, denoise, statistics, now, ema)

    out = validation.held_out(seed, held_out, len(train_set))
    images, labels = train_set.images, train_set.labels
    if held_out:
        kept = np.delete(np.arange(len(train_set)), out)
        images, labels = images[kept], labels[kept]

    def taught(mesh: Mesh, workdir: Path) -> tuple[object, ...]:
        return (teacher.predictions(images[np.arange(len(labels))], scheme, seed, mesh, workdir),) if teacher else ()

    def judged_on(mesh: Mesh) -> Callable[[Arrays], Classifier]:
        by_kernel = training_kernel.kernel_on(mesh, description, kernel) != "xla"

        def judged(tensors: Arrays) -> Classifier:
            dtype = description["dtype"]
            made = models.classifier_of(tensors, description, dtype=dtype, kernel="auto" if by_kernel else "xla")
            return models.denoised(made, denoiser, sigma=scheme.sigma, steps=denoiser_steps) if denoiser else made

        return judged

    def validator_on(mesh: Mesh) -> Validator:
        samples, judged = (options or RunOptions()).validate_samples, judged_on(mesh)
        seen = train_set.images[out], train_set.labels[out]
        return Validator(*seen, out, judged_under, seed, mesh, samples, judged)

    def drawing_on(by: losses.HardSamples, mesh: Mesh, workdir: Path) -> WeightedDrawing:
        inference = Inference(judged_on(mesh), devices.local(mesh))
        return WeightedDrawing(by, images, labels, scheme, seed, workdir, inference)

    job = Job(
        description=description,
        train_set=train_set,
        recipe=recipe,
        seed=seed,
        start=start,
        comparable=_COMPARABLE,
        facts=facts,
        data=(images, labels, *frozen),
        make_step=step_on,
        metrics=Metrics._fields,
        late_data=taught,
        step_changes=loss.changes,
        make_drawing=partial(drawing_on, loss) if isinstance(loss, losses.HardSamples) else None,
        averaged=ema > 0,
        noises=loss.noises,
        held_out=out,
        make_validator=validator_on if held_out else None,
    )
    return loop.run(job, workdir, mesh=mesh, options=options, budget=budget)


def _check_loss(loss: Loss, scheme: Scheme, recipe: Recipe, teacher: Teacher | Worths | None) -> None:
    """SettingError for noises that do not divide the batch, noise that is not the loss's, a teacher too few or many."""
    if recipe.batch % loss.noises:
        raise SettingError(
            f"Expected batch, all noisy copies of a step, to be a multiple of noises = {loss.noises}, got "
            f"{recipe.batch}.",
            "batch",
            "noises",
        )
    if loss.needs_teacher and teacher is None:
        raise SettingError(
            f"Expected teacher, a network trained under Gaussian noise, for the loss {loss.name}, got none.", "teacher"
        )
    if teacher is not None and not loss.needs_teacher:
        raise SettingError(
            f"Expected no teacher for the loss {loss.name}, which learns from labels, got one.", "teacher"
        )
    loss.check(scheme, recipe.sigma_low)


def _check_denoiser(denoiser: Denoiser, steps: int, scheme: Scheme, recipe: Recipe, description: Description) -> None:
    """ValueError unless the denoiser can stand before the network under that noise."""
    if scheme.name != Gaussian.name:
        raise SettingError(f"Expected scheme = gaussian with a denoiser, got {scheme.name}.", "scheme")
    if recipe.sigma_low:
        raise SettingError(f"Expected sigma_low = 0 with a denoiser of one level, got {recipe.sigma_low}.", "sigma_low")
    if list(denoiser.image_shape) != list(description["image_shape"]):
        raise ValueError(f"Expected a denoiser of {description['image_shape']} images, got {denoiser.image_shape}.")
    if not denoiser.sha256:
        raise ValueError("Expected a denoiser loaded from a file, which names it, got one without a hash.")
    denoiser.check(scheme.sigma, steps)
