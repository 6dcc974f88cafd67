"""Attacks of one kind on one marked model as one experiment."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from clearstamp.attacks import Attack, Look
from clearstamp.errors import ClearStampError, RecordError
from clearstamp.reproduction.experiments import Experiment, Findings, device
from clearstamp.reproduction.lifecycle import LifeCycle, LifeSettings, trained
from clearstamp.reproduction.profiles import Profile, load_sets
from clearstamp.reproduction.records import Score, Stage
from clearstamp.transposed.graph import capture
from clearstamp.zoo import DataSet

UNMARKED = LifeCycle(name="unmarked", keys=0)
"""The twin without a stamp."""


@dataclass(frozen=True, kw_only=True)
class Campaign(Experiment):
    """All `attacks`, by label, on the trained model of `on`, each on a fresh copy.

    The attacker has the owner's training images, or with `unseen` images that the model never saw: the first half of
    the test images, and accuracy is measured on the other half. With `merge` the owner merges equal units before
    reading.
    """

    on: LifeCycle
    attacks: dict[str, Attack] = field(hash=False)
    unseen: bool = False
    merge: bool = False
    unmarked: LifeCycle = UNMARKED

    @property
    def pictures(self) -> int:  # type: ignore[override]
        return self.on.attacked_pictures

    def parameters(self) -> dict[str, Any]:
        attacks = {label: attack.about for label, attack in self.attacks.items()}
        own = {"unseen": self.unseen, "merge": self.merge, "attacks": attacks}
        return own | {"on": self.on.parameters(), "unmarked": self.unmarked.parameters()}

    def needs(self) -> tuple[LifeCycle, ...]:
        twin = any(attack.needs_unmarked for attack in self.attacks.values())
        return (self.on, self.unmarked) if twin else (self.on,)

    def settings(self, profile: Profile) -> LifeSettings:
        """Those of the attacked model."""
        needs = tuple(needed.settings(profile) for needed in self.needs())
        return replace(needs[0], experiment=self, needs=needs)

    def check(self, settings: LifeSettings) -> Iterator[ClearStampError]:
        for needed in settings.needs:
            yield from needed.experiment.check(needed)
            own, name = needed.images.dataset, needed.experiment.name
            if own != settings.images.dataset:
                yield RecordError("a model of other data", got=own, expected=settings.images.dataset, where=name)

    def judged(self, settings: LifeSettings, seed: int) -> Callable[[Look, nn.Module | None], dict[str, Score]]:
        """Makes scores beside accuracy and those of the reading, of a look and, at an attack's end, of its model."""
        return lambda look, model: {}

    def conduct(self, settings: LifeSettings, seed: int) -> Findings:
        sets = load_sets(settings.images)
        model, *others = (trained(needed, seed) for needed in settings.needs)
        stamp = settings.stamp(shape=sets.train.shape, outputs=sets.train.classes, seed=seed)
        data, test = halves(sets.test) if self.unseen else (sets.train, sets.test)
        graph = capture(model, stamp.secrets[:1].to(device()))
        stages: list[Stage] = []
        arrays: dict[str, Tensor] = {"secrets": stamp.secrets}
        judged = self.judged(settings, seed)

        def keep(
            label: str,
            look: Look,
            attack: str | None = None,
            attacked: tuple[int, ...] = (),
            model: nn.Module | None = None,
        ) -> Stage:
            scores: dict[str, Score] = {"accuracy": look.accuracy} | look.reading.summary() | judged(look, model)
            if attacked:
                at = list(attacked)
                scores |= {
                    "ssim_attacked": look.reading.ssim[at].mean().item(),
                    "developed_ssim_attacked": look.reading.developed_ssim[at].mean().item(),
                }
            stages.append(Stage(label=label, attack=attack, step=look.step if label != attack else None, scores=scores))
            arrays[label] = look.reading.images
            return stages[-1]

        before: Look | None = None
        for label, attack in self.attacks.items():
            found = attack.apply(
                model,
                data,
                stamp,
                test=test,
                unmarked=others[0] if others else None,
                readout=settings.readout,
                merge=self.merge,
                before=before,
                graph=graph,
                seed=seed,
            )
            if before is None:
                before = found.before
                keep("before", before)
            for look in found.trace[:-1]:
                keep(f"{label}, {look.label}", look, label, found.attacked)
            end = keep(label, found.after, label, found.attacked, found.model)
            end.scores.update({"steps": found.steps, "seconds": round(found.seconds, 2)})
        return stages, arrays, {}


def campaigns(
    family: str, attacks: dict[str, Attack], models: Sequence[LifeCycle], *, unseen: bool = False, merge: bool = False
) -> tuple[Campaign, ...]:
    """The same attacks on each of several marked models, named ``family-model``."""
    return tuple(
        Campaign(
            name=f"{family}-{on.name.removeprefix('11-keys-')}", on=on, attacks=attacks, unseen=unseen, merge=merge
        )
        for on in models
    )


def halves(data: DataSet) -> tuple[DataSet, DataSet]:
    """The first and the second half of a set."""
    half = len(data) // 2
    return data.pick(slice(half)), data.pick(slice(half, None))
