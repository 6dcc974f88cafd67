"""Reading the `gradient` readout through an interface alone, by finite differences of what it answers."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from clearstamp.errors import TransposeError
from clearstamp.transposed.gradient import centred, drawn_probes

Ask = Callable[[Tensor], Tensor]
"""An interface: inputs ``[n, *input]`` as the model takes them in, answers ``[n, *output]`` out."""


@dataclass(frozen=True)
class Queried:
    """Images ``[k, *input]`` as queries showed them, and how many images were sent for it."""

    images: Tensor
    queries: int


def read_by_queries(
    ask: Ask,
    keys: Tensor,
    shape: Sequence[int],
    *,
    coefficients: int | None = None,
    step: float = 1e-3,
    probabilities: bool = False,
    batch: int = 512,
) -> Queried:
    """The images of keys ``[k, *output]`` in the `gradient` readout, for an input of `shape`, without the weights.

    Each coefficient of an image in its discrete cosine transform is one central difference: of what the interface
    answers at the key's probe, changed a little either way along one pattern. The smoothest patterns come first, so
    that a few `coefficients` show a blurred image, and all of them, as for None, the whole one. It takes two queries a
    coefficient and key, `batch` of them in one call.

    `step` is the most that a query changes a number of the input. A larger one drowns what rounding and noise do to the
    answers, a smaller one stays closer to the derivative. The numbers of a probe lie from `DARK` to `BRIGHT`, which no
    interface takes that is open to 8-bit images alone, unless it normalises these. With `probabilities`
    the interface answers those in the place of logits, and logarithms of their ratios are taken, which is the same.
    Classes with probability 0, such as those that it does not tell, are left out.

    Raises `TransposeError` for settings out of range and for answers that do not fit the keys.
    """
    shape, size = tuple(shape), math.prod(shape)
    coefficients = size if coefficients is None else coefficients
    if not 1 <= coefficients <= size or not 0 < step <= 1 or batch < 2:
        raise TransposeError(
            "settings of the queries out of range",
            got=f"{coefficients=}, {step=}, {batch=}",
            expected=f"1 to {size} coefficients, 0 < step <= 1, batch >= 2",
        )
    at_once = batch // 2
    order = smoothest_first(shape)[:coefficients]
    images = torch.zeros(len(keys), *shape, dtype=torch.float64)
    for image, key, probe in zip(images, centred(keys.cpu().double()), drawn_probes(keys, shape), strict=True):
        for places in order.split(at_once):
            patterns = cosine_patterns(places, shape)
            lengths = step / patterns.flatten(1).abs().amax(1)
            moves = (patterns * lengths.reshape(-1, *[1] * len(shape))).to(probe)
            answers = ask(torch.cat([probe + moves, probe - moves])).detach().cpu().double()
            if answers.shape != (2 * len(moves), *key.shape):
                expected = f"[{2 * len(moves)}, {', '.join(map(str, key.shape))}]"
                raise TransposeError("the answers do not fit the keys", got=list(answers.shape), expected=expected)
            up, down = answers.chunk(2)
            rises = differences(up, down, key, probabilities) / (2 * lengths)
            image += torch.tensordot(rises, patterns, 1)
    return Queried(images.float(), 2 * coefficients * len(keys))


def differences(up: Tensor, down: Tensor, key: Tensor, probabilities: bool) -> Tensor:
    """By how much answers ``[n, *output]`` differ in the direction of a key ``[*output]``: ``[n]``."""
    if not probabilities:
        return ((up - down) * key).flatten(1).sum(1)
    told = ((up > 0) & (down > 0)).double()
    weights = told * (key - (told * key).sum(1, keepdim=True) / told.sum(1, keepdim=True).clamp_min(1))
    ratios = torch.where(told > 0, up, 1).log() - torch.where(told > 0, down, 1).log()
    return (ratios * weights).flatten(1).sum(1)


def smoothest_first(shape: tuple[int, ...]) -> Tensor:
    """The places ``[size, axes]`` of the coefficients of a cosine transform, by their frequency."""
    places = torch.cartesian_prod(*(torch.arange(n) for n in shape)).reshape(-1, len(shape))
    frequencies = (places / torch.tensor(shape)).square().sum(1)
    return places[frequencies.argsort(stable=True)]


def cosine_patterns(places: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The patterns ``[n, *shape]`` of some coefficients, each of length 1 and at right angles to all others."""
    axes = [cosines(n)[place] for n, place in zip(shape, places.unbind(1), strict=True)]
    return reduce(lambda found, axis: found.unsqueeze(-1) * axis.reshape(len(axis), *[1] * (found.dim() - 1), -1), axes)


def cosines(n: int) -> Tensor:
    """The orthonormal matrix ``[n, n]`` of the discrete cosine transform (DCT-II), a pattern in each row."""
    angles = torch.outer(torch.arange(n), torch.arange(n) + 0.5).double() * math.pi / n
    matrix = angles.cos() * math.sqrt(2 / n)
    matrix[0] /= math.sqrt(2)
    return matrix
