"""The verdict on a model: one test, named when the stamp was sealed, with an exact p."""

from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum

import numpy as np
import torch
from torch import Tensor

from clearstamp.coding.payload import decode, patch_sums
from clearstamp.errors import SealError, StampError
from clearstamp.evidence import chance
from clearstamp.evidence.readers import READERS, UNIT, Numbers, Pixels, best, cells, centred, grey, template
from clearstamp.evidence.seal import Seal, pixels
from clearstamp.pictures import as_pictures, develop
from clearstamp.reading import extract
from clearstamp.stamp import Stamp
from clearstamp.transposed.base import Transposed
from clearstamp.units.canonical import blank, merged

WEAK = Decimal("1e-6")
"""A p of at most this is worth saying, and no match: a forger needs about 1 / p seeds."""

LEGIBLE = 0.5
"""The mean correlation with the secrets from which on pictures count as legible: a convention. People can be asked."""

NOT_INNOCENCE = "p is how often chance does as well; it is not the probability that the model is innocent."


class Outcome(StrEnum):
    """What a verdict comes to."""

    MATCH = "MATCH"
    WEAK = "WEAK"
    SUPPORTS = "SUPPORTS"
    NO_MATCH = "NO MATCH"


@dataclass(frozen=True, eq=False)
class Verdict:
    """How well a model shows a sealed stamp, and how often chance does as well.

    Attributes:
        outcome: MATCH if p is at most 2^-bar, WEAK if it is at most 1e-6, else NO MATCH. SUPPORTS is the most that a
            model can reach in which a layer of the owner's was put back, since that layer depends on the draws.
        p: of the seal's test, rounded up, multiplied by the attempts and the searched files; at most 1.
        bar: the exponent of a match.
        test: its name.
        right: how many letters, bits, or pictures at their places were read right.
        of: how many there are.
        attempt: how the model was read.
        tries: attempts times searched files.
        legible: whether pictures and secrets correlate enough for a person to read them.
        correlation: their mean, in [-1, 1].
        pictures: what was read, developed, uint8 ``[k, C, H, W]``.
        scores: the integer scores that were counted.
        data: the bytes that were read, for a seal with a payload that could be corrected; else None.
    """

    outcome: Outcome
    p: Decimal
    bar: int
    test: str
    right: int
    of: int
    attempt: str
    tries: int
    legible: bool
    correlation: float
    pictures: Pixels
    scores: Numbers
    data: bytes | None = None

    def __str__(self) -> str:
        what = {"bits": "bits", "order": "pictures"}.get(self.test, "letters")
        legible = "legible" if self.legible else "not legible"
        lines = [
            f"{what} {self.right} of {self.of} right; read {self.attempt!r}; {self.tries} tries counted",
            f"pictures {legible} (mean correlation {self.correlation:.2f})",
            f"{self.outcome.value}   p = {chance.told(self.p):.1e}: {self.meaning}",
            NOT_INNOCENCE,
        ]
        return "\n".join(lines)

    @property
    def meaning(self) -> str:
        """What p says, in a sentence."""
        if self.outcome is Outcome.SUPPORTS:
            return "a layer of the owner's was put back, which depends on the draws, so p is no test."
        if self.p >= Decimal("0.05"):
            return "a model made without this seal often reads as well."
        return f"a model made without this seal reads as well once in {chance.seldom(self.p)} seals."


def verify(back: Transposed, seal: Seal, *, searched: int = 1, grafted: bool = False) -> Verdict:
    """Read a model in every way that the seal names, and judge the best reading; p counts all of them.

    `back` is the suspect run backwards, as by `seal.transpose(model)`. `searched` is the number of models that were
    looked at before this one was named. `grafted` says that a layer of the owner's was put back.

    Raises `SealError` for a stamp that was never sealed, and if the model is not run backwards as the seal says;
    `StampError` if shapes do not fit.
    """
    return best_reading(back, seal, searched=searched, grafted=grafted)[0]


def best_reading(back: Transposed, seal: Seal, *, searched: int, grafted: bool) -> tuple[Verdict, Tensor]:
    """The verdict of `verify`, and the raw signal ``[k, ...]`` that it judges. Raises as `verify` does."""
    if isinstance(seal, Stamp):
        raise SealError(
            "an unsealed stamp gets no verdict",
            got="keys and secrets that could have been chosen to fit a model",
            expected="a Seal, made before training",
            remedy="clearstamp.read gives pictures and scores, which show a person what they show, and no p",
        )
    choices, stamp = seal.choices, seal.stamp()
    if back.readout != choices.readout or not back.on_public_probe:
        raise SealError(
            "the model is not run backwards as the seal says",
            got=f"readout {back.readout!r}" + ("" if back.on_public_probe else ", with frozen values"),
            expected=f"readout {choices.readout!r} on the public probe",
            remedy="seal.transpose(model)",
        )
    if searched < 1:
        raise SealError("number of searched models out of range", got=searched, expected="at least 1")
    found, misfit = [], None
    for attempt in choices.attempts:
        try:
            signals = extract(reread(back, seal, attempt), stamp)
        except StampError as error:  # a tapped layer with more units than keys have entries
            misfit = error
            continue
        verdict = judge(seal, developed(signals), attempt=attempt, searched=searched, grafted=grafted)
        found.append((verdict, signals))
        if verdict.p <= choices.alpha:
            break
    if not found and misfit is not None:
        raise misfit
    return min(found, key=lambda each: each[0].p)


