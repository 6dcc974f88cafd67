"""Watermarks of the field behind one contract: see `Scheme` and `SCHEMES`."""

from clearstamp.schemes.base import SCHEMES, Evidence, Judgement, Key, Mark, Scheme
from clearstamp.schemes.gradsigns import GradSigns, WhiteBoxGradSigns
from clearstamp.schemes.stamps import ClearStamp
from clearstamp.schemes.uchida import Uchida

__all__ = [
    "SCHEMES",
    "ClearStamp",
    "Evidence",
    "GradSigns",
    "Judgement",
    "Key",
    "Mark",
    "Scheme",
    "Uchida",
    "WhiteBoxGradSigns",
]
