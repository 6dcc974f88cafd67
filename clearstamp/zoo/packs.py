"""Packs: an image data set in one file, without loss, to be carried to a machine without a network.

A pack is an uncompressed zip. ``sheet_0000.webp``, ``sheet_0001.webp``, ... are lossless WebP sheets of 10 x 10 images,
row by row, the last one padded with black. ``labels.npy`` holds the class of every image (uint8), ``index.npy`` its
place in the official split (int32). A reader finds damage by the zip's own check sums.
"""

import io
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from clearstamp.errors import DataError
from clearstamp.files import write_atomically

SIDE = 10  # images along each side of a sheet


def read_pack(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images ``[n, H, W, 3]`` uint8 and labels ``[n]`` int64. Raises `DataError` for a file that is no whole pack."""
    with damage_named(path), zipfile.ZipFile(path) as pack:
        labels = np.load(io.BytesIO(pack.read("labels.npy")))
        names = sorted(name for name in pack.namelist() if name.endswith(".webp"))
        sheets = np.stack([np.asarray(Image.open(io.BytesIO(pack.read(name))).convert("RGB")) for name in names])
        count, height, width = len(sheets), sheets.shape[1] // SIDE, sheets.shape[2] // SIDE
        tiles = sheets.reshape(count, SIDE, height, SIDE, width, 3).swapaxes(2, 3).reshape(-1, height, width, 3)
        if not len(tiles) - SIDE**2 < len(labels) <= len(tiles):
            raise ValueError(f"{len(labels)} labels for {count} sheets")
    return tiles[: len(labels)], labels.astype(np.int64)


def pack_size(path: Path) -> int:
    """How many images a pack holds, without reading them. Raises `DataError` for a file that is no pack."""
    with damage_named(path), zipfile.ZipFile(path) as pack:
        return len(np.load(io.BytesIO(pack.read("labels.npy"))))


@contextmanager
def damage_named(path: Path) -> Iterator[None]:
    """What goes wrong with a file becomes a `DataError` that names it."""
    try:
        yield
    except (OSError, EOFError, LookupError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(
            "damaged data set", got=f"{type(error).__name__}: {error}", where=path, remedy="fetch the file again"
        ) from error


def write_pack(path: Path, images: np.ndarray, labels: np.ndarray, index: np.ndarray | None = None) -> None:
    """Write images ``[n, H, W, 3]`` uint8 with their labels ``[n]``, below 256, and places in the official split."""
    if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8 or not len(images) == len(labels) > 0:
        raise DataError(
            "no images for a pack",
            got=f"{images.dtype} {list(images.shape)} and {len(labels)} labels",
            expected="uint8 [n, H, W, 3] and n labels",
        )
    count, height, width, _ = images.shape
    sheets = -(-count // SIDE**2)
    padded = np.zeros((sheets * SIDE**2, height, width, 3), np.uint8)
    padded[:count] = images
    tiled = padded.reshape(sheets, SIDE, SIDE, height, width, 3).swapaxes(2, 3)
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as pack:
        arrays: dict[str, np.ndarray] = {
            "labels": labels.astype(np.uint8),
            "index": (np.arange(count) if index is None else index).astype(np.int32),
        }
        for name, values in arrays.items():
            file = io.BytesIO()
            np.save(file, values)
            pack.writestr(f"{name}.npy", file.getvalue())
        for number, sheet in enumerate(tiled.reshape(sheets, SIDE * height, SIDE * width, 3)):
            file = io.BytesIO()
            Image.fromarray(sheet).save(file, "WEBP", lossless=True)
            pack.writestr(f"sheet_{number:04}.webp", file.getvalue())
    write_atomically(path, content.getvalue())
