"""How often chance does as well: an exact p for each test.

The draws of a seal are uniform whatever the suspect's weights are, if these were made without the draws. So nothing is
assumed of the suspect: the pictures are given, and p counts the draws that would have fitted them as well. This is a
randomisation test (Hemerik and Goeman 2021, doi 10.1111/insr.12431). Every p is rounded up.
"""

from collections.abc import Iterator, Sequence
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal
from fractions import Fraction
from itertools import accumulate, combinations, permutations
from math import factorial

import numpy as np
from numpy.typing import NDArray

from clearstamp.evidence.draws import blocks

UP = Context(prec=40, rounding=ROUND_CEILING, Emin=-(10**9), Emax=10**9)


def at_most_one(p: Decimal | Fraction) -> Decimal:
    """The number as a decimal, rounded up, and never above 1."""
    if isinstance(p, Fraction):
        p = UP.divide(Decimal(p.numerator), Decimal(p.denominator))
    return min(p, Decimal(1))


def told(p: Decimal, digits: int = 2) -> Decimal:
    """p with so many digits, and never less than it is: as people and files are told it."""
    return Context(prec=digits, rounding=ROUND_CEILING, Emin=UP.Emin).plus(p)


def seldom(p: Decimal) -> str:
    """Once in how many seals chance does as well: one digit, and never more than there are."""
    seals = Context(prec=1, rounding=ROUND_FLOOR, Emax=UP.Emax).divide(Decimal(1), p)
    return f"{seals:.0f}" if seals < 10**6 else f"{seals:.0e}"


def binomial(right: int, of: int, one_in: int) -> Decimal:
    """P(X >= right) for X the number of right guesses among `of`, each right with probability 1 / `one_in`."""

    def fewer(ways: int, hits: int) -> int:
        """In how many ways one guess less is right: from the number before, since bytes have many bits."""
        return ways * hits * (one_in - 1) // (of - hits + 1)

    ways: Iterator[int] = accumulate(range(of, right, -1), fewer, initial=1)
    return at_most_one(Fraction(sum(ways), one_in**of))


def orders(scores: NDArray[np.int64], order: NDArray[np.int64]) -> Decimal:
    """The share of all orders of k pictures that score at least what this one does, ties included.

    `scores` are integers ``[k, k]``, of each picture with each secret. Exact for any k up to 12; more are counted
    within the blocks in which they were drawn, and the blocks' p joined as by `together`.
    """
    parts = [slice(*block) for block in blocks(len(order))]
    return together([within(scores[part, part], order[part] - part.start) for part in parts])


def within(scores: NDArray[np.int64], order: NDArray[np.int64]) -> Decimal:
    """The same for one block: the rows are split in two, and the halves' sorted sums meet in the middle."""
    count = len(order)
    reached = int(scores[np.arange(count), order].sum())
    upper, lower = np.split(np.arange(count), [count // 2])
    as_good = 0
    for chosen in combinations(range(count), len(upper)):
        others = sorted(set(range(count)) - set(chosen))
        first, second = sums(scores, upper, chosen), sums(scores, lower, others)
        as_good += len(second) * len(first) - int(np.searchsorted(np.sort(second), reached - first).sum())
    return at_most_one(Fraction(as_good, factorial(count)))


def sums(scores: NDArray[np.int64], rows: NDArray[np.int64], columns: Sequence[int]) -> NDArray[np.int64]:
    """The sums of some rows over every assignment of some columns to them."""
    assigned = np.array(list(permutations(columns)), dtype=np.int64).reshape(factorial(len(rows)), len(rows))
    total: NDArray[np.int64] = scores[rows, assigned].sum(1)
    return total


def together(ps: Sequence[Decimal]) -> Decimal:
    """Fisher's p of independent ones: P(chi2 with 2 B degrees >= -2 sum ln p), which is too large for discrete p.

    For an even number of degrees the survival function is a finite sum.
    """
    product = Decimal(1)
    for p in ps:
        product = UP.multiply(product, p)
    minus_log = UP.minus(UP.ln(product)) if product else Decimal(0)
    total, term = Decimal(0), Decimal(1)
    for place in range(len(ps)):
        if place:
            term = UP.divide(UP.multiply(term, minus_log), Decimal(place))
        total = UP.add(total, term)
    return at_most_one(UP.multiply(product, total))


def chernoff(scores: NDArray[np.int64], drawn: NDArray[np.int64]) -> Decimal:
    """A bound on P(T >= t) for T the sum of scores ``[n, 16]`` at letters drawn evenly, t that at those `drawn`.

    min over l >= 0 of exp(-l t) prod of mean exp(l score), by Chernoff. Any l gives a bound, so a grid does; a relative
    error of its logarithm in floating point is covered by a thousandth.
    """
    values = scores.astype(np.float64)
    values = values - values.max(1, keepdims=True)  # which changes neither side, and keeps the powers in range
    reached = values[np.arange(len(values)), drawn].sum()
    widest = float(-values.min()) or 1.0
    least = 0.0
    for slope in np.geomspace(1e-3, 1e4, 400) / widest:
        least = min(least, float(np.log(np.exp(slope * values).mean(1)).sum() - slope * reached))
    return at_most_one(UP.exp(Decimal(least * 0.999)))
