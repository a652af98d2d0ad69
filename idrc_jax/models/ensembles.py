"""Ensembles (Horváth et al. 2022): the mean logits of several networks as one classifier."""

import hashlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from idrc_jax.core.validate import SettingError
from idrc_jax.models.classifier import ApplyFn, Classifier
from idrc_jax.models.tensors import Description, PyTree

_BLOCKS = 8  # of a batch: in so many parts at most the members beyond the consensus see its images


def ensemble(members: Sequence[Classifier], *, consensus: int = 0) -> Classifier:
    """Make one classifier of several: its logits are the mean of theirs, summed in their order.

    One program runs all of them, member after member. It has two implementations where the members have: all by their
    fastest, and all by their plainest.

    Args:
      members: any, of the same classes, images and compute type, without a denoiser: `denoised` puts one in front of
        the ensemble. A single one is returned as it is.
      consensus: > 0: where so many first members decide for one class, the logits are the mean of those alone, and the
        others are not run. That is another function of the image than the mean of all, with other votes; results name
        it. Gradients are those of the mean of all.

    Raises:
      ValueError: no members, or ones that do not fit together; a consensus of fewer than two or of all.
    """
    if not members:
        raise ValueError("Expected at least one network, got none.")
    if consensus and not 2 <= consensus < len(members):
        raise SettingError(
            f"Expected consensus = 0, or from 2 to {len(members) - 1} of {len(members)} networks, got {consensus}."
            if len(members) > 2
            else f"Expected consensus = 0 with {len(members)} network{'s' * (len(members) > 1)}, got {consensus}.",
            "consensus",
        )
    if len(members) == 1:
        return members[0]
    _check(members)
    described = _description(members, consensus)
    hashes = [one.sha256 for one in members]

    def of(parts: Sequence[Classifier]) -> Classifier:
        return Classifier(
            apply_fn=_apply_fn([one.apply_fn for one in parts], consensus),
            params=tuple(one.params for one in parts),
            classes=members[0].classes,
            image_shape=members[0].image_shape,
            dtype=members[0].dtype,
            kernel=", ".join(dict.fromkeys(one.kernel for one in parts)),
            sha256=hashlib.sha256("\n".join(hashes).encode()).hexdigest() if all(hashes) else "",
            description=described,
        )

    plain = [one.reference for one in members]
    alike = all(one.kernel == other.kernel for one, other in zip(members, plain, strict=True))
    return of(members).with_alternatives(*([] if alike else [of(plain)]))


def _check(members: Sequence[Classifier]) -> None:
    """ValueError for members that do not fit together."""
    first = members[0]
    for number, one in enumerate(members[1:], 2):
        for name in ("classes", "image_shape", "dtype"):
            mine, other = getattr(first, name), getattr(one, name)
            if mine != other:
                hint = " model.dtype makes them alike." if name == "dtype" else ""
                raise ValueError(
                    f"Expected networks of one {name} in an ensemble, got {mine} in the first and {other} in number "
                    f"{number}.{hint}"
                )
        if one.sha256 and one.sha256 in [other.sha256 for other in members[: number - 1]]:
            raise ValueError(f"Expected each network once in an ensemble, got the weights of number {number} twice.")
    if any("denoiser" in one.description or "members" in one.description or one.by_level for one in members):
        raise ValueError(
            "Expected single networks in an ensemble, got one that is an ensemble itself, has a denoiser in front or a "
            "network for each level: put the denoiser in front of the ensemble, an ensemble at each level."
        )
    names = [one.description["class_names"] for one in members if "class_names" in one.description]
    for other in names:
        if list(other) != list(names[0]):
            raise ValueError(
                f"Expected networks of the same classes in an ensemble, got {', '.join(names[0][:5])} ... and "
                f"{', '.join(other[:5])} ..."
            )


def _description(members: Sequence[Classifier], consensus: int) -> Description:
    described = [one.description for one in members]
    names = next(({"class_names": one["class_names"]} for one in described if "class_names" in one), {})
    training = common_training(described)
    return {
        "architecture": "ensemble",
        "classes": members[0].classes,
        "image_shape": list(members[0].image_shape),
        "dtype": members[0].dtype,
        **names,
        **({"consensus": consensus} if consensus else {}),
        **({"training": training} if training else {}),
        "members": [{**one.description, "weights_sha256": one.sha256} for one in members],
    }


def common_training(described: Sequence[Description]) -> Description:
    """What all networks' descriptions say alike of their training; nothing where noise or recipe differ."""
    first, *others = (one.get("training", {}) for one in described)
    common = {name: value for name, value in first.items() if all(name in o and o[name] == value for o in others)}
    return common if {"scheme", "recipe"} <= common.keys() else {}


def _apply_fn(functions: Sequence[ApplyFn], consensus: int) -> ApplyFn:
    """Compute the logits of all members' params and images."""

    def mean(params: tuple[PyTree, ...], images: jax.Array) -> jax.Array:
        return _sum(functions, params, images) / len(functions)

    return _with_consensus(functions, consensus, mean) if consensus else mean


def _sum(functions: Sequence[ApplyFn], params: Sequence[PyTree], images: jax.Array) -> jax.Array:
    total = functions[0](params[0], images)
    for function, own in zip(functions[1:], params[1:], strict=True):
        total = total + function(own, images)
    return total


def _with_consensus(functions: Sequence[ApplyFn], consensus: int, mean: ApplyFn) -> ApplyFn:
    """The same where the first members disagree, elsewhere their mean.

    The images on which they disagree are brought together, and the other members see these alone, a part of the batch
    at a time. Gradients are those of `mean`.
    """

    @jax.custom_vjp
    def apply_fn(params: tuple[PyTree, ...], images: jax.Array) -> jax.Array:
        batch = len(images)
        block = -(-batch // _BLOCKS)
        firsts = [function(own, images) for function, own in zip(functions[:consensus], params, strict=False)]
        classes = jnp.stack([jnp.argmax(logits, axis=-1) for logits in firsts])
        split = (classes != classes[0]).any(axis=0)
        total = sum(firsts[1:], firsts[0])
        order = jnp.pad(jnp.argsort(~split), (0, block), constant_values=batch)  # beyond the batch: nothing is written

        def more(step: jax.Array, logits: jax.Array) -> jax.Array:
            rows = jax.lax.dynamic_slice(order, (step * block,), (block,))
            others = _sum(functions[consensus:], params[consensus:], images[rows])
            rows = jnp.where(split[rows], rows, batch)
            return logits.at[rows].set((total[rows] + others) / len(functions), mode="drop")

        return jax.lax.fori_loop(0, -(-split.sum() // block), more, total / consensus)

    def forward(params: tuple[PyTree, ...], images: jax.Array) -> tuple[jax.Array, tuple]:
        return apply_fn(params, images), (params, images)

    def backward(residuals: tuple, cotangent: jax.Array) -> tuple:
        _, pullback = jax.vjp(mean, *residuals)
        return pullback(cotangent)

    apply_fn.defvjp(forward, backward)
    return apply_fn
