"""Data sets by name: files first, download second, one clear error third.

`$CLEARSTAMP_DATA` is looked at first, then ``data/`` below the working directory: for packs (see `packs`),
then for torchvision's layout. MNIST is verified by the sha256 of its decoded images and labels, the others by the
check sums of their files. A set is never replaced by another, and one of which a part is missing says so.
"""

import gzip
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cache, partial
from io import BufferedReader
from itertools import product
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torchvision.datasets import CIFAR10, CIFAR100, GTSRB, MNIST

from clearstamp.data import Data
from clearstamp.errors import DataError
from clearstamp.zoo.packs import damage_named, pack_size, read_pack, write_pack

Split = Literal["train", "test"]

MNIST_FILES = {"train": "train", "test": "t10k"}
MNIST_SHA256 = {
    "train": "d18cfd466eb143ac1097fde604dba9eec4116885869d04cc648b510949f9e88c",
    "test": "a0863a96c44e5666edbb30c4071ee79ca0514c621e6349c5967fc78e7305c891",
}
"""`DataSet.checksum` of each split: sha256 of its decoded images and labels."""
MNIST_SIZES = {"train": 60_000, "test": 10_000}


@dataclass(frozen=True, eq=False, kw_only=True)
class DataSet(Data):
    """A split of a data set, as `Data`.

    Attributes:
        name: of the data set.
        split: ``"train"`` or ``"test"``.
        official: how many images the official split has; None for a set without one.
    """

    name: str
    split: Split
    official: int | None = None

    @property
    def checksum(self) -> str:
        """sha256 of the images and labels in use."""
        digest = hashlib.sha256()
        for part in (self.images, self.labels):
            digest.update(part.contiguous().numpy().tobytes())
        return digest.hexdigest()

    def save_pack(self, path: str | Path) -> None:
        """Write a pack that `load` finds as ``<folder>/<name>/<split>.zip``. Colour images only."""
        write_pack(Path(path), self.images.permute(0, 2, 3, 1).numpy(), self.labels.numpy())


def load(name: str, split: Split = "train") -> DataSet:
    """A split of the data set `name`.

    It is ``"mnist"``, ``"cifar10"``, ``"cifar100"``, ``"gtsrb"`` (traffic signs at 32 x 32), or ``"digits"``
    (scikit-learn's 1,797 digits at 28 x 28, always at hand).

    Raises `DataError` if the name is unknown, or if files are missing or damaged.
    """
    check(name)
    if split not in ("train", "test"):
        raise DataError("unknown split", got=repr(split), expected="'train' or 'test'")
    return LOADERS[name](split)


def check(name: str) -> None:
    """Raise `DataError` for the name of no data set."""
    if name not in LOADERS:
        raise DataError("unknown data set", got=repr(name), expected=" or ".join(map(repr, LOADERS)))


def found(name: str) -> bool:
    """Would `load` find files of both splits, whole or damaged, and download nothing? Raises `DataError` as it does."""
    check(name)
    return name == "digits" or all(find_mnist(s) if name == "mnist" else find_source(name, s) for s in get_args(Split))


def size(name: str, split: Split) -> int:
    """How many images `load` finds, without reading them.

    Raises `DataError` if the name is unknown, if there are no files, or if they are damaged as far as this can be seen.
    """
    if not found(name):
        raise DataError("missing data set", got=name)
    if name == "digits":
        return len(load_embedded(split))
    if name == "mnist":
        files = find_mnist(split)
        assert files is not None, "found"
        return idx_shape(files[0])[0]
    there = find_source(name, split)
    assert there is not None, "found"
    return pack_size(there) if there.is_file() else SOURCES[name].sizes[split]


def form(name: str) -> tuple[tuple[int, int, int], int]:
    """The shape (C, H, W) of an image of a data set, and the number of classes, without reading any.

    Raises `DataError` if the name is unknown.
    """
    check(name)
    source = SOURCES.get(name)
    return ((1, 28, 28), 10) if source is None else ((3, *SIZE), source.classes)


def download() -> None:
    """Fetch every set that is missing, into ``data/``. Raises `DataError` if one cannot be had."""
    for name, split in product(LOADERS, get_args(Split)):
        print(f"{name}, {split}: {len(load(name, split)):,} images", flush=True)


def folders() -> Iterator[Path]:
    """Where data are looked for, in that order."""
    if "CLEARSTAMP_DATA" in os.environ:
        yield Path(os.environ["CLEARSTAMP_DATA"])
    yield Path("data")


@cache
def load_embedded(split: Split) -> DataSet:
    """scikit-learn's digits, at 28 x 28."""
    from sklearn.datasets import load_digits  # takes a while, and whoever wants a network alone can do without

    digits = load_digits()
    test = np.arange(len(digits.target)) % 5 == 0  # every fifth image: a fixed split, no random draw
    chosen = test if split == "test" else ~test
    small = torch.from_numpy(digits.images[chosen]).float().unsqueeze(1) / 16
    large = F.interpolate(small, size=(28, 28), mode="bilinear", align_corners=False)
    labels = torch.from_numpy(digits.target[chosen]).long()
    return DataSet((large * 255).round().byte(), labels, 10, name="digits", split=split)


