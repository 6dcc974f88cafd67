"""Readers: what turns the pictures that a person sees into integers that a test counts.

A reader changes the power of a test, never its validity: the draws are uniform given whatever it reads. It works on
8-bit pictures, those that the report shows, and in integers, so that its result is the same on every machine.
"""

from collections.abc import Callable
from math import isqrt

import numpy as np
import torch
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Numbers = NDArray[np.int64]
Reader = Callable[[Numbers, Numbers], Numbers]
"""From pictures ``[n, H, W]`` and what they may show ``[m, H, W]``, with any levels, to integer scores ``[n, m]``."""

UNIT = 10**6
"""The template reader's score of a picture that is its secret, as far as levels and contrast go."""

ENOUGH = 4
"""From so many pictures on their mean, which is what a network answers to any key, is taken off each."""


def template(pictures: Numbers, shown: Numbers) -> Numbers:
    """Normalised cross-correlation of every picture with everything it may show, in millionths, rounded towards 0.

    A flat picture scores 0 throughout.
    """
    left, right = (values.reshape(len(values), -1).astype(np.int64) for values in (pictures, shown))
    pixels = left.shape[1]
    products = pixels * (left @ right.T) - np.outer(left.sum(1), right.sum(1))
    spreads = [pixels * (values**2).sum(1) - values.sum(1) ** 2 for values in (left, right)]
    found = np.zeros(products.shape, np.int64)
    for row, column in zip(*products.nonzero(), strict=True):
        product, spread = int(products[row, column]), int(spreads[0][row]) * int(spreads[1][column])
        found[row, column] = isqrt(product**2 * UNIT**2 // spread) * (1 if product > 0 else -1)
    return found


def trained(pictures: Numbers, shown: Numbers) -> Numbers:
    """The trained verifier's logits, in thousandths: too coarse for another machine's last bits to matter."""
    from clearstamp.evidence.verifier import scores  # whose weights are read where they are asked for

    logits = scores(torch.from_numpy(pictures), torch.from_numpy(shown))
    found: Numbers = (logits * 1000).round().long().numpy()
    return found


READERS: dict[str, Reader] = {"template": template, "verifier": trained}
"""Every reader by the name under which a seal chooses it."""


def grey(pictures: Pixels) -> Numbers:
    """Pictures ``[k, C, H, W]`` as sums over their channels ``[k, H, W]``."""
    return pictures.astype(np.int64).sum(1)


def centred(pictures: Numbers) -> Numbers:
    """Pictures ``[k, H, W]`` times their number, without their mean, if there are `ENOUGH` of them."""
    return pictures * len(pictures) - pictures.sum(0) if len(pictures) >= ENOUGH else pictures


def cells(pictures: Numbers, rows: int, columns: int) -> Numbers:
    """The cells of pictures ``[k, H, W]``, row by row: ``[k * rows * columns, H // rows, W // columns]``."""
    count, height, width = pictures.shape
    high, wide = height // rows, width // columns
    cut = pictures[:, : rows * high, : columns * wide].reshape(count, rows, high, columns, wide)
    return cut.transpose(0, 1, 3, 2, 4).reshape(-1, high, wide)


def best(scores: Numbers) -> Numbers:
    """Which of the ``[n, m]`` scores is the highest in each row; -1 where two of them are."""
    found = scores.argmax(1)
    tied = (scores == scores.max(1, keepdims=True)).sum(1) > 1
    return np.where(tied, -1, found)
