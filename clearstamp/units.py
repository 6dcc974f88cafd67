"""Hidden units: the layers that write and read them, and how a model is rewritten unit by unit.

Attackers use this to change a model without changing what it computes, and judges use it to undo that.
"""

import copy
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor, fx, nn

from clearstamp.errors import AttackError, TransposeError
from clearstamp.graph import Graph, arguments, capture, operation

Layer = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
WEIGHTED = ("linear", "conv1d", "conv2d", "conv3d")
HOMOGENEOUS = (
    *("relu", "leaky_relu", "prelu", "dropout", "feature_dropout", "clone", "contiguous", "alias"),
    *(f"{kind}_pool{axes}d" for kind in ("max", "avg", "adaptive_avg") for axes in (1, 2, 3)),
)
"""They act on each unit separately and scale with it: f(d x) = d f(x) for d > 0."""
ELEMENTWISE = ("gelu", "silu", "tanh", "sigmoid", "elu", "softplus", "hardswish")
"""They act on each unit separately."""
FLATTEN = ("flatten", "view", "reshape")


@dataclass
class Hidden:
    """The units between two layers: `writer`'s rows compute them, `reader`'s columns use them.

    `norms` are the batch norms on the way, `width` the reader's columns per unit (more than 1 after a flatten), and
    `homogeneous` says whether everything on the way scales with a unit.
    """

    writer: Layer
    reader: Layer
    norms: list[nn.Module] = field(default_factory=list)
    width: int = 1
    homogeneous: bool = True

    @property
    def units(self) -> int:
        return len(self.writer.weight)

    @property
    def rows(self) -> list[tuple[nn.Module, str, Tensor]]:
        """Every tensor whose first axis runs over the units, with its owner and its name."""
        owners = (self.writer, *self.norms)
        named = ((o, n, t) for o in owners for n, t in (*o.named_parameters(), *o.named_buffers()))
        return [(owner, name, tensor.detach()) for owner, name, tensor in named if tensor.dim()]

    @property
    def columns(self) -> Tensor:
        """A copy of the reader's weight, ``[outputs, units, rest]``."""
        return self.reader.weight.detach().reshape(len(self.reader.weight), self.units, -1).clone()

    @columns.setter
    def columns(self, value: Tensor) -> None:
        self.reader.weight.data.copy_(value.reshape(self.reader.weight.shape))


def hidden_layers(model: nn.Module, example: Tensor | Graph) -> list[Hidden]:
    """The hidden units of a model, in the order of its layers; those that an addition or a gate reads are left out.

    Here and below, `example` is an input batch, or what `clearstamp.graph.capture` made of one.
    """
    graph = captured(model, example)
    uses = [owner(model, graph, node) for node in graph.nodes if kind(node) in WEIGHTED]
    found = []
    for node in graph.nodes:
        layer = owner(model, graph, node) if kind(node) in WEIGHTED else None
        if is_layer(layer) and uses.count(layer) == 1:
            hidden = follow(node, model, graph)
            if hidden is not None and uses.count(hidden.reader) == 1:
                found.append(hidden)
    return found


def follow(node: fx.Node, model: nn.Module, graph: Graph) -> Hidden | None:
    """The units that `node` writes, if they stay separate on their way to a single other layer."""
    writer: Any = owner(model, graph, node)
    hidden = Hidden(writer=writer, reader=writer)
    while len(node.users) == 1:
        before = node.meta["val"].shape
        node = next(iter(node.users))
        if kind(node) in WEIGHTED:
            reader: Any = owner(model, graph, node)
            fits = is_layer(reader) and reader.weight.shape[1] == hidden.units * hidden.width
            hidden.reader = reader
            return hidden if fits else None
        if kind(node) == "batch_norm":
            norm = owner(model, graph, node)
            if norm is None:
                return None
            hidden.norms.append(norm)
        elif kind(node) in FLATTEN:
            if node.meta["val"].shape != (before[0], prod(before[1:])):
                return None
            hidden.width *= prod(before[2:])
        elif kind(node) in ELEMENTWISE:
            hidden.homogeneous = False
        elif kind(node) not in HOMOGENEOUS:
            return None
    return None


def is_layer(layer: object) -> bool:
    """Whether it is a linear layer, or a convolution in which every output reads every input."""
    return isinstance(layer, Layer) and getattr(layer, "groups", 1) == 1


