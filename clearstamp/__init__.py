"""ClearStamp: prove by eye who owns a neural network.

A secret key goes in at a network's output, and a readable image comes out at its input. An owner makes a `Stamp`,
embeds it with `embed`, or step by step with `transpose`, `harden` and `fit` with a `StampLoss`, and shows it with
`extract` and `develop`.
"""

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from clearstamp.data import Data
from clearstamp.errors import ClearStampError
from clearstamp.evidence import Seal, Verdict, verify
from clearstamp.pictures import develop
from clearstamp.reading import Reading, Recovered, extract, read, read_bytes
from clearstamp.scores import correlation, similarity
from clearstamp.stamp import PAPER_KEY, Stamp
from clearstamp.suspects import Suspect, load_suspect
from clearstamp.training.loops import accuracy, embed, fit, harden
from clearstamp.training.losses import Stamped, StampLoss
from clearstamp.training.method import EXACT, PAPER, RECOMMENDED, Method
from clearstamp.training.schedules import ADMM, Alternating, AugmentedLagrangian, Joint, Schedule
from clearstamp.transpose import freeze, transpose
from clearstamp.transposed.base import Transposed, public_probe
from clearstamp.transposed.graph import Tap
from clearstamp.transposed.queries import read_by_queries
from clearstamp.transposed.rules import register_vjp_rule
from clearstamp.units.align import align_units
from clearstamp.units.canonical import canonical_form

if TYPE_CHECKING:
    from clearstamp.explorer import explore

__all__ = [
    "EXACT",
    "ADMM",
    "PAPER",
    "PAPER_KEY",
    "RECOMMENDED",
    "Alternating",
    "AugmentedLagrangian",
    "ClearStampError",
    "Data",
    "Joint",
    "Method",
    "Reading",
    "Recovered",
    "Schedule",
    "Seal",
    "Stamp",
    "StampLoss",
    "Stamped",
    "Suspect",
    "Tap",
    "Transposed",
    "Verdict",
    "accuracy",
    "align_units",
    "canonical_form",
    "correlation",
    "develop",
    "embed",
    "explore",
    "extract",
    "fit",
    "freeze",
    "harden",
    "load_suspect",
    "public_probe",
    "read",
    "read_by_queries",
    "read_bytes",
    "register_vjp_rule",
    "similarity",
    "transpose",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return version("clearstamp")  # the installed one, which is that of pyproject.toml
    if name == "explore":
        from clearstamp.explorer import explore  # its sliders need ipywidgets

        return explore
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
