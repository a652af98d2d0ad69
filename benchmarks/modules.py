"""Networks of the field as PyTorch modules, from the classes of transformers and diffusers; nothing is downloaded.

Weights are random and the same in every process. Speed does not depend on them, but every one of them acts, so that
logits which agree speak for the whole network. No JAX is imported here.
"""

import torch
from safetensors.torch import load_file
from torch import nn

from benchmarks.networks import Description

_BASIC = {"layer_type": "basic", "hidden_sizes": [64, 128, 256, 512], "depths": [2, 2, 2, 2]}
_CONFIGS = {
    "ResNet-18": ("ResNet", _BASIC),
    "ResNet-50": ("ResNet", {}),
    "ConvNeXt-T": ("ConvNext", {"layer_scale_init_value": 0.1}),
    "ViT-B/16": ("ViT", {}),
}


def build(description: Description) -> nn.Module:
    """A module of transformers, in inference mode: images [N, 3, H, W], normalised, -> an object with `logits`."""
    import transformers

    family, settings = _CONFIGS[description["module"]]
    config = getattr(transformers, f"{family}Config")(num_labels=description["classes"], **settings)
    torch.manual_seed(0)
    module = getattr(transformers, f"{family}ForImageClassification")(config)
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.weight.uniform_(0.5, 1.0)
                part.bias.normal_(0, 0.2)
                part.running_mean.normal_(0, 0.2)  # pyright: ignore
                part.running_var.uniform_(0.5, 1.5)  # pyright: ignore
    return module.eval()


class Normalised(nn.Module):
    """Images [N, C, H, W] in [0, 1] -> float32 logits of a module of `build`, whatever type it computes in."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, description: Description) -> None:
        super().__init__()
        self.module = build(description)
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(description[name])[:, None, None], persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        dtype = next(self.module.parameters()).dtype
        return self.module(((images - self.mean) / self.std).to(dtype)).logits.float()


class Denoised(nn.Module):
    """A classifier behind a denoising U-Net: one-shot denoising of images [N, C, H, W] at a fixed noise level.

    Args:
      description: with what `ours.Host.write_denoised` adds to it.
      classifier: images in [0, 1] -> logits.
    """

    def __init__(self, description: Description, classifier: nn.Module) -> None:
        super().__init__()
        from diffusers import UNet2DModel

        self.unet = UNet2DModel(**description["unet"])
        self.unet.load_state_dict(load_file(description["unet_weights"]))
        self.classifier = classifier
        self.register_buffer("time", torch.tensor(description["time"]), persistent=False)
        self.signal: float = description["signal"]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.signal**0.5 * (2 * images - 1)
        noise = self.unet(x.to(self.unet.dtype), self.time).sample.float()
        clean = (x - (1 - self.signal) ** 0.5 * noise) / self.signal**0.5
        return self.classifier((clean.clamp(-1, 1) + 1) / 2)
