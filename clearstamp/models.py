"""The paper's architectures by name. Sizes that the paper leaves open are this library's choice and say so."""

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import nn

from clearstamp.errors import ClearStampError

Shape = tuple[int, int, int]


def cnn(shape: Shape, outputs: int, *, batch_norm: bool = False) -> nn.Sequential:
    """The paper's default: two convolutions, each with ReLU and 2x2 max pooling; fully connected 512, 256, outputs.

    32 and 64 channels, 5x5 kernels and padding 2 are this library's choice: the paper gives none.
    """

    def block(inputs: int, channels: int) -> list[nn.Module]:
        norm = [nn.BatchNorm2d(channels)] if batch_norm else []
        return [nn.Conv2d(inputs, channels, 5, padding=2), *norm, nn.ReLU(), nn.MaxPool2d(2)]

    channels, height, width = shape
    return nn.Sequential(
        *block(channels, 32),
        *block(32, 64),
        nn.Flatten(),
        nn.Linear(64 * (height // 4) * (width // 4), 512),
        nn.ReLU(),
        nn.Linear(512, 256),
        nn.ReLU(),
        nn.Linear(256, outputs),
    )


def cnn_bn(shape: Shape, outputs: int) -> nn.Sequential:
    """The default CNN with batch norm after each convolution."""
    return cnn(shape, outputs, batch_norm=True)


def fc(shape: Shape, outputs: int) -> nn.Sequential:
    """Three fully connected hidden layers of 1024 units with ReLU."""
    widths = [math.prod(shape), 1024, 1024, 1024]
    hidden = [layer for n, m in pairwise(widths) for layer in (nn.Linear(n, m), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(1024, outputs))


MODELS: dict[str, Callable[[Shape, int], nn.Module]] = {"cnn": cnn, "cnn-bn": cnn_bn, "fc": fc}


def build(name: str, shape: Shape, outputs: int, *, seed: int) -> nn.Module:
    """The model `name` for images `shape` (C, H, W), initialised from `seed` without touching the global generator."""
    if name not in MODELS:
        raise ClearStampError("unknown model", got=repr(name), expected=" or ".join(map(repr, MODELS)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MODELS[name](shape, outputs)
