"""The contract of every attack: it works on a copy, and a judge measures before and after."""

import copy
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import nn

from clearstamp.data import Batches, LabelledImages
from clearstamp.errors import AttackError, StampError
from clearstamp.reading import Reading
from clearstamp.registered import register
from clearstamp.schemes import ClearStamp, Evidence, Key, Mark
from clearstamp.schemes.base import NOTHING
from clearstamp.stamp import Stamp
from clearstamp.training.loops import accuracy
from clearstamp.training.method import RECOMMENDED
from clearstamp.transpose import transpose
from clearstamp.transposed.base import Transposed
from clearstamp.transposed.graph import Graph
from clearstamp.units.canonical import merged
from clearstamp.units.spaces import Graphs

OWN = 1_000_003
"""Added to an attacker's seed for what they draw as an owner would, so that it is not what the owner drew from it."""


@dataclass(frozen=True)
class Look:
    """A model at one moment of an attack: its accuracy on the test images, and the mark as its owner reads it."""

    label: str
    accuracy: float
    evidence: Evidence
    step: int | None = None
    """The epochs or optimizer steps so far; None before the attack and at its end."""

    @property
    def reading(self) -> Reading:
        """The reading of a stamp. Raises `AttackError` for another mark."""
        if not isinstance(self.evidence.detail, Reading):
            raise AttackError("the mark is no stamp", remedy="look at evidence")
        return self.evidence.detail


@dataclass(frozen=True)
class Outcome:
    """What an attack did.

    Attributes:
        attack: its name.
        parameters: its hyper-parameters.
        before: the model that it was given.
        trace: the model on the way, and last as the attack left it; an attack that reports nothing leaves just that.
        steps: optimizer steps that the attack took.
        seconds: wall time of the attack, without the measurements.
        attacked: the positions in the stamp of the keys that the attacker knew.
        model: what the attacker ends with.
        claim: the key of the mark that an accuser says is in the model, which `trace` then reads; else None.
    """

    attack: str
    parameters: dict[str, Any]
    before: Look
    trace: tuple[Look, ...]
    steps: int
    seconds: float
    attacked: tuple[int, ...]
    model: nn.Module = field(repr=False, compare=False)
    claim: Key | None = field(default=None, repr=False, compare=False)

    @property
    def after(self) -> Look:
        """The model as the attack left it."""
        return self.trace[-1]


Observer = Callable[["Scene", str, int | None], None]


