"""Draws: known answers, the streams, and that they are uniform."""

import hashlib
from collections import Counter
from math import factorial

import numpy as np
import pytest

from clearstamp.evidence.draws import Draws, blocks, commitment, root

SEED, CHOICES = bytes(range(32)), b'{"type": "an example"}\n'


def many(count: int) -> list[Draws]:
    return [Draws(hashlib.sha256(str(place).encode()).digest()) for place in range(count)]


def test_known_answers():
    """Commitment, root and letters were computed by openssl as well."""
    assert commitment(SEED, CHOICES) == "3e4b43125acfe4c59aad11195ba47760449b95bf7d2417753159499ad103db6a"
    drawn = Draws(root(SEED, CHOICES))
    assert drawn.root.hex() == "fadf8071b738c03050fb89608fbdbd905a575714f5941fb1a2fbf0d9ba31c48d"
    assert drawn.keys(1, (3,), 10.0).tolist() == [[-9.116142272949219, 5.962985038757324, 6.2871012687683105]]
    assert drawn.letters(8).tolist() == [8, 15, 7, 4, 8, 0, 8, 12]
    assert drawn.order(5).tolist() == [2, 3, 4, 0, 1]
    assert drawn.mask(8).tolist() == [0, 0, 0, 1, 0, 1, 0, 1]


def test_seed_and_choices_both_decide_everything():
    roots = {root(SEED, CHOICES), root(SEED, CHOICES + b" "), root(SEED[::-1], CHOICES)}
    assert len(roots) == 3
    commitments = {commitment(SEED, CHOICES), commitment(SEED, CHOICES + b" "), commitment(SEED[::-1], CHOICES)}
    assert len(commitments) == 3


def test_a_longer_stream_begins_with_the_shorter_one():
    drawn = Draws(bytes(32))
    assert drawn.stream("keys", 100)[:10] == drawn.stream("keys", 10) != drawn.stream("letters", 10)
    assert drawn.letters(9)[:4].tolist() == drawn.letters(4).tolist()


def test_keys_fill_their_range():
    keys = np.concatenate([drawn.keys(10, (5, 4), 2.5) for drawn in many(100)])
    assert keys.dtype == np.float32 and keys.shape == (1000, 5, 4)
    assert -2.5 <= keys.min() < -2.49 and 2.49 < keys.max() <= 2.5
    assert abs(keys.mean()) < 0.05 and abs(keys.std() - 2.5 / 3**0.5) < 0.05


def test_letters_are_drawn_evenly():
    counts = Counter(np.concatenate([drawn.letters(16) for drawn in many(1000)]).tolist())
    assert sorted(counts) == list(range(16))
    assert all(abs(count - 1000) < 5 * 1000**0.5 for count in counts.values())


def test_mask_bits_are_drawn_evenly():
    assert abs(np.concatenate([drawn.mask(100) for drawn in many(100)]).mean() - 0.5) < 0.025


def test_every_order_is_drawn_as_often():
    counts = Counter(tuple(drawn.order(4).tolist()) for drawn in many(2400))
    assert len(counts) == factorial(4)
    assert all(abs(count - 100) < 5 * 100**0.5 for count in counts.values())


def test_bytes_that_would_favour_some_orders_are_passed_over():
    drawn = Draws(bytes(32))
    drawn.octets = lambda name: iter([255, 1, 0])  # of three, 255 is one byte too many
    assert drawn.order(3).tolist() == [2, 0, 1]


@pytest.mark.parametrize("count", [0, 1, 11, 12, 13, 30])
def test_orders_stay_within_their_blocks(count: int):
    order = Draws(bytes(32)).order(count)
    assert sorted(order) == list(range(count))
    for start, stop in blocks(count):
        assert stop - start <= 12 and sorted(order[start:stop]) == list(range(start, stop))
