"""The units of a suspect in the order and at the scale that they have in its owner's model."""

import copy
from functools import partial

import torch
from torch import Tensor, nn

from clearstamp.errors import AttackError
from clearstamp.transposed.graph import Graph
from clearstamp.units.canonical import blank, incoming, merged, runs
from clearstamp.units.spaces import Groups, Place, Space, captured, find_groups, find_spaces, widen

ROUNDS = 50
"""Matches settle within a few."""
GAIN = 1e-9
"""Units change places if that makes them more alike than by rounding, beside what is most alike."""


def align_units(
    suspect: nn.Module,
    reference: nn.Module,
    example: Tensor | Graph,
    *,
    inputs: tuple[float, float] | None = None,
) -> nn.Module:
    """A copy of the suspect that computes the same, with its units in the order and at the scale of the reference's.

    The owner's answer to whoever reorders and rescales units, for marks that are read at fixed places. It asks for the
    owner's model, where `canonical_form` needs nothing but the suspect, and so it finds units that were trained further
    as well: by the best assignment of those whose weights, incoming and outgoing, point the same way (the weight
    matching of Ainsworth et al., Git Re-Basin, 2023). Groups of convolutions and heads of attention change places as
    a whole before their units do. Then what goes into each unit is brought to the size that it has in the reference,
    where what leaves it can make up for that.

    A suspect with more units than the reference has superfluous ones left out first, as by `canonical_form`, which
    `inputs` is for. Those that are left over stand behind the matched ones, and where units are missing, some without
    effect are put in. `example` is an input batch, or what `clearstamp.transposed.graph.capture` made of one for the
    reference. Raises `AttackError` if a model cannot be captured, and if the two do not differ in the number of their
    units alone.
    """
    graph = captured(reference, example)
    form, image, weight = copy.deepcopy(suspect), blank(reference, graph), next(suspect.parameters())
    image = image.to(weight.device, weight.dtype if image.is_floating_point() else image.dtype)
    own, theirs = find_spaces(form, image), find_spaces(reference, graph)
    if any(a.units > b.units for a, b in zip(own, theirs, strict=False)):
        form = merged(form, image, inputs=inputs)
        own = find_spaces(form, image)
    error = mismatch(own, theirs)
    if [layout(space) for space in own] != [layout(space) for space in theirs]:
        raise error
    if [space.units for space in own] != [space.units for space in theirs]:
        theirs = find_spaces(copy.deepcopy(reference), graph)
        pad(own, theirs)
        pad(theirs, own)
        if not runs(form, image):
            raise error
    shapes = [[[t.shape for _, t in place.tensors] for s in spaces for place in s.places] for spaces in (own, theirs)]
    if shapes[0] != shapes[1]:
        raise error
    match(own, theirs)
    return form


def layout(space: Space) -> list[object]:
    """Where the units of a space stand, but for their number, which counts where it has to stay."""
    places = [(type(p.use.owner), p.use.names, p.use.axis, p.index.shape[1], p.gauge) for p in space.places]
    return [*places, space.units if space.rigid else None]


def mismatch(own: list[Space], theirs: list[Space]) -> AttackError:
    """What to raise for models that have not the same layers."""
    sizes = [" ".join(str(space.units) for space in spaces) for spaces in (own, theirs)]
    return AttackError(
        "the suspect's layers are not those of the reference",
        got=f"hidden units: {sizes[0]}",
        expected=f"hidden units: {sizes[1]}",
        remedy="put back what was replaced, such as the last layer",
    )


def pad(spaces: list[Space], others: list[Space]) -> None:
    """Put units without effect into those spaces that have fewer than the others."""
    for space, other in zip(spaces, others, strict=True):
        if space.units < other.units:
            widen(spaces, space, partial(blanks, torch.zeros(other.units - space.units, dtype=torch.int64)))


def blanks(like: Tensor, place: Place, tensor: Tensor) -> Tensor:
    """What a place has for units without effect: zeros."""
    return torch.zeros_like(place.columns[:, like] if place.use.reads else place.at(tensor, like))


