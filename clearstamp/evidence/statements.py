"""Statements of an owner's, signed to be dated: the commitment to a seal, and the deposit of the trained model."""

import json
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Self

from torch import nn

from clearstamp.errors import EvidenceError
from clearstamp.evidence import chance
from clearstamp.evidence.seal import Seal, strict_json
from clearstamp.evidence.signing import Signer, fingerprint
from clearstamp.evidence.verdict import Verdict
from clearstamp.files import checksum, write_atomically
from clearstamp.suspects import COUNTER
from clearstamp.transposed.graph import unwrapped

BESIDE = {"signature": ".sig", "token": ".tsr", "calendar": ".ots"}
"""How the names of the files end that lie beside a statement."""


FIELDS: dict[str, dict[str, type]] = {
    "commitment": {"commitment": str, "owner": str},
    "deposit": {"commitment": str, "owner": str, "model": str, "reading": dict},
}
"""What each kind of statement says."""


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
        beside = {name: Path(f"{path}{ending}") for name, ending in BESIDE.items()}
        try:
            held = {name: file.read_bytes() for name, file in beside.items() if file.is_file()}
            return cls(Path(path).read_bytes(), **held)
        except OSError as error:
            raise EvidenceError("no statement there", got=error) from error
        except TypeError as error:
            raise EvidenceError("a statement without a signature", expected=beside["signature"]) from error

    def save(self, path: str | Path) -> None:
        """Write the file and what belongs beside it."""
        for ending, content in self.files().items():
            write_atomically(Path(f"{path}{ending}"), content)

    def files(self) -> dict[str, bytes]:
        """What is written, by how the names of the files end."""
        beside = {ending: getattr(self, name) for name, ending in BESIDE.items()}
        return {"": self.content} | {ending: content for ending, content in beside.items() if content is not None}


def commit(seal: Seal, signer: Signer) -> Statement:
    """The commitment to a seal: a hash, and the fingerprint of the owner's key. It may be published."""
    return stated("commitment", signer, commitment=seal.commitment)


def deposit(seal: Seal, model: nn.Module, verdict: Verdict, signer: Signer) -> Statement:
    """What is deposited after training: the digest of the model's tensors, the commitment, a reading in numbers.

    `verdict` is that of `clearstamp.verify` on the owner's own model. It tells no secret and may be published.
    """
    return stated(
        "deposit", signer, commitment=seal.commitment, model=tensor_digest(model), reading=in_numbers(verdict)
    )


def stated(kind: str, signer: Signer, **said: Any) -> Statement:
    """A statement of a kind, signed."""
    fields = {"type": f"clearstamp/{kind}/1"} | said | {"owner": fingerprint(signer.public)}
    content = json.dumps(fields, indent=1).encode() + b"\n"
    return Statement(content, signer.sign(content))


def statement_fields(content: bytes, kind: str) -> dict[str, Any]:
    """The fields of a statement ``"commitment"`` or ``"deposit"``. Raises `SealError` or `EvidenceError` for others."""
    return checked(strict_json(content, f"clearstamp/{kind}/1"), FIELDS[kind], kind)


def checked(held: dict[str, Any], expected: dict[str, type], where: str) -> dict[str, Any]:
    """The fields, if they are exactly those expected, each of its type. Raises `EvidenceError` if not."""
    wrong = [*(held.keys() ^ expected.keys())]
    wrong += [name for name, kind in expected.items() if name in held and type(held[name]) is not kind]
    if wrong:
        got = ", ".join(map(ascii, sorted(wrong)))
        raise EvidenceError("fields that are unknown, missing or of another type", got=got, where=where)
    return held


def in_numbers(verdict: Verdict) -> dict[str, Any]:
    """A verdict without its pictures and scores."""
    return {
        "outcome": verdict.outcome.value,
        "p": shown(verdict.p),
        "test": verdict.test,
        "right": verdict.right,
        "of": verdict.of,
        "attempt": verdict.attempt,
        "tries": verdict.tries,
        "legible": verdict.legible,
        "correlation": round(verdict.correlation, 3),
    }


def shown(p: Decimal) -> str:
    """p to six digits, rounded up, which is the same on every machine where floating point has a part in it."""
    return str(chance.told(p, 6))


def tensor_digest(model: nn.Module) -> str:
    """SHA-256 over name, shape, type and values of a model's tensors, in the order of their names.

    Floating-point numbers count in float32, as a suspect's are read; batch norms' counters do not. In hexadecimal.
    """
    held = {name: value for name, value in unwrapped(model).state_dict().items() if not name.endswith(COUNTER)}
    return checksum((), {name: value.float() if value.is_floating_point() else value for name, value in held.items()})
