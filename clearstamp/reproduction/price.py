"""The price of removal: an attacker's optimizer steps over those of training anew, from the same images."""

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from clearstamp.attacks.adaptive import Stretches
from clearstamp.attacks.base import OWN
from clearstamp.data import LabelledImages
from clearstamp.errors import TrainingError
from clearstamp.evidence.verdict import Outcome
from clearstamp.reading import read
from clearstamp.reproduction.court import Sealed, looked_at
from clearstamp.reproduction.experiments import Findings, device
from clearstamp.reproduction.lifecycle import LifeSettings, OnModel, fresh_model, trained
from clearstamp.reproduction.profiles import load_sets
from clearstamp.reproduction.records import Score, Stage
from clearstamp.stamp import Stamp, draw_keys
from clearstamp.training.loops import accuracy, fit
from clearstamp.training.losses import StampLoss
from clearstamp.training.schedules import Alternating
from clearstamp.training.steps import adam
from clearstamp.transpose import transpose
from clearstamp.transposed.base import Transposed
from clearstamp.transposed.graph import capture

Attacker = Literal["trains on", "no key", "one key", "all keys"]


@dataclass(frozen=True, kw_only=True)
class SealedTrial(Sealed):
    """A sealed stamp on images that leave the test images alone, since an embedding may be chosen by its price."""

    held_out: ClassVar[bool] = True


@dataclass(frozen=True, kw_only=True)
class Price(OnModel):
    """The least number of optimizer steps after which a sealed stamp is gone, for each attacker and share of images.

    It is gone when the verdict is no match any more and its pictures are not legible, at a loss of accuracy of at most
    `loss`. An attacker ``"trains on"``, at the learning rate; or teaches noise to as many keys as the owner has, at
    that rate, with a step on the main task at `task_lr` before each: keys of their own, one of them the owner's that
    was shown in court, or all the owner's. No attacker takes more than `most` times the batches that training took.

    Training anew, from the same images at the best of `anew_rates`, is as good as soon as its accuracy is.
    """

    on: SealedTrial
    shares: tuple[float, ...] = (0.1, 1.0)
    attackers: tuple[Attacker, ...] = ("trains on", "no key", "one key", "all keys")
    rates: tuple[float, ...] = (1e-4, 1e-3, 1e-2)
    anew_rates: tuple[float, ...] = (1e-4, 1e-3)
    loss: float = 0.01
    task_lr: float = 1e-4
    most: float = 1.0

    def conduct(self, settings: LifeSettings, seed: int) -> Findings:
        hunt = Hunt(self, settings, seed)
        stages = [Stage(label="before", scores=hunt.seen(hunt.marked) | {"accuracy": hunt.before})]
        for share in self.shares:
            data = hunt.sets.train.take(max(1, round(share * len(hunt.sets.train))))
            for lr in self.anew_rates:
                stages.append(Stage(label=f"{share:.0%}, anew, LR {lr:g}", scores=hunt.anew(data, lr)))
            for attacker, lr in product(self.attackers, self.rates):
                label = f"{share:.0%}, {attacker}, LR {lr:g}"
                stages.append(Stage(label=label, attack="removal", scores=hunt.removal(data, attacker, lr)))
        return stages, {}, {}


class Hunt:
    """One marked model and everybody who is after its stamp."""

    def __init__(self, price: Price, settings: LifeSettings, seed: int):
        (needed,) = settings.needs
        self.price, self.settings, self.seed = price, needed, seed
        self.sets, self.marked = load_sets(needed.images), trained(needed, seed)
        self.seal = price.on.seal(needed, seed)
        self.stamp = self.seal.stamp()
        self.graph = capture(self.marked, self.stamp.secrets[:1].to(device()))
        self.before = self.accuracy(self.marked)
        batches = math.ceil(len(self.sets.train) / needed.batch_size) * needed.epochs
        self.most = max(1, round(price.most * batches))

    def accuracy(self, model: nn.Module) -> float:
        return accuracy(model, self.sets.test.loader(250))

    def backwards(self, model: nn.Module) -> Transposed:
        return transpose(model, self.graph, readout=self.settings.readout)

    def seen(self, model: nn.Module) -> dict[str, Score]:
        """What the owner reads."""
        reading = read(self.backwards(model), self.stamp)
        return looked_at(self.seal, reading.images) | {"developed_ssim": reading.developed_ssim.mean().item()}

    def removal(self, data: LabelledImages, attacker: Attacker, lr: float) -> dict[str, Score]:
        """What an attacker achieves, and after how many optimizer steps."""
        model = copy.deepcopy(self.marked)
        junk: StampLoss | None = None
        torch.manual_seed(self.seed)
        if attacker != "trains on":
            junk = StampLoss(self.backwards(model), self.worthless(attacker), dropout=0.0)

        def reached() -> dict[str, Score] | None:
            seen = self.seen(model)
            if seen["verdict"] == Outcome.MATCH.value or seen["legible"]:
                return None
            left = self.accuracy(model)
            return seen | {"accuracy": left} if left >= self.before - self.price.loss else None

        task_lr = lr if junk is None else self.price.task_lr
        found = self.until(model, data, reached, lr=task_lr, stamp_loss=junk, schedule=Alternating(lr=lr))
        return found or {"steps": None} | self.seen(model) | {"accuracy": self.accuracy(model)}

    def worthless(self, attacker: Attacker) -> Stamp:
        """Noise for the keys that the attacker has, and for some of their own in the place of the rest."""
        known = {"no key": 0, "one key": 1, "all keys": len(self.stamp)}[attacker]
        keys = draw_keys(len(self.stamp), self.stamp.keys.shape[1:], seed=self.seed + OWN)
        keys[:known] = self.stamp.keys[:known]
        return Stamp(keys, torch.rand_like(self.stamp.secrets), self.stamp.labels)

    def anew(self, data: LabelledImages, lr: float) -> dict[str, Score]:
        """How soon a fresh model is as good."""
        model = fresh_model(self.settings, self.seed + 500)

        def reached() -> dict[str, Score] | None:
            made = self.accuracy(model)
            return {"accuracy": made} if made >= self.before - self.price.loss else None

        return self.until(model, data, reached, lr=lr) or {"steps": None, "accuracy": self.accuracy(model)}

    def until(
        self, model: nn.Module, data: LabelledImages, reached: Callable[[], dict[str, Score] | None], **how: Any
    ) -> dict[str, Score] | None:
        """Train until something is reached, with the optimizer's steps; None if that never happens."""
        looks = [*moments(self.most)]
        stretches = Stretches(data, self.seed, [end - start for start, end in pairwise([0, *looks])])
        each = 2 if how.get("stamp_loss") else 1

        def look(epoch: int) -> None:
            scores = reached()
            if scores is not None:
                raise ReachedError({"steps": each * looks[epoch - 1]} | scores)

        try:
            with suppress(TrainingError):  # a learning rate at which it breaks down
                fit(model, stretches, epochs=len(looks), on_epoch=look, optimizer=adam, progress=False, **how)
        except ReachedError as done:
            return done.scores
        return None


class ReachedError(Exception):
    """Ends a training at its goal."""

    def __init__(self, scores: dict[str, Score]):
        super().__init__()
        self.scores = scores


def moments(most: int) -> Iterator[int]:
    """When to look: after 1, 2, 3, 4, 6, 8, 12, 16, 24... batches, and after the last."""
    now = 1
    while now < most:
        yield now
        now = now + max(1, 2 ** (now.bit_length() - 2)) if now > 1 else 2
    yield most
