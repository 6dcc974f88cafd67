"""Bits as images and back: the dot code, error-correcting codes, and payloads made of both. Knows no model.

A payload of bytes is encoded, scrambled (so that black and white are in balance), interleaved (so that a lost image is
spread over all code words) and cut into images of square patches.
"""

import zlib
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from reedsolo import ReedSolomonError, RSCodec
from torch import Tensor

from clearstamp.errors import CodingError
from clearstamp.scores import develop

Bits = NDArray[np.uint8]
Margins = NDArray[np.float64]
THRESHOLD = 0.53
"""The grey value from which the paper reads a pixel as white."""


# --------------------------------------------------------------------------------------------------------- dot code


def places(shape: tuple[int, int, int], patches: int, per_channel: bool) -> Tensor:
    """For every number of an image the bit that it shows, ``[C, H, W]``: patches row by row, channel after channel."""
    channels, height, width = shape
    if not 1 <= patches <= min(height, width):
        raise CodingError("no such number of patches", got=patches, expected=f"1 to {min(height, width)} along a side")
    rows, columns = (torch.arange(size) * patches // size for size in (height, width))
    grid = rows[:, None] * patches + columns
    return torch.stack([grid + channel * patches**2 * per_channel for channel in range(channels)])


def capacity(shape: tuple[int, int, int], patches: int, per_channel: bool = False) -> int:
    """Bits of one image."""
    return patches**2 * (shape[0] if per_channel else 1)


def draw_bits(bits: Bits, shape: tuple[int, int, int], patches: int, *, per_channel: bool = False) -> Tensor:
    """Images ``[k, C, H, W]`` of bits ``[k, n]``: black patches for 0, white ones for 1, `patches` along each side.

    One bit a patch as in the paper, or with `per_channel` one for each colour of a patch.
    """
    expected = capacity(shape, patches, per_channel)
    where = places(shape, patches, per_channel)
    if bits.ndim != 2 or bits.shape[1] != expected or bits.max(initial=0) > 1:
        raise CodingError("these are no bits for such images", got=bits.shape, expected=f"[k, {expected}], each 0 or 1")
    return torch.from_numpy(bits.astype(np.float32))[:, where]


def read_bits(images: Tensor, patches: int, *, per_channel: bool = False, threshold: float = THRESHOLD) -> Bits:
    """Bits ``[k, n]`` of raw signals ``[k, C, H, W]``, as in the paper: the majority of a patch's pixels.

    A pixel is white where a channel reaches `threshold`; with `per_channel` each channel is read by itself.
    """
    white = (images >= threshold).double()
    if not per_channel:
        white = white.amax(1, keepdim=True).expand_as(images)
    return (patch_means(white, patches, per_channel) > 0.5).astype(np.uint8)


def read_margins(images: Tensor, patches: int, *, per_channel: bool = False) -> Margins:
    """How far each bit ``[k, n]`` is on the side of 1 (below 0: of 0), as log-likelihood ratios of a normal error.

    Levels are stretched per image first, as for the eye; grey patches are the least certain.
    """
    means = patch_means(develop(images).double(), patches, per_channel) - 0.5
    side = np.abs(means)
    level, spread = side.mean(), max(side.var(), 1e-4)
    return 2 * level * means / spread


def patch_means(values: Tensor, patches: int, per_channel: bool) -> Margins:
    """The mean of every patch ``[k, n]`` of values ``[k, C, H, W]``."""
    _, channels, height, width = values.shape
    where = places((channels, height, width), patches, per_channel).flatten()
    sums = torch.zeros(len(values), int(where.max()) + 1, dtype=torch.float64)
    sums.index_add_(1, where, values.detach().cpu().double().flatten(1))
    return (sums / torch.bincount(where)).numpy()


# ------------------------------------------------------------------------------------------------------------ codes


class Code(ABC):
    """An error-correcting code for bit strings of any length that is a multiple of 8."""

    name: str

    @abstractmethod
    def encode(self, message: Bits) -> Bits:
        """Code bits ``[n]`` of message bits ``[k]``."""

    @abstractmethod
    def decode(self, margins: Margins, size: int) -> Bits:
        """The `size` message bits that code bits of these `margins` stand for, right or not."""


class Uncoded(Code):
    """The message itself."""

    name = "none"

    def encode(self, message: Bits) -> Bits:
        return message

    def decode(self, margins: Margins, size: int) -> Bits:
        return hard(margins)


class Hamming(Code):
    """Hamming(7,4), as in the paper: one wrong bit in seven is corrected."""

    name = "hamming"
    GENERATOR = np.array([[1, 0, 0, 0, 1, 1, 0], [0, 1, 0, 0, 1, 0, 1], [0, 0, 1, 0, 0, 1, 1], [0, 0, 0, 1, 1, 1, 1]])
    CHECK = np.array([[1, 1, 0, 1, 1, 0, 0], [1, 0, 1, 1, 0, 1, 0], [0, 1, 1, 1, 0, 0, 1]])

    def encode(self, message: Bits) -> Bits:
        return (message.reshape(-1, 4) @ self.GENERATOR % 2).astype(np.uint8).reshape(-1)

    def decode(self, margins: Margins, size: int) -> Bits:
        words = hard(margins).reshape(-1, 7)
        syndromes = words @ self.CHECK.T % 2
        wrong = (syndromes[:, :, None] == self.CHECK).all(1)
        return (words ^ wrong)[:, :4].reshape(-1)


class ReedSolomon(Code):
    """Blocks of 255 bytes with 110 of parity: 55 wrong bytes in a block are corrected. By the package `reedsolo`."""

    name = "reed-solomon"
    PARITY = 110

    def encode(self, message: Bits) -> Bits:
        return np.unpackbits(np.frombuffer(bytes(codec(self.PARITY).encode(np.packbits(message).tobytes())), np.uint8))

    def decode(self, margins: Margins, size: int) -> Bits:
        word = np.packbits(hard(margins)).tobytes()
        try:
            message = bytes(codec(self.PARITY).decode(word)[0])
        except ReedSolomonError:
            message = b"".join(word[i : i + 255][: -self.PARITY] for i in range(0, len(word), 255))
        return np.unpackbits(np.frombuffer(message, np.uint8))


@cache
def codec(parity: int) -> RSCodec:
    return RSCodec(parity)


class LowDensity(Code):
    """A low-density parity-check code of rate 4/7, decoded softly by the sum-product algorithm.

    An irregular repeat-accumulate code (Jin, Khandekar, McEliece, 2000): every message bit is in three checks drawn
    from a published seed, and the parity bits form a staircase, so that encoding is a running sum. Gallager's decoder
    (1962) works with the margins of the bits. It guarantees no number of errors: a payload's checksum tells right from
    wrong.
    """

    name = "ldpc"
    DEGREE, ROUNDS = 3, 200

    def encode(self, message: Bits) -> Bits:
        checks, bits = self.edges(len(message))
        sums = np.bincount(checks, message[bits], minlength=self.parity(len(message))).astype(np.int64)
        return np.concatenate([message, (np.cumsum(sums) % 2).astype(np.uint8)])

    def decode(self, margins: Margins, size: int) -> Bits:
        parity = self.parity(size)
        if parity == 0:
            return hard(margins)
        steps = np.arange(parity)
        own, own_bits = self.edges(size)
        checks = np.concatenate([own, steps, steps[1:]])
        bits = np.concatenate([own_bits, size + steps, size + steps[:-1]])
        order = np.argsort(checks, kind="stable")
        checks, bits = checks[order], bits[order]
        starts = np.flatnonzero(np.diff(checks, prepend=-1))
        channel = -margins.clip(-30, 30)  # towards 0, as is usual
        messages = np.zeros(len(checks))
        for _ in range(self.ROUNDS):
            beliefs = channel + np.bincount(bits, messages, minlength=len(channel))
            found = (beliefs < 0).astype(np.uint8)
            if not (np.add.reduceat(found[bits], starts) % 2).any():
                break
            halves = np.tanh((beliefs[bits] - messages) / 2)
            halves = np.where(np.abs(halves) < 1e-12, 1e-12, halves)
            others = np.multiply.reduceat(halves, starts)[checks] / halves
            messages = 2 * np.arctanh(others.clip(-1 + 1e-12, 1 - 1e-12))
        return found[:size]

    @staticmethod
    def parity(size: int) -> int:
        """Parity bits of a message of `size` bits."""
        return -(-3 * size // 4)

    @staticmethod
    def edges(size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Which check each of a message's bits is in: three different ones, every check with as many bits as any."""
        parity = LowDensity.parity(size)
        numbers = np.random.default_rng(size)
        bits = np.tile(np.arange(size), LowDensity.DEGREE)
        checks = numbers.permutation(np.arange(len(bits)) % max(parity, 1))
        for _ in range(100):  # a bit that is in one check twice swaps that place with another bit's
            columns = checks.reshape(LowDensity.DEGREE, size)
            again = np.flatnonzero([(columns[:i] == columns[i]).any(0) for i in range(LowDensity.DEGREE)])
            if len(again) == 0:
                break
            partners = numbers.integers(0, len(checks), len(again))
            for one, other in zip(again, partners, strict=True):
                checks[one], checks[other] = checks[other], checks[one]
        return checks, bits


def hard(margins: Margins) -> Bits:
    """The likelier value of every bit."""
    return (margins > 0).astype(np.uint8)


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
        per_channel: one bit for each colour of a patch, instead of one for all.
        seed: of scrambling and interleaving.
        checksum: CRC-32 of the bytes, by which wrong ones are told from right.
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

    def order(self, size: int) -> tuple[NDArray[np.int64], Bits]:
        """Where each of `size` bits goes, and what it is scrambled with."""
        numbers = np.random.default_rng(self.seed)
        return numbers.permutation(size), numbers.integers(0, 2, size, np.uint8)


def encode(
    data: bytes, shape: tuple[int, int, int], *, code: str, patches: int, per_channel: bool, seed: int
) -> tuple[Tensor, Payload]:
    """Images ``[k, C, H, W]``, at least one, that hold `data`, and how to read them."""
    payload = Payload(code, len(data), patches, per_channel, seed, zlib.crc32(data))
    bits = CODES[code].encode(np.unpackbits(np.frombuffer(data, np.uint8)))
    each = capacity(shape, patches, per_channel)
    count = max(1, -(-len(bits) // each))
    padded = np.zeros(count * each, np.uint8)
    padded[: len(bits)] = bits
    order, noise = payload.order(len(padded))
    return draw_bits((padded[order] ^ noise).reshape(count, each), shape, patches, per_channel=per_channel), payload


@dataclass(frozen=True)
class Found:
    """What was read out of images.

    Attributes:
        data: the bytes, right or not.
        right: do they have the payload's checksum?
        bits: as read, before correction, ``[k, n]``.
        corrected: code bits that correction changed.
    """

    data: bytes
    right: bool
    bits: Bits
    corrected: int


def decode(images: Tensor, payload: Payload) -> Found:
    """The payload of raw signals ``[k, C, H, W]``. Never raises for wrong bits: see `Found.right`."""
    margins = read_margins(images, payload.patches, per_channel=payload.per_channel)
    order, noise = payload.order(margins.size)
    straight = np.empty(margins.size)
    straight[order] = margins.reshape(-1) * np.where(noise, -1, 1)
    code, size = CODES[payload.code], 8 * payload.length
    used = len(code.encode(np.zeros(size, np.uint8)))
    if used > margins.size:
        raise CodingError("fewer images than the payload needs", got=len(images), expected=f"{used} bits")
    message = code.decode(straight[:used], size)
    data = np.packbits(message).tobytes()
    changed = int((code.encode(message) != hard(straight[:used])).sum())
    return Found(data, zlib.crc32(data) == payload.checksum, hard(margins), changed)
