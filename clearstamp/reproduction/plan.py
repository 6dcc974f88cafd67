"""What a run would do, before its first step: experiments, data, records, time, and what cannot work."""

import json
import math
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache, cached_property
from pathlib import Path
from statistics import median

import torch

from clearstamp.errors import ClearStampError, DataError, RecordError
from clearstamp.reproduction import records
from clearstamp.reproduction.experiments import Experiment, Settings, find, has_weights
from clearstamp.reproduction.lifecycle import LifeCycle, LifeSettings
from clearstamp.reproduction.profiles import Images
from clearstamp.reproduction.records import Record
from clearstamp.reproduction.registry import CHAPTERS, Chapter, resolved
from clearstamp.reproduction.runtime import operations
from clearstamp.zoo import datasets
from clearstamp.zoo.networks import build

SECONDS = Path(__file__).with_name("seconds.json")
"""Measured wall times by profile and name: one thread, beside another such process, on two cores."""


@dataclass(frozen=True)
class Step:
    """One run: an experiment's settings and a seed.

    Attributes:
        record: the one that answers to it, None if there is none.
        lost: whether another run needs its trained model, which is missing though it has a record.
        seconds: how long it should take, None if that is not known.
        estimated: whether that was not measured, but follows from its arithmetic.
    """

    settings: Settings
    seed: int
    record: Record | None
    lost: bool
    seconds: float | None
    estimated: bool = False

    @property
    def experiment(self) -> Experiment:
        return self.settings.experiment

    @property
    def name(self) -> str:
        return records.named(self.experiment.name, self.seed)

    @property
    def todo(self) -> bool:
        return self.record is None or self.lost


