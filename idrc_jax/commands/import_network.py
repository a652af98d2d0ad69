"""idrc-import: networks of PyTorch to ours."""

import sys
from pathlib import Path

from idrc_jax import models
from idrc_jax.core import command_line, files
from idrc_jax.interop import layouts
from idrc_jax.interop.importing import import_network
from idrc_jax.sampling import devices


def main() -> None:
    """Import a PyTorch checkpoint, to be certified by --config.model.weights=DIR/weights.safetensors."""
    with command_line.one_line_errors(), devices.known_platforms():
        parser = command_line.Parser("idrc-import", main.__doc__)
        parser.add_argument(
            "checkpoint", type=command_line.path, help="a file, or the folder of a ViT or of a diffusers U-Net"
        )
        parser.add_argument("--arch", default="", help="cifar_resnetN or resnet50, if the file does not say")
        parser.add_argument("--classes", type=int, default=0, help="refuse a network of another number of classes")
        parser.add_argument("--size", type=int, default=0, help="height and width of the images, if not the usual ones")
        parser.add_argument("--mean", type=float, nargs="+", default=(), help="of each channel, if the file has none")
        parser.add_argument("--std", type=float, nargs="+", default=(), help="of each channel, if the file has none")
        parser.add_argument("--out", type=command_line.path, required=True, help="folder for weights.safetensors")
        asked = vars(parser.parse_args())
        asked.pop("debug")
        path, out = asked.pop("checkpoint"), asked.pop("out") / models.WEIGHTS
        if out.exists():
            raise ValueError(f"Expected no {out} yet, got one: choose another --out.")
        tensors, description = import_network(path, **asked)
        files.make_folder(out.parent)
        models.save_weights(out, tensors, description)
        print(_summary(tensors, description, out))
    sys.exit(0)


def _summary(tensors: models.Arrays, description: models.Description, out: Path) -> str:
    shape = "x".join(map(str, description["image_shape"]))
    if description["architecture"] == "unet":
        size, diffused = sum(value.size for value in tensors.values()), description["diffusion"]
        schedule = diffused["schedule"]
        return (
            f"Imported unet: {size / 1e6:.1f} million parameters, images {shape}, {schedule['steps']} steps of a "
            f"{schedule['kind']} schedule, predicts {diffused['prediction']}.\nPut it in front of a classifier by "
            f"--config.denoiser.weights={out}"
        )
    return (
        f"Imported {layouts.arch_of(description)}: {description['classes']} classes, images {shape}, "
        f"normalised by {description['normalisation']}.\nCertify it by --config.model.weights={out}"
    )


if __name__ == "__main__":
    main()
