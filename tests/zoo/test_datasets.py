"""Data sets: the embedded one, files in MNIST's format, and every way in which they can be missing or damaged."""

import gzip
from dataclasses import replace

import numpy as np
import pytest
import torch

from clearstamp.errors import DataError
from clearstamp.zoo import datasets as module
from clearstamp.zoo.datasets import DataSet, form, found, load, size


def idx(values: np.ndarray) -> bytes:
    """The IDX format: two zeros, type 8 (unsigned byte), number of axes, sizes, values."""
    return bytes([0, 0, 8, values.ndim]) + b"".join(n.to_bytes(4, "big") for n in values.shape) + values.tobytes()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty data folder, away from any real one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CLEARSTAMP_DATA", str(tmp_path / "sets"))
    raw = tmp_path / "sets" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    return raw


@pytest.fixture
def write(folder, monkeypatch):
    """Writes a tiny MNIST, packed or not, and takes its checksums for the real ones."""

    def write(suffix: str) -> dict[str, DataSet]:
        numbers = np.random.default_rng(0)
        written = {}
        for split, prefix, count in (("train", "train", 7), ("test", "t10k", 5)):
            images = numbers.integers(0, 256, (count, 28, 28), np.uint8)
            labels = numbers.integers(0, 10, count, np.uint8)
            for values, kind in ((images, "images-idx3"), (labels, "labels-idx1")):
                content = idx(values)
                path = folder / f"{prefix}-{kind}-ubyte{suffix}"
                path.write_bytes(gzip.compress(content) if suffix else content)
            tensors = torch.from_numpy(images).unsqueeze(1), torch.from_numpy(labels).long()
            written[split] = DataSet(*tensors, 10, name="mnist", split=split)
        monkeypatch.setattr(module, "MNIST_SHA256", {split: data.checksum for split, data in written.items()})
        return written

    return write


