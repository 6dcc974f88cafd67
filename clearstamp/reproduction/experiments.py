"""Experiments: run once at a scale and from a seed, and kept as a record.

A record with the experiment's key is taken instead of running again, so an interrupted run goes on where it stopped.
"""

import json
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import MISSING, asdict, dataclass, fields, replace
from functools import cache, cached_property
from itertools import product
from math import inf
from pathlib import Path
from typing import Any, ClassVar, Literal, final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor
from tqdm import tqdm

from clearstamp.errors import ClearStampError, DataError, RecordError
from clearstamp.files import checksum, write_atomically
from clearstamp.reproduction import records
from clearstamp.reproduction.records import Record, Split, Stage
from clearstamp.zoo import datasets


@dataclass(frozen=True, kw_only=True)
class Profile:
    """The scale of a run. `train_images` and `test_images` of None mean the whole split.

    `precision` is that of training on the main task; stamps and accuracies are always in float32. `stand_in` says when
    the embedded digits are taken for another data set: ``"always"``, where its files are ``"missing"``, or ``"never"``.
    With `held_out` no test image is looked at: every third training image is held out, and stands for them.
    """

    name: str
    dataset: str
    train_images: int | None
    test_images: int | None
    hardening_steps: int
    epochs: int
    finetune_epochs: int
    seeds: tuple[int, ...]
    precision: Literal["float32", "bfloat16"] = "float32"
    stand_in: Literal["always", "missing", "never"] = "never"
    held_out: bool = False

    @property
    def images(self) -> dict[datasets.Split, int | None]:
        """How many images of each split, None for all."""
        return {"train": self.train_images, "test": self.test_images}

    def size(self, split: datasets.Split) -> int:
        """How many images there are to take from. Raises `DataError` if they are not there, or damaged."""
        if not self.held_out:
            return datasets.size(self.dataset, split)
        whole = datasets.size(self.dataset, "train")
        return whole // 3 if split == "test" else whole - whole // 3

    def on(self, dataset: str | None) -> "Profile":
        """The profile with another data set, where it takes any; as it is for None."""
        return self if dataset is None or self.stand_in == "always" else replace(self, dataset=dataset)

    def settled(self) -> "Profile":
        """With the data set that is there, and of a stand-in no more images than it has."""
        if self.stand_in != "missing" or (self.dataset != STAND_IN and datasets.found(self.dataset)):
            return self

        def most(split: datasets.Split, asked: int | None) -> int:
            there = datasets.size(STAND_IN, split)
            return there if asked is None else min(asked, there)

        train, test = most("train", self.train_images), most("test", self.test_images)
        return replace(self, dataset=STAND_IN, train_images=train, test_images=test)


STAND_IN = "digits"
"""The data set that is always there."""

PROFILES = {
    "tiny": Profile(
        name="tiny",
        dataset=STAND_IN,
        train_images=512,
        test_images=200,
        hardening_steps=20,
        epochs=1,
        finetune_epochs=1,
        seeds=(0,),
        stand_in="always",
    ),
    "quick": Profile(
        name="quick",
        dataset="mnist",
        train_images=800,
        test_images=300,
        hardening_steps=80,
        epochs=3,
        finetune_epochs=1,
        seeds=(0,),
        stand_in="missing",
    ),
    "paper": Profile(
        name="paper",
        dataset="mnist",
        train_images=None,
        test_images=None,
        hardening_steps=10_000,
        epochs=5,
        finetune_epochs=4,
        seeds=(0, 1, 2),
        precision="bfloat16",
    ),
}
"""``tiny`` for tests, ``quick`` for a laptop (the embedded digits for a set whose files are missing), ``paper``."""


def profile(name: str) -> Profile:
    """The profile `name`. Raises `RecordError` if there is none."""
    if name not in PROFILES:
        raise RecordError("unknown profile", got=repr(name), expected=" or ".join(map(repr, PROFILES)))
    return PROFILES[name]


@dataclass(frozen=True)
class Sets:
    """The training and the test images of a profile."""

    train: datasets.DataSet
    test: datasets.DataSet

    @cached_property
    def about(self) -> dict[datasets.Split, Split]:
        """For the record: sizes and checksums."""
        return {
            part.split: Split(images=len(part), official=part.official, sha256=part.checksum)
            for part in (self.train, self.test)
        }


def load_sets(scale: Profile) -> Sets:
    """The images of a scale. Raises `DataError` if they are not there."""
    return _load_sets(scale.dataset, scale.train_images, scale.test_images, scale.held_out)


