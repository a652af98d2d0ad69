"""The folder of a run: `train_config.json`, which says what is trained there, and the checkpoints."""

from pathlib import Path

import jax
from jax.sharding import Mesh

from idrc_jax.core import files, json_values
from idrc_jax.models import Description, flatten
from idrc_jax.sampling import processes
from idrc_jax.training.checkpoints import TrainingCheckpoints

_CONFIG = "train_config.json"


def open_run(workdir: Path, description: Description, mesh: Mesh) -> TrainingCheckpoints:
    """Make the folder, or go on in it: its checkpoints.

    Raises:
      ValueError: another run's folder, or processes that differ in their description, devices or folder.
    """
    processes.require_same("training settings and data", description)
    processes.require_same("the devices of all processes", [one.id for one in mesh.devices.flat])
    files.make_folder(workdir)
    config = workdir / _CONFIG
    if jax.process_index() == 0 or config.is_file():
        same_or_refuse(config, description)
    store = TrainingCheckpoints(workdir / "checkpoints")
    processes.require_same(f"the last checkpoint in {workdir}, a folder they share,", store.latest())
    return store


def recorded_held_out(workdir: Path) -> int | None:
    """How many images the run in the folder holds out; None where none was begun there that can be read."""
    try:
        training = files.read_json(workdir / _CONFIG)["training"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    count = training.get("held_out", 0) if isinstance(training, dict) else None
    return count if isinstance(count, int) else None


def same_or_refuse(path: Path, description: Description) -> None:
    """Write a run's description as JSON at the first call; refuse another one, or a damaged file, ever after."""
    description = json_values.as_json(description)
    if not path.is_file():
        files.write_json(path, description)
        return
    try:
        kept = files.read_json(path)
    except ValueError as error:
        raise ValueError(f"{error} Restore the settings of this run, or use another workdir.") from None
    changed = json_values.differences(flatten(kept), flatten(description))
    if changed:
        raise ValueError(
            f"Expected the settings of the run in {path.parent}; use another --workdir, or give these as they were: "
            f"{changed}."
        )
