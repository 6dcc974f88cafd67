"""What a model computes, captured once: a graph of ATen operations that knows where the batch lies in every value."""

import copy
import operator
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any
from unittest import mock

import torch
from torch import Tensor, fx, nn
from torch._decomp import decomposition_table
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_leaves, tree_map_only

from clearstamp.errors import TransposeError
from clearstamp.wrapped import Wrapped


@dataclass(frozen=True)
class Tap:
    """The output of a layer within a model, by the layer's name, in place of the model's own: keys enter there.

    No head is read then, so that a replaced one changes nothing.
    """

    layer: str


Output = str | int | Callable[[Any], Tensor] | Tap | None
"""Which of a model's outputs is meant: a name, a position, a function of them, a `Tap`, or what is plain unsaid."""

SHAPE_ALONE = {f"aten::{name}" for name in ("zeros_like", "ones_like", "full_like", "empty_like", "rand_like")} | {
    f"aten::new_{name}" for name in ("zeros", "ones", "full", "empty")
}
"""What takes nothing of its argument but shape, type and device."""

LAST = ("aten::softmax", "aten::log_softmax", "aten::_softmax", "aten::_log_softmax")
"""What is left out where a model ends in it: its logits are the output."""


@dataclass(frozen=True)
class Graph:
    """A model's computation on one input batch.

    Attributes:
        nodes: ATen operations, in the order in which they run, without in-place ones.
        weights: for each node that stands for a parameter or buffer, its name in the model.
        constants: for each node that stands for a tensor that the model made itself, that tensor.
        input, output: where the images come in and the answers come out.
        signals: the nodes whose value depends on the values of the input, not on its shape alone.
        batch: the batch size of the capture, a prime that no other size in the model is a multiple of.
        selected: which of the model's outputs was meant.
        apart: the readouts in which pictures of different keys were seen not to mix.
    """

    nodes: tuple[fx.Node, ...]
    weights: dict[fx.Node, str]
    constants: dict[fx.Node, Tensor]
    input: fx.Node
    output: fx.Node
    signals: frozenset[fx.Node]
    batch: int
    selected: Output = None
    apart: set[str] = field(default_factory=set, repr=False, compare=False)

    def resized(self, size: Any, batch: int) -> Any:
        """A number of the capture as it is with another batch size; anything else as it is."""
        return size // self.batch * batch if type(size) is int and size and size % self.batch == 0 else size

    def shape(self, node: fx.Node, batch: int) -> Any:
        """The value of a node for this batch size, as meta tensors."""

        def resized(value: Tensor) -> Tensor:
            return torch.empty([self.resized(n, batch) for n in value.shape], dtype=value.dtype, device="meta")

        return tree_map_only(Tensor, resized, node.meta["val"])

    def batch_axis(self, value: Tensor) -> int | None:
        """The axis of a captured value along which the images of a batch lie; None if there is not one such axis."""
        axes = [axis for axis, size in enumerate(value.shape) if self.resized(size, 1) != size]
        return axes[0] if len(axes) == 1 else None

    def program(self, results: Iterable[fx.Node], batch: int = 1) -> Callable[..., tuple[Any, ...]]:
        """The function ``(model, images, constants, device) -> values`` of some nodes, for this batch size."""
        results, graph = tuple(results), fx.Graph()
        copies: dict[fx.Node, fx.Node] = {}
        image, constants, device = map(graph.placeholder, ("image", "constants", "device"))
        needed = set(results)
        for node in reversed(self.nodes):
            if node in needed:
                needed |= set(node.all_input_nodes)

        def fill(argument: Any) -> Any:
            if isinstance(argument, fx.Node):
                return copies[argument]
            return device if isinstance(argument, torch.device) else self.resized(argument, batch)

        for node in self.nodes:
            if node not in needed:
                continue
            if node is self.input:
                copies[node] = image
            elif node in self.weights:
                copies[node] = graph.get_attr(self.weights[node])
            elif node in self.constants:
                copies[node] = graph.call_function(operator.getitem, (constants, node.name))
            else:
                target: Any = DIFFERENTIABLE.get(operation(node), node.target)
                args, kwargs = (fx.node.map_aggregate(given, fill) for given in (node.args, node.kwargs))
                copies[node] = graph.call_function(target, args, kwargs)  # type: ignore[arg-type]
        graph.output(tuple(copies[node] for node in results))
        return compiled(graph)[1]


