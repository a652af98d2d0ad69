"""Attention by cuDNN's fused kernel: scores do not leave the GPU's chip. Its twin is XLA's of the same function."""

import logging
from collections.abc import Callable, Sequence
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np

_DIFFERENCE = 0.02  # of the largest result or gradient: what bfloat16 may cost


def attend(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """Mix values by softmax(query * key / sqrt(H)): [N, Q, heads, H] and twice [N, T, heads, H] -> [N, Q, heads, H].

    All are bfloat16 or float16.
    """
    return jax.nn.dot_product_attention(query, key, value, implementation="cudnn")


@cache
def available(channels: int) -> bool:
    """Say whether cuDNN's kernel runs on this GPU and agrees with XLA in float32; one warning says why not.

    Args:
      channels: of a head; cards differ in how many they take.
    """
    if jax.default_backend() != "gpu":
        return False
    random = np.random.default_rng(0)
    arrays = [jnp.asarray(random.normal(size=(2, 197, 3, channels)), jnp.bfloat16) for _ in range(3)]
    try:
        found = _with_gradients(attend, arrays)
        with jax.default_matmul_precision("highest"):
            wanted = _with_gradients(jax.nn.dot_product_attention, [one.astype(jnp.float32) for one in arrays])
        # NumPy's maximum keeps what is no number.
        difference = max(np.abs(a - b).max() / np.abs(b).max() for a, b in zip(found, wanted, strict=True))
        if not difference <= _DIFFERENCE:
            raise RuntimeError(f"expected results and gradients within {_DIFFERENCE} of XLA's, got {difference:.2g}")
    except Exception as error:  # JAX and cuDNN raise several kinds
        said = (str(error) or type(error).__name__).splitlines()[0]
        logging.getLogger("idrc_jax").warning("No fused attention (%s): XLA does its work.", said)
        return False
    return True


def _with_gradients(by: Callable[..., jax.Array], arrays: Sequence[jax.Array]) -> list[np.ndarray]:
    """What a function computes, and the gradients of half of the sum of its squares: float32."""

    def half_square(*arrays: jax.Array) -> tuple[jax.Array, jax.Array]:
        made = by(*arrays)
        return jnp.sum(jnp.square(made.astype(jnp.float32))) / 2, made

    gradients, made = jax.jit(jax.grad(half_square, argnums=(0, 1, 2), has_aux=True))(*arrays)
    return [np.asarray(one.astype(jnp.float32)) for one in (made, *gradients)]
