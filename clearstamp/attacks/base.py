"""The contract of every attack: it works on a copy, and the judge measures before and after."""

import copy
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

import torch
from torch import nn

from clearstamp.data import LabelledImages
from clearstamp.errors import AttackError
from clearstamp.method import RECOMMENDED
from clearstamp.reading import Reading, read
from clearstamp.stamp import Stamp
from clearstamp.training import accuracy
from clearstamp.transpose import transpose
from clearstamp.units import merge_equal_units


@dataclass(frozen=True)
class Look:
    """What is left of a model at one moment: accuracy on the test images, and the stamp as its owner reads it."""

    label: str
    accuracy: float
    reading: Reading
    step: int | None = None
    """The epochs or optimizer steps so far; None before the attack and at its end."""


@dataclass(frozen=True)
class Outcome:
    """What an attack did.

    Attributes:
        attack: its name.
        parameters: its hyper-parameters.
        before: the model that it was given.
        trace: the model on the way, and last what came of it; just that for an attack in one stroke.
        steps: optimizer steps that the attacker paid.
        seconds: wall time of the attack without the looks.
        attacked: the positions in the stamp of the keys that the attacker knew.
        model: what the attacker ends with.
    """

    attack: str
    parameters: dict[str, Any]
    before: Look
    trace: tuple[Look, ...]
    steps: int
    seconds: float
    attacked: tuple[int, ...]
    model: nn.Module = field(repr=False, compare=False)

    @property
    def after(self) -> Look:
        """What came of the model."""
        return self.trace[-1]


class Scene:
    """What an attacker has at hand, and the judge who looks on.

    Attributes:
        model: a copy of the marked model; the attacker changes it, or puts another in its place.
        data: the attacker's images.
        stamp: the owner's stamp. Only attacks that say so know (a part of) it.
        unmarked: a model without a stamp, for the attacks that need one.
        seed: for everything that the attacker draws.
        readout: which of the two the owner reads with.
        merge: does the owner merge equal units first?
        test: the images on which accuracy is measured; an attacker who changes the task changes their labels.
        evidence: the model that the owner reads, made from the attacker's; the very same unless an attack says so.
        steps: optimizer steps so far.
        attacked: the positions of the keys that the attacker knew.
    """

    def __init__(
        self,
        model: nn.Module,
        data: LabelledImages,
        test: LabelledImages,
        stamp: Stamp,
        unmarked: nn.Module | None,
        readout: str,
        merge: bool,
        seed: int,
    ):
        self.model, self.data, self.test, self.stamp, self.unmarked = model, data, test, stamp, unmarked
        self.readout, self.merge, self.seed = readout, merge, seed
        self.evidence: Callable[[nn.Module], nn.Module] = lambda suspect: suspect
        self.steps = 0
        self.attacked: tuple[int, ...] = ()
        self.trace: list[Look] = []
        self.looking = 0.0

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    @property
    def example(self) -> torch.Tensor:
        """One blank input batch for the model."""
        return torch.zeros(1, *self.data.shape, device=self.device)

    def need_unmarked(self) -> nn.Module:
        """The unmarked model. Raises `AttackError` if the attacker has none."""
        if self.unmarked is None:
            raise AttackError("this attack needs a model without a stamp", remedy="pass unmarked=")
        return self.unmarked

    def look(self, label: str, step: int | None = None) -> Look:
        """Measure the model as it is now and keep that on the trace."""
        began = time.perf_counter()
        evidence = self.evidence(self.model)
        if self.merge:
            evidence = merge_equal_units(evidence, self.example)
        back = transpose(evidence, self.example, readout=self.readout, frozen=self.stamp.frozen)
        found = Look(label, accuracy(self.model, self.test.loader(250)), read(back, self.stamp), step)
        self.trace.append(found)
        self.looking += time.perf_counter() - began
        return found


@dataclass(frozen=True, kw_only=True)
class Attack(ABC):
    """One manipulation of a marked model. Its fields are its hyper-parameters, the paper's values their defaults.

    A subclass is an attack: it says in `run` what the attacker does, and is found in `ATTACKS` by its name.
    """

    name: ClassVar[str]

    def __init_subclass__(cls) -> None:
        if "run" in vars(cls):
            cls.name = re.sub(r"(?<!^)(?=[A-Z])", "-", cls.__name__).lower()
            ATTACKS[cls.name] = cls

    @property
    def needs_unmarked(self) -> bool:
        """Does the attacker need a model without a stamp?"""
        return False

    @abstractmethod
    def run(self, scene: Scene) -> None:
        """Change `scene.model`, and count optimizer steps in `scene.steps`.

        Where the way is of interest, `scene.look` on it, and once more at its end.
        """

    def apply(
        self,
        model: nn.Module,
        data: LabelledImages,
        stamp: Stamp,
        *,
        test: LabelledImages | None = None,
        unmarked: nn.Module | None = None,
        readout: str = RECOMMENDED.readout,
        merge: bool = False,
        before: Look | None = None,
        seed: int = 0,
    ) -> Outcome:
        """Attack a copy of `model`; the model itself stays as it is.

        `data` are the attacker's images, `test` those on which accuracy is measured (`data` for None). With `merge` the
        owner reads the stamp from the model that `merge_equal_units` makes of the suspect. `before` saves a look at
        the model if one was taken already. Raises `AttackError` for data that do not fit, and if the attack does not
        fit the model.
        """
        test = data if test is None else test
        for images in (data, test):
            if images.shape != tuple(stamp.secrets.shape[1:]):
                raise AttackError(
                    "the attacker's data do not fit the model",
                    got=f"images {images.shape}",
                    expected=f"images {tuple(stamp.secrets.shape[1:])}",
                )
        scene = Scene(copy.deepcopy(model), data, test, stamp, unmarked, readout, merge, seed)
        with torch.random.fork_rng(devices=[scene.device] if scene.device.type == "cuda" else []):
            before = scene.look("before") if before is None else before
            scene.trace.clear()
            torch.manual_seed(seed)
            began, scene.looking = time.perf_counter(), 0.0
            self.run(scene)
            seconds = time.perf_counter() - began - scene.looking
            if not scene.trace:
                scene.look("after")
        trace = tuple(scene.trace)
        return Outcome(self.name, asdict(self), before, trace, scene.steps, seconds, scene.attacked, scene.model)


ATTACKS: dict[str, type[Attack]] = {}
"""Every attack by its name."""


def check(allowed: bool, problem: str, got: object, expected: str) -> None:
    """Raise `AttackError` unless `allowed`."""
    if not allowed:
        raise AttackError(problem, got=got, expected=expected)