def copied(old: Tensor, new: Tensor, non_blocking: bool = False) -> Tensor:
    """``aten.copy``, which has no derivative in torch."""
    return new.expand_as(old).to(old.dtype)


def slice_scattered(old: Tensor, new: Tensor, dim: int = 0, *places: Any) -> Tensor:
    """``aten.slice_scatter``, which has none of complex numbers."""
    index: Any = (*[slice(None)] * (dim % old.dim()), slice(*(*places, None, None, None)[:3]))
    result = old.clone()
    result[index] = new
    return result


def select_scattered(old: Tensor, new: Tensor, dim: int, index: int) -> Tensor:
    """``aten.select_scatter``, which has none of complex numbers."""
    return slice_scattered(old, new.unsqueeze(dim), dim, index, index + 1 or None)


DIFFERENTIABLE: dict[str, Callable[..., Tensor]] = {
    "aten::copy": copied,
    "aten::slice_scatter": slice_scattered,
    "aten::select_scatter": select_scattered,
}
"""What stands for operations when a graph is run, as these have no derivative."""


def compiled(graph: fx.Graph) -> tuple[str, Callable[..., Any]]:
    """A graph's Python code, and the function that it defines."""
    code = graph.python_code("self")
    names = dict(code.globals)
    exec(code.src, names)
    return code.src.strip(), names["forward"]


ELEMENTWISE = {"aten::max": "aten::maximum", "aten::min": "aten::minimum"}


def operation(node: fx.Node) -> str:
    """What a node does: the name of its ATen operation, without the mark of an in-place one, or of its function."""
    if isinstance(node.target, torch._ops.OpOverload):
        name = node.target._schema.name
        if node.target._schema.overload_name == "other":  # of max and min, which elsewhere are along an axis
            name = ELEMENTWISE.get(name, name)
        return name.removesuffix("_") if node.target._schema.is_mutable else name
    return getattr(node.target, "__name__", str(node.target))


def arguments(node: fx.Node) -> dict[str, Any]:
    """The arguments of an operation by their names; those that were given."""
    if isinstance(node.target, torch._ops.OpOverload):
        names = [argument.name for argument in node.target._schema.arguments]
    else:
        names = [str(place) for place in range(len(node.args))]
    return dict(zip(names, node.args, strict=False)) | node.kwargs


def layer(node: fx.Node) -> tuple[str, str]:
    """The module in which a node was made: its name in the model and its type; two empty strings for the model."""
    stack = list(node.meta.get("nn_module_stack", {}).values())[1:]
    if not stack:
        return "", ""
    name, kind = stack[-1]
    kind = kind if isinstance(kind, str) else kind.__name__
    return name.removeprefix("model").removeprefix("."), kind.rpartition(".")[2]


def where(node: fx.Node) -> str:
    """A node as a person finds it: the layer, and the operation in it."""
    name, kind = layer(node)
    done = operation(node).removeprefix("aten::")
    if not name:
        return f"{node.name} ({done})"
    same = kind.lower().startswith(done.replace("_", ""))
    return f"{name} ({kind})" if same else f"{name} ({kind}, {done})"


