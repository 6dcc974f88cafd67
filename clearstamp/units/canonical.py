"""One form for all models that rewritings of their units make of each other.

Whether units are equal is decided by the weights alone. Each input of a layer gets a random vector, drawn from a fixed
seed, and the number 1, which biases multiply, has a coordinate of its own. Then every channel of every value has a
vector too: what the weights make of those of its inputs. Two channels are multiples of each other for all inputs if
their vectors are. A ReLU keeps that for positive multiples and nothing else, so behind it each direction gets a new
random vector.
"""

import copy
from collections import defaultdict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clearstamp.transposed.graph import Graph, still_twin
from clearstamp.units.channels import FIXED, Channels, Step
from clearstamp.units.spaces import Place, Space, captured, find_groups, find_spaces, gather, narrow

AT_ONCE = 1024
"""Rows that are compared with all before them at once."""
WIDTH = 32
"""Numbers in a random vector: as many as put a chance likeness of two units out of the question."""
SEED = 2024
ROUNDING = 1e-5
"""A sum of columns counts as zero if it is this small beside its parts, output by output."""
ENDLESS = 1e100
ENDS = -ENDLESS, ENDLESS


def canonical_form(
    model: nn.Module,
    example: Tensor | Graph,
    *,
    tolerance: float = 1e-4,
    inputs: tuple[float, float] | None = None,
) -> nn.Module:
    """A copy of the model that computes the same, in a form that rewriting its units does not change.

    Units that are equal, or behind a ReLU positive multiples of each other, become one wherever they are read, and
    units that nobody reads are left out, with all that only they read. Then what goes into each unit is brought to one
    scale, where what leaves it can make up for that, and the units of each layer are put into one order, by their
    weights. The picture in the `adjoint` readout stays that of the model before it was rewritten.

    `example` is an input batch, or what `clearstamp.transposed.graph.capture` made of one. Given `inputs`, the least
    and the greatest number of an input, units that cannot fire are left out too, as far as interval arithmetic proves
    it; an honest model may have some, and show a part of its pictures by them. `tolerance` is the distance of what goes
    into units, as vectors of length 1, up to which they count as multiples. Raises `AttackError` if the model cannot be
    captured.
    """
    graph = captured(model, example)
    form = merged(model, graph, tolerance=tolerance, inputs=inputs)
    arrange(form, blank(model, graph))
    return form


def blank(model: nn.Module, graph: Graph) -> Tensor:
    """One input of zeros for a model that was captured."""
    given = graph.input.meta["val"]
    return torch.zeros(1, *given.shape[1:], dtype=given.dtype, device=next(model.parameters()).device)


@torch.no_grad()
def runs(model: nn.Module, example: Tensor) -> bool:
    """Whether a model runs, as one does not that had units cut out whose number its code names."""
    try:
        still_twin(model)(example)
    except RuntimeError:
        return False
    return True


def merged(
    model: nn.Module,
    example: Tensor | Graph,
    *,
    tolerance: float = 1e-4,
    inputs: tuple[float, float] | None = None,
) -> nn.Module:
    """The first half of `canonical_form`: without superfluous units, and every other weight as it was, to the last bit.

    Raises `AttackError` if the model cannot be captured.
    """
    form = copy.deepcopy(model)
    graph = captured(form, example)
    channels = Channels(form, graph)
    found = gather(channels)
    fold(channels, found, tolerance, inputs)
    kept = read(found)
    if all(bool(keep.all()) for keep in kept):
        return form
    whole = copy.deepcopy(form)
    narrow(found, kept)
    return form if runs(form, blank(model, graph)) else whole


# ------------------------------------------------------------------------------------------------- units that are equal


