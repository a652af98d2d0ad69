"""Training a network under noise: the recipe, one jitted step, and the loop that can be killed and resumed.

Every random number is a function of (seed, step), so a run that was stopped anywhere goes on to the same
weights as one that was not.
"""

import csv
import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from idrc_jax import _files, _validate, checkpoints, data, devices, noise, prng, workers
from idrc_jax.kernels import convolution_cpu
from idrc_jax.progress import Deadline, Progress, interruptible, require_progress, write_status
from idrc_jax.schemes import Scheme

_IN_FLIGHT = 8
METRICS = "metrics.csv"


@dataclass(frozen=True)
class Recipe:
    """How to train; the defaults are Cohen's (2019) recipe for CIFAR-10.

    Attributes:
      epochs, batch: passes over the training set, and images a step.
      lr, momentum, weight_decay: of SGD; the decay is on every parameter, inside the gradient.
      schedule: "step" multiplies the rate by `step_factor` every `step_epochs`; "cosine" warms up linearly
        for `warmup_epochs` and falls to 0.
      sigma_low: if > 0, each image's noise parameter is drawn uniformly from [sigma_low, scheme.sigma].
      augment: random crop (pad 4) and flip.
    """

    epochs: int = 90
    batch: int = 256
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-4
    schedule: str = "step"
    step_epochs: int = 30
    step_factor: float = 0.1
    warmup_epochs: float = 0.0
    sigma_low: float = 0.0
    augment: bool = True

    def __post_init__(self) -> None:
        for name in ("epochs", "batch", "step_epochs"):
            _validate.at_least(f"train.{name}", getattr(self, name), 1)
        for name in ("lr", "step_factor"):
            _validate.positive(f"train.{name}", getattr(self, name))
        for name in ("momentum", "weight_decay", "warmup_epochs", "sigma_low"):
            _validate.at_least(f"train.{name}", getattr(self, name), 0)
        _validate.one_of("train.schedule", self.schedule, ("step", "cosine"))
        if self.schedule == "cosine" and self.warmup_epochs >= self.epochs:
            raise ValueError(f"Expected train.warmup_epochs < train.epochs = {self.epochs}, got {self.warmup_epochs}.")

    def learning_rate(self, steps_per_epoch: int) -> optax.Schedule:
        """The rate as a function of the step."""
        if self.schedule == "cosine":
            warmup = round(self.warmup_epochs * steps_per_epoch)
            return optax.warmup_cosine_decay_schedule(
                0.0 if warmup else self.lr, self.lr, warmup, self.epochs * steps_per_epoch
            )
        drops = range(self.step_epochs, self.epochs, self.step_epochs)
        return optax.piecewise_constant_schedule(
            self.lr, {epoch * steps_per_epoch: self.step_factor for epoch in drops}
        )

    def optimiser(self, steps_per_epoch: int) -> optax.GradientTransformation:
        """SGD as PyTorch has it: decay joins the gradient before the momentum."""
        return optax.chain(
            optax.add_decayed_weights(self.weight_decay),
            optax.sgd(self.learning_rate(steps_per_epoch), self.momentum),
        )


class State(NamedTuple):
    """What a step changes: parameters, running statistics, optimiser state, steps done."""

    params: checkpoints.Tensors
    stats: checkpoints.Tensors
    optimiser: Any
    step: jax.Array


class Metrics(NamedTuple):
    """Mean loss and accuracy on a step's noisy batch."""

    loss: jax.Array
    accuracy: jax.Array


