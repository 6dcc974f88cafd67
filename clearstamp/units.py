"""Hidden units: the layers that write and read them, and how a model is rewritten unit by unit.

Attackers use this to change a model without changing what it computes, and judges use it to undo that.
"""

import copy
from dataclasses import dataclass, field
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from clearstamp.errors import AttackError
from clearstamp.transpose import Tracer

Layer = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
HOMOGENEOUS = (
    *(nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d),
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
    *(F.relu, torch.relu, F.leaky_relu, F.dropout, F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, "relu"),
)
"""They act on each unit separately and scale with it: f(d x) = d f(x) for d > 0."""
ELEMENTWISE = (nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.ELU, nn.Softplus, nn.Hardswish, F.gelu, F.silu, torch.tanh)
"""They act on each unit separately."""
FLATTEN = (nn.Flatten, torch.flatten, "flatten")


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


def hidden_layers(model: nn.Module, example: Tensor) -> list[Hidden]:
    """The hidden units of a model, in the order of its layers; those that an addition or a gate reads are left out."""
    graph, modules = trace(model, example), dict(model.named_modules())
    uses = [node.target for node in graph.nodes if node.op == "call_module"]
    found = []
    for node in graph.nodes:
        layer = modules.get(str(node.target)) if node.op == "call_module" else None
        if is_layer(layer) and uses.count(node.target) == 1:
            hidden = follow(node, modules)
            if hidden is not None and uses.count(name_of(hidden.reader, modules)) == 1:
                found.append(hidden)
    return found


def follow(node: fx.Node, modules: dict[str, nn.Module]) -> Hidden | None:
    """The units that `node` writes, if they stay separate on their way to a single other layer."""
    hidden = Hidden(writer=modules[str(node.target)], reader=modules[str(node.target)])  # type: ignore[arg-type]
    while len(node.users) == 1:
        before = node.meta["tensor_meta"].shape
        node = next(iter(node.users))
        layer = modules.get(str(node.target)) if node.op == "call_module" else None
        operation = node.target if layer is None else type(layer)
        if is_layer(layer):
            hidden.reader = layer  # type: ignore[assignment]
            fits = hidden.reader.weight.shape[1] == hidden.units * hidden.width
            return hidden if fits else None
        if isinstance(layer, NORMS):
            hidden.norms.append(layer)
        elif operation in FLATTEN:
            if node.meta["tensor_meta"].shape != (before[0], prod(before[1:])):
                return None
            hidden.width *= prod(before[2:])
        elif operation in ELEMENTWISE:
            hidden.homogeneous = False
        elif operation not in HOMOGENEOUS:
            return None
    return None


def is_layer(layer: object) -> bool:
    return isinstance(layer, Layer) and getattr(layer, "groups", 1) == 1


def name_of(layer: nn.Module, modules: dict[str, nn.Module]) -> str:
    return next(name for name, module in modules.items() if module is layer)


def trace(model: nn.Module, example: Tensor) -> fx.Graph:
    """The model's graph in evaluation mode, with the shape of every node's value."""
    training = model.training
    model.eval()
    try:
        graph = Tracer().trace(model)
        ShapeProp(fx.GraphModule(model, graph)).propagate(example)
    except Exception as error:
        raise AttackError("the model cannot be traced", got=f"{type(error).__name__}: {error}") from error
    finally:
        model.train(training)
    return graph


def layers(model: nn.Module, example: Tensor) -> list[Layer]:
    """Every linear and convolutional layer, in the order in which they first run."""
    graph, modules = trace(model, example), dict(model.named_modules())
    ran = dict.fromkeys(str(node.target) for node in graph.nodes if node.op == "call_module")
    return [layer for name in ran if isinstance(layer := modules[name], Layer)]


def last_layer(model: nn.Module, example: Tensor) -> Layer:
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


def merge_equal_units(model: nn.Module, example: Tensor, *, tolerance: float = 1e-4) -> nn.Module:
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
    name = name_of(old, dict(model.named_modules()))
    model.set_submodule(name, new)
