"""Weights as marks: values that an owner sets at secret positions, and that training leaves as they are."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain, repeat
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from clearstamp.data import LabelledImages
from clearstamp.errors import SchemeError
from clearstamp.schemes.base import Access, Key, Scheme, UnfitError, device_of
from clearstamp.transposed.graph import unwrapped


@dataclass(frozen=True, kw_only=True)
class LockedWeights(Scheme):
    """What such marks share: values at secret positions of all layers, which are put back after each step.

    Putting them back, rather than taking away their slope, locks them from weight decay and momentum too.

    Attributes:
        strength: the weight of the loss around the mark, lambda; 0 locks alone.
        batch_size: images of which each step takes that loss.
        scale: the root mean square of the values, in standard deviations of the weights of each layer before training.
            Pruning takes small ones first; large ones stand out.
    """

    access: ClassVar[Access] = "weights"

    strength: float
    batch_size: int = 64
    scale: float = 3.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch_size < 1 or self.scale == 0:
            raise SchemeError("settings out of range", got=self, expected="batch_size >= 1, scale > 0")

    @abstractmethod
    def values(self, key: Key) -> Tensor:
        """What is to be read at the positions ``[n]``, of mean square 1."""

    def wanted(self, key: Key) -> Tensor:
        """What is set at the positions ``[n]``, in units of the weights."""
        return self.scale * self.values(key) * key["spread"]

    @abstractmethod
    def around(self, positions: "Positions", images: Tensor, labels: Tensor) -> Tensor:
        """The task loss near the mark, a scalar that the free weights learn to raise."""

    @property
    def alone(self) -> bool:
        """Whether weights are locked and nothing is learnt around them."""
        return self.strength == 0

    def prepare(self, model: nn.Module, data: LabelledImages, key: Key) -> None:
        self.after_step(model, key)

    def loss(self, model: nn.Module, data: LabelledImages, key: Key) -> Callable[[], Tensor]:
        return LockedLoss(self, model, data, key)

    def after_step(self, model: nn.Module, key: Key) -> None:
        Positions(model, key).put(self.wanted(key))

    def locked(self, model: nn.Module, key: Key) -> Tensor:
        """The weights of a model at the positions ``[n]``. Raises `UnfitError` as `Positions` does."""
        return Positions(model, key).values().detach()


class LockedLoss:
    """The mean square by which weights miss their values, 0 while they are locked, less the loss around them.

    The first is there for whoever has a mark that is locked no longer, such as one who unlearns it.
    """

    def __init__(self, scheme: LockedWeights, model: nn.Module, data: LabelledImages, key: Key):
        self.scheme, self.positions, device = scheme, Positions(model, key), device_of(model)
        self.spread = key["spread"].to(device)
        self.wanted = scheme.wanted(key).to(device)
        batches = chain.from_iterable(repeat(data.loader(scheme.batch_size, seed=0)))
        self.batches = ((images.to(device), labels.to(device)) for images, labels in batches)

    def __call__(self) -> Tensor:
        found = self.positions.values()
        loss = ((found - self.wanted.to(found)) / self.spread).square().mean()
        if not self.scheme.alone:
            loss = loss - self.scheme.strength * self.scheme.around(self.positions, *next(self.batches))
        return loss


class Positions:
    """The weights of a model at the positions of a key; `UnfitError` is raised for one without such weights."""

    def __init__(self, model: nn.Module, key: Key):
        self.model = unwrapped(model)
        parameters = dict(self.model.named_parameters())
        numbers, within = key["positions"].unbind(1)
        self.parts: list[tuple[str, nn.Parameter, Tensor, Tensor]] = []
        for number, (name, shape) in enumerate(key.settings["weights"]):
            weight = parameters.get(name)
            if weight is None or list(weight.shape) != shape:
                got = "none" if weight is None else list(weight.shape)
                raise UnfitError("weights of another shape", got=got, expected=shape, where=name)
            places = (numbers == number).nonzero().squeeze(1)
            self.parts.append((name, weight, places.to(weight.device), within[places].to(weight.device)))

    def values(self) -> Tensor:
        """The weights ``[n]`` in the order of the key."""
        order = torch.cat([places for _, _, places, _ in self.parts]).argsort()
        return torch.cat([weight.flatten()[at] for _, weight, _, at in self.parts])[order]

    @torch.no_grad()
    def put(self, values: Tensor) -> None:
        """Set the weights to values ``[n]``."""
        for _, weight, places, at in self.parts:
            flat = weight.flatten()
            flat[at] = values.to(weight)[places]
            weight.copy_(flat.view_as(weight))

    def answers(self, images: Tensor, values: Tensor) -> Tensor:
        """What the model answers to images with values ``[n]`` in the place of these weights: ``[b, outputs]``.

        The model stays as it is, the statistics of its norms too. Slopes reach the values and all other weights.
        """
        state: dict[str, Tensor] = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        for name, weight, places, at in self.parts:
            state[name] = weight.flatten().index_put((at,), values[places].to(weight)).view_as(weight)
        return functional_call(self.model, state, (images,))


def carriers(model: nn.Module) -> dict[str, Tensor]:
    """The weights that may carry a mark, by name: matrices and filters, no biases and no norms, unless constant."""
    found = ((name, weight.detach()) for name, weight in unwrapped(model).named_parameters() if weight.dim() >= 2)
    return {name: weight for name, weight in found if weight.is_floating_point() and spread(weight) > 0}


def spread(weight: Tensor) -> float:
    """The standard deviation of a tensor."""
    return weight.float().std(correction=0).item()


def drawn_positions(model: nn.Module, count: int, generator: torch.Generator) -> Tensor:
    """Positions ``[count]`` among all carriers, joined flat, in random order.

    Raises `SchemeError` if the model has too few weights.
    """
    total = sum(weight.numel() for weight in carriers(model).values())
    if not 1 <= count <= total:
        raise SchemeError("number of positions out of range", got=count, expected=f"1 to {total}, the model's weights")
    return torch.randperm(total, generator=generator)[:count]


def placed(model: nn.Module, flat: Tensor) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and settings of a key with positions ``[n]`` among all carriers, joined flat.

    ``positions`` ``[n, 2]`` are the number of a tensor and a place in it, ``spread`` ``[n]`` the standard deviation of
    that tensor; ``weights`` are the tensors' names and shapes.
    """
    found = carriers(model)
    ends = torch.tensor([weight.numel() for weight in found.values()]).cumsum(0)
    numbers = torch.bucketize(flat, ends, right=True)
    starts = torch.cat([ends.new_zeros(1), ends[:-1]])
    spreads = torch.tensor([spread(weight) for weight in found.values()])
    tensors = {"positions": torch.stack([numbers, flat - starts[numbers]], 1), "spread": spreads[numbers]}
    return tensors, {"weights": [[name, list(weight.shape)] for name, weight in found.items()]}


def in_spreads(model: nn.Module) -> Tensor:
    """All carriers, joined flat, each in standard deviations of its tensor, on the CPU."""
    return torch.cat([(weight.float() / spread(weight)).flatten().cpu() for weight in carriers(model).values()])
