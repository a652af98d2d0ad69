"""Samples per second of certification: idrc_jax, a plain PyTorch loop and ART, on the same weights, in turns.

Every variant runs in a process of its own, which is idle unless it is its turn. All start from one weights file, and
their logits must agree before anything is timed. A ratio is that of two turns of the same round; medians of these.

Command:   make throughput DATA=FOLDER        (20 minutes on two cores; on an idle machine)
"""

import argparse
import re
import sys
from pathlib import Path
from typing import Any

from benchmarks import contest, instructions, measure
from benchmarks.contest import ART, OURS, TORCH, Variant
from benchmarks.report import RESULTS, Report, slug
from benchmarks.workers import Worker

WEIGHTS = contest.CHECKPOINTS / "cifar10_resnet20_gaussian_0.25.safetensors"


def parser(about: str | None, name: str) -> argparse.ArgumentParser:
    """The flags that all of these commands have."""
    made = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}", description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--name", default="", help="of the result's files; default from the device")
    made.add_argument("--out", type=Path, default=RESULTS, help="folder of the result")
    made.add_argument("--rounds", type=int, default=7)
    made.add_argument("--seconds", type=float, default=3.0, help="of a turn")
    made.add_argument(
        "--instructions",
        choices=instructions.CHOICES,
        default=instructions.NATIVE,
        help="avx2 holds every contender to it on a processor that has AVX-512",
    )
    return made


def parse(flags: argparse.ArgumentParser) -> tuple[argparse.Namespace, dict[str, Any]]:
    """The flags' values; and what a result says of the instruction set, to which the workers are held from now on."""
    values = flags.parse_args()
    try:
        chosen, environment = instructions.force(values.instructions, measure.processor()[-1])
    except ValueError as error:
        flags.error(str(error))
    return values, {"instruction_set": chosen, "forced_by": environment}


def command_line(module: str) -> str:
    """What was typed, without this machine's folders."""
    words = [re.sub("(^|=)[/~].*", r"\1FOLDER", word) for word in sys.argv[1:]]
    return " ".join(["python -m", f"benchmarks.{module}", *words])


def begin(
    host: Worker,
    command: str,
    title: str,
    values: argparse.Namespace,
    settings: dict[str, Any],
    held_to: dict[str, Any],
    about: str = "",
) -> Report:
    """The report of a command, named after it, `about`, the device and the instruction set unless it has a name."""
    device = host.call("device")
    machine = measure.machine()
    head = {
        "title": title,
        "command": command_line(command),
        "machine": machine,
        "settings": settings | {"rounds": values.rounds},
    }
    kind = device["kind"]
    if device["platform"] == "cpu":
        head |= held_to
        kind = f"{brand(machine['cpu'])} {machine['microarchitecture']} {held_to['instruction_set']}"
    return Report(values.out, values.name or slug(f"{command} {about} {kind} {machine['cores']} cores"), head)


def brand(cpu: str) -> str:
    """A processor's name without what says nothing: "Intel(R) Xeon(R) Processor" is an Intel Xeon."""
    return re.sub(r"\((R|TM)\)| CPU( @ .*)?|( \d+-Core)? Processor.*", "", cpu)


def variants(values: argparse.Namespace) -> list[Variant]:
    """Float32 first, peers beside each other."""
    made = []
    for dtype in values.dtypes:
        if OURS in values.contenders:
            made += [Variant(OURS, dtype, chunk) for chunk in values.chunks]
        if TORCH in values.contenders:
            made += [Variant(TORCH, dtype, batch, layout) for layout in values.layouts for batch in values.batches]
        if ART in values.contenders and dtype == "float32":
            made += [Variant(ART, dtype, batch, "contiguous") for batch in values.batches]
    return made


def main() -> None:
    flags = parser(__doc__, "throughput")
    flags.add_argument("--depths", type=int, nargs="+", default=[20, 110])
    flags.add_argument("--contenders", nargs="+", choices=(OURS, TORCH, ART), default=[OURS, TORCH, ART])
    flags.add_argument("--dtypes", nargs="+", choices=("float32", "bfloat16"), default=["float32", "bfloat16"])
    flags.add_argument("--chunks", type=int, nargs="+", default=[0, 100], help="ours, a device; 0: the default")
    flags.add_argument("--batches", type=int, nargs="+", default=[50, 200, 400], help="the peers'")
    flags.add_argument("--layouts", nargs="+", default=["contiguous", "channels-last"], help="PyTorch's")
    flags.add_argument("--data", default="", help="folder with CIFAR-10's binary version, for the agreement of types")
    flags.add_argument("--images", type=int, default=10_000, help="on which types are compared")
    values, held_to = parse(flags)
    clock = measure.Clock()
    settings = {"sigma": measure.SIGMA, "image": "32x32x3", "seconds a turn": values.seconds}
    with contest.host() as (host, files):
        report = begin(host, "throughput", "Throughput of certification", values, settings, held_to)
        for depth in values.depths:
            table = report.table(f"ResNet-{depth}", "samples/s")
            with contest.Contest(contest.CERTIFIERS, depth, variants(values), files, clock) as held:

                def keep(rows: list[contest.Row], table: dict = table, held: contest.Contest = held) -> None:
                    table |= {"rows": rows, "ratios": contest.ratios(rows), "left_out": held.left_out}
                    report.save()

                held.throughput(values.rounds, values.seconds, keep)
        if OURS in values.contenders and "bfloat16" in values.dtypes:
            found = host.call("agreement", weights=str(WEIGHTS), folder=values.data, count=values.images)
            report.result["facts"] = {"bfloat16 against float32": {"weights": WEIGHTS.name, **found}}
    report.finish()


if __name__ == "__main__":
    main()
