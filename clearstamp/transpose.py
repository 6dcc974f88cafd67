"""The transposed model: one trace of the forward model, walked backwards by the rules of a readout."""

import copy
import operator
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from math import prod
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.func import functional_call
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

from clearstamp.attention import WRITTEN
from clearstamp.errors import TransposeError
from clearstamp.rules import ACTIVATIONS, GATES, MODULES, READOUTS, SHAPE_ALONE, Rule, module_type

PROBE_SEED = 2024


def public_probe(shape: tuple[int, ...]) -> Tensor:
    """The input ``[1, *shape]`` on which everything frozen is evaluated: uniform in [0, 1], from a published seed.

    Nothing frozen is the owner's choice: with as many free numbers as an image has pixels, any image could be painted
    on any model.
    """
    return torch.rand(1, *shape, generator=torch.Generator().manual_seed(PROBE_SEED))


def transpose(
    model: nn.Module, example: Tensor, *, readout: str = "adjoint", frozen: Mapping[str, Tensor] | None = None
) -> "Transposed":
    """The model run backwards: a callable from keys ``[k, outputs]`` to images ``[k, C, H, W]``.

    `example` is any input batch ``[n, C, H, W]`` that the model accepts; only its shape matters. The model is traced
    once with `torch.fx` and never changed; weights are read at every call, so gradients reach the forward model.
    `readout` is ``"adjoint"``, as this library recommends, or ``"paper"``, as published.

    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    >>> back = transpose(model, torch.zeros(1, 1, 28, 28))
    >>> back(torch.ones(3, 10)).shape
    torch.Size([3, 1, 28, 28])

    Where two values that depend on the input are multiplied, and in the `paper` readout where they are added, one of
    them is frozen: at what the current weights give on the `public_probe`, or in the `paper` readout at the values
    `frozen` that another model had there (see `freeze`), as published.

    Raises `TransposeError` if the readout is unknown, if the model cannot be traced, if `frozen` does not fit, or,
    naming **all** of them at once, if the model holds layers without a rule.
    """
    return Transposed(model, example, readout, frozen)


def freeze(model: nn.Module, example: Tensor) -> dict[str, Tensor]:
    """The values of `model` on the public probe wherever the `paper` readout freezes one, by their place.

    The paper takes them from a model that was trained a few epochs without a stamp; a `Stamp` keeps them as a part of
    the key. A model without additions and products has none. Raises `TransposeError` as `transpose` does.
    """
    return Transposed(model, example, "paper", None).frozen_values()


@dataclass(frozen=True)
class Attribute:
    """Stands for an attribute of a layer: a setting, or a tensor that is read anew at every walk."""

    layer: str
    name: str


@dataclass(frozen=True)
class Frozen:
    """Stands for the value of a node on the public probe."""

    node: fx.Node


MODE = object()
"""Stands for the mode of the walk: True in training."""

SETTING = (bool, int, float, str, tuple, type(None))


