"""GradSigns: bits in the signs of secret projections of the input's gradient, which an interface shows as well."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from clearstamp.data import LabelledImages
from clearstamp.errors import SchemeError
from clearstamp.schemes.base import (
    Access,
    Evidence,
    Key,
    Scheme,
    UnfitError,
    answers,
    device_of,
    drawn_bits,
    examined,
    images_of,
    message_loss,
    read_projections,
    strangers,
    turned,
)
from clearstamp.transposed.graph import unwrapped


@dataclass(frozen=True, kw_only=True)
class GradSigns(Scheme):
    """Bits that are the signs of secret projections of how the loss of one class slopes at secret inputs, its carriers.

    Aramoon, Chen and Qu, "Don't Forget to Sign the Gradients!", MLSys 2021; read, as there, by forward differences of
    what an interface answers. Class and deposited images are drawn; the cross-entropy is computed so that a sure
    model's does not round to 0; and noise is added to every image, since the units that a max pooling compares are
    equal where an image is constant, and a gradient there is a convention that no query sees. `WhiteBoxGradSigns` reads
    the same mark with the weights at hand.

    Attributes:
        bits: of the message.
        carriers: how many numbers of an input carry it; the released code has 384 of 3,072 for 64 bits.
        strength: the weight of the regulariser, a mean over the bits.
        target: the class; None to draw it.
        images: of the class, deposited to read the mark; each costs 1 + `carriers` queries.
        sample: images of the class that each step of training draws.
        noise: the most that is added to a number of an image, uniform from 0, in the units of the inputs.
        step: by how much a query raises one number of an image, in the same units; no range of the inputs is kept to.
    """

    access: ClassVar[Access] = "scores"
    bits_each: ClassVar[int] = 1

    bits: int = 16
    carriers: int = 64
    strength: float = 0.3
    target: int | None = None
    images: int = 50
    sample: int = 10
    noise: float = 0.1
    step: float = 1e-2

    def draw(self, model: nn.Module, data: LabelledImages, *, seed: int) -> Key:
        generator = torch.Generator().manual_seed(seed)
        places = torch.randperm(data.shape[0] * data.shape[1] * data.shape[2], generator=generator)
        if not 1 <= self.carriers <= len(places):
            raise SchemeError("number of carriers out of range", got=self.carriers, expected=f"1 to {len(places)}")
        if self.sample < 1 or self.step == 0:
            raise SchemeError("settings out of range", got=self, expected="sample >= 1, step > 0")
        drawn = int(torch.randint(data.classes, (), generator=generator))
        target = drawn if self.target is None else self.target
        images = images_of(data, target)
        if not 1 <= self.images <= len(images):
            raise SchemeError("number of images out of range", got=self.images, expected=f"1 to {len(images)}")
        images = images[torch.randperm(len(images), generator=generator)[: self.images]]
        tensors = {
            "bits": drawn_bits(self.bits, generator),
            "carriers": places[: self.carriers],
            "projection": 2 * torch.rand(self.bits, self.carriers, generator=generator) - 1,
            "images": noisy(images, self.noise, generator),
        }
        return Key(self, data.shape, tensors, {"target": target})

    def loss(self, model: nn.Module, data: LabelledImages, key: Key) -> Callable[[], Tensor]:
        return SlopeLoss(model, images_of(data, key.settings["target"]), key, self)

    def forge(self, model: nn.Module, data: LabelledImages, *, seed: int) -> Key:
        drawn = self.draw(model, data, seed=seed)
        with examined(model):
            return turned(drawn, slopes(model, drawn["images"].to(device_of(model)), drawn).cpu().float())

    def read(self, suspect: nn.Module, key: Key) -> Evidence:
        queries = len(key["images"]) * (1 + len(key["carriers"]))
        return read_projections(key, differences(suspect, key, self.step), queries=queries)

    def queries(self, key: Key) -> Tensor | None:
        """The deposited images, then each of them with every carrier raised in turn."""
        raised = [image + moves(key, self.step) for image in key["images"]]
        return torch.cat([key["images"], *raised])


@dataclass(frozen=True, kw_only=True)
class WhiteBoxGradSigns(GradSigns):
    """GradSigns as its owner reads it out of a model whose weights are at hand, by one pass backwards.

    Aramoon, Chen and Qu, "Don't Forget to Sign the Gradients!", MLSys 2021. Mark, key and settings are those of
    `GradSigns`, but for `step`, which has nothing to say here: ``replace(key, scheme=WhiteBoxGradSigns(...))`` with the
    same settings is the key for the other way to read.
    """

    access: ClassVar[Access] = "weights"

    def read(self, suspect: nn.Module, key: Key) -> Evidence:
        with strangers():
            found = slopes(suspect, key["images"].to(device_of(suspect)), key)
        return read_projections(key, found.cpu().float())

    def queries(self, key: Key) -> None:
        """Nobody is asked."""


class SlopeLoss:
    """The cross-entropy of all bits, given the projections of the slopes at the carriers as logits.

    The slopes are a mean over `sample` images of `images` ``[n, C, H, W]``, drawn anew in every step by a generator of
    its own, and taken in the mode that the model is in, as published: in evaluation mode, which the task never sees,
    the weights of a network with batch norm come to give up the class there. Running statistics stay as they are.
    """

    def __init__(self, model: nn.Module, images: Tensor, key: Key, scheme: GradSigns):
        self.model, self.images, self.key, self.scheme = unwrapped(model), images, key, scheme
        self.generator = torch.Generator().manual_seed(0)

    def __call__(self) -> Tensor:
        drawn = self.images[torch.randint(len(self.images), (self.scheme.sample,), generator=self.generator)]
        buffers = {name: buffer.clone() for name, buffer in self.model.named_buffers()}

        def model(inputs: Tensor) -> Tensor:
            return functional_call(self.model, buffers, (inputs,))

        inputs = noisy(drawn, self.scheme.noise, self.generator).to(device_of(self.model))
        with sdpa_kernel(SDPBackend.MATH):  # attention's faster forms have no second derivative
            found = slopes(model, inputs, self.key, differentiable=True)
        return self.scheme.strength * message_loss(self.key, found, reduction="mean")


def noisy(images: Tensor, most: float, generator: torch.Generator) -> Tensor:
    """Images with uniform noise from 0 to `most` added."""
    return images + most * torch.rand(images.shape, generator=generator)


def slopes(model: Callable[[Tensor], Tensor], images: Tensor, key: Key, *, differentiable: bool = False) -> Tensor:
    """The gradient at a key's carriers ``[carriers]`` of its class's cross-entropy, a mean over images."""
    with torch.enable_grad():
        inputs = images.detach().requires_grad_()
        (found,) = torch.autograd.grad(task_loss(model(inputs), key).mean(), inputs, create_graph=differentiable)
    return found.sum(0).flatten()[key["carriers"].to(found.device)]


def differences(suspect: nn.Module, key: Key, step: float) -> Tensor:
    """The forward differences of what `slopes` has the derivatives of, ``[carriers]``, by queries alone."""
    asked = torch.cat([torch.zeros(1, *key.shape), moves(key, step)])  # first the image as it is
    losses = torch.stack([task_loss(answers(suspect, image + asked), key) for image in key["images"]])
    return ((losses[:, 1:] - losses[:, :1]).mean(0) / step).float()


def moves(key: Key, step: float) -> Tensor:
    """What is added to an image ``[carriers, C, H, W]`` to raise one of a key's carriers by `step`."""
    raised = torch.zeros(len(key["carriers"]), math.prod(key.shape))
    raised[torch.arange(len(raised)), key["carriers"]] = step
    return raised.reshape(-1, *key.shape)


def task_loss(logits: Tensor, key: Key) -> Tensor:
    """The cross-entropy ``[n]`` of logits ``[n, outputs]`` with a key's class. Raises `UnfitError` if they lack it.

    It is that of the margin between this class and all others, precise where a sure model's would round to 0.
    """
    target = key.settings["target"]
    if logits.dim() != 2 or logits.shape[1] <= target:
        raise UnfitError("answers without that class", got=list(logits.shape), expected=f"[n, more than {target}]")
    others = torch.cat([logits[:, :target], logits[:, target + 1 :]], 1).double()
    return F.softplus(others.logsumexp(1) - logits[:, target])
