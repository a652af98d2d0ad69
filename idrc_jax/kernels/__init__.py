"""C++ for CPUs, compiled on the user's machine, each with a twin in plain JAX of the same results.

Imports core. Without a compiler, or where a library fails its own test, nothing here is available and XLA runs.
"""
