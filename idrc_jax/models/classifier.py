"""The function that everything here certifies: `Classifier`, pure, of the noisy image alone."""

import dataclasses
import functools
import hashlib
import itertools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn
from jax.typing import ArrayLike

from idrc_jax.core import validate
from idrc_jax.models.interchangeable import Interchangeable
from idrc_jax.models.tensors import Description, PyTree

ApplyFn = Callable[[PyTree, jax.Array], jax.Array]

_TRACED_BATCH = 8
_CALLBACKS = ("pure_callback", "io_callback", "buffer_callback")


@dataclass(frozen=True)
class Classifier(Interchangeable):
    """A base classifier: a pure function of the noisy image alone.

    Attributes:
      apply_fn: (params, images float32 [N, H, W, C]) -> logits float32 [N, classes]; normalisation inside.
      params: the pytree that `apply_fn` takes.
      classes: number of classes, K >= 2. A network of one logit z, whose sigmoid is a probability, is to give the two
        logits [0, z].
      image_shape: (H, W, C) it was made for.
      dtype: compute type, part of what is certified.
      kernel: what runs the network: "xla", or a kernel of `idrc_jax.kernels`, with the same logits within rounding.
      sha256: of the tensors; empty for a network that was not loaded from a file, and to be emptied where `params` or
        `apply_fn` are replaced: results then name it by its `fingerprint`.
      description: what rebuilds the network, and how it was trained.
      router: the network that chooses the noise level under the scheme `routed` (see `routed_by`); else None.
      by_level: the networks that vote under each level of `stepped`, `cascade` and `routed` (see `at_levels`); empty:
        this one.
      alternatives: see `Interchangeable`; given by `with_alternatives`.

    Raises ValueError for fewer than 2 classes or an impossible shape, and when it is first used, with the shapes, for
    an `apply_fn` that gives anything but floats [N, classes].
    """

    apply_fn: ApplyFn
    params: PyTree = field(repr=False)
    classes: int
    image_shape: tuple[int, int, int]
    dtype: str = "float32"
    kernel: str = "xla"
    sha256: str = ""
    description: Description = field(default_factory=dict)
    router: "Classifier | None" = field(default=None, repr=False)
    by_level: "tuple[Classifier, ...]" = field(default=(), repr=False)

    def __post_init__(self) -> None:
        if len(self.image_shape) != 3:
            raise ValueError(f"Expected image_shape (H, W, C), got {self.image_shape}.")
        shape = tuple(validate.count("image_shape", side, 1) for side in self.image_shape)
        object.__setattr__(self, "image_shape", shape)
        object.__setattr__(self, "classes", validate.classes("a classifier", self.classes))

    def __repr__(self) -> str:
        described = self.description
        what = [described.get("module") or described.get("factory") or described.get("architecture", "a function")]
        if "depth" in described:
            what[0] += f"-{described['depth']}"
        if "members" in described:
            what[0] += f" of {len(described['members'])}"
        height, width, channels = self.image_shape
        what += [f"{self.classes} classes", f"images {height}x{width}x{channels}", self.dtype, f"kernel {self.kernel}"]
        what += [f"{len(self.by_level)} networks, one a level"] * bool(self.by_level)
        return f"Classifier({', '.join(what + [f'sha256 {self.sha256[:8]}'] * bool(self.sha256))})"

    def __call__(self, images: jax.Array) -> jax.Array:
        return self.apply_fn(self.params, images)

    @property
    def _batch(self) -> int:
        """Images of the trace: not as many as classes, so that these cannot stand in the place of those."""
        return _TRACED_BATCH + (self.classes == _TRACED_BATCH)

    @functools.cached_property
    def _traced(self) -> ClosedJaxpr:
        images = jax.ShapeDtypeStruct((self._batch, *self.image_shape), jnp.float32)
        jaxpr, logits = jax.make_jaxpr(self.apply_fn, return_shape=True)(self.params, images)
        check_logits(logits, self._batch, self.classes)
        return jaxpr

    def check(self) -> None:
        """ValueError unless `apply_fn` gives logits of its classes; traces the network once."""
        _ = self._traced

    def routed_by(self, router: "Classifier") -> "Classifier":
        """The same classifier, and its implementations, with a router: a network of the same images, whose answers
        choose among the levels of a scheme `routed`.

        Raises ValueError for a router of other images, or one that has a router or networks by level itself.
        """
        if router.image_shape != self.image_shape or router.router is not None or router.by_level:
            raise ValueError(
                f"Expected a router of images {self.image_shape}, as its classifier takes, without a router of its "
                f"own, got one of {router.image_shape}."
            )
        first, *others = (dataclasses.replace(one, router=router) for one in self.implementations)
        return first.with_alternatives(*others)

    def at_levels(self, networks: "Iterable[Classifier]") -> "Classifier":
        """The same classifier, and its implementations, with one network for each level of a `cascade` or
        `routed`, or for each bin of `stepped`.

        The classifier itself is what answers without noise: by convention the network of a cascade's last level.

        Args:
          networks: that vote under each level, in the order of the scheme's `levels`; at least one.

        Raises ValueError for networks of other images or classes, or with a router or networks by level of their own.
        """
        networks = tuple(networks)
        if not networks:
            raise ValueError("Expected a network for each level, got none.")
        known: list[str] = list(self.description.get("class_names", ()))
        for number, one in enumerate(networks, 1):
            if one.router is not None or one.by_level:
                raise ValueError(f"Expected single networks by level, got more than one as number {number}.")
            for name in ("image_shape", "classes"):
                mine, other = getattr(self, name), getattr(one, name)
                if mine != other:
                    raise ValueError(f"Expected networks by level of {name} {mine}, got {other} as number {number}.")
            names = list(one.description.get("class_names", ()))
            if known and names and known != names:
                raise ValueError(
                    f"Expected networks by level of the classes {', '.join(known[:5])} ..., got "
                    f"{', '.join(names[:5])} ... as number {number}."
                )
            known = known or names
        first, *others = (dataclasses.replace(one, by_level=networks) for one in self.implementations)
        return first.with_alternatives(*others)

    @property
    def networks(self) -> "tuple[Classifier, ...]":
        """Itself, its router and its networks by level, as far as it has them."""
        return (self, *((self.router,) if self.router else ()), *self.by_level)

    @functools.cached_property
    def structure(self) -> str:
        """SHA-256 of what is computed, whatever the values of the params; traces the network once."""
        leaves = jax.tree_util.tree_leaves_with_path(self.params)
        shapes = [f"{jax.tree_util.keystr(path)} {jnp.shape(leaf)} {jnp.result_type(leaf)}" for path, leaf in leaves]
        text = "\n".join([_text(self._traced.jaxpr), *shapes, self.dtype])
        return hashlib.sha256(text.encode()).hexdigest()

    @functools.cached_property
    def largest_intermediate(self) -> int:
        """Bytes a sample of the largest array that the network computes; traces it once."""
        batch = self._batch

        def made(jaxpr: Jaxpr) -> Iterator[Any]:
            for equation in jaxpr.eqns:
                yield from (variable.aval for variable in equation.outvars)
                yield from itertools.chain.from_iterable(made(one) for one, _ in _within(equation))

        results = made(self._traced.jaxpr)
        sizes = (one.size * one.dtype.itemsize for one in results if getattr(one, "shape", ())[:1] == (batch,))
        return max(4 * batch * math.prod(self.image_shape), *sizes) // batch


