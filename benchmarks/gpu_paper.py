"""The paper's experiment on one GPU, within minutes: ResNet-110 under Gaussian noise, 500 certificates at n = 100,000.

Calls `train.py` (90 epochs, SGD with a one-cycle rate, bfloat16), rounds the weights to half precision and calls
`certify.py` with these, on every 20th test image under plan `to_radius`. Each goes on where it was stopped, so the next
call with the same OUT goes on, too; a call that is killed loses what came after the last checkpoint. OUT holds all that
a next call needs, and the results: `weights_half.safetensors`, `certificates.tsv`, their manifest and figure. Needs no
network; compiled programs stay in `--cache`.

Command:   make gpu-paper SIGMA=0.25 DATA=FOLDER        (MINUTES=8, OUT=runs/gpu-paper-0.25, ARGS for what is below)
"""

import argparse
import json
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

from benchmarks import gpu
from benchmarks.workers import ROOT
from idrc_jax import models
from idrc_jax.core import files

HALF = "weights_half.safetensors"
_SETTINGS = "gpu_paper.json"
_IMAGES = 500
_START = 15  # seconds until a command looks at its clock
_GRACE = 20  # seconds that a command which is asked to stop may take to save


def main() -> None:
    flags = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_paper", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flags.add_argument("--sigma", type=float, default=0.25, help="noise level, of training and certification")
    flags.add_argument("--data", type=Path, required=True, help="folder with CIFAR-10's binary version")
    flags.add_argument("--out", type=Path, required=True, help="folder of the run")
    flags.add_argument("--minutes", type=float, default=8.0, help="that this call may take")
    flags.add_argument("--epochs", type=int, default=90, help="of training")
    flags.add_argument("--depth", type=int, default=110, help="of the ResNet")
    flags.add_argument("--dtype", default="bfloat16", help="that it computes in")
    flags.add_argument("--cache", type=Path, help="folder of compiled programs; default .cache/gpu")
    flags.add_argument("--train", default="", help="more arguments of train.py, in one word")
    flags.add_argument("--certify", default="", help="more arguments of certify.py, in one word")
    values = flags.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # the command that runs is stopped, too
    deadline = time.monotonic() + 60 * values.minutes
    print(counted(values.epochs), flush=True)
    gpu.keep_compiled(values.cache)
    whole = run(values, deadline)
    print(f"Finished: {values.out}" if whole else f"Not finished: call again with {values.out} to go on.")


def counted(epochs: int) -> str:
    """What the work takes at least, by the committed table of counted programs."""
    floors = {row["program"]: row["floor"] for row in json.loads(gpu.COUNTED.read_text()) if row["devices"] == 1}
    certificate = floors["certify, ResNet-110, bfloat16"]
    # Training is by XLA or by the kernel, as a trial on the card decides.
    epoch = min(floors[f"train, ResNet-110{how}, bfloat16"] for how in ("", " (by kernel)"))
    return (
        f"Counted, not measured: an H100 needs at least {epochs * epoch:.0f} s for {epochs} epochs of ResNet-110 in "
        f"bfloat16, and {_IMAGES * certificate:.0f} s for {_IMAGES} images x 100,000 samples, of which plan to_radius "
        "takes fewer."
    )


def run(values: argparse.Namespace, deadline: float) -> bool:
    """Train, round, certify, as far as the time goes: whether all of it is done."""
    out, data = (path.expanduser().resolve() for path in (values.out, values.data))
    model = [f"--config.model.depth={values.depth}", f"--config.model.dtype={values.dtype}"]
    common = [
        "--config=configs/cifar10.py:gaussian", f"--config.noise.sigma={values.sigma}",
        f"--config.data.dir={data}", f"--workdir={out}", *model,
    ]  # fmt: skip
    recipe = [f"--config.train.epochs={values.epochs}", "--config.train.schedule=onecycle"]
    recipe += ["--config.train.checkpoint_minutes=0.5"]
    sampling = [f"--config.model.weights={out / HALF}", "--config.sampling.plan=to_radius", "--config.data.skip=20"]
    files.make_folder(out)
    asked = {name: str(getattr(values, name)) for name in ("sigma", "depth", "epochs", "dtype", "train", "certify")}
    if (out / _SETTINGS).is_file() and (known := json.loads((out / _SETTINGS).read_text())) != asked:
        raise SystemExit(
            f"error: Expected the settings that {out} was begun with, {known}, got {asked}: take another OUT."
        )
    files.write_json(out / _SETTINGS, asked)
    if not _call("train", [*common, *recipe, *shlex.split(values.train)], out, deadline, out / models.WEIGHTS):
        return False
    if not (out / HALF).is_file():
        models.save_half(out, out / HALF)
        print(f"Weights: {out / HALF}, {(out / HALF).stat().st_size / 1e6:.1f} MB", flush=True)
    return _call("certify", [*common, *sampling, *shlex.split(values.certify)], out, deadline, out / "certificates.tsv")


def _call(command: str, arguments: list[str], out: Path, deadline: float, made: Path) -> bool:
    """Run a command unless it has finished in this folder and made that file: whether it has then.

    It stops by itself before the deadline; one that does not is asked to, and killed if it does not heed.
    """
    status = out / f"{command}_status.json"
    if _finished(status) and made.is_file():
        return True
    left = deadline - time.monotonic()
    if left <= 2 * _START:
        return False
    limit = f"--config.max_minutes={(left - _START) / 60:.3f}"
    process = subprocess.Popen([sys.executable, f"{command}.py", *arguments, limit], cwd=ROOT)
    try:
        code = process.wait(max(left - _GRACE, _START))
    except subprocess.TimeoutExpired:
        _stop(process)
        code = 0  # it was told to
    except BaseException:
        _stop(process)
        raise
    if code:
        raise SystemExit(code)
    return _finished(status) and made.is_file()


def _stop(process: subprocess.Popen) -> None:
    """Ask a command to stop, and kill it if it does not heed."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(_GRACE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _finished(status: Path) -> bool:
    return status.is_file() and json.loads(status.read_text())["finished"]


if __name__ == "__main__":
    main()
