"""Kernels that tests need: they skip without a C++ compiler; with one, a kernel that cannot be used is a failure."""

import pytest

from idrc_jax.kernels import build


def require(kernel):
    """Skip without a compiler; fail where there is one and the kernel does not compile or pass its own test."""
    try:
        build.compiler()
    except FileNotFoundError as error:
        pytest.skip(f"needs a C++ compiler: {error}")
    assert kernel.available(), f"Expected {kernel.__name__} to compile and pass its self-test, got a warning."
