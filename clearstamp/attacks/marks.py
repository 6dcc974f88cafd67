"""Attackers who know by which scheme a model was marked, whatever scheme it is."""

import copy
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from clearstamp.attacks.adaptive import Stretches
from clearstamp.attacks.base import Attack, Scene, check
from clearstamp.errors import AttackError
from clearstamp.schedules import Joint
from clearstamp.training import fit

OWN = 1_000_003
"""Lies between an attacker's seed and the owner's."""


@dataclass(frozen=True, kw_only=True)
class Unlearning(Attack):
    """Train the main task on, and the mark off: up the scheme's own loss, as far as `ceiling`.

    Raises `AttackError` for a scheme without a loss.

    Attributes:
        keys: ``"known"``: the owner's key; ``"guessed"``: one that the attacker drew.
        steps: optimizer steps.
        lr: their learning rate.
        ceiling: the loss of the mark above which it is left alone.
    """

    keys: Literal["known", "guessed"] = "known"
    steps: int = 125
    lr: float = 1e-4
    ceiling: float = 10.0

    def run(self, scene: Scene) -> None:
        check(self.keys in ("known", "guessed"), "unknown choice of keys", self.keys, "known or guessed")
        check(self.steps >= 1, "number of steps out of range", self.steps, "at least 1")
        scheme, data, key = scene.mark.scheme, scene.need_data(), scene.mark.key
        if self.keys == "guessed":
            key = scheme.draw(scene.model, data, seed=scene.seed + OWN)
        loss = scheme.loss(scene.model, data, key)
        if loss is None:
            raise AttackError("the scheme has no loss", got=scheme.name)

        def ascent() -> Tensor:
            return -loss().clamp(max=self.ceiling)

        batches = Stretches(data, scene.seed, [self.steps])
        about: dict[str, Any] = {"stamp_loss": ascent, "schedule": Joint(every=1), "progress": False}
        scene.steps += len(fit(scene.model, batches, epochs=1, lr=self.lr, **about).losses)


@dataclass(frozen=True, kw_only=True)
class SecondMark(Attack):
    """Embed a mark of the attacker's own by the same scheme, on top of the owner's.

    Both are read at the end: the attacker's is the last but one look of the trace.
    """

    epochs: int = 1
    lr: float = 1e-4

    def run(self, scene: Scene) -> None:
        scheme, data = scene.mark.scheme, scene.need_data()
        key = scheme.draw(scene.model, data, seed=scene.seed + OWN)
        about: dict[str, Any] = {"epochs": self.epochs, "lr": self.lr, "seed": scene.seed, "progress": False}
        scene.claim = scheme.embed(scene.model, data, key, **about)
        scene.report("the attacker's mark")
        scene.claim = None
        scene.report("after")


@dataclass(frozen=True, kw_only=True)
class CounterClaim(Attack):
    """Leave the model as it is, and make up key material of the same scheme that fits it, as well as one can.

    Only a commitment that is older than the model can tell such a key from an owner's.
    """

    def run(self, scene: Scene) -> None:
        scene.claim = scene.mark.scheme.forge(copy.deepcopy(scene.model), scene.need_data(), seed=scene.seed + OWN)
