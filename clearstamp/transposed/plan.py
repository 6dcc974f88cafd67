"""The way back through a captured model: one step for every operation that the signal passes, written out as code."""

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves, tree_map

from clearstamp.errors import TransposeError
from clearstamp.transposed.graph import Graph, arguments, operation, taken_apart, where
from clearstamp.transposed.rules import ACTIVATIONS, GATES, READOUTS, Readout, Rule, name_of

SOFT = frozenset(map(name_of, ACTIVATIONS)) | {"aten::pow", "aten::rsqrt", "aten::reciprocal"}
MODE = object()
"""Stands for the mode of the walk: True in training."""
DEEPEST = 8
"""How often what an operation is composed of may be composed in turn."""
LISTED = 40
"""How many operations an error lists."""


@dataclass(frozen=True)
class Known:
    """Stands for the value of a node that a walk knows: on the public probe, or from the weights alone.

    It has a batch axis of one, or is repeated for `each` key.
    """

    node: fx.Node
    each: bool

    @property
    def place(self) -> str:
        return f"{self.node.name}_each" if self.each else self.node.name


@dataclass(frozen=True)
class Sizes:
    """Stands for an argument that grows with the number of keys: as it is for the batch of the capture."""

    place: str
    captured: Any


@dataclass(frozen=True)
class Reached:
    """Stands for a bias of which only those entries count whose outputs the signal reaches; `mask` is 1 there."""

    place: str
    bias: fx.Node | Known
    mask: Tensor