class Scene:
    """What an attacker has at hand.

    Attributes:
        model: a copy of the marked model; the attacker changes it, or puts another in its place.
        data: the attacker's images; None for an attacker without any.
        mark: the owner's. Only attacks that say so know (a part of) its key.
        unmarked: a model without a mark, for the attacks that need one.
        seed: for everything that the attacker draws.
        observer: called with the scene, a label and a step whenever the attack reports how far it has come.
        evidence: makes the model that the owner reads of the attacker's; the very same unless an attack says otherwise.
        relabel: the labels of the attacker's task, where that is another than the owner's.
        steps: optimizer steps so far.
        attacked: the positions of the keys that the attacker knew.
        claim: the key of the mark that an accuser says is in the model; it is then read in the place of the owner's.
        graphs: what models compute that take such images, captured once for all of one form.
    """

    def __init__(
        self,
        model: nn.Module,
        data: LabelledImages | None,
        mark: Mark | Stamp,
        *,
        unmarked: nn.Module | None = None,
        readout: str = RECOMMENDED.readout,
        seed: int = 0,
        observer: Observer | None = None,
        graph: Graph | None = None,
    ):
        self.model, self.data, self.mark, self.unmarked = model, data, as_mark(mark, readout), unmarked
        self.seed, self.observer = seed, observer
        self.evidence: Callable[[nn.Module], nn.Module] = lambda suspect: suspect
        self.relabel: Callable[[Batches], Batches] = lambda batches: batches
        self.steps = 0
        self.attacked: tuple[int, ...] = ()
        self.graphs = Graphs(self.example, None if graph is None else (model, graph))
        self.claim: Key | None = None

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(C, H, W)`` of the model's images."""
        channels, height, width = self.mark.key.shape
        return channels, height, width

    @property
    def clearstamp(self) -> ClearStamp:
        """The scheme of the owner's mark, for attacks on stamps. Raises `AttackError` if it is another."""
        if not isinstance(self.mark.scheme, ClearStamp):
            raise AttackError("this attack is one on stamps", got=self.mark.scheme.name, expected=ClearStamp.name)
        return self.mark.scheme

    @cached_property
    def stamp(self) -> Stamp:
        """The owner's stamp. Raises `AttackError` if the mark is another."""
        return self.clearstamp.stamp(self.mark.key)

    @property
    def readout(self) -> str:
        """The one that the owner reads the stamp with. Raises `AttackError` if the mark is another."""
        return self.clearstamp.readout

    @property
    def example(self) -> torch.Tensor:
        """One blank input batch for the model."""
        return torch.zeros(1, *self.shape, device=self.device)

    def graph(self, model: nn.Module | None = None) -> Graph:
        """What a model computes, by default the attacker's: captured once for all models of one form.

        Raises `AttackError` if it cannot be captured.
        """
        return self.graphs(self.model if model is None else model)

    def backwards(self, model: nn.Module | None = None) -> Transposed:
        """A model, by default the attacker's, run backwards from where the owner's keys enter, by the owner's readout.

        Raises `AttackError` if the mark is no stamp, if the model cannot be captured, or if it lacks the layer.
        """
        model = self.model if model is None else model
        return transpose(model, self.clearstamp.graphs(self.graphs)(model), readout=self.readout)

    def need_data(self) -> LabelledImages:
        """The attacker's images. Raises `AttackError` if the attacker has none."""
        if self.data is None:
            raise AttackError("this attack needs images", remedy="pass data")
        return self.data

    def need_unmarked(self) -> nn.Module:
        """The unmarked model. Raises `AttackError` if the attacker has none."""
        if self.unmarked is None:
            raise AttackError("this attack needs a model without a stamp", remedy="pass unmarked=")
        return self.unmarked

    def accuse(self, stamp: Stamp) -> None:
        """Claim that this stamp is in the model, read as the owner reads theirs."""
        self.claim = self.clearstamp.deposit(stamp)

    def fork_rng(self) -> AbstractContextManager[None]:
        """A context that leaves the global random generators as they were."""
        return torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else [])

    def report(self, label: str, step: int | None = None) -> None:
        """Show the model as it is now to the observer, if there is one."""
        if self.observer is not None:
            self.observer(self, label, step)


@dataclass
class Judge:
    """An observer who keeps accuracy on the `test` images and the mark, as its owner reads it, on a `trace`.

    `seconds` counts the time that all this took.
    """

    test: LabelledImages
    trace: list[Look] = field(default_factory=list)
    seconds: float = 0.0
    readers: dict[int, Callable[[nn.Module], Evidence]] = field(default_factory=dict, repr=False)

    def __call__(self, scene: Scene, label: str, step: int | None = None) -> None:
        began = time.perf_counter()
        self.trace.append(self.measure(scene, label, step, attacked=True))
        self.seconds += time.perf_counter() - began

    def measure(self, scene: Scene, label: str, step: int | None = None, *, attacked: bool = False) -> Look:
        """The model of a scene as it is now. A mark that an attacked model does not fit any more reads as nothing.

        Raises `StampError` for one that does not fit a model that was not attacked.
        """
        suspect = scene.evidence(scene.model)
        if scene.mark.owner is not None:
            suspect = scene.mark.owner(suspect, scene.graph(suspect))
        key = scene.mark.key if scene.claim is None else scene.claim
        if id(key) not in self.readers:
            self.readers[id(key)] = key.scheme.reader(key, scene.graphs)
        reached = accuracy(scene.model, scene.relabel(self.test.loader(250)))
        try:
            evidence = self.readers[id(key)](suspect)
        except StampError:
            if not attacked:
                raise
            evidence = NOTHING
        return Look(label, reached, evidence, step)