def find_mnist(split: str) -> tuple[Path, Path] | None:
    """The image and the label file of a split, packed or not, from the first folder that holds both."""
    names = [f"{MNIST_FILES[split]}-{kind}-ubyte" for kind in ("images-idx3", "labels-idx1")]
    for folder in folders():
        for suffix in (".gz", ""):
            images, labels = (folder / "MNIST" / "raw" / f"{name}{suffix}" for name in names)
            if images.is_file() and labels.is_file():
                return images, labels
    return None


def load_mnist(split: Split) -> DataSet:
    """MNIST from its files, downloaded if they are missing; verified."""
    if find_mnist(split) is None:
        try:
            with redirect_stdout(None):
                MNIST("data", download=True)
        except Exception as error:
            raise DataError(
                "MNIST was not found and could not be downloaded",
                got=f"{type(error).__name__}: {error}",
                where=", ".join(str(f / "MNIST" / "raw") for f in folders()),
                remedy="(1) set CLEARSTAMP_DATA to a folder that holds MNIST/raw/*-ubyte.gz, or (2) put those four "
                "files under data/MNIST/raw/, or (3) use the embedded set 'digits'",
            ) from error
    found = find_mnist(split)
    assert found is not None
    images, labels = (torch.from_numpy(read_idx(path)) for path in found)
    data = DataSet(images.unsqueeze(1), labels.long(), 10, name="mnist", split=split, official=MNIST_SIZES[split])
    if data.checksum != MNIST_SHA256[split]:
        raise DataError(
            "damaged data set: the decoded images and labels differ from MNIST's",
            where=" and ".join(map(str, found)),
            remedy="remove the files and fetch them again",
        )
    return data


def read_idx(path: Path) -> np.ndarray:
    """An IDX file of unsigned bytes, gzipped or not (the format of MNIST's authors)."""
    shape = idx_shape(path)
    with damage_named(path), unpacked(path) as file:
        return np.array(np.frombuffer(file.read(), np.uint8, offset=4 + 4 * len(shape)).reshape(shape))


def idx_shape(path: Path) -> list[int]:
    """The shape of an IDX file's array, from its head."""
    with damage_named(path), unpacked(path) as file:
        axes = file.read(4)[3]
        sizes = file.read(4 * axes)
        if len(sizes) < 4 * axes:
            raise EOFError("the file ends in its head")
        return [int.from_bytes(sizes[4 * axis : 4 * axis + 4], "big") for axis in range(axes)]


def unpacked(path: Path) -> gzip.GzipFile | BufferedReader:
    """A file, gzipped or not, opened for reading."""
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")


@dataclass(frozen=True)
class Source:
    """A colour data set: its classes and official sizes, the folders of its packs and of torchvision's layout."""

    classes: int
    sizes: dict[str, int]
    pack: str
    layout: str
    open: Callable[..., Any]


SOURCES = {
    "cifar10": Source(10, {"train": 50_000, "test": 10_000}, "cifar10", "cifar-10-batches-py", CIFAR10),
    "cifar100": Source(100, {"train": 50_000, "test": 10_000}, "cifar100", "cifar-100-python", CIFAR100),
    "gtsrb": Source(43, {"train": 39_209, "test": 12_630}, "gtsrb32", "gtsrb", GTSRB),
}
SIZE = (32, 32)  # of all their images; traffic signs are resized


def find_source(name: str, split: str) -> Path | None:
    """The pack of a split, or the folder that holds torchvision's layout, from the first folder that has either."""
    source = SOURCES[name]
    for folder in folders():
        pack = folder / source.pack / f"{split}.zip"
        if pack.is_file():
            return pack
        if (folder / source.layout).is_dir():
            return folder
    return None


def load_source(name: str, split: Split) -> DataSet:
    """A colour data set from a pack or from torchvision's layout, downloaded if neither is there."""
    source, found = SOURCES[name], find_source(name, split)
    try:
        if found is not None and found.is_file():
            images, labels = read_pack(found)
        else:
            images, labels = read_layout(source, split, found)
    except DataError:
        raise
    except Exception as error:
        raise DataError(
            f"{name} was not found and could not be downloaded" if found is None else "damaged data set",
            got=f"{type(error).__name__}: {error}",
            where=found or ", ".join(str(f / source.pack / f"{split}.zip") for f in folders()),
            remedy=f"(1) set CLEARSTAMP_DATA to a folder that holds {source.pack}/{split}.zip (a pack) or "
            f"{source.layout}/, or (2) put either under data/, or (3) use the embedded set 'digits'",
        ) from error
    tensors = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(labels)
    return DataSet(*tensors, source.classes, name=name, split=split, official=source.sizes[split])


def read_layout(source: Source, split: Split, folder: Path | None) -> tuple[np.ndarray, np.ndarray]:
    """A split in torchvision's layout from `folder`, or for None downloaded to ``data/``."""
    where: dict[str, Any] = {"root": folder or "data", "download": folder is None}
    with redirect_stdout(None):
        found = (
            source.open(split=split, **where) if source.open is GTSRB else source.open(train=split == "train", **where)
        )
    pairs = [(np.asarray(image.resize(SIZE, Image.Resampling.BILINEAR)), label) for image, label in found]
    images, labels = zip(*pairs, strict=True)
    return np.stack(images), np.array(labels, np.int64)


LOADERS: dict[str, Callable[[Split], DataSet]] = {
    "mnist": load_mnist,
    "digits": load_embedded,
    **{name: partial(load_source, name) for name in SOURCES},
}
