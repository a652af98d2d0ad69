"""Attention by cuDNN's fused kernel: scores do not leave the GPU's chip. Its twin is XLA's of the same function."""

import logging
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np

_DIFFERENCE = 0.02  # of the largest result: what bfloat16 may cost


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
        found = np.asarray(jax.jit(attend)(*arrays).astype(jnp.float32))
        with jax.default_matmul_precision("highest"):
            exact = jax.jit(jax.nn.dot_product_attention)(*(one.astype(jnp.float32) for one in arrays))
        wanted = np.asarray(exact)
        difference = np.abs(found - wanted).max() / np.abs(wanted).max()  # NumPy's maximum keeps what is no number
        if not difference <= _DIFFERENCE:
            raise RuntimeError(f"expected results within {_DIFFERENCE} of XLA's, got {difference:.2g}")
    except Exception as error:  # JAX and cuDNN raise several kinds
        said = (str(error) or type(error).__name__).splitlines()[0]
        logging.getLogger("idrc_jax").warning("No fused attention (%s): XLA does its work.", said)
        return False
    return True
