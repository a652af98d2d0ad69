"""What a denoiser does to noisy images: mean PSNR at each noise level, and a figure of noisy, denoised and clean ones.

Command:   make denoising DATA=FOLDER        (a minute on two cores; ARGS="--denoiser FILE ..." for another one)
"""

import argparse
from pathlib import Path

import jax
import numpy as np
from matplotlib.figure import Figure

from idrc_jax import data, models
from idrc_jax.models.diffusion import Denoiser

ROOT = Path(__file__).parent.parent
WEIGHTS = ROOT / "checkpoints" / "cifar10_denoiser_small.safetensors"
FIGURE = ROOT / "docs" / "images" / "denoised.png"
BATCH = 50


def noisy_copies(images: np.ndarray, sigma: float) -> np.ndarray:
    """The images plus Gaussian noise of a fixed seed, not clipped."""
    return images + sigma * np.random.default_rng(0).normal(size=images.shape).astype(np.float32)


def denoise(denoiser: Denoiser, noisy: np.ndarray, *, sigma: float, steps: int = 1) -> np.ndarray:
    """Denoised images, a batch at a time."""
    run = jax.jit(lambda params, batch: denoiser.denoise(params, batch, sigma=sigma, steps=steps))
    denoiser.check(sigma, steps)
    batches = [noisy[start : start + BATCH] for start in range(0, len(noisy), BATCH)]
    return np.concatenate([np.asarray(run(denoiser.params, batch)) for batch in batches])


def psnr(images: np.ndarray, clean: np.ndarray) -> float:
    """Mean over the images, in dB."""
    return float(np.mean(-10 * np.log10(np.mean(np.square(np.clip(images, 0, 1) - clean), axis=(1, 2, 3)))))


def draw(rows: list[tuple[str, np.ndarray]], path: Path) -> None:
    """A row of images for each pair of name and images in [0, 1]."""
    count = len(rows[0][1])
    figure = Figure(figsize=(count * 0.8 + 1.2, len(rows) * 0.8), layout="constrained")
    grid = figure.subplots(len(rows), count)
    for row, (name, images) in zip(grid, rows, strict=True):
        for axes, image in zip(row, images, strict=True):
            axes.imshow(np.clip(image, 0, 1), interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks([])
        row[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
    figure.savefig(path, dpi=150)


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("data", help="folder with CIFAR-10's binary version")
    flags.add_argument("--denoiser", default=str(WEIGHTS))
    flags.add_argument("--sigmas", type=float, nargs="+", default=[0.25, 0.5, 1.0])
    flags.add_argument("--steps", type=int, nargs="+", default=[1, 4])
    flags.add_argument("--images", type=int, default=500)
    flags.add_argument("--figure", type=Path, default=FIGURE)
    values = flags.parse_args()
    denoiser = models.load_denoiser(values.denoiser)
    test_set = data.load("cifar10", "test", directory=values.data)
    clean = data.to_unit(test_set.images[:: len(test_set) // values.images])
    shown = [("clean", clean[:10])]
    print("| σ | time | noisy, PSNR | " + " | ".join(f"denoised, {k} step{'s' * (k > 1)}" for k in values.steps) + " |")
    print("|---" * (3 + len(values.steps)) + "|")
    for sigma in values.sigmas:
        noisy = noisy_copies(clean, sigma)
        denoised = [denoise(denoiser, noisy, sigma=sigma, steps=k) for k in values.steps]
        found = " | ".join(f"{psnr(one, clean):.2f}" for one in denoised)
        print(f"| {sigma} | {denoiser.schedule.time(sigma):.1f} | {psnr(noisy, clean):.2f} | {found} |", flush=True)
        shown += [(f"σ = {sigma:g}", noisy[:10]), ("denoised", denoised[0][:10])]
    draw(shown, values.figure)
    print(f"Figure: {values.figure}")


if __name__ == "__main__":
    main()
