"""What a judge checks, without the owner and without a network: each check by itself, and the verdict anew."""

from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from pathlib import Path
from typing import Any

from torch import nn

from clearstamp.evidence.seal import BAR
from clearstamp.evidence.verdict import Verdict


class Mark(StrEnum):
    """What became of a check."""

    PASS = "PASS"
    FAILED = "FAILED"
    UNCHECKED = "UNCHECKED"
    STATED = "STATED"


@dataclass(frozen=True)
class Check:
    """One check: its name, what became of it, and a sentence."""

    name: str
    mark: Mark
    sentence: str


@dataclass(frozen=True)
class Result:
    """All checks, and the verdict on the pictures as they are in the folder; None if it could not be had."""

    checks: tuple[Check, ...]
    verdict: Verdict | None

    @property
    def exit_code(self) -> int:
        """0 for a match with every check passed, 1 for no match or a weak one, 3 for a failure, 4 for a gap."""
        raise NotImplementedError

    def __str__(self) -> str:
        raise NotImplementedError

    def as_json(self) -> dict[str, Any]:
        """Every check and the verdict in numbers, for programs."""
        raise NotImplementedError


def verify_evidence(
    path: str | Path,
    *,
    owner: bytes | None = None,
    roots: bytes | None = None,
    suspect: str | Path | None = None,
    architecture: nn.Module | Callable[[str], nn.Module] | None = None,
    alpha: Decimal = Decimal(2) ** -BAR,
) -> Result:
    """Check an evidence folder, or a zip of one; never raises for what is in it.

    `owner` is the owner's public key in PEM and `roots` the certificates of time-stamp authorities in PEM, both as
    the verifier has them from elsewhere. `suspect` is the suspect's file, to be read again into `architecture`: a
    model, or what makes one of the text by which the evidence names it. A match needs a p of at most `alpha`, whatever
    the owner's own bar.
    """
    raise NotImplementedError
