"""Attacks that leave what the model computes as it was: they cost no accuracy, no data and no training."""

import copy
from abc import abstractmethod
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from clearstamp.attacks.base import Attack, Scene, check
from clearstamp.errors import AttackError
from clearstamp.transposed.graph import Graph
from clearstamp.units.canonical import Vectors, runs
from clearstamp.units.channels import Channels, Layer
from clearstamp.units.spaces import Place, Space, find_groups, find_spaces, gather, last_layer, widen


@dataclass(frozen=True, kw_only=True)
class Rewriting(Attack):
    """An attack that rewrites a model unit by unit, wherever its units stand: in chains, and on streams that join."""

    def run(self, scene: Scene) -> None:
        self.rewrite(found(scene))

    @abstractmethod
    def rewrite(self, spaces: list[Space]) -> None:
        """Rewrite the units in place. Raises `AttackError` if there are none that it fits."""


@dataclass(frozen=True, kw_only=True)
class Permutation(Rewriting):
    """Reorder the hidden units of every layer, and groups of convolutions and heads of attention as a whole."""

    def rewrite(self, spaces: list[Space]) -> None:
        for space in spaces:
            space.permute(torch.randperm(space.units))
        for groups in find_groups(spaces):
            groups.permute(torch.randperm(len(groups.members)))


@dataclass(frozen=True, kw_only=True)
class Scaling(Rewriting):
    """Multiply what goes into each hidden unit by d > 0 and divide what leaves it by d.

    `factor` is one d for all units of a layer; for None every unit draws its own, 2 to a whole power from -`octaves` to
    `octaves`. Powers of two change no rounding, so that not one prediction changes.
    """

    missing: ClassVar[tuple[str, str, str]]  # where nothing fits: the problem, what was got, and what was expected

    factor: float | None = None
    octaves: int = 5

    def rewrite(self, spaces: list[Space]) -> None:
        check(self.factor is None or 0 < self.factor < float("inf"), "factor out of range", self.factor, "a number > 0")
        check(self.octaves >= 1, "octaves out of range", self.octaves, "at least 1")
        fitting = [(space, gauge) for space in spaces for gauge in space.gauges if self.fits(space.scaled(gauge))]
        check(bool(fitting), *self.missing)
        for space, gauge in fitting:
            self.scale(space, gauge)

    @abstractmethod
    def fits(self, places: list[Place]) -> bool:
        """Whether this attack rescales what stands in these places."""

    def scale(self, space: Space, gauge: int) -> None:
        """Rescale the units of a space at one gauge."""
        space.scale(gauge, self.draw(space))

    def draw(self, space: Space) -> Tensor:
        """A factor for every unit."""
        if self.factor is not None:
            return torch.full((space.units,), self.factor)
        return torch.exp2(torch.randint(-self.octaves, self.octaves + 1, (space.units,)).float())


@dataclass(frozen=True, kw_only=True)
class Rescaling(Scaling):
    """Rescale the units between layers that have no norm between them, by the layers' own weights and biases."""

    missing = ("no unit can be rescaled", "no ReLU between two layers", "ReLU units, no norm")

    def fits(self, places: list[Place]) -> bool:
        return all(isinstance(place.use.owner, Layer) for place in places)


@dataclass(frozen=True, kw_only=True)
class BatchNormRescaling(Scaling):
    """Rescale the units behind norms, by the norms' weights and biases."""

    missing = ("no batch norm can be rescaled", "none", "batch norm, then ReLU, between two layers")

    def fits(self, places: list[Place]) -> bool:
        return not statistics(places) and not Rescaling().fits(places)


@dataclass(frozen=True, kw_only=True)
class NormInputRescaling(Scaling):
    """Rescale what goes into batch norms, which stays without effect if their running statistics go along.

    The running mean is multiplied by d, and the running variance v becomes d^2 (v + eps) - eps; a unit for which that
    is not positive stays as it is.
    """

    missing = ("no input of a batch norm can be rescaled", "none", "a layer, then batch norm")

    def fits(self, places: list[Place]) -> bool:
        return bool(statistics(places))

    def scale(self, space: Space, gauge: int) -> None:
        factors = self.draw(space)
        for place in statistics(space.scaled(gauge)):
            factors = torch.where(factors**2 * place.spread.cpu() > place.eps, factors, 1.0)
        space.scale(gauge, factors)


