"""Watermarks of the field behind one contract: see `Scheme` and `SCHEMES`."""

from clearstamp.schemes.base import SCHEMES, Evidence, Judgement, Key, Mark, Scheme
from clearstamp.schemes.li import Li
from clearstamp.schemes.neunac import NeuNAC
from clearstamp.schemes.stamps import ClearStamp
from clearstamp.schemes.tartaglione import Tartaglione
from clearstamp.schemes.triggers import Adi, FrontierStitching, SpecialLabel, Zhang
from clearstamp.schemes.uchida import Uchida
from clearstamp.schemes.watermas import WaterMAS

__all__ = [
    "SCHEMES",
    "Adi",
    "ClearStamp",
    "Evidence",
    "FrontierStitching",
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
    "Zhang",
]
