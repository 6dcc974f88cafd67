"""Uchida et al.'s watermark: bits in the signs of secret projections of one layer's weights."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from clearstamp.data import LabelledImages
from clearstamp.schemes.base import (
    Access,
    Evidence,
    Key,
    Scheme,
    drawn_bits,
    message_loss,
    read_projections,
    turned,
)
from clearstamp.schemes.layers import layer_named, name_at


@dataclass(frozen=True, kw_only=True)
class Uchida(Scheme):
    """Bits that are the signs of secret projections of the mean filter of one layer, held there by a regulariser.

    Uchida, Nagai, Sakazawa and Satoh, "Embedding Watermarks into Deep Neural Networks", ICMR 2017. The message is drawn
    (the released code embeds ones alone, which any bias passes), and so is the projection, from a normal distribution.
    Where no layer is named, the second one of the model carries the bits.

    Attributes:
        bits: of the message.
        strength: the weight of the regulariser, a sum over the bits.
        layer: its name in the model; empty for the model's second layer.
    """

    access: ClassVar[Access] = "weights"
    bits_each: ClassVar[int] = 1

    bits: int = 256
    strength: float = 0.01
    layer: str = ""

    def draw(self, model: nn.Module, data: LabelledImages, *, seed: int) -> Key:
        name = self.layer or name_at(model, data, 1)
        generator = torch.Generator().manual_seed(seed)
        count = mean_filter(model, name).numel()
        bits, projection = drawn_bits(self.bits, generator), torch.randn(self.bits, count, generator=generator)
        return Key(self, data.shape, {"bits": bits, "projection": projection}, {"layer": name})

    def loss(self, model: nn.Module, data: LabelledImages, key: Key) -> Callable[[], Tensor]:
        return lambda: self.strength * message_loss(key, mean_filter(model, key.settings["layer"]))

    def forge(self, model: nn.Module, data: LabelledImages, *, seed: int) -> Key:
        drawn = self.draw(model, data, seed=seed)
        return turned(drawn, mean_filter(model, drawn.settings["layer"]).detach().cpu().float())

    def read(self, suspect: nn.Module, key: Key) -> Evidence:
        return read_projections(key, mean_filter(suspect, key.settings["layer"]).detach().cpu().float())


def mean_filter(model: nn.Module, name: str) -> Tensor:
    """The mean over a layer's outputs of what it reads with, flat. Raises `UnfitError` if there is no such layer."""
    return layer_named(model, name).weight.mean(0).flatten()
