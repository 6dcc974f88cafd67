"""Error-correcting codes for strings of bits: their contract, and those that correct one block at a time."""

from abc import ABC, abstractmethod
from functools import cache

import numpy as np
from numpy.typing import NDArray
from reedsolo import ReedSolomonError, RSCodec

Bits = NDArray[np.uint8]
Ratios = NDArray[np.float64]
"""Log-likelihood ratios of bits, log P(0) / P(1): above 0 for a bit that is rather 0."""


class Code(ABC):
    """An error-correcting code for bit strings of any length that is a multiple of 8."""

    name: str

    @abstractmethod
    def encode(self, message: Bits) -> Bits:
        """Code bits ``[n]`` of message bits ``[k]``."""

    @abstractmethod
    def decode(self, ratios: Ratios, size: int) -> Bits:
        """The `size` message bits of code bits with these log-likelihood `ratios`, right or not."""


class Uncoded(Code):
    """The message itself."""

    name = "none"

    def encode(self, message: Bits) -> Bits:
        return message

    def decode(self, ratios: Ratios, size: int) -> Bits:
        return hard(ratios)


class Hamming(Code):
    """Hamming(7,4), as in the paper: one wrong bit in seven is corrected."""

    name = "hamming"
    GENERATOR = np.array([[1, 0, 0, 0, 1, 1, 0], [0, 1, 0, 0, 1, 0, 1], [0, 0, 1, 0, 0, 1, 1], [0, 0, 0, 1, 1, 1, 1]])
    CHECK = np.array([[1, 1, 0, 1, 1, 0, 0], [1, 0, 1, 1, 0, 1, 0], [0, 1, 1, 1, 0, 0, 1]])

    def encode(self, message: Bits) -> Bits:
        return (message.reshape(-1, 4) @ self.GENERATOR % 2).astype(np.uint8).reshape(-1)

    def decode(self, ratios: Ratios, size: int) -> Bits:
        words = hard(ratios).reshape(-1, 7)
        syndromes = words @ self.CHECK.T % 2
        wrong = (syndromes[:, :, None] == self.CHECK).all(1)
        return (words ^ wrong)[:, :4].reshape(-1)


class ReedSolomon(Code):
    """Blocks of 255 bytes with 110 of parity: 55 wrong bytes in a block are corrected. By the package `reedsolo`."""

    name = "reed-solomon"
    PARITY = 110

    def encode(self, message: Bits) -> Bits:
        return np.unpackbits(np.frombuffer(bytes(codec(self.PARITY).encode(np.packbits(message).tobytes())), np.uint8))

    def decode(self, ratios: Ratios, size: int) -> Bits:
        word = np.packbits(hard(ratios)).tobytes()
        try:
            message = bytes(codec(self.PARITY).decode(word)[0])
        except ReedSolomonError:
            message = b"".join(word[i : i + 255][: -self.PARITY] for i in range(0, len(word), 255))
        return np.unpackbits(np.frombuffer(message, np.uint8))


@cache
def codec(parity: int) -> RSCodec:
    """The code with that many bytes of parity in a block."""
    return RSCodec(parity)


def hard(ratios: Ratios) -> Bits:
    """The likelier value of every bit."""
    return (ratios < 0).astype(np.uint8)