@dataclass(frozen=True)
class Step:
    """One operation of the forward model, ready to be run backwards.

    `args` and `kwargs` are the rule's, after the signal. In them nodes that are sources or weights,
    `Known`, `Sizes`, `Reached` and `MODE` stand for values that are filled in at every walk.
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

    def stand_ins(self) -> list[Any]:
        """Everything in the arguments, what stands for values among it."""
        found: list[Any] = []
        self.call(None, found.append)
        return found

    def masks(self) -> dict[str, Tensor]:
        """The mask of its bias by its place, if the signal reaches that in part."""
        return {each.place: each.mask for each in self.stand_ins() if isinstance(each, Reached)}


class Plan:
    """How a readout walks back through a graph. Operations without a rule are taken apart, as far as torch can.

    Attributes:
        steps: from the output to the input.
        gaps: for each operation without a step, why.
        held: the nodes that are frozen at their values on the public probe.
        computed: the nodes that depend on the weights alone.
        repeated: of both, what is needed once for each key, with the axis of its images, or None.
    """

    def __init__(self, graph: Graph, readout: Readout):
        self.readout = readout
        apart: Graph | None = graph
        for _ in range(DEEPEST):
            if apart is None:
                break
            self.graph = apart
            self.gaps: dict[fx.Node, Exception] = {}
            self._depth, self._reached = self._depths(), self._reach()
            self.steps = self._steps()
            apart = taken_apart(self.graph, [node for node in self.gaps if operation(node) not in readout.rules])
        given = [argument for step in self.steps for argument in step.stand_ins() if isinstance(argument, Known)]
        nodes = {known.node for known in given}
        self.held = tuple(node for node in self.graph.nodes if node in nodes and node in self.graph.signals)
        self.computed = tuple(node for node in self.graph.nodes if node in nodes and node not in self.graph.signals)
        self.repeated = {known: self.graph.batch_axis(known.node.meta["val"]) for known in given if known.each}

    def sizes(self, keys: int) -> dict[str, Any]:
        """The shapes on the way, and other arguments that grow with the number of keys, by their places."""
        sources = {source for step in self.steps for source in step.sources}
        grow = [argument for step in self.steps for argument in step.stand_ins() if isinstance(argument, Sizes)]
        return {source.name: self.graph.shape(source, keys) for source in sources} | {
            each.place: tree_map(lambda leaf: self.graph.resized(leaf, keys), each.captured) for each in grow
        }

    def masks(self) -> dict[str, Tensor]:
        """The masks of biases that the signal reaches in part, by their places."""
        return {place: mask for step in self.steps for place, mask in step.masks().items()}

    # ------------------------------------------------------------------------------------------------- the steps

    def _steps(self) -> list[Step]:
        steps: list[Step] = []
        needed = {self.graph.output}
        for node in reversed(self.graph.nodes):
            if node in needed and node is not self.graph.input:
                try:
                    steps.append(self._step(node))
                    needed |= set(steps[-1].sources)
                except (ValueError, TypeError) as gap:
                    self.gaps[node] = gap
                    needed |= self.graph.signals.intersection(node.all_input_nodes)
        below = {self.graph.input: False} | dict.fromkeys(
            self.gaps, False
        )  # a weighted layer between it and the input?
        for step in reversed(steps):
            below[step.node] = step.rule.weighted or any(below[source] for source in step.sources)
        return [replace(s, extra_dropout=s.rule.weighted and any(below[n] for n in s.sources)) for s in steps]

    def _step(self, node: fx.Node) -> Step:
        rule = self.readout.rules.get(operation(node))
        if rule is None:
            raise TransposeError(f"no rule for {operation(node)}")
        if all(self.graph.batch_axis(value) is None for value in tensors(node.meta["val"])):  # a part is a node itself
            raise TransposeError("it mixes the images of a batch")
        named = arguments(node)
        sources = self._carriers(rule, named)
        left = list(sources)

        def mark(argument: Any) -> Any:
            if not isinstance(argument, fx.Node) or argument in self.graph.weights:
                return argument
            if argument in left:
                left.remove(argument)
                return argument
            return Known(argument, rule.whole)

        def marked(name: str, argument: Any) -> Any:
            if name in ("train", "training"):
                return MODE
            if any(self.graph.resized(leaf, 1) is not leaf for leaf in tree_leaves(argument)):
                return Sizes(f"{node.name}_{name}", argument)
            return fx.node.map_aggregate(argument, mark)

        args = tuple(marked(name, argument) for name, argument in zip(named, node.args, strict=False))
        kwargs = {name: marked(name, argument) for name, argument in node.kwargs.items()}
        return Step(node, rule, args, kwargs, sources)

    def _carriers(self, rule: Rule, named: dict[str, Any]) -> tuple[fx.Node, ...]:
        """The arguments that the signal goes on to; see `Rule`."""
        if rule.carries in named:
            named = {rule.carries: named[rule.carries]}
        operands = tuple(n for n in tree_leaves(named) if isinstance(n, fx.Node) and n in self._reached)
        if not operands:
            raise TransposeError("the signal has nowhere to go on to")
        if len(operands) > 1 and rule.carries in ("factor", "values"):
            gating = {n: self._gating(n) for n in operands}
            order = {n: -i if rule.carries == "values" else -prod(n.meta["val"].shape) for i, n in enumerate(operands)}
            return (min(operands, key=lambda n: (max(gating[n] - 1, 0), order[n], gating[n])),)
        if len(operands) > 1 and rule.carries == "deepest":
            return (max(operands, key=self._depth.__getitem__),)
        return operands

    def _gating(self, node: fx.Node, *, whole: bool = True) -> int:
        """How much a factor looks like a gate.

        3 as it comes out of a softmax or a sigmoid, 2 with a weighted layer in between, 1 out of an activation.
        """
        if operation(node) in GATES:
            return 3 if whole else 2
        if operation(node) in SOFT:
            return int(whole)
        rule = self.readout.rules.get(operation(node))
        inputs = [n for n in node.all_input_nodes if n in self.graph.signals]
        if rule is None or rule.label == "convention" or len(inputs) != 1:
            return 0
        return self._gating(inputs[0], whole=whole and not rule.weighted)

    def _reach(self) -> set[fx.Node]:
        """The nodes that carry signals: what is made of whole numbers, as comparisons make them, is cut off.

        Raises `TransposeError` if the output is.
        """
        found: set[fx.Node] = set()
        for node in self.graph.nodes:
            fed = node in self.graph.signals and not found.isdisjoint(node.all_input_nodes)
            if (fed or node is self.graph.input) and any(map(is_signal, tensors(node.meta["val"]))):
                found.add(node)
        if self.graph.output not in found:
            whole = self.graph.input not in found
            raise TransposeError(
                "no signal can come from the output to the input",
                got=f"inputs of {self.graph.input.meta['val'].dtype}"
                if whole
                else "an output of whole numbers' making",
                expected="real numbers all the way",
            )
        return found

    def _depths(self) -> dict[fx.Node, int]:
        """For every node, the most weighted layers on a way from the input to it."""
        depths: dict[fx.Node, int] = {}
        for node in self.graph.nodes:
            rule = self.readout.rules.get(operation(node))
            below = max((depths[n] for n in node.all_input_nodes if n in self.graph.signals), default=0)
            depths[node] = below + (rule is not None and rule.weighted)
        return depths

    # ------------------------------------------------------------------------------------------------- the trial

    def try_out(self, model: nn.Module, values: dict[str, Any], device: torch.device) -> None:
        """Run every step by itself on a blank signal for two keys, to see what it does and where signals arrive.

        Raises `TransposeError` with all gaps at once.
        """
        sizes, output = self.sizes(2), self.graph.output
        arriving = {output: torch.ones_like(self.graph.shape(output, 2), device=device)}
        for place, step in enumerate(self.steps):
            if step.node in self.gaps or not self.gaps.keys().isdisjoint(step.sources):
                continue
            signal = arriving.pop(step.node, None)
            if signal is None:
                continue
            step = self._with_reach(step, signal)
            known = values | step.masks()
            args, kwargs = step.call(signal, Filled(step, model, self.graph.weights, sizes, known, False))
            try:
                passed = step.rule.apply(*args, **kwargs)
                several = isinstance(passed, tuple)
                parts = passed if several else (passed,)
                for source, part in zip(step.sources, parts, strict=True):
                    self._check(step, part, sizes[source.name])
                    blank = blank_of(part, keep=step.rule.moves or step.rule.label == "passthrough")
                    arriving[source] = tree_map(either, arriving.get(source, blank), blank)
                self.steps[place] = replace(step, several=several)
            except (ValueError, TypeError, RuntimeError) as gap:
                self.gaps[step.node] = gap
        if self.gaps:
            gaps = [f"  {where(node)}: {self.gaps[node]}\n" for node in self.graph.nodes if node in self.gaps]
            more = f"  and {len(gaps) - LISTED} more\n" if len(gaps) > LISTED else ""
            raise TransposeError(
                f"{len(gaps)} of the model's operations cannot be run backwards in the {self.readout.name!r} "
                f"readout:\n{''.join(gaps[:LISTED])}{more}",
                remedy="replace these operations, or register a rule for them (clearstamp.register_vjp_rule)",
            )

    def _with_reach(self, step: Step, signal: Any) -> Step:
        """The step of a layer of whose outputs the signal reaches some alone: only their bias is taken off."""
        if not step.rule.weighted or arguments(step.node).get("bias") is None or bool(signal.all()):
            return step
        bias = step.args[list(arguments(step.node)).index("bias")]
        axis = signal.dim() - 1 if operation(step.node) == "aten::linear" else 1
        mask = (signal != 0).movedim(axis, 0).flatten(1).any(1).to(signal.dtype)
        reached = Reached(f"{step.node.name}_reached", bias, mask)
        return replace(step, args=tuple(reached if argument is bias else argument for argument in step.args))

    def _check(self, step: Step, signal: Any, recorded: Any) -> None:
        if shapes(signal) != shapes(recorded):
            raise TransposeError("the rule loses the input's shape", got=shapes(signal), expected=shapes(recorded))
        if [part.is_complex() for part in tensors(signal)] != [part.is_complex() for part in tensors(recorded)]:
            raise TransposeError("its rule is one for real numbers")
        if not all(bool(part.isfinite().all()) for part in tensors(signal)):
            finite = [r.name for r in READOUTS.values() if r.rules.get(operation(step.node)) not in (None, step.rule)]
            raise TransposeError(
                "its signal is not finite",
                expected="no weight of zero where this readout divides by it",
                remedy=" or ".join(f"readout={name!r}" for name in finite) or "give it other weights",
            )

    # -------------------------------------------------------------------------------------------------- the code

    def written(self) -> fx.Graph:
        """The steps as one function ``(model, keys, sizes, values, training, dropout) -> images``.

        Nothing is looked up or decided while it runs.
        """
        graph = fx.Graph()
        keys, sizes, values, training, dropout = map(
            graph.placeholder, ("keys", "sizes", "values", "training", "dropout")
        )

        class Place(dict[str, fx.Node]):
            """Looks its entries up in the code that is written."""

            def __init__(self, holder: fx.Node):
                self.holder = holder

            def __missing__(self, place: str) -> fx.Node:
                name = f"{place}_{self.holder.name[:-1]}"
                return graph.create_node("call_function", operator.getitem, (self.holder, place), name=name)

        signals: dict[fx.Node, fx.Node] = {self.graph.output: keys}
        for step in self.steps:
            fill = Filled(step, graph, self.graph.weights, Place(sizes), Place(values), training)
            passed = graph.call_function(step.rule.apply, *step.call(signals.pop(step.node), fill))
            passed.meta["reverses"] = where(step.node)
            for place, source in enumerate(step.sources):
                signal = graph.call_function(operator.getitem, (passed, place)) if step.several else passed
                if step.extra_dropout:
                    signal = graph.call_function(thin, (signal, dropout))
                signals[source] = graph.call_function(add, (signals[source], signal)) if source in signals else signal
        graph.output(signals[self.graph.input])
        return graph


@dataclass(frozen=True)
class Filled:
    """What the arguments of a step stand for: values in a trial, or where the code that is written finds them."""

    step: Step
    model: Any
    weights: dict[fx.Node, str]
    sizes: dict[str, Any]
    values: dict[str, Any]
    training: Any

    def __call__(self, argument: Any) -> Any:
        match argument:
            case fx.Node() if argument in self.step.sources:
                return self.sizes[argument.name]
            case fx.Node():
                return self.weight(self.weights[argument])
            case Known():
                return self.values[argument.place]
            case Sizes():
                return self.sizes[argument.place]
            case Reached():
                bias, mask = self(argument.bias), self.values[argument.place]
                return self.model.call_function(torch.mul, (bias, mask)) if isinstance(bias, fx.Node) else bias * mask
        return self.training if argument is MODE else argument

    def weight(self, name: str) -> Any:
        if isinstance(self.model, fx.Graph):
            return self.model.get_attr(name)
        owner, _, own = name.rpartition(".")
        return getattr(self.model.get_submodule(owner), own)


def thin(signal: Tensor, rate: float | None) -> Tensor:
    """The signal with dropout, if there is a rate."""
    return F.dropout(signal, rate) if rate else signal


def add(one: Any, other: Any) -> Any:
    """The sum of two signals on their way to one place."""
    return tree_map(torch.add, one, other)


def tensors(value: Any) -> Iterator[Tensor]:
    """Every tensor in a value."""
    return (leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor))


def is_signal(value: Tensor) -> bool:
    """Can a value carry a signal: is it made of real or complex numbers?"""
    return value.is_floating_point() or value.is_complex()


def either(one: Tensor, other: Tensor) -> Tensor:
    """Ones where one of two tensors is not zero."""
    return ((one != 0) | (other != 0)).to(one.dtype)


def shapes(value: Any) -> list[tuple[int, ...]]:
    """The shape of every tensor in a value."""
    return [tuple(tensor.shape) for tensor in tensors(value)]


def blank_of(signal: Any, *, keep: bool) -> Any:
    """Ones shaped like a signal, with zeros where it has them if these are to be kept."""
    return tree_map(lambda part: (part != 0).to(part.dtype) if keep else torch.ones_like(part), signal)