@dataclass(frozen=True)
class Plan:
    """The steps of some chapters in a profile, by name, those that others need before these.

    If it is `recorded`, nothing is run, and what has no record is left out. `damaged` has the errors of records and
    data that could not be read, each with the steps that it affects.
    """

    profile: str
    chapters: tuple[str, ...]
    steps: dict[str, Step]
    damaged: dict[str, list[str]]
    recorded: bool = False

    def todo(self) -> list[Step]:
        """What has to be run."""
        return [] if self.recorded else [step for step in self.steps.values() if step.todo]

    def check(self) -> None:
        """Raise one `RecordError` for all that cannot work: damaged files, missing data sets, unknown models, ..."""
        faults = {error: list(names) for error, names in self.damaged.items()}
        for step in self.todo():
            for error in step.experiment.check(step.settings):
                faults.setdefault(str(error), []).append(step.name)
        if faults:
            told = [f"{error}: {len(set(names))} runs, {listed(names)}" for error, names in faults.items()]
            raise RecordError(
                f"nothing was run, since this cannot work in profile {self.profile!r}:\n  " + "\n  ".join(told),
                remedy="`make data` downloads data sets that are missing, data/README.md says where else they may lie; "
                "with CLEARSTAMP_RECORDED=1 nothing is run, and what is on record is shown",
            )

    def needed(self, step: Step) -> list[Step]:
        """The steps whose trained models a step takes."""
        return [self.steps[records.named(name, step.seed)] for name in step.settings.bases]

    def of(self, chapter: str) -> list[Step]:
        """The steps of this plan that a chapter shows."""
        shown = (records.named(e.name, seed) for e, seed in dict.fromkeys(Chapter(chapter, self.profile).declared()))
        return [self.steps[name] for name in shown if name in self.steps]

    def table(self) -> str:
        """One line for each experiment of each chapter, and the total."""
        shown: set[str] = set()
        lines = []
        for chapter in self.chapters:
            lines.append(chapter)
            by_name: dict[str, list[Step]] = {}
            for step in self.of(chapter):
                by_name.setdefault(step.experiment.name, []).append(step)
            rows = [self.row(steps) for name, steps in by_name.items() if name not in shown]
            widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
            lines += ["  " + "  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
            if again := by_name.keys() & shown:
                lines.append(f"  and {len(again)} of the chapters above")
            shown |= by_name.keys()
        return "\n".join([*lines, "", self.total()])

    def row(self, steps: Sequence[Step]) -> tuple[str, ...]:
        """One experiment: name, data, seeds, state, minutes."""
        first = steps[0]
        sets = "; ".join(map(described, first.settings.data))
        there, again = sum(step.record is not None for step in steps), sum(step.lost for step in steps)
        states = {0: "not recorded" if self.recorded else "to run", len(steps): "recorded"}
        state = states.get(there, f"{there} recorded")
        if again and not self.recorded:
            state += f", {again} to train again for others"
        seeds = " ".join(str(step.seed) for step in steps)
        return (
            first.experiment.name,
            sets or "no data",
            f"seed {seeds}",
            state,
            minutes(steps),
        )

    def total(self) -> str:
        """How much there is to do, in words."""
        todo = self.todo()
        measured, estimated = ([step for step in todo if step.estimated is kind] for kind in (False, True))
        seconds, unknown = sum(step.seconds or 0 for step in measured), sum(step.seconds is None for step in todo)
        text = f"{len(self.steps)} experiments, {len(todo)} of them to run: {seconds / 60:.0f} minutes of one core"
        if estimated:
            hours = sum(step.seconds or 0 for step in estimated) / 3600
            text += f", and by their arithmetic about {hours:.0f} hours for {len(estimated)} that never ran"
        return text + (f", and {unknown} of them whose time is not known" if unknown else "")


def described(images: Images) -> str:
    """A data set, and how many images of how many."""
    if not datasets.found(images.dataset):
        return f"{images.dataset}, missing"
    parts = []
    for split, count in images.counts.items():
        try:
            there = f"{images.size(split):,}"
        except DataError:
            there = "damaged"
        name = "held-out" if images.held_out and split == "test" else split
        parts.append(f"{there} {name}" if count is None else f"{count:,} of {there} {name}")
    return f"{images.dataset}, {', '.join(parts)}"


def minutes(steps: Iterable[Step]) -> str:
    """Expected minutes of what is to be run; empty if they are not known, or nothing is to be run."""
    known = [step for step in steps if step.todo and step.seconds is not None]
    text = f"{sum(step.seconds or 0 for step in known) / 60:.1f} min" if known else ""
    return f"about {text}" if any(step.estimated for step in known) else text


def make(profile_name: str, chapters: Sequence[str] = tuple(CHAPTERS), only: Sequence[str] = ()) -> Plan:
    """The plan of some chapters; with `$CLEARSTAMP_RECORDED` set, one that runs nothing.

    With `only`, patterns such as ``*-resnet18-*``, it has the experiments whose names fit one of them, and what these
    need. Raises `RecordError` for an unknown profile or chapter, patterns that no name fits, and two different
    experiments of one name.
    """
    runs = resolved(profile_name, chapters)
    if only:
        runs = chosen(runs, only)
        declared = {name: Chapter(name, profile_name).declared() for name in chapters}
        chapters = [name for name, found in declared.items() if any((e.name, seed) in runs for e, seed in found)]
    found: dict[tuple[str, int], Record | None] = {}
    damaged: dict[str, list[str]] = {}
    for (name, seed), settings in runs.items():
        try:
            found[name, seed] = find(settings, seed)
        except ClearStampError as error:
            found[name, seed] = None
            damaged.setdefault(str(error), []).append(records.named(name, seed))
    lost = {
        (name, seed)
        for (_, seed), settings in runs.items()
        if found[settings.experiment.name, seed] is None
        for name in settings.bases
        if (record := found[name, seed]) and not has_weights(record)
    }
    estimate = Estimate((runs[key], record) for key, record in found.items() if record)
    steps = {}
    for key, settings in sorted(runs.items(), key=lambda pair: len(pair[1].needs)):  # models before attacks
        seconds = expected(profile_name, key[0], found[key])
        estimated = seconds is None
        if estimated:
            seconds = estimate(settings)
        step = Step(settings, key[1], found[key], key in lost, seconds, estimated and seconds is not None)
        steps[step.name] = step
    recorded = bool(os.environ.get("CLEARSTAMP_RECORDED"))
    return Plan(profile_name, tuple(dict.fromkeys(chapters)), steps, damaged, recorded)


def chosen(runs: dict[tuple[str, int], Settings], patterns: Sequence[str]) -> dict[tuple[str, int], Settings]:
    """The runs whose names fit one of the patterns, and those that these need."""
    todo = [(name, seed) for name, seed in runs if any(fnmatchcase(name, pattern) for pattern in patterns)]
    if not todo:
        expected = f"patterns for {len(runs)} names"
        raise RecordError("no experiment has such a name", got=", ".join(patterns), expected=expected)
    found: dict[tuple[str, int], Settings] = {}
    while todo:
        name, seed = todo.pop()
        found[name, seed] = runs[name, seed]
        todo += [(needed, seed) for needed in runs[name, seed].bases]
    return found


def listed(names: Sequence[str], most: int = 3) -> str:
    """The first few names."""
    names = list(dict.fromkeys(names))
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def expected(profile_name: str, name: str, record: Record | None) -> float | None:
    """Seconds that an experiment takes: from its record, an older record of its name, or `SECONDS`."""
    if record is not None:
        return record.seconds
    for path in sorted(records.folder(profile_name).glob(f"{name}-seed*.json")):
        with suppress(RecordError):
            return records.load(path).seconds
    return measured().get(profile_name, {}).get(name)


class Estimate:
    """Seconds that a life cycle takes, by its arithmetic, at the pace of `made`: the recorded ones and their settings.

    The pace is that of the networks that are nearest in the operations of an image, the median of lives that went all
    their way, as what ends in hardening may end early. It is as good as machines are alike, and as what ran beside.
    """

    def __init__(self, made: Iterable[tuple[Settings, Record]]):
        self.made = made

    @cached_property
    def paces(self) -> dict[float, list[float]]:
        """Seconds an operation, by the logarithm of the operations of one image."""
        found: dict[float, list[float]] = {}
        for settings, record in self.made:
            if (life := arithmetic(settings)) and life.complete:
                found.setdefault(math.log(life.image), []).append(record.seconds / life.whole)
        return found

    def __call__(self, settings: Settings) -> float | None:
        """None for any other experiment, and if there is nothing to judge by."""
        life = arithmetic(settings)
        if life is None or not self.paces:
            return None
        nearest = min(self.paces, key=lambda size: abs(size - math.log(life.image)))
        return life.whole * median(self.paces[nearest])


@dataclass(frozen=True)
class Arithmetic:
    """The operations of one image's way through a network, and of a whole life cycle; is it more than hardening?"""

    image: float
    whole: float
    complete: bool


def arithmetic(settings: Settings) -> Arithmetic | None:
    """The operations of a life cycle: stamp steps of hardening, then the task and its stamp steps, then fine-tuning.

    None for any other experiment, and for one that cannot work.
    """
    life, images = settings.experiment, settings.images
    if not isinstance(life, LifeCycle) or not isinstance(settings, LifeSettings) or any(life.check(settings)):
        return None
    image = forward(settings.network, images.dataset)
    both_ways = 3 * image  # backwards to the weights and to the inputs
    count = images.train or images.size("train")
    stamp_steps, seen = float(settings.hardening_steps if life.keys else 0), 0
    if settings.until == "finetuned":
        seen = count * (settings.epochs + settings.finetune_epochs)
        every = getattr(settings.schedule, "every", 1)  # of a `Scheduled` life not that of its settings
        stamp_steps += settings.epochs * count / settings.batch_size / every
    return Arithmetic(image, both_ways * (seen + life.keys * stamp_steps), complete=seen > 0)


@cache
def forward(network: str, dataset: str) -> float:
    """Multiplications and additions of one image's way through a network."""
    shape, classes = datasets.form(dataset)
    with torch.device("meta"):
        model = build(network, shape, classes, seed=0).eval()
    return float(operations(lambda: model(torch.empty(1, *shape, device="meta"))))


@cache
def measured() -> dict[str, dict[str, float]]:
    """The wall times in `SECONDS`."""
    found: dict[str, dict[str, float]] = json.loads(SECONDS.read_text(encoding="utf-8"))
    return found


def keep_seconds(profile_name: str) -> None:
    """Write the wall times of a profile's records to `SECONDS`."""
    times = {record.experiment: record.seconds for record in records.load_all(profile_name)}
    whole = measured() | {profile_name: dict(sorted(times.items()))}
    SECONDS.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
