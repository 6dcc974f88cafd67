"""Exact p: against enumeration, against scipy, and never too small."""

from decimal import Decimal
from fractions import Fraction
from itertools import permutations, product
from math import comb, factorial

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from clearstamp.evidence import chance


def numbers(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("right", [0, 1, 5, 26, 44])
def test_binomial_is_that_of_scipy(right: int):
    expected = stats.binom.sf(right - 1, 44, 1 / 16)
    assert float(chance.binomial(right, 44, 16)) == pytest.approx(expected, rel=1e-12)


def test_binomial_is_exact_far_below_what_a_float_holds():
    assert chance.binomial(8544, 8544, 2) >= Decimal(2) ** -8544
    assert chance.binomial(8544, 8544, 2) < Decimal(2) ** -8544 * Decimal("1.000001")


def enumerated(scores: NDArray[np.int64], order: NDArray[np.int64]) -> Fraction:
    rows = np.arange(len(order))
    reached = scores[rows, order].sum()
    return Fraction(
        sum(int(scores[rows, list(other)].sum() >= reached) for other in permutations(rows)), factorial(len(order))
    )


@pytest.mark.parametrize("count", range(1, 8))
@pytest.mark.parametrize("spread", [0, 1, 10**6])
def test_orders_are_counted_as_by_enumeration(count: int, spread: int):
    scores = numbers(count).integers(-spread, spread + 1, (count, count))
    order = numbers(count + 1).permutation(count)
    assert chance.orders(scores, order) == chance.at_most_one(enumerated(scores, order))


def test_the_best_of_twelve_orders_is_counted_once():
    order = numbers().permutation(12)
    scores = np.zeros((12, 12), np.int64)
    scores[np.arange(12), order] = 10
    assert chance.orders(scores, order) == chance.at_most_one(Fraction(1, factorial(12)))


def test_flat_pictures_fit_any_order():
    assert chance.orders(np.zeros((11, 11), np.int64), numbers().permutation(11)) == 1


@pytest.mark.parametrize("ps", [["0.3"], ["0.3", "0.2"], ["0.001", "0.5", "0.7"], ["1", "1"]])
def test_ps_are_joined_as_by_fisher(ps: list[str]):
    expected = stats.combine_pvalues(list(map(float, ps))).pvalue
    assert float(chance.together(list(map(Decimal, ps)))) == pytest.approx(expected, rel=1e-12)


def test_chernoff_bounds_the_exact_p():
    scores = numbers().integers(-1000, 1000, (4, 5))
    sums = np.array([scores[np.arange(4), list(letters)].sum() for letters in product(range(5), repeat=4)])
    for letters in product(range(5), repeat=4):
        exact = (sums >= scores[np.arange(4), list(letters)].sum()).mean()
        assert float(chance.chernoff(scores, np.array(letters))) >= exact


def test_chernoff_comes_close_where_every_letter_is_right():
    scores = np.zeros((44, 16), np.int64)
    scores[:, 3] = 10**6
    bound = chance.chernoff(scores, np.full(44, 3))
    assert Decimal(16) ** -44 <= bound < Decimal(16) ** -44 * 2


def test_chernoff_of_flat_pictures_is_one():
    assert chance.chernoff(np.zeros((44, 16), np.int64), numbers().integers(0, 16, 44)) == 1


def test_p_is_rounded_up():
    third = chance.at_most_one(Fraction(1, 3))
    assert Fraction(third) * 3 > 1 and third < Decimal("0.3333333334")
    assert chance.at_most_one(Decimal(3)) == 1


@pytest.mark.parametrize(("right", "of", "one_in"), [(0, 7, 16), (3, 7, 16), (7, 7, 16), (250, 600, 2)])
def test_binomial_is_the_sum_of_its_terms(right: int, of: int, one_in: int):
    ways = sum(comb(of, hits) * (one_in - 1) ** (of - hits) for hits in range(right, of + 1))
    assert chance.binomial(right, of, one_in) == chance.at_most_one(Fraction(ways, one_in**of))


def test_as_many_bits_as_a_licence_has_are_counted():
    """In a second: each term follows from the one before, where by itself it would take hours."""
    assert Decimal("0.5") < chance.binomial(30_000, 60_000, 2) < Decimal("0.51")


def test_more_orders_than_a_block_are_joined_by_fisher():
    scores, order = numbers().integers(-9, 10, (14, 14)), np.r_[numbers().permutation(7), 7 + numbers(1).permutation(7)]
    ps = [chance.orders(scores[:7, :7], order[:7]), chance.orders(scores[7:, 7:], order[7:] - 7)]
    assert chance.orders(scores, order) == chance.together(ps)
