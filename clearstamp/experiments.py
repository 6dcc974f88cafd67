"""Experiments: run once at a scale and from a seed, and kept as a record.

A record made by the same code from the same parameters is taken instead of running again, so an interrupted notebook
goes on where it stopped.
"""

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import MISSING, dataclass, fields
from itertools import product
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from safetensors.torch import load_file, save
from torch import Tensor
from tqdm import tqdm

from clearstamp import claims, data, records
from clearstamp.dependencies import remembered, watch
from clearstamp.errors import RecordError
from clearstamp.records import Record
from clearstamp.stamp import checksum, write_atomically


@dataclass(frozen=True, kw_only=True)
class Profile:
    """The scale of a run. `train_images` and `test_images` of None mean the whole split.

    `precision` is that of training on the main task; stamps and accuracies are always in float32.
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


PROFILES = {
    "tiny": Profile(
        name="tiny",
        dataset="digits",
        train_images=512,
        test_images=200,
        hardening_steps=20,
        epochs=1,
        finetune_epochs=1,
        seeds=(0,),
    ),
    "quick": Profile(
        name="quick",
        dataset="mnist" if data.available("mnist") else "digits",
        train_images=2_000 if data.available("mnist") else None,
        test_images=500 if data.available("mnist") else None,
        hardening_steps=200,
        epochs=3,
        finetune_epochs=2,
        seeds=(0,),
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
"""``tiny`` for tests, ``quick`` for a laptop (MNIST if its files are found, else the embedded digits), ``paper``."""


def profile(name: str) -> Profile:
    """The profile `name`. Raises `RecordError` if there is none."""
    if name not in PROFILES:
        raise RecordError("unknown profile", got=repr(name), expected=" or ".join(map(repr, PROFILES)))
    return PROFILES[name]


@dataclass(frozen=True)
class Sets:
    """The training and the test images of a profile."""

    train: data.Data
    test: data.Data

    def about(self) -> dict[str, Any]:
        """For the record: name, sizes and checksums."""
        return {"name": self.train.name} | {
            part.split: {"images": len(part), "official": part.official, "sha256": part.checksum}
            for part in (self.train, self.test)
        }


@remembered
def load_sets(scale: Profile) -> Sets:
    return Sets(
        data.load(scale.dataset, "train").take(scale.train_images),
        data.load(scale.dataset, "test").take(scale.test_images),
    )


FEW = 6
"""Of how many keys pictures are kept where they are many: films, and attacks."""

Findings = tuple[dict[str, dict[str, Any]], dict[str, Tensor], dict[str, Tensor]]
"""Results, arrays, and the trained model's weights (none if there was no training)."""


@dataclass(frozen=True, kw_only=True)
class Experiment(ABC):
    """What is run for a record; its fields decide the result, with the profile's scale and the seed."""

    name: str
    pictures: ClassVar[int] = 11
    """Of how many keys a record keeps the pictures."""

    def scaled(self, scale: Profile) -> Profile:
        """The profile with what this experiment has of its own, such as a data set."""
        return scale

    @abstractmethod
    def parameters(self, scale: Profile, seed: int) -> dict[str, Any]:
        """All that decides the result but scale, seed and code."""

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
    for seed, experiment in tqdm(
        list(product(scale.seeds if seeds is None else seeds, experiments)), desc="experiments"
    ):
        with suppress(NotRecordedError):
            made.append(run(experiment, scale, seed))
    return made


def run(experiment: Experiment, scale: Profile, seed: int) -> Record:
    """The record of one experiment: found if it was made by this code from these parameters, else run and saved."""
    scale = experiment.scaled(scale)
    given = parameters(experiment, scale, seed)
    found = records.find(scale.name, f"{experiment.name}-seed{seed}", given, defaults(experiment, given))
    return found or perform(experiment, scale, seed)


def defaults(experiment: Experiment, given: Mapping[str, Any]) -> dict[str, Any]:
    """The defaults of an experiment's fields, and of those of experiments within it, as far as they are in `given`."""
    found: dict[str, Any] = {}
    for f in (f for f in fields(experiment) if f.name in given):
        inner = getattr(experiment, f.name)
        if isinstance(inner, Experiment):
            found[f.name] = defaults(inner, given[f.name])
        elif f.default is not MISSING:
            found[f.name] = f.default
    return found


def parameters(experiment: Experiment, scale: Profile, seed: int) -> dict[str, Any]:
    """All that decides the result but seed and code."""
    about = {f.name: getattr(scale, f.name) for f in fields(scale) if f.name not in ("name", "seeds")}
    return experiment.parameters(scale, seed) | about


def perform(experiment: Experiment, scale: Profile, seed: int) -> Record:
    """Run one experiment; save its record and the weights of the model that it trained.

    Pictures are kept of the first keys, and for the profile's first seed alone; curves for every seed.
    """
    if os.environ.get("CLEARSTAMP_RECORDED"):
        raise NotRecordedError("not run", got=f"{experiment.name}, seed {seed}", where=records.folder(scale.name))
    given = parameters(experiment, scale, seed)
    began = time.perf_counter()
    with watch() as code, torch.autocast(device().type, torch.bfloat16, enabled=scale.precision == "bfloat16"):
        results, arrays, weights = experiment.conduct(scale, seed)
    seconds = time.perf_counter() - began
    if weights:
        write_atomically(weights_file(experiment, scale, seed), save(weights))
    record = Record(
        experiment=experiment.name,
        profile=scale.name,
        parameters=given,
        seed=seed,
        code=code,
        results=results,
        paper=claims.paper_values(experiment.name),
        dataset=load_sets(scale).about(),
        wall_seconds=round(seconds, 1),
        weights=checksum((), weights) if weights else None,
        arrays={
            name: few(array, experiment.pictures)
            for name, array in arrays.items()
            if seed == scale.seeds[0] or array.dim() == 1
        },
    )
    record.save()
    return record


def few(array: Tensor, pictures: int) -> Tensor:
    """The first pictures of images ``[k, C, H, W]``, or of a film ``[s, k, C, H, W]`` of them, where few have to do."""
    return array[:, :FEW] if array.dim() == 5 else array[:pictures] if array.dim() == 4 else array


def trained_weights(experiment: Experiment, scale: Profile, seed: int) -> dict[str, Tensor]:
    """The weights that belong to an experiment's record; trained anew if they are lost."""
    scale = experiment.scaled(scale)
    record, path = run(experiment, scale, seed), weights_file(experiment, scale, seed)
    weights = load_file(path) if path.is_file() else {}
    if checksum((), weights) == record.weights:
        return weights
    perform(experiment, scale, seed)
    return load_file(path)


def device() -> torch.device:
    """Where experiments run."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def weights_file(experiment: Experiment, scale: Profile, seed: int) -> Path:
    """Where the trained weights lie. They are not kept in the repository: records are."""
    return records.artifacts() / scale.name / "weights" / f"{experiment.name}-seed{seed}.safetensors"
