"""A recipe for deep networks on small images, by which a few epochs teach them much."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torchvision.transforms import v2

from clearstamp.errors import TrainingError


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a deep network for images of 32x32 pixels or so is trained in few epochs: arguments of `fit`, and batches.

    >>> from clearstamp import fit
    >>> recipe = Recipe()
    >>> done = fit(model, recipe.augmented([(inputs, labels)]), epochs=1, progress=False, **recipe.settings())

    The learning rate rises in a line to `lr` over the first share `warm_up` of the training, and falls in a line to
    nothing at its end. The optimizer is AdamW, or SGD with Nesterov momentum of 0.9, whose steps grow with the
    gradient: at the rates that it wants for the task, it loses a stamp that Adam keeps. Weights decay, but neither
    biases nor the scales of normalisation. Labels are smoothed. Every training image is moved by up to `shift` pixels
    in each direction, its edge mirrored, and with `flip` turned left to right in half of the cases, drawn from torch's
    global generator.

    These are the common parts of what is known of fast training on CIFAR-10, such as Jordan's airbench and the recipes
    of timm. Raises `TrainingError` for settings out of range.
    """

    lr: float = 3e-3
    optimizer: Literal["adamw", "sgd"] = "adamw"
    weight_decay: float = 0.05
    label_smoothing: float = 0.1
    warm_up: float = 0.2
    shift: int = 4
    flip: bool = True

    def __post_init__(self) -> None:
        within = 0 < self.lr < math.inf and 0 <= self.weight_decay < math.inf and self.shift >= 0
        if not (within and 0 <= self.label_smoothing < 1 and 0 < self.warm_up < 1):
            expected = "a finite lr > 0, label_smoothing from 0 and warm_up between 0 and 1, nothing negative"
            raise TrainingError("recipe out of range", got=self, expected=expected)

    def settings(self) -> dict[str, Any]:
        """Arguments of `fit`."""
        return {"lr": self.lr, "optimizer": self.make_optimizer, "loss": self.loss, "rate": self.rate}

    def make_optimizer(self, weights: Iterable[nn.Parameter], lr: float) -> Optimizer:
        """The optimizer, with weight decay for matrices and kernels alone."""
        listed = list(weights)
        decayed = {"params": [weight for weight in listed if weight.dim() > 1], "weight_decay": self.weight_decay}
        groups = [decayed, {"params": [weight for weight in listed if weight.dim() < 2], "weight_decay": 0.0}]
        if self.optimizer == "adamw":
            return AdamW(groups, lr=lr, fused=True)
        return SGD(groups, lr=lr, momentum=0.9, nesterov=True, fused=True)

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy with smoothed labels."""
        return F.cross_entropy(outputs, labels, label_smoothing=self.label_smoothing)

    def rate(self, done: float) -> float:
        """What the learning rate is multiplied by after a share of the training, both from 0 to 1."""
        return min(done / self.warm_up, (1 - done) / (1 - self.warm_up))

    def augmented(self, batches: Iterable[tuple[Tensor, Tensor]]) -> "Augmented":
        """The same batches with every image changed by itself, anew in every epoch."""
        return Augmented(batches, self)


@dataclass(frozen=True)
class Augmented:
    """Batches of inputs ``[b, C, H, W]`` and labels ``[b]``, the inputs augmented by a recipe."""

    batches: Iterable[tuple[Tensor, Tensor]]
    recipe: Recipe

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for inputs, labels in self.batches:
            change = self.change(inputs.shape[-2:])
            yield torch.stack([change(image) for image in inputs]), labels

    def __len__(self) -> int:
        return len(self.batches)  # type: ignore[arg-type]

    def change(self, size: torch.Size) -> Callable[[Tensor], Tensor]:
        """What happens to one image of this height and width."""
        crop = v2.RandomCrop(list(size), padding=self.recipe.shift, padding_mode="reflect")
        return v2.Compose([crop, v2.RandomHorizontalFlip(0.5 if self.recipe.flip else 0.0)])


class Normalize(nn.Module):
    """The first layer of a model that takes images as they are: to mean 0 and deviation 1 in each channel.

    So a stamp's secrets are images as they are, and whoever has the model needs to know nothing more.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, mean: Tensor, deviation: Tensor):
        super().__init__()
        self.register_buffer("mean", mean.reshape(-1, 1, 1))
        self.register_buffer("deviation", deviation.reshape(-1, 1, 1))

    @classmethod
    def of(cls, images: Tensor) -> "Normalize":
        """That of images ``[n, C, H, W]``: uint8, which are taken as shares of 255, or floating-point numbers."""
        per_channel = images.transpose(0, 1).flatten(1)
        scale = 1 if images.is_floating_point() else 255
        deviation, mean = torch.std_mean(per_channel.double() / scale, dim=1)
        return cls(mean.float(), deviation.float())

    def forward(self, inputs: Tensor) -> Tensor:
        return (inputs - self.mean) / self.deviation
