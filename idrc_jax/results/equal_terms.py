"""Were runs certified on equal terms: the same plan, n and alpha? More votes certify larger radii of any network.

Two runs whose plan reads the votes of an image once can be brought to equal terms by the votes that are stored.
"""

from collections.abc import Sequence
from dataclasses import replace

from idrc_jax.certificates import sampling_plans, user_schemes
from idrc_jax.certificates.level_schemes import Cascade, Routed
from idrc_jax.core.json_values import Json
from idrc_jax.results import metrics, runs
from idrc_jax.results.recertify import recertify
from idrc_jax.results.runs import Run

_CLAIM = ("n", "alpha", "k")
_TERMS = ("plan", "n", "alpha", "certificate", "k", "paired.n", "paired.share")
_NAMED = 3  # runs of one value; more are counted
_OF_ONE_PLAN = ("n0", "sequence", "radii", "published", "precision")  # compared where the plans have one name
_UNSTORED = "where it stopped on an image depends on the order of its votes, which is not stored"


def differences(several: Sequence[Run]) -> str:
    """In what terms runs differ: one line, empty where they do not or where there is one run alone.

    Files of other projects do not say their terms, which counts as a difference.
    """
    known = [(run, run.results.manifest["guarantee"]) for run in several if run.results.manifest]
    told = []
    one_plan = len({made["plan"] for _, made in known}) < 2
    for term in (*_TERMS, *(_OF_ONE_PLAN if one_plan else ())):
        names: dict[str, list[str]] = {}
        for run, made in known:
            if term != "published" or not metrics.published_is_valid(run.results):  # else they are decided in any case
                names.setdefault(_text(_term(made, term)), []).append(run.name)
        if len(names) > 1:
            told.append(f"{term} is {', '.join(f'{value} for {_named(own)}' for value, own in names.items())}")
    silent = [run.name for run in several if not run.results.manifest]
    if silent and len(several) > 1:
        told.append(f"no plan, n and alpha are known of {_named(silent)}")
    return f"Not on equal terms: {'; '.join(told)}." if told else ""


def claim_differs(several: Sequence[Run]) -> bool:
    """Whether runs claim different things (k), at different confidence (alpha) or from different numbers of votes (n);
    files of other projects do not say, which counts as a difference."""
    known = [run.results.manifest["guarantee"] for run in several if run.results.manifest]
    claims = {tuple(_term(made, term) for term in _CLAIM) for made in known}
    return len(claims) > 1 or (len(known) < len(several) > 1)


def _term(made: Json, term: str) -> object:
    """A setting of a guarantee; that of the pairs for `paired.NAME`."""
    if term == "published":  # described only where it is asked for
        return made.get(term) is True
    part, _, name = term.rpartition(".")
    return (made.get(part, {}) if part else made).get(name)


def warning(several: Sequence[Run]) -> str:
    """`differences`, and what to do about them; empty where there are none."""
    told = differences(several)
    hint = "idrc-recertify --n and --alpha bring runs of the plans fixed and selection_free to the terms of others."
    return f"{told} {hint}" if told else ""


def offer(first: Run, second: Run) -> str:
    """How two runs whose terms differ can be compared at one n and alpha, or why not; empty where they have one."""
    reason = _obstacle(first, second)
    if reason:
        return f"They cannot be brought to equal terms: {reason}.{_fewer(first, second)}"
    if _same(first, second):
        return ""
    n, alpha = _common(first, second)
    return f"--equal-terms compares them at n = {n:,} and alpha = {alpha:g}, from the votes that are stored."


def equalised(first: Run, second: Run) -> tuple[Run, Run, str]:
    """Two runs at the smaller of their n and the smaller of their alpha, and a line that says what was done.

    Guarantee: each certificate holds with probability at least 1 - alpha, as one of a run that had drawn so few votes
    (see `recertify`).

    Raises ValueError, which says why, where the stored votes do not allow it.
    """
    reason = _obstacle(first, second)
    if reason:
        raise ValueError(
            f"Expected runs that can be brought to equal terms, got {first.name} and {second.name}: {reason}."
        )
    n, alpha = _common(first, second)
    made, said = [], []
    for run in (first, second):
        old = _guarantee(run)
        changed = []
        if old["n"] != n:
            changed.append(f"from {n:,} of its {old['n']:,} votes of each image, drawn at random")
        if old["alpha"] != alpha:
            changed.append(f"at alpha {alpha:g} instead of {old['alpha']:g}")
        if changed:
            run = replace(run, results=recertify(run.results, n=n, alpha=alpha))
            said.append(f"“{run.name}” is certified anew {' and '.join(changed)}")
        made.append(run)
    what = "; ".join(said) if said else "as both are stored"
    return made[0], made[1], f"At n = {n:,} and alpha = {alpha:g}: {what}."


def _common(first: Run, second: Run) -> tuple[int, float]:
    both = _guarantee(first), _guarantee(second)
    return min(made["n"] for made in both), min(made["alpha"] for made in both)


def _same(first: Run, second: Run) -> bool:
    """Whether n and alpha are the same, which is all that can be changed afterwards."""
    own, other = _guarantee(first), _guarantee(second)
    return own["n"] == other["n"] and own["alpha"] == other["alpha"]


def _obstacle(first: Run, second: Run) -> str:
    """Why two runs cannot be brought to one n and alpha; empty where they can."""
    for run in (first, second):
        if not run.results.manifest:
            return f"{run.results.path} has no votes"
    own, other = _guarantee(first), _guarantee(second)
    if own["plan"] != other["plan"]:
        return f"votes of the plan {own['plan']} are not those that {other['plan']} would have drawn"
    n, alpha = _common(first, second)
    for run, made in ((first, own), (second, other)):
        if made["n"] != n and "subsampled_from" in made:
            return f"“{run.name}” has {made['n']:,} votes drawn from {made['subsampled_from']:,} already"
        if (made["n"], made["alpha"]) != (n, alpha) and user_schemes.is_own(made):
            place = made.get("scheme_class", made["scheme"])
            return f"“{run.name}” is under a scheme of your own, {place}: idrc-recertify --factory certifies it anew"
    several = {made["scheme"] for made in (own, other)} & {Cascade.name, Routed.name}
    if several and not _same(first, second):
        return f"which levels an image's votes go on to under {min(several)} depends on n and alpha"
    if not _same(first, second) and any(sampling_plans.from_description(made).adaptive for made in (own, other)):
        return f"the plan {own['plan']} stops early, and {_UNSTORED}"
    return ""


def _fewer(first: Run, second: Run) -> str:
    """What brings two runs of different plans to one n at least; empty where they have one, or the votes of the one
    with more cannot be taken in part."""
    few, many = sorted((first, second), key=lambda run: _guarantee(run).get("n", 0))
    n, made = _guarantee(few).get("n"), _guarantee(many)
    plans = {_guarantee(run).get("plan") for run in (few, many)}
    if not n or n == made["n"] or len(plans) < 2 or sampling_plans.Exhaustive.name in plans:
        return ""
    try:
        recertify(replace(many.results, rows=()), n=n)
    except ValueError:
        return ""
    return (
        f" But idrc-recertify --n={n} of “{many.name}” takes as many votes of each image as “{few.name}” drew at most: "
        "then they differ by their plans alone."
    )


def _guarantee(run: Run) -> Json:
    return run.results.manifest["guarantee"] if run.results.manifest else {}


def _text(value: object) -> str:
    if isinstance(value, list | tuple):
        return f"({', '.join(map(_text, value))})"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _named(names: Sequence[str]) -> str:
    return f"{len(names)} runs" if len(names) > _NAMED else runs.quoted(names)