def statistics(places: list[Place]) -> list[Place]:
    """Those of the places that are a norm's running statistics."""
    return [place for place in places if place.use.power is None]


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
class DummyUnits(Rewriting):
    """Add the share `share` of hidden units that have no effect.

    ``outgoing="zero"``: no layer reads them. ``outgoing="cancelling"``: pairs of equal units, read with opposite signs.
    Their incoming weights and biases are normal, of `strength` times the spread of the layer's own. What cancels leaves
    rounding errors behind, which grow with the strength and from layer to layer: deep networks want a strength of 1.
    """

    share: float = 0.25
    outgoing: Literal["zero", "cancelling"] = "zero"
    strength: float = 5.0

    def rewrite(self, spaces: list[Space]) -> None:
        check(self.share > 0, "share of units out of range", self.share, "a share above 0")
        check(self.outgoing in ("zero", "cancelling"), "unknown outgoing weights", self.outgoing, "zero or cancelling")
        for space in growing(spaces):
            count = max(1, round(self.share * space.units / 2))
            like = torch.randint(space.units, (count,))  # norms are taken over from units that are there
            widen(spaces, space, partial(self.twice, like))

    def twice(self, like: Tensor, place: Place, tensor: Tensor) -> Tensor:
        """What a place has for each new unit and its twin."""
        if place.use.reads:
            columns = place.columns
            outgoing = columns[:, like]
            outgoing = torch.zeros_like(outgoing) if self.outgoing == "zero" else self.drawn(outgoing, columns)
            return torch.cat([outgoing, -outgoing], 1)
        row = place.at(tensor, like)
        if place.use.writes:
            row = self.drawn(row, tensor)
        return torch.cat([row, row], place.use.axis)

    def drawn(self, like: Tensor, source: Tensor) -> Tensor:
        """Numbers of the shape of `like`, which are those of other units in the tensor `source`."""
        return source.mean() + self.strength * source.std(correction=0) * torch.randn_like(like)


@dataclass(frozen=True, kw_only=True)
class MimicUnits(DummyUnits):
    """Add dummy units that do not stand out: their weights are those of units that are there, times normal numbers.

    So they are of the size of the others also where units were rescaled.
    """

    outgoing: Literal["zero", "cancelling"] = "cancelling"
    strength: float = 1.0

    def drawn(self, like: Tensor, source: Tensor) -> Tensor:
        return like * self.strength * torch.randn_like(like)


@dataclass(frozen=True, kw_only=True)
class SilentUnits(Attack):
    """Add the share `share` of hidden units that are read like others and never fire, as their biases are too low.

    Interval arithmetic says how low, for any input between 0 and 1. Their weights are those of units that are there,
    times normal numbers of spread `strength`: what never fires costs no precision. A unit that has no bias of its own
    before it is read stays unread.
    """

    share: float = 0.25
    strength: float = 5.0

    def run(self, scene: Scene) -> None:
        check(self.share > 0, "share of units out of range", self.share, "a share above 0")
        spaces = found(scene)
        before = [space.units for space in spaces]
        for space in growing(spaces):
            like = torch.randint(space.units, (max(1, round(self.share * space.units)),))
            widen(spaces, space, partial(self.mimics, like))
        silence(scene.model, scene.graph(), before)

    def mimics(self, like: Tensor, place: Place, tensor: Tensor) -> Tensor:
        """What a place has for units that are nearly like others."""
        own = place.columns[:, like] if place.use.reads else place.at(tensor, like)
        return own * self.strength * torch.randn_like(own) if place.use.reads or place.use.writes else own


LOUD = 1e30
"""A bound that no bias makes up for in 32 bits."""