def kind(node: fx.Node) -> str:
    """The plain name of an operation."""
    return operation(node).removeprefix("aten::")


def owner(model: nn.Module, graph: Graph, node: fx.Node) -> nn.Module | None:
    """The module whose weight, or running mean, an operation takes as it is; None if it computes it."""
    given = arguments(node)
    for argument in (given.get("weight"), given.get("running_mean")):
        if argument in graph.weights:
            return model.get_submodule(graph.weights[argument].rpartition(".")[0])
    return None


def captured(model: nn.Module, example: Tensor | Graph) -> Graph:
    """The model's graph. Raises `AttackError` if it cannot be captured."""
    try:
        return example if isinstance(example, Graph) else capture(model, example)
    except TransposeError as error:
        raise AttackError("the model cannot be captured", got=str(error)) from error


def layers(model: nn.Module, example: Tensor | Graph) -> list[Layer]:
    """Every linear and convolutional layer, in the order in which they first run."""
    graph = captured(model, example)
    ran = dict.fromkeys(owner(model, graph, node) for node in graph.nodes if kind(node) in WEIGHTED)
    return [layer for layer in ran if isinstance(layer, Layer)]


def last_layer(model: nn.Module, example: Tensor | Graph) -> Layer:
    """The layer that gives the logits. Raises `AttackError` if the model has none."""
    found = layers(model, example)
    if not found:
        raise AttackError("the model has no linear or convolutional layer")
    return found[-1]


def rebuild(hidden: Hidden, rows: list[Tensor], columns: Tensor) -> None:
    """Give both layers other units in place: `rows` in the order of ``hidden.rows``, and the reader's `columns`."""
    for (owner, name, _), row in zip(hidden.rows, rows, strict=True):
        setattr(owner, name, nn.Parameter(row) if name in owner._parameters else row)
    weight = hidden.reader.weight
    hidden.reader.weight = nn.Parameter(columns.reshape(len(weight), -1, *weight.shape[2:]))
    for owner in (hidden.writer, *hidden.norms):
        resize(owner, ("out_features", "out_channels", "num_features"), len(rows[0]))
    resize(hidden.reader, ("in_features", "in_channels"), hidden.reader.weight.shape[1])


def resize(layer: nn.Module, names: tuple[str, ...], size: int) -> None:
    """Correct the size that a layer tells of itself."""
    for name in names:
        if hasattr(layer, name):
            setattr(layer, name, size)


def merge_equal_units(model: nn.Module, example: Tensor | Graph, *, tolerance: float = 1e-4) -> nn.Module:
    """A copy of the model that computes the same, with equal hidden units merged into one.

    Units are equal if their incoming weights and biases are; between ReLU layers without a norm, also if one is a
    positive multiple of the other. An attacker who adds units that cancel, or splits units into parts of either sign,
    changes what a ReLU lets through when the network is run backwards; this undoes it. `tolerance` is the distance of
    the incoming weights, as vectors of length 1, up to which units count as equal. Raises `AttackError` if the model
    cannot be traced.
    """
    merged = copy.deepcopy(model)
    for hidden in hidden_layers(merged, example):
        rows = [tensor for _, _, tensor in hidden.rows]
        incoming = torch.cat([row.reshape(hidden.units, -1) for row in rows], 1).double()
        lengths = incoming.norm(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
        directions, scales = incoming / lengths, lengths.squeeze(1)
        near = torch.cdist(directions, directions, compute_mode="donot_use_mm_for_euclid_dist") <= tolerance
        if not hidden.homogeneous or hidden.norms:
            near &= (scales - scales.unsqueeze(1)).abs() <= tolerance * scales
        first = near.int().argmax(1)
        kept, place = first.unique(return_inverse=True)
        if len(kept) < hidden.units:
            columns = hidden.columns * (scales / scales[first]).to(hidden.columns).reshape(1, -1, 1)
            sums = torch.zeros_like(columns[:, : len(kept)]).index_add_(1, place, columns)
            rebuild(hidden, [row[kept] for row in rows], sums)
    return merged


def replace_module(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put `new` in the place of the submodule `old`."""
    name = next(name for name, module in model.named_modules() if module is old)
    model.set_submodule(name, new)
