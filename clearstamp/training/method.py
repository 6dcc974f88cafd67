"""How a stamp is embedded: the settings that belong together."""

from dataclasses import dataclass

from clearstamp.training.schedules import Alternating, Joint, Schedule


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