@torch.no_grad()
def match(own: list[Space], theirs: list[Space]) -> None:
    """Permute and rescale the units of one model like those of the other, in place.

    The first pass goes from the input on and looks at what first writes each unit, whose inputs are in order by then;
    whole groups of a grouped convolution change places before their units do. The others look at all that a unit is
    written with and read by.
    """
    groups = {a.members[0][0]: (a, b) for a, b in zip(find_groups(own), find_groups(theirs), strict=True)}
    for a, b in zip(own, theirs, strict=True):
        if a in groups:
            match_groups(*groups[a])
        match_space(a, b, 1)
    for _ in range(ROUNDS):
        if not any([match_space(a, b, None) for a, b in zip(own, theirs, strict=True)]):
            break


def match_groups(own: Groups, theirs: Groups) -> None:
    """Match whole groups by what first writes their units, at the best that those of each pair can be matched."""
    a, b = ([spaces[0] for spaces in groups.members] for groups in (own, theirs))
    alike = [[gathered(each := likeness(x, y, 1), assigned(each)).sum().item() for x in a] for y in b]
    if (order := better(torch.tensor(alike, dtype=torch.float64))) is not None:
        own.permute(order)


def match_space(own: Space, theirs: Space, first: int | None) -> bool:
    """Match the units of one space by the `first` of its places, or by all for None; whether one has moved."""
    if (order := better(likeness(own, theirs, first))) is not None:
        own.permute(order)
    for gauge in own.gauges:
        own.scale(gauge, ratios(own.scaled(gauge), theirs.scaled(gauge)))
    return order is not None


def likeness(own: Space, theirs: Space, first: int | None) -> Tensor:
    """How much each unit of the other model ``[units, 1]`` is like each of the own ``[1, units]``."""
    pairs = [(a, b) for a, b in zip(own.moved, theirs.moved, strict=True) if a.use.power]
    return sum((direction(b) @ direction(a).T for a, b in pairs[:first]), torch.zeros(own.units, own.units).double())


def assigned(alike: Tensor) -> Tensor:
    """Which of the columns goes to each row, so that together they are most alike."""
    from scipy.optimize import linear_sum_assignment  # takes as long to import as all the rest

    return torch.from_numpy(linear_sum_assignment(alike, maximize=True)[1])


def gathered(alike: Tensor, order: Tensor) -> Tensor:
    """How much each row is like the column that goes to it."""
    return alike.gather(1, order.unsqueeze(1)).squeeze(1)


def better(alike: Tensor) -> Tensor | None:
    """The best assignment, if it makes more alike than leaving all where it is, by more than rounding."""
    order = assigned(alike)
    gain = (gathered(alike, order) - alike.diagonal()).sum()
    return order if gain > GAIN * alike.abs().amax() else None


def ratios(own: list[Place], theirs: list[Place]) -> Tensor:
    """How much larger the other model's units are at a gauge, ``[units]``, by the first rows that have numbers in both.

    It is 1 where there are none, and where the variance that a norm holds would have to become negative.
    """
    found = torch.zeros(len(own[0].index), dtype=torch.float64)
    for a, b in zip(own, theirs, strict=True):
        if a.use.power == 1:
            numbers, others = incoming(a), incoming(b)
            shared = (numbers != 0) & (others != 0)  # not what was pruned, nor what reads units that are left over
            ratio = (others * shared).norm(dim=1) / (numbers * shared).norm(dim=1)
            found = torch.where(found == 0, ratio.nan_to_num(0.0), found)
    found = torch.where(found > 0, found, 1.0)
    for place in own:
        if place.use.power is None:
            found = torch.where(found**2 * place.spread.cpu() > place.eps, found, 1.0)
    return found


def direction(place: Place) -> Tensor:
    """What a place has for each unit, ``[units, numbers]``, 1 in the root mean square, so that each number counts."""
    numbers = incoming(place)
    return torch.nn.functional.normalize(numbers, eps=1e-300) * numbers.shape[1] ** 0.5
