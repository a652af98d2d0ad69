"""The loop that trains a network, whatever its loss: it can be killed and resumed, on one process or many.

Every random number is a function of (seed, step), so a run that was stopped anywhere goes on to the same
weights as one that was not.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from idrc_jax import models
from idrc_jax.core.progress import Progress, require_progress, write_status
from idrc_jax.core.time_budget import Budget
from idrc_jax.core.validate import SettingError
from idrc_jax.sampling import devices, processes, random_keys
from idrc_jax.training import initial_state, moving_average
from idrc_jax.training.checkpoints import TrainingCheckpoints
from idrc_jax.training.job import Job, RunOptions
from idrc_jax.training.metrics_log import MetricsLog
from idrc_jax.training.run_folder import open_run
from idrc_jax.training.steps import State, Step, epoch_order
from idrc_jax.training.training_votes import WeightedDrawing
from idrc_jax.training.validation import Scores

_IN_FLIGHT = 8


def dispatches(step: Step, *, on_cpu: bool) -> Step:
    """Jit the step, donating its state, as (state, order, *data, count) -> (state, metrics [count]).

    On the CPU a dispatch is one step whatever `count` says (XLA runs kernel-gradient convolutions inside loops
    40 times slower there); on accelerators it is a scan of `count` steps of one epoch.
    """

    def many(state: State, order: jax.Array, *data: object, count: int) -> tuple[State, tuple[jax.Array, ...]]:
        if on_cpu:
            state, metrics = step(state, order, *data)
            return state, jax.tree.map(lambda value: value[None], metrics)
        return jax.lax.scan(lambda carry, _: step(carry, order, *data), state, length=count)

    return jax.jit(many, static_argnames="count", donate_argnums=0)


class _Dispatcher:
    """Dispatches steps ahead of what is read of them.

    Attributes:
      state, step: after all that was dispatched.
      dispatched: how often that was.
      ahead: dispatches that are to be in flight at most.
      most_steps: of a dispatch.
    """

    def __init__(
        self,
        job: Job,
        make_step: Callable[[int], Step],
        data: tuple[object, ...],
        state: State,
        mesh: Mesh,
        steps_per_dispatch: int,
        drawing: WeightedDrawing | None,
    ) -> None:
        on_cpu = devices.is_cpu()
        self.state, self.step, self.dispatched = state, int(state.step), 0
        self.ahead, self.most_steps = (_IN_FLIGHT, 1) if on_cpu else (1, steps_per_dispatch)
        self._job, self._mesh, self._drawing = job, mesh, drawing
        self._make_run = lambda epoch: dispatches(make_step(epoch), on_cpu=on_cpu)
        self._run = self._make_run(self.step // job.epoch_steps)
        self._data = devices.replicate(data, mesh)
        self._shuffle = jax.jit(epoch_order, static_argnums=(0, 2), out_shardings=devices.replicated(mesh))
        self._ordered: tuple[int, jax.Array] | None = None
        self._pending: deque[tuple[jax.Array, ...]] = deque()

    def dispatch(self) -> None:
        """Send the next steps, all of one epoch, on their way."""
        epoch, position = divmod(self.step, self._job.epoch_steps)
        if self._ordered is None or self._ordered[0] != epoch:
            if self._ordered is not None and epoch in self._job.step_changes:
                self._run = self._make_run(epoch)
            self._ordered = epoch, self._order(epoch)
        count = min(self.most_steps, self._job.epoch_steps - position)
        self.state, metrics = self._run(self.state, self._ordered[1], *self._data, count=count)
        self._pending.append(metrics)
        self.step += count
        self.dispatched += 1

    def _order(self, epoch: int) -> jax.Array:
        drawn = self._drawing.order(epoch) if self._drawing else None
        if drawn is None:
            return self._shuffle(self._job.seed, epoch, self._job.images)
        return devices.replicate(jnp.asarray(drawn), self._mesh)

    def finished(self, in_flight: int) -> Iterator[tuple[np.ndarray, ...]]:
        """Wait until no more than so many dispatches are in flight: the metrics of each that is done."""
        while len(self._pending) > in_flight:
            yield jax.device_get(self._pending.popleft())


def run(
    job: Job,
    workdir: Path,
    *,
    mesh: Mesh | None = None,
    options: RunOptions | None = None,
    budget: Budget | None = None,
) -> bool:
    """Train until the recipe is done or the time is up; call again to go on. See `training.train`."""
    options, mesh = options or RunOptions(), mesh or devices.global_mesh()
    budget = budget or Budget(options.max_minutes)
    _check(job, mesh)
    start = initial_state.read_start(job)
    description = job.describe(start.sha256)
    optimiser = job.recipe.optimiser(job.epoch_steps)
    like = initial_state.shapes(job, optimiser, mesh)
    store = open_run(workdir, description, mesh)
    state = initial_state.restored(store, like)
    if state is None:
        state = initial_state.new(job, start, optimiser, mesh)
    done = int(state.step)
    data = (*job.data, *(job.late_data(mesh, workdir) if done < job.steps else ()))
    drawing = job.make_drawing(mesh, workdir) if job.make_drawing else None
    make_step = partial(job.make_step, optimiser, mesh)
    dispatcher = _Dispatcher(job, make_step, data, state, mesh, options.steps_per_dispatch, drawing)

    leads, alone = jax.process_index() == 0, jax.process_count() == 1
    ask_every = 1 if alone else max(1, dispatcher.ahead)  # dispatches between two talks of the processes
    margin = (dispatcher.ahead + ask_every) * dispatcher.most_steps
    rate = job.recipe.learning_rate(job.epoch_steps)
    validator = job.make_validator(mesh) if job.make_validator else None
    scores = Scores._fields if validator else ()
    log = MetricsLog(workdir if leads else None, job.metrics, scores, done, job.epoch_steps, rate, options.tensorboard)
    progress = Progress("train", job.steps, done, unit="steps", show=leads)
    validation_seconds = 0.0
    # Until a look has been timed it is given the time of as many images' steps: a classification is a part of one. So
    # is the counting of votes.
    first_look = math.ceil((1 + options.validate_samples) * len(job.held_out) / job.recipe.batch)

    def classifications_soon() -> int:
        """How many noisy images are classified before the epochs that begin until processes talk again."""
        first = -(-dispatcher.step // job.epoch_steps)
        last = (dispatcher.step + (0 if alone else margin)) // job.epoch_steps
        return sum(drawing.classifications(epoch) for epoch in range(first, last + 1)) if drawing else 0

    def count_votes() -> None:
        epoch, inside = divmod(dispatcher.step, job.epoch_steps)
        if drawing is None or inside or not drawing.classifications(epoch):
            return
        read(0)
        _require_finite_state(dispatcher.state, store)
        params, stats, *_ = dispatcher.state
        running, _ = moving_average.parted(params, stats)
        drawing.count(epoch, _on_host(running | params))

    def read(in_flight: int) -> None:
        for losses, *others in dispatcher.finished(in_flight):
            _require_finite(losses, log.step, store)
            for values in zip(losses, *others, strict=True):
                log.add([float(value) for value in values])
            progress.update(log.step, **log.shown)
            budget.tick(len(losses))

    def validate() -> None:
        nonlocal validation_seconds
        epoch, left = divmod(dispatcher.step, job.epoch_steps)
        last = dispatcher.step == job.steps
        if validator is None or left or (epoch % options.validate_epochs and not last):
            return
        read(0)
        _require_finite_state(dispatcher.state, store)
        started = time.monotonic()
        log.add_scores(validator(_on_host(job.kept(dispatcher.state))))
        validation_seconds = time.monotonic() - started
        progress.update(log.step, **log.shown)

    def save() -> None:
        read(0)
        _require_finite_state(dispatcher.state, store)
        store.save(dispatcher.step, dispatcher.state)
        log.flush()
        if leads:
            write_status(workdir / "train_status.json", "train", done=dispatcher.step, total=job.steps)

    try:
        with budget:

            def ask(*, due: bool) -> list[bool]:
                """Whether to stop, and to save: all processes do when one wishes to."""
                ticks = margin if validation_seconds else margin + first_look
                ticks += math.ceil(classifications_soon() / job.recipe.batch)
                return processes.any_wishes(budget.over(margin_ticks=ticks, margin_seconds=validation_seconds), due)

            saved_at = time.monotonic()
            stop, _ = ask(due=False)
            while dispatcher.step < job.steps and not stop:
                count_votes()
                dispatcher.dispatch()
                read(dispatcher.ahead)
                validate()
                if dispatcher.dispatched % ask_every:
                    continue
                if not alone:
                    read(0)
                stop, due = ask(due=time.monotonic() - saved_at >= 60 * options.checkpoint_minutes)
                if due and not stop:
                    save()
                    saved_at = time.monotonic()
            save()
    finally:
        progress.close()
        log.close()
        store.close()
    if dispatcher.step < job.steps:
        require_progress(done, dispatcher.step, budget.minutes)
        return False
    if leads:
        described = job.describe(start.sha256, start.training)
        models.save_weights(workdir / models.WEIGHTS, _on_host(job.kept(dispatcher.state)), described)
    return True


def _on_host(tensors: models.Tensors) -> models.Arrays:
    return {name: np.asarray(value) for name, value in tensors.items()}


def _check(job: Job, mesh: Mesh) -> None:
    """ValueError for a seed or a batch that cannot be."""
    random_keys.check_seed(job.seed)
    batch, copies = job.recipe.batch, f", {job.noises} noises an image," if job.noises > 1 else ""
    if job.step_images > job.images:
        kept = f"{job.images} training images{' that are not held out' if len(job.held_out) else ''}"
        raise SettingError(f"Expected batch{copies} <= the {kept}, got {batch}.", "batch")
    if job.step_images % mesh.size:
        raise SettingError(f"Expected batch{copies} to be a multiple of {mesh.size} devices, got {batch}.", "batch")


def _require_finite(losses: np.ndarray, first_step: int, store: TrainingCheckpoints) -> None:
    bad = ~np.isfinite(losses)
    if bad.any():
        raise FloatingPointError(
            f"Expected a finite loss, got {losses[bad.argmax()]} at step {first_step + int(bad.argmax())}. The "
            f"checkpoint of step {store.latest() or 0} is kept; lower train.lr and train in another workdir."
        )


def _require_finite_state(state: State, store: TrainingCheckpoints) -> None:
    """A finite loss may still have had gradients that were not."""
    finite = jax.tree.all(jax.tree.map(lambda leaf: bool(jnp.isfinite(leaf).all()), (state.params, state.stats)))
    if not finite:
        raise FloatingPointError(
            f"Expected finite weights after step {int(state.step)}, got a value that is not. The checkpoint of "
            f"step {store.latest() or 0} is kept; lower train.lr and train in another workdir."
        )
