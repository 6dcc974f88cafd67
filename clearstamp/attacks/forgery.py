"""Accusers, who leave a stranger's model as it is and claim that a stamp of theirs is in it.

What they end with is `Scene.claim`, the key of a mark, which the judge then reads like any owner's.
"""

import copy
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clearstamp.attacks.base import OWN, Attack, Outcome, Scene, check
from clearstamp.attacks.training import reinitialised
from clearstamp.errors import AttackError
from clearstamp.pictures import develop, draw_text, random_words
from clearstamp.reading import extract
from clearstamp.schemes import ClearStamp
from clearstamp.schemes.stamps import optimised_keys
from clearstamp.stamp import Stamp, draw_keys
from clearstamp.training.loops import fit, harden
from clearstamp.transposed.base import Transposed
from clearstamp.units.spaces import last_layer


@dataclass(frozen=True, kw_only=True)
class FalseClaim(Attack):
    """Choose keys and pictures on surrogates, models of the accuser's own, and claim a stranger's model by them.

    Of the stranger's model its architecture and task are known, not one weight: the claim can be dated before that
    model is trained (Liu et al., "False Claims against Model Ownership Resolution", USENIX Security 2024). The
    surrogates, `surrogates` of them, are trained on the accuser's images for `epochs` at `lr`. Of `candidates` random
    keys those are taken whose pictures the surrogates agree on, and that differ from each other; the secrets are the
    means of the surrogates' pictures.
    """

    surrogates: int = 3
    epochs: int = 1
    lr: float = 1e-3
    candidates: int = 500

    def run(self, scene: Scene) -> None:
        count = len(scene.stamp)
        check(self.surrogates >= 2, "number of surrogates out of range", self.surrogates, "at least 2")
        check(self.candidates >= count, "number of candidates out of range", self.candidates, f"at least {count}")
        keys = draw_keys(self.candidates, scene.stamp.keys.shape[1:], seed=scene.seed + OWN)
        shown = []
        for number in range(self.surrogates):
            surrogate = reinitialised(scene.model)
            batches = scene.need_data().loader(seed=scene.seed + number)
            scene.steps += len(fit(surrogate, batches, epochs=self.epochs, lr=self.lr, progress=False).losses)
            shown.append(pictures(scene.backwards(surrogate), keys))
        chosen = agreed(torch.stack(shown), count)
        scene.accuse(claim(keys[chosen], torch.stack(shown).mean(0)[chosen]))


def agreed(shown: Tensor, count: int) -> list[int]:
    """Which keys to claim, of pictures ``[surrogates, candidates, C, H, W]``.

    One after the other, that for which the surrogates' agreement exceeds the likeness to those taken before by most.
    """
    unit = F.normalize(shown.flatten(2) - shown.flatten(2).mean(2, keepdim=True), dim=2)
    agreement = unit.sum(0).norm(dim=1) / len(shown)
    mean = F.normalize(unit.sum(0), dim=1)
    likeness = torch.zeros_like(agreement)
    chosen: list[int] = []
    for _ in range(count):
        worth = agreement - likeness
        worth[chosen] = -torch.inf
        chosen.append(int(worth.argmax()))
        likeness = torch.maximum(likeness, mean @ mean[chosen[-1]])
    return chosen


@dataclass(frozen=True, kw_only=True)
class Forgery(Attack):
    """Make up a claim against a model that is at hand. Raises `AttackError` for a head where keys enter within it.

    Attributes:
        by: ``"keys"``: optimise keys until they show the forger's pictures; ``"head"``: train a last layer of the
            forger's own until random keys show them, and put it in the place of the model's, as the owner of a model
            whose head was replaced would; ``"copy"``: name random keys, and what the model shows at them as secrets.
        steps: optimizer steps, but for a copy.
        lr: their learning rate, of keys times the key range.
        key_range: keys stay in plus and minus this.
    """

    by: Literal["keys", "head", "copy"] = "keys"
    steps: int = 200
    lr: float = 1e-2
    key_range: float = 10.0

    def run(self, scene: Scene) -> None:
        check(self.by in ("keys", "head", "copy"), "unknown kind of forgery", self.by, "keys, head or copy")
        count = len(scene.stamp)
        if self.by == "head" and (tap := scene.clearstamp.tap) is not None:
            raise AttackError("a head of the forger's own is not read: keys enter before it", got=f"tap {tap!r}")
        keys = draw_keys(count, scene.stamp.keys.shape[1:], seed=scene.seed + OWN, key_range=self.key_range)
        back = scene.backwards()
        if self.by == "copy":
            scene.accuse(claim(keys, pictures(back, keys)))
            return
        wanted = claim(keys, words(scene, count))
        about: dict[str, Any] = {"steps": self.steps, "lr": self.lr, "key_range": self.key_range}
        scene.accuse(optimised_keys(back, wanted, **about) if self.by == "keys" else wanted)
        if self.by == "head":
            painted = self.painted(scene, wanted)
            scene.evidence = lambda suspect: painted
        scene.steps += self.steps

    def painted(self, scene: Scene, wanted: Stamp) -> nn.Module:
        """A copy of the model whose last layer alone was trained until the keys show the secrets."""
        suspect = copy.deepcopy(scene.model).requires_grad_(False)
        last_layer(suspect, scene.graph(suspect)).requires_grad_(True)
        back = scene.backwards(suspect)
        harden(back, wanted, steps=self.steps, target=None, lr=self.lr, dropout=0.0, progress=False)
        return suspect.requires_grad_(True)


def words(scene: Scene, count: int) -> Tensor:
    """The forger's pictures ``[k, C, H, W]``, a word each."""
    return torch.stack([draw_text(word, scene.shape) for word in random_words(count, scene.shape)])


def pictures(back: Transposed, keys: Tensor) -> Tensor:
    """What a model shows at keys ``[k, outputs]``, developed: ``[k, C, H, W]``."""
    blank = torch.zeros(len(keys), *back.image_shape)
    return develop(extract(back, claim(keys, blank)))


def claim(keys: Tensor, secrets: Tensor) -> Stamp:
    """Keys and secrets of an accuser's."""
    return Stamp(keys, secrets, tuple(f"claim {place}" for place in range(len(keys))))


def claimed(by: Outcome | Scene) -> Stamp:
    """The stamp that an accuser claims. Raises `AttackError` if they claim none."""
    if by.claim is None or not isinstance(by.claim.scheme, ClearStamp):
        raise AttackError("no stamp was claimed", got=by.claim and by.claim.scheme.name)
    return by.claim.scheme.stamp(by.claim)
