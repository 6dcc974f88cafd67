"""What nobody can choose: keys, letters, order and mask are drawn from a hash of the owner's choices and a secret seed.

Exactness of every p rests on SHA-256, scrypt and SHAKE-256 behaving as random functions, and on a seed that nobody else
had. The standard library computes all three; the draws are the same on every machine.
"""

import hashlib
from collections.abc import Iterator, Sequence
from math import prod

import numpy as np
from numpy.typing import NDArray

SEED = 32
"""Bytes of a seed."""

LARGEST_BLOCK = 12
"""The most pictures whose order is tested exactly, at once."""


def commitment(seed: bytes, choices: bytes) -> str:
    """The SHA-256 in hexadecimal that is published and dated: it hides the seed and binds the choices."""
    return hashlib.sha256(b"clearstamp/commitment/1\0" + seed + hashlib.sha256(choices).digest()).hexdigest()


def root(seed: bytes, choices: bytes) -> bytes:
    """What everything is drawn from: scrypt at about half a second and 128 MiB, a brake on whoever tries many seeds."""
    salt = hashlib.sha256(choices).digest()
    return hashlib.scrypt(seed, salt=salt, n=2**17, r=8, p=1, maxmem=2**28, dklen=32)


class Draws:
    """The draws that follow from a `root`, each from a stream of its own."""

    def __init__(self, root: bytes):
        self.root = root

    def stream(self, name: str, size: int) -> bytes:
        """The first `size` bytes of a stream; more of them begin with the same bytes."""
        return hashlib.shake_256(self.root + b"\0" + name.encode()).digest(size)

    def keys(self, count: int, shape: Sequence[int], key_range: float) -> NDArray[np.float32]:
        """Keys ``[count, *shape]``, uniform in [-key_range, key_range): four bytes a number, the lowest first."""
        words = np.frombuffer(self.stream("keys", 4 * count * prod(shape)), "<u4").astype(np.float64)
        return ((words / 2**31 - 1) * key_range).astype(np.float32).reshape(count, *shape)

    def letters(self, count: int) -> NDArray[np.int64]:
        """Places in an alphabet of 16: four bits a letter, the higher half of a byte first."""
        octets = np.frombuffer(self.stream("letters", -(-count // 2)), np.uint8)
        return np.stack([octets >> 4, octets & 15], 1).reshape(-1)[:count].astype(np.int64)

    def mask(self, count: int) -> NDArray[np.uint8]:
        """Bits, the highest of a byte first."""
        return np.unpackbits(np.frombuffer(self.stream("mask", -(-count // 8)), np.uint8))[:count]

    def order(self, count: int) -> NDArray[np.int64]:
        """For each key which picture it reveals: each block shuffled by Fisher and Yates, biased draws rejected."""
        found = np.arange(count)
        octets = self.octets("order")
        for start, stop in blocks(count):
            for last in range(stop - start - 1, 0, -1):
                drawn = next(octet for octet in octets if octet < 256 - 256 % (last + 1)) % (last + 1)
                found[[start + last, start + drawn]] = found[[start + drawn, start + last]]
        return found

    def octets(self, name: str) -> Iterator[int]:
        """A stream byte by byte, without an end."""
        had, size = 0, 64
        while True:
            yield from self.stream(name, size)[had:]
            had, size = size, 2 * size


def blocks(count: int) -> list[tuple[int, int]]:
    """So many pictures in blocks of nearly equal size, `LARGEST_BLOCK` at most: where each begins and ends."""
    number = max(1, -(-count // LARGEST_BLOCK))
    ends = [count * place // number for place in range(number + 1)]
    return list(zip(ends, ends[1:], strict=False))
