"""Attackers who know by which scheme a model was marked, whatever scheme it is."""

import copy
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn

from clearstamp.attacks.adaptive import Stretches
from clearstamp.attacks.base import OWN, Attack, Scene, check
from clearstamp.attacks.interface import Interface
from clearstamp.attacks.training import reinitialised
from clearstamp.data import Data
from clearstamp.errors import AttackError
from clearstamp.schemes.base import answers, size_of, training_images
from clearstamp.training.loops import fit
from clearstamp.training.schedules import Alternating
from clearstamp.training.steps import sgd
from clearstamp.units.spaces import last_layer
from clearstamp.wrapped import Wrapped


@dataclass(frozen=True, kw_only=True)
class Unlearning(Attack):
    """Train the main task on, and the mark off: each step down the task's loss is followed by one up the scheme's own.

    The second has an optimizer of its own, so that a scheme whose loss weighs little in training is unlearnt no slower.
    Raises `AttackError` for a scheme without a loss.

    Attributes:
        keys: ``"known"``: the owner's key; ``"guessed"``: one that the attacker drew.
        steps: optimizer steps on the mark, as many as on the task.
        lr: their learning rate.
        ceiling: the loss of the mark above which it is left alone, in those that it has in the model drawn anew.
    """

    keys: Literal["known", "guessed"] = "known"
    steps: int = 125
    lr: float = 1e-4
    ceiling: float = 4.0

    def run(self, scene: Scene) -> None:
        check(self.keys in ("known", "guessed"), "unknown choice of keys", self.keys, "known or guessed")
        check(self.steps >= 1, "number of steps out of range", self.steps, "at least 1")
        scheme, data, key = scene.mark.scheme, scene.need_data(), scene.mark.key
        if self.keys == "guessed":
            key = scheme.draw(scene.model, data, seed=scene.seed + OWN)
        loss, blank = (scheme.loss(model, data, key) for model in (scene.model, reinitialised(scene.model)))
        if loss is None or blank is None:
            raise AttackError("the scheme has no loss", got=scheme.name)
        most = self.ceiling * blank().item()

        def ascent() -> Tensor:
            return -loss().clamp(max=most)

        batches = Stretches(data, scene.seed, [self.steps])
        about: dict[str, Any] = {"stamp_loss": ascent, "schedule": Alternating(), "progress": False}
        done = fit(scene.model, batches, epochs=1, lr=self.lr, **about)
        scene.steps += len(done.losses) + len(done.stamp_losses)


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


@dataclass(frozen=True, kw_only=True)
class Evasion(Interface):
    """Answer at random what a detector takes for an owner's query (Li et al., ACSAC 2019, section 6.3).

    The attacker marks a model of their own by the owner's scheme, and trains a detector, 512-256-2 units wide by SGD at
    `lr`, to tell its queries from a `share` of the images. Raises `AttackError` for an owner who asks nothing.

    Attributes:
        own_epochs: of the attacker's marked model.
        own_lr: its learning rate.
        epochs: of the detector.
        lr: its learning rate.
        share: of the attacker's images.
    """

    own_epochs: int = 1
    own_lr: float = 1e-3
    epochs: int = 20
    lr: float = 0.01
    share: float = 0.1

    def wrapped(self, scene: Scene) -> Wrapped:
        return Guarded(scene.model, self.detector(scene), scene.seed)

    def detector(self, scene: Scene) -> nn.Module:
        """From inputs ``[n, C, H, W]`` to logits ``[n, 2]``, the second one of an owner's query."""
        check(0 < self.share <= 1, "share out of range", self.share, "more than 0, at most 1")
        scheme, data = scene.mark.scheme, scene.need_data()
        if scheme.queries(scene.mark.key) is None:
            raise AttackError("the owner asks no queries that could be told", got=scheme.name)
        own = reinitialised(scene.model)
        key = scheme.draw(own, data, seed=scene.seed + OWN)
        about: dict[str, Any] = {"epochs": self.own_epochs, "lr": self.own_lr, "seed": scene.seed, "progress": False}
        queries = scheme.queries(scheme.embed(own, data, key, **about))
        assert queries is not None, "as of the owner's key"
        count = max(1, round(self.share * size_of(data)))
        images, _ = training_images(data, count, seed=scene.seed)
        queries = queries.repeat(-(-count // len(queries)), 1, 1, 1)[:count]  # as many of both kinds
        view = self.view(scene)
        seen = answers(view, torch.cat([images, queries]))
        kinds = Data(seen[:, :, None, None], torch.arange(2).repeat_interleave(count))
        widths = (seen.shape[1], 512, 256)
        layers: list[nn.Module] = [nn.Flatten()]
        for inner, outer in pairwise(widths):
            layers += [nn.Linear(inner, outer), nn.ReLU()]
        detector = nn.Sequential(*layers, nn.Linear(widths[-1], 2)).to(scene.device)
        fit(detector, kinds.loader(seed=scene.seed), epochs=self.epochs, lr=self.lr, optimizer=sgd, progress=False)
        return nn.Sequential(view, detector).eval()

    def view(self, scene: Scene) -> nn.Module:
        """From inputs ``[n, C, H, W]`` to what the detector sees of them ``[n, d]``."""
        return nn.Flatten()


@dataclass(frozen=True, kw_only=True)
class FeatureEvasion(Evasion):
    """`Evasion` by a detector that sees, in the place of an input, what the model's last layer takes of it.

    Li et al. (ACSAC 2019, section 6.3) tell queries from images better so than by the images themselves. Raises
    `AttackError` for a model without a linear or convolutional layer as well.
    """

    def view(self, scene: Scene) -> nn.Module:
        model = copy.deepcopy(scene.model)
        return Taken(model, last_layer(model, scene.graph(model)))


class Taken(nn.Module):
    """From a model's inputs to what one of its layers takes of them, ``[n, d]``, whatever comes behind that layer."""

    def __init__(self, model: nn.Module, layer: nn.Module):
        super().__init__()
        self.model, self.layer = model, layer

    def forward(self, images: Tensor) -> Tensor:
        taken: list[Tensor] = []
        with self.layer.register_forward_pre_hook(lambda _, inputs: taken.append(inputs[0])):
            self.model(images)
        return taken[-1].flatten(1)


class Guarded(Wrapped):
    """A model that answers at random what its detector takes for an owner's query."""

    def __init__(self, model: nn.Module, detector: nn.Module, seed: int):
        super().__init__(model)
        self.detector, self.random = detector, torch.Generator().manual_seed(seed)

    def forward(self, images: Tensor) -> Tensor:
        logits = super().forward(images)
        flagged = self.detector(images).argmax(1, keepdim=True) == 1
        return torch.where(flagged, torch.randn(logits.shape, generator=self.random).to(logits), logits)
