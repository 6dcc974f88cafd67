"""Sealed stamps in court: their level, false claims, forgeries, and what is left of them after every attack."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from clearstamp.attacks import Look
from clearstamp.evidence import Seal, Verdict, judge, verify
from clearstamp.evidence.readers import best
from clearstamp.evidence.seal import pixels
from clearstamp.pictures import as_pictures, develop
from clearstamp.reproduction.campaigns import Campaign
from clearstamp.reproduction.experiments import Findings
from clearstamp.reproduction.lifecycle import LifeCycle, LifeSettings
from clearstamp.reproduction.profiles import Profile, load_sets
from clearstamp.reproduction.records import Score
from clearstamp.stamp import Stamp


def sealed(*, outputs: int, shape: Sequence[int], seed: int, **choices: Any) -> Seal:
    """A seal whose 32 secret bytes follow from the seed of a run, so that an experiment can be repeated.

    They are no secret: an owner's seal has its seed from the system, by `Seal.make` alone.
    """
    made = Seal.make(outputs=outputs, shape=shape, **choices)
    return replace(made, seed=hashlib.sha256(f"clearstamp/experiment/{seed}".encode()).digest())


def stamp_of(**about: Any) -> Stamp:
    """The stamp of a seal that `sealed` makes."""
    return sealed(**about).stamp()


def told(seal: Seal, verdict: Verdict) -> dict[str, Score]:
    """A verdict as a record keeps it; ``read`` has the letters read, with a dot where two fit as well."""
    alphabet = seal.choices.alphabet
    return {
        "p": float(verdict.p),
        "letters right": verdict.right,
        "letters": verdict.of,
        "verdict": verdict.outcome.value,
        "legible": verdict.legible,
        "read": "".join("." if place < 0 else alphabet[place] for place in best(verdict.scores)),
    }


def looked_at(seal: Seal, images: Tensor, stamp: Stamp | None = None) -> dict[str, Score]:
    """The verdict on raw signals ``[k, C, H, W]``, developed to the pictures that a person sees."""
    return told(seal, judge(seal, pixels(as_pictures(develop(images)))))


@dataclass(frozen=True, kw_only=True)
class Sealed(LifeCycle):
    """A sealed stamp, four drawn letters a key, on its way through the stages, with the verdict at each."""

    attacked_pictures: ClassVar[int] = 11

    @property
    def choices(self) -> dict[str, Any]:
        """What its owner chooses."""
        return {"codes": self.keys, "readout": self.readout, "key_range": self.key_range}

    def settings(self, profile: Profile) -> LifeSettings:
        return replace(super().settings(profile), stamp=partial(stamp_of, **self.choices))

    def seal(self, settings: LifeSettings, seed: int) -> Seal:
        """The seal of a run."""
        train = load_sets(settings.images).train
        return sealed(outputs=train.classes, shape=train.shape, seed=seed, **self.choices)

    def conduct(self, settings: LifeSettings, seed: int) -> Findings:
        return super().conduct(replace(settings, judge=partial(looked_at, self.seal(settings, seed))), seed)


@dataclass(frozen=True, kw_only=True)
class Examination(Campaign):
    """A campaign against a sealed stamp, with the verdict after each attack: the model is read in every sealed way.

    On an attack's way the pictures as they are, without merging units, are judged.
    """

    on: Sealed

    def judged(self, settings: LifeSettings, seed: int) -> Callable[[Look, nn.Module | None], dict[str, Score]]:
        seal = self.on.seal(settings, seed)

        def scores(look: Look, model: nn.Module | None) -> dict[str, Score]:
            if model is None:
                return looked_at(seal, look.reading.images)
            with torch.no_grad():
                return told(seal, verify(seal.transpose(model), seal))

        return scores
