"""Experiments: declared, resolved with a profile into settings, run once for each seed, and kept as a record.

A record with the key of a run is taken instead of running again, so an interrupted run goes on where it stopped.
"""

import json
import os
import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import MISSING, asdict, dataclass, fields, replace
from itertools import product
from math import inf
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor
from tqdm import tqdm

from clearstamp.errors import ClearStampError, RecordError
from clearstamp.files import checksum, write_atomically
from clearstamp.reproduction import records
from clearstamp.reproduction.profiles import Images, Precision, Profile, load_sets, profile
from clearstamp.reproduction.records import Record, Stage
from clearstamp.zoo import datasets
from clearstamp.zoo.networks import MODELS

FEW = 6
"""The number of keys whose pictures are kept where there are many pictures: in films, and of attacks."""

Findings = tuple[list[Stage], dict[str, Tensor], dict[str, Tensor]]
"""What was measured, arrays, and the trained model's weights (none if there was no training)."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that decides a run but its seed: an experiment as it is declared, resolved with a profile.

    An experiment that has choices beyond these has a subclass for them.

    Attributes:
        experiment: the declaration.
        profile: the profile's name.
        images: those of the run, or of the profile for an experiment that needs none.
        data: the images of every data set that is used.
        needs: the settings of the experiments whose trained models are taken.
        checkpoints: the folder for those of the trainings of one run; None to keep none.
    """

    experiment: "Experiment"
    profile: str
    images: Images
    hardening_steps: int
    epochs: int
    finetune_epochs: int
    precision: Precision
    data: tuple[Images, ...] = ()
    needs: tuple["Settings", ...] = ()
    checkpoints: Path | None = None

    @classmethod
    def of(cls, experiment: "Experiment", profile: Profile, images: Images, **own: Any) -> Self:
        """The lengths and the precision of a profile, with `images`, and what an experiment has of its own."""
        lengths = {name: getattr(profile, name) for name in LENGTHS}
        return cls(experiment=experiment, profile=profile.name, images=images, **lengths, **own)

    @property
    def parameters(self) -> dict[str, Any]:
        """What a record keeps of them: the experiment's fields, and over these what they were resolved to."""
        images, lengths = self.images, {name: getattr(self, name) for name in LENGTHS}
        about = {"dataset": images.dataset, "train_images": images.train, "test_images": images.test} | lengths
        return self.experiment.parameters() | about | ({"held_out": True} if images.held_out else {})

    @property
    def bases(self) -> dict[str, int]:
        """The versions of the experiments whose models are taken."""
        return {needed.experiment.name: needed.experiment.version for needed in self.needs}


LENGTHS = ("hardening_steps", "epochs", "finetune_epochs", "precision")
"""What settings and profiles both have."""


@dataclass(frozen=True, kw_only=True)
class Experiment(ABC):
    """What is run for a record, as it is declared: its fields are part of the record's key.

    A subclass is a kind of experiment. Whoever changes what it gives, in its own code or in what it calls, raises
    `version`: then its records are out of date, and those of the experiments that take its models.
    """

    name: str
    version: ClassVar[int] = 1
    pictures: ClassVar[int] = 11
    """The number of keys whose pictures a record keeps."""
    alone: ClassVar[bool] = False
    """Whether nothing may run beside it, because it measures time."""

    def parameters(self) -> dict[str, Any]:
        """The declaration as a record keeps it."""
        return asdict(self)

    def needs(self) -> tuple["Experiment", ...]:
        """The experiments whose trained models are taken."""
        return ()

    def settings(self, profile: Profile) -> Settings:
        """Resolve it with a profile, on the data that are on this machine."""
        return Settings.of(self, profile, profile.images())

    def check(self, settings: Any) -> Iterator[ClearStampError]:
        """Reasons why a run with its `settings` would fail, found without computing anything."""
        for images in settings.data:
            yield from images.check()

    @abstractmethod
    def conduct(self, settings: Any, seed: int) -> Findings:
        """Run it with its `settings`, of the type that its own `settings` method returns."""


def unknown(model: str) -> Iterator[ClearStampError]:
    """The reason why a model of that name cannot be built, if there is one."""
    if model not in MODELS:
        yield RecordError("unknown model", got=repr(model), expected=" or ".join(map(repr, MODELS)))


class NotRecordedError(RecordError):
    """An experiment has no up-to-date record, and none is to be made."""


