"""Packs, torchvision's layouts, and downloads of the colour data sets."""

import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from clearstamp.errors import DataError
from clearstamp.zoo import datasets as module
from clearstamp.zoo.datasets import DataSet, load, size
from clearstamp.zoo.packs import read_pack, write_pack

NAMES = ("cifar10", "cifar100", "gtsrb")


def images(count: int, size: int = 32) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, size, size, 3), np.uint8)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A data folder, away from any real one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CLEARSTAMP_DATA", str(tmp_path / "sets"))
    return tmp_path / "sets"


@pytest.mark.parametrize(("count", "size"), [(1, 8), (100, 4), (203, 32)])
def test_a_pack_gives_every_image_back(tmp_path, count, size):
    written, labels = images(count, size), np.arange(count) % 256
    write_pack(tmp_path / "pack.zip", written, labels)
    found, classes = read_pack(tmp_path / "pack.zip")
    assert np.array_equal(found, written) and np.array_equal(classes, labels)
    assert classes.dtype == np.int64


def test_a_pack_names_each_image_s_place_in_the_official_split(tmp_path):
    write_pack(tmp_path / "pack.zip", images(2), np.zeros(2), np.array([5, 70_000]))
    with zipfile.ZipFile(tmp_path / "pack.zip") as pack, pack.open("index.npy") as file:
        assert np.load(file).tolist() == [5, 70_000]


@pytest.mark.parametrize(
    ("given", "labels"),
    [(images(2).astype(float), [0, 1]), (images(2)[..., :1], [0, 1]), (images(2), [0]), (images(2)[:0], [])],
)
def test_what_is_no_pack_is_not_written(tmp_path, given, labels):
    with pytest.raises(DataError, match="no images for a pack"):
        write_pack(tmp_path / "pack.zip", given, np.array(labels))
    assert not list(tmp_path.iterdir())


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def short_of_labels(path: Path) -> None:
    write_pack(path, images(203), np.zeros(203))
    with zipfile.ZipFile(path) as whole:
        parts = {name: whole.read(name) for name in whole.namelist() if name != "sheet_0002.webp"}
    with zipfile.ZipFile(path, "w") as pack:
        for name, content in parts.items():
            pack.writestr(name, content)


@pytest.mark.parametrize(
    "spoil",
    [
        flipped,
        short_of_labels,
        lambda path: path.write_bytes(path.read_bytes()[:-500]),
        lambda path: path.write_text("no zip"),
        lambda path: zipfile.ZipFile(path, "w").close(),
    ],
)
def test_a_damaged_pack_is_never_read(tmp_path, spoil):
    path = tmp_path / "pack.zip"
    write_pack(path, images(203), np.zeros(203))
    spoil(path)
    with pytest.raises(DataError, match="damaged data set.*pack.zip.*fetch the file again"):
        read_pack(path)


# --------------------------------------------------------------------------------------------------- sets by name


@pytest.mark.parametrize("name", NAMES)
def test_a_set_is_read_from_its_packs(folder, name):
    source = module.SOURCES[name]
    assert not module.found(name)
    for split, count in (("train", 7), ("test", 3)):
        drawn = torch.from_numpy(images(count)).permute(0, 3, 1, 2)
        written = DataSet(drawn, torch.arange(count), source.classes, name=name, split=split)
        written.save_pack(folder / source.pack / f"{split}.zip")
        found = load(name, split)
        assert torch.equal(found.images, written.images) and torch.equal(found.labels, written.labels)
        assert (found.name, found.split, found.classes, found.shape) == (name, split, source.classes, (3, 32, 32))
        assert found.official == source.sizes[split] > len(found)
    assert size(name, "train") == len(load(name, "train"))


class Found:
    """Stands for torchvision's reader of a layout."""

    asked: list[dict] = []

    def __init__(self, root, **given):
        self.asked.append({"root": str(root)} | given)
        self.images = [Image.fromarray(image) for image in images(4, 50 if "split" in given else 32)]

    def __iter__(self):
        return iter(zip(self.images, range(4), strict=True))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("at_hand", [True, False])
def test_a_set_is_read_in_torchvision_s_layout_or_downloaded(folder, monkeypatch, name, at_hand):
    class Reader(Found):
        asked: list[dict] = []

    source = module.SOURCES[name]
    monkeypatch.setattr(module, "GTSRB", Reader if name == "gtsrb" else module.GTSRB)
    monkeypatch.setitem(module.SOURCES, name, replace(source, open=Reader))
    if at_hand:
        (folder / source.layout).mkdir(parents=True)
    found = load(name, "test")
    which = {"split": "test"} if name == "gtsrb" else {"train": False}
    assert Reader.asked == [{"root": str(folder) if at_hand else "data", "download": not at_hand} | which]
    assert found.shape == (3, 32, 32) and found.labels.tolist() == [0, 1, 2, 3]
    if name != "gtsrb":
        assert np.array_equal(found.images.permute(0, 2, 3, 1).numpy(), images(4))


@pytest.mark.parametrize("name", NAMES)
def test_a_set_that_is_nowhere_names_the_remedies(folder, monkeypatch, name):
    def refuse(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setitem(module.SOURCES, name, replace(module.SOURCES[name], open=refuse))
    with pytest.raises(DataError, match=f"{name} was not found.*no route to host.*CLEARSTAMP_DATA.*data/.*digits"):
        load(name)


def test_a_damaged_layout_is_not_downloaded_over(folder, monkeypatch):
    def refuse(*_: object, download: bool, **__: object) -> None:
        assert not download
        raise RuntimeError("Dataset not found or corrupted.")

    monkeypatch.setitem(module.SOURCES, "cifar10", replace(module.SOURCES["cifar10"], open=refuse))
    (folder / "cifar-10-batches-py").mkdir(parents=True)
    with pytest.raises(DataError, match="damaged data set.*corrupted"):
        load("cifar10")