@torch.no_grad()
def silence(model: nn.Module, graph: Graph, before: list[int]) -> None:
    """Lower the biases of all units but as many of each space as there were `before`, until they cannot fire."""
    channels = Channels(model, graph)
    new = torch.zeros(channels.count, dtype=torch.bool)
    for space, units in zip(gather(channels), before, strict=True):
        for place in space.places:
            new[place.use.slots[place.index[units:]]] = True
    vectors = Vectors(channels.count, tolerance=0.0, inputs=(0.0, 1.0))
    for step in channels.steps:
        if step.kind == "write":
            owner, name = step.weights["weight"]
            (read,) = step.inputs
            heard = new[read] & ((vectors.high[read] > 0) | (vectors.low[read] < 0))
            if heard.any():
                getattr(owner, name)[:, heard] = 0
        vectors.take(step)
        if "bias" in step.weights:
            owner, name = step.weights["bias"]
            bias, high = getattr(owner, name), vectors.high[step.output]
            low = torch.where(new[step.output] & (high < LOUD), 1.01 * high.clamp_min(0) + 1e-3, 0.0)
            bias -= low.to(bias)
            vectors.take(step)


@dataclass(frozen=True, kw_only=True)
class SplitUnits(Rewriting):
    """Split the share `share` of hidden units in two: equal inputs, outputs in the proportion `part` to 1 - `part`."""

    share: float = 0.25
    part: float = 0.5

    def rewrite(self, spaces: list[Space]) -> None:
        check(0 < self.share <= 1, "share of units out of range", self.share, "above 0, at most 1")
        for space in growing(spaces):
            chosen = torch.randperm(space.units)[: max(1, round(self.share * space.units))]
            widen(spaces, space, partial(self.twins, chosen))

    def twins(self, chosen: Tensor, place: Place, tensor: Tensor) -> Tensor:
        """What a place has for the twins of the units that are split, which keep their part."""
        if not place.use.reads:
            return place.at(tensor, chosen)
        columns = place.columns
        twins = columns[:, chosen] * (1 - self.part)
        columns[:, chosen] *= self.part
        place.columns = columns
        return twins


@dataclass(frozen=True, kw_only=True)
class Composed(Rewriting):
    """Random rewritings one after another, `depth` of them, each of a share of the units where units are added.

    Each is drawn from all that fit the model, with its settings: permutation, the three rescalings, units that nobody
    reads, pairs that cancel, and units split into parts, of either sign or not.
    """

    depth: int = 10
    share: float = 0.05

    def rewrite(self, spaces: list[Space]) -> None:
        check(self.depth >= 1, "depth out of range", self.depth, "at least 1")
        left = self.depth
        while left:
            part = float(torch.empty(()).uniform_(-2.0, 3.0))
            choice: list[Rewriting] = [
                *(Permutation(), Rescaling(), BatchNormRescaling(), NormInputRescaling()),
                *(MimicUnits(share=self.share, outgoing="zero"), MimicUnits(share=self.share, outgoing="cancelling")),
                SplitUnits(share=self.share, part=part),
            ]
            try:
                choice[int(torch.randint(len(choice), ()))].rewrite(spaces)
            except AttackError:
                continue
            left -= 1


def found(scene: Scene) -> list[Space]:
    """The spaces of a model's units, rigid where it does not run with more. Raises `AttackError` if it has none."""
    spaces = find_spaces(scene.model, scene.graph())
    check(bool(spaces), "the model has no hidden units between two layers", "none", "at least one hidden layer")
    free = [number for number, space in enumerate(spaces) if not space.rigid]
    if not runs_wider(scene, spaces, free):
        for number in free:
            spaces[number].rigid = not runs_wider(scene, spaces, [number])
    return spaces


def runs_wider(scene: Scene, spaces: list[Space], numbers: list[int]) -> bool:
    """Whether the model runs with one more unit in each of some spaces: code may cut a slice that is no cut today."""
    model, own = copy.deepcopy((scene.model, spaces))
    for number in numbers:
        widen(own, own[number], one_more)
    return runs(model, scene.example)


def one_more(place: Place, tensor: Tensor) -> Tensor:
    """What a place has for one more unit, like the first."""
    return place.columns[:, :1] if place.use.reads else place.at(tensor, slice(1))


def growing(spaces: list[Space]) -> list[Space]:
    """The spaces that units can be added to. Raises `AttackError` if there is none."""
    growing = [space for space in spaces if not space.rigid]
    check(bool(growing), "no units can be added to the model", "sizes that its code names", "layers in sequence")
    return growing
