"""idrc-compare: two runs on the same images, with exact tests."""

import math
import sys
from dataclasses import replace

from idrc_jax.core import command_line
from idrc_jax.results import equal_terms, metrics, runs
from idrc_jax.results.compare import acr_difference, compare, on_common_images, radii_to_compare, table, usual_radii


def main() -> None:
    """Compare two runs on the same images: the difference in certified accuracy at each radius, with exact tests."""
    with command_line.one_line_errors():
        parser = command_line.Parser("idrc-compare", main.__doc__)
        parser.add_argument("a", metavar="A", help="a run's folder, a result file, or NAME=FILE")
        parser.add_argument("b", metavar="B", help="a second run over the same images")
        parser.add_argument(
            "--at", type=float, nargs="+", help="radii; by default those that both plans asked for, or 0, .25 ..."
        )
        parser.add_argument(
            "--published", action="store_true", help="compare published radii, which are no certificates"
        )
        parser.add_argument("--common", action="store_true", help="on the images alone that both runs have")
        parser.add_argument(
            "--equal-terms", action="store_true", help="both at the smaller n and alpha, from the votes that are stored"
        )
        asked = parser.parse_args()
        a, b = runs.read([asked.a, asked.b])
        told = []
        if asked.common:
            both, counts = on_common_images(a.results, b.results), (len(a.results), len(b.results))
            a, b = (replace(run, results=one) for run, one in zip((a, b), both, strict=True))
            told.append(f"On the {len(a.results)} images that both have, of {counts[0]} and {counts[1]}.")
        if asked.equal_terms:
            a, b, done = equal_terms.equalised(a, b)
            told.append(done)
        differ = equal_terms.differences([a, b])
        if differ:
            told.append(differ if asked.equal_terms else f"{differ} {equal_terms.offer(a, b)}".rstrip())
        norm = runs.norm_of([a.results, b.results])
        asked_for = asked.at or usual_radii(a.results, b.results)
        radii = asked_for if asked.published else radii_to_compare(a.results, b.results, asked_for)
        made = compare(a.results, b.results, radii, published=asked.published)
        ends = [metrics.last_radius(run.results) for run in (a, b)]
        acr = acr_difference(a.results, b.results, published=asked.published) if ends[0] == ends[1] else None
        left_out = [f"{metrics.rounded_down(radius):g}" for radius in asked_for if radius not in radii]
        if left_out:
            told.append(f"Left out: {', '.join(left_out)}, which neither run could certify even if all votes agreed.")
        kind = f"{'Published' if asked.published else 'Valid'} {norm} radii"
        kind += ", no certificates but for gaussian" if asked.published else ""
        print(*told, table(a.name, b.name, made, acr, kind), sep="\n")
        for run in (a, b):
            if math.isfinite(metrics.last_radius(run.results)):
                print(f"The plan of {run.name} {metrics.too_low(run.results)}")
    sys.exit(0)


if __name__ == "__main__":
    main()
