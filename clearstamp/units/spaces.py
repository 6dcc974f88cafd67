"""Units: which weights of a model make and read each, and how a model is rewritten unit by unit.

Attackers use this to change a model without changing what it computes, and judges use it to undo that.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from clearstamp.errors import AttackError, TransposeError
from clearstamp.transposed.graph import Graph, Output, arguments, capture, unwrapped
from clearstamp.units.channels import FIXED, WEIGHTED, Channels, Convolution, Layer, Use, kind

RESIZED = Layer | nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | nn.PReLU
"""Modules that know their own size, which a rewriting corrects."""


Kind = tuple[bool, tuple[tuple[int, int | None], ...]]
"""What units of one space have in common: are they rigid, and the number of each of their uses, with that of its gauge.
"""


@dataclass(eq=False)
class Place:
    """Where the units of a space stand in a module's tensors.

    Attributes:
        use: which tensors, along which axis, and what rescaling a unit does there.
        index: the positions of each unit along that axis, ``[units, width]``; the width is above 1 after a flatten.
        gauge: which of a space's gauges rescales these numbers; None if they cannot be rescaled.
    """

    use: Use
    index: Tensor
    gauge: int | None

    @property
    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """The tensors by their names; of a grouped convolution, the group's part of each."""
        for name in self.use.names:
            yield name, getattr(self.use.owner, name).detach()[self.use.rows]

    def at(self, tensor: Tensor, units: Tensor | slice = slice(None)) -> Tensor:
        """What a tensor has for some units, one after another along its axis."""
        positions = self.index[units].flatten().to(tensor.device)
        chosen: Any = (*[slice(None)] * (self.use.axis % tensor.dim()), positions)
        return tensor[chosen]

    def put(self, tensor: Tensor, values: Tensor) -> None:
        """Give a tensor other numbers for all units, in place."""
        tensor.index_copy_(self.use.axis, self.index.flatten().to(tensor.device), values)

    @property
    def columns(self) -> Tensor:
        """A copy of what a layer reads the units with, ``[outputs, units, rest]``."""
        (_, weight), *_ = self.tensors
        alone = torch.equal(self.index.flatten(), torch.arange(weight.shape[1]))
        return (weight if alone else self.at(weight)).reshape(len(weight), len(self.index), -1).clone()

    @columns.setter
    def columns(self, value: Tensor) -> None:
        (_, weight), *_ = self.tensors
        self.put(weight, value.reshape(len(weight), -1, *weight.shape[2:]))

    @property
    def eps(self) -> float:
        """Of a norm's statistics: what is added to the variance."""
        return float(self.use.owner.eps)  # type: ignore[arg-type]

    @property
    def spread(self) -> Tensor:
        """Of a norm's statistics: the variance that it divides each unit by the root of, ``[units]``."""
        return self.at(dict(self.tensors)["running_var"]) + self.eps

    def same_axis(self, other: "Place") -> bool:
        """Whether another place is along the same axis of the same tensors."""
        a, b = self.use, other.use
        return a.owner is b.owner and a.axis == b.axis and a.names[:1] == b.names[:1]


