"""Contenders in processes of their own, idle unless it is their turn: no shared threads, no shared memory peak.

A worker builds one object and then answers calls of its methods, one JSON line each.
"""

import contextlib
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from benchmarks import instructions

ROOT = Path(__file__).parent.parent


class WorkerError(RuntimeError):
    """A worker's call raised, took too long, or its process is gone."""


class Worker:
    """A process that holds one object.

    Args:
      target: "module:Class" of the object.
      timeout: seconds that a call may take, after which the process is killed; None for no limit.
      cores: how many of this process's cores it may use; 0 for all.
      arguments: of the class.

    Attributes:
      used_avx512: whether its last call did, as far as the system tells (see `instructions.used_avx512`).
    """

    used_avx512: bool | None = None

    def __init__(self, target: str, *, timeout: float | None = None, cores: int = 0, **arguments: Any) -> None:
        environment = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", **os.environ}
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.workers"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )
        self._buffer = b""
        try:
            self._ask({"target": target, "cores": cores, "arguments": arguments}, timeout)
        except BaseException:
            self.close()
            raise

    def call(self, method: str, *, timeout: float | None = None, **arguments: Any) -> Any:
        """The method's answer; WorkerError if it raises, or does not answer in time."""
        return self._ask({"method": method, "arguments": arguments}, timeout)

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin
        assert self._process.stdout
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def _ask(self, question: dict[str, Any], timeout: float | None) -> Any:
        assert self._process.stdin
        try:
            self._process.stdin.write(json.dumps(question).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise WorkerError("Expected a running worker, got one that has ended.") from None
        answer = json.loads(self._line(timeout))
        self.used_avx512 = answer.get("avx512")
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer["value"]

    def _line(self, timeout: float | None) -> bytes:
        assert self._process.stdout
        deadline = None if timeout is None else time.monotonic() + timeout
        while b"\n" not in self._buffer:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not select.select([self._process.stdout], [], [], left)[0]:
                self._process.kill()
                raise WorkerError(f"Expected an answer within {timeout:.0f} s, got none.")
            read = os.read(self._process.stdout.fileno(), 1 << 16)
            if not read:
                raise WorkerError(f"Expected an answer, got a worker that ended with status {self._process.wait()}.")
            self._buffer += read
        line, self._buffer = self._buffer.split(b"\n", 1)
        return line


def peak_memory() -> dict[str, float]:
    """This process's peak resident memory, MiB: of this program alone, not of the one that started it."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        peak = next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:"))
    except OSError:  # not Linux
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"peak_rss_mib": round(peak, 1)}


def _serve() -> None:
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print goes to standard error
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the parent, and the end of standard input this process
    held = None
    for line in sys.stdin:
        question = json.loads(line)
        avx512 = None
        try:
            if "target" in question:
                module, name = question["target"].split(":")
                if question["cores"]:
                    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: question["cores"]])
                held = getattr(importlib.import_module(module), name)(**question["arguments"])
                value = None
            else:
                start = time.monotonic()
                value = getattr(held, question["method"])(**question["arguments"])
                avx512 = instructions.used_avx512(time.monotonic() - start)
            answer = {"value": value, "avx512": avx512}
        except Exception as error:  # whatever a library raises is the parent's to report
            if not isinstance(error, (ImportError, ValueError)):
                traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=replies, flush=True)


if __name__ == "__main__":
    _serve()
