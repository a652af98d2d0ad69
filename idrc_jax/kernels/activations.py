"""Activations."""

import jax
import jax.numpy as jnp


def relu(x: jax.Array) -> jax.Array:
    """max(x, 0), whose gradient is 0 at 0; what is no number stays none.

    XLA's maximum may lose the latter: on CPUs it makes zeros of it where a sum over pixels follows, and a network of
    zeros answers with confidence.
    """
    return jnp.where(x <= 0, jnp.zeros_like(x), x)
