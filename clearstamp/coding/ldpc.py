"""A low-density parity-check code with its soft decoder, belief propagation."""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from clearstamp.coding.codes import Bits, Code, Ratios, hard


class LowDensity(Code):
    """A low-density parity-check code of rate 4/7, decoded softly by the sum-product algorithm.

    An irregular repeat-accumulate code (Jin, Khandekar, McEliece, 2000): every message bit is in three checks drawn
    from a published seed, and the parity bits form a staircase, so that encoding is a running sum. Gallager's decoder
    (1962) works with the log-likelihood ratios of the bits. It guarantees no number of errors: a payload's checksum
    tells right from wrong.
    """

    name = "ldpc"
    DEGREE, ROUNDS = 3, 200

    def encode(self, message: Bits) -> Bits:
        checks, bits = self.edges(len(message))
        sums = np.bincount(checks, message[bits], minlength=self.parity(len(message))).astype(np.int64)
        return np.concatenate([message, (np.cumsum(sums) % 2).astype(np.uint8)])

    def decode(self, ratios: Ratios, size: int) -> Bits:
        parity = self.parity(size)
        if parity == 0:
            return hard(ratios)
        steps = np.arange(parity)
        own, own_bits = self.edges(size)
        checks = np.concatenate([own, steps, steps[1:]])
        bits = np.concatenate([own_bits, size + steps, size + steps[:-1]])
        order = np.argsort(checks.astype(np.min_scalar_type(parity)), kind="stable")  # fast for short integers
        checks, bits = checks[order], bits[order]
        starts = np.flatnonzero(np.diff(checks, prepend=-1))
        channel = ratios.clip(-30, 30)
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
    @lru_cache(maxsize=2)  # a payload that is encoded is decoded too, after every attack
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
