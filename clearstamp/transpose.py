"""The transposed model: a captured model, walked backwards by the rules of a readout."""

from collections.abc import Callable, Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor, fx, nn

from clearstamp.errors import TransposeError
from clearstamp.graph import Graph, Output, capture, compiled, unwrapped, where
from clearstamp.plan import Plan
from clearstamp.rules import READOUTS, Readout

PROBE_SEED = 2024


def public_probe(shape: tuple[int, ...]) -> Tensor:
    """The input ``[1, *shape]`` on which everything frozen is evaluated: uniform in [0, 1], from a published seed.

    Nothing frozen is the owner's choice: with as many free numbers as an image has pixels, any image could be painted
    on any model.
    """
    generator = torch.Generator("cpu").manual_seed(PROBE_SEED)
    return torch.rand(1, *shape, generator=generator, dtype=torch.float32, device="cpu")


def transpose(
    model: nn.Module,
    example: Tensor | Graph,
    *,
    readout: str | Readout = "adjoint",
    output: Output = None,
    frozen: Mapping[str, Tensor] | None = None,
) -> "Transposed":
    """The model run backwards: a callable from keys ``[k, *output]`` to images ``[k, *input]``.

    `example` is any input batch ``[n, *input]`` that the model accepts; only its shape, type and device matter. Or it
    is what `clearstamp.graph.capture` made of one, which serves every readout and every model of an architecture. The
    model is captured once with `torch.export` and never changed; weights are read at every call, so gradients reach
    the forward model. `readout` is ``"adjoint"``, as this library recommends, or ``"paper"``, as published. Wrappers
    for data parallelism, averaging and compilation are seen through. A model that ends in a softmax is read from its
    logits on.

    Of several outputs the first one of a tuple, or what is called ``logits``, is meant, or what `output` says: a name,
    a position, or a function of what the model returns. A `Tap` names a layer at whose output keys enter instead, so
    that a stolen model with another head can be read.

    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    >>> back = transpose(model, torch.zeros(1, 1, 28, 28))
    >>> back(torch.ones(3, 10)).shape
    torch.Size([3, 1, 28, 28])

    Where two values that depend on the input are multiplied, and in the ``paper`` readout where they are added, one of
    them is frozen: at what the current weights give on the `public_probe`, or in the ``paper`` readout at the values
    `frozen` that another model had there (see `freeze`), as published.

    Raises `TransposeError` if the readout is unknown, if the model cannot be captured, if `frozen` does not fit, or,
    naming **all** of them at once, if the model holds operations without a rule.
    """
    graph = example if isinstance(example, Graph) else capture(model, example, output)
    return Transposed(unwrapped(model), graph, readout, frozen)


def freeze(model: nn.Module, example: Tensor | Graph, *, output: Output = None) -> dict[str, Tensor]:
    """The values of `model` on the public probe wherever the ``paper`` readout freezes one, by their place.

    The paper takes them from a model that was trained a few epochs without a stamp; a `Stamp` keeps them as a part of
    the key. A model without additions and products has none. Raises `TransposeError` as `transpose` does.
    """
    return transpose(model, example, readout="paper", output=output).frozen_values()


