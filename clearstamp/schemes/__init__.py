"""Watermarks of the field behind one contract: see `Scheme` and `SCHEMES`."""

from clearstamp.schemes.activations import ActivationSigns
from clearstamp.schemes.base import SCHEMES, Evidence, Judgement, Key, Mark, Scheme
from clearstamp.schemes.deepsigns import DeepSigns
from clearstamp.schemes.gradsigns import GradSigns, WhiteBoxGradSigns
from clearstamp.schemes.li import Li
from clearstamp.schemes.neunac import NeuNAC
from clearstamp.schemes.stamps import ClearStamp
from clearstamp.schemes.tartaglione import Tartaglione
from clearstamp.schemes.triggers import Adi, FrontierStitching, SpecialLabel, Zhang
from clearstamp.schemes.uchida import Uchida
from clearstamp.schemes.watermas import WaterMAS

__all__ = [
    "SCHEMES",
    "ActivationSigns",
    "Adi",
    "ClearStamp",
    "DeepSigns",
    "Evidence",
    "FrontierStitching",
    "GradSigns",
    "Judgement",
    "Key",
    "Li",
    "Mark",
    "NeuNAC",
    "Scheme",
    "SpecialLabel",
    "Tartaglione",
    "Uchida",
    "WaterMAS",
    "WhiteBoxGradSigns",
    "Zhang",
]
