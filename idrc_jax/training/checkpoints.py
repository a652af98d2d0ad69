"""Orbax checkpoints of a training state, from which a run that was killed goes on."""

import contextlib
import gc
import hashlib
import logging
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from idrc_jax.core import files
from idrc_jax.training.steps import State

_STATE = "state.sha256"


class TrainingCheckpoints:
    """Orbax checkpoints of a training state in a folder, the newest two kept; a save cut off is never seen."""

    def __init__(self, folder: Path) -> None:
        options = ocp.CheckpointManagerOptions(max_to_keep=2, enable_async_checkpointing=False)
        self.folder = folder
        with _quiet_orbax():
            self._manager = ocp.CheckpointManager(folder.absolute(), options=options)

    def latest(self) -> int | None:
        """Tell the step of the newest checkpoint whose save was finished, or None."""
        return self._manager.latest_step()

    def steps(self) -> list[int]:
        """List the steps of all of them, the newest first."""
        return sorted(self._manager.all_steps(), reverse=True)

    def save(self, step: int, state: State) -> None:
        """Store the state of a step, unless it is stored already."""
        if step != self.latest():
            self._manager.save(step, args=ocp.args.StandardSave(state))
            self._manager.wait_until_finished()
            if jax.process_index() == 0:
                files.write_text(self.folder / str(step) / _STATE, _hash_state(state))

    def restore(self, step: int, like: State) -> State:
        """Read the state of a step; `like` is the same tree of `jax.ShapeDtypeStruct` with shardings.

        Raises:
          ValueError: the checkpoint is damaged.
        """
        with _quiet_orbax():
            try:
                # Not by the manager, which after a damaged checkpoint takes all others for what it took that one for.
                with ocp.StandardCheckpointer() as reader:
                    state = reader.restore(self.folder.absolute() / str(step) / "default", like)
                stored = self.folder / str(step) / _STATE  # of no checkpoint that was made before there was one
                if not stored.is_file() or stored.read_text() == _hash_state(state):
                    return state
                why = "other values than were saved"
            except Exception as error:  # Orbax raises many kinds
                if "RESOURCE_EXHAUSTED" in str(error) or isinstance(error, MemoryError):
                    raise
                why = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise ValueError(f"Expected a whole checkpoint in {self.folder / str(step)}, got: {why.rstrip('.')}.")

    def set_aside(self, step: int) -> None:
        """Rename a damaged checkpoint, `9` to `9.damaged`, so that it is not taken for one; by one process alone."""
        damaged = self.folder / f"{step}.damaged"
        shutil.rmtree(damaged, ignore_errors=True)
        os.replace(self.folder / str(step), damaged)

    def reload(self) -> None:
        """Look again at what is in the folder."""
        self._manager.reload()

    def close(self) -> None:
        self._manager.close()


def _hash_state(state: State) -> str:
    """SHA-256 of a tree of arrays, every process having the whole of each."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(state):
        value = np.ascontiguousarray(leaf.addressable_data(0))
        digest.update(f"{value.shape} {value.dtype}".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()


@contextlib.contextmanager
def _quiet_orbax() -> Iterator[None]:
    """Without the warnings of Orbax's log, and what Python says of tasks that a failed one left unfinished."""
    log, hook = logging.getLogger("absl"), sys.unraisablehook
    disabled = log.disabled
    log.disabled, sys.unraisablehook = True, lambda _: None
    try:
        yield
    finally:
        gc.collect()
        log.disabled, sys.unraisablehook = disabled, hook
