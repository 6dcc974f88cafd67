"""Attacks on the weights as numbers: pruning, compression, noise."""

from dataclasses import dataclass
from typing import Literal

import torch

from clearstamp.attacks.base import Attack, Scene, check
from clearstamp.attacks.training import train
from clearstamp.training.steps import adam
from clearstamp.units.spaces import find_spaces, layers

Scope = Literal["global", "layer", "channels"]


@dataclass(frozen=True, kw_only=True)
class Pruning(Attack):
    """Set the share `amount` of the weights to zero, those of least magnitude first (paper, Figure 4).

    `scope` is ``"global"``: over all layers together; ``"layer"``: in each layer separately; ``"channels"``: whole
    channels and hidden units, bias and all, by the L2 norm of their weights, in each layer but the last.
    """

    amount: float = 0.6
    scope: Scope = "global"

    def run(self, scene: Scene) -> None:
        prune(scene, self.amount, self.scope)


@dataclass(frozen=True, kw_only=True)
class FinePruning(Attack):
    """Prune, then train further with the pruned weights held at zero (paper, Sect. 5.2), reporting per epoch."""

    amount: float = 0.4
    scope: Scope = "global"
    epochs: int = 2
    lr: float = 1e-5

    def run(self, scene: Scene) -> None:
        whole = {name: weight.detach().clone() for name, weight in scene.model.named_parameters()}
        prune(scene, self.amount, self.scope)
        holds = []
        for name, weight in scene.model.named_parameters():
            kept = (weight != 0) | (whole[name] == 0)
            holds.append(weight.register_hook(kept.mul))  # a gradient of 0 moves nothing under Adam
        train(scene, self.epochs, self.lr, adam)
        for hold in holds:
            hold.remove()


def prune(scene: Scene, amount: float, scope: Scope) -> None:
    """Set weights of the model to zero: the very ones that `torch.nn.utils.prune` would, in a third of the time."""
    check(0 <= amount < 1, "pruning level out of range", amount, "0 <= amount < 1")
    check(scope in ("global", "layer", "channels"), "unknown scope of pruning", scope, "global, layer or channels")
    if scope == "channels":
        prune_channels(scene, amount)
        return
    weights = [layer.weight.data for layer in layers(scene.model, scene.graph())]
    for group in [weights] if scope == "global" else [[weight] for weight in weights]:
        magnitudes = torch.cat([weight.abs().flatten() for weight in group])
        least = magnitudes.topk(round(amount * len(magnitudes)), largest=False, sorted=False).indices
        kept = torch.ones_like(magnitudes).index_fill_(0, least, 0)
        for weight, part in zip(group, kept.split([weight.numel() for weight in group]), strict=True):
            weight *= part.view(weight.shape)


def prune_channels(scene: Scene, amount: float) -> None:
    """Set the weights and biases of the channels of least L2 norm to zero."""
    writers = [writer for space in find_spaces(scene.model, scene.graph()) for writer in space.writers]
    check(bool(writers), "no hidden channels can be pruned", "none", "layers in sequence")
    for layer in dict.fromkeys(writers):
        weight, bias = layer.weight.data, layer.bias
        norms = torch.linalg.vector_norm(weight.contiguous(), dim=tuple(range(1, weight.dim())))
        most = norms.topk(len(norms) - round(amount * len(norms))).indices
        kept = torch.zeros_like(norms).index_fill_(0, most, 1)
        weight *= kept.view(-1, *[1] * (weight.dim() - 1))
        if bias is not None:
            bias.data *= kept


@dataclass(frozen=True, kw_only=True)
class Cast(Attack):
    """Store the model in another floating-point type, and read it back."""

    dtype: Literal["float16", "bfloat16"] = "float16"

    def run(self, scene: Scene) -> None:
        check(self.dtype in ("float16", "bfloat16"), "unknown dtype", self.dtype, "float16 or bfloat16")
        scene.model.to(getattr(torch, self.dtype)).float()


@dataclass(frozen=True, kw_only=True)
class Quantization(Attack):
    """Round every weight matrix and kernel to integers of `bits` bits, symmetric about zero, and read them back.

    One scale for each tensor, or one for each output channel. Biases and norms stay as they are, as is usual.
    """

    bits: int = 8
    per: Literal["tensor", "channel"] = "channel"

    def run(self, scene: Scene) -> None:
        check(2 <= self.bits <= 16, "number of bits out of range", self.bits, "2 to 16 bits")
        check(self.per in ("tensor", "channel"), "unknown granularity", self.per, "tensor or channel")
        top = 2 ** (self.bits - 1) - 1
        for layer in layers(scene.model, scene.graph()):
            weight = layer.weight.data
            largest = weight.abs().amax() if self.per == "tensor" else weight.abs().flatten(1).amax(1)
            scale = (largest / top).clamp_min(torch.finfo(weight.dtype).tiny)
            zero = torch.zeros_like(scale, dtype=torch.int32)
            if self.per == "tensor":
                weight.copy_(torch.fake_quantize_per_tensor_affine(weight, scale, zero, -top, top))
            else:
                weight.copy_(torch.fake_quantize_per_channel_affine(weight, scale, zero, 0, -top, top))


@dataclass(frozen=True, kw_only=True)
class Noise(Attack):
    """Add a normal error to every parameter, of `scale` times the standard deviation of its tensor."""

    scale: float = 0.1

    def run(self, scene: Scene) -> None:
        check(0 <= self.scale < float("inf"), "noise out of range", self.scale, "a finite number, at least 0")
        with torch.no_grad():
            for weight in scene.model.parameters():
                weight.add_(self.scale * weight.std(correction=0) * torch.randn_like(weight))
