"""Every manipulation of a marked model behind one contract: see `Attack` and `ATTACKS`."""

from clearstamp.attacks.adaptive import Erasure, Overwriting
from clearstamp.attacks.base import ATTACKS, Attack, Judge, Look, Outcome, Scene
from clearstamp.attacks.forgery import FalseClaim, Forgery
from clearstamp.attacks.interface import QueryNoise, Sanitizer, ScorePerturbation, ScoreRounding
from clearstamp.attacks.marks import CounterClaim, Evasion, FeatureEvasion, SecondMark, Unlearning
from clearstamp.attacks.preserving import (
    BatchNormRescaling,
    Composed,
    DummyUnits,
    LogitShift,
    MimicUnits,
    NormInputRescaling,
    Permutation,
    Rescaling,
    SilentUnits,
    SplitUnits,
)
from clearstamp.attacks.training import AdversarialTuning, Averaging, Distillation, DropClass, FineTuning, Transfer
from clearstamp.attacks.weights import Cast, FinePruning, Noise, Pruning, Quantization

__all__ = [
    "ATTACKS",
    "AdversarialTuning",
    "Attack",
    "Averaging",
    "BatchNormRescaling",
    "Cast",
    "Composed",
    "CounterClaim",
    "Distillation",
    "DropClass",
    "DummyUnits",
    "Erasure",
    "Evasion",
    "FalseClaim",
    "FeatureEvasion",
    "FinePruning",
    "FineTuning",
    "Forgery",
    "Judge",
    "LogitShift",
    "Look",
    "MimicUnits",
    "Noise",
    "NormInputRescaling",
    "Outcome",
    "Overwriting",
    "Permutation",
    "Pruning",
    "Quantization",
    "QueryNoise",
    "Rescaling",
    "Sanitizer",
    "Scene",
    "SecondMark",
    "ScorePerturbation",
    "ScoreRounding",
    "SilentUnits",
    "SplitUnits",
    "Transfer",
    "Unlearning",
]
