"""Of whichever scheme of several levels: its bounds, the course of an image, the certificate of its votes."""

from collections.abc import Sequence
from typing import Protocol, TypeVar

from idrc_jax.certificates import Certificate, sampling_plans, schemes, user_schemes
from idrc_jax.certificates.courses import Course, LevelVotes
from idrc_jax.certificates.level_schemes import Cascade, Routed
from idrc_jax.certificates.noise_scheme import Scheme
from idrc_jax.certificates.sampling_plans import Plan
from idrc_jax.core.json_values import Json
from idrc_jax.several_levels import cascade, routed

Bounds = cascade.Bounds | routed.Bounds


def bounds_of(scheme: Scheme, plan: Plan, alpha: float, dim: int) -> Bounds | None:
    """The bounds of a scheme of several levels, for images of `dim` values; None for another scheme."""
    if isinstance(scheme, Cascade):
        return cascade.Bounds(scheme, plan, alpha, dim)
    return routed.Bounds(scheme, plan, alpha, dim) if isinstance(scheme, Routed) else None


def bounds_of_results(made: Json) -> Bounds | None:
    """The bounds of results under a scheme of several levels, by their manifest's guarantee; None for others."""
    if user_schemes.is_own(made):
        return None
    scheme, plan = schemes.from_description(made), sampling_plans.from_description(made)
    return bounds_of(scheme, plan, made["alpha"], made["dim"])


def course(bounds: Bounds) -> Course:
    """The course of one image."""
    return routed.RoutedCourse(bounds) if isinstance(bounds, routed.Bounds) else cascade.CascadeCourse(bounds)


def certificate(bounds: Bounds, drawn: Sequence[LevelVotes]) -> Certificate:
    """What an image's votes certify: `cascade.certificate` or `routed.certificate`."""
    if isinstance(bounds, routed.Bounds):
        return routed.certificate(bounds, drawn)
    return cascade.certificate(bounds, drawn)


class OfLevel(Protocol):
    """What `LevelVotes`, and those of a row in a file, have."""

    @property
    def level(self) -> int: ...

    @property
    def selected(self) -> int: ...


_Drawn = TypeVar("_Drawn", bound=OfLevel)


def follow(bounds: Bounds, drawn: Sequence[OfLevel]) -> bool:
    """Whether votes may be of an image's levels in this order.

    A router that votes for no answer leads to no level. Under an adaptive plan its later votes may point to another.
    """
    levels, count = [one.level for one in drawn], schemes.level_count(bounds.scheme)
    if not isinstance(bounds, routed.Bounds):
        return levels == list(range(min(len(levels), count)))
    if not levels or levels[0] != routed.ROUTER:
        return False
    of_classes, led_to = levels[1:], routed.level_of(drawn[0].selected)
    if of_classes and (led_to == routed.ROUTER or not (bounds.plan.adaptive or of_classes[0] == led_to)):
        return False
    return all(0 < one < count for one in of_classes) and len(set(of_classes)) == len(of_classes)


def deciding(scheme: Scheme, drawn: Sequence[_Drawn]) -> list[_Drawn]:
    """Those of the votes that an image's class may be from: under a router those of the level that it chose, if any."""
    return list(drawn[1:2] if isinstance(scheme, Routed) else drawn)