def make_batch(recipe: Recipe, scheme: Scheme, seed: int) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """The function (step, images, labels of the whole set) -> (noisy batch float32 [B, H, W, C], its labels [B]).

    Order, augmentation and noise follow from the seed and the step alone. An epoch takes every image at most
    once, in a new order; what is left over when the batch does not divide the set is dropped.
    """
    key = prng.stage(prng.root(seed), prng.TRAINING)

    def batch(step: jax.Array, images: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
        epoch, position = jnp.divmod(step, images.shape[0] // recipe.batch)
        order_key, step_key = jax.random.fold_in(key, 0), jax.random.fold_in(key, 1)
        order = jax.random.permutation(jax.random.fold_in(order_key, epoch), images.shape[0])
        chosen = jax.lax.dynamic_slice(order, (position * recipe.batch,), (recipe.batch,))
        augment_key, noise_key, sigma_key = jax.random.split(jax.random.fold_in(step_key, step), 3)
        picked = data.to_unit(images[chosen])
        if recipe.augment:
            picked = data.augment(picked, augment_key)
        factor = None
        if recipe.sigma_low > 0:
            low = recipe.sigma_low / scheme.sigma
            factor = jax.random.uniform(sigma_key, (recipe.batch,), minval=low, maxval=1.0)
        return noise.add(scheme, picked, noise_key, factor), labels[chosen]

    return batch


def make_step(
    graph: Any, recipe: Recipe, scheme: Scheme, optimiser: optax.GradientTransformation, seed: int, mesh: Mesh
) -> Callable[[State, jax.Array, jax.Array], tuple[State, Metrics]]:
    """The training step (state, images, labels of the whole set) -> (state, metrics); not yet jitted.

    Batch statistics are those of the whole batch, on however many devices it lies.
    """
    batch_of = make_batch(recipe, scheme, seed)
    whole = devices.replicated(mesh)
    dealt = devices.split_first_axis(mesh)

    def step(state: State, images: jax.Array, labels: jax.Array) -> tuple[State, Metrics]:
        noisy, targets = batch_of(state.step, images, labels)
        noisy = jax.lax.with_sharding_constraint(noisy, dealt)
        targets = jax.lax.with_sharding_constraint(targets, dealt)

        def loss_of(params: checkpoints.Tensors) -> tuple[jax.Array, tuple[checkpoints.Tensors, jax.Array]]:
            model = checkpoints.merge(graph, params, state.stats)
            logits = model(noisy, train=True)
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
            accuracy = jnp.mean(jnp.argmax(logits, -1) == targets)
            return jnp.mean(losses), (checkpoints.split(model)[2], accuracy)

        (loss, (stats, accuracy)), gradients = jax.value_and_grad(loss_of, has_aux=True)(state.params)
        updates, optimiser_state = optimiser.update(gradients, state.optimiser, state.params)
        params = jax.tree.map(jnp.add, state.params, updates)
        new = State(params, stats, optimiser_state, state.step + 1)
        return jax.lax.with_sharding_constraint((new, Metrics(loss, accuracy)), whole)

    return step


def cpu_devices() -> int:
    """CPU devices that training is fastest on: one, if the kernel can spread it over the cores; else one a core."""
    return 1 if convolution_cpu.available() else os.cpu_count() or 1


def fastest_convolution(mesh: Mesh) -> Callable[..., jax.Array]:
    """What convolves: XLA, or the kernel for a CPU that is one device."""
    on_one_cpu = mesh.size == 1 and mesh.devices.flat[0].platform == "cpu"
    if on_one_cpu and convolution_cpu.available():
        return convolution_cpu.conv_general_dilated
    return jax.lax.conv_general_dilated


def dispatches(step: Callable, *, on_cpu: bool) -> Callable[..., tuple[State, Metrics]]:
    """Jit the step, donating its state, as (state, images, labels, count) -> (state, metrics [count]).

    On the CPU a dispatch is one step whatever `count` says (XLA runs kernel-gradient convolutions inside loops
    40 times slower there); on accelerators it is a scan of `count` steps.
    """

    def many(state: State, images: jax.Array, labels: jax.Array, count: int) -> tuple[State, Metrics]:
        if on_cpu:
            state, metrics = step(state, images, labels)
            return state, jax.tree.map(lambda value: value[None], metrics)
        return jax.lax.scan(lambda carry, _: step(carry, images, labels), state, length=count)

    return jax.jit(many, static_argnames="count", donate_argnums=0)


def train(
    train_set: data.Dataset,
    scheme: Scheme,
    recipe: Recipe,
    description: dict[str, Any],
    workdir: Path,
    *,
    seed: int = 0,
    mesh: Mesh | None = None,
    max_minutes: float = 0.0,
    checkpoint_minutes: float = 5.0,
    steps_per_dispatch: int = 50,
    tensorboard: bool = False,
) -> bool:
    """Train until the recipe is done or the time is up; call again to go on.

    The processes of `jax.distributed` train one network: each calls this with the same arguments, `workdir` is a folder
    that all of them see, and process 0 writes the files. When one is to stop, all do after the same step.

    Args:
      description: of the network (see `checkpoints.build`), with its compute `dtype`.
      workdir: gets `checkpoints/`, `metrics.csv`, `train_status.json` and at the end `weights.safetensors`.
      max_minutes: of this call, which stops cleanly before; 0 for no limit.
      checkpoint_minutes: between two checkpoints.
      steps_per_dispatch: on accelerators; on the CPU a dispatch is one step.

    Returns:
      Whether training is finished.

    Raises:
      ValueError: the recipe does not fit the data, another run's checkpoints lie in `workdir`, or processes differ in
        their settings, data or folder.
      FloatingPointError: the loss is no longer finite; the last good checkpoint is kept.
    """
    deadline = Deadline(max_minutes)
    if recipe.batch > len(train_set):
        raise ValueError(f"Expected train.batch <= the {len(train_set)} training images, got {recipe.batch}.")
    if recipe.sigma_low > scheme.sigma:
        raise ValueError(f"Expected train.sigma_low <= train.sigma = {scheme.sigma}, got {recipe.sigma_low}.")
    mesh = mesh or devices.global_mesh()
    if recipe.batch % mesh.size:
        raise ValueError(f"Expected train.batch to be a multiple of {mesh.size} devices, got {recipe.batch}.")
    summary_writer = _summary_writer() if tensorboard else None
    steps_per_epoch = len(train_set) // recipe.batch
    total = recipe.epochs * steps_per_epoch
    optimiser = recipe.optimiser(steps_per_epoch)
    description = description | {
        "training": {
            "scheme": {"name": scheme.name, **asdict(scheme)},
            "recipe": asdict(recipe),
            "seed": seed,
        }
        | {"data": train_set.name, "data_sha256": train_set.fingerprint()}
    }

    # The state: new, or the last checkpoint's.
    graph, params, stats = checkpoints.abstract(
        description, dtype=description["dtype"], convolution=fastest_convolution(mesh)
    )
    leads, alone = jax.process_index() == 0, jax.process_count() == 1
    workers.require_same("training settings and data", description)
    workers.require_same("the devices of all processes", [one.id for one in mesh.devices.flat])
    _files.make_folder(workdir)
    if leads or (workdir / "train_config.json").is_file():
        checkpoints.same_or_refuse(workdir / "train_config.json", description)
    store = checkpoints.TrainingCheckpoints(workdir / "checkpoints")
    done = store.latest()
    workers.require_same(f"the last checkpoint in {workdir}, a folder they share,", done)
    if done is None:
        init_key = prng.stage(prng.root(seed), prng.INITIALISATION)
        _, params, stats = checkpoints.split(
            checkpoints.build(description, dtype=description["dtype"], rngs=nnx.Rngs(init_key))
        )
        done = 0
        state = State(params, stats, optimiser.init(params), jnp.zeros((), jnp.int32))
        state = devices.replicate(state, mesh)
    else:
        like = jax.eval_shape(lambda p, s: State(p, s, optimiser.init(p), jnp.zeros((), jnp.int32)), params, stats)
        whole = devices.replicated(mesh)
        like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole), like)
        state = store.restore(done, like)
    images, labels = devices.replicate((train_set.images, train_set.labels), mesh)

    # The loop: dispatch ahead, read behind.
    on_cpu = devices.is_cpu()
    ahead = _IN_FLIGHT if on_cpu else 1
    ask_every = 1 if alone else max(1, ahead)  # dispatches between two talks of the processes
    margin = (ahead + ask_every) * (1 if on_cpu else steps_per_dispatch)
    run = dispatches(make_step(graph, recipe, scheme, optimiser, seed, mesh), on_cpu=on_cpu)
    board = summary_writer(str(workdir / "tensorboard")) if summary_writer and leads else None
    log = _MetricsLog(workdir if leads else None, done, steps_per_epoch, recipe.learning_rate(steps_per_epoch), board)
    progress = Progress("train", total, done, unit="steps", show=leads)
    pending: deque[Metrics] = deque()
    saved_at = time.monotonic()
    step = done

    def drain(limit: int) -> None:
        while len(pending) > limit:
            read = jax.device_get(pending.popleft())
            _require_finite(read.loss, log.step, store)
            for loss, accuracy in zip(read.loss, read.accuracy, strict=True):
                log.add(float(loss), float(accuracy))
            progress.update(log.step, loss=log.mean_loss)
            deadline.tick(len(read.loss))

    def save() -> None:
        drain(0)
        _require_finite_state(state, store)
        store.save(step, state)
        log.flush()
        if leads:
            write_status(workdir / "train_status.json", "train", done=step, total=total)

    try:
        with interruptible() as interrupt:
            stop, _ = workers.any_wishes(interrupt.requested or deadline.over(margin_ticks=margin), False)
            dispatched = 0
            while step < total and not stop:
                count = 1 if on_cpu else min(steps_per_dispatch, total - step)
                state, metrics = run(state, images, labels, count=count)
                pending.append(metrics)
                step += count
                dispatched += 1
                drain(ahead)
                if dispatched % ask_every:
                    continue
                drain(ahead if alone else 0)
                stop, is_due = workers.any_wishes(
                    interrupt.requested or deadline.over(margin_ticks=margin),
                    time.monotonic() - saved_at >= 60 * checkpoint_minutes,
                )
                if is_due and not stop:
                    save()
                    saved_at = time.monotonic()
            save()
    finally:
        progress.close()
        log.close()
        store.close()
    if step < total:
        require_progress(done, step, max_minutes)
        return False
    if leads:
        tensors = {name: np.asarray(value) for name, value in (state.params | state.stats).items()}
        checkpoints.save_weights(workdir / checkpoints.WEIGHTS, tensors, description)
    return True


