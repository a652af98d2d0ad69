"""Damage the files of one kind, guided by coverage, and read them: what is neither read rightly nor refused in a line?

Command:   python -m benchmarks.fuzzing results --minutes=5 --seeds=FOLDER --out=FOLDER     (make fuzz: every kind)

A finding is an error that is not one clear line ("Expected ..., got ..."), 5 seconds of the processor's time, more
memory than 64 MiB and a factor of the file's size (see `targets`), or values that contradict one another. Each
different one is kept, with its file, in the folder --out.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
import tracemalloc
import warnings
from collections import Counter
from pathlib import Path
from types import FrameType

import atheris

with atheris.instrument_imports(include=["idrc_jax"]):
    from benchmarks.fuzzing import mutations, seeds
    from benchmarks.fuzzing.targets import TARGETS, Target

_SECONDS = 5.0
_BASE = 64 * 2**20
_ALLOWED = (ValueError, OSError, FloatingPointError)  # as command_line.one_line_errors has them


class _SlowError(BaseException):
    """A file that takes too long."""


class _LargeError(AssertionError):
    """A file that takes too much memory."""


class Driver:
    """Reads inputs, each a byte that chooses a file of the seeds and what to put in its place."""

    def __init__(self, target: Target, seeded: Path, out: Path) -> None:
        self._target, self.out = target, out
        self.folder = Path(tempfile.mkdtemp(prefix="fuzz-")) / "seeds"
        shutil.copytree(seeded, self.folder)
        self._files = [path for one in target.files for path in sorted(self.folder.glob(one)) if path.is_file()]
        self._whole = {path: path.read_bytes() for path in self.folder.rglob("*") if path.is_file()}
        self.inputs: Counter[str] = Counter()
        self.findings: Counter[tuple[str, ...]] = Counter()
        self.largest = 0.0
        out.mkdir(parents=True, exist_ok=True)

    def corpus(self) -> list[bytes]:
        return [bytes([number]) + self._whole[path] for number, path in enumerate(self._files)]

    def damage(self, data: bytes, most: int, seed: int) -> bytes:
        """libFuzzer's custom mutator."""
        draw = random.Random(seed)
        number = data[0] % len(self._files) if data else 0
        path = self._files[number]
        if draw.random() < 0.1:
            content = self._whole[path]
        elif draw.random() < 0.2:
            return (bytes([number]) + atheris.Mutate(data[1:], most - 1))[:most]
        else:
            content = data[1:]
        return (bytes([number]) + mutations.damaged(content, mutations.damage_of(path), draw))[:most]

    def read(self, data: bytes) -> None:
        """One input: everything is done with the file; what is found is noted."""
        if not data:
            return
        path, content = self._files[data[0] % len(self._files)], data[1:]
        path.write_bytes(content)
        tracemalloc.start()
        signal.setitimer(signal.ITIMER_PROF, _SECONDS)
        refused = False
        try:
            for number, step in enumerate(self._target.steps(path)):
                try:
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore")
                        step()
                except _ALLOWED as error:
                    refused = refused or not number
                    if not str(error).startswith("Expected") and str(path.parent) not in str(error)[:200]:
                        self._note(error, data)
                except (Exception, _SlowError) as error:
                    self._note(error, data)
            signal.setitimer(signal.ITIMER_PROF, 0)
            peak = tracemalloc.get_traced_memory()[1]
            self.largest = max(self.largest, peak / (len(content) + 1000))
            if peak > _BASE + self._target.factor * len(content):
                self._note(_LargeError(f"{peak / 2**20:.0f} MiB of {len(content)} bytes"), data)
        except _SlowError as error:
            self._note(error, data)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            tracemalloc.stop()
            self._restore()
        self.inputs["refused" if refused else "read"] += 1

    def _restore(self) -> None:
        """Every file as it was."""
        for path in [one for one in self.folder.rglob("*") if one.is_file() and one not in self._whole]:
            path.unlink()
        for path, content in self._whole.items():
            if not path.is_file() or path.stat().st_size != len(content) or path.read_bytes() != content:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)

    def _note(self, error: BaseException, data: bytes) -> None:
        frames = [one for one in traceback.extract_tb(error.__traceback__) if "idrc_jax" in one.filename]
        place = f"{Path(frames[-1].filename).name}:{frames[-1].name}:{frames[-1].lineno}" if frames else "?"
        kind = type(error).__name__ if not isinstance(error, AssertionError) else str(error).split()[0]
        key = (type(error).__name__, kind, place)
        self.findings[key] += 1
        if self.findings[key] > 1:
            return
        number = len(self.findings)
        told = "".join(traceback.format_exception(error))
        (self.out / f"{number}.txt").write_text(f"{self._files[data[0] % len(self._files)]}\n{told[-6000:]}")
        (self.out / f"{number}.bin").write_bytes(data)
        print(f"finding {number}: {' '.join(key)}: {' '.join(str(error).split())[:200]}", file=sys.stderr, flush=True)


def _stop(number: int, frame: FrameType | None) -> None:
    raise _SlowError(f"{_SECONDS:g} seconds")


def main() -> None:
    flags = argparse.ArgumentParser(prog="python -m benchmarks.fuzzing", description=__doc__)
    flags.add_argument("target", choices=TARGETS)
    flags.add_argument("--minutes", type=float, default=3.0, help="of the processor's time")
    flags.add_argument("--seeds", type=Path, default=Path(".cache/fuzz/seeds"), help="made where there are none")
    flags.add_argument("--out", type=Path, default=Path("runs/fuzz"), help="for what is found")
    flags.add_argument("--again", type=Path, nargs="*", help="read these inputs alone")
    asked = flags.parse_args()
    seeds.make(asked.seeds)
    driver = Driver(TARGETS[asked.target], asked.seeds, asked.out / asked.target)
    signal.signal(signal.SIGPROF, _stop)
    for data in [path.read_bytes() for path in asked.again or ()] or driver.corpus():
        driver.read(data)
    if asked.again is not None or driver.findings:
        shutil.rmtree(driver.folder.parent)
        sys.exit(bool(driver.findings))
    corpus = Path(tempfile.mkdtemp(prefix="corpus-"))
    for number, data in enumerate(driver.corpus()):
        (corpus / str(number)).write_bytes(data)
    started = time.process_time()

    def tell() -> None:
        told = {
            "target": asked.target,
            "cpu_minutes": round((time.process_time() - started) / 60, 2),
            **driver.inputs,
            "largest memory a byte": round(driver.largest, 1),
            "findings": {" ".join(key): count for key, count in driver.findings.items()},
        }
        print(json.dumps(told), flush=True)

    def one_input(data: bytes) -> None:
        driver.read(data)
        if time.process_time() - started > 60 * asked.minutes:
            tell()
            shutil.rmtree(driver.folder.parent, ignore_errors=True)
            shutil.rmtree(corpus, ignore_errors=True)
            os._exit(bool(driver.findings))  # libFuzzer takes any other way out for a crash

    most = 4 * max(map(len, driver.corpus())) + 4096
    options = [
        f"-max_len={most}",
        "-rss_limit_mb=6000",
        "-timeout=600",
        f"-artifact_prefix={driver.out}/",
    ]
    atheris.Setup([sys.argv[0], *options, str(corpus)], one_input, custom_mutator=driver.damage)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
