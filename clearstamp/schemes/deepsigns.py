"""DeepSigns: bits in secret projections of the mean activations of one class."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from clearstamp.data import LabelledImages
from clearstamp.errors import SchemeError
from clearstamp.schemes.base import (
    Access,
    Evidence,
    Key,
    Scheme,
    drawn_bits,
    examined,
    images_of,
    message_loss,
    read_projections,
    strangers,
    turned,
)
from clearstamp.schemes.layers import name_at, signals


@dataclass(frozen=True, kw_only=True)
class DeepSigns(Scheme):
    """Bits that are the signs of secret projections of the centre of one class's activations in one layer.

    Rouhani, Chen and Koushanfar, "DeepSigns", ASPLOS 2019, its mark for white boxes, in one class. The centre is the
    mean of the activations at hand, where the source learns one beside the weights, so that the bits are held in
    activations alone; these are what a layer takes in, behind the ReLU before it. Class and deposited images are drawn,
    and so is the message, of which the published 16 bits cannot reach p <= 1e-6.

    Attributes:
        bits: of the message.
        gathering: the weight of the mean squared distance of activations from their centre, a sum over the layer.
        strength: the weight of the cross-entropy of the bits, a sum over them.
        target: the class; None to draw it.
        share: of the images of the class, deposited to read the mark; above 0 and at most 1.
        sample: images of the class that each step of training draws.
        layer: the name of the layer that takes in the activations; empty for the one that gives the logits.
    """

    access: ClassVar[Access] = "weights"
    bits_each: ClassVar[int] = 1

    bits: int = 16
    gathering: float = 0.01
    strength: float = 0.01
    target: int | None = None
    share: float = 0.5
    sample: int = 10
    layer: str = ""

    def draw(self, model: nn.Module, data: LabelledImages, *, seed: int) -> Key:
        if not 0 < self.share <= 1:
            raise SchemeError("share of the images out of range", got=self.share, expected="above 0, at most 1")
        if self.sample < 1:
            raise SchemeError("number of images a step out of range", got=self.sample, expected="at least 1")
        generator = torch.Generator().manual_seed(seed)
        drawn, name = int(torch.randint(data.classes, (), generator=generator)), self.layer or name_at(model, data, -1)
        target = drawn if self.target is None else self.target
        images = images_of(data, target)
        images = images[torch.randperm(len(images), generator=generator)[: math.ceil(self.share * len(images))]]
        with strangers(), examined(model), torch.no_grad():
            count = signals(model, name, images[:1], "input").numel()
        bits, projection = drawn_bits(self.bits, generator), torch.randn(self.bits, count, generator=generator)
        tensors = {"bits": bits, "projection": projection, "images": images}
        return Key(self, data.shape, tensors, {"layer": name, "target": target})

    def loss(self, model: nn.Module, data: LabelledImages, key: Key) -> Callable[[], Tensor]:
        return CentreLoss(model, images_of(data, key.settings["target"]), key, self)

    def forge(self, model: nn.Module, data: LabelledImages, *, seed: int) -> Key:
        drawn = self.draw(model, data, seed=seed)
        with examined(model):
            return turned(drawn, self.centre(model, drawn))

    def centre(self, model: nn.Module, key: Key) -> Tensor:
        """The mean of what the layer takes in at a key's images, ``[units]``, on the CPU."""
        with torch.no_grad():
            return signals(model, key.settings["layer"], key["images"], "input").mean(0).cpu().float()

    def read(self, suspect: nn.Module, key: Key) -> Evidence:
        with strangers():
            found = self.centre(suspect, key)
        return read_projections(key, found)


class CentreLoss:
    """The spread of activations about their centre, and the cross-entropy of all bits, given its projections as logits.

    The activations are those of `sample` images of `images` ``[n, C, H, W]``, drawn anew in every step by a generator
    of its own, in evaluation mode.
    """

    def __init__(self, model: nn.Module, images: Tensor, key: Key, scheme: DeepSigns):
        self.model, self.images, self.key, self.scheme = model, images, key, scheme
        self.generator = torch.Generator().manual_seed(0)

    def __call__(self) -> Tensor:
        drawn = self.images[torch.randint(len(self.images), (self.scheme.sample,), generator=self.generator)]
        with examined(self.model):
            found = signals(self.model, self.key.settings["layer"], drawn, "input")
        centre = found.mean(0)
        spread = (found - centre).square().sum(1).mean()
        return self.scheme.gathering * spread + self.scheme.strength * message_loss(self.key, centre)