@cache
def _load_sets(name: str, train: int | None, test: int | None, held_out: bool) -> Sets:
    whole = datasets.load(name, "train")
    if not held_out:
        return Sets(whole.take(train), datasets.load(name, "test").take(test))
    third = torch.arange(len(whole)) % 3 == 2
    held = replace(whole.pick(third), split="test", official=None)
    return Sets(whole.pick(~third).take(train), held.take(test))


FEW = 6
"""Of how many keys pictures are kept where they are many: films, and attacks."""

Findings = tuple[list[Stage], dict[str, Tensor], dict[str, Tensor]]
"""What was measured, arrays, and the trained model's weights (none if there was no training)."""


@dataclass(frozen=True, kw_only=True)
class Experiment(ABC):
    """What is run for a record; its fields decide the result, with the profile's scale and the seed.

    A subclass is an experiment. Whoever changes what it gives, in its own code or in what it calls, raises `version`:
    then its records are out of date, and those of the experiments that take its models.
    """

    name: str
    version: ClassVar[int] = 1
    pictures: ClassVar[int] = 11
    """Of how many keys a record keeps the pictures."""
    alone: ClassVar[bool] = False
    """Must nothing run beside it, since it takes time?"""

    @final
    def at(self, scale: Profile) -> Profile:
        """The profile with what this experiment has of its own, on the data that are there."""
        return self.scaled(scale).settled()

    def scaled(self, scale: Profile) -> Profile:
        """The profile with what this experiment has of its own, such as a data set."""
        return scale

    def parameters(self) -> dict[str, Any]:
        """All that decides the result but scale, seed, data and code."""
        return asdict(self)

    def needs(self) -> tuple["Experiment", ...]:
        """The experiments whose trained models are taken, each trained at its own scale in the profile."""
        return ()

    def sets(self, scale: Profile) -> tuple[Profile, ...]:
        """`scale` (this experiment's own) once for each data set that is used."""
        return (scale,)

    def check(self, scale: Profile) -> Iterator[ClearStampError]:
        """What stands against running it at `scale` (its own), found without computing anything."""
        for each in self.sets(scale):
            try:
                for split, count in each.images.items():
                    found = each.size(split)
                    if count is not None and not 0 < count <= found:
                        where = f"{each.dataset}, {split}"
                        yield DataError("not that many images", got=count, expected=f"1 to {found:,}", where=where)
            except DataError as error:
                yield error

    @abstractmethod
    def conduct(self, scale: Profile, seed: int) -> Findings:
        """Run it."""


class NotRecordedError(RecordError):
    """An experiment has no up-to-date record, and none is to be made."""


def run_all(experiments: Sequence[Experiment], profile_name: str, seeds: tuple[int, ...] | None = None) -> list[Record]:
    """The records of every experiment for every seed (the profile's own for None), with a progress bar.

    With `$CLEARSTAMP_RECORDED` set nothing is run: experiments without an up-to-date record are left out.
    """
    scale = profile(profile_name)
    made = []
    pairs = list(product(scale.seeds if seeds is None else seeds, experiments))
    for seed, experiment in tqdm(pairs, desc="experiments"):
        with suppress(NotRecordedError):
            made.append(run(experiment, scale, seed))
    return made


def run(experiment: Experiment, scale: Profile, seed: int) -> Record:
    """The record of one experiment: found if there is one with its key, else run and saved."""
    return find(experiment, scale, seed) or perform(experiment, scale, seed)


def find(experiment: Experiment, scale: Profile, seed: int) -> Record | None:
    """The record with the key of this experiment, if there is one.

    A parameter that the record does not have yet, also one of an experiment within it, counts as its default. The
    checksums of data that are not on this machine are not compared.
    """
    scale = experiment.at(scale)
    record = records.find(scale.name, records.named(experiment.name, seed))
    if record is None or (record.kind, record.version) != (type(experiment).__name__, experiment.version):
        return None
    given = parameters(experiment, scale)
    if filled(record.parameters, plain(defaults(experiment, given))) != plain(given):
        return None
    if record.bases != bases(experiment):
        return None
    there = [each for each in experiment.sets(scale) if datasets.found(each.dataset)]
    return record if all(record.data.get(each.dataset) == load_sets(each).about for each in there) else None


def plain(values: Mapping[str, Any]) -> Any:
    """As it is read back from JSON."""
    return json.loads(json.dumps(values))