@dataclass(frozen=True, kw_only=True)
class Attack(ABC):
    """One manipulation of a marked model. Its fields are its hyper-parameters, by default those of the paper.

    A subclass implements `run`, and is found in `ATTACKS` by its name as soon as nothing of it is abstract.
    """

    name: ClassVar[str]

    def __init_subclass__(cls) -> None:
        register(cls, ATTACKS)

    @property
    def about(self) -> dict[str, Any]:
        """Name and settings, as records keep them."""
        return {"attack": self.name} | asdict(self)

    @property
    def needs_unmarked(self) -> bool:
        """Whether the attacker needs a model without a stamp."""
        return False

    @abstractmethod
    def run(self, scene: Scene) -> None:
        """Change `scene.model`, or leave it and set `scene.claim`; count optimizer steps in `scene.steps`.

        An attack whose course is of interest calls `scene.report` on the way, and once more at its end.
        """

    def apply(
        self,
        model: nn.Module,
        data: LabelledImages,
        mark: Mark | Stamp,
        *,
        test: LabelledImages | None = None,
        unmarked: nn.Module | None = None,
        readout: str = RECOMMENDED.readout,
        merge: bool = False,
        before: Look | None = None,
        graph: Graph | None = None,
        seed: int = 0,
    ) -> Outcome:
        """Attack a copy of `model`; the model itself stays as it is.

        `data` are the attacker's images, `test` those on which accuracy is measured (`data` for None). `mark` is what
        the owner embedded, by any scheme; a stamp is read in `readout`, and with `merge` from what
        `clearstamp.units.canonical.merged` makes of the suspect. For the next attack on the same model, `before` saves
        measuring it again, and `graph`, from `clearstamp.transposed.graph.capture`, capturing it. Raises `AttackError`
        for data that do not fit, and if the attack does not fit the model or the mark.
        """
        test, mark = data if test is None else test, as_mark(mark, readout, merge=merge)
        for images in (data, test):
            if images.shape != mark.key.shape:
                raise AttackError(
                    "the attacker's data do not fit the model",
                    got=f"images {images.shape}",
                    expected=f"images {mark.key.shape}",
                )
        judge = Judge(test)
        about: dict[str, Any] = {"unmarked": unmarked, "seed": seed, "graph": graph}
        scene = Scene(copy.deepcopy(model), data, mark, observer=judge, **about)
        with scene.fork_rng():
            before = judge.measure(scene, "before") if before is None else before
            torch.manual_seed(seed)
            began = time.perf_counter()
            self.run(scene)
            seconds = time.perf_counter() - began - judge.seconds
            if not judge.trace:
                scene.report("after")
        trace = tuple(judge.trace)
        return Outcome(
            attack=self.name,
            parameters=asdict(self),
            before=before,
            trace=trace,
            steps=scene.steps,
            seconds=seconds,
            attacked=scene.attacked,
            model=scene.model,
            claim=scene.claim,
        )


ATTACKS: dict[str, type[Attack]] = {}
"""Every attack by its name."""


def check(allowed: bool, problem: str, got: object, expected: str) -> None:
    """Raise `AttackError` unless `allowed`."""
    if not allowed:
        raise AttackError(problem, got=got, expected=expected)


def as_mark(mark: Mark | Stamp, readout: str, *, merge: bool = False) -> Mark:
    """A mark as it is; of a stamp the mark that is read in a readout, after merging units where `merge` says so."""
    return (
        mark if isinstance(mark, Mark) else Mark(ClearStamp(readout=readout).deposit(mark), merged if merge else None)
    )
