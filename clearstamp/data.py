"""Labelled images: what attacks ask of them, and tensors that have it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, SequentialSampler, default_collate

from clearstamp.errors import DataError

Batches = Iterable[tuple[Tensor, Tensor]]
"""Inputs ``[b, C, H, W]`` and labels ``[b]``, batch by batch."""


class LabelledImages(Protocol):
    """What attacks ask of images: their shape ``(C, H, W)``, the number of classes, and batches.

    `loader` gives batches, reshuffled in every epoch from `seed`, or in order for None.
    """

    @property
    def shape(self) -> tuple[int, int, int]: ...

    @property
    def classes(self) -> int: ...

    def loader(self, batch_size: int = 64, *, seed: int | None = None) -> Batches: ...


@dataclass(frozen=True, eq=False)
class Data(Dataset[tuple[Tensor, Tensor]]):
    """Labelled images in memory. An index, a slice or a list of indices gives inputs in [0, 1] and labels.

    Attributes:
        images: ``[n, C, H, W]``, uint8 from 0 to 255, or floats as the model takes them.
        labels: ``[n]``, integers from 0 on, which come out as int64.
        classes: number of classes; 0 stands for one more than the largest label.

    Raises `DataError` for images and labels that do not fit each other.
    """

    images: Tensor
    labels: Tensor
    classes: int = 0

    def __post_init__(self) -> None:
        if self.images.dim() != 4 or self.labels.shape != self.images.shape[:1] or len(self.images) == 0:
            got = f"images {list(self.images.shape)}, labels {list(self.labels.shape)}"
            raise DataError("not labelled images", got=got, expected="[n, C, H, W] and [n], n >= 1")
        if self.labels.is_floating_point() or self.labels.min() < 0:
            raise DataError("labels are not class numbers", got=self.labels.dtype, expected="integers from 0 on")
        most = int(self.labels.max()) + 1
        if self.classes == 0:
            object.__setattr__(self, "classes", most)
        if most > self.classes:
            raise DataError("a label outside the classes", got=most - 1, expected=f"0 to {self.classes - 1}")

    @classmethod
    def of(cls, dataset: Dataset[Any], classes: int = 0) -> "Data":
        """The images ``[C, H, W]`` and labels of any torch `Dataset` with a length, read into memory once."""
        images, labels = default_collate([dataset[i] for i in range(len(dataset))])  # type: ignore[arg-type]
        return Data(images, labels, classes)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int | slice | Sequence[int]) -> tuple[Tensor, Tensor]:
        images = self.images[index]
        return images if images.is_floating_point() else images.float() / 255, self.labels[index].long()

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def pick(self, places: Tensor | slice) -> Self:
        """The images at these places."""
        return replace(self, images=self.images[places], labels=self.labels[places])

    def take(self, count: int | None) -> Self:
        """`count` images spread evenly over the set, whose order may be that of its classes (all for None)."""
        if count is None:
            return self
        if not 0 < count <= len(self):
            raise DataError("not that many images", got=count, expected=f"1 to {len(self)}")
        return self.pick(torch.arange(count) * len(self) // count)

    def loader(self, batch_size: int = 64, *, seed: int | None = None) -> DataLoader[tuple[Tensor, Tensor]]:
        """Batches ``[b, C, H, W]`` and ``[b]``: reshuffled in every epoch from `seed`, or in order for None."""
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        order = SequentialSampler(self) if seed is None else RandomSampler(self, generator=generator)
        return DataLoader(self, sampler=BatchSampler(order, batch_size, drop_last=False), batch_size=None)