def run_all(experiments: Sequence[Experiment], profile_name: str, seeds: tuple[int, ...] | None = None) -> list[Record]:
    """The records of every experiment for every seed (the profile's own for None), with a progress bar.

    With `$CLEARSTAMP_RECORDED` set nothing is run: experiments without an up-to-date record are left out.
    """
    chosen = profile(profile_name)
    resolved = [experiment.settings(chosen) for experiment in experiments]
    pairs = list(product(chosen.seeds if seeds is None else seeds, resolved))
    made = []
    for seed, settings in tqdm(pairs, desc="experiments"):
        with suppress(NotRecordedError):
            made.append(run(settings, seed))
    return made


def run(settings: Settings, seed: int) -> Record:
    """The record of one run: found if there is one with its key, else run and saved."""
    return find(settings, seed) or perform(settings, seed)


def find(settings: Settings, seed: int) -> Record | None:
    """The record with the key of these settings and this seed, if there is one.

    A parameter that the record does not have yet, also one of an experiment within it, counts as its default. The
    checksums of data that are not on this machine are not compared.
    """
    experiment = settings.experiment
    record = records.find(settings.profile, records.named(experiment.name, seed))
    if record is None or (record.kind, record.version) != (type(experiment).__name__, experiment.version):
        return None
    given = settings.parameters
    if filled(record.parameters, as_json(defaults(experiment, given))) != as_json(given):
        return None
    if record.bases != settings.bases:
        return None
    there = [images for images in settings.data if datasets.found(images.dataset)]
    return record if all(record.data.get(images.dataset) == load_sets(images).about for images in there) else None


def as_json(values: Mapping[str, Any]) -> Any:
    """As it is read back from JSON, dataclasses as mappings."""
    return json.loads(json.dumps(values, default=asdict))