@dataclass(eq=False)
class Space:
    """Units that stand side by side in the same tensors, such as the channels of a residual stream.

    Attributes:
        places: where they stand, in the order of the graph.
        rigid: whether their number has to stay: the code names it, or they are normalised together.
    """

    places: list[Place]
    rigid: bool

    @property
    def units(self) -> int:
        return len(self.places[0].index)

    @property
    def moved(self) -> list[Place]:
        """The places whose numbers go with a unit, each number in one of them."""
        return [place for place in self.places if place.use.moved]

    @property
    def readers(self) -> list[Place]:
        """The places of the columns that read the units."""
        return [place for place in self.places if place.use.reads]

    @property
    def writers(self) -> list[Layer]:
        """The layers whose rows write the units."""
        return [place.use.owner for place in self.places if place.use.writes and isinstance(place.use.owner, Layer)]

    @property
    def gauges(self) -> list[int]:
        """What can be rescaled without changing the function: each stands for one number a unit."""
        return sorted({place.gauge for place in self.places if place.gauge is not None})

    def scaled(self, gauge: int) -> list[Place]:
        """The places that a gauge rescales."""
        return [place for place in self.places if place.gauge == gauge]

    def scale(self, gauge: int, factors: Tensor) -> None:
        """Multiply what makes the units by `factors` ``[units]``, and divide what reads them."""
        for place in self.scaled(gauge):
            for name, tensor in place.tensors:
                shape = [1] * tensor.dim()
                shape[place.use.axis] = -1
                own = place.at(tensor)
                by = factors.to(tensor).repeat_interleave(place.index.shape[1]).reshape(shape)
                if place.use.power == -1:
                    own = own / by
                elif name == "running_var":
                    own = by**2 * place.spread - place.eps
                elif place.use.power != 0:
                    own = own * by
                place.put(tensor, own)

    def permute(self, order: Tensor) -> None:
        """Put the units into another order."""
        for place in self.moved:
            for _, tensor in place.tensors:
                place.put(tensor, place.at(tensor, order))


def find_spaces(model: nn.Module, example: Tensor | Graph) -> list[Space]:
    """The units of a model that can be rewritten, in the order in which they are first written.

    Here and below, `example` is an input batch, or what `clearstamp.transposed.graph.capture` made of one.
    """
    return gather(Channels(model, captured(model, example)))


def gather(channels: Channels) -> list[Space]:
    """The units of a model whose channels were followed."""
    unit, scale = channels.units(), channels.scales()
    rigid = set(unit[torch.cat([slots.flatten() for slots in channels.rigid])].tolist()) if channels.rigid else set()
    seen: dict[int, list[tuple[int, int, int]]] = defaultdict(list)
    for number, use in enumerate(channels.uses):
        for position, slot in enumerate(use.slots.tolist()):
            seen[int(unit[slot])].append((number, position, int(scale[slot]) if use.names else FIXED))
    alike: dict[Kind, list[list[int]]] = defaultdict(list)
    for root, places in seen.items():
        if root > FIXED:
            gauges = {scale: gauge for gauge, scale in enumerate(dict.fromkeys(s for *_, s in places if s != FIXED))}
            key = tuple((number, gauges.get(scale)) for number, _, scale in places)
            alike[root in rigid, key].append([position for _, position, _ in places])
    return [gathered(channels.uses, kind, torch.tensor(positions)) for kind, positions in alike.items()]


def gathered(uses: list[Use], kind: Kind, positions: Tensor) -> Space:
    """The space of units of one kind, with their positions ``[units, places]``."""
    rigid, where = kind
    columns: dict[tuple[int, int | None], list[int]] = defaultdict(list)
    for column, each in enumerate(where):
        columns[each].append(column)
    places = [Place(uses[n], positions[:, at], gauge) for (n, gauge), at in columns.items()]
    blocks = all(
        torch.equal(place.index.flatten(), place.index[0, 0] + torch.arange(place.index.numel()))
        and isinstance(place.use.owner, RESIZED)
        for place in places
    )
    return Space(places, rigid or not blocks)


@dataclass(eq=False)
class Groups:
    """Groups of grouped convolutions, or heads of an attention, each with all that goes into it and comes out.

    They can change places as a whole.

    Attributes:
        members: the spaces of each group, in one order, so that those at one position lie alike.
    """

    members: list[list[Space]]

    def permute(self, order: Tensor) -> None:
        """Put the groups into another order: what a group's kernels read goes with its rows."""
        for spaces in zip(*self.members, strict=True):
            for places in zip(*(space.moved for space in spaces), strict=True):
                if places[0].use.reads and places[0].use.group:
                    continue
                for tensors in zip(*(place.tensors for place in places), strict=True):
                    values = [place.at(tensor) for place, (_, tensor) in zip(places, tensors, strict=True)]
                    for place, (_, tensor), source in zip(places, tensors, order.tolist(), strict=True):
                        place.put(tensor, values[source])


