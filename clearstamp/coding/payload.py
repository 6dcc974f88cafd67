"""Bits as images and back: the dot code, error-correcting codes, and payloads made of both. Knows no model.

A payload of bytes is encoded, scrambled (so that black and white are in balance), interleaved (so that a lost image is
spread over all code words) and cut into images of square patches.
"""

import zlib
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clearstamp.coding.codes import Bits, Code, Hamming, Ratios, ReedSolomon, Uncoded, hard
from clearstamp.coding.ldpc import LowDensity
from clearstamp.errors import CodingError
from clearstamp.pictures import as_pictures, develop

THRESHOLD = 0.53
"""The least grey value that the paper reads as white."""


# --------------------------------------------------------------------------------------------------------- dot code


def places(shape: tuple[int, int, int], patches: int, per_channel: bool) -> Tensor:
    """For every number of an image the bit that it shows, ``[C, H, W]``: patches row by row, channel after channel."""
    channels, height, width = shape
    if not 1 <= patches <= min(height, width):
        raise CodingError("number of patches out of range", got=patches, expected=f"1 to {min(height, width)} per side")
    rows, columns = (torch.arange(size) * patches // size for size in (height, width))
    grid = rows[:, None] * patches + columns
    return torch.stack([grid + channel * patches**2 * per_channel for channel in range(channels)])


def capacity(shape: tuple[int, int, int], patches: int, per_channel: bool = False) -> int:
    """Bits of one image."""
    return patches**2 * (shape[0] if per_channel else 1)


def draw_bits(bits: Bits, shape: tuple[int, int, int], patches: int, *, per_channel: bool = False) -> Tensor:
    """Images ``[k, C, H, W]`` of bits ``[k, n]``: black patches for 0, white ones for 1, `patches` along each side.

    One bit per patch as in the paper, or with `per_channel` one per colour channel of a patch.
    """
    expected = capacity(shape, patches, per_channel)
    where = places(shape, patches, per_channel)
    if bits.ndim != 2 or bits.shape[1] != expected or bits.max(initial=0) > 1:
        raise CodingError("the bits do not fit the images", got=bits.shape, expected=f"[k, {expected}], each 0 or 1")
    return torch.from_numpy(bits.astype(np.float32))[:, where]


def read_bits(images: Tensor, patches: int, *, per_channel: bool = False, threshold: float = THRESHOLD) -> Bits:
    """Bits ``[k, n]`` of raw signals ``[k, C, H, W]``, as in the paper: the majority of a patch's pixels.

    A pixel is white where a channel reaches `threshold`; with `per_channel` each channel is read by itself.
    """
    white = (images >= threshold).double()
    if not per_channel:
        white = white.amax(1, keepdim=True).expand_as(images)
    return (patch_means(white, patches, per_channel) > 0.5).astype(np.uint8)


def log_likelihood_ratios(images: Tensor, patches: int, *, per_channel: bool = False) -> Ratios:
    """log P(0) / P(1) of each bit ``[k, n]``, for a normal error of the patches' means.

    Levels are stretched per image first, as for the eye; grey patches are the least certain.
    """
    means = patch_means(develop(images).double(), patches, per_channel) - 0.5
    side = np.abs(means)
    level, spread = side.mean(), max(side.var(), 1e-4)
    return -2 * level * means / spread


def patch_means(values: Tensor, patches: int, per_channel: bool) -> NDArray[np.float64]:
    """The mean of every patch ``[k, n]`` of values ``[k, C, H, W]``."""
    sums, sizes = patch_sums(values, patches, per_channel)
    return sums / sizes


def patch_sums(values: Tensor, patches: int, per_channel: bool) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The sum over every patch ``[k, n]`` of values ``[k, C, H, W]``, exact for integers, and each patch's size."""
    _, channels, height, width = values.shape
    where = places((channels, height, width), patches, per_channel).flatten()
    sums = torch.zeros(len(values), int(where.max()) + 1, dtype=torch.float64)
    sums.index_add_(1, where, values.detach().cpu().double().flatten(1))
    return sums.numpy(), torch.bincount(where).numpy()


CODES: dict[str, Code] = {code.name: code for code in (Uncoded(), Hamming(), ReedSolomon(), LowDensity())}
"""Every code by its name."""


# --------------------------------------------------------------------------------------------------------- payloads


@dataclass(frozen=True)
class Payload:
    """How bytes lie in a stamp's images: all that is needed to read them back, and nothing of what they say.

    Attributes:
        code: name of the error-correcting code.
        length: bytes.
        patches: along each side of an image.
        per_channel: one bit per colour channel of a patch instead of one per patch.
        seed: of scrambling and interleaving.
        checksum: CRC-32 of the bytes, which tells whether they were read back right.
    """

    code: str
    length: int
    patches: int
    per_channel: bool
    seed: int
    checksum: int

    def __post_init__(self) -> None:
        if self.code not in CODES:
            raise CodingError("unknown code", got=repr(self.code), expected=", ".join(CODES))

    @property
    def about(self) -> dict[str, Any]:
        """For a file."""
        return asdict(self)

    @property
    def coded(self) -> int:
        """How many bits the bytes are once they are encoded."""
        return len(CODES[self.code].encode(np.zeros(8 * self.length, np.uint8)))

    def order(self, size: int) -> tuple[NDArray[np.int64], Bits]:
        """Where each of `size` bits goes, and what it is scrambled with."""
        numbers = np.random.default_rng(self.seed)
        return numbers.permutation(size), numbers.integers(0, 2, size, np.uint8)


def encode(
    data: bytes, shape: tuple[int, int, int], *, code: str, patches: int, per_channel: bool, seed: int
) -> tuple[Tensor, Payload]:
    """Images ``[k, C, H, W]``, at least one, that hold `data`, and how to read them."""
    payload = Payload(code, len(data), patches, per_channel, seed, zlib.crc32(data))
    each = capacity(shape, patches, per_channel)
    count = max(1, -(-payload.coded // each))
    bits = laid_out(data, payload, count * each) ^ payload.order(count * each)[1]
    return draw_bits(bits.reshape(count, each), shape, patches, per_channel=per_channel), payload


def laid_out(data: bytes, payload: Payload, size: int) -> Bits:
    """The bytes as `size` bits: encoded, filled up with zeros and interleaved, not scrambled yet."""
    bits = CODES[payload.code].encode(np.unpackbits(np.frombuffer(data, np.uint8)))
    padded = np.zeros(size, np.uint8)
    padded[: len(bits)] = bits
    return padded[payload.order(size)[0]]


@dataclass(frozen=True)
class Found:
    """What was read out of images.

    Attributes:
        data: the bytes, right or not.
        right: whether they have the payload's checksum.
        bits: as read, before correction, ``[k, n]``.
        corrected: code bits that correction changed.
    """

    data: bytes
    right: bool
    bits: Bits
    corrected: int


def decode(images: Tensor, payload: Payload, mask: Bits | None = None) -> Found:
    """The payload of raw signals ``[k, ...]``, scrambled with `mask` if there is one and else by its seed.

    Never raises for wrong bits: see `Found.right`.
    """
    ratios = log_likelihood_ratios(as_pictures(images), payload.patches, per_channel=payload.per_channel)
    order, noise = payload.order(ratios.size)
    noise = noise if mask is None else mask
    straight = np.empty(ratios.size)
    straight[order] = ratios.reshape(-1) * np.where(noise, -1, 1)
    code, size = CODES[payload.code], 8 * payload.length
    used = payload.coded
    if used > ratios.size:
        raise CodingError("fewer images than the payload needs", got=len(images), expected=f"{used} bits")
    message = code.decode(straight[:used], size)
    data = np.packbits(message).tobytes()
    changed = int((code.encode(message) != hard(straight[:used])).sum())
    return Found(data, zlib.crc32(data) == payload.checksum, hard(ratios), changed)
