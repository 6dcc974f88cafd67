"""Attackers who know how stamps work: erasure and overwriting, with the keys or without, with data or without."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice, pairwise, repeat
from typing import Literal

import torch
from torch import Tensor

from clearstamp.attacks.base import OWN, Attack, Scene, check
from clearstamp.data import LabelledImages
from clearstamp.pictures import draw_text
from clearstamp.reading import extract
from clearstamp.stamp import Stamp, draw_keys
from clearstamp.training.loops import fit, harden
from clearstamp.training.losses import StampLoss
from clearstamp.training.schedules import Alternating


@dataclass(frozen=True, kw_only=True)
class Adaptive(Attack):
    """An attack that over-fits the transposed model to other answers, as hardening does.

    Attributes:
        steps: optimizer steps on the keys.
        lr: their learning rate.
        repair: take a step on the main task, at `task_lr`, before each of them. The paper's attacker has no data.
        looks: how many times to report on the way, at even distances.
    """

    steps: int
    lr: float = 1e-3
    repair: bool = False
    task_lr: float = 1e-4
    looks: int = 1

    def teach(self, scene: Scene, keys: Tensor, images: Tensor) -> None:
        """Make the model answer `keys` ``[k, outputs]`` with `images` ``[k, C, H, W]``."""
        got = f"{self.steps} steps, {self.looks} looks"
        check(1 <= self.looks <= self.steps, "number of steps out of range", got, "at least as many steps as looks")
        ends = [self.steps * i // self.looks for i in range(self.looks + 1)]
        answers = Stamp(keys, images, tuple(map(str, range(len(keys)))))
        back = scene.backwards()
        if self.repair:
            stretches = Stretches(scene.need_data(), scene.seed, [end - start for start, end in pairwise(ends)])
            fit(
                scene.model,
                stretches,
                epochs=self.looks,
                lr=self.task_lr,
                stamp_loss=StampLoss(back, answers, dropout=0.0),
                schedule=Alternating(lr=self.lr),
                on_epoch=lambda epoch: scene.report(f"step {ends[epoch]}", ends[epoch]),
                progress=False,
            )
        else:
            harden(
                back,
                answers,
                steps=self.steps,
                target=None,
                lr=self.lr,
                dropout=0.0,
                check_every=1,
                on_check=lambda step, _: scene.report(f"step {step}", step) if step in ends[1:] else None,
                progress=False,
            )
        scene.steps += 2 * self.steps if self.repair else self.steps


class Stretches:
    """The attacker's batches, over and over: each pass takes as many as its length says, where the last one stopped."""

    def __init__(self, data: LabelledImages, seed: int, lengths: Sequence[int]):
        self.batches = chain.from_iterable(repeat(data.loader(seed=seed)))
        self.lengths = iter(lengths)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return islice(self.batches, next(self.lengths))


@dataclass(frozen=True, kw_only=True)
class Erasure(Adaptive):
    """Teach the model to answer keys with a worthless image (paper, Figures 7, 8, 15 and 16).

    Attributes:
        keys: ``"known"``: the owner's own; ``"random"``: drawn by the attacker.
        count: how many keys; None for as many as the owner has.
        target: ``"noise"``, ``"black"``, or what an ``"unmarked"`` model answers to the same keys.
    """

    keys: Literal["known", "random"] = "known"
    count: int | None = 1
    target: Literal["noise", "black", "unmarked"] = "noise"
    steps: int = 11

    @property
    def needs_unmarked(self) -> bool:
        return self.target == "unmarked"

    def run(self, scene: Scene) -> None:
        check(self.keys in ("known", "random"), "unknown choice of keys", self.keys, "known or random")
        check(self.target in TARGETS, "unknown target", self.target, ", ".join(TARGETS))
        keys = (known_keys if self.keys == "known" else random_keys)(scene, self.count)
        self.teach(scene, keys, TARGETS[self.target](scene, keys))


@dataclass(frozen=True, kw_only=True)
class Overwriting(Adaptive):
    """Teach the model an icon under random keys (paper, Figure 9)."""

    icon: str = "☠"
    count: int | None = 1
    steps: int = 7

    def run(self, scene: Scene) -> None:
        keys = random_keys(scene, self.count)
        self.teach(scene, keys, draw_text(self.icon, scene.shape).expand(len(keys), -1, -1, -1))


def known_keys(scene: Scene, count: int | None) -> Tensor:
    """The first `count` of the owner's keys, which the scene records as attacked."""
    number = len(scene.stamp) if count is None else count
    check(1 <= number <= len(scene.stamp), "number of keys out of range", number, f"1 to {len(scene.stamp)}")
    scene.attacked = tuple(range(number))
    return scene.stamp.keys[:number].cpu()


def random_keys(scene: Scene, count: int | None) -> Tensor:
    """Keys from the range that the paper names, of the attacker's own seed: the owner's is secret."""
    number = len(scene.stamp) if count is None else count
    check(number >= 1, "number of keys out of range", number, "at least 1")
    return draw_keys(number, scene.stamp.keys.shape[1:], seed=scene.seed + OWN)


def noise(scene: Scene, keys: Tensor) -> Tensor:
    """Uniform noise for each key."""
    return torch.rand(len(keys), *scene.shape)


def black(scene: Scene, keys: Tensor) -> Tensor:
    """A black image for each key."""
    return torch.zeros(len(keys), *scene.shape)


def unmarked(scene: Scene, keys: Tensor) -> Tensor:
    """What a model without a stamp answers."""
    model = scene.need_unmarked()
    back = scene.backwards(model)
    blank = Stamp(keys, black(scene, keys), tuple(map(str, range(len(keys)))))
    return extract(back, blank).clamp(0, 1)


TARGETS = {"noise": noise, "black": black, "unmarked": unmarked}
