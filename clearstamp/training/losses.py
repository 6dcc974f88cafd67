"""The loss of a stamp, for any training loop."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from clearstamp.errors import StampError, TrainingError
from clearstamp.files import checksum
from clearstamp.scores import SimilarityTo
from clearstamp.stamp import Stamp
from clearstamp.training.method import RECOMMENDED
from clearstamp.transposed.base import Transposed


class StampLoss:
    """The loss of a stamp, (1 - SSIM) + MSE, averaged over its keys: a scalar for any training loop.

    >>> loss = StampLoss(back, stamp)
    >>> loss().backward()

    SSIM is taken of the unclamped signal. `dropout` is the rate after every transposed convolution and linear layer but
    the last, as in the paper: it is what makes a stamp outlast further training and pruning. The loss then differs from
    call to call.

    `noise` reads the stamp from weights with a normal error, drawn anew at every call, which serves the same end at a
    higher cost. The weights themselves stay as they are. Its standard deviation is `noise` for every weight alike, as
    Adam moves every weight alike, or with `relative` that many times the standard deviation of each tensor.

    Two settings are for large stamps. `at_once` bounds the memory: the walk is taken for that many keys at a time, and
    once more in the backward pass (gradient checkpointing); the loss is the same. `sample` bounds the cost: every call
    takes that many of the keys, drawn anew.

    Raises `StampError` if the stamp does not fit the model, `TrainingError` if a setting is out of range.
    """

    def __init__(
        self,
        back: Transposed,
        stamp: Stamp,
        *,
        dropout: float = RECOMMENDED.dropout,
        noise: float = 0.0,
        relative: bool = False,
        at_once: int | None = None,
        sample: int | None = None,
    ):
        check_fit(back, stamp)
        if any(count is not None and count < 1 for count in (at_once, sample)):
            raise TrainingError("number of keys out of range", got=f"{at_once=}, {sample=}", expected="at least 1")
        if not 0 <= dropout < 1:
            raise TrainingError("dropout rate out of range", got=dropout, expected="0 <= rate < 1")
        if not 0 <= noise < math.inf:
            raise TrainingError("noise out of range", got=noise, expected="a finite number, at least 0")
        self.back, self.dropout, self.noise, self.relative = back, dropout, noise, relative
        self.at_once, self.sample = at_once, sample
        self.whole = self.stamp = stamp.to(back.device)
        self.similarity = SimilarityTo(self.stamp.secrets)

    def __repr__(self) -> str:
        stamp = checksum(self.whole.labels, {"keys": self.whole.keys, "secrets": self.whole.secrets})
        names = ("dropout", "noise", "relative", "at_once", "sample")
        settings = ", ".join(f"{name}={getattr(self, name)}" for name in names)
        return f"{type(self).__name__}({self.back.readout}, stamp {stamp}, {settings})"

    def __call__(self) -> Tensor:
        if self.sample is not None:
            drawn = torch.randperm(len(self.whole))[: self.sample]
            self.stamp = self.whole.pick(drawn.to(self.whole.keys.device))
        images = self.images()
        if self.similarity.secrets is not self.stamp.secrets:
            self.similarity = SimilarityTo(self.stamp.secrets)
        return (1 - self.similarity(images)).mean() + F.mse_loss(images, self.stamp.secrets)

    def images(self) -> Tensor:
        """The images ``[k, C, H, W]`` of a training walk, with dropout and noise."""
        self.stamp = self.stamp.to(self.back.device)  # the model may have been moved since
        weights = self.weights()
        if self.at_once is None:
            return self.walk(self.stamp.keys, weights)
        parts = self.stamp.keys.split(self.at_once)
        return torch.cat([checkpoint(self.walk, part, weights, use_reentrant=False) for part in parts])

    def weights(self) -> dict[str, Tensor]:
        """The weights, by name, that replace the model's own in a walk: none without noise."""
        if not self.noise:
            return {}
        named = self.back.model.named_parameters()
        return {name: torch.randn_like(weight).mul_(self.deviation(weight)).add_(weight) for name, weight in named}

    def walk(self, keys: Tensor, weights: dict[str, Tensor]) -> Tensor:
        """Images ``[k, C, H, W]`` of some of the keys, with other weights in place of the model's own."""
        if not weights:
            return self.back(keys, dropout=self.dropout)
        exchanged = {f"model.{name}": weight for name, weight in weights.items()}
        return functional_call(Walk(self.back), exchanged, (keys, self.dropout))

    def deviation(self, weight: Tensor) -> Tensor | float:
        """The standard deviation of the error on one tensor of weights."""
        return self.noise * weight.detach().std(correction=0) if self.relative else self.noise


class Stamped(nn.Module):
    """A model and the loss of its stamp in one call, for engines that hook into the calls of a model.

    >>> engine = Stamped(model, StampLoss(back, stamp))  # on several processes DistributedDataParallel of it
    >>> outputs, stamp_loss = engine(inputs)
    >>> (F.cross_entropy(outputs, labels) + stamp_loss).backward()

    `DistributedDataParallel` averages the gradients of both over all processes, so the weights stay the same everywhere
    even though each process draws its own dropout, noise and keys. `fully_shard` has to be given the whole, not its
    layers: the walk reads weights outside their layers' calls. Raises `TrainingError` if the loss is another model's.
    """

    def __init__(self, model: nn.Module, loss: StampLoss):
        super().__init__()
        if loss.back.model is not model:
            raise TrainingError("the stamp loss belongs to another model", got=type(loss.back.model).__name__)
        self.model, self.loss = model, loss

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs ``[b, C, H, W]`` to the model's outputs ``[b, outputs]`` and the stamp loss, a scalar."""
        return self.model(inputs), self.loss()


class Walk(nn.Module):
    """The transposed model as a module over the forward model's weights, which `functional_call` exchanges."""

    def __init__(self, back: Transposed):
        super().__init__()
        self.back, self.model = back, back.model

    def forward(self, keys: Tensor, dropout: float) -> Tensor:
        return self.back(keys, dropout=dropout)


def check_fit(back: Transposed, stamp: Stamp) -> None:
    """Raise `StampError` unless the stamp's keys and secrets have the shapes of the model's output and input."""
    got, expected = (tuple(stamp.keys.shape[1:]), tuple(stamp.secrets.shape[1:])), (back.key_shape, back.image_shape)
    if got != expected:
        raise StampError(
            "the stamp does not fit the model",
            got="keys {}, secrets {}".format(*got),
            expected="keys {}, secrets {}".format(*expected),
            remedy="make the stamp with outputs= and shape= of this model",
        )
