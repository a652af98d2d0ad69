"""The files that the fuzzer begins with: what the commands write of a small network, and two logs of six columns."""

import subprocess
import sys
from pathlib import Path

from idrc_jax import config, results
from idrc_jax.core import append_only
from idrc_jax.results import table_exports

_DATA = ("--config.data.name=synthetic", "--config.devices=1")
_VOTES = ("--config.data.skip=8", "--config.certify.n=200")
_RUNS = {
    "cascade": ("--config.noise.scheme=cascade", "--config.noise.levels=1.0,0.5", "--config.sampling.plan=to_radius"),
    "stepped": ("--config.noise.scheme=stepped", "--config.noise.edges=3.0,", "--config.noise.levels=0.8,1.2"),
    "l1": ("--config.noise.scheme=l1", "--config.noise.ref=0.4", "--config.sampling.plan=selection_free"),
}


def make(folder: Path) -> None:
    """Make the seeds in a folder, unless they are there; minutes."""
    if (folder / "whole").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    trained = folder / "trained"
    _command("train", f"--workdir={trained}", *_DATA, "--config.train.epochs=1")
    _command("certify", f"--workdir={trained}", *_DATA, *_VOTES)
    small = ("images=4", "votes=200", "steps=2", "screening=50", "fractions=1.0,4.0", "saved=2")
    _command("audit", str(trained), "--config.devices=1", *(f"--config.audit.{one}" for one in small))
    weights = f"--config.model.weights={trained}"
    for name, flags in _RUNS.items():
        _command("certify", f"--workdir={folder / name}", weights, *_DATA, *_VOTES, *flags)
    _command("export", str(trained), str(folder / "exported.safetensors"))
    paired = (f"--config.paired.run={trained}", "--config.paired.n=200")
    _command("certify", f"--workdir={folder / 'paired'}", weights, *_DATA, *_VOTES, *paired)
    (folder / "predictions").mkdir()
    for suffix in ("tsv", "jsonl"):
        out = folder / "predictions" / f"all.{suffix}"
        _command("predict", weights, *_DATA, "--config.data.skip=8", "--n=200", f"--out={out}")
    (folder / "logs").mkdir()
    table_exports.write_log(results.read_results(trained), folder / "logs" / "seconds.tsv")
    rows = (
        results.SIX,
        ["0", "3", "3", "0.98", "1", "0:00:16.6"],
        [*["20", "1", "-1", "0.0", "False"], "1 day, 2:03:04"],
    )
    (folder / "logs" / "clock.tsv").write_text("".join(map(append_only.line, rows)))
    (folder / "configs").mkdir()
    for path in config.folder().glob("*.py"):
        (folder / "configs" / path.name).write_bytes(path.read_bytes())
    (folder / "whole").touch()


def _command(name: str, *arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", f"idrc_jax.commands.{name}", *arguments], capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"Expected idrc-{name} {' '.join(arguments)} to make seeds, got: {done.stderr[-2000:]}")
