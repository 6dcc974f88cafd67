"""The evidence folder: what lies in it, written and read strictly. A zip is for transport only."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from clearstamp.evidence.readers import Pixels
from clearstamp.evidence.seal import Seal
from clearstamp.evidence.statements import Statement


@dataclass(frozen=True, repr=False)
class Evidence:
    """An evidence folder in memory: the bytes of every member by its name, so that nothing changes once it is checked.

    The properties raise `EvidenceError` or `SealError` for members that are not what they should be.
    """

    members: Mapping[str, bytes]

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """A folder or a zip, whole. Raises `EvidenceError` for links, for names that are not evidence's, and for size.

        Nothing is said about who made it: that is for `verify_evidence`.
        """
        raise NotImplementedError

    def write(self, path: str | Path) -> None:
        """As a new folder. Raises `EvidenceError` if there is one that holds anything."""
        raise NotImplementedError

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """What was signed: verdict, p, and the hash of all hashes."""
        raise NotImplementedError

    @cached_property
    def suspect(self) -> dict[str, Any]:
        """Which file was examined, how it was read, and what is said of where it came from.

        ``["architecture"]`` is the text that names the architecture.
        """
        raise NotImplementedError

    @cached_property
    def reading(self) -> dict[str, Any]:
        """Scores, letters read and drawn, hits."""
        raise NotImplementedError

    @cached_property
    def seal(self) -> Seal:
        """The opened seal."""
        raise NotImplementedError

    @cached_property
    def pictures(self) -> Pixels:
        """What was read out of the suspect, ``[k, C, H, W]``: the pixels of the PNGs."""
        raise NotImplementedError

    @property
    def commitment(self) -> Statement:
        """As signed and dated at sealing."""
        raise NotImplementedError

    @property
    def deposit(self) -> Statement | None:
        """As signed and dated after training."""
        raise NotImplementedError
