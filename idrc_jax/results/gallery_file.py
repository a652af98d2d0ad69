"""The pictures of a run: a few of its images, clean and with one draw of their noise, in `gallery.npz`.

Certificates need no pixels; figures and reports do. Which images are shown follows from the rows alone.
"""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from idrc_jax.certificates import confidence_bounds
from idrc_jax.core import arrays, files
from idrc_jax.results.result_rows import Row

NAME = "gallery.npz"
KINDS = ("most robust", "least robust", "wrong", "abstained")
EACH = 15  # images of each kind
FIRST = 4  # and the first ones of the run, which runs over the same images have in common: 64 together


@dataclass(frozen=True)
class Gallery:
    """Images of a run, in ascending order of their index.

    Attributes:
      index: int64 [N], data-set indices.
      images: uint8 [N, H, W, C].
      noisy: uint8 [N, H, W, C], the images under the first noise whose vote was counted, clipped to [0, 1] to be seen.
      sigma_x: float64 [N], the noise levels.
      denoised: uint8 [N, H, W, C], `noisy` (not clipped) after a denoising classifier's first half; None without one.
    """

    index: np.ndarray
    images: np.ndarray
    noisy: np.ndarray
    sigma_x: np.ndarray
    denoised: np.ndarray | None = None


def by_kind(rows: Sequence[Row], each: int = EACH) -> dict[str, list[Row]]:
    """At most `each` rows of every kind: the rightly predicted with the largest and the smallest radii, largest and
    smallest first; the wrongly predicted, largest radius first; the abstentions by index. No row comes twice.
    """
    right = sorted((row for row in rows if row.correct), key=_robustness, reverse=True)
    wrong = [row for row in rows if not row.correct and row.predict != confidence_bounds.ABSTAIN]
    most = right[:each]
    least = right[len(most) :][::-1][:each]
    found = (
        most,
        least,
        sorted(wrong, key=_robustness, reverse=True)[:each],
        sorted((row for row in rows if row.predict == confidence_bounds.ABSTAIN), key=lambda row: row.idx)[:each],
    )
    return dict(zip(KINDS, found, strict=True))


def choose(rows: Sequence[Row]) -> list[Row]:
    """The rows whose images a gallery shows: at most 64, in ascending order of their index."""
    first = sorted(rows, key=lambda row: row.idx)[:FIRST]
    chosen = {row.idx: row for row in [*first, *(row for kind in by_kind(rows).values() for row in kind)]}
    return [chosen[idx] for idx in sorted(chosen)]


def visible(pixels: np.ndarray) -> np.ndarray:
    """An image [H, W, C] as it is shown: the first three channels as colours, or the first of fewer as grey [H, W]."""
    return pixels[..., :3] if pixels.shape[-1] >= 3 else pixels[..., 0]


def write(gallery: Gallery, folder: Path) -> None:
    """Write `gallery.npz` into a run's folder, whole or not at all."""
    there = {name: value for name, value in vars(gallery).items() if value is not None}
    packed = io.BytesIO()
    np.savez_compressed(packed, **there)
    files.write_bytes(folder / NAME, packed.getvalue())


def read(folder: Path) -> Gallery | None:
    """The gallery of a run's folder, None without one; ValueError for a file that is damaged or another's."""
    path = folder / NAME
    if not path.is_file():
        return None
    try:
        gallery = Gallery(**arrays.read_npz(path, Gallery.__dataclass_fields__))
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"Expected a gallery in {path}, got {error}: make it again.") from None
    pictures = [gallery.images, gallery.noisy, *([] if gallery.denoised is None else [gallery.denoised])]
    shape = gallery.images.shape
    alike = all(one.dtype == np.uint8 and one.ndim == 4 and one.shape == shape and one.size for one in pictures)
    if not alike or not gallery.index.shape == gallery.sigma_x.shape == shape[:1]:
        raise ValueError(f"Expected uint8 images [N, H, W, C] of one shape in {path}, got others: make it again.")
    if gallery.index.dtype.kind != "i" or gallery.sigma_x.dtype.kind != "f" or (np.diff(gallery.index) <= 0).any():
        raise ValueError(f"Expected ascending indices and noise levels in {path}, got others: make it again.")
    return gallery


def _robustness(row: Row) -> tuple[float, float, int]:
    """Sorts by radius, then by published radius, 0 where there is none, then the smaller index as the larger."""
    valid, published = (
        0.0 if radius is None or math.isnan(radius) else radius for radius in (row.radius, row.radius_published)
    )
    return valid, published, -row.idx
