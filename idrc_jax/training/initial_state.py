"""The state that training starts from: of new weights, of given ones, or of the last checkpoint."""

import functools
import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from idrc_jax import models
from idrc_jax.core import json_values
from idrc_jax.core.validate import SettingError
from idrc_jax.models import Arrays, Description, Tensors
from idrc_jax.sampling import devices, processes, random_keys
from idrc_jax.training import moving_average, validation
from idrc_jax.training.checkpoints import TrainingCheckpoints
from idrc_jax.training.job import Job
from idrc_jax.training.steps import State


class Start(NamedTuple):
    """Weights to start from, float32, the hash of the file's and its description; all empty where all are new."""

    tensors: Arrays
    sha256: str
    description: Description

    @property
    def training(self) -> Description:
        """What the description says of the weights' training; empty where it is not known."""
        return self.description.get("training", {})


def read_start(job: Job) -> Start:
    """Read the weights that the job starts from, which must be of the very network that is to be trained; but a
    classifier may have another number of classes: its last layer is left out."""
    if not job.start:
        return Start({}, "", {})
    tensors, found = models.read_weights(job.start)
    same = found["architecture"] == job.description["architecture"]
    names = [name for name in job.comparable if name != "classes"] if same else ["architecture"]
    compared = ({name: _entry(one, name) for name in names} for one in (found, job.description))
    changed = json_values.differences(*(models.flatten(json_values.as_json(one)) for one in compared))
    if changed:
        raise SettingError(
            f"Expected start to be the network that is to be trained: of that in {job.start} {changed}.", "start"
        )
    _, params, stats = models.abstract(found, dtype=job.description["dtype"])
    models.check_tensors(tensors, params | stats, job.start)
    kept = {name: np.asarray(value, np.float32) for name, value in tensors.items()}
    before, now = (one.get("classes") for one in (found, job.description))
    if before != now:
        kept = {name: value for name, value in kept.items() if not name.startswith("head.")}
    return Start(kept, models.hash_tensors(tensors), found)


def _entry(description: Description, name: str) -> Any:
    """An entry by its dotted name; None where there is none."""
    return functools.reduce(lambda value, part: (value or {}).get(part), name.split("."), description)


def new(job: Job, start: Start, optimiser: optax.GradientTransformation, mesh: Mesh) -> State:
    """Make the state of no step done, whole on every device: newly drawn weights, or those to start from."""
    key = random_keys.stage(random_keys.root(job.seed), random_keys.INITIALISATION)
    network = models.build(job.description, dtype=job.description["dtype"], rngs=nnx.Rngs(key))
    _, params, stats = models.split(network)
    if start.tensors and params.keys() - start.tensors.keys() and jax.process_index() == 0:
        told = f"{job.start} has another number of classes: the last layer is drawn anew."
        warnings.warn(told, stacklevel=2)
    if jax.process_index() == 0:
        validation.warn_of_seen(job.start, start.description, job.held_out, job.train_set)
    params, stats = ({name: start.tensors.get(name, one) for name, one in part.items()} for part in (params, stats))
    params, stats = jax.tree.map(jnp.asarray, (params, stats))
    return devices.replicate(_state(job, optimiser, params, stats), mesh)


def shapes(job: Job, optimiser: optax.GradientTransformation, mesh: Mesh) -> State:
    """Describe the state by `jax.ShapeDtypeStruct`s with shardings; ValueError for a network that cannot be."""
    _, params, stats = models.abstract(job.description, dtype=job.description["dtype"])
    state = jax.eval_shape(lambda params, stats: _state(job, optimiser, params, stats), params, stats)
    whole = devices.replicated(mesh)
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole), state)


def _state(job: Job, optimiser: optax.GradientTransformation, params: Tensors, stats: Tensors) -> State:
    stats = moving_average.first(params, stats) if job.averaged else stats
    return State(params, stats, optimiser.init(params), jnp.zeros((), jnp.int32))


def restored(store: TrainingCheckpoints, like: State) -> State | None:
    """Restore the newest checkpoint that can be read; None where there is no checkpoint.

    Newer ones, which cannot, are set aside with one warning. Every process must ask at the same point.

    Args:
      like: what `shapes` says of the state.

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
    return state
