"""The transposed model of a captured one, walked backwards by the rules of a readout."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from clearstamp.errors import TransposeError
from clearstamp.transposed.base import Transposed, public_probe
from clearstamp.transposed.graph import Graph, compiled, where
from clearstamp.transposed.plan import Plan
from clearstamp.transposed.rules import Readout

MIXED = 0.01
"""How far a picture may change beside another one, of its largest number: half precision rounds."""


class Walked(Transposed):
    """A model run backwards step by step, by the rules of a readout.

    In a training walk the model's own dropout acts, and one of the given rate after every transposed convolution and
    linear layer but the last, as in the paper.

    Attributes:
        code: the walk as it is run: Python without a loop or a branch, in which ``self`` is the forward model.
    """

    def __init__(self, model: nn.Module, graph: Graph, rules: Readout, frozen: Mapping[str, Tensor] | None = None):
        super().__init__(model)
        self.readout = rules.name
        answer, image = graph.output.meta["val"], graph.input.meta["val"]
        self.key_shape, self.image_shape = tuple(answer.shape[1:]), tuple(image.shape[1:])
        self.dtype = answer.dtype
        self._probe = public_probe(self.image_shape).to(image.dtype)
        self._plan = plan = Plan(graph, rules)
        self._known = plan.graph.program((*plan.computed, *plan.held))
        self._frozen = self._checked(frozen)
        self._at: dict[int, dict[str, Any]] = {}
        self._masks: dict[str, Tensor] = {}
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            self._merged = self._merges()
            plan.try_out(self.model, self._values(2), self.device)
        self._masks = plan.masks()
        self._backward = plan.written()
        self.code, self._walk = compiled(self._backward)
        if rules.name not in graph.apart:
            self._check_apart()
            graph.apart.add(rules.name)

    def _check_apart(self) -> None:
        """Raise `TransposeError` if the picture of a key is another one beside another key."""
        keys = torch.randn(2, *self.key_shape, generator=torch.Generator().manual_seed(0)).to(self.device, self.dtype)
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            alone, beside = (self.images(keys[:count], None)[0].nan_to_num() for count in (1, 2))
        if (alone - beside).abs().max() > MIXED * alone.abs().max():
            raise TransposeError(
                "the picture of a key depends on other keys, or on chance",
                remedy="keep the images of a batch apart in forward(), and draw no numbers in evaluation mode",
            )

    def images(self, keys: Tensor, dropout: float | None) -> Tensor:
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
