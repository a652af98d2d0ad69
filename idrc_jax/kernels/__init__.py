"""Kernels written for one kind of hardware, each with a plain-JAX twin that runs where the kernel cannot."""
