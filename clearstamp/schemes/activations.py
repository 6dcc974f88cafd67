"""Signs of activations: bits in what one layer gives for secret triggers."""

from collections.abc import Callable
from dataclasses import dataclass, replace
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
    UnfitError,
    drawn_bits,
    examined,
    read_message,
    strangers,
)
from clearstamp.schemes.layers import name_at, signals


@dataclass(frozen=True, kw_only=True)
class ActivationSigns(Scheme):
    """Bits that are the signs of secret neurons, one a bit, on average over secret triggers.

    After Tartaglione's lecture on watermarking deep networks, which says no more than that. Chosen here are the
    triggers, noise in the range of the images; the neurons, any numbers that a linear or convolutional layer gives,
    which are read before norm and ReLU, behind which none is negative; and the loss, a hinge that holds every neuron at
    a margin from 0. Its owner needs to see into one layer, more than an interface shows and less than all weights.

    Attributes:
        bits: of the message, and neurons that carry it.
        triggers: how many there are.
        margin: how far from 0 a neuron is held, in root mean squares of all that the layer gives on average.
        strength: the weight of the hinge, a mean over the bits.
        layer: its name in the model; empty for the last one before the logits.
    """

    access: ClassVar[Access] = "weights"
    bits_each: ClassVar[int] = 1

    bits: int = 64
    triggers: int = 16
    margin: float = 1.0
    strength: float = 1.0
    layer: str = ""

    def draw(self, model: nn.Module, data: LabelledImages, *, seed: int) -> Key:
        if self.triggers < 1:
            raise SchemeError("number of triggers out of range", got=self.triggers, expected="at least 1")
        generator = torch.Generator().manual_seed(seed)
        bits, name = drawn_bits(self.bits, generator), self.layer or name_at(model, data, -2)
        low, high = next(iter(data.loader(250)))[0].aminmax()
        triggers = low + (high - low) * torch.rand(self.triggers, *data.shape, generator=generator)
        with strangers(), examined(model), torch.no_grad():
            units = signals(model, name, triggers[:1], "output").numel()
        if self.bits > units:
            raise SchemeError("more bits than neurons", got=self.bits, expected=f"at most {units}", where=name)
        neurons = torch.randperm(units, generator=generator)[: self.bits]
        tensors = {"bits": bits, "neurons": neurons, "triggers": triggers}
        return Key(self, data.shape, tensors, {"layer": name, "units": units})

    def loss(self, model: nn.Module, data: LabelledImages, key: Key) -> Callable[[], Tensor]:
        return HingeLoss(model, key, self)

    def forge(self, model: nn.Module, data: LabelledImages, *, seed: int) -> Key:
        """For each bit another neuron on its side of 0, as long as there are any."""
        drawn = self.draw(model, data, seed=seed)
        with examined(model):
            ranked = self.found(model, drawn).argsort()
        ones = int(drawn["bits"].sum())
        neurons = torch.empty_like(drawn["neurons"])
        neurons[drawn["bits"] == 1], neurons[drawn["bits"] == 0] = ranked.flip(0)[:ones], ranked[: len(neurons) - ones]
        return replace(drawn, tensors=drawn.tensors | {"neurons": neurons})

    def found(self, model: nn.Module, key: Key) -> Tensor:
        """The mean of what the layer gives at a key's triggers, ``[units]``, on the CPU."""
        with torch.no_grad():
            return signals(model, key.settings["layer"], key["triggers"], "output").mean(0).cpu()

    def read(self, suspect: nn.Module, key: Key) -> Evidence:
        with strangers():
            found = self.found(suspect, key)
        if len(found) != key.settings["units"]:
            raise UnfitError("a layer of another size", got=len(found), expected=key.settings["units"])
        return read_message(found[key["neurons"]], key["bits"])


class HingeLoss:
    """By how much neurons fall short of the margin, on the side of 0 that their bits say, on average.

    It is taken in evaluation mode, as the triggers have other statistics than the batches that a norm is trained on.
    """

    def __init__(self, model: nn.Module, key: Key, scheme: ActivationSigns):
        self.model, self.key, self.scheme = model, key, scheme
        self.sides = 2 * key["bits"].float() - 1

    def __call__(self) -> Tensor:
        with examined(self.model):
            found = signals(self.model, self.key.settings["layer"], self.key["triggers"], "output").mean(0)
        size = found.detach().square().mean().sqrt()
        sides = found[self.key["neurons"].to(found.device)] * self.sides.to(found)
        return self.scheme.strength * (self.scheme.margin - sides / size).relu().mean()
