"""Noise schemes from the user's own code: made by name, and found again for results that were made under them."""

from idrc_jax.certificates.schemes import (
    L2,
    SCHEMES,
    Box,
    Cascade,
    Gaussian,
    Laplace,
    Routed,
    Scheme,
    Splitting,
    Stepped,
    Uniform,
    describe,
    from_description,
    with_exact_noise,
)
from idrc_jax.core import json_values, user_code
from idrc_jax.core.json_values import Json

# By what they are, without their `scale_bounds`.
_CERTIFIED_AS_THEY_ARE = (Gaussian, L2, Uniform, Stepped, Cascade, Routed, Box, Laplace, Splitting)

_CODE = ("scheme_class", "scheme_sha256")


def check_own(scheme: Scheme) -> None:
    """ValueError for a scheme of the user's own that would be taken for one of this package: a subclass of one whose
    certificate would not notice what it changes, or one without a name of its own."""
    for kind in _CERTIFIED_AS_THEY_ARE:
        if isinstance(scheme, kind) and type(scheme) is not kind:
            raise ValueError(
                f"Expected {type(scheme).__name__} to be a subclass of Scheme itself, got one of {kind.__name__}, "
                "whose certificate does not ask scale_bounds."
            )
    if type(scheme) not in SCHEMES.values() and scheme.norm != "l2":
        raise ValueError(
            f"Expected {type(scheme).__name__} to have the norm l2, as its certificate, got {scheme.norm}."
        )
    name = getattr(scheme, "name", None)
    if not isinstance(name, str) or SCHEMES.get(name, type(scheme)) is not type(scheme):
        raise ValueError(
            f"Expected {type(scheme).__name__} to have a name of its own, none of {', '.join(SCHEMES)}, got {name!r}."
        )


def load(name: str, *, sigma: float, ref: float = 1.0) -> Scheme:
    """Make the scheme of `package.module:Scheme`, a subclass of `Scheme` or a function that returns an instance of one.

    Args:
      name: of the class or function; the current folder is searched first.
      sigma: the noise parameter, which it is called with.
      ref: it is called with this, too, unless it is 1.

    Raises:
      ValueError: it cannot be imported, raises, or makes anything but a scheme of its own with this sigma.
    """
    setting = f"noise.factory={name}"
    made = user_code.call("noise.factory", name, "a noise scheme", sigma=sigma, **({} if ref == 1 else {"ref": ref}))
    if not isinstance(made, Scheme):
        raise ValueError(f"Expected {setting} to return an idrc_jax.schemes.Scheme, got {type(made).__name__}.")
    check_own(made)
    if made.sigma != sigma:
        raise ValueError(f"Expected {setting} to have the sigma that it is called with, {sigma}, got {made.sigma}.")
    try:
        hash(made)
    except TypeError as error:
        raise ValueError(f"Expected {setting} to be a dataclass with frozen=True, got: {error}.") from None
    return made


def is_own(description: Json) -> bool:
    """Whether `schemes.describe` described a scheme of the user's own, which nothing but its code can make again."""
    return description["scheme"] not in SCHEMES or "scheme_class" in description


def of_results(described: Json, factory: str | None = None, *, scheme: Scheme | None = None) -> Scheme:
    """The scheme that results were made under.

    Args:
      described: by `schemes.describe`, as manifests hold it; other keys are ignored.
      factory: `load`'s name, for results made under a scheme of the user's own: a manifest never loads code.
      scheme: that scheme itself, instead.

    Raises:
      ValueError: results under a scheme of the user's and neither of both, or another scheme than theirs: of another
        name, class or source, or with other parameters.
    """
    if scheme is not None:
        check_own(scheme)
        return _check_same(scheme, described)
    if not factory:
        if not is_own(described):
            return from_description(described)
        place = described.get("scheme_class", described["scheme"])
        raise ValueError(
            f"Expected the scheme {place}, which is not of this package, to be named by noise.factory or --factory, "
            "got none: code is only loaded where the command line names it."
        )
    made = load(factory, sigma=described["sigma"])
    if describe(made)["ref"] != described["ref"]:
        made = load(factory, sigma=described["sigma"], ref=described["ref"])
    return _check_same(with_exact_noise(made, described.get("exact", False)), described, f" by {factory}")


def _check_same(made: Scheme, described: Json, by: str = "") -> Scheme:
    """The scheme, or ValueError unless it is the one described: in results made before code was named, by any code,
    which may have gained fields since."""
    own = is_own(described)
    then = described if own else json_values.as_json(describe(from_description(described)))
    now = {"exact": False, **json_values.as_json(describe(made))}
    older = now if own and "scheme_class" not in then else {}
    then = {**older, "exact": False, **{name: then[name] for name in (*now, *_CODE) if name in then}}
    changed = json_values.differences(then, now)
    if changed:
        raise ValueError(f"Expected the scheme that the results were made under, got another{by}: {changed}.")
    return made
