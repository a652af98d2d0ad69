"""The loop that trains a network, whatever its loss: it can be killed and resumed, on one process or many.

Every random number is a function of (seed, step), so a run that was stopped anywhere goes on to the same
weights as one that was not.
"""

import functools
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

from idrc_jax import models
from idrc_jax.core import files, manifests, validate
from idrc_jax.core.budget import Deadline, interruptible
from idrc_jax.core.progress import Progress, require_progress, write_status
from idrc_jax.sampling import devices, processes, random_keys
from idrc_jax.training import checkpoints
from idrc_jax.training.metrics_log import MetricsLog, summary_writer
from idrc_jax.training.recipe import Recipe

_IN_FLIGHT = 8


class State(NamedTuple):
    """What a step changes: parameters, running statistics, optimiser state, steps done."""

    params: models.Tensors
    stats: models.Tensors
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
    first_stats: Callable[[models.Tensors, models.Tensors], models.Tensors]
    tensors: Callable[[State], models.Tensors]
    start: models.Tensors | None = None


def start_from(path: str, description: dict[str, Any], names: Sequence[str]) -> tuple[models.Tensors, dict[str, str]]:
    """The tensors to start from, of the very network that is to be trained, and what names them.

    `names` are the entries of the descriptions, "a.b" for that of an entry, that must agree.
    """

    def entry(of: dict[str, Any], name: str) -> Any:
        return functools.reduce(lambda value, part: (value or {}).get(part), name.split("."), of)

    tensors, found = models.read_weights(path)
    if found["architecture"] != description["architecture"]:
        names = ("architecture",)
    compared = ({name: entry(one, name) for name in names} for one in (found, description))
    changed = manifests.differences(*(models.flatten(manifests.as_json(one)) for one in compared))
    if changed:
        raise ValueError(f"Expected train.start to be the network that is to be trained, got {changed} in {path}.")
    _, params, stats = models.abstract(description, dtype=description["dtype"])
    models.check_tensors(tensors, params | stats, path)
    floats = {name: np.asarray(value, np.float32) for name, value in tensors.items()}
    return floats, {"weights_sha256": models.hash_tensors(tensors)}


def epoch_order(seed: int, epoch: int, count: int) -> jax.Array:
    """The order in which an epoch takes `count` images, [count]: a new one every epoch.

    It is made once an epoch and given to every step: a sort of 50,000 keys costs as much as some 20 images' training.
    """
    key = jax.random.fold_in(random_keys.stage(random_keys.root(seed), random_keys.TRAINING), 0)
    return jax.random.permutation(jax.random.fold_in(key, epoch), count)


def images_of_step(order: jax.Array, step: jax.Array, batch: int) -> jax.Array:
    """Which images a step takes, [batch], by the order of its epoch.

    What is left over when the batch does not divide the set is dropped.
    """
    return jax.lax.dynamic_slice(order, (step % (order.shape[0] // batch) * batch,), (batch,))


def descend(
    state: State, optimiser: optax.GradientTransformation, gradients: models.Tensors, stats: models.Tensors
) -> State:
    """The state after the optimiser's step, with new stats."""
    updates, optimiser_state = optimiser.update(gradients, state.optimiser, state.params)
    return State(jax.tree.map(jnp.add, state.params, updates), stats, optimiser_state, state.step + 1)


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
    random_keys.check_seed(seed)
    validate.at_least("train.checkpoint_minutes", checkpoint_minutes, 0)
    validate.count("train.steps_per_dispatch", steps_per_dispatch, 1)
    recipe, description = job.recipe, job.description
    if recipe.batch > job.images:
        raise ValueError(f"Expected train.batch <= the {job.images} training images, got {recipe.batch}.")
    if recipe.batch % mesh.size:
        raise ValueError(f"Expected train.batch to be a multiple of {mesh.size} devices, got {recipe.batch}.")
    open_board = summary_writer() if tensorboard else None
    steps_per_epoch = job.images // recipe.batch
    total = recipe.epochs * steps_per_epoch
    optimiser = recipe.optimiser(steps_per_epoch)

    # The state: new, or the last checkpoint's.
    _, params, stats = models.abstract(description, dtype=description["dtype"])
    leads, alone = jax.process_index() == 0, jax.process_count() == 1
    processes.require_same("training settings and data", description)
    processes.require_same("the devices of all processes", [one.id for one in mesh.devices.flat])
    files.make_folder(workdir)
    if leads or (workdir / "train_config.json").is_file():
        checkpoints.same_or_refuse(workdir / "train_config.json", description)
    store = checkpoints.TrainingCheckpoints(workdir / "checkpoints")
    processes.require_same(f"the last checkpoint in {workdir}, a folder they share,", store.latest())
    like = jax.eval_shape(
        lambda p, s: State(p, job.first_stats(p, s), optimiser.init(p), jnp.zeros((), jnp.int32)), params, stats
    )
    whole = devices.replicated(mesh)
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole), like)
    restored = _restored(store, like)
    if restored is not None:
        done, state = restored
    else:
        init_key = random_keys.stage(random_keys.root(seed), random_keys.INITIALISATION)
        _, params, stats = models.split(models.build(description, dtype=description["dtype"], rngs=nnx.Rngs(init_key)))
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
    board = open_board(str(workdir / "tensorboard")) if open_board and leads else None
    rate = recipe.learning_rate(steps_per_epoch)
    log = MetricsLog(workdir if leads else None, job.metrics, done, steps_per_epoch, rate, board)
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
            stop, _ = processes.any_wishes(interrupt.requested or deadline.over(margin_ticks=margin), False)
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
                stop, is_due = processes.any_wishes(
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
        models.save_weights(workdir / models.WEIGHTS, tensors, description)
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
        (fails,) = processes.any_wishes(state is None)
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
        processes.any_wishes(False)  # all wait for process 0
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