@pytest.fixture
def offline(monkeypatch):
    """No download succeeds."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(module, "MNIST", refuse)


# ---------------------------------------------------------------------------------------------------- what is loaded


def test_digits_are_always_at_hand():
    train, test = load("digits"), load("digits", "test")
    assert size("digits", "train") == 1_437 and size("digits", "test") == 360
    assert (len(train), len(test)) == (1437, 360)
    assert train.shape == (1, 28, 28) and train.images.dtype == torch.uint8 and train.images.max() == 255
    assert train.labels.dtype == torch.int64 and set(train.labels.tolist()) == set(range(10)) and train.classes == 10
    assert load("digits").checksum == train.checksum != test.checksum


@pytest.mark.parametrize("suffix", [".gz", ""])
@pytest.mark.parametrize("split", ["train", "test"])
def test_mnist_files_are_read(write, offline, suffix, split):
    written = write(suffix)[split]
    read = load("mnist", split)
    assert size("mnist", split) == len(read)
    assert torch.equal(read.images, written.images) and torch.equal(read.labels, written.labels)
    assert (read.name, read.split, read.classes, read.shape) == ("mnist", split, 10, (1, 28, 28))


def test_mnist_is_found_below_the_working_directory(write, folder, monkeypatch):
    write("")
    monkeypatch.delenv("CLEARSTAMP_DATA")
    assert not found("mnist")
    folder.parents[1].rename("data")
    assert size("mnist", "test") == len(load("mnist", "test")) == 5


def test_mnist_is_downloaded_if_it_is_missing(write, folder, monkeypatch):
    write(".gz")
    folder.parents[1].rename("elsewhere")

    def download(root: str, *, download: bool) -> None:
        assert download
        (folder.parents[2] / "elsewhere").rename(root)

    monkeypatch.setattr(module, "MNIST", download)
    assert len(load("mnist")) == 7


def test_the_real_checksums_are_told_apart():
    assert sorted(module.MNIST_SHA256) == ["test", "train"]
    assert all(len(digest) == 64 for digest in module.MNIST_SHA256.values())
    assert len(set(module.MNIST_SHA256.values())) == 2


# -------------------------------------------------------------------------------------------------- what is in a set


@pytest.fixture
def small() -> DataSet:
    images = torch.arange(10, dtype=torch.uint8).reshape(10, 1, 1, 1) * 25
    return DataSet(images, torch.arange(10), name="small", split="train")


def test_an_index_gives_inputs_in_the_unit_range(small):
    image, label = small[4]
    assert image.shape == (1, 1, 1) and image.item() == pytest.approx(100 / 255) and label == 4
    assert small[2:5][0].shape == (3, 1, 1, 1) and small[[1, 9]][1].tolist() == [1, 9]


def test_the_checksum_covers_images_and_labels(small):
    images, labels = small.images.clone(), small.labels.clone()
    images[3] += 1
    labels[3] -= 1
    others = [replace(small, images=images), replace(small, labels=labels)]
    assert len({small.checksum, *(other.checksum for other in others)}) == 3


def test_loaders_shuffle_by_seed_and_anew_at_every_pass(small):
    def labels(loader) -> list[int]:
        return [label for _, batch in loader for label in batch.tolist()]

    ordered, one, same, other = (small.loader(4, seed=seed) for seed in (None, 1, 1, 2))
    assert [len(batch) for batch, _ in ordered] == [4, 4, 2]
    assert labels(ordered) == labels(ordered) == list(range(10))
    first, second = labels(one), labels(one)
    assert sorted(first) == sorted(second) == list(range(10)) and first != second
    torch.manual_seed(5)  # the global generator plays no part
    assert [labels(same), labels(same)] == [first, second]
    assert labels(other) != first


def test_take(small):
    assert small.take(3).labels.tolist() == [0, 3, 6] and len(small.take(3).images) == 3
    assert len(small.take(None)) == len(small.take(10)) == 10


@pytest.mark.parametrize("count", [0, -1, 11])
def test_take_refuses(small, count):
    with pytest.raises(DataError, match=f"not that many images; got: {count}; expected: 1 to 10"):
        small.take(count)


# ----------------------------------------------------------------------------------------------------------- errors


def test_unknown_names_and_splits():
    with pytest.raises(DataError, match="unknown data set; got: 'minst'; expected: 'mnist' or 'digits'"):
        load("minst")
    with pytest.raises(DataError, match="unknown split; got: 'valid'"):
        load("digits", "valid")
    for ask in (found, form, lambda name: size(name, "train")):
        with pytest.raises(DataError, match="unknown data set"):
            ask("minst")


def test_the_form_of_a_set_is_known_without_reading_it(write):
    write("")
    for name in ("digits", "mnist"):
        whole = load(name)
        assert form(name) == (whole.shape, whole.classes)
    assert form("cifar100") == ((3, 32, 32), 100)


def test_missing_mnist_names_three_remedies(folder, offline):
    with pytest.raises(DataError, match="not found and could not be downloaded.*no route to host") as caught:
        load("mnist")
    message = str(caught.value)
    for part in ("(1) set CLEARSTAMP_DATA", "(2) put those four files under data/MNIST/raw/", "(3)", "'digits'"):
        assert part in message
    assert str(folder) in message


def cut(path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def overwrite(path) -> None:
    content = bytearray(path.read_bytes())
    content[20:60] = bytes(40)
    path.write_bytes(content)


def empty(path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [cut, overwrite, empty])
@pytest.mark.parametrize("suffix", [".gz", ""])
@pytest.mark.parametrize("kind", ["images-idx3", "labels-idx1"])
def test_damaged_files_are_refused(write, folder, offline, damage, suffix, kind):
    write(suffix)
    name = f"train-{kind}-ubyte{suffix}"
    if damage is overwrite and kind == "labels-idx1" and not suffix:
        (folder / name).write_bytes(idx(np.full(7, 9, np.uint8)))  # whole, with other labels
    else:
        damage(folder / name)
    with pytest.raises(DataError, match=f"damaged data set.*{name}.*fetch"):
        load("mnist")
