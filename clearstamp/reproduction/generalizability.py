"""Section 5.3 of the paper: other data sets, other architectures, and a model that moves from one set to another."""

from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

from torch import nn

from clearstamp.reading import read
from clearstamp.reproduction.experiments import device
from clearstamp.reproduction.lifecycle import Life, LifeCycle, LifeSettings, fresh_model, train, tuning
from clearstamp.reproduction.profiles import Images, Profile, load_sets
from clearstamp.training.loops import accuracy
from clearstamp.units.spaces import last_layer, replace_module


@dataclass(frozen=True, kw_only=True)
class Row(LifeCycle):
    """One row of a table over data sets and networks."""

    quick: ClassVar[dict[str, int]] = {"train_images": 300, "hardening_steps": 40}


@dataclass(frozen=True, kw_only=True)
class CrossData(LifeCycle):
    """A row whose model is fine-tuned on another data set, see `move`."""

    quick: ClassVar[dict[str, int]] = Row.quick

    onto: str

    def settings(self, profile: Profile) -> LifeSettings:
        settings, onto = super().settings(profile), self.adapted(profile).images(self.onto)
        return replace(settings, data=(*settings.data, onto), tune=partial(move, onto=onto))


def move(life: Life, onto: Images) -> None:
    """Fine-tune on another data set with a new last layer for its classes; the marked layer is put back for reading.

    The stage ``control`` is the marked last layer on a model that was never marked, trained on the first set.
    """
    sets, own = load_sets(onto), last_layer(life.model, life.graph)
    fresh = nn.Linear(own.weight.shape[1], sets.train.classes).to(device())
    replace_module(life.model, own, fresh)
    train(replace(tuning(life.settings), images=onto), life.seed + 1000, life.model)
    reached = accuracy(life.model, sets.test.loader(250))
    replace_module(life.model, fresh, own)
    life.keep("finetuned", read(life.back, life.stamp), accuracy=reached)
    other = fresh_model(life.settings, life.seed + 2000)
    train(life.settings, life.seed + 2000, other)
    replace_module(other, last_layer(other, life.graph), own)
    life.keep("control", read(life.transposed(other), life.stamp))
