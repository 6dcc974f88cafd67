"""Attacks that leave what the model computes as it was: they cost no accuracy, no data and no training."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from clearstamp.attacks.base import Attack, Scene, check
from clearstamp.errors import AttackError
from clearstamp.units import Hidden, hidden_layers, last_layer, rebuild


@dataclass(frozen=True, kw_only=True)
class Permutation(Attack):
    """Reorder the hidden units of every layer."""

    def run(self, scene: Scene) -> None:
        for hidden in groups(scene):
            order = torch.randperm(hidden.units)
            for _, _, tensor in hidden.rows:
                tensor.copy_(tensor[order].clone())
            hidden.columns = hidden.columns[:, order]


@dataclass(frozen=True, kw_only=True)
class Scaling(Attack):
    """Multiply what goes into each hidden unit by d > 0 and divide what leaves it by d.

    `factor` is one d for all units of a layer; for None every unit draws its own, 2 to a whole power from -`octaves` to
    `octaves`. Powers of two change no rounding, so that not one prediction changes.
    """

    factor: float | None = None
    octaves: int = 5

    def fitting(self, scene: Scene) -> list[Hidden]:
        """The hidden units that scale, with and without norms."""
        check(self.factor is None or 0 < self.factor < float("inf"), "factor out of range", self.factor, "a number > 0")
        check(self.octaves >= 1, "octaves out of range", self.octaves, "at least 1")
        return [hidden for hidden in groups(scene) if hidden.homogeneous]

    def scale(self, hidden: Hidden, layer: nn.Module) -> None:
        """Multiply the weight and bias of `layer`, which makes the units, and divide their columns."""
        factors = draw(hidden, self.factor, self.octaves).to(hidden.writer.weight)
        for tensor in layer.parameters(recurse=False):
            tensor.data *= factors.reshape(-1, *[1] * (tensor.dim() - 1))
        hidden.columns = hidden.columns / factors.reshape(1, -1, 1)


@dataclass(frozen=True, kw_only=True)
class Rescaling(Scaling):
    """Rescale the units between two layers that have no norm between them, by the layer's own weight and bias."""

    def run(self, scene: Scene) -> None:
        fitting = [hidden for hidden in self.fitting(scene) if not hidden.norms]
        check(bool(fitting), "no unit can be rescaled", "no ReLU between two layers", "ReLU units, no norm")
        for hidden in fitting:
            self.scale(hidden, hidden.writer)


@dataclass(frozen=True, kw_only=True)
class BatchNormRescaling(Scaling):
    """Rescale the units behind a batch norm, by its weight and bias."""

    def run(self, scene: Scene) -> None:
        fitting = [hidden for hidden in self.fitting(scene) if hidden.norms]
        check(bool(fitting), "no batch norm can be rescaled", "none", "batch norm, then ReLU, between two layers")
        for hidden in fitting:
            self.scale(hidden, hidden.norms[-1])


@dataclass(frozen=True, kw_only=True)
class LogitShift(Attack):
    """Add one number to every logit: the softmax does not change.

    Raises `AttackError` if the last layer has no bias.
    """

    shift: float = 8.0

    def run(self, scene: Scene) -> None:
        last = last_layer(scene.model, scene.graph())
        if last.bias is None:
            raise AttackError("the last layer has no bias to shift")
        last.bias.data += self.shift


@dataclass(frozen=True, kw_only=True)
class DummyUnits(Attack):
    """Add the share `share` of hidden units that have no effect.

    ``outgoing="zero"``: no layer reads them. ``outgoing="cancelling"``: pairs of equal units, read with opposite signs.
    Their incoming weights and biases are normal, of `strength` times the spread of the layer's own.
    """

    share: float = 0.25
    outgoing: Literal["zero", "cancelling"] = "zero"
    strength: float = 5.0

    def run(self, scene: Scene) -> None:
        check(self.share > 0, "share of units out of range", self.share, "a share above 0")
        check(self.outgoing in ("zero", "cancelling"), "unknown outgoing weights", self.outgoing, "zero or cancelling")
        for hidden in groups(scene):
            count = max(1, round(self.share * hidden.units / 2))
            like = torch.randint(hidden.units, (count,))  # norms are taken over from units that are there
            rows = [
                normal_like(tensor[like], tensor, self.strength) if owner is hidden.writer else tensor[like]
                for owner, _, tensor in hidden.rows
            ]
            columns = hidden.columns
            outgoing = torch.zeros_like(columns[:, like])
            if self.outgoing == "cancelling":
                outgoing = normal_like(outgoing, columns, self.strength)
            wider = [torch.cat([tensor, row, row]) for (_, _, tensor), row in zip(hidden.rows, rows, strict=True)]
            rebuild(hidden, wider, torch.cat([columns, outgoing, -outgoing], 1))


@dataclass(frozen=True, kw_only=True)
class SplitUnits(Attack):
    """Split the share `share` of hidden units in two: equal inputs, outputs in the proportion `part` to 1 - `part`."""

    share: float = 0.25
    part: float = 0.5

    def run(self, scene: Scene) -> None:
        check(0 < self.share <= 1, "share of units out of range", self.share, "above 0, at most 1")
        for hidden in groups(scene):
            chosen = torch.randperm(hidden.units)[: max(1, round(self.share * hidden.units))]
            columns = hidden.columns
            twins = columns[:, chosen] * (1 - self.part)
            columns[:, chosen] *= self.part
            wider = [torch.cat([tensor, tensor[chosen]]) for _, _, tensor in hidden.rows]
            rebuild(hidden, wider, torch.cat([columns, twins], 1))


def groups(scene: Scene) -> list[Hidden]:
    """The model's hidden units; raises `AttackError` if it has none between two layers."""
    found = hidden_layers(scene.model, scene.graph())
    check(bool(found), "the model has no hidden units between two layers", "none", "at least one hidden layer")
    return found


def draw(hidden: Hidden, factor: float | None, octaves: int) -> Tensor:
    """A factor for every unit."""
    if factor is not None:
        return torch.full((hidden.units,), factor)
    return torch.exp2(torch.randint(-octaves, octaves + 1, (hidden.units,)).float())


def normal_like(shape: Tensor, source: Tensor, strength: float) -> Tensor:
    """A normal tensor of `shape`, around the mean of `source` and with `strength` times its spread."""
    return source.mean() + strength * source.std(correction=0) * torch.randn_like(shape)
