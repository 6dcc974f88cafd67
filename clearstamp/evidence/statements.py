"""Statements of an owner's, signed to be dated: the commitment to a seal, and the deposit of the trained model."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from torch import nn

from clearstamp.evidence.seal import Seal
from clearstamp.evidence.signing import Signer
from clearstamp.evidence.verdict import Verdict


@dataclass(frozen=True, repr=False)
class Statement:
    """A statement as it was signed and, where that was done, dated.

    Attributes:
        content: JSON, for people to read; the very bytes are signed and dated.
        signature: Ed25519.
        token: the time-stamp (RFC 3161), or None.
        calendar: a proof of OpenTimestamps, carried along and never checked here, or None.
    """

    content: bytes
    signature: bytes
    token: bytes | None = None
    calendar: bytes | None = None

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """The statement in a file, with ``.sig``, ``.tsr`` and ``.ots`` beside it. Raises `EvidenceError`."""
        raise NotImplementedError

    def save(self, path: str | Path) -> None:
        """Write the file and what belongs beside it."""
        raise NotImplementedError


def commit(seal: Seal, signer: Signer) -> Statement:
    """The commitment to a seal: a hash, and the fingerprint of the owner's key. It may be published."""
    raise NotImplementedError


def deposit(seal: Seal, model: nn.Module, verdict: Verdict, signer: Signer) -> Statement:
    """What is deposited after training: the digest of the model's tensors, the commitment, a reading in numbers.

    `verdict` is that of `clearstamp.verify` on the owner's own model. It tells no secret and may be published.
    """
    raise NotImplementedError


def tensor_digest(model: nn.Module) -> str:
    """SHA-256 over name, shape, type and values of a model's tensors, in the order of their names.

    Floating-point numbers count in float32, as a suspect's are read. In hexadecimal.
    """
    raise NotImplementedError


def statement_fields(content: bytes, kind: str) -> dict[str, Any]:
    """The fields of a statement ``"commitment"`` or ``"deposit"``. Raises `SealError` for unknown or missing ones."""
    raise NotImplementedError