def filled(given: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """`given` with what it lacks from `defaults`, also in mappings within."""
    within = {
        name: filled(given[name], inner)
        for name, inner in defaults.items()
        if isinstance(inner, dict) and isinstance(given.get(name), dict)
    }
    return {**defaults, **given, **within}


def defaults(experiment: Experiment, given: Mapping[str, Any]) -> dict[str, Any]:
    """The defaults of an experiment's fields, and of those of experiments within it, as far as they are in `given`."""
    found: dict[str, Any] = {}
    for f in (f for f in fields(experiment) if f.name in given):
        inner = getattr(experiment, f.name)
        if f.default is not MISSING:
            found[f.name] = f.default.parameters() if isinstance(f.default, Experiment) else f.default
        elif isinstance(inner, Experiment):
            found[f.name] = defaults(inner, given[f.name])
    return found


def perform(settings: Settings, seed: int) -> Record:
    """Run an experiment; save its record and the weights of the model that it trained.

    Pictures are kept of the first keys, and only for the profile's first seed; curves for every seed.
    """
    if os.environ.get("CLEARSTAMP_RECORDED"):
        where = records.folder(settings.profile)
        raise NotRecordedError("not run", got=f"{settings.experiment.name}, seed {seed}", where=where)
    record, weights = conduct(resumable(settings, seed), seed)
    if weights:
        keep_weights(record, weights)
    record.save()
    shutil.rmtree(checkpoints(settings, seed), ignore_errors=True)
    return record


def conduct(settings: Settings, seed: int) -> tuple[Record, dict[str, Tensor]]:
    """The record of a run, not yet saved, and the weights of the model that it trained."""
    experiment = settings.experiment
    taken = {needed.experiment.name: checksum((), trained_weights(needed, seed)) for needed in settings.needs}
    began = time.perf_counter()
    with torch.autocast(device().type, torch.bfloat16, enabled=settings.precision == "bfloat16"):
        stages, arrays, weights = experiment.conduct(settings, seed)
    seconds = time.perf_counter() - began
    own = {experiment.name: checksum((), weights)} if weights else {}
    pictured = seed == profile(settings.profile).seeds[0]
    record = unmade(settings, seed)
    return replace(
        record,
        stages=stages,
        data={images.dataset: load_sets(images).about for images in settings.data},
        weights=own | taken,
        provenance=replace(record.provenance, seconds=round(seconds, 1)),
        arrays={
            name: few(array, experiment.pictures) for name, array in arrays.items() if pictured or array.dim() == 1
        },
    ), weights


def unmade(settings: Settings, seed: int) -> Record:
    """The record of a run before it: what decides it, but for its data, and nothing that comes of it."""
    experiment = settings.experiment
    return Record(
        experiment=experiment.name,
        kind=type(experiment).__name__,
        version=experiment.version,
        profile=settings.profile,
        parameters=as_json(settings.parameters),
        seed=seed,
        stages=[],
        bases=settings.bases,
    )


def checkpoints(settings: Settings, seed: int) -> Path:
    """Where the trainings of a run that is under way are kept."""
    return records.artifacts() / settings.profile / "checkpoints" / records.named(settings.experiment.name, seed)


def resumable(settings: Settings, seed: int) -> Settings:
    """The settings with that folder, if the profile says so."""
    return replace(settings, checkpoints=checkpoints(settings, seed) if profile(settings.profile).checkpoints else None)


def few(array: Tensor, pictures: int) -> Tensor:
    """The first `pictures` of images ``[k, C, H, W]``; of a film ``[s, k, C, H, W]``, the first `FEW` in each frame."""
    return array[:, :FEW] if array.dim() == 5 else array[:pictures] if array.dim() == 4 else array


def trained_weights(settings: Settings, seed: int) -> dict[str, Tensor]:
    """The weights that belong to the record of these settings.

    If they are lost, the model is trained again and compared with the record, which stays as it is.
    Raises `RecordError` if they differ by more than `TOLERANCE`.
    """
    record = run(settings, seed)
    if not has_weights(record):
        if os.environ.get("CLEARSTAMP_RECORDED"):
            raise NotRecordedError("the trained model is lost", got=record.name, where=weights_file(record))
        again, weights = conduct(resumable(settings, seed), seed)
        compare(record, again)
        keep_weights(record, weights)
        shutil.rmtree(checkpoints(settings, seed), ignore_errors=True)
    return load_file(weights_file(record))


TOLERANCE = {
    "accuracy": 0.01,
    **dict.fromkeys(("ssim", "developed_ssim", "correlation", "ssim_attacked", "developed_ssim_attacked"), 0.05),
    **dict.fromkeys(("bit errors", "bit errors at 0.53", "message errors"), 0.02),
    **dict.fromkeys(("parameters", "weights", "without gradient", "finite"), 0.0),
    **dict.fromkeys(("operations", "memory"), 0.01),
}
"""How far scores may differ between machines, as training is chaotic. Other scores are not compared."""


def differences(record: Record, again: Record) -> dict[str, float]:
    """The greatest difference of each score in `TOLERANCE` over all stages; infinite where only one record has it."""
    found: dict[str, float] = {}
    for label in record.results.keys() | again.results.keys():
        one, two = record.results.get(label, {}), again.results.get(label, {})
        for name in (one.keys() | two.keys()) & TOLERANCE.keys():
            apart = abs(one[name] - two[name]) if name in one and name in two else inf
            found[name] = max(found.get(name, 0.0), apart)
    return dict(sorted(found.items()))


def compare(record: Record, again: Record) -> None:
    """Raise `RecordError` if a repetition gives other scores than a record, naming both."""
    off = [f"{name} {apart:.3f} apart" for name, apart in differences(record, again).items() if apart > TOLERANCE[name]]
    if off:
        raise RecordError(
            "trained again, the model is not that of the record",
            got=", ".join(off),
            where=f"{record.name} of commit {record.provenance.commit}, and {again.provenance.commit}",
            remedy="raise the experiment's version if its code changed, or remove the record to replace it",
        )


def device() -> torch.device:
    """Where experiments run."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def weights_file(record: Record) -> Path:
    """Where the trained weights are. Unlike records, they are not kept in the repository."""
    return records.artifacts() / record.profile / "weights" / f"{record.name}.safetensors"


def keep_weights(record: Record, weights: dict[str, Tensor]) -> None:
    """Store weights with the digest of the record that they belong to."""
    write_atomically(weights_file(record), save(weights, metadata={"key": record.digest}))


def has_weights(record: Record) -> bool:
    """Whether the weights of this record are there and complete."""
    path = weights_file(record)
    try:
        with safe_open(path, "pt") as stored:
            return bool((stored.metadata() or {}).get("key") == record.digest)
    except (OSError, SafetensorError):  # lost, or only half of it there
        return False
