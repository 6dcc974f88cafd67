"""Attacks of one kind on one marked model as one experiment."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from torch import Tensor

from clearstamp.attacks import Attack, Look
from clearstamp.data import Data
from clearstamp.experiments import Experiment, Findings, Profile, load_sets, run, run_all
from clearstamp.lifecycle import LifeCycle, Rehearsed, trained
from clearstamp.records import Record

UNMARKED = LifeCycle(name="unmarked", keys=0)
PUBLISHED = [
    LifeCycle(name="11-keys-paper", readout="paper", target=None),
    LifeCycle(name="11-keys-adjoint", readout="adjoint", target=None),
]
"""The default scenario as published, under both readouts."""
NOISY = [
    LifeCycle(name="11-keys-noise-paper", readout="paper", noise=0.015),
    LifeCycle(name="11-keys-noise-adjoint", readout="adjoint", noise=0.015),
]
"""Hardened no longer than needed, with noise in the stamp step: the embedding that this library recommends."""
MARKED = [*PUBLISHED, NOISY[1]]
"""The models that every attack meets."""
EMBEDDINGS = [
    PUBLISHED[1],
    LifeCycle(name="11-keys-short-adjoint", readout="adjoint"),
    LifeCycle(name="11-keys-relative-noise-adjoint", readout="adjoint", noise=1.0, relative=True),
    Rehearsed(name="11-keys-rehearsed-adjoint", readout="adjoint"),
    NOISY[1],
    LifeCycle(name="11-keys-strong-noise-adjoint", readout="adjoint", noise=0.04),
]
"""What was tried to make a stamp last: as published, less hardening, two kinds of noise, rehearsed erasure."""


@dataclass(frozen=True, kw_only=True)
class Campaign(Experiment):
    """Every one of `attacks`, by label, on the trained model of `on`, each on a copy of its own.

    The attacker has the owner's training images, or with `unseen` images that the model never saw: the first half of
    the test images, and accuracy is measured on the other half. With `merge` the owner merges equal units before
    reading.
    """

    on: LifeCycle
    attacks: dict[str, Attack] = field(hash=False)
    unseen: bool = False
    merge: bool = False

    @property
    def pictures(self) -> int:  # type: ignore[override]
        return self.on.looks

    def scaled(self, scale: Profile) -> Profile:
        return self.on.scaled(scale)

    def parameters(self, scale: Profile, seed: int) -> dict[str, Any]:
        attacks = {label: {"attack": attack.name} | asdict(attack) for label, attack in self.attacks.items()}
        marks = {experiment.name: run(experiment, scale, seed).weights for experiment in (self.on, UNMARKED)}
        return {"on": asdict(self.on), "unseen": self.unseen, "merge": self.merge, "attacks": attacks, "weights": marks}

    def conduct(self, scale: Profile, seed: int) -> Findings:
        sets = load_sets(scale)
        model, unmarked = (trained(experiment, scale, seed) for experiment in (self.on, UNMARKED))
        stamp = self.on.stamp(sets.train.shape, sets.train.classes, seed)
        data, test = halves(sets.test) if self.unseen else (sets.train, sets.test)
        results: dict[str, dict[str, Any]] = {}
        arrays: dict[str, Tensor] = {"secrets": stamp.secrets}

        def keep(stage: str, look: Look, attacked: tuple[int, ...]) -> None:
            scores = look.reading.summary()
            if attacked:
                at = list(attacked)
                scores |= {
                    "ssim_attacked": look.reading.ssim[at].mean().item(),
                    "developed_ssim_attacked": look.reading.developed_ssim[at].mean().item(),
                }
            results[stage] = {"accuracy": look.accuracy} | scores
            arrays[stage] = look.reading.images

        before: Look | None = None
        for label, attack in self.attacks.items():
            found = attack.apply(
                model,
                data,
                stamp,
                test=test,
                unmarked=unmarked,
                readout=self.on.readout,
                merge=self.merge,
                before=before,
                seed=seed,
            )
            if before is None:
                before = found.before
                keep("before", before, ())
            for look in found.trace[:-1]:
                keep(f"{label}, {look.label}", look, found.attacked)
            keep(label, found.after, found.attacked)
            results[label] |= {"steps": found.steps, "seconds": round(found.seconds, 2)}
        return results, arrays, {}


def attack_all(
    family: str,
    attacks: dict[str, Attack],
    models: Sequence[LifeCycle],
    profile_name: str,
    seeds: tuple[int, ...] | None = None,
    **how: bool,
) -> list[Record]:
    """The same attacks on each of several marked models, for `seeds` or every seed of the profile.

    The records are named ``family-model``; `how` are the flags of `Campaign`.
    """
    campaigns = [
        Campaign(name=f"{family}-{on.name.removeprefix('11-keys-')}", on=on, attacks=attacks, **how) for on in models
    ]
    return run_all(campaigns, profile_name, seeds)


def halves(data: Data) -> tuple[Data, Data]:
    """The first and the second half of a set."""
    half = len(data) // 2
    parts = (slice(half), slice(half, None))
    first, second = (replace(data, images=data.images[part], labels=data.labels[part]) for part in parts)
    return first, second
