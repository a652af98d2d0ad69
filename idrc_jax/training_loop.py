"""The loop that trains a network, whatever its loss: it can be killed and resumed, on one process or many.

Every random number is a function of (seed, step), so a run that was stopped anywhere goes on to the same
weights as one that was not.
"""

import csv
import functools
import io
import math
import os
import time
import warnings
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from idrc_jax import _files, _validate, checkpoints, devices, prng, results, workers
from idrc_jax.kernels import convolution_cpu, resnet_training_cpu
from idrc_jax.progress import Deadline, Progress, interruptible, require_progress, write_status

_IN_FLIGHT = 8
METRICS = "metrics.csv"


@dataclass(frozen=True)
class Recipe:
    """How to train; the defaults are Cohen's (2019) recipe for CIFAR-10.

    Attributes:
      epochs, batch: passes over the training set, and images a step.
      method: "sgd", whose weight decay joins the gradient, or "adam", whose weight decay does not (AdamW).
      lr, momentum, weight_decay: of the method; the decay is on every parameter.
      schedule: "step" multiplies the rate by `step_factor` every `step_epochs`; "cosine" warms up linearly
        for `warmup_epochs` and falls to 0.
      sigma_low: if > 0, each image's noise parameter is drawn uniformly from [sigma_low, scheme.sigma].
      augment: random crop (pad 4) and flip; for denoisers flip alone.
    """

    epochs: int = 90
    batch: int = 256
    method: str = "sgd"
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
            _validate.count(f"train.{name}", getattr(self, name), 1)
        for name in ("lr", "step_factor"):
            _validate.positive(f"train.{name}", getattr(self, name))
        for name in ("momentum", "weight_decay", "warmup_epochs", "sigma_low"):
            _validate.at_least(f"train.{name}", getattr(self, name), 0)
        if self.momentum >= 1:
            raise ValueError(f"Expected train.momentum < 1, got {self.momentum}.")
        _validate.one_of("train.method", self.method, ("sgd", "adam"))
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
        """SGD as PyTorch has it (decay joins the gradient before the momentum), or AdamW."""
        rate = self.learning_rate(steps_per_epoch)
        if self.method == "adam":
            return optax.adamw(rate, self.momentum, weight_decay=self.weight_decay)
        return optax.chain(optax.add_decayed_weights(self.weight_decay), optax.sgd(rate, self.momentum))


class State(NamedTuple):
    """What a step changes: parameters, running statistics, optimiser state, steps done."""

    params: checkpoints.Tensors
    stats: checkpoints.Tensors
    optimiser: Any
    step: jax.Array


@dataclass(frozen=True)
class Job:
    """What the loop trains.

    Attributes:
      description: of the network (`checkpoints.build`), and under "training" of all that its weights follow from.
      recipe: how long, how fast.
      images: how many there are to train on.
      data: what every step reads: arrays with the same first axis as the images, and other networks' params.
      make_step: (optimiser, mesh) -> the step (state, order of the epoch, *data) -> (state, metrics).
      metrics: names of what a step returns as a NamedTuple; the first is the loss.
      first_stats: (params, the new network's stats) -> stats of the first state.
      tensors: the state -> the tensors that are to be kept.
      start: tensors to start from instead of new ones.
    """

    description: dict[str, Any]
    recipe: Recipe
    images: int
    data: tuple[Any, ...]
    make_step: Callable[[optax.GradientTransformation, Mesh], Callable[..., tuple[State, Any]]]
    metrics: tuple[str, ...]
    first_stats: Callable[[checkpoints.Tensors, checkpoints.Tensors], checkpoints.Tensors]
    tensors: Callable[[State], checkpoints.Tensors]
    start: checkpoints.Tensors | None = None


def start_from(
    path: str, description: dict[str, Any], names: Sequence[str]
) -> tuple[checkpoints.Tensors, dict[str, str]]:
    """The tensors to start from, of the very network that is to be trained, and what names them.

    `names` are the entries of the descriptions, "a.b" for that of an entry, that must agree.
    """

    def entry(of: dict[str, Any], name: str) -> Any:
        return functools.reduce(lambda value, part: (value or {}).get(part), name.split("."), of)

    tensors, found = checkpoints.read_weights(path)
    if found["architecture"] != description["architecture"]:
        names = ("architecture",)
    compared = ({name: entry(one, name) for name in names} for one in (found, description))
    changed = results.differences(*(checkpoints.flatten(results.as_json(one)) for one in compared))
    if changed:
        raise ValueError(f"Expected train.start to be the network that is to be trained, got {changed} in {path}.")
    _, params, stats = checkpoints.abstract(description, dtype=description["dtype"])
    checkpoints.check_tensors(tensors, params | stats, path)
    floats = {name: np.asarray(value, np.float32) for name, value in tensors.items()}
    return floats, {"weights_sha256": checkpoints.hash_tensors(tensors)}


