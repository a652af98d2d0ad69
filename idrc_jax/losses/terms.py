"""What losses are made of: passes of noisy images, cross-entropies, divergences between probabilities.

Rows of an image's m noises lie together: `by_image` turns [N * m, ...] into [N, m, ...].
"""

import math

import jax
import jax.numpy as jnp
import optax

from idrc_jax.core import validate
from idrc_jax.core.validate import SettingError
from idrc_jax.losses.loss import Batch, Loss, Network, Outcome
from idrc_jax.models import Tensors


def copies(values: jax.Array, noises: int) -> jax.Array:
    """Repeat each row m times: [N, ...] -> [N * m, ...]."""
    return jnp.repeat(values, noises, axis=0)


def by_image(rows: jax.Array, noises: int) -> jax.Array:
    """[N * m, ...] -> [N, m, ...]."""
    return rows.reshape(-1, noises, *rows.shape[1:])


def noisy(batch: Batch, images: jax.Array | None = None, noise: jax.Array | None = None) -> jax.Array:
    """Add the batch's noise, or another, to its images, or to others in their place: [N * m, H, W, C]."""
    images = batch.images if images is None else images
    return copies(images, batch.noises) + (batch.noise if noise is None else noise)


def classify(
    loss: Loss, network: Network, params: Tensors, stats: Tensors, batch: Batch, images: jax.Array | None = None
) -> tuple[jax.Array, jax.Array, Outcome]:
    """Classify noisy copies of the batch's images, or of others in their place, in training.

    Returns their logits [N * m, classes], their cross-entropies [N * m], and the outcome.
    """
    logits, stats = network.train(params, stats, noisy(batch, images))
    labels = copies(batch.labels, batch.noises)
    return logits, cross_entropy(logits, labels, loss.label_smoothing), Outcome(stats, accuracy(logits, labels))


def disagreement(logits: jax.Array, noises: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """What an image's copies say together, and how far each is from that.

    Returns log of their mean probabilities [N, classes], the divergence of each copy from them, KL(mean || copy),
    [N, m], and their entropy [N].
    """
    log_p = by_image(jax.nn.log_softmax(logits), noises)
    mean = log_mean(log_p)
    p = jnp.exp(mean)
    return mean, jnp.sum(p[:, None] * (mean[:, None] - log_p), axis=-1), -jnp.sum(p * mean, axis=-1)


def check_disagreement(loss: Loss, *, weight: float, entropy: float) -> None:
    """SettingError unless a loss can weigh the divergence and the entropy of `disagreement` by these."""
    validate.at_least("weight", weight, 0)
    validate.at_least("entropy", entropy, 0)
    if loss.noises < 2:
        raise SettingError(
            f"Expected noises >= 2 for the loss {loss.name}, as one copy agrees with itself, got {loss.noises}.",
            "noises",
        )


def accuracy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Share of rows classified as labelled, float32 []."""
    return jnp.mean(jnp.argmax(logits, -1) == labels)


def cross_entropy(logits: jax.Array, labels: jax.Array, smoothing: float) -> jax.Array:
    """Cross-entropy of each row [R, classes] to its label, smoothed: [R]."""
    if not smoothing:
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return optax.softmax_cross_entropy(logits, _smoothed(labels, logits.shape[-1], smoothing))


def negative_log(log_p: jax.Array, labels: jax.Array, smoothing: float) -> jax.Array:
    """Cross-entropy of log-probabilities [N, classes] to labels, smoothed: [N]."""
    return -jnp.sum(_smoothed(labels, log_p.shape[-1], smoothing) * log_p, axis=-1)


def _smoothed(labels: jax.Array, classes: int, smoothing: float) -> jax.Array:
    return optax.smooth_labels(jax.nn.one_hot(labels, classes), smoothing)


def log_mean(log_p: jax.Array) -> jax.Array:
    """Logarithm of the mean probabilities over the noises: [N, m, classes] -> [N, classes]."""
    return jax.nn.logsumexp(log_p, axis=1) - math.log(log_p.shape[1])


def divergence(p: jax.Array, log_q: jax.Array) -> jax.Array:
    """KL(p || q) of probabilities p, of which some may be 0, and log q, over the last axis."""
    log_p = jnp.log(jnp.where(p > 0, p, 1.0))
    return jnp.sum(p * (log_p - log_q), axis=-1)