def filled(given: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """`given` with what it lacks from `defaults`, also in mappings within."""
    within = {
        name: filled(given[name], inner)
        for name, inner in defaults.items()
        if isinstance(inner, dict) and isinstance(given.get(name), dict)
    }
    return {**defaults, **given, **within}


def bases(experiment: Experiment) -> dict[str, int]:
    """The versions of the experiments whose models are taken."""
    return {needed.name: needed.version for needed in experiment.needs()}


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


def parameters(experiment: Experiment, scale: Profile) -> dict[str, Any]:
    """All that decides the result but seed, data and code."""
    about = {f.name: getattr(scale, f.name) for f in fields(scale) if f.name not in ("name", "seeds", "stand_in")}
    if not scale.held_out:
        del about["held_out"]
    return experiment.parameters() | about


def perform(experiment: Experiment, scale: Profile, seed: int) -> Record:
    """Run one experiment; save its record and the weights of the model that it trained.

    Pictures are kept of the first keys, and for the profile's first seed alone; curves for every seed.
    """
    scale = experiment.at(scale)
    if os.environ.get("CLEARSTAMP_RECORDED"):
        raise NotRecordedError("not run", got=f"{experiment.name}, seed {seed}", where=records.folder(scale.name))
    record, weights = conduct(experiment, scale, seed)
    if weights:
        keep_weights(record, weights)
    record.save()
    return record


def conduct(experiment: Experiment, scale: Profile, seed: int) -> tuple[Record, dict[str, Tensor]]:
    """What an experiment gives at `scale` (its own), not yet saved, and the weights of the model that it trained."""
    theirs = profile(scale.name)
    taken = {needed.name: checksum((), trained_weights(needed, theirs, seed)) for needed in experiment.needs()}
    began = time.perf_counter()
    with torch.autocast(device().type, torch.bfloat16, enabled=scale.precision == "bfloat16"):
        stages, arrays, weights = experiment.conduct(scale, seed)
    seconds = time.perf_counter() - began
    own = {experiment.name: checksum((), weights)} if weights else {}
    return Record(
        experiment=experiment.name,
        kind=type(experiment).__name__,
        version=experiment.version,
        profile=scale.name,
        parameters=plain(parameters(experiment, scale)),
        seed=seed,
        stages=stages,
        data={each.dataset: load_sets(each).about for each in experiment.sets(scale)},
        bases=bases(experiment),
        weights=own | taken,
        provenance=replace(records.here(), seconds=round(seconds, 1)),
        arrays={
            name: few(array, experiment.pictures)
            for name, array in arrays.items()
            if seed == scale.seeds[0] or array.dim() == 1
        },
    ), weights


def few(array: Tensor, pictures: int) -> Tensor:
    """The first pictures of images ``[k, C, H, W]``, or of a film ``[s, k, C, H, W]`` of them, where few have to do."""
    return array[:, :FEW] if array.dim() == 5 else array[:pictures] if array.dim() == 4 else array


def trained_weights(experiment: Experiment, scale: Profile, seed: int) -> dict[str, Tensor]:
    """The weights that belong to an experiment's record.

    If they are lost, the model is trained again, and what it gives is compared with the record, which stays as it is.
    Raises `RecordError` if they differ by more than `TOLERANCE`.
    """
    record = run(experiment, scale, seed)
    if not has_weights(record):
        if os.environ.get("CLEARSTAMP_RECORDED"):
            raise NotRecordedError("the trained model is lost", got=record.name, where=weights_file(record))
        again, weights = conduct(experiment, experiment.at(scale), seed)
        compare(record, again)
        keep_weights(record, weights)
    return load_file(weights_file(record))


TOLERANCE = {
    "accuracy": 0.01,
    **dict.fromkeys(("ssim", "developed_ssim", "correlation", "ssim_attacked", "developed_ssim_attacked"), 0.05),
    **dict.fromkeys(("bit errors", "bit errors at 0.53", "message errors"), 0.02),
    **dict.fromkeys(("parameters", "weights", "without gradient", "finite"), 0.0),
    **dict.fromkeys(("operations", "memory"), 0.01),
}
"""By how much a score may differ from one machine to another: training is chaotic. Others are not compared."""


def differences(record: Record, again: Record) -> dict[str, float]:
    """The greatest difference of each score in `TOLERANCE` over all stages; infinite where one of the two lacks it."""
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
    """Where the trained weights lie. They are not kept in the repository: records are."""
    return records.artifacts() / record.profile / "weights" / f"{record.name}.safetensors"


def keep_weights(record: Record, weights: dict[str, Tensor]) -> None:
    """Store weights with the digest of the record that they belong to."""
    write_atomically(weights_file(record), save(weights, metadata={"key": record.digest}))


def has_weights(record: Record) -> bool:
    """Are the weights of this record there, and whole?"""
    path = weights_file(record)
    try:
        with safe_open(path, "pt") as stored:
            return bool((stored.metadata() or {}).get("key") == record.digest)
    except (OSError, SafetensorError):  # lost, or only half of it there
        return False
