"""How a stamp is embedded: when training steps on it, and the settings that belong together."""

import math
from dataclasses import dataclass

from clearstamp.errors import TrainingError


@dataclass(frozen=True)
class Joint:
    """The stamp loss, times `weight`, is added to the task loss of every `every`-th batch; one optimizer takes both.

    Raises `TrainingError` unless `every` is at least 1 and `weight` is positive and finite.
    """

    every: int = 3
    weight: float = 1.0

    def __post_init__(self) -> None:
        if self.every < 1 or not 0 < self.weight < math.inf:
            raise TrainingError("schedule out of range", got=self, expected="every >= 1, a finite weight > 0")


@dataclass(frozen=True)
class Alternating:
    """A step on the stamp loss alone follows the task step of every `every`-th batch, as in the paper.

    It has an optimizer of its own, with the learning rate `lr` (None for that of the task). Raises `TrainingError`
    unless `every` is at least 1 and `lr` is positive and finite.
    """

    every: int = 1
    lr: float | None = None

    def __post_init__(self) -> None:
        if self.every < 1 or (self.lr is not None and not 0 < self.lr < math.inf):
            raise TrainingError("schedule out of range", got=self, expected="every >= 1, a finite lr > 0 or None")


Schedule = Joint | Alternating


@dataclass(frozen=True)
class Method:
    """The settings of `transpose`, `harden`, `StampLoss` and `fit` that make up a way to embed a stamp.

    Attributes:
        readout: of `transpose`.
        dropout: the rate, in hardening and in every stamp step.
        steps: of hardening, at most.
        target: the mean SSIM at which hardening stops; None takes all its steps.
        schedule: when and how constraint training steps on the stamp.
        noise: on the weights, in constraint training (see `StampLoss`).
    """

    readout: str
    dropout: float
    steps: int
    target: float | None
    schedule: Schedule
    noise: float = 0.0


RECOMMENDED = Method(readout="adjoint", dropout=0.3, steps=10_000, target=0.95, schedule=Joint())
"""The defaults of this library; the book's chapter on runtime has the table by which they were chosen."""
PAPER = Method(readout="paper", dropout=0.5, steps=10_000, target=None, schedule=Alternating())
"""The published method. The paper does not give its rate of dropout; 0.5 fits its default network best."""
EXACT = Method(readout="gradient", dropout=0.0, steps=10_000, target=0.95, schedule=Joint(every=1), noise=0.01)
"""What suits the exact readout; the book's chapter on it has its records."""
