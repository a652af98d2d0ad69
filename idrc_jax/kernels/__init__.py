"""C++ for CPUs, compiled on the user's machine, and Pallas for GPUs, each with a twin in plain JAX of the same results.

Imports core. Without a compiler, or where a kernel fails its own test, nothing here is available and XLA runs.
"""
