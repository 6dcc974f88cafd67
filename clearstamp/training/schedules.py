"""Schedules of constraint training: when, and how, a training steps on the stamp.

A schedule is a frozen setting; `Schedule.begin` makes of it the `Turns` of one training, which may have a state.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor

from clearstamp.errors import TrainingError
from clearstamp.training.steps import Descent

StampTerm = Callable[[], Tensor]
"""The loss of a stamp, as a scalar; see `StampLoss`."""


@dataclass(frozen=True)
class Schedule(ABC):
    """When and how constraint training steps on the stamp: `Joint`, `Alternating`, `AugmentedLagrangian` or `ADMM`."""

    @abstractmethod
    def begin(self, descent: Descent, stamp_loss: StampTerm) -> "Turns":
        """What is done at each batch of one training."""

    def expect(self, expected: str, fits: bool) -> None:
        """Raise `TrainingError` unless the settings fit."""
        if not fits:
            raise TrainingError("schedule out of range", got=self, expected=expected)


S = TypeVar("S", bound=Schedule)


class Turns(ABC):
    """What is done at each batch: at least a step on the task. `kept` names what it keeps from batch to batch."""

    kept: ClassVar[tuple[str, ...]] = ()

    def __init__(self, descent: Descent):
        self.descent = descent

    @abstractmethod
    def take(self, loss: Tensor) -> None:
        """Step down the task loss of one batch, and on the stamp if it is its turn."""

    def state_dict(self) -> dict[str, Any]:
        """What is kept, beside weights and optimizers."""
        return {name: getattr(self, name) for name in self.kept}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        for name in self.kept:
            setattr(self, name, state[name])


class TaskAlone(Turns):
    """Training without a stamp."""

    def take(self, loss: Tensor) -> None:
        self.descent.step(self.descent.task, loss)


class StampTurns(Turns, Generic[S]):
    """The turns of a schedule of the kind `S`."""

    def __init__(self, schedule: S, descent: Descent, stamp_loss: StampTerm):
        super().__init__(descent)
        self.schedule, self.stamp_loss = schedule, stamp_loss

    def stamp(self) -> Tensor:
        """The stamp loss, which is kept."""
        return self.descent.losses.keep("stamp loss", self.stamp_loss())

    def due(self, every: int) -> bool:
        """Whether this is an `every`-th batch of the training."""
        return self.descent.batches % every == 0


@dataclass(frozen=True)
class Joint(Schedule):
    """The stamp loss, times `weight`, is added to the task loss of every `every`-th batch; one optimizer takes both.

    With ``every=1`` it is the weighted sum of the paper's Appendix 7.4. Raises `TrainingError` unless `every` is at
    least 1 and `weight` is positive and finite.
    """

    every: int = 3
    weight: float = 1.0

    def __post_init__(self) -> None:
        self.expect("every >= 1, a finite weight > 0", self.every >= 1 and 0 < self.weight < math.inf)

    def begin(self, descent: Descent, stamp_loss: StampTerm) -> Turns:
        return JointTurns(self, descent, stamp_loss)


class JointTurns(StampTurns[Joint]):
    """One optimizer down the sum."""

    def take(self, loss: Tensor) -> None:
        if self.due(self.schedule.every):
            loss = loss + self.schedule.weight * self.stamp()
        self.descent.step(self.descent.task, loss)


@dataclass(frozen=True)
class Alternating(Schedule):
    """A step on the stamp loss alone follows the task step of every `every`-th batch, as in the paper.

    It has an optimizer of its own, with the learning rate `lr` (None for that of the task). Raises `TrainingError`
    unless `every` is at least 1 and `lr` is positive and finite.
    """

    every: int = 1
    lr: float | None = None

    def __post_init__(self) -> None:
        fits = self.every >= 1 and (self.lr is None or 0 < self.lr < math.inf)
        self.expect("every >= 1, a finite lr > 0 or None", fits)

    def begin(self, descent: Descent, stamp_loss: StampTerm) -> Turns:
        return AlternatingTurns(self, descent, stamp_loss)


class AlternatingTurns(StampTurns[Alternating]):
    """Two optimizers, in turn."""

    def __init__(self, schedule: Alternating, descent: Descent, stamp_loss: StampTerm):
        super().__init__(schedule, descent, stamp_loss)
        self.optimizer = descent.another(schedule.lr)

    def take(self, loss: Tensor) -> None:
        self.descent.step(self.descent.task, loss)
        if self.due(self.schedule.every):
            self.descent.step(self.optimizer, self.stamp())


@dataclass(frozen=True)
class AugmentedLagrangian(Schedule):
    """The least task loss at which the stamp loss is at most `limit` (1 - SSIM, about): the paper's Appendix 7.4.

    With the constraint c = stamp loss - `limit`, every batch steps down task loss + (max(0, mu + rho c)^2 - mu^2) /
    (2 rho). After every `period` batches the multiplier mu becomes max(0, mu + rho c) for their mean c, and `rho`
    doubles, up to `most`, unless c has halved. The paper proposes the method without numbers: these are this library's
    choice. Raises `TrainingError` unless `limit` and `rho` are positive, `most` at least `rho`, `period` at least 1.
    """

    limit: float = 0.05
    rho: float = 1.0
    most: float = 1e3
    period: int = 50

    def __post_init__(self) -> None:
        fits = 0 < self.limit < math.inf and 0 < self.rho <= self.most < math.inf and self.period >= 1
        self.expect("limit > 0, 0 < rho <= most, all finite, period >= 1", fits)

    def begin(self, descent: Descent, stamp_loss: StampTerm) -> Turns:
        return LagrangianTurns(self, descent, stamp_loss)


class LagrangianTurns(StampTurns[AugmentedLagrangian]):
    """One optimizer down the augmented Lagrangian, whose multiplier and penalty follow the constraint."""

    kept = ("mu", "rho", "before", "sum")

    def __init__(self, schedule: AugmentedLagrangian, descent: Descent, stamp_loss: StampTerm):
        super().__init__(schedule, descent, stamp_loss)
        self.mu, self.rho, self.before = 0.0, schedule.rho, math.inf
        self.sum = descent.weights[0].new_zeros(())
        """Of the constraint, over the period so far: on the device, so that nothing waits for it."""

    def take(self, loss: Tensor) -> None:
        excess = self.stamp() - self.schedule.limit
        penalty = (self.mu + self.rho * excess).clamp(min=0).square() - self.mu**2
        self.descent.step(self.descent.task, loss + penalty / (2 * self.rho))
        self.sum = self.sum + excess.detach().to(self.sum)
        if self.due(self.schedule.period):
            self.adapt(self.sum.item() / self.schedule.period)

    def adapt(self, mean: float) -> None:
        """Move multiplier and penalty by the mean excess of a period."""
        self.mu = max(0.0, self.mu + self.rho * mean)
        if mean > self.before / 2:
            self.rho = min(2 * self.rho, self.schedule.most)
        self.before, self.sum = mean, torch.zeros_like(self.sum)


@dataclass(frozen=True)
class ADMM(Schedule):
    """Two sets of weights that are drawn to each other, one for the task and one for the stamp: Appendix 7.4.

    The alternating direction method of multipliers: after every `period` batches, on which theta steps down the task
    loss + rho / 2 times the square of theta - z + u, as many steps take z down the stamp loss + the same term, and u
    grows by theta - z. Each has an optimizer of its own. The model holds theta; z and u take the memory of two more
    models. The paper proposes the method without numbers: these are this library's choice. Raises `TrainingError`
    unless `rho` is positive and finite and `period` at least 1.
    """

    rho: float = 0.1
    period: int = 50

    def __post_init__(self) -> None:
        self.expect("a finite rho > 0, period >= 1", 0 < self.rho < math.inf and self.period >= 1)

    def begin(self, descent: Descent, stamp_loss: StampTerm) -> Turns:
        return ConsensusTurns(self, descent, stamp_loss)


class ConsensusTurns(StampTurns[ADMM]):
    """Two optimizers, for periods in turn, each on its own weights.

    Attributes:
        other: z while the model holds theta, and theta while the model holds z.
        gap: u, what theta - z has added up to.
    """

    kept = ("other", "gap")

    def __init__(self, schedule: ADMM, descent: Descent, stamp_loss: StampTerm):
        super().__init__(schedule, descent, stamp_loss)
        self.optimizer = descent.another()
        self.other = [weight.detach().clone() for weight in descent.weights]
        self.gap = [torch.zeros_like(weight) for weight in self.other]

    def take(self, loss: Tensor) -> None:
        self.descent.step(self.descent.task, loss + self.pull(1))
        if self.due(self.schedule.period):
            self.exchange()
            for _ in range(self.schedule.period):
                self.descent.step(self.optimizer, self.stamp() + self.pull(-1))
            self.exchange()
            with torch.no_grad():
                for gap, weight, other in zip(self.gap, self.descent.weights, self.other, strict=True):
                    gap += weight - other

    def pull(self, sign: int) -> Tensor:
        """rho/2 |theta - z + u|^2, with `sign` 1 while the model holds theta and -1 while it holds z."""
        apart = zip(self.descent.weights, self.other, self.gap, strict=True)
        squares = [(weight - other + sign * gap).square().sum() for weight, other, gap in apart]
        return self.schedule.rho / 2 * torch.stack(squares).sum()

    @torch.no_grad()
    def exchange(self) -> None:
        """Put theta in the place of z, and z in that of theta."""
        for weight, other in zip(self.descent.weights, self.other, strict=True):
            kept = weight.clone()
            weight.copy_(other)
            other.copy_(kept)
