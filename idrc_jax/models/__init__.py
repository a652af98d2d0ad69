"""Network architectures, as Flax NNX modules."""