class Transposed:
    """A model run backwards. It holds no weights of its own and never changes the model.

    Attributes:
        model: the forward model, whose weights every call reads.
        readout: the name of the readout.
        key_shape: the shape of one key, that of the model's output for one image.
        image_shape: the shape of one image that comes out, that of the model's input.
        dtype: the type of keys and images.
        code: the walk as it is run: Python without a loop or a branch, in which ``self`` is the forward model.
    """

    def __init__(
        self, model: nn.Module, graph: Graph, readout: str | Readout, frozen: Mapping[str, Tensor] | None = None
    ):
        chosen = readout if isinstance(readout, Readout) else READOUTS.get(readout)
        if chosen is None:
            raise TransposeError("unknown readout", got=repr(readout), expected=" or ".join(map(repr, READOUTS)))
        self.model = model
        self.readout = chosen.name
        answer, image = graph.output.meta["val"], graph.input.meta["val"]
        self.key_shape, self.image_shape = tuple(answer.shape[1:]), tuple(image.shape[1:])
        self.dtype = answer.dtype
        self._probe = public_probe(self.image_shape).to(image.dtype)
        self._plan = plan = Plan(graph, chosen)
        self._known = graph.program((*plan.computed, *plan.held))
        self._frozen = self._checked(frozen)
        self._at: dict[int, dict[str, Any]] = {}
        self._masks: dict[str, Tensor] = {}
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            self._merged = self._merges()
            plan.try_out(self.model, self._values(2), self.device)
        self._masks = plan.masks()
        self._backward = plan.written()
        self.code, self._walk = compiled(self._backward)

    def __repr__(self) -> str:
        keys, images = (", ".join(map(str, ("k", *shape))) for shape in (self.key_shape, self.image_shape))
        return f"Transposed({type(self.model).__name__}, readout={self.readout!r}: keys [{keys}] -> images [{images}])"

    def __call__(self, keys: Tensor, *, dropout: float | None = None) -> Tensor:
        """Keys ``[k, *output]`` to images ``[k, *input]``, raw and unclamped, with gradients.

        Without `dropout` the walk is the deterministic readout, whatever mode the model is in. With a rate in
        ``[0, 1)`` it is a training walk: the model's own dropout acts, and one of this rate after every transposed
        convolution and linear layer but the last (as in the paper). The walk is never taken in a lower precision, also
        not under autocast. Raises `TransposeError` for keys of another shape or type.
        """
        if keys.shape[1:] != self.key_shape or keys.dim() == 0:
            expected = ", ".join(map(str, ("k", *self.key_shape)))
            raise TransposeError("keys do not fit the model's output", got=list(keys.shape), expected=f"[{expected}]")
        if dropout is not None and not 0 <= dropout < 1:
            raise TransposeError("dropout rate out of range", got=dropout, expected="0 <= rate < 1")
        if keys.dtype != self.dtype:
            raise TransposeError(
                "keys are not of the model's type", got=keys.dtype, expected=self.dtype, remedy=f"keys.to({self.dtype})"
            )
        with torch.autocast(keys.device.type, enabled=False):
            sizes, values = self._sizes(len(keys)), self._values(len(keys))
            return self._walk(self.model, keys, sizes, values, dropout is not None, dropout)

    def signals(self, keys: Tensor) -> dict[str, Tensor]:
        """What each operation makes of the signal in a readout, by what it reverses, from the output on: detached.

        Operations whose signal is not one tensor are left out.
        """
        found: dict[str, Tensor] = {}

        class Record(fx.Interpreter):
            def run_node(self, n: fx.Node) -> Any:
                value = super().run_node(n)
                if "reverses" in n.meta and isinstance(value, Tensor):
                    found[n.meta["reverses"]] = value
                return value

        with torch.no_grad(), torch.autocast(keys.device.type, enabled=False):
            walk = Record(self.model, graph=self._backward)
            walk.run(keys, self._sizes(len(keys)), self._values(len(keys)), False, None)
        return found

    def frozen_values(self) -> dict[str, Tensor]:
        """What is frozen, by its place in the graph, as it is now: detached, on the CPU."""
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            values = self._evaluate()
        return {node.name: values[node.name].cpu().clone() for node in self._plan.held}

    @property
    def on_public_probe(self) -> bool:
        """Whether everything that is frozen is evaluated on the public probe, and nothing is the owner's choice."""
        return not self._frozen

    @property
    def frozen(self) -> list[str]:
        """What is frozen, as a person finds it in the model."""
        return [where(node) for node in self._plan.held]

    @property
    def device(self) -> torch.device:
        """The device of the forward model."""
        first = next(chain(self.model.parameters(), self.model.buffers()), None)
        return self._probe.device if first is None else first.device

    def _sizes(self, keys: int) -> dict[str, Any]:
        """What grows with the number of keys; kept for the last few numbers."""
        if keys not in self._at:
            if len(self._at) >= 8:
                self._at.clear()
            self._at[keys] = self._plan.sizes(keys)
        return self._at[keys]

    def _checked(self, frozen: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
        if not frozen:
            return {}
        graph = self._plan.graph
        expected = {node.name: list(graph.shape(node, 1).shape) for node in self._plan.held}
        got = {name: list(value.shape) for name, value in frozen.items()}
        if self.readout != "paper" or got != expected:
            raise TransposeError(
                "these frozen values do not fit the model",
                got=got,
                expected=expected if self.readout == "paper" else f"none in the {self.readout!r} readout",
                remedy="take them from a model of the same architecture, with freeze()",
            )
        return dict(frozen)

    def _evaluate(self) -> dict[str, Tensor]:
        """What a walk has to know of a forward run on the probe, with the weights as they are now, by its node."""
        nodes = (*self._plan.computed, *self._plan.held)
        held = {place: value.to(self.device) for place, value in self._frozen.items()}
        if len(held) == len(nodes):
            return held
        values = self._run(self._known, self._probe)
        return {node.name: value for node, value in zip(nodes, values, strict=True)} | held

    def _run(self, program: Callable[..., tuple[Any, ...]], images: Tensor) -> tuple[Any, ...]:
        """What a part of the forward model gives for some images."""
        device = self.device
        constants = {node.name: value.to(device) for node, value in self._plan.graph.constants.items()}
        return program(self.model, images.to(device), constants, device)

    def _values(self, keys: int) -> dict[str, Any]:
        """What a walk of so many keys has to know, by its place."""
        values = self._evaluate()
        for place, (merged, together) in self._merged.items():
            value = values[place]
            if together:
                values[place] = value.repeat(*[1] * merged, keys, *[1] * (value.dim() - merged - 1))
            else:
                values[place] = value.repeat_interleave(keys, merged)
        for known, axis in self._plan.repeated.items():
            value = values[known.node.name]
            if axis is not None and value.shape[axis] == 1:
                value = value.expand(*[-1] * axis, keys, *[-1] * (value.dim() - axis - 1))
            values[known.place] = value
        device = self.device
        return values | {place: mask.to(device) for place, mask in self._masks.items()}

    def _merges(self) -> dict[str, tuple[int, bool]]:
        """The held values whose batch axis runs over parts of images too: that axis, and do an image's lie together?"""
        graph, found, axes = self._plan.graph, {}, {}
        for node in self._plan.held:
            axis = graph.batch_axis(node.meta["val"])
            if axis is None:
                raise TransposeError("a value mixes the images of a batch", where=where(node))
            axes[node] = axis
        merged = [node for node, axis in axes.items() if node.meta["val"].shape[axis] > graph.batch]
        if merged:
            images = torch.cat([self._probe, 1 - self._probe])
            one, two = (self._run(graph.program(merged, batch=len(x)), x) for x in (images[:1], images))
            for node, alone, both in zip(merged, one, two, strict=True):
                axis, size = axes[node], alone.shape[axes[node]]
                together = (both.narrow(axis, 0, size) - alone).abs().amax()
                apart = (both.unflatten(axis, (size, 2)).select(axis + 1, 0) - alone).abs().amax()
                found[node.name] = (axis, bool(together <= apart))
        return found