# ---------------------------------------------------------------------------------------------------------- capture


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside of wrappers: of data parallelism, averaging and compilation, and of interfaces (`Wrapped`)."""
    while isinstance(model, Wrapped) or type(model).__name__ in WRAPPERS:
        model = model.model if isinstance(model, Wrapped) else getattr(model, WRAPPERS[type(model).__name__])
    return model


WRAPPERS = {
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "AveragedModel": "module",
    "OptimizedModule": "_orig_mod",
}


def capture(model: nn.Module, example: Tensor, output: Output = None) -> Graph:
    """What `model` computes in evaluation mode from input batches like `example`; the model is never changed.

    Of a model in a wrapper, this is what the model inside computes, since its weights are what is read.

    The capture is taken by `torch.export`, on tensors without values and with a batch size that betrays itself in
    every shape. Raises `TransposeError` if the model cannot be captured, if it mixes the images of a batch, or if its
    output is not one tensor and `output` does not say which is meant.
    """
    if not isinstance(example, Tensor) or example.dim() < 2 or len(example) == 0:
        raise TransposeError(
            "the example is not an input batch",
            got=tuple(example.shape) if isinstance(example, Tensor) else type(example).__name__,
            expected="a tensor [n, ...] with n >= 1",
        )
    twin = still_twin(unwrapped(model))
    shapes = [tuple(example.shape[1:]), *(t.shape for t in chain(twin.parameters(), twin.buffers()))]
    taken = {size for shape in shapes for size in shape if size}
    prime = next(p for p in PRIMES if not any(size % p == 0 for size in taken))
    with FakeTensorMode(allow_non_fake_inputs=True):
        image = torch.empty(prime, *example.shape[1:], dtype=example.dtype, device=example.device)
    unplaced = mock.patch.object(fx.config, "do_not_emit_stack_traces", True, create=True)  # a third of the time
    try:
        with warnings.catch_warnings(), unplaced, torch.no_grad(), torch.autocast(example.device.type, enabled=False):
            warnings.simplefilter("ignore")
            program = torch.export.export(Selected(twin, output), (image,), strict=False)
            if any(overwrites(node) for node in program.graph.nodes):
                program = program.run_decompositions({})
    except TransposeError:
        raise
    except Exception as error:
        raise TransposeError(
            "the model cannot be captured",
            got=f"an input {list(example.shape[1:])}: {type(error).__name__}: {first_sentence(error)}",
            where=type(model).__name__,
            remedy="give an example of the shape, type and device that the model takes; keep control flow that "
            "depends on tensor values out of forward(), or transpose a submodule",
        ) from error
    return replace(assembled(program, prime), selected=output)


PRIMES = (1009, 1013, 1019, 1021, 1031, 1033, 1039, 1049, 1051, 1061, 1063, 1069, 1087, 1091, 1093, 1097)


class Selected(nn.Module):
    """A model with one tensor as its output."""

    def __init__(self, model: nn.Module, output: Output):
        super().__init__()
        self.model, self.selected = model, output

    def forward(self, image: Tensor) -> Tensor:
        if not isinstance(self.selected, Tap):
            return select(self.model(image), self.selected)
        given: list[Any] = []
        with self.tapped(self.selected.layer).register_forward_hook(lambda *call: given.append(call[2])):
            self.model(image)
        if len(given) != 1:
            raise TransposeError("a tapped layer runs once", got=f"{len(given)} times", where=self.selected.layer)
        return select(given[0], None)

    def tapped(self, name: str) -> nn.Module:
        """The layer of this name. Raises `TransposeError` if there is none."""
        try:
            return self.model.get_submodule(name)
        except AttributeError:
            names = ", ".join(layer for layer, _ in self.model.named_modules() if layer)
            raise TransposeError("no such layer in the model", got=repr(name), expected=names) from None


def select(answer: Any, output: Output) -> Tensor:
    """The output that is meant. Raises `TransposeError`, with what to write, if that is not clear."""
    try:
        if callable(output):
            found = output(answer)
        elif isinstance(output, str) and not isinstance(answer, Mapping):
            found = getattr(answer, output)
        elif output is not None:
            found = answer[output]
        else:
            found = answer[0] if isinstance(answer, tuple | list) else getattr(answer, "logits", answer)
    except (LookupError, AttributeError, TypeError):
        found = None
    if isinstance(found, Tensor):
        return found
    names = f", with {', '.join(map(str, answer))}" if isinstance(answer, Mapping) else ""
    raise TransposeError(
        "it is not clear which of the model's outputs the keys are to be shaped like",
        got=f"{type(answer).__name__}{names}" + ("" if output is None else f", and output={output!r}"),
        expected="a tensor",
        remedy='say which one: transpose(model, example, output="logits") by name, output=0 by position, or '
        "output=lambda answer: answer.head by a function",
    )


def still_twin(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode that shares every parameter and buffer, so that the model itself stays as it is."""
    shared: dict[int, Any] = {id(t): t for t in chain(model.parameters(), model.buffers())}
    for module in model.modules():  # an activation that a model keeps cannot be copied
        for value in tree_leaves([v for v in vars(module).values() if not isinstance(v, nn.Module)]):
            if isinstance(value, Tensor) and value.grad_fn is not None:
                shared[id(value)] = value.detach()
    try:
        return copy.deepcopy(model, shared).eval()
    except Exception as error:
        raise TransposeError(
            "the model cannot be copied", got=f"{type(error).__name__}: {error}", where=type(model).__name__
        ) from error