def _require_finite(losses: np.ndarray, first_step: int, store: checkpoints.TrainingCheckpoints) -> None:
    bad = ~np.isfinite(losses)
    if bad.any():
        raise FloatingPointError(
            f"Expected a finite loss, got {losses[bad.argmax()]} at step {first_step + int(bad.argmax())}. The "
            f"checkpoint of step {store.latest() or 0} is kept; lower train.lr and train in another workdir."
        )


def _require_finite_state(state: State, store: checkpoints.TrainingCheckpoints) -> None:
    """A finite loss may still have had gradients that were not."""
    finite = jax.tree.all(jax.tree.map(lambda leaf: bool(jnp.isfinite(leaf).all()), state.params | state.stats))
    if not finite:
        raise FloatingPointError(
            f"Expected finite weights after step {int(state.step)}, got a value that is not. The checkpoint of "
            f"step {store.latest() or 0} is kept; lower train.lr and train in another workdir."
        )


class _MetricsLog:
    """Means per epoch, to a CSV (and TensorBoard); rows after the step resumed from are dropped.

    Without a workdir nothing is written.
    """

    _columns: Sequence[str] = ("epoch", "step", "lr", "loss", "accuracy", "seconds")

    def __init__(self, workdir: Path | None, step: int, epoch_steps: int, lr: optax.Schedule, board: Any) -> None:
        self._path = workdir / METRICS if workdir else None
        self._rows = [row for row in _read_rows(self._path) if int(row["step"]) <= step] if self._path else []
        self._epoch_steps, self._lr, self.step = epoch_steps, lr, step
        self._losses: list[float] = []
        self._last_loss = math.nan
        self._accuracies: list[float] = []
        self._started = time.monotonic()
        self._board = board

    @property
    def mean_loss(self) -> float:
        return float(np.mean(self._losses)) if self._losses else self._last_loss

    def add(self, loss: float, accuracy: float) -> None:
        self.step += 1
        self._losses.append(loss)
        self._accuracies.append(accuracy)
        if self.step % self._epoch_steps == 0:
            self._end_epoch()

    def _end_epoch(self) -> None:
        epoch = self.step // self._epoch_steps
        values = {
            "epoch": epoch,
            "step": self.step,
            "lr": float(np.asarray(self._lr(self.step - 1))),
            "loss": self.mean_loss,
            "accuracy": float(np.mean(self._accuracies)),
            "seconds": time.monotonic() - self._started,
        }
        self._rows.append(values)
        self.flush()
        if self._board:
            for name in ("lr", "loss", "accuracy"):
                self._board.add_scalar(name, values[name], epoch)
        self._last_loss = values["loss"]
        self._losses, self._accuracies, self._started = [], [], time.monotonic()

    def flush(self) -> None:
        if self._path is None:
            return
        with self._path.open("w", newline="") as file:
            writer = csv.DictWriter(file, self._columns)
            writer.writeheader()
            writer.writerows(self._rows)

    def close(self) -> None:
        if self._board:
            self._board.close()


def _read_rows(path: Path) -> Iterator[dict[str, Any]]:
    if path.is_file():
        with path.open(newline="") as file:
            yield from csv.DictReader(file)


def _summary_writer() -> Any:
    try:
        from tensorboardX import SummaryWriter  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ValueError(
            "Expected tensorboardX for train.tensorboard, got none: pip install 'idrc_jax[tensorboard]'."
        ) from None
    return SummaryWriter
