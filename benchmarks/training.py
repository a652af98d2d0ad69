"""Training images per second: idrc_jax's step and a plain PyTorch loop, on the same weights, in turns.

Both crop, flip and add noise, and take SGD steps with momentum and decay, from a data set of 50,000 random images in
memory. Ours dispatches as `training.train` does. PyTorch's is channels-last and eager: in float32, with autocast to
bfloat16, and with weights of bfloat16.

Command:   make training-throughput        (15 minutes on two cores; on an idle machine)
"""

import itertools

from benchmarks import contest, measure
from benchmarks.contest import OURS, TORCH, Variant
from benchmarks.throughput import begin, parse, parser


def main() -> None:
    flags = parser(__doc__, "training")
    flags.add_argument("--depths", type=int, nargs="+", default=[20, 110])
    flags.add_argument("--batches", type=int, nargs="+", default=[128, 256])
    flags.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], help="ours")
    flags.add_argument("--peer-dtypes", nargs="+", default=["float32", "autocast", "bfloat16"], help="PyTorch's")
    flags.add_argument("--contenders", nargs="+", choices=(OURS, TORCH), default=[OURS, TORCH])
    values, held_to = parse(flags)
    clock = measure.Clock()
    settings = {"sigma": measure.SIGMA, "seconds a turn": values.seconds}
    with contest.host() as (host, files):
        report = begin(host, "training", "Throughput of training", values, settings, held_to)
        for depth, batch in itertools.product(values.depths, values.batches):
            table = report.table(f"ResNet-{depth}, batch {batch}", "images/s")
            made = [
                Variant(name, dtype, batch, "channels-last" if name == TORCH else "")
                for name in values.contenders
                for dtype in (values.dtypes if name == OURS else values.peer_dtypes)
            ]
            with contest.Contest(contest.TRAINERS, depth, made, files, clock) as held:

                def keep(rows: list[contest.Row], table=table, held=held, batch=batch) -> None:
                    rows = [row | {"steps": row["median"] / batch} for row in rows]
                    table |= {"rows": rows, "ratios": contest.ratios(rows), "left_out": held.left_out}
                    report.save()

                held.throughput(values.rounds, values.seconds, keep)
    report.finish()


if __name__ == "__main__":
    main()
