"""Arrays in files of NumPy's format, read without trusting what their headers say."""

import math
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy

_PACKED = 1100  # bytes that a byte can hold at most: 1032 in a deflated archive


def read_npz(path: Path, names: Collection[str]) -> dict[str, np.ndarray]:
    """The arrays of an .npz archive that have these names, as far as they are there.

    Raises:
      ValueError, OSError: a file that is no such archive, a damaged one, or an array of Python objects, or whose header
        says another size than it has.

    Guarantee: what is read takes no more memory than 1100 times the file's size.
    """
    found, room = {}, _PACKED * path.stat().st_size
    try:
        with zipfile.ZipFile(path) as archive:
            there = {one.filename.removesuffix(".npy"): one for one in archive.infolist()}
            for name in there.keys() & set(names):
                room -= there[name].file_size
                if room < 0:
                    raise ValueError(f"{name} is larger than a file of this size can hold")
                with archive.open(there[name]) as stream:
                    _check_size(stream, there[name].file_size, name)
                with archive.open(there[name]) as stream:
                    found[name] = npy.read_array(stream, allow_pickle=False)
    except (OSError, ValueError):
        raise
    except Exception as error:  # zipfile and zlib raise several kinds for a damaged file
        raise ValueError(f"{type(error).__name__}: {error}") from None
    return found


def _check_size(stream: IO[bytes], size: int, name: str) -> None:
    """ValueError unless the header of an array fits the size of what it begins."""
    read = npy.read_array_header_1_0 if npy.read_magic(stream) == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = read(stream)
    if dtype.hasobject:
        raise ValueError(f"{name} is an array of Python objects, which are pickled")
    if min(shape, default=1) < 0 or stream.tell() + math.prod(shape) * dtype.itemsize != size:
        raise ValueError(f"{name} has another size than its header says, {dtype} {list(shape)}")
