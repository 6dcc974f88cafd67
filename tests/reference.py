"""Slow and obvious: what the rules are compared with. Nothing here is shared with the library."""

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from math import prod, sqrt
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.functional import jacobian


def dense(forward: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> Tensor:
    """The matrix ``[outputs, inputs]`` of the linear part of `forward`, for one input of `shape`, batch left out."""
    slopes = jacobian(forward, torch.zeros(1, *shape, dtype=torch.float64))
    return slopes.reshape(-1, prod(shape))


def dense_transpose(forward: Callable[[Tensor], Tensor], shape: tuple[int, ...], y: Tensor) -> Tensor:
    """A'y for every signal y of the batch."""
    return (y.flatten(1) @ dense(forward, shape)).reshape(len(y), *shape)


# ------------------------------------------------------------------------------------------------- conventions
# Each formula takes a case of tests/cases.py and a signal y at its output.


def linear_paper(case: Any, y: Tensor) -> Tensor:
    """(y - b) W, one row at a time."""
    weight, bias = (*case.args, None)[:2]
    rows = [
        sum((value - (0 if bias is None else bias[o])) * weight[o] for o, value in enumerate(row))
        for row in y.reshape(-1, y.shape[-1])
    ]
    return torch.stack(rows).reshape(*y.shape[:-1], -1)


def convolution_paper(case: Any, y: Tensor) -> Tensor:
    """The dense transpose of the convolution, applied to y - b."""
    signal = y.clone()
    if len(case.args) > 1:
        for channel, bias in enumerate(case.args[1]):
            signal[:, channel] -= bias
    return dense_transpose(case.forward, case.shape, signal)


def batch_norm_paper(case: Any, y: Tensor) -> Tensor:
    """(y - beta) sqrt(1 + eps) / gamma, one channel at a time."""
    _, _, gamma, beta, _, _, eps = (*case.args, *(None, None, None, None, False, 0.1, 1e-5)[len(case.args) :])
    channels = [
        (y[:, c] - (0 if beta is None else beta[c])) * sqrt(1 + eps) / (1 if gamma is None else gamma[c])
        for c in range(y.shape[1])
    ]
    return torch.stack(channels, 1)


def features(case: Any, y: Tensor, formula: Callable[[Any, Any, Any, float], Any]) -> Tensor:
    """`formula(y, gamma, beta, eps)` of every number of y, with the gamma and beta of its feature."""
    shape, gamma, beta, eps = (*case.args, *(None, None, None, 1e-5)[len(case.args) :])
    image = torch.empty_like(y)
    for at in product(*map(range, y.shape)):
        feature = at[-len(shape) :]
        image[at] = formula(y[at], 1 if gamma is None else gamma[feature], 0 if beta is None else beta[feature], eps)
    return image


def layer_norm_paper(case: Any, y: Tensor) -> Tensor:
    return features(case, y, lambda y, gamma, beta, eps: (y - beta) * sqrt(1 + eps) / gamma)


def layer_norm(case: Any, y: Tensor) -> Tensor:
    return features(case, y, lambda y, gamma, beta, eps: y * gamma)


def pooling(case: Any, y: Tensor) -> Tensor:
    """Nearest neighbour: pixel i of n takes the pixel floor(i m / n) of the m that were pooled."""
    image = torch.empty(*y.shape[:2], *case.shape[1:], dtype=y.dtype)
    for at in product(*map(range, case.shape[1:])):
        near = [i * m // n for i, m, n in zip(at, y.shape[2:], case.shape[1:], strict=True)]
        image[(..., *at)] = y[(..., *near)]
    return image


def channels(case: Any, y: Tensor, formula: Callable[[Any, Any, Any, float], Any]) -> Tensor:
    """`formula(y, gamma, beta, eps)` of every channel of y."""
    gamma, beta = (*case.args[1:], None, None)[:2]
    eps = case.kwargs.get("eps", 1e-5)
    rows = [
        formula(y[:, c], 1 if gamma is None else gamma[c], 0 if beta is None else beta[c], eps)
        for c in range(y.shape[1])
    ]
    return torch.stack(rows, 1)


def group_norm_paper(case: Any, y: Tensor) -> Tensor:
    return channels(case, y, lambda y, gamma, beta, eps: (y - beta) * sqrt(1 + eps) / gamma)


def group_norm(case: Any, y: Tensor) -> Tensor:
    return channels(case, y, lambda y, gamma, beta, eps: y * gamma)


def instance_norm(case: Any, y: Tensor) -> Tensor:
    """y gamma of every channel; the statistics come before the weight in torch's own function."""
    gamma = (*case.args[2:], None)[0]
    return y if gamma is None else torch.stack([y[:, c] * gamma[c] for c in range(y.shape[1])], 1)


def rms_norm_paper(case: Any, y: Tensor) -> Tensor:
    return features(case, y, lambda y, gamma, beta, eps: y / gamma)


def mean(case: Any, y: Tensor) -> Tensor:
    """The signal wherever it was averaged: the mean of such an image is the signal again."""
    axes = case.args[0]
    kept = torch.empty(len(y), *case.shape).mean(axes, keepdim=True).shape
    image = y.reshape(kept).broadcast_to(len(y), *case.shape)
    return image


def norm(case: Any, y: Tensor) -> Tensor:
    """The signal wherever the norm was taken of."""
    return mean(replace(case, args=(*case.args[1:], *case.kwargs.values())[:1]), y)


def add_paper(case: Any, y: Tensor) -> Tensor:
    """The x that gives y, solved by arithmetic: y = a x + c."""
    at = [case.forward(torch.full((1, *case.shape), value, dtype=y.dtype)) for value in (0.0, 1.0)]
    return (y - at[0]) / (at[1] - at[0])


CONVENTIONS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    formula.__name__: formula
    for formula in (
        *(linear_paper, convolution_paper, batch_norm_paper, layer_norm_paper, layer_norm, pooling),
        *(group_norm_paper, group_norm, instance_norm, rms_norm_paper, mean, add_paper),
    )
} | {
    "straight_through": lambda case, y: y,
    "norm": norm,
    "deviation": mean,
    "sub_paper": add_paper,
    "rsub_paper": add_paper,
    "transposed_convolution_paper": convolution_paper,
    "pooling_with_indices": pooling,
    "max_": mean,
    "native_batch_norm_paper": batch_norm_paper,
}


# --------------------------------------------------------------------------------------------------- whole models


def small_cnn_backwards(model: nn.Sequential, keys: Tensor, readout: str) -> Tensor:
    """The model of the fixture `small_cnn` backwards, written out by hand."""
    convolution, _, _, _, hidden, _, last = model

    def strip(y: Tensor, bias: Tensor) -> Tensor:
        return y - bias if readout == "paper" else y

    y = strip(keys, last.bias) @ last.weight
    y = strip(y.clamp_min(0), hidden.bias) @ hidden.weight
    y = y.reshape(len(keys), 2, 4, 4)
    y = y.repeat_interleave(2, 2).repeat_interleave(2, 3).clamp_min(0)
    y = strip(y, convolution.bias[:, None, None])
    image = torch.zeros(len(keys), 1, 10, 10, dtype=keys.dtype)  # with the forward layer's padding of one pixel
    for row, column in product(range(8), range(8)):
        image[:, :, row : row + 3, column : column + 3] += torch.einsum(
            "ko,ocuv->kcuv", y[:, :, row, column], convolution.weight
        )
    return image[:, :, 1:9, 1:9]