def find_groups(spaces: list[Space]) -> list[Groups]:
    """The groups and heads that can change places, in the order in which they are first written.

    Convolutions whose groups are read by one another have theirs in common. Those whose groups a shuffle mixes are left
    out, and those that read what cannot be rewritten, such as the image, or write it.
    """
    groups = {space: [place.use.group for place in space.places if place.use.group] for space in spaces}
    together: list[tuple[set[object], set[Space]]] = []
    for space in (space for space in spaces if groups[space]):
        owners, own = {group.owner for group in groups[space]}, {space}
        for other in [each for each in together if each[0] & owners]:
            together.remove(other)
            owners, own = owners | other[0], own | other[1]
        together.append((owners, own))
    found = []
    for owners, own in together:
        numbers = {space: {group.number for group in groups[space]} for space in own}
        members: dict[int, list[Space]] = defaultdict(list)
        for space in (space for space in spaces if space in own):
            members[min(numbers[space])].append(space)
        ordered = [members[number] for number in sorted(members)]
        if len(ordered) > 1 and all(len(each) == 1 for each in numbers.values()) and exchangeable(owners, ordered):
            found.append(Groups(ordered))
    return sorted(found, key=lambda each: spaces.index(each.members[0][0]))


def exchangeable(owners: set[object], members: list[list[Space]]) -> bool:
    """Whether groups lie alike, and both sides of each belong to them as a whole."""

    def lies(place: Place) -> tuple[object, ...]:
        index = place.index.tolist() if place.use.group else place.index.shape
        return place.use.owner, place.use.names, place.use.axis, place.gauge, index

    first, *others = ([[lies(place) for place in space.places] for space in spaces] for spaces in members)
    held: Counter[tuple[object, str, int, int]] = Counter()
    for place in (place for space in members[0] for place in space.places):
        if group := place.use.group:
            held[group.owner, group.side, group.count, group.size] += place.index.numel()
    whole = {(who, side) for (who, side, count, size), n in held.items() if (count, size) == (len(members), n)}
    return all(other == first for other in others) and whole >= {*product(owners, ("in", "out"))}


def widen(all_spaces: list[Space], space: Space, fill: Callable[[Place, Tensor], Tensor]) -> None:
    """Add units to a space, behind those that are there.

    `fill` gives what each tensor of each place has for them: rows, or columns ``[outputs, units, rest]``.
    """
    for place in space.moved:
        end, width = int(place.index.max()) + 1, place.index.shape[1]
        for name, tensor in place.tensors:
            new = fill(place, tensor)
            shape, axis = tensor.shape, place.use.axis
            added = new.shape[axis] * (width if place.use.reads else 1)
            if place.use.reads:
                tensor, new = (each.reshape(len(each), size, -1) for each, size in ((tensor, shape[1]), (new, added)))
            parts = [tensor.narrow(axis, 0, end), new, tensor.narrow(axis, end, shape[axis] - end)]
            wider = torch.cat([part for part in parts if part.numel()], axis)
            if place.use.reads:
                wider = wider.reshape(*wider.shape[:2], *shape[2:])
            replace_tensor(place.use.owner, name, wider)
        for other in (other for each in all_spaces for other in each.places if other.same_axis(place)):
            other.index = torch.where(other.index >= end, other.index + added, other.index)
            if other in space.places:
                other.index = torch.cat([other.index, torch.arange(end, end + added).reshape(-1, width)])