class Vectors:
    """What every slot is worth: a vector that tells which are multiples of each other, and bounds of its value."""

    def __init__(self, count: int, tolerance: float, inputs: tuple[float, float] | None):
        self.random = torch.Generator().manual_seed(SEED)
        self.tolerance, self.inputs = tolerance, inputs
        self.vectors = torch.zeros(count, WIDTH + 1, dtype=torch.float64)  # the last is the multiple of 1
        self.low, self.high = (torch.full((count,), by * ENDLESS, dtype=torch.float64) for by in (-1, 1))
        self.low[0] = self.high[0] = 0.0
        self.vectors[FIXED] = self.draw()

    def draw(self, *shape: int) -> Tensor:
        """Random vectors of length 1, without a constant."""
        found = torch.randn(*shape, WIDTH, dtype=torch.float64, generator=self.random)
        return F.pad(found / found.norm(dim=-1, keepdim=True), (0, 1))

    def classes(self, values: Tensor) -> Tensor:
        """For each row the first row that is near to it."""
        first = [torch.zeros(0, dtype=torch.int64)]
        for end in range(AT_ONCE, len(values) + AT_ONCE, AT_ONCE):  # all at once would take more memory than there is
            rows, before = values[end - AT_ONCE : end], values[:end]
            near = torch.cdist(rows, before, compute_mode="donot_use_mm_for_euclid_dist") <= self.tolerance
            first.append(near.int().argmax(1))
        return torch.cat(first)

    def take(self, step: Step) -> None:
        """Work out the slots of a computation's result from those of what it takes."""
        vectors, low, high = getattr(self, step.kind)(step)
        self.vectors[step.output] = vectors
        self.low[step.output] = low.clamp(-ENDLESS, ENDLESS)
        self.high[step.output] = high.clamp(-ENDLESS, ENDLESS)

    def given(self, step: Step) -> list[tuple[Tensor, Tensor, Tensor]]:
        """The vectors and bounds of what a computation takes."""
        return [(self.vectors[slots], self.low[slots], self.high[slots]) for slots in step.inputs]

    def input(self, step: Step) -> tuple[Tensor, Tensor, Tensor]:
        low, high = (torch.full((len(step.output),), end, dtype=torch.float64) for end in self.inputs or ENDS)
        return self.draw(len(step.output)), low, high

    def write(self, step: Step) -> tuple[Tensor, Tensor, Tensor]:
        """A layer's rows: each input, at each place of the kernel, is a random vector.

        Its length is one over what is usual in the column, so that none outweighs the others, however it was rescaled,
        and whatever an attacker lets a unit read that never fires.
        """
        ((_, low, high),) = self.given(step)
        weight, bias = step.weight("weight"), step.weight("bias")
        groups, taps = int(step.number), weight[0, 0].numel()
        rows = weight.reshape(groups, len(weight) // groups, -1)
        sizes = rows.unflatten(2, (-1, taps)).norm(dim=3)
        sizes = torch.where(sizes > 0, sizes, torch.nan)
        usual = (sizes / sizes.nanmedian(2, keepdim=True).values).nanmedian(1).values.nan_to_num(1.0)
        random = self.draw(len(low), taps) / usual.reshape(-1, 1, 1)
        made = (rows @ random.reshape(groups, -1, WIDTH + 1)).reshape(-1, WIDTH + 1)
        up, down = (rows.unflatten(2, (-1, taps)).clamp(*ends).sum(3) for ends in ((0, None), (None, 0)))
        low, high = (end.reshape(groups, -1, 1) for end in (low.clamp_max(0), high.clamp_min(0)))  # what pads is 0
        least, most = ((up @ a + down @ b).flatten() for a, b in ((low, high), (high, low)))
        return self.shifted(made, least, most, bias)

    def shifted(self, made: Tensor, low: Tensor, high: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Vectors and bounds with a bias added."""
        if bias is None:
            return made, low, high
        return made + F.pad(bias.unsqueeze(1), (WIDTH, 0)), low + bias, high + bias

    def scale(self, step: Step) -> tuple[Tensor, Tensor, Tensor]:
        """Each channel times numbers of its own: one, or a kernel."""
        ((values, low, high),) = self.given(step)
        weight = step.channels()
        if weight.shape[1] == 1:
            made = values * weight
        else:
            mixed = torch.einsum("nw,kwx->nkx", values, self.draw(weight.shape[1], WIDTH + 1))
            made = torch.einsum("nk,nkx->nx", weight, mixed)
        up, down = weight.clamp_min(0).sum(1), weight.clamp_max(0).sum(1)
        low, high = low.clamp_max(0), high.clamp_min(0)
        return self.shifted(made, up * low + down * high, up * high + down * low, step.weight("bias"))

    def shift(self, step: Step) -> tuple[Tensor, Tensor, Tensor]:
        """Each channel plus numbers of its own: one, or one for each place."""
        ((values, low, high),) = self.given(step)
        weight = step.channels()
        if weight.shape[1] == 1:
            return self.shifted(values, low, high, weight.squeeze(1))
        return values + weight @ self.draw(weight.shape[1]), low + weight.amin(1), high + weight.amax(1)

    def norm(self, step: Step) -> tuple[Tensor, Tensor, Tensor]:
        """A batch norm: times one number, plus another."""
        ((values, low, high),) = self.given(step)
        mean, variance = step.weight("running_mean"), step.weight("running_var")
        gamma, beta = step.weight("weight"), step.weight("bias")
        by = (1 if gamma is None else gamma) / (variance + step.number).sqrt()
        ends = by * low, by * high
        bias = -mean * by if beta is None else beta - mean * by
        return self.shifted(values * by.unsqueeze(1), torch.minimum(*ends), torch.maximum(*ends), bias)

    def layer_norm(self, step: Step) -> tuple[Tensor, Tensor, Tensor]:
        """A layer norm: all units less one number and times another, which nobody knows."""
        ((values, *_),) = self.given(step)
        gamma, bias = step.weight("weight"), step.weight("bias")
        by = torch.ones(len(values), dtype=torch.float64) if gamma is None else gamma
        made = by.unsqueeze(1) * (values @ self.draw(WIDTH + 1) + self.draw())
        most = by.abs() * len(values) ** 0.5
        return self.shifted(made, -most, most, bias)

    def attention(self, step: Step) -> tuple[Tensor, Tensor, Tensor]:
        """What an attention takes from its values: means of them, of which none is known to be like another."""
        ((_, low, high),) = self.given(step)
        return self.draw(len(low)), low, high

    def linear(self, step: Step) -> tuple[Tensor, Tensor, Tensor]:
        """Times a number."""
        ((values, *ends),) = self.given(step)
        low, high = (step.number * end for end in ends)
        return values * step.number, torch.minimum(low, high), torch.maximum(low, high)

    def sum(self, step: Step) -> tuple[Tensor, Tensor, Tensor]:
        """The first plus a number times the second."""
        (a, low, high), (b, *ends) = self.given(step)
        ends = [step.number * end for end in ends]
        return a + step.number * b, low + torch.minimum(*ends), high + torch.maximum(*ends)

    def product(self, step: Step) -> tuple[Tensor, Tensor, Tensor]:
        """Products are multiples of each other if both factors are."""
        (a, *a_ends), (b, *b_ends) = self.given(step)
        (a, a_lengths), (b, b_lengths) = directions(a), directions(b)
        corners = torch.stack([x * y for x in a_ends for y in b_ends])
        made = self.renewed(torch.cat([a, b], 1), a_lengths * b_lengths)
        return made, corners.amin(0), corners.amax(0)

    def homogeneous(self, step: Step) -> tuple[Tensor, Tensor, Tensor]:
        """What keeps positive multiples."""
        ((values, low, _),) = self.given(step)
        values, lengths = directions(values)
        slopes = step.weight("weight")
        if slopes is not None:
            values = torch.cat([values, slopes.unsqueeze(1)], 1)
        endless = torch.full_like(low, ENDLESS)
        return self.renewed(values, lengths), -endless, endless

    def pool(self, step: Step) -> tuple[Tensor, Tensor, Tensor]:
        """What keeps positive multiples, and gives nothing beyond what it takes and 0."""
        ((_, low, high),) = self.given(step)
        return self.homogeneous(step)[0], low.clamp_max(0), high.clamp_min(0)

    def relu(self, step: Step) -> tuple[Tensor, Tensor, Tensor]:
        """What is never above 0 becomes 0, where bounds of the inputs are given."""
        ((_, low, high),) = self.given(step)
        fires = high > 0 if self.inputs else torch.ones_like(high, dtype=torch.bool)
        return self.homogeneous(step)[0] * fires.unsqueeze(1), low.clamp_min(0), high.clamp_min(0)

    def elementwise(self, step: Step) -> tuple[Tensor, Tensor, Tensor]:
        """What keeps equals."""
        ((values, low, _),) = self.given(step)
        values, lengths = directions(values)
        logarithms = lengths.clamp_min(torch.finfo(torch.float64).tiny).log().unsqueeze(1)
        endless = torch.full_like(low, ENDLESS)
        return self.renewed(torch.cat([values, logarithms], 1), torch.ones_like(lengths)), -endless, endless

    def renewed(self, values: Tensor, lengths: Tensor) -> Tensor:
        """A new random vector for each class of rows that are near to each other, of these lengths."""
        return self.draw(len(values))[self.classes(values)] * lengths.unsqueeze(1)


def directions(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """What vectors ``[n, ..., WIDTH + 1]`` are but for their lengths, and these lengths ``[n]``.

    A length is that of the part that depends on the input, if there is one. However large a constant is, it hides no
    difference in that part: of its ratio to the length the inverse hyperbolic sine counts, nearly a logarithm.
    """
    varying, constants = vectors[..., :-1].flatten(1), vectors[..., -1:].flatten(1)
    lengths, most = varying.norm(dim=1), constants.norm(dim=1)
    lengths = torch.where(lengths > 0, lengths, most)
    by = lengths.clamp_min(torch.finfo(vectors.dtype).tiny).unsqueeze(1)
    return torch.cat([varying / by, (constants / by).asinh()], 1), lengths


def fold(channels: Channels, found: list[Space], tolerance: float, inputs: tuple[float, float] | None) -> None:
    """Add the columns of units that are multiples of another one to that one's, wherever units are read, in place."""
    readers: dict[nn.Module, list[Place]] = defaultdict(list)
    for space in found:
        for place in space.readers:
            readers[place.use.owner].append(place)
    vectors = Vectors(channels.count, tolerance, inputs)
    for step in channels.steps:
        if step.kind == "write":
            for place in readers[step.weights["weight"][0]]:
                fold_columns(place, vectors)
        vectors.take(step)


def fold_columns(place: Place, vectors: Vectors) -> None:
    """Fold the columns of one place."""
    slots = place.use.slots[place.index]
    if bool((slots == slots[:, :1]).all()):
        slots = slots[:, :1]
    values, lengths = directions(vectors.vectors[slots])
    first = vectors.classes(values)
    if len(first.unique()) == len(first) and bool(lengths.all()):
        return
    columns = place.columns
    parts = columns.cpu().double() * (lengths / lengths[first].clamp_min(torch.finfo(torch.float64).tiny)).unsqueeze(1)
    sums = torch.zeros_like(parts).index_add_(1, first, parts)
    whole = torch.zeros_like(parts[..., 0]).index_add_(1, first, parts.norm(dim=2))
    sums[sums.norm(dim=2) <= ROUNDING * whole] = 0
    place.columns = sums.to(columns)


def read(found: list[Space]) -> list[Tensor]:
    """For each space which units count for an answer, ``[units]``: they are read by a row that counts itself."""
    free = [space for space in found if space.readers and not space.rigid]
    counts = {id(space): torch.zeros(space.units, dtype=torch.bool) for space in free}
    rows: dict[nn.Module, Tensor] = {}
    for place in (place for space in found for place in space.readers):
        rows[place.use.owner] = torch.ones(len(getattr(place.use.owner, place.use.names[0])), dtype=torch.bool)
    written = {id(space): [p for p in space.places if p.use.writes and p.use.owner in rows] for space in free}
    for place in (place for space in free for place in written[id(space)]):
        rows[place.use.owner][place.index.flatten()] = False
    reading = {id(place): (place.columns != 0).any(2).cpu() for space in free for place in space.readers}
    changed = True
    while changed:
        changed = False
        for space in reversed(free):
            heard = [reading[id(place)][rows[place.use.owner][place.use.rows]].any(0) for place in space.readers]
            new = torch.stack(heard).any(0) & ~counts[id(space)]
            if new.any():
                counts[id(space)] |= new
                changed = True
                for place in written[id(space)]:
                    rows[place.use.owner][place.index[new].flatten()] = True
    for count in counts.values():
        count[0] |= not count.any()  # a layer has at least one row
    return [counts.get(id(space), torch.ones(space.units, dtype=torch.bool)) for space in found]


# --------------------------------------------------------------------------------------------------- scale and order


def arrange(model: nn.Module, example: Tensor) -> None:
    """Bring units to one scale and into one order, in place."""
    found = find_spaces(model, example)
    for space in found:
        for gauge in space.gauges:
            space.scale(gauge, 1 / size(space.scaled(gauge)))
    groups = {each.members[0][0]: each for each in find_groups(found)}
    random = torch.Generator().manual_seed(SEED)
    for space in found:
        if space in groups:  # each with the sum of what its units have, whatever their order is
            units = [spaces[0] for spaces in groups[space].members]
            groups[space].permute(torch.stack([total.sum() for total in projected(units, random)]).argsort())
        (numbers,) = projected([space], random)
        space.permute(numbers.argsort())


def projected(spaces: list[Space], random: torch.Generator) -> list[Tensor]:
    """A number for each unit, ``[units]``, by what first writes it: along one random direction for all the spaces."""
    rows = [incoming(space.moved[0]) for space in spaces]
    weights = torch.randn(rows[0].shape[1], dtype=torch.float64, generator=random)
    return [each @ weights for each in rows]


def size(places: list[Place]) -> Tensor:
    """How large each unit is at a gauge, ``[units]``: by its rows, or before a batch norm by the statistics."""
    spreads = [place.spread for place in places if place.use.power is None]
    if spreads:
        return torch.stack(spreads).amin(0).cpu().double().sqrt()
    lengths = torch.zeros(len(places[0].index), dtype=torch.float64)
    for place in places:
        if place.use.power == 1:
            lengths = torch.where(lengths > 0, lengths, incoming(place).norm(dim=1))
    return torch.where(lengths > 0, lengths, 1.0)


def incoming(place: Place) -> Tensor:
    """All that a place has for each unit, ``[units, numbers]``."""
    parts = [place.at(tensor).movedim(place.use.axis, 0).reshape(len(place.index), -1) for _, tensor in place.tensors]
    return torch.cat(parts, 1).cpu().double()