@dataclass(frozen=True)
class Step:
    """One node of the forward graph, ready to be run backwards.

    `args` and `kwargs` are the rule's, after the signal. In them nodes, `Frozen`, attributes and `MODE` stand for
    values that are filled in at every walk.
    """

    node: fx.Node
    rule: Rule
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    sources: tuple[fx.Node, ...]  # the inputs that carry the signal on
    extra_dropout: bool = False
    several: bool = False  # does the rule return a tuple, with one signal for each source?

    def call(self, signal: Any, fill: Callable[[Any], Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The rule's arguments, with everything that stands for a value filled in."""
        args: Any = fx.node.map_aggregate(self.args, fill)
        kwargs: Any = fx.node.map_aggregate(self.kwargs, fill)
        return (signal, *args), kwargs


class Tracer(fx.Tracer):
    """Stops at the modules that have a rule; walks into all others but torch.nn's own layers."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if "forward" in vars(m):
            return False
        if module_type(m) is not None:
            return True
        return type(m).__module__.startswith("torch.nn") and not type(m).__module__.endswith(("container", "padding"))


class Record(fx.Interpreter):
    """Runs a graph forward once and keeps the value of every node."""

    def __init__(self, model: nn.Module, graph: fx.Graph):
        super().__init__(model, graph=graph, garbage_collect_values=False)
        self.values: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        self.values[n] = super().run_node(n)
        return self.values[n]


class Transposed:
    """A model run backwards. It holds no weights of its own and never changes the model.

    Attributes:
        model: the forward model, whose weights every call reads.
        readout: ``"paper"`` or ``"adjoint"``.
        image_shape: ``(C, H, W)`` of the images that come out.
        outputs: length of the keys that go in.
        code: the walk as it is run: Python without a loop or a branch, in which ``self`` is the forward model.
    """

    def __init__(self, model: nn.Module, example: Tensor, readout: str, frozen: Mapping[str, Tensor] | None):
        if readout not in READOUTS:
            raise TransposeError("unknown readout", got=repr(readout), expected=" or ".join(map(repr, READOUTS)))
        if not isinstance(example, Tensor) or example.dim() < 2 or len(example) == 0:
            raise TransposeError(
                "the example is not an input batch",
                got=tuple(example.shape) if isinstance(example, Tensor) else type(example).__name__,
                expected="a tensor [n, C, H, W] with n >= 1",
            )
        self.model = model
        self.readout = readout
        with torch.autocast(example.device.type, enabled=False):
            self._build(example, frozen)

    def __repr__(self) -> str:
        return (
            f"Transposed({type(self.model).__name__}, readout={self.readout!r}: keys [k, {self.outputs}] -> "
            f"images [k, {', '.join(map(str, self.image_shape))}])"
        )

    def __call__(self, keys: Tensor, *, dropout: float | None = None) -> Tensor:
        """Keys ``[k, outputs]`` to images ``[k, C, H, W]``, raw and unclamped, with gradients.

        Without `dropout` the walk is the deterministic readout, whatever mode the model is in. With a rate in
        ``[0, 1)`` it is a training walk: the model's own dropout acts, and one of this rate after every transposed
        convolution and linear layer but the last (as in the paper). The walk is never taken in a lower precision, also
        not under autocast. Raises `TransposeError` for keys of another shape or type.
        """
        if keys.dim() != 2 or keys.shape[1] != self.outputs:
            raise TransposeError(
                "keys do not fit the model's output", got=list(keys.shape), expected=f"[k, {self.outputs}]"
            )
        if dropout is not None and not 0 <= dropout < 1:
            raise TransposeError("dropout rate out of range", got=dropout, expected="0 <= rate < 1")
        if keys.dtype != self.dtype:
            raise TransposeError(
                "keys are not of the model's type", got=keys.dtype, expected=self.dtype, remedy=f"keys.to({self.dtype})"
            )
        with torch.autocast(keys.device.type, enabled=False):
            values = self._fixed | self._evaluate()
            return self._walk(self.model, keys, self._shapes, values, dropout is not None, dropout)

    def signals(self, keys: Tensor) -> dict[str, Tensor]:
        """What each layer makes of the signal in a readout, by the layer it reverses, from the output on: detached.

        Layers whose signal is not one tensor are left out.
        """
        record = Record(self.model, self._backward)
        with torch.no_grad(), torch.autocast(keys.device.type, enabled=False):
            record.run(keys, self._shapes, self._fixed | self._evaluate(), False, None)
        found = {node.meta["reverses"]: value for node, value in record.values.items() if "reverses" in node.meta}
        return {name: value for name, value in found.items() if isinstance(value, Tensor)}

    def frozen_values(self) -> dict[str, Tensor]:
        """What is frozen, by its place in the graph, as it is now: detached, on the CPU."""
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            values = self._evaluate()
        return {node.name: values[node.name].cpu().clone() for node in self._held}

    # ------------------------------------------------------------------------------------ reading the forward model

    def _build(self, example: Tensor, frozen: Mapping[str, Tensor] | None) -> None:
        if "torchvision" in sys.modules:  # else no layer is torchvision's, and importing it takes seconds
            import clearstamp.vision  # noqa: F401
        self._probe = public_probe(tuple(example.shape[1:])).to(example.dtype)
        self._twin, self._graph = self._trace()
        # Two equal inputs: an axis that is still 2 long at a node is the batch, whatever the example's own length.
        values = self._record(torch.cat([example[:1]] * 2))
        self._input = next(node for node in self._graph.nodes if node.op == "placeholder")
        (self._output,) = next(iter(reversed(self._graph.nodes))).args
        self._signals = self._signal_nodes(values)
        output = values[self._output] if self._output in self._signals else None
        if not isinstance(output, Tensor):
            raise TransposeError("the model's output is not one tensor that depends on its input")
        if output.dim() != 2 or len(output) != 2:
            raise TransposeError(
                "the model's output is not one vector per image",
                got=f"[n, {', '.join(map(str, output.shape[1:]))}]",
                expected="[n, outputs]",
                remedy="transpose the part of the model that ends in the logits",
            )
        self.image_shape = tuple(example.shape[1:])
        self.outputs = output.shape[1]
        self.dtype = output.dtype
        self._shapes = {n.name: tree_map_only(Tensor, lambda t: t.to("meta"), values[n]) for n in self._signals}
        tensors = [n for n in self._graph.nodes if n not in self._signals and isinstance(values[n], Tensor)]
        self._fixed = {n.name: value for n, value in values.items() if n not in self._signals and n not in tensors}
        self._depth = self._depths()
        self._backward = self._write(self._compile(tensors, frozen))
        self.code, self._walk = compiled(self._backward)

    def _trace(self) -> tuple[nn.Module, fx.Graph]:
        """A twin of the model and its graph, both in evaluation mode.

        The twin shares every parameter and buffer: tracing and running it leaves the user's model as it is.
        """
        try:
            shared = {id(t): t for t in chain(self.model.parameters(), self.model.buffers())}
            twin = copy.deepcopy(self.model, shared).eval()
            for module in twin.modules():
                if type(module) in WRITTEN:
                    module.forward = MethodType(WRITTEN[type(module)], module)
            return twin, Tracer().trace(twin)
        except TransposeError:
            raise
        except Exception as error:
            raise TransposeError(
                "the model cannot be traced",
                got=f"{type(error).__name__}: {error}",
                where=type(self.model).__name__,
                remedy="keep control flow that depends on tensor values out of forward(), or transpose a submodule",
            ) from error

    def _record(self, inputs: Tensor) -> dict[fx.Node, Any]:
        record = Record(self._twin, self._graph)
        try:
            with torch.no_grad():
                record.run(inputs)
        except Exception as error:
            raise TransposeError(
                "the model does not run on the example",
                got=f"{list(inputs.shape[1:])}: {type(error).__name__}: {error}",
                remedy="give an example [n, C, H, W] of the shape, type and device that the model takes",
            ) from error
        return record.values

    def _signal_nodes(self, values: dict[fx.Node, Any]) -> set[fx.Node]:
        """The nodes whose value is, or holds, a tensor computed from the input (and not from its shape alone)."""
        signals = {self._input}
        for node in self._graph.nodes:
            holds_tensor = any(isinstance(value, Tensor) for value in tree_leaves(values[node]))
            if holds_tensor and node.target not in SHAPE_ALONE and not signals.isdisjoint(node.all_input_nodes):
                signals.add(node)
        return signals

    # ------------------------------------------------------------------------------------------------ the coverage

    def _compile(self, tensors: list[fx.Node], frozen: Mapping[str, Tensor] | None) -> list[Step]:
        """One step for every node that the signal passes, each tried on a blank one; all gaps in one error."""
        steps: list[Step] = []
        gaps: dict[fx.Node, Exception] = {}
        needed, used = {self._output}, set()
        for node in reversed(self._graph.nodes):
            if node in needed and node is not self._input:
                try:
                    step = self._step(node)
                    steps.append(step)
                    needed |= set(step.sources)
                    used |= {n for n in node.all_input_nodes if n not in step.sources}
                except (ValueError, TypeError) as gap:
                    gaps[node] = gap
                    needed |= self._signals.intersection(node.all_input_nodes)
        # What a walk has to know of a forward run: weights computed in the graph, and what is frozen.
        self._held = [n for n in self._graph.nodes if n in used and n in self._signals]
        self._known = self._part([n for n in tensors if n in used], self._held)
        self._frozen = self._checked(frozen)
        with torch.no_grad():
            values = self._fixed | self._evaluate()
            for place, step in enumerate(steps):
                try:
                    if gaps.keys().isdisjoint(step.sources):
                        steps[place] = replace(step, several=self._try(step, values))
                except (ValueError, TypeError, RuntimeError) as gap:
                    gaps[step.node] = gap
        if gaps:
            raise TransposeError(
                f"{len(gaps)} of the model's operations cannot be run backwards in the {self.readout!r} readout:\n"
                + "\n".join(f"  {self._where(n)}: {gaps[n]}" for n in self._graph.nodes if n in gaps)
                + "\n",
                remedy="replace these operations, or register a rule for them (clearstamp.rules.rule)",
            )
        below: dict[fx.Node, bool] = {self._input: False}  # is there a weighted layer between this node and the input?
        for step in reversed(steps):
            below[step.node] = step.rule.weighted or any(below[source] for source in step.sources)
        return [replace(s, extra_dropout=s.rule.weighted and any(below[n] for n in s.sources)) for s in steps]

    def _try(self, step: Step, values: dict[str, Any]) -> bool:
        """Run one step on a blank signal: does its rule return several? Raises what the rule raises."""

        def fill(argument: Any) -> Any:
            match argument:
                case fx.Node():
                    return self._shapes[argument.name] if argument in self._signals else values[argument.name]
                case Frozen():
                    return values[argument.node.name]
                case Attribute():
                    return getattr(self.model.get_submodule(argument.layer), argument.name)
            return False if argument is MODE else argument

        blank = tree_map(lambda t: torch.zeros_like(t, device=self.device), self._shapes[step.node.name])
        args, kwargs = step.call(blank, fill)
        passed = step.rule.apply(*args, **kwargs)
        several = isinstance(passed, tuple)
        for source, signal in zip(step.sources, passed if several else (passed,), strict=True):
            if shapes(signal) != shapes(self._shapes[source.name]):
                raise TransposeError("the rule loses the input's shape", got=shapes(signal))
        return several

    def _write(self, steps: list[Step]) -> fx.Graph:
        """The steps as one function: nothing is looked up or decided while it runs."""
        graph = fx.Graph()
        keys, shapes, values, training, dropout = map(
            graph.placeholder, ("keys", "shapes", "values", "training", "dropout")
        )

        def known(where: fx.Node, node: fx.Node) -> fx.Node:
            name = f"{node.name}_{str(where)[:-1]}"
            return graph.create_node("call_function", operator.getitem, (where, node.name), name=name)

        def fill(argument: Any) -> Any:
            match argument:
                case fx.Node():
                    return known(shapes if argument in self._signals else values, argument)
                case Frozen():
                    return known(values, argument.node)
                case Attribute():
                    setting = getattr(self.model.get_submodule(argument.layer), argument.name)
                    if isinstance(setting, SETTING):
                        return setting
                    return graph.get_attr(f"{argument.layer}.{argument.name}")
            return training if argument is MODE else argument

        signals: dict[fx.Node, fx.Node] = {self._output: keys}
        for step in steps:
            passed = graph.call_function(step.rule.apply, *step.call(signals.pop(step.node), fill))
            passed.meta["reverses"] = self._where(step.node)
            for place, source in enumerate(step.sources):
                signal = graph.call_function(operator.getitem, (passed, place)) if step.several else passed
                if step.extra_dropout:
                    signal = graph.call_function(thin, (signal, dropout))
                signals[source] = graph.call_function(add, (signals[source], signal)) if source in signals else signal
        graph.output(signals[self._input])
        return graph

    def _step(self, node: fx.Node) -> Step:
        function, attributes = self._function(node)
        if function is None:
            raise TransposeError("no rule for this layer")
        rule = READOUTS[self.readout].get(function)
        if rule is None:
            raise TransposeError("no rule for this operation")
        for shape in shapes(self._shapes[node.name]):
            if shape[:1] != (2,):
                raise TransposeError("the batch axis does not stay first", got=list(shape))
        call = rule.signature.bind(None, *node.args, **node.kwargs, **attributes)
        if "training" in rule.signature.parameters:
            call.arguments["training"] = MODE
        sources = self._carriers(rule, dict(call.arguments))

        def mark(argument: fx.Node) -> Any:
            return argument if argument in sources or argument not in self._signals else Frozen(argument)

        args: Any = fx.node.map_arg(call.args[1:], mark)
        kwargs: Any = fx.node.map_arg(call.kwargs, mark)
        return Step(node, rule, args, kwargs, sources)

    def _function(self, node: fx.Node) -> tuple[Any, dict[str, Attribute]]:
        """The forward function that a node stands for, and the layer's attributes that are its arguments."""
        if node.op != "call_module":
            return node.target, {}
        kind = module_type(self.model.get_submodule(str(node.target)))
        if kind is None:
            return None, {}
        function, names = MODULES[kind]
        return function, {name: Attribute(str(node.target), name) for name in names}

    def _carriers(self, rule: Rule, arguments: dict[str, Any]) -> tuple[fx.Node, ...]:
        """The arguments that the signal goes on to; see `Rule`."""
        if rule.carries in arguments:
            arguments = {rule.carries: arguments[rule.carries]}
        operands = tuple(n for n in tree_leaves(arguments) if isinstance(n, fx.Node) and n in self._signals)
        if len(operands) > 1 and rule.carries == "factor":
            ranked = sorted(operands, key=lambda n: (self._gating(n), -prod(self._shapes[n.name].shape)))
            first, second = ((self._gating(n), self._shapes[n.name].shape) for n in ranked[:2])
            if first == second:
                raise TransposeError("a product of two signals, of which neither is a gate", got=list(first[1]))
            operands = (ranked[0],)
        if rule.carries == "deepest":
            operands = (max(operands, key=self._depth.__getitem__),)
        return operands

    def _gating(self, node: fx.Node) -> int:
        """How much a factor looks like a gate: 2 as it comes out of a softmax or a sigmoid, 1 out of an activation."""
        function, _ = self._function(node)
        kind = type(self.model.get_submodule(str(node.target))) if node.op == "call_module" else None
        if function in GATES or kind in GATES:
            return 2
        if any(function in (f, *spellings) for f, _, spellings in ACTIVATIONS.values()):
            return 1
        rule = READOUTS[self.readout].get(function)
        inputs = [n for n in node.all_input_nodes if n in self._signals]
        return (
            self._gating(inputs[0])
            if rule and not rule.weighted and rule.label != "convention" and len(inputs) == 1
            else 0
        )

    def _depths(self) -> dict[fx.Node, int]:
        """For every node, the most weighted layers on a way from the input to it."""
        depths: dict[fx.Node, int] = {}
        for node in self._graph.nodes:
            rule = READOUTS[self.readout].get(self._function(node)[0])
            below = max((depths[n] for n in node.all_input_nodes if n in self._signals), default=0)
            depths[node] = below + (rule is not None and rule.weighted)
        return depths

    def _where(self, node: fx.Node) -> str:
        if node.op == "call_module":
            return f"{node.target} ({type(self.model.get_submodule(str(node.target))).__name__})"
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
        return f"{node.name} ({'method ' if node.op == 'call_method' else 'function '}{name})"

    # ---------------------------------------------------------------------------------------------------- the walk

    @property
    def device(self) -> torch.device:
        """The device of the forward model."""
        first = next(chain(self.model.parameters(), self.model.buffers()), None)
        return torch.device("cpu") if first is None else first.device

    def _part(self, constants: list[fx.Node], held: list[fx.Node]) -> tuple[list[str], fx.GraphModule, frozenset[str]]:
        """What a walk has to know, the part of the forward graph that gives it, and the weights that this reads."""
        needed = {self._input, *constants, *held}
        for node in reversed(self._graph.nodes):
            if node in needed:
                needed |= set(node.all_input_nodes)
        part = fx.Graph()
        copies: dict[fx.Node, fx.Node] = {}
        for node in self._graph.nodes:
            if node in needed:
                copies[node] = part.node_copy(node, copies.__getitem__)
        part.output(tuple(copies[node] for node in (*constants, *held)))
        module = fx.GraphModule(self._twin, part)
        names = frozenset(name for name, _ in chain(module.named_parameters(), module.named_buffers()))
        return [n.name for n in (*constants, *held)], module, names

    def _checked(self, frozen: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
        if not frozen:
            return {}
        expected = {n.name: [1, *self._shapes[n.name].shape[1:]] for n in self._held}
        got = {name: list(value.shape) for name, value in frozen.items()}
        if self.readout != "paper" or got != expected:
            raise TransposeError(
                "these frozen values do not fit the model",
                got=got,
                expected=expected if self.readout == "paper" else "none in the 'adjoint' readout",
                remedy="take them from a model of the same architecture, with freeze()",
            )
        return dict(frozen)

    def _evaluate(self) -> dict[str, Tensor]:
        """What a walk has to know of a forward run, with the weights as they are now: a value for each known node."""
        nodes, part, names = self._known
        if not nodes:
            return {}
        held = {place: value.to(self.device) for place, value in self._frozen.items()}
        if len(held) == len(nodes):
            return held
        owned = chain(
            self.model.named_parameters(remove_duplicate=False), self.model.named_buffers(remove_duplicate=False)
        )
        weights = {name: tensor for name, tensor in owned if name in names}
        values = functional_call(part, weights, (self._probe.to(self.device),))
        return dict(zip(nodes, values, strict=True)) | held


def compiled(graph: fx.Graph) -> tuple[str, Callable[..., Tensor]]:
    """A graph's Python code, and the function that it defines."""
    code = graph.python_code("self")
    names = dict(code.globals)
    exec(code.src, names)
    return code.src.strip(), names["forward"]


def thin(signal: Tensor, rate: float | None) -> Tensor:
    """The signal with dropout, if there is a rate."""
    return F.dropout(signal, rate) if rate else signal


def add(one: Any, other: Any) -> Any:
    """The sum of two signals on their way to one place."""
    return tree_map(torch.add, one, other)


def shapes(value: Any) -> list[tuple[int, ...]]:
    """The shape of every tensor in a value."""
    return [tuple(tensor.shape) for tensor in tree_leaves(value) if isinstance(tensor, Tensor)]