def narrow(all_spaces: list[Space], kept: list[Tensor]) -> None:
    """Cut all units out of their spaces but those that are `kept`, a mask ``[units]`` for each space."""
    gone: dict[tuple[nn.Module, str, int], list[Tensor]] = defaultdict(list)
    for space, keep in zip(all_spaces, kept, strict=True):
        for place in space.moved:
            for name in place.use.names:
                gone[place.use.owner, name, place.use.axis].append(place.index[~keep].flatten())
    for (owner, name, axis), positions in gone.items():
        tensor = getattr(owner, name).detach()
        stays = torch.ones(tensor.shape[axis], dtype=torch.bool).index_fill_(0, torch.cat(positions), False)
        if not stays.all():
            replace_tensor(owner, name, tensor.index_select(axis, stays.nonzero().flatten().to(tensor.device)))


def replace_tensor(owner: Any, name: str, value: Tensor) -> None:
    """Give a module a parameter or buffer of another size, and correct the size that it tells of itself."""
    old = getattr(owner, name)
    setattr(owner, name, nn.Parameter(value, old.requires_grad) if isinstance(old, nn.Parameter) else value)
    if isinstance(owner, nn.Linear):
        owner.out_features, owner.in_features = owner.weight.shape
    elif isinstance(owner, Convolution):
        if owner.groups > 1:
            owner.groups = len(owner.weight)
        owner.out_channels, owner.in_channels = len(owner.weight), owner.weight.shape[1] * owner.groups
    elif isinstance(owner, nn.PReLU):
        owner.num_parameters = len(value)
    elif isinstance(owner, RESIZED):
        owner.num_features = len(value)


def captured(model: nn.Module, example: Tensor | Graph, output: Output = None) -> Graph:
    """The model's graph. Raises `AttackError` if it cannot be captured."""
    try:
        return example if isinstance(example, Graph) else capture(model, example, output)
    except TransposeError as error:
        raise AttackError("the model cannot be captured", got=str(error)) from error


class Graphs:
    """The graphs of models that take such an `example`, up to an `output`: captured once for all models of one form.

    `known` is a pair of a model and its graph. Raises `AttackError` for a model that cannot be captured.
    """

    def __init__(self, example: Tensor, known: tuple[nn.Module, Graph] | None = None, output: Output = None):
        self.example, self.output = example, output
        self.found = {} if known is None else {form(known[0]): known[1]}

    def __call__(self, model: nn.Module) -> Graph:
        seen = form(model)
        if seen not in self.found:
            self.found[seen] = captured(model, self.example, self.output)
        return self.found[seen]


def form(model: nn.Module) -> object:
    """All that a capture of a model depends on, but for the code of its modules."""
    settings = (bool, int, float, str, tuple, list)
    modules = tuple(
        (name, type(part), repr([(k, v) for k, v in vars(part).items() if isinstance(v, settings) and k != "training"]))
        for name, part in model.named_modules()
    )
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    last = {id(tensor): name for name, tensor in tensors}  # of weights that are tied
    return modules, tuple((name, last[id(t)], t.shape, t.stride(), t.dtype, t.device) for name, t in tensors)


def layers(model: nn.Module, example: Tensor | Graph) -> list[Layer]:
    """Every linear and convolutional layer, in the order in which they first run."""
    graph, model = captured(model, example), unwrapped(model)
    weights = [arguments(node).get("weight") for node in graph.nodes if kind(node) in WEIGHTED]
    owners = [model.get_submodule(graph.weights[node].rpartition(".")[0]) for node in weights if node in graph.weights]
    return [layer for layer in dict.fromkeys(owners) if isinstance(layer, Layer)]


def last_layer(model: nn.Module, example: Tensor | Graph) -> Layer:
    """The layer that gives the logits. Raises `AttackError` if the model has none."""
    found = layers(model, example)
    if not found:
        raise AttackError("the model has no linear or convolutional layer")
    return found[-1]


def replace_module(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put `new` in the place of the submodule `old`."""
    name = next(name for name, module in model.named_modules() if module is old)
    model.set_submodule(name, new)
