"""Networks of PyTorch, torchvision, transformers and diffusers, to be certified here; weights to be taken there.

Imports core, kernels and models.
"""

from idrc_jax.interop.exporting import export_weights
from idrc_jax.interop.importing import import_network
from idrc_jax.interop.torch_modules import from_torch

__all__ = ["export_weights", "from_torch", "import_network"]
