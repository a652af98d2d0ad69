"""The hot core: draw noise, classify, count; from which keys, on which devices, in which chunks.

Imports core, certificates, kernels and models.
"""

from idrc_jax.sampling.execution import Execution, check_chunk, default_chunk, unmeasured
from idrc_jax.sampling.votes import (
    SLOTS,
    ApplyFn,
    check_images,
    check_indices,
    count_votes,
    dispatch_votes,
    memory_estimate,
    sample_votes,
    slot_votes,
)

__all__ = [
    "SLOTS",
    "ApplyFn",
    "Execution",
    "check_chunk",
    "check_images",
    "check_indices",
    "count_votes",
    "default_chunk",
    "dispatch_votes",
    "memory_estimate",
    "sample_votes",
    "slot_votes",
    "unmeasured",
]