def overwrites(node: fx.Node) -> bool:
    """Does an operation change a value in place that something else sees too?"""
    if not isinstance(node.target, torch._ops.OpOverload) or not node.target._schema.is_mutable:
        return False
    changed = node.args[0]
    while isinstance(changed, fx.Node) and len(changed.users) == 1 and changed.op == "call_function":
        if not is_view(changed):
            return False
        changed = changed.args[0]
    return True


def is_view(node: fx.Node) -> bool:
    """May the value of a node share its memory with another one's?"""
    if not isinstance(node.target, torch._ops.OpOverload):
        return True
    aliases = any(argument.alias_info is not None for argument in node.target._schema.arguments)
    return aliases or operation(node) in ("aten::reshape", "aten::contiguous", "aten::flatten", "aten::to")


def first_sentence(error: Exception) -> str:
    """What an exception says first."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "")


def assembled(program: torch.export.ExportedProgram, prime: int) -> Graph:
    """The graph of an exported program, with its inner graphs of switched modes written out."""
    signature, graph = program.graph_signature, program.graph
    inline(program.graph_module, graph)
    named = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    lifted = signature.inputs_to_lifted_tensor_constants
    weights, constants = {}, {}
    for node in graph.nodes:
        if node.op == "placeholder" and node.name in named:
            weights[node] = named[node.name].removeprefix("model.")
        elif node.op == "placeholder" and node.name in lifted:
            constants[node] = program.constants[lifted[node.name]]
    by_name = {node.name: node for node in graph.nodes}
    entrance, output = by_name[signature.user_inputs[0]], by_name[signature.user_outputs[0]]
    while operation(output) in LAST:
        output = output.args[0]
    nodes = tuple(node for node in graph.nodes if node.op != "output")
    found = Graph(nodes, weights, constants, entrance, output, signals_of(nodes, entrance), prime)
    if output not in found.signals:
        raise TransposeError("the model's output does not depend on its input")
    if output.meta["val"].shape[:1] != (prime,):
        raise TransposeError("the model's output has not one row per image", got=where(output))
    return found


def signals_of(nodes: Iterable[fx.Node], entrance: fx.Node) -> frozenset[fx.Node]:
    """The nodes whose value depends on the values of the input."""
    found = {entrance}
    for node in nodes:
        reads = node.op == "call_function" and operation(node) not in SHAPE_ALONE
        if reads and not found.isdisjoint(node.all_input_nodes):
            found.add(node)
    return frozenset(found)


def inline(module: fx.GraphModule, graph: fx.Graph) -> None:
    """Write out the calls of inner graphs, with which export switches gradients or autocasting on and off."""
    for node in list(graph.nodes):
        inner = next((n for n in node.all_input_nodes if n.op == "get_attr"), None)
        if node.op != "call_function" or inner is None or not str(node.target).startswith("wrap_with_"):
            continue
        body = getattr(module, str(inner.target))
        given = list(node.args[node.args.index(inner) + 1 :])
        with graph.inserting_before(node):
            copies: dict[fx.Node, Any] = {}
            for each in body.graph.nodes:
                if each.op == "placeholder":
                    copies[each] = given.pop(0)
                elif each.op == "output":
                    results = fx.node.map_arg(each.args[0], copies.__getitem__)
                else:
                    copies[each] = graph.node_copy(each, copies.__getitem__)
        for user in list(node.users):
            user.replace_all_uses_with(results[user.args[1]])
            graph.erase_node(user)
        graph.erase_node(node)


# ----------------------------------------------------------------------------------------------- composed operations

RECURRENT = {f"aten::{kind}{cell}" for kind in ("lstm", "gru", "rnn_tanh", "rnn_relu") for cell in ("", "_cell")}
"""What stays whole, though torch unrolls it: a picture would have to come through as many frozen gates as steps."""


def taken_apart(graph: Graph, nodes: Iterable[fx.Node]) -> Graph | None:
    """The same computation, with each of these nodes in the operations that torch composes it of; None if of none."""
    parts = {node: part for node in nodes if (part := composition(node)) is not None}
    if not parts:
        return None
    whole = fx.Graph()
    copies: dict[fx.Node, Any] = {}
    for node in graph.nodes:
        if node in parts:
            given = [copies[source] for source in node.all_input_nodes]
            copies[node] = whole.graph_copy(parts[node], dict(zip(places(parts[node]), given, strict=True)))
            for each in whole.nodes:
                each.meta.setdefault("nn_module_stack", node.meta.get("nn_module_stack", {}))
        elif node.target is operator.getitem and isinstance(copies[node.all_input_nodes[0]], tuple | list):
            copies[node] = copies[node.all_input_nodes[0]][node.args[1]]
        else:
            copies[node] = whole.node_copy(node, copies.__getitem__)
    made = tuple(whole.nodes)
    return replace(
        graph,
        nodes=made,
        weights={copies[node]: name for node, name in graph.weights.items()},
        constants={copies[node]: value for node, value in graph.constants.items()},
        input=copies[graph.input],
        output=copies[graph.output],
        signals=signals_of(made, copies[graph.input]),
    )


def places(part: fx.Graph) -> list[fx.Node]:
    """Where the inputs of a part of a graph come in."""
    return [node for node in part.nodes if node.op == "placeholder"]


def between(start: Tensor, end: Tensor, weight: Any) -> Tensor:
    """``aten.lerp``, with its weight as the gate that it often is."""
    return start + weight * (end - start)


def composition(node: fx.Node) -> fx.Graph | None:
    """The operations of which torch composes one, on the same inputs; None if it is not composed."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload) or operation(node) in RECURRENT:
        return None
    run = target.decompose if target._can_decompose() else decomposition_table.get(target)
    if operation(node) == "aten::lerp":
        run = between
    if run is None:
        return None

    def call(*values: Tensor) -> Any:
        known = dict(zip(node.all_input_nodes, values, strict=True))
        args: Any = fx.node.map_arg(node.args, known.__getitem__)
        kwargs: Any = fx.node.map_arg(node.kwargs, known.__getitem__)
        return run(*args, **kwargs)

    values = [source.meta["val"] for source in node.all_input_nodes]
    try:
        with torch.no_grad():
            part = make_fx(torch.func.functionalize(call), tracing_mode="fake")(*values).graph
    except Exception:  # whatever keeps torch from it: the operation then has no rule
        return None
    done = {operation(each) for each in part.nodes}
    final = operation(node) in done or any(name.startswith("prims::") for name in done)
    unknown = any(
        each.op == "get_attr" or (each.op == "call_function" and "val" not in each.meta) for each in part.nodes
    )
    return None if final or unknown else part
