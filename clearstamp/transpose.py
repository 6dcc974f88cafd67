"""The transposed model: one trace of the forward model, walked backwards by the rules of a readout."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from clearstamp.errors import TransposeError
from clearstamp.rules import MODULES, READOUTS, Rule, module_type


def transpose(model: nn.Module, example: Tensor, *, readout: str = "paper") -> "Transposed":
    """The model run backwards: a callable from keys ``[k, outputs]`` to images ``[k, C, H, W]``.

    `example` is any input batch ``[n, C, H, W]`` that the model accepts; only its shape matters. The model is traced
    once with `torch.fx` and never changed; weights are read at every call, so gradients reach the forward model.

    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    >>> back = transpose(model, torch.zeros(1, 1, 28, 28), readout="adjoint")
    >>> back(torch.ones(3, 10)).shape
    torch.Size([3, 1, 28, 28])

    Raises `TransposeError` if the readout is unknown, if the model cannot be traced, or, naming **all** of them at
    once, if it holds layers without a rule.
    """
    return Transposed(model, example, readout)


@dataclass(frozen=True)
class Attribute:
    """Stands for an attribute of a layer, read anew at every walk."""

    layer: str
    name: str


MODE = object()
"""Stands for the mode of the walk: True in training."""


@dataclass(frozen=True)
class Step:
    """One node of the forward graph, ready to be run backwards.

    `args` and `kwargs` are the rule's, after the signal. In them nodes, attributes and `MODE` stand for values that are
    filled in at every walk.
    """

    node: fx.Node
    rule: Rule
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    sources: tuple[fx.Node, ...]  # the inputs that the signal goes on to
    extra_dropout: bool = False


class Tracer(fx.Tracer):
    """Stops at the modules that have a rule; walks into all others but those of torch.nn itself."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if module_type(m) is not None:
            return True
        return type(m).__module__.startswith("torch.nn") and not isinstance(
            m, nn.Sequential | nn.ModuleList | nn.ModuleDict
        )


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
    """

    def __init__(self, model: nn.Module, example: Tensor, readout: str):
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
        twin, self._graph = self._trace()
        # Two equal inputs: an axis that is still 2 long at a node is the batch, whatever the example's own length.
        values = self._record(twin, torch.cat([example[:1]] * 2))
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
        self._shapes = {n: tree_map_only(Tensor, lambda t: t.to("meta"), values[n]) for n in self._signals}
        others = [n for n in self._graph.nodes if n not in self._signals]
        # Tensors made inside forward() lie in the twin; all other tensors are evaluated anew at every walk.
        self._constants = [
            n for n in others if isinstance(values[n], Tensor) and not str(n.target).startswith("_tensor_constant")
        ]
        self._fixed = {n: values[n] for n in others if n not in self._constants}
        self._steps = self._compile()

    def __repr__(self) -> str:
        return (
            f"Transposed({type(self.model).__name__}, readout={self.readout!r}: keys [k, {self.outputs}] -> "
            f"images [k, {', '.join(map(str, self.image_shape))}])"
        )

    def __call__(self, keys: Tensor, *, dropout: float | None = None) -> Tensor:
        """Keys ``[k, outputs]`` to images ``[k, C, H, W]``, raw and unclamped, with gradients.

        Without `dropout` the walk is the deterministic readout, whatever mode the model is in. With a rate in
        ``[0, 1)`` it is a training walk: the model's own dropout acts, and one of this rate after every transposed
        convolution and linear layer but the last (as in the paper). Raises `TransposeError` for other shapes.
        """
        if keys.dim() != 2 or keys.shape[1] != self.outputs:
            raise TransposeError(
                "keys do not fit the model's output", got=list(keys.shape), expected=f"[k, {self.outputs}]"
            )
        if dropout is not None and not 0 <= dropout < 1:
            raise TransposeError("dropout rate out of range", got=dropout, expected="0 <= rate < 1")
        values = self._shapes | self._fixed
        values |= self._evaluate(values)
        signals = {self._output: keys}
        for step in self._steps:
            passed = self._run(step, signals.pop(step.node), values, training=dropout is not None)
            for source, signal in zip(step.sources, passed, strict=True):
                if dropout and step.extra_dropout:
                    signal = F.dropout(signal, dropout)
                signals[source] = signals[source] + signal if source in signals else signal
        return signals[self._input]

    # ------------------------------------------------------------------------------------ reading the forward model

    def _trace(self) -> tuple[nn.Module, fx.Graph]:
        """A twin of the model and its graph, both in evaluation mode.

        The twin shares every parameter and buffer: tracing and running it leaves the user's model as it is.
        """
        try:
            shared = {id(t): t for t in chain(self.model.parameters(), self.model.buffers())}
            twin = copy.deepcopy(self.model, shared).eval()
            return twin, Tracer().trace(twin)
        except Exception as error:
            raise TransposeError(
                "the model cannot be traced",
                got=f"{type(error).__name__}: {error}",
                where=type(self.model).__name__,
                remedy="keep control flow that depends on tensor values out of forward(), or transpose a submodule",
            ) from error

    def _record(self, twin: nn.Module, inputs: Tensor) -> dict[fx.Node, Any]:
        record = Record(twin, self._graph)
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
            if holds_tensor and not signals.isdisjoint(node.all_input_nodes):
                signals.add(node)
        return signals

    def _needed(self) -> Iterator[fx.Node]:
        """The signal nodes that the output depends on, last first, without the input itself."""
        needed = {self._output}
        for node in reversed(self._graph.nodes):
            if node in needed and node is not self._input:
                yield node
                needed |= self._signals.intersection(node.all_input_nodes)

    # ------------------------------------------------------------------------------------------------ the coverage

    def _compile(self) -> list[Step]:
        """One step for every node, each tried on a signal of its recorded shape; all gaps in one error."""
        steps: list[Step] = []
        gaps: list[str] = []
        values = self._shapes | self._fixed
        with torch.no_grad():
            values |= self._evaluate(values)
            for node in self._needed():
                try:
                    step = self._step(node)
                    signal = torch.zeros_like(values[node], device=self.device)
                    for source, passed in zip(step.sources, self._run(step, signal, values, False), strict=True):
                        if passed.shape != values[source].shape:
                            raise TransposeError("the rule loses the input's shape", got=list(passed.shape))
                    steps.append(step)
                except (ValueError, TypeError, RuntimeError) as gap:
                    gaps.append(f"  {self._where(node)}: {gap}")
        if gaps:
            raise TransposeError(
                f"{len(gaps)} of the model's operations cannot be run backwards in the {self.readout!r} readout:\n"
                + "\n".join(reversed(gaps))
                + "\n",
                remedy="replace these operations, or register a rule for them (clearstamp.rules.rule)",
            )
        below: dict[fx.Node, bool] = {self._input: False}  # is there a weighted layer between this node and the input?
        for step in reversed(steps):
            below[step.node] = step.rule.weighted or any(below[source] for source in step.sources)
        return [replace(s, extra_dropout=s.rule.weighted and any(below[n] for n in s.sources)) for s in steps]

    def _step(self, node: fx.Node) -> Step:
        function: Any = node.target
        arguments: dict[str, Any] = dict(node.kwargs)
        if node.op == "call_module":
            kind = module_type(self.model.get_submodule(str(node.target)))
            if kind is None:
                raise TransposeError("no rule for this layer")
            function, attributes = MODULES[kind]
            arguments |= {name: Attribute(str(node.target), name) for name in attributes}
        rule = READOUTS[self.readout].get(function)
        if rule is None:
            raise TransposeError("no rule for this operation")
        if not isinstance(self._shapes[node], Tensor):
            raise TransposeError("the layer gives several values", got=type(self._shapes[node]).__name__)
        if self._shapes[node].shape[:1] != (2,):
            raise TransposeError("the batch axis does not stay first", got=list(self._shapes[node].shape))
        call = rule.signature.bind(None, *node.args, **arguments)
        if "training" in rule.signature.parameters:
            call.arguments["training"] = MODE
        sources = tuple(arg for arg in node.all_input_nodes if arg in self._signals)
        return Step(node, rule, call.args[1:], call.kwargs, sources)

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

    def _evaluate(self, values: dict[fx.Node, Any]) -> dict[fx.Node, Tensor]:
        """The tensors that do not depend on the input (weights, and what is computed from them), as they are now."""
        interpreter = fx.Interpreter(self.model, graph=self._graph, garbage_collect_values=False)
        interpreter.env = dict(values)
        for node in self._constants:
            interpreter.env[node] = interpreter.run_node(node)
        return {node: interpreter.env[node] for node in self._constants}

    def _run(self, step: Step, signal: Tensor, values: dict[fx.Node, Any], training: bool) -> tuple[Tensor, ...]:
        def fill(argument: Any) -> Any:
            if isinstance(argument, fx.Node):
                return values[argument]
            if isinstance(argument, Attribute):
                return getattr(self.model.get_submodule(argument.layer), argument.name)
            return training if argument is MODE else argument

        args: Any = fx.node.map_aggregate(step.args, fill)
        kwargs: Any = fx.node.map_aggregate(step.kwargs, fill)
        passed = step.rule.apply(signal, *args, **kwargs)
        return passed if isinstance(passed, tuple) else (passed,)
