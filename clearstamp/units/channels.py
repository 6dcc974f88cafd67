"""Channels followed through a graph: which numbers of which weights make each unit, and which read it.

Every operation that computes gives each channel of its result a *slot*; one that moves numbers carries their slots on,
whatever it does to their shape. Slots of one unit are tied: what a batch norm takes and gives, what an addition adds.
So streams that fork, add and join need no cases of their own. What is not understood is tied to the slot `FIXED`.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

from clearstamp.transposed.graph import Graph, arguments, operation, unwrapped
from clearstamp.transposed.rules import ACTIVATIONS, GATES, POOLS, RESAMPLINGS, name_of

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
Layer = nn.Linear | Convolution
WEIGHTED = ("linear", "conv1d", "conv2d", "conv3d")
MOVES = frozenset(
    "flatten squeeze unsqueeze permute transpose swapaxes swapdims movedim moveaxis t numpy_T mT cat concat getitem "
    "view _unsafe_view reshape unflatten chunk split split_with_sizes tensor_split unbind select slice narrow stack "
    "expand expand_as repeat tile roll flip index_select pixel_shuffle pixel_unshuffle channel_shuffle "
    "pad constant_pad_nd".split()
)
SIZELESS = frozenset(
    "flatten squeeze unsqueeze permute transpose swapaxes swapdims movedim moveaxis t cat concat".split()
)
"""Moves that name no size, so that they work with more channels or fewer."""
SAME = frozenset("dropout feature_dropout alpha_dropout feature_alpha_dropout clone contiguous alias detach to".split())
"""What leaves every number as it is."""
HOMOGENEOUS = frozenset({"relu", "leaky_relu", "rrelu", *(name_of(pool).removeprefix("aten::") for pool in POOLS)})
"""They act on each channel separately and scale with it: f(d x) = d f(x) for d > 0."""
SPATIAL = frozenset(name_of(each).removeprefix("aten::") for each in (*POOLS, *RESAMPLINGS))
ELEMENTWISE = frozenset(name_of(each).removeprefix("aten::") for each in ACTIVATIONS) - HOMOGENEOUS - {"prelu"}
"""They act on each number separately."""
BLANK, FIXED = 0, 1
"""The slots of numbers that are zero, and of all that is not to be rewritten."""


@dataclass(frozen=True)
class Group:
    """One group of a grouped convolution, or one head of an attention, on one of its two sides.

    Attributes:
        owner: what has such groups.
        side: "in" or "out"; of a head what queries and keys meet by, and what goes through it from the values.
        number: which of them it is.
        count: how many there are that could stand in for each other.
        size: the number of slots on that side.
    """

    owner: object
    side: str
    number: int
    count: int
    size: int


@dataclass(frozen=True, eq=False)
class Use:
    """Where a module's tensors `names` have a number, or a slice, for each of some slots: along `axis`.

    Attributes:
        slots: the slot at each position along the axis.
        power: what becomes of the numbers if these slots are multiplied by d: they are multiplied by d ** power. For
            the running statistics of a norm, None: the mean is multiplied by d, the variance as it has to be.
        rows: of a grouped convolution, those that belong to the group.
        group: the group or the head that they belong to; of a head there are no tensors.
        moved: whether units that change places take these numbers along; False where another use says it already.
    """

    owner: nn.Module
    names: tuple[str, ...]
    slots: Tensor
    power: int | None
    axis: int = 0
    rows: slice = field(default_factory=lambda: slice(None))
    group: Group | None = None
    moved: bool = True

    @property
    def reads(self) -> bool:
        """Whether these are a layer's columns."""
        return self.axis == 1

    @property
    def writes(self) -> bool:
        """Whether these are a layer's rows."""
        return self.moved and not self.reads and isinstance(self.owner, Layer)


@dataclass(frozen=True, eq=False)
class Step:
    """One computation: the slots of its result, and of what it takes, mostly one for each of the result's."""

    kind: str
    output: Tensor
    inputs: tuple[Tensor, ...] = ()
    weights: dict[str, tuple[nn.Module, str]] = field(default_factory=dict)
    axis: int = 0
    number: float = 1.0

    def weight(self, name: str) -> Any:
        """A weight as it is now, in float64; None if there is none."""
        owner, attribute = self.weights.get(name, (None, ""))
        return None if owner is None else getattr(owner, attribute).detach().cpu().double()

    def channels(self) -> Any:
        """The numbers of the weight for each channel as they are now, in float64, ``[channels, numbers]``."""
        weight = self.weight("weight").movedim(self.axis, 0)
        return weight.reshape(len(weight), -1)