def epoch_order(seed: int, epoch: int, count: int) -> jax.Array:
    """The order in which an epoch takes `count` images, [count]: a new one every epoch.

    It is made once an epoch and given to every step: a sort of 50,000 keys costs as much as some 20 images' training.
    """
    key = jax.random.fold_in(prng.stage(prng.root(seed), prng.TRAINING), 0)
    return jax.random.permutation(jax.random.fold_in(key, epoch), count)


def images_of_step(order: jax.Array, step: jax.Array, batch: int) -> jax.Array:
    """Which images a step takes, [batch], by the order of its epoch.

    What is left over when the batch does not divide the set is dropped.
    """
    return jax.lax.dynamic_slice(order, (step % (order.shape[0] // batch) * batch,), (batch,))


def descend(
    state: State, optimiser: optax.GradientTransformation, gradients: checkpoints.Tensors, stats: checkpoints.Tensors
) -> State:
    """The state after the optimiser's step, with new stats."""
    updates, optimiser_state = optimiser.update(gradients, state.optimiser, state.params)
    return State(jax.tree.map(jnp.add, state.params, updates), stats, optimiser_state, state.step + 1)


def cpu_kernel(architecture: str, dtype: str, kernel: str = "auto") -> str:
    """What trains such a network on a CPU that is one device: a kernel of `idrc_jax.kernels`, or "xla".

    Args:
      kernel: "auto" takes the fastest that runs here, "xla" the plain network.
    """
    _validate.one_of("kernel", kernel, ("auto", "xla"))
    if kernel == "auto" and dtype == "float32":
        if architecture == "resnet" and resnet_training_cpu.available():
            return "resnet_training_cpu"
        if architecture in ("resnet50", "unet") and convolution_cpu.available():
            return "convolution_cpu"
    return "xla"


def cpu_devices(architecture: str, dtype: str, batch: int, kernel: str = "auto") -> int:
    """CPU devices that training is fastest on: one, if a kernel can spread it over the cores; else one a core.

    Fewer than cores where these do not divide the batch.
    """
    if cpu_kernel(architecture, dtype, kernel) != "xla":
        return 1
    return max(count for count in range(1, (os.cpu_count() or 1) + 1) if batch % count == 0)


def kernel_on(mesh: Mesh, description: dict[str, Any], kernel: str = "auto") -> str:
    """What trains the network on those devices; see `cpu_kernel`."""
    on_one_cpu = mesh.size == 1 and mesh.devices.flat[0].platform == "cpu"
    return cpu_kernel(description["architecture"], description["dtype"], kernel if on_one_cpu else "xla")


def graph_on(mesh: Mesh, description: dict[str, Any], kernel: str = "auto") -> Any:
    """The network's graph (see `checkpoints.split`), with the convolutions that are fastest on those devices."""
    by_kernel = kernel_on(mesh, description, kernel) == "convolution_cpu"
    convolution = convolution_cpu.conv_general_dilated if by_kernel else jax.lax.conv_general_dilated
    return checkpoints.abstract(description, dtype=description["dtype"], convolution=convolution)[0]


def dispatches(step: Callable, *, on_cpu: bool) -> Callable[..., tuple[State, Any]]:
    """Jit the step, donating its state, as (state, order, *data, count) -> (state, metrics [count]).

    On the CPU a dispatch is one step whatever `count` says (XLA runs kernel-gradient convolutions inside loops
    40 times slower there); on accelerators it is a scan of `count` steps of one epoch.
    """

    def many(state: State, order: jax.Array, *data: Any, count: int) -> tuple[State, Any]:
        if on_cpu:
            state, metrics = step(state, order, *data)
            return state, jax.tree.map(lambda value: value[None], metrics)
        return jax.lax.scan(lambda carry, _: step(carry, order, *data), state, length=count)

    return jax.jit(many, static_argnames="count", donate_argnums=0)


def run(
    job: Job,
    workdir: Path,
    *,
    seed: int,
    mesh: Mesh,
    max_minutes: float = 0.0,
    checkpoint_minutes: float = 5.0,
    steps_per_dispatch: int = 50,
    tensorboard: bool = False,
) -> bool:
    """Train until the recipe is done or the time is up; call again to go on. See `training.train`."""
    deadline = Deadline(max_minutes)
    prng.check_seed(seed)
    _validate.at_least("train.checkpoint_minutes", checkpoint_minutes, 0)
    _validate.count("train.steps_per_dispatch", steps_per_dispatch, 1)
    recipe, description = job.recipe, job.description
    if recipe.batch > job.images:
        raise ValueError(f"Expected train.batch <= the {job.images} training images, got {recipe.batch}.")
    if recipe.batch % mesh.size:
        raise ValueError(f"Expected train.batch to be a multiple of {mesh.size} devices, got {recipe.batch}.")
    summary_writer = _summary_writer() if tensorboard else None
    steps_per_epoch = job.images // recipe.batch
    total = recipe.epochs * steps_per_epoch
    optimiser = recipe.optimiser(steps_per_epoch)

    # The state: new, or the last checkpoint's.
    _, params, stats = checkpoints.abstract(description, dtype=description["dtype"])
    leads, alone = jax.process_index() == 0, jax.process_count() == 1
    workers.require_same("training settings and data", description)
    workers.require_same("the devices of all processes", [one.id for one in mesh.devices.flat])
    _files.make_folder(workdir)
    if leads or (workdir / "train_config.json").is_file():
        checkpoints.same_or_refuse(workdir / "train_config.json", description)
    store = checkpoints.TrainingCheckpoints(workdir / "checkpoints")
    workers.require_same(f"the last checkpoint in {workdir}, a folder they share,", store.latest())
    like = jax.eval_shape(
        lambda p, s: State(p, job.first_stats(p, s), optimiser.init(p), jnp.zeros((), jnp.int32)), params, stats
    )
    whole = devices.replicated(mesh)
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole), like)
    restored = _restored(store, like)
    if restored is not None:
        done, state = restored
    else:
        init_key = prng.stage(prng.root(seed), prng.INITIALISATION)
        _, params, stats = checkpoints.split(
            checkpoints.build(description, dtype=description["dtype"], rngs=nnx.Rngs(init_key))
        )
        done = 0
        if job.start is not None:
            params, stats = ({name: job.start[name] for name in part} for part in (params, stats))
        params = jax.tree.map(jnp.asarray, params)
        stats = job.first_stats(params, jax.tree.map(jnp.asarray, stats))
        state = State(params, stats, optimiser.init(params), jnp.zeros((), jnp.int32))
        state = devices.replicate(state, mesh)
    placed = devices.replicate(job.data, mesh)

    # The loop: dispatch ahead, read behind.
    on_cpu = devices.is_cpu()
    ahead = _IN_FLIGHT if on_cpu else 1
    ask_every = 1 if alone else max(1, ahead)  # dispatches between two talks of the processes
    margin = (ahead + ask_every) * (1 if on_cpu else steps_per_dispatch)
    dispatch = dispatches(job.make_step(optimiser, mesh), on_cpu=on_cpu)
    board = summary_writer(str(workdir / "tensorboard")) if summary_writer and leads else None
    rate = recipe.learning_rate(steps_per_epoch)
    log = _MetricsLog(workdir if leads else None, job.metrics, done, steps_per_epoch, rate, board)
    progress = Progress("train", total, done, unit="steps", show=leads)
    pending: deque[Any] = deque()
    saved_at = time.monotonic()
    step = done
    shuffle = jax.jit(epoch_order, static_argnums=(0, 2), out_shardings=devices.replicated(mesh))
    order = shuffle(seed, step // steps_per_epoch, job.images)

    def drain(limit: int) -> None:
        while len(pending) > limit:
            read = jax.device_get(pending.popleft())
            _require_finite(read.loss, log.step, store)
            for values in zip(*read, strict=True):
                log.add([float(value) for value in values])
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
                epoch, position = divmod(step, steps_per_epoch)
                if position == 0:
                    order = shuffle(seed, epoch, job.images)
                count = 1 if on_cpu else min(steps_per_dispatch, steps_per_epoch - position)
                state, metrics = dispatch(state, order, *placed, count=count)
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
        tensors = {name: np.asarray(value) for name, value in job.tensors(state).items()}
        checkpoints.save_weights(workdir / checkpoints.WEIGHTS, tensors, description)
    return True


def _restored(store: checkpoints.TrainingCheckpoints, like: Any) -> tuple[int, Any] | None:
    """The newest checkpoint that can be read, as (step, state), or None where there is no checkpoint.

    Newer ones, which cannot, are set aside with one warning. Every process must ask at the same point.

    Raises:
      ValueError: none can be read; all stay as they are.
    """
    damaged: dict[int, str] = {}
    for step in store.steps():
        state, why = None, "Another process cannot read it."
        try:
            state = store.restore(step, like)
        except ValueError as error:
            why = str(error)
        (fails,) = workers.any_wishes(state is None)
        if not fails:
            break
        damaged[step] = why
    else:
        if not damaged:
            return None
        raise ValueError(
            f"{' '.join(damaged.values())} No other is left: restore one, or remove {store.folder} to train from the "
            "beginning."
        )
    if damaged:
        if jax.process_index() == 0:
            for one in damaged:
                store.set_aside(one)
        workers.any_wishes(False)  # all wait for process 0
        store.reload()
        if jax.process_index() == 0:
            warnings.warn(f"{' '.join(damaged.values())} Training goes on from step {step}.", stacklevel=2)
    return step, state


def _require_finite(losses: np.ndarray, first_step: int, store: checkpoints.TrainingCheckpoints) -> None:
    bad = ~np.isfinite(losses)
    if bad.any():
        raise FloatingPointError(
            f"Expected a finite loss, got {losses[bad.argmax()]} at step {first_step + int(bad.argmax())}. The "
            f"checkpoint of step {store.latest() or 0} is kept; lower train.lr and train in another workdir."
        )


def _require_finite_state(state: State, store: checkpoints.TrainingCheckpoints) -> None:
    """A finite loss may still have had gradients that were not."""
    finite = jax.tree.all(jax.tree.map(lambda leaf: bool(jnp.isfinite(leaf).all()), (state.params, state.stats)))
    if not finite:
        raise FloatingPointError(
            f"Expected finite weights after step {int(state.step)}, got a value that is not. The checkpoint of "
            f"step {store.latest() or 0} is kept; lower train.lr and train in another workdir."
        )


class _MetricsLog:
    """Means per epoch, to a CSV (and TensorBoard); rows after the step resumed from are dropped.

    Without a workdir nothing is written.
    """

    def __init__(
        self, workdir: Path | None, names: Sequence[str], step: int, epoch_steps: int, lr: optax.Schedule, board: Any
    ) -> None:
        self._names = names
        self._path = workdir / METRICS if workdir else None
        self._columns = ("epoch", "step", "lr", *names, "seconds")
        self._rows = [row for row in self._read() if row["step"] <= step]
        self._epoch_steps, self._lr, self.step = epoch_steps, lr, step
        self._values: list[Sequence[float]] = []
        self._last_loss = math.nan
        self._started = time.monotonic()
        self._board = board

    @property
    def mean_loss(self) -> float:
        return float(np.mean([values[0] for values in self._values])) if self._values else self._last_loss

    def add(self, values: Sequence[float]) -> None:
        self.step += 1
        self._values.append(values)
        if self.step % self._epoch_steps == 0:
            self._end_epoch()

    def _end_epoch(self) -> None:
        epoch = self.step // self._epoch_steps
        values = {
            "epoch": epoch,
            "step": self.step,
            "lr": float(np.asarray(self._lr(self.step - 1))),
            **dict(zip(self._names, np.mean(self._values, axis=0).tolist(), strict=True)),
            "seconds": time.monotonic() - self._started,
        }
        self._rows.append(values)
        self.flush()
        if self._board:
            for name in ("lr", *self._names):
                self._board.add_scalar(name, values[name], epoch)
        self._last_loss = values["loss"]
        self._values, self._started = [], time.monotonic()

    def flush(self) -> None:
        if self._path is None:
            return
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self._columns)
        writer.writeheader()
        writer.writerows(self._rows)
        _files.write_text(self._path, text.getvalue())

    def _read(self) -> list[dict[str, Any]]:
        """The rows of the file; one that is not whole is left out, with one warning."""
        if self._path is None or not self._path.is_file():
            return []
        lines = self._path.read_text(errors="replace").splitlines(keepends=True)
        rows = [row for line in lines[1:] if (row := _row(self._columns, line))]
        if 1 + len(rows) != len(lines):
            warnings.warn(f"Lines of {self._path} that are not whole are left out.", stacklevel=2)
        return rows

    def close(self) -> None:
        if self._board:
            self._board.close()


def _row(columns: Sequence[str], line: str) -> dict[str, Any] | None:
    """A line of the log, None for one that is cut off or not of this log."""
    try:
        epoch, step, *others = line.split(",")
        values = (int(epoch), int(step), *map(float, others))
    except ValueError:
        return None
    whole = line.endswith("\n") and len(values) == len(columns)
    return dict(zip(columns, values, strict=True)) if whole else None


def _summary_writer() -> Any:
    try:
        from tensorboardX import SummaryWriter  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ValueError(
            "Expected tensorboardX for train.tensorboard, got none: pip install 'idrc_jax[tensorboard]'."
        ) from None
    return SummaryWriter