def outcome(p: Decimal, alpha: Decimal, *, grafted: bool = False) -> Outcome:
    """What a p comes to, if one of at most `alpha` is a match: see `Verdict`."""
    found = Outcome.MATCH if p <= alpha else Outcome.WEAK if p <= WEAK else Outcome.NO_MATCH
    return Outcome.SUPPORTS if grafted and found is not Outcome.NO_MATCH else found


def reread(back: Transposed, seal: Seal, attempt: str) -> Transposed:
    """The model as an attempt reads it."""
    if attempt == "as is":
        return back
    read = seal.transpose(merged(back.model, graph := seal.graph(back.model)))
    if read.key_shape == seal.choices.key:
        return read
    return seal.transpose(merged(back.model, blank(back.model, graph)))  # units were added where keys enter


def look(back: Transposed, stamp: Stamp) -> Pixels:
    """What a model reveals, as a person sees it, ``[k, C, H, W]``."""
    return developed(extract(back, stamp))


def developed(signals: Tensor) -> Pixels:
    """Raw signals ``[k, ...]`` as a person sees them: developed, in 8 bits, ``[k, C, H, W]``."""
    return pixels(as_pictures(develop(signals)))


def judge(seal: Seal, pictures: Pixels, *, attempt: str = "as is", searched: int = 1, grafted: bool = False) -> Verdict:
    """The verdict on pictures ``[k, C, H, W]``, whoever read them out of whatever model.

    Raises `SealError` for pictures of another shape.
    """
    choices, secrets = seal.choices, seal.secrets()
    if pictures.shape != secrets.shape or pictures.dtype != np.uint8:
        raise SealError("pictures of another shape", got=pictures.shape, expected=secrets.shape)
    alike = np.diagonal(template(grey(pictures), grey(secrets))) / UNIT
    p, right, of, scores = TESTS[choices.test](seal, pictures)
    tries = len(choices.attempts) * searched
    p = chance.at_most_one(chance.UP.multiply(p, Decimal(tries)))
    return Verdict(
        outcome=outcome(p, choices.alpha, grafted=grafted),
        p=p,
        bar=choices.bar,
        test=choices.test,
        right=right,
        of=of,
        attempt=attempt,
        tries=tries,
        legible=bool(alike.mean() >= LEGIBLE),
        correlation=float(alike.mean()),
        pictures=pictures,
        scores=scores,
        data=payload(seal, pictures),
    )


Result = tuple[Decimal, int, int, Numbers]
"""p, how many are right, of how many, and the scores that were counted."""


def letter_scores(seal: Seal, pictures: Pixels) -> Numbers:
    """How well each drawn letter's place shows each letter of the alphabet, ``[letters, 16]``."""
    choices = seal.choices
    coded = centred(grey(pictures[: choices.codes]))
    return READERS[choices.reader](cells(coded, choices.rows, choices.columns), grey(seal.sheet))


def letters(seal: Seal, pictures: Pixels) -> Result:
    """A letter is right if it scores the highest, alone."""
    scores, drawn = letter_scores(seal, pictures), seal.letters.reshape(-1)
    right = int((best(scores) == drawn).sum())
    return chance.binomial(right, len(drawn), len(seal.sheet)), right, len(drawn), scores


def soft_letters(seal: Seal, pictures: Pixels) -> Result:
    """The sum of the drawn letters' scores."""
    scores, drawn = letter_scores(seal, pictures), seal.letters.reshape(-1)
    return chance.chernoff(scores, drawn), int((best(scores) == drawn).sum()), len(drawn), scores


def bits(seal: Seal, pictures: Pixels) -> Result:
    """A bit is right if the mean of its patch lies on its side of grey."""
    about, meant = seal.choices.coding, seal.bits
    coded = torch.from_numpy(pictures[: seal.choices.codes])
    sums, sizes = patch_sums(coded, about.patches, about.per_channel)
    scores = 2 * sums.astype(np.int64) - 255 * sizes
    right = int(((scores > 0) & (meant == 1) | (scores < 0) & (meant == 0)).sum())
    return chance.binomial(right, meant.size, 2), right, meant.size, scores


def order(seal: Seal, pictures: Pixels) -> Result:
    """The sum of the scores of each picture with the secret that it was drawn to show, within blocks."""
    owned, drawn = grey(pictures[seal.choices.codes :]), seal.draws.order(len(seal.pictures))
    scores = READERS[seal.choices.reader](owned, grey(seal.owned))
    return chance.orders(scores, drawn), int((best(scores) == drawn).sum()), len(drawn), scores


TESTS = {"letters": letters, "letters-soft": soft_letters, "bits": bits, "order": order}


def payload(seal: Seal, pictures: Pixels) -> bytes | None:
    """The bytes that the pictures hold, if they can be corrected to those of the seal."""
    if seal.choices.payload is None:
        return None
    images = torch.from_numpy(pictures[: seal.choices.codes].astype(np.float32) / 255)
    found = decode(images, seal.choices.coding, seal.draws.mask(seal.choices.bits))
    return found.data if found.data == seal.data else None
