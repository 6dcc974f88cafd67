"""ClearStamp: prove by eye who owns a neural network.

A secret key goes in at a network's output end, a readable image comes out at its input end. See `Stamp`, `transpose`,
`harden`, `fit` with a `StampLoss`, `extract`, `develop` and `similarity`, in the order in which an owner needs them.
"""

from clearstamp.data import Data
from clearstamp.errors import ClearStampError
from clearstamp.explore import explore
from clearstamp.scores import correlation, develop, similarity
from clearstamp.stamp import PAPER_KEY, Stamp
from clearstamp.training import SampledLoss, Stamped, StampLoss, accuracy, fit, harden
from clearstamp.transpose import Transposed, freeze, public_probe, transpose
from clearstamp.units import merge_equal_units
from clearstamp.verification import Reading, Recovered, extract, read, read_bytes

__all__ = [
    "PAPER_KEY",
    "ClearStampError",
    "Data",
    "Reading",
    "Recovered",
    "SampledLoss",
    "Stamp",
    "StampLoss",
    "Stamped",
    "Transposed",
    "accuracy",
    "correlation",
    "develop",
    "explore",
    "extract",
    "fit",
    "freeze",
    "harden",
    "merge_equal_units",
    "public_probe",
    "read",
    "read_bytes",
    "similarity",
    "transpose",
]
