"""WaterMAS: bits in the signs of secret weights, from which the nearest descent is made to lead upwards."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clearstamp.data import LabelledImages
from clearstamp.errors import SchemeError
from clearstamp.schemes.base import Evidence, Key, drawn_bits, read_message
from clearstamp.schemes.locked import LockedWeights, Positions, drawn_positions, in_spreads, placed


@dataclass(frozen=True, kw_only=True)
class WaterMAS(LockedWeights):
    """Bits in the signs of weights at secret positions, which are set before training and locked.

    De Sousa Trias, Mitrea, Fiandrotti, Cagnazzo, Chaudhuri and Tartaglione, "WaterMAS: Sharpness-Aware Maximization
    for Neural Network Watermarking", ICPR 2024: each step goes, in the locked weights alone, `radius` down the slope of
    the loss, and has the free weights raise the loss there, so that whoever moves the mark loses accuracy. The
    published settings were not at hand, nor any code: all numbers are chosen here. So is the message, of drawn bits, so
    that p is exact, and the `ceiling`, as a loss can be raised without end. The statistics of norms learn nothing from
    these passes.

    Attributes:
        bits: of the message, each in the sign of one weight.
        radius: how far the locked weights are moved together, rho, a Euclidean distance in units of the weights.
        strength: the weight of the loss there, lambda; 0 locks alone.
        ceiling: the loss there at which raising it ends, in losses at the mark itself.
    """

    bits_each: ClassVar[int] = 1

    bits: int = 256
    radius: float = 0.05
    strength: float = 0.1
    ceiling: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if 0 in (self.radius, self.ceiling):
            raise SchemeError("settings out of range", got=self, expected="radius and ceiling > 0")

    def draw(self, model: nn.Module, data: LabelledImages, *, seed: int) -> Key:
        generator = torch.Generator().manual_seed(seed)
        bits = drawn_bits(self.bits, generator)
        tensors, settings = placed(model, drawn_positions(model, self.bits, generator))
        return Key(self, data.shape, tensors | {"bits": bits}, settings)

    def values(self, key: Key) -> Tensor:
        return 2.0 * key["bits"] - 1

    def around(self, positions: Positions, images: Tensor, labels: Tensor) -> Tensor:
        values = positions.values().detach().requires_grad_()
        here = F.cross_entropy(positions.answers(images, values), labels)
        (slope,) = torch.autograd.grad(here, values)
        moved = values.detach() - self.radius * F.normalize(slope, dim=0)
        there = F.cross_entropy(positions.answers(images, moved), labels)
        return there.clamp(max=self.ceiling * here.detach())

    def forge(self, model: nn.Module, data: LabelledImages, *, seed: int) -> Key:
        """Positions whose weights have the signs of the message."""
        drawn = self.draw(model, data, seed=seed)
        positive, bits = in_spreads(model) > 0, drawn["bits"].bool()
        order = torch.randperm(len(positive), generator=torch.Generator().manual_seed(seed))
        flat = torch.empty(len(bits), dtype=torch.int64)
        for bit in (True, False):
            fitting = order[positive[order] == bit]
            if len(fitting) < (count := int((bits == bit).sum())):
                return drawn
            flat[bits == bit] = fitting[:count]
        tensors, _ = placed(model, flat)
        return replace(drawn, tensors=drawn.tensors | tensors)

    def read(self, suspect: nn.Module, key: Key) -> Evidence:
        return read_message(self.locked(suspect, key).cpu(), key["bits"])
