"""The search for an image x' near x at which the smoothed classifier, under the noise of x', decides otherwise.

Attacks move a batch of images, each inside a ball of its own in the norm of the radii: by gradients through noise
samples and through the noise level (`Attacker`), along the direction in which the level changes most (`law_moves`) and
on from there (`move_across`), or anywhere (`random_moves`). What they return is a guess; whether it is a break, votes
say that no attack has seen (`search`).

Loops over steps run on the host: XLA runs input gradients inside device loops a dozen times slower on the CPU.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from idrc_jax.audit.balls import TINY, distances, length, per_image, projected, steepest
from idrc_jax.certificates import schemes
from idrc_jax.certificates.schemes import Routed, Scheme, Stepped, host_levels
from idrc_jax.core.normal_thresholds import GRID
from idrc_jax.core.validate import SettingError
from idrc_jax.models import Classifier, check_logits
from idrc_jax.sampling import ApplyFn, devices, noise_laws, random_keys

_PIXEL_AXES = (-3, -2, -1)


class Targets(NamedTuple):
    """What is attacked.

    Attributes:
      images: float32 [T, H, W, C], the images x.
      indices: [T] data-set indices, which name the noise.
      classes: int [T], the class that is to lose at x'.
      budgets: float64 [T]: x' stays nearer to x than this (in `norm`, pixel units); it may leave [0, 1].
      exact: whether x and x' are on the grid of 8-bit images, at which exact noise has its law (x' beyond [0, 1], too).
      norm: of the budgets.
    """

    images: np.ndarray
    indices: np.ndarray
    classes: np.ndarray
    budgets: np.ndarray
    exact: bool = False
    norm: str = "l2"


def within(targets: Targets, moved: np.ndarray, *, stretch: bool = False) -> np.ndarray:
    """The points [T, H, W, C] drawn towards x until they are inside the balls: float32 images x'.

    Args:
      stretch: bring points that are inside out to the edge, too.

    Guarantee: `distances(images, x') < budgets`, as computed in float64 from the float32 images; on the grid
    `grid_distances`.
    """
    shifts = np.asarray(moved, np.float64) - targets.images
    lengths = np.maximum(length(shifts, targets.norm), TINY)
    slack = 1e-5
    while True:
        factors = targets.budgets * max(1 - slack, 0.0) / lengths
        factors = factors if stretch else np.minimum(factors, 1.0)
        points = (targets.images + per_image(factors) * shifts).astype(np.float32)
        reached = distances(targets.images, points, targets.norm)
        if np.all(reached < targets.budgets):
            break
        slack *= 2
    if not targets.exact:
        return points
    most = targets.budgets if stretch else np.minimum(targets.budgets, reached * (1 + 1e-6))
    return on_grid(targets.images, points, most, targets.norm)


def on_grid(images: np.ndarray, moved: np.ndarray, most: np.ndarray, norm: str = "l2") -> np.ndarray:
    """The farthest 8-bit images on the ways from images to points that are nearer than `most`: float32.

    The shift is stretched until its rounded values are as long as that; places where a value is rounded up differ a
    little from value to value, so that equal values do not all change at once.

    Args:
      images, moved: [..., H, W, C], the first on the grid.
      most: [...], > 0, in `norm`.
    """
    grey, shifts = np.rint(images * float(GRID)), (np.asarray(moved, np.float64) - images) * GRID
    places = 0.4 + 0.2 * np.random.default_rng(0).random(shifts.shape[-3:])

    def rounded(stretch: np.ndarray) -> np.ndarray:
        return np.sign(shifts) * np.floor(stretch[..., None, None, None] * np.abs(shifts) + places)

    largest = np.max(np.abs(shifts), axis=_PIXEL_AXES)
    low, high = np.zeros(most.shape), (most * GRID + 1) / np.where(largest > 0, largest, 1.0)  # too far for one value
    for _ in range(30):
        middle = (low + high) / 2
        inside = length(rounded(middle), norm) / GRID < most
        low, high = np.where(inside, middle, low), np.where(inside, high, middle)
    return ((grey + rounded(low)) / GRID).astype(np.float32)


def law_directions(scheme: Scheme, images: np.ndarray, norm: str = "l2") -> np.ndarray:
    """Vectors of length 1 in a norm along which the images' statistics grow fastest: float64 [T, H, W, C].

    In l2 sign(x) / sqrt(d) for the mean of |x|, x / ||x|| for the norm; 0 under a scheme whose statistic is constant.
    Values of 0, at which |x| has no derivative, count as positive.
    """
    gradients = np.asarray(_statistic_gradients(jnp.asarray(images + np.float32(1e-6)), scheme=scheme), np.float64)
    gradients = np.nan_to_num(gradients, posinf=0.0, neginf=0.0)
    return np.asarray(steepest(gradients, norm), np.float64)


@partial(jax.jit, static_argnames="scheme")
def _statistic_gradients(images: jax.Array, *, scheme: Scheme) -> jax.Array:
    return jax.grad(lambda x: jnp.sum(scheme.statistic(x)))(images)


def law_moves(scheme: Scheme, targets: Targets, directions: np.ndarray) -> np.ndarray:
    """x' that lower and that raise the statistic as far as the budget goes: float32 [2, T, H, W, C].

    Under `stepped` they go just past the nearest edge instead, if there is one within the budget, but not on the grid.

    Args:
      directions: `law_directions` of the images.
    """
    moves = []
    for way in (-directions, directions):
        lengths = targets.budgets
        if isinstance(scheme, Stepped) and not targets.exact:  # on the grid no edge is met so finely
            lengths = _to_edge(scheme, targets, way)
        moves.append(within(targets, targets.images + per_image(lengths) * way))
    return np.stack(moves)


def move_across(targets: Targets, moved: np.ndarray, aim: np.ndarray) -> np.ndarray:
    """Points x' moved on at right angles to x' - x, towards `aim`, as far as the budgets go: float32 [T, H, W, C].

    From just past an edge of `stepped` by mean |x| they stay past it while no value changes its sign. The nearest break
    can be there though gradients lead back over the edge, which they do not see.

    Args:
      moved: [T, H, W, C], inside the balls.
      aim: [T, H, W, C].
    """
    shifts, aims = np.asarray(moved, np.float64) - targets.images, np.asarray(aim, np.float64) - targets.images
    lengths = length(shifts, targets.norm)
    along = shifts / per_image(np.maximum(length(shifts), TINY))
    across = aims - per_image(np.sum(aims * along, axis=_PIXEL_AXES)) * along
    # At right angles squares of l2 lengths add up; in other norms lengths add up at most.
    power = 2 if targets.norm == "l2" else 1
    rest = np.maximum(targets.budgets**power - lengths**power, 0) ** (1 / power)
    return within(targets, moved + per_image(rest / np.maximum(length(across, targets.norm), TINY)) * across)


def _to_edge(scheme: Stepped, targets: Targets, way: np.ndarray) -> np.ndarray:
    """How far to go for another bin, or the budget."""
    here = scheme.bin_of(host_levels(scheme, targets.images)[0])
    low, high = np.zeros(len(here)), targets.budgets
    for _ in range(30):
        middle = (low + high) / 2
        changed = scheme.bin_of(host_levels(scheme, targets.images + per_image(middle) * way)[0]) != here
        low, high = np.where(changed, low, middle), np.where(changed, middle, high)
    return np.minimum(high * (1 + 1e-4), targets.budgets)


def random_moves(targets: Targets, key: jax.Array, numbers: np.ndarray) -> np.ndarray:
    """x' at the edges of the balls in random directions, the control: float32 [T, H, W, C].

    Args:
      key: a typed key of a stage of its own.
      numbers: uint32 [T], which direction of each image's.
    """
    which = (jnp.asarray(targets.indices, jnp.uint32), jnp.asarray(numbers, jnp.uint32))
    draws = _normals(key, *which, shape=targets.images.shape[1:])
    return within(targets, targets.images + np.asarray(draws, np.float64), stretch=True)


@partial(jax.jit, static_argnames="shape")
def _normals(key: jax.Array, indices: jax.Array, numbers: jax.Array, *, shape: noise_laws.Shape) -> jax.Array:
    def one(index: jax.Array, number: jax.Array) -> jax.Array:
        return noise_laws.draw("normal", random_keys.sample(key, index, number), jnp.float32(1), shape)

    return jax.vmap(one)(indices, numbers)


@dataclass(frozen=True, eq=False)
class Attacker:
    """Gradient attacks on a smoothed classifier, of a batch of targets at once on all devices.

    They lower the margin of the class over its strongest rival, in the logarithm of the mean probability over noise
    samples (Salman et al. 2019): the mean softmax, or the share of votes whose gradient is taken to be the softmax's
    (`straight_through`). Every step draws fresh samples, so that x' is fitted to the law and not to a few draws. Where
    each level has a network, a step's samples go to them in turn; where each bin of `stepped` has one, to its own.

    Attributes:
      classifier, scheme: what is attacked.
      key: a typed key of a stage of its own.
      steps, samples: gradient steps of an attack; noise samples of a step, one at least for each level's network.
      mesh: the devices, to which the targets are dealt; their number must be a multiple of the devices'.
    """

    classifier: Classifier
    scheme: Scheme
    key: jax.Array
    steps: int
    samples: int
    mesh: Mesh

    def __post_init__(self) -> None:
        least = 0 if isinstance(self.scheme, Stepped) else len(self.classifier.by_level)
        if self.samples < least:
            raise SettingError(f"Expected samples >= {least}, networks by level, got {self.samples}.", "samples")

    @property
    def draws(self) -> int:
        """Noise samples of one attack on one image."""
        return self.steps * self.samples

    def pgd(
        self, targets: Targets, start: np.ndarray, *, first: np.ndarray, straight_through: bool = False
    ) -> np.ndarray:
        """Projected gradient descent (Madry et al. 2018) inside the ball, with steepest steps of 2.5 * budget / steps.

        Args:
          start: [T, H, W, C], where it begins.
          first: uint32 [T], number of the first noise sample of each image; `draws` of them are used.

        Returns:
          float32 [T, H, W, C], `within` the balls.
        """
        images, moved, budgets = self._deal(targets.images, start, targets.budgets)
        for step in range(self.steps):
            directions, _ = self._directions(targets, moved, first + step * self.samples, straight_through)
            moved = _pgd_step(images, moved, directions, budgets, 2.5 / self.steps, norm=targets.norm)
        return within(targets, np.asarray(moved))

    def minimal_norm(self, targets: Targets, *, first: np.ndarray) -> np.ndarray:
        """Decoupled direction and norm (after Rony et al. 2019): x' on the decision boundary, near x.

        The distance shrinks while the class loses the votes of a step and grows, up to the budget, while it wins; both
        by less and less, as do the steps.

        Arguments and result as of `pgd`.
        """
        images, moved, budgets = self._deal(targets.images, targets.images, targets.budgets)
        norms = budgets
        for step in range(self.steps):
            rate = (1 + math.cos(math.pi * step / self.steps)) / 2
            directions, lost = self._directions(targets, moved, first + step * self.samples, False)
            moved, norms = _norm_step(images, moved, directions, lost, norms, budgets, rate, norm=targets.norm)
        return within(targets, np.asarray(moved))

    def _deal(self, *arrays: np.ndarray) -> list[jax.Array]:
        rows = devices.split_first_axis(self.mesh)
        return [jax.device_put(np.asarray(array, np.float32), rows) for array in arrays]

    def _directions(
        self, targets: Targets, moved: jax.Array, first: np.ndarray, straight_through: bool
    ) -> tuple[jax.Array, jax.Array]:
        networks = self.classifier.by_level or (self.classifier,)
        return margin_directions(
            tuple(one.params for one in networks),
            self.key,
            moved,
            jnp.asarray(targets.indices, jnp.uint32),
            jnp.asarray(targets.classes, jnp.int32),
            jnp.asarray(first, jnp.uint32),
            apply_fns=tuple(one.apply_fn for one in networks),
            number=self.classifier.classes,
            scheme=self.scheme,
            samples=self.samples,
            straight_through=straight_through,
            mesh=self.mesh,
        )


@partial(jax.jit, static_argnames=("apply_fns", "number", "scheme", "samples", "straight_through", "mesh"))
def margin_directions(
    params: tuple[Any, ...],
    key: jax.Array,
    moved: jax.Array,
    indices: jax.Array,
    classes: jax.Array,
    first: jax.Array,
    *,
    apply_fns: tuple[ApplyFn, ...],
    number: int,
    scheme: Scheme,
    samples: int,
    straight_through: bool,
    mesh: Mesh,
) -> tuple[jax.Array, jax.Array]:
    """Unit vectors in which the margins fall fastest [T, H, W, C], and whether the class loses the votes, bool [T].

    Of one network, or of one for each level, each with its params.
    """

    def on_one_device(
        params: tuple[Any, ...], key: jax.Array, moved: jax.Array, *rows: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        def total(moved: jax.Array) -> tuple[jax.Array, jax.Array]:
            indices, classes, first = rows
            logits = _noisy_logits(apply_fns, number, scheme, params, key, moved, indices, first, samples)
            margins, lost = _margins(logits, classes, straight_through=straight_through)
            return jnp.sum(margins), lost

        gradients, lost = jax.grad(total, has_aux=True)(moved)
        return -_unit(jnp.where(jnp.isfinite(gradients), gradients, 0)), lost

    rows = P(devices.AXIS)
    split = jax.shard_map(
        on_one_device, mesh=mesh, in_specs=(P(), P(), *[rows] * 4), out_specs=(rows, rows), check_vma=False
    )
    return split(params, key, moved, indices, classes, first)


def _noisy_logits(
    apply_fns: tuple[ApplyFn, ...],
    number: int,
    scheme: Scheme,
    params: tuple[Any, ...],
    key: jax.Array,
    moved: jax.Array,
    indices: jax.Array,
    first: jax.Array,
    samples: int,
) -> jax.Array:
    """Logits [T, samples, classes], in any order of the samples, classes being `number`, under each moved image's own
    noise, its levels in turn, of `routed` those that the router chooses from."""
    shape, count = moved.shape[1:], len(apply_fns)
    levels = schemes.scales(scheme, scheme.statistic(moved))[..., int(isinstance(scheme, Routed)) :]

    def noisy(image: jax.Array, index: jax.Array, scale: jax.Array, number: jax.Array) -> jax.Array:
        return image + noise_laws.at(scheme.law, random_keys.sample(key, index, number), scale, image)

    numbers = first[:, None] + jnp.arange(samples, dtype=jnp.uint32)[None]
    # A network sees the same places of every image's samples, so that one program serves all images.
    turns = numbers if count == 1 else jnp.broadcast_to(jnp.arange(samples), numbers.shape)
    scales = jnp.take_along_axis(levels, (turns % levels.shape[-1]).astype(jnp.int32), axis=1)
    every_sample = jax.vmap(noisy, in_axes=(None, None, 0, 0))
    copies = jax.vmap(every_sample)(moved, indices, scales, numbers)

    def logits(apply_fn: ApplyFn, params: Any, copies: jax.Array) -> jax.Array:
        found = check_logits(apply_fn(params, copies.reshape(-1, *shape)), len(copies) * copies.shape[1], number)
        return found.reshape(len(copies), -1, number)

    if isinstance(scheme, Stepped) and count > 1:
        networks = [partial(logits, apply_fns[i], params[i]) for i in range(count)]
        of_bins = (scheme.bin_of(scheme.statistic(moved)), copies)
        return jax.lax.map(lambda one: jax.lax.switch(one[0], networks, one[1][None])[0], of_bins)
    return jnp.concatenate([logits(apply_fns[i], params[i], copies[:, i::count]) for i in range(count)], axis=1)


def _margins(logits: jax.Array, classes: jax.Array, *, straight_through: bool) -> tuple[jax.Array, jax.Array]:
    """log of the class's mean probability less that of its strongest rival, [T]; whether it loses the votes, [T]."""
    samples = logits.shape[1]
    own = jax.nn.one_hot(classes, logits.shape[-1], dtype=bool)
    votes = jnp.mean(jax.nn.one_hot(jnp.argmax(logits, axis=-1), logits.shape[-1]), axis=1)
    log_p = jax.nn.log_softmax(logits)
    if straight_through:
        soft = jnp.mean(jnp.exp(log_p), axis=1)
        log_mean = jnp.log(votes + soft - jax.lax.stop_gradient(soft) + 1 / samples)
    else:
        log_mean = jax.nn.logsumexp(log_p, axis=1) - math.log(samples)

    def lead(of: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(own, of, 0), axis=-1) - jnp.max(jnp.where(own, -jnp.inf, of), axis=-1)

    return lead(log_mean), lead(votes) < 0


@partial(jax.jit, static_argnames="norm")
def _pgd_step(
    images: jax.Array, moved: jax.Array, directions: jax.Array, budgets: jax.Array, rate: float, *, norm: str
) -> jax.Array:
    return images + projected(moved + per_image(rate * budgets) * steepest(directions, norm) - images, budgets, norm)


@partial(jax.jit, static_argnames="norm")
def _norm_step(
    images: jax.Array,
    moved: jax.Array,
    directions: jax.Array,
    lost: jax.Array,
    norms: jax.Array,
    budgets: jax.Array,
    rate: float,
    *,
    norm: str,
) -> tuple[jax.Array, jax.Array]:
    change = 0.02 + 0.28 * rate
    norms = jnp.where(lost, norms * (1 - change), jnp.minimum(norms * (1 + change), budgets))
    shifts = moved - images + per_image((0.05 + 0.95 * rate) * norms) * steepest(directions, norm)
    return images + per_image(norms / jnp.maximum(length(shifts, norm), TINY)) * shifts, norms


def _unit(images: jax.Array) -> jax.Array:
    return images / per_image(jnp.maximum(length(images), TINY))