class Channels:
    """The slots of a model's graph.

    Attributes:
        uses: where the weights have numbers for slots, in the order of the graph.
        steps: what is computed, in the same order.
        rigid: slots of channels whose number the model's code names, or that are normalised together.
    """

    def __init__(self, model: nn.Module, graph: Graph):
        self.model, self.graph = unwrapped(model), graph
        self.count = FIXED + 1
        self.uses: list[Use] = []
        self.steps: list[Step] = []
        self.rigid: list[Tensor] = []
        self._ties: list[Tensor] = []
        self._scaled: list[Tensor] = []
        self._times = Counter(
            id(self.tensor(node)) for node in graph.weights for user in node.users if user.op == "call_function"
        )
        self.slots: dict[fx.Node, Any] = {}
        for node in graph.nodes:
            if node is graph.input:
                self.slots[node] = self.fresh(torch.zeros([1] * node.meta["val"].dim()))
                self.steps.append(Step("input", self.slots[node].flatten()))
                self.fix(self.slots[node])
            elif node in graph.signals:
                self.slots[node] = self.visit(node)
        self.fix(self.slots[graph.output])

    def units(self) -> Tensor:
        """For each slot the unit that it belongs to, ``[slots]``: the least slot that is tied to it."""
        return components(self.count, self._ties)

    def scales(self) -> Tensor:
        """For each slot the least of those that can only be rescaled together, ``[slots]``."""
        return components(self.count, self._scaled)

    # ------------------------------------------------------------------------------------------------------- slots

    def fresh(self, like: Tensor) -> Tensor:
        """New slots of this shape."""
        self.count += like.numel()
        return torch.arange(self.count - like.numel(), self.count).reshape(like.shape)

    def tie(self, a: Tensor, b: Tensor, *, scale: bool = True) -> None:
        """Say that slots belong to one unit, and, with `scale`, that they are rescaled together."""
        pairs = torch.stack([each.flatten() for each in torch.broadcast_tensors(a, b)])
        pairs = pairs[:, (pairs != BLANK).all(0)]
        self._ties.append(pairs)
        if scale:
            self._scaled.append(pairs)

    def fix(self, value: Any) -> None:
        """Say that these slots belong to no unit that may be rewritten."""
        for slots in tree_leaves(value):
            self.tie(slots, torch.tensor(FIXED))

    def pin(self, *values: Tensor) -> None:
        """Say that these slots cannot be rescaled."""
        self._scaled += [torch.stack([slots.flatten(), torch.full([slots.numel()], FIXED)]) for slots in values]

    def along(self, x: fx.Node, axis: int) -> Tensor:
        """The slots of a value along an axis, with those tied that lie at one position of it."""
        slots = self.slots[x].movedim(axis, 0).flatten(1)
        first = slots.amax(1)
        self.tie(first.unsqueeze(1), slots)
        return first.expand(x.meta["val"].shape[axis])

    def shape(self, node: fx.Node) -> Any:
        """The shape of a value of one image; of several values, a list."""
        return tree_map(lambda value: list(value.shape), self.graph.shape(node, 1))

    # ----------------------------------------------------------------------------------------------------- weights

    def tensor(self, node: fx.Node) -> Tensor:
        owner, name = self.place(node)
        return getattr(owner, name)

    def place(self, node: fx.Node) -> tuple[nn.Module, str]:
        """The module that a parameter or buffer belongs to, and its name there."""
        owner, _, name = self.graph.weights[node].rpartition(".")
        return self.model.get_submodule(owner), name

    def weights(self, given: dict[str, Any], *names: str) -> dict[str, tuple[nn.Module, str]] | None:
        """The places of the weights that an operation takes; None if one is computed, shared or used twice."""
        nodes = {name: given[name] for name in names if given.get(name) is not None}
        if not all(node in self.graph.weights and self._times[id(self.tensor(node))] == 1 for node in nodes.values()):
            return None
        return {name: self.place(node) for name, node in nodes.items()}

    def use(self, places: Iterable[tuple[nn.Module, str]], slots: Tensor, power: int | None, **rest: Any) -> None:
        """Note where slots stand in weights."""
        (owner, *_), names = zip(*places, strict=True)
        self.uses.append(Use(owner, names, slots, power, **rest))

    # -------------------------------------------------------------------------------------------------- operations

    def visit(self, node: fx.Node) -> Any:
        """The slots of an operation's result, of a shape that broadcasts to it; of several results, a list."""
        name, given = kind(node), arguments(node)
        x = given.get("input", given.get("self"))
        found = None
        if name in MOVES:
            found = self.move(node, name, given)
        elif name in ("add", "sub", "mul", "div"):
            found = self.arithmetic(node, name, given)
        elif name == "scaled_dot_product_attention":
            found = self.attention(node, given)
        elif x not in self.slots or not isinstance(self.slots[x], Tensor) or len(node.all_input_nodes) > 1:
            found = self.layer(node, name, given) if x in self.slots else None
        elif name in SAME:
            found = self.slots[x]
        elif name in ("mean", "amax", "sum"):
            found = self.reduce(node, given)
        elif name in SPATIAL and self.slots[x].shape[2:].numel() > 1:
            found = None
        elif name in HOMOGENEOUS or name in SPATIAL:
            within = "bicubic" not in name and name not in ("leaky_relu", "rrelu")
            found = self.compute("relu" if name == "relu" else "pool" if within else "homogeneous", self.slots[x])
        elif name in ELEMENTWISE:
            found = self.compute("elementwise", self.slots[x], scale=False)
            self.pin(self.slots[x], found)
        if found is not None:
            return found
        for source in node.all_input_nodes:
            self.fix(self.slots.get(source, []))
        return tree_map_only(torch.Tensor, lambda t: torch.full([1] * t.dim(), FIXED), node.meta["val"])

    def compute(self, what: str, *inputs: Tensor, scale: bool = True, **rest: Any) -> Tensor:
        """New slots for what a computation gives, tied to those that it takes one by one."""
        result = self.fresh(torch.broadcast_tensors(*inputs)[0])
        for slots in inputs:
            self.tie(slots, result, scale=scale)
        spread = tuple(slots.expand(result.shape).flatten() for slots in inputs)
        self.steps.append(Step(what, result.flatten(), spread, **rest))
        return result

    def move(self, node: fx.Node, name: str, given: dict[str, Any]) -> Any:
        """What moves numbers is done to their slots."""
        if "pad" in name and (given.get("mode", "constant") != "constant" or given.get("value")):
            return None
        sized = name not in SIZELESS and not (len(node.args) == 2 and leaves_rest(node.args[1]))

        def filled(argument: Any) -> Any:
            if argument in self.slots:
                value = self.slots[argument]
                if sized:
                    self.rigid += tree_leaves(value)
                return value.expand(self.shape(argument)).contiguous() if isinstance(value, Tensor) else value
            if argument in self.graph.constants:
                return self.graph.constants[argument].cpu()
            if isinstance(argument, fx.Node):
                return torch.full(self.shape(argument), FIXED)
            return self.graph.resized(argument, 1)

        args: Any = fx.node.map_aggregate(node.args, filled)
        kwargs: Any = fx.node.map_aggregate(node.kwargs, filled)
        return tree_map(compact, node.target(*args, **kwargs))  # type: ignore[operator]

    def reduce(self, node: fx.Node, given: dict[str, Any]) -> Tensor | None:
        """A mean, sum or maximum over axes along which the slots do not change."""
        slots, axes = self.slots[given["self"]], given.get("dim")
        axes = [axes] if isinstance(axes, int) else axes
        if not axes or any(slots.shape[axis] > 1 for axis in axes):
            return None
        found = self.compute("homogeneous" if kind(node) == "sum" else "pool", slots)
        return found if given.get("keepdim") else found.squeeze([axis % slots.dim() for axis in axes])

    def arithmetic(self, node: fx.Node, name: str, given: dict[str, Any]) -> Tensor | None:
        """Sums, products and quotients of signals, numbers and parameters."""
        a, b, by = given["self"], given["other"], given.get("alpha", 1) * (-1 if name == "sub" else 1)
        if a not in self.slots and name in ("add", "mul") and by == 1:
            a, b = b, a
        if a not in self.slots:
            return None
        if isinstance(b, int | float):
            if name in ("mul", "div"):
                return self.compute("linear", self.slots[a], number=b if name == "mul" else 1 / b if b else 0.0)
            found = self.compute("elementwise", self.slots[a], scale=False)
            self.pin(self.slots[a], found)
            return found
        if b in self.slots and name != "div":
            return self.joined(a, b, name, by)
        if b in self.graph.weights and name in ("add", "mul"):
            return self.parameter(a, b, name) if by == 1 else None
        return None

    def joined(self, a: fx.Node, b: fx.Node, name: str, by: float) -> Tensor:
        """The sum or the product of two signals."""
        axes = max(self.slots[a].dim(), self.slots[b].dim())
        slots = [self.slots[x][(None,) * (axes - self.slots[x].dim())] for x in (a, b)]
        sizes = [[1] * (axes - len(self.shape(x))) + self.shape(x) for x in (a, b)]
        spread = [
            any(own == 1 and other > 1 for own, other in zip(sizes[i], slots[1 - i].shape, strict=True)) for i in (0, 1)
        ]
        result = self.fresh(torch.broadcast_tensors(*slots)[0])
        gate = [operation(x) in GATES for x in (a, b)]
        for i in (0, 1):
            if spread[i]:  # one channel for all of the other's
                self.fix(slots[i])
            else:
                self.tie(slots[i], result, scale=name != "mul" or gate[1 - i])
            if spread[i] if name != "mul" else not gate[1 - i]:
                self.pin(slots[i])
        if not any(gate) if name == "mul" else any(spread):
            self.pin(result)
        inputs = tuple(each.expand(result.shape).flatten() for each in slots)
        self.steps.append(Step("product" if name == "mul" else "sum", result.flatten(), inputs, number=by))
        return result

    def parameter(self, x: fx.Node, weight: fx.Node, name: str) -> Tensor | None:
        """A signal plus, or times, a parameter that has a number for each channel."""
        places, slots = self.weights({"weight": weight}, "weight"), self.slots[x]
        varying = [axis - slots.dim() for axis, size in enumerate(slots.shape) if size > 1]
        shape = self.tensor(weight).shape
        if places is None or len(varying) != 1 or len(shape) < -varying[0] or len(shape) > slots.dim():
            return None
        (axis,) = varying
        if shape[axis] != slots.shape[axis]:
            return None
        at = axis % len(shape)
        result = self.fresh(slots)
        self.tie(slots, result, scale=name == "add")
        if name == "mul":
            self.use(places.values(), slots.flatten(), -1, axis=at - len(shape), moved=False)
        self.use(places.values(), result.flatten(), 1, axis=at - len(shape))
        step = "scale" if name == "mul" else "shift"
        self.steps.append(Step(step, result.flatten(), (slots.flatten(),), places, axis=at))
        self.rigid.append(slots)
        return result

    def attention(self, node: fx.Node, given: dict[str, Any]) -> Tensor | None:
        """Heads: queries meet keys channel by channel, and what is read of the values comes out in their channels.

        Heads can stand in for each other unless a mask tells them apart.
        """
        parts, mask = [given[name] for name in ("query", "key", "value")], given.get("attn_mask")
        if any(x not in self.slots or x.meta["val"].dim() != 4 for x in parts):
            return None
        if any(
            self.slots[x].shape[axis] > 1 for x in parts for axis in (0, 2)
        ):  # channels that are not each of one unit
            return None
        if mask in self.slots or (isinstance(mask, fx.Node) and mask.meta["val"].dim() > 4):
            return None
        heads = node.meta["val"].shape[1]
        queries, keys, values = (self.headed(x, heads) for x in parts)
        self.tie(queries, keys, scale=False)
        self.pin(queries, keys)
        result = self.compute("attention", values)
        told_apart = isinstance(mask, fx.Node) and mask.meta["val"].dim() > 2 and mask.meta["val"].shape[-3] > 1
        for head in range(heads):
            for side, slots in (("in", queries[0, head].flatten()), ("out", result[0, head].flatten())):
                group = Group(node.name, side, head, 1 if told_apart else heads, len(slots))
                self.uses.append(Use(self.model, (), slots, 0, group=group, moved=False))
        self.rigid += [queries, result]
        return result

    def headed(self, x: fx.Node, heads: int) -> Tensor:
        """The slots of queries, keys or values ``[1, heads, 1, channels]``; heads of one group have the same."""
        _, own, _, channels = x.meta["val"].shape
        return self.slots[x].expand(1, own, 1, channels).repeat_interleave(heads // own, 1)

    def layer(self, node: fx.Node, name: str, given: dict[str, Any]) -> Tensor | None:
        """A layer with weights."""
        if name in WEIGHTED:
            return self.weighted(node, given)
        if name == "batch_norm":
            return self.batch_norm(node, given)
        if name == "layer_norm":
            return self.layer_norm(node, given)
        return self.prelu(node, given) if name == "prelu" else None

    def weighted(self, node: fx.Node, given: dict[str, Any]) -> Tensor | None:
        """A linear layer or a convolution: its columns read channels, its rows write new ones."""
        x, places = given["input"], self.weights(given, "weight", "bias")
        axis = -1 if kind(node) == "linear" else 1
        if places is None or (axis == 1 and x.meta["val"].dim() != int(kind(node)[4]) + 2):
            return None
        if axis == 1 and self.slots[x].shape[2:].numel() > 1:  # it slides over channels, and knows them by their order
            return None
        read, groups = self.along(x, axis), given.get("groups", 1)
        inputs, outputs = len(read), node.meta["val"].shape[axis]
        shape = [1] * node.meta["val"].dim()
        shape[axis] = outputs
        result = self.fresh(torch.empty(shape))
        written = result.flatten()
        weight = places["weight"]
        if groups == inputs == outputs > 1:  # depthwise: one channel to one channel
            self.tie(read, written, scale=False)
            self.use([weight], read, -1, moved=False)
            self.use(places.values(), written, 1)
            self.steps.append(Step("scale", written, (read,), places))
            return result
        for columns, rows in zip(torch.arange(inputs).chunk(groups), torch.arange(outputs).chunk(groups), strict=True):
            own = slice(None) if groups == 1 else slice(int(rows[0]), int(rows[-1]) + 1)
            ends = [
                None if groups == 1 else Group(weight[0], side, int(rows[0]) // len(rows), groups, len(slots))
                for side, slots in (("in", columns), ("out", rows))
            ]
            self.use([weight], read[columns], -1, axis=1, rows=own, group=ends[0])
            self.use(places.values(), written[rows], 1, rows=own, group=ends[1])
        if groups > 1:
            self.rigid += [read, written]
        self.steps.append(Step("write", written, (read,), places, number=groups))
        return result

    def batch_norm(self, node: fx.Node, given: dict[str, Any]) -> Tensor | None:
        """A batch norm takes channels of one scale, by its statistics, and gives them another, by its weight."""
        places = self.weights(given, "weight", "bias", "running_mean", "running_var")
        if places is None or not {"running_mean", "running_var"} <= places.keys():
            return None
        slots = self.along(given["input"], 1)
        shape = [1, len(slots), *[1] * (node.meta["val"].dim() - 2)]
        result = self.fresh(torch.empty(shape))
        self.tie(slots, result.flatten(), scale=False)
        self.use([places["running_mean"], places["running_var"]], slots, None)
        affine = [places[name] for name in ("weight", "bias") if name in places]
        if "weight" in places:
            self.use(affine, result.flatten(), 1)
        else:
            self.pin(result)
        self.steps.append(Step("norm", result.flatten(), (slots,), places, number=given["eps"]))
        return result

    def layer_norm(self, node: fx.Node, given: dict[str, Any]) -> Tensor | None:
        """A layer norm over the last axis: units may change places in it, and nothing else."""
        places = self.weights(given, "weight", "bias")
        if places is None or len(given["normalized_shape"]) != 1:
            return None
        slots = self.along(given["input"], -1)
        result = self.fresh(torch.empty([*[1] * (node.meta["val"].dim() - 1), len(slots)]))
        self.tie(slots, result.flatten(), scale=False)
        self.pin(slots)
        if places:
            self.use(places.values(), result.flatten(), 1)
        else:
            self.pin(result)
        self.rigid.append(slots)
        self.steps.append(Step("layer_norm", result.flatten(), (slots,), places))
        return result

    def prelu(self, node: fx.Node, given: dict[str, Any]) -> Tensor | None:
        """A ReLU with a slope for each channel, or one for all."""
        places, x = self.weights(given, "weight"), given["self"]
        if places is None:
            return None
        if self.tensor(given["weight"]).numel() == 1:
            return self.compute("homogeneous", self.slots[x])
        slots = self.along(x, 1)
        result = self.fresh(torch.empty([1, len(slots), *[1] * (node.meta["val"].dim() - 2)]))
        self.tie(slots, result.flatten())
        self.use(places.values(), slots, 0)
        self.steps.append(Step("homogeneous", result.flatten(), (slots,), places))
        return result


def kind(node: fx.Node) -> str:
    """The plain name of an operation."""
    return operation(node).removeprefix("aten::")


def leaves_rest(shape: Any) -> bool:
    """Whether a view flattens all but the batch, without naming the size."""
    return isinstance(shape, list | tuple) and len(shape) == 2 and shape[1] == -1


def compact(value: Any) -> Any:
    """Slots with every axis cut to 1 along which they do not change."""
    if isinstance(value, Tensor):
        for axis in range(value.dim()):
            first = value.narrow(axis, 0, 1)
            if bool((value == first).all()):
                value = first
    return value


def components(count: int, pairs: list[Tensor]) -> Tensor:
    """For each of `count` numbers the least that a chain of pairs, each ``[2, n]``, leads to."""
    least = torch.arange(count)
    a, b = torch.cat([torch.zeros(2, 0, dtype=torch.int64), *pairs], 1)
    while not torch.equal(least[a], least[b]):
        lower, higher = torch.minimum(least[a], least[b]), torch.maximum(least[a], least[b])
        least.scatter_reduce_(0, higher, lower, "amin")
        least = least[least]
    return least
