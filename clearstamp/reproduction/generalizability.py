"""Section 5.3 of the paper: other data sets, other architectures, and a model that moves from one set to another."""

from dataclasses import dataclass, replace

from torch import nn

from clearstamp.reading import read
from clearstamp.reproduction.experiments import Profile, device, load_sets
from clearstamp.reproduction.lifecycle import Life, LifeCycle, fresh_model, train
from clearstamp.training import accuracy, fit
from clearstamp.units import last_layer, replace_module


@dataclass(frozen=True, kw_only=True)
class Row(LifeCycle):
    """One row of a table over data sets and networks; in the profile ``quick`` with fewer images and steps."""

    def scaled(self, scale: Profile) -> Profile:
        scale = super().scaled(scale)
        if scale.name != "quick":
            return scale
        return replace(scale, train_images=300, hardening_steps=40)


@dataclass(frozen=True, kw_only=True)
class CrossData(Row):
    """Fine-tuned on another data set, with a last layer for its classes; the marked one is put back for reading.

    The stage ``control`` is the marked last layer on a model that was never marked, trained on the first set.
    """

    onto: str

    def onto_set(self, scale: Profile) -> Profile:
        """The scale on the other set."""
        return scale.on(self.onto).settled()

    def sets(self, scale: Profile) -> tuple[Profile, ...]:
        return scale, self.onto_set(scale)

    def tune(self, life: Life) -> None:
        scale, sets = life.scale, load_sets(self.onto_set(life.scale))
        own = last_layer(life.model, life.example)
        fresh = nn.Linear(own.weight.shape[1], sets.train.classes).to(device())
        replace_module(life.model, own, fresh)
        batches = sets.train.loader(self.batch_size, seed=life.seed + 1000)
        fit(life.model, batches, epochs=scale.finetune_epochs, lr=self.lr / 10, progress=False)
        reached = accuracy(life.model, sets.test.loader(250))
        replace_module(life.model, fresh, own)
        life.keep("finetuned", read(life.back, life.stamp), accuracy=reached)
        other = fresh_model(self, scale, life.seed + 2000)
        train(self, scale, life.seed + 2000, other, None)
        replace_module(other, last_layer(other, life.example), own)
        life.keep("control", read(life.transposed(other), life.stamp))