def check_logits(logits: Any, images: int, classes: int) -> jax.Array:
    """Return the logits of a batch if they are floats [images, classes], else raise ValueError.

    A wrong shape must not pass: indexing and broadcasting would make votes of it.
    """
    shape = getattr(logits, "shape", None)
    if shape == (images, classes) and jnp.issubdtype(logits.dtype, jnp.floating):
        return logits
    got = type(logits).__name__ if shape is None else f"{logits.dtype} {list(shape)}"
    single = " A single logit z is to be given as the two logits [0, z]." if shape in ((images,), (images, 1)) else ""
    raise ValueError(
        f"Expected apply_fn to give float logits [{images}, {classes}] for {images} images of {classes} classes, got "
        f"{got}.{single}"
    )


def fingerprint(classifier: Classifier) -> str:
    """Compute the SHA-256 of the function itself: its jaxpr with all constants, and its params.

    It is that of the plainest implementation. Another release of JAX may write the same function differently; then it
    counts as another one. What Python computes in a callback cannot be read: there the classifier's `sha256` counts.

    Raises ValueError for a network with a callback and no `sha256`.
    """
    digest = hashlib.sha256()

    def add(leaf: ArrayLike) -> None:
        if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            digest.update(str(jax.random.key_impl(leaf)).encode())
            leaf = jax.random.key_data(leaf)
        value = np.ascontiguousarray(leaf)
        digest.update(f"{value.shape} {value.dtype}".encode())
        digest.update(value.tobytes())

    def add_constants(jaxpr: Jaxpr, constants: Iterable[ArrayLike]) -> None:
        for constant in constants:
            add(constant)
        for equation in jaxpr.eqns:
            if equation.primitive.name in _CALLBACKS:
                add_named(equation.primitive.name)
            for one in (*equation.invars, *jax.tree.leaves(list(equation.params.values()))):
                value = getattr(one, "val", one)  # of literals, and of arrays as attributes of foreign functions
                if isinstance(value, np.ndarray | jax.Array) and np.ndim(value):  # others are in the text whole
                    add(value)
            for inner, held in _within(equation):
                add_constants(inner, held)

    def add_named(callback: str) -> None:
        if not classifier.sha256:
            raise ValueError(
                f"Expected a network that JAX computes, got one that calls Python ({callback}), whose weights nothing "
                "can read: name them and the code by the Classifier's sha256."
            )
        digest.update(classifier.sha256.encode())

    classifier = classifier.reference
    images = jax.ShapeDtypeStruct((2, *classifier.image_shape), jnp.float32)
    closed = jax.make_jaxpr(classifier.apply_fn)(classifier.params, images)
    digest.update(_text(closed.jaxpr).encode())
    add_constants(closed.jaxpr, closed.consts)
    for path, leaf in jax.tree_util.tree_leaves_with_path(classifier.params):
        digest.update(jax.tree_util.keystr(path).encode())
        add(leaf)
    return digest.hexdigest()


def _within(equation: JaxprEqn) -> Iterator[tuple[Jaxpr, Sequence[Any]]]:
    """The functions in an equation's params, in tuples of them too, and the constants that each holds."""
    values = jax.tree.leaves(list(equation.params.values()), is_leaf=lambda one: hasattr(one, "eqns"))
    return ((getattr(one, "jaxpr", one), getattr(one, "consts", ())) for one in values if hasattr(one, "eqns"))


def _text(jaxpr: Jaxpr) -> str:
    """A jaxpr as text, the same in every process."""
    return re.sub(r" at 0x[0-9a-f]+", "", str(jaxpr))
