"""Profiles: how much is run, and on which images."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Literal

import torch

from clearstamp.errors import DataError, RecordError
from clearstamp.reproduction.records import UsedSplit
from clearstamp.zoo import datasets

STAND_IN = "digits"
"""The data set that is always there, as scikit-learn includes it."""

Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class Images:
    """Which images of a data set: the first `train` and `test` of its splits, all of them for None.

    With `held_out` no test image is used: every third training image is held out, and stands for them.
    """

    dataset: str
    train: int | None
    test: int | None
    held_out: bool = False

    @property
    def counts(self) -> dict[datasets.Split, int | None]:
        """How many images of each split, None for all."""
        return {"train": self.train, "test": self.test}

    def at_most(self, train: int, test: int) -> "Images":
        """The first so many of them, of each split."""
        return replace(self, train=min(self.train or train, train), test=min(self.test or test, test))

    def size(self, split: datasets.Split) -> int:
        """How many images there are to take from. Raises `DataError` if they are not there, or damaged."""
        if not self.held_out:
            return datasets.size(self.dataset, split)
        whole = datasets.size(self.dataset, "train")
        return whole // 3 if split == "test" else whole - whole // 3

    def check(self) -> Iterator[DataError]:
        """Reasons why they cannot be loaded, found without loading anything."""
        try:
            for split, count in self.counts.items():
                found = self.size(split)
                if count is not None and not 0 < count <= found:
                    where = f"{self.dataset}, {split}"
                    yield DataError("not that many images", got=count, expected=f"1 to {found:,}", where=where)
        except DataError as error:
            yield error


@dataclass(frozen=True)
class Sets:
    """Training and test images."""

    train: datasets.DataSet
    test: datasets.DataSet

    @cached_property
    def about(self) -> dict[datasets.Split, UsedSplit]:
        """For the record: sizes and checksums."""
        return {
            part.split: UsedSplit(images=len(part), official=part.official, sha256=part.checksum)
            for part in (self.train, self.test)
        }


@cache
def load_sets(images: Images) -> Sets:
    """The images themselves. Raises `DataError` if they are not there."""
    whole = datasets.load(images.dataset, "train")
    if not images.held_out:
        return Sets(whole.take(images.train), datasets.load(images.dataset, "test").take(images.test))
    third = torch.arange(len(whole)) % 3 == 2
    held = replace(whole.pick(third), split="test", official=None)
    return Sets(whole.pick(~third).take(images.train), held.take(images.test))


@dataclass(frozen=True, kw_only=True)
class Profile:
    """How much is run, on which images, unless an experiment says otherwise; None stands for all images of a split.

    `precision` is that of training on the main task; stamps and accuracies are always in float32. `stand_in` says when
    the embedded digits are taken for another data set: ``"always"``, where its files are ``"missing"``, or ``"never"``.
    `checkpoints` keeps trainings that are cut off, where they take longer than it takes to write a checkpoint.
    """

    name: str
    dataset: str
    train_images: int | None
    test_images: int | None
    hardening_steps: int
    epochs: int
    finetune_epochs: int
    seeds: tuple[int, ...]
    precision: Precision = "float32"
    stand_in: Literal["always", "missing", "never"] = "never"
    checkpoints: bool = False

    def images(self, dataset: str | None = None, *, held_out: bool = False) -> Images:
        """The images of a data set (the profile's own for None), or of what stands in for it on this machine.

        With `held_out`, two thirds as many; of a whole data set, 20,000 and 4,000.
        """
        name = self.dataset if dataset is None or self.stand_in == "always" else dataset
        train, test = self.train_images, self.test_images
        if held_out:
            train, test = (20_000, 4_000) if train is None or test is None else (train * 2 // 3, test * 2 // 3)
        images = Images(name, train, test, held_out)
        if self.stand_in != "missing" or (name != STAND_IN and datasets.found(name)):
            return images
        sizes = [(asked, datasets.size(STAND_IN, split)) for split, asked in images.counts.items()]
        train, test = (there if asked is None else min(asked, there) for asked, there in sizes)
        return Images(STAND_IN, train, test, held_out)


PROFILES = {
    "tiny": Profile(
        name="tiny",
        dataset=STAND_IN,
        train_images=512,
        test_images=200,
        hardening_steps=20,
        epochs=1,
        finetune_epochs=1,
        seeds=(0,),
        stand_in="always",
    ),
    "quick": Profile(
        name="quick",
        dataset="mnist",
        train_images=800,
        test_images=300,
        hardening_steps=80,
        epochs=3,
        finetune_epochs=1,
        seeds=(0,),
        stand_in="missing",
    ),
    "paper": Profile(
        name="paper",
        dataset="mnist",
        train_images=None,
        test_images=None,
        hardening_steps=10_000,
        epochs=5,
        finetune_epochs=4,
        seeds=(0, 1, 2),
        precision="bfloat16",
        checkpoints=True,
    ),
}
"""``tiny`` for tests, ``quick`` for a laptop (the embedded digits for a set whose files are missing), ``paper``."""


def profile(name: str) -> Profile:
    """The profile `name`. Raises `RecordError` if there is none."""
    if name not in PROFILES:
        raise RecordError("unknown profile", got=repr(name), expected=" or ".join(map(repr, PROFILES)))
    return PROFILES[name]
