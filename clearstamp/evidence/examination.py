"""Examining a suspect: reading its file, and writing the evidence."""

import json
import platform
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from torch import nn

from clearstamp.errors import EvidenceError
from clearstamp.evidence.folder import (
    KIND,
    VERSION,
    Evidence,
    opened_seal,
    read_pictures,
    reading,
    statement_files,
    sums,
    suspect_files,
)
from clearstamp.evidence.report import README, render
from clearstamp.evidence.seal import Seal, sha256
from clearstamp.evidence.signing import Signer, fingerprint, signed_by
from clearstamp.evidence.statements import Statement, in_numbers, statement_fields, tensor_digest
from clearstamp.evidence.verdict import best_reading
from clearstamp.suspects import Suspect, load_suspect

CHECK = Path(__file__).with_name("check.py").read_bytes()
"""The program of each folder that redoes draws and p."""


def examine(
    suspect: str | Path,
    seal: Seal,
    architecture: nn.Module,
    *,
    signer: Signer,
    commitment: Statement,
    deposit: Statement | None = None,
    named: str = "",
    source: str = "",
    obtained: str = "",
    searched: int = 1,
    choose: str | None = None,
    partial: bool = False,
    head_from: nn.Module | None = None,
) -> Evidence:
    """Read a suspect's file as the seal says, and make the evidence of it: `Evidence.write` writes the folder.

    `architecture` is a model of the suspect's architecture, whose weights are not used; `named` the text by which a
    verifier builds it again. `commitment` and `deposit` are what the owner signed and dated. `source` and `obtained`
    say where and when the file was found, which nobody can check. `searched` is the number of files that were looked
    at before this one was named, itself included; it multiplies p, as the number of the checkpoint's parts that fit
    does. `choose`, `partial` and `head_from` are those of `load_suspect`: with an owner's layer put back, evidence
    supports at most.

    Raises `SuspectError` for a file that is not plain tensors or does not fit, `TransposeError` for a layer that
    cannot be run backwards, `SealError` and `EvidenceError` for what does not belong together.
    """
    for kind, statement in (("commitment", commitment), ("deposit", deposit)):
        if statement is not None:
            check_own(kind, statement, seal, signer)
    listed = suspect_files(Path(suspect))
    found = load_suspect(suspect, architecture, choose=choose, partial=partial, head_from=head_from)
    model = found.model.cpu()  # one arithmetic for everybody: float32 on the CPU
    fitting = len(found.report.fitting)
    grafted = found.report.head is not None
    verdict, signals = best_reading(seal.transpose(model), seal, searched=searched * fitting, grafted=grafted)
    if not bool(signals.isfinite().all()):
        raise EvidenceError("the model reveals numbers that are not finite, which nobody can look at")
    said = {"architecture": named, "source": source, "obtained": obtained, "searched": searched}
    members = {
        **opened_seal(seal),
        **statement_files("seal/commitment.json", commitment),
        **({} if deposit is None else statement_files("deposit/deposit.json", deposit)),
        **read_pictures(signals, verdict.pictures),
        "suspect.json": as_json("suspect", about(listed, found) | {"attempt": verdict.attempt} | said),
        "reading.json": reading(seal, verdict),
        "environment.json": as_json("environment", environment()),
        "owner.pub": signer.public,
        "README.txt": README.encode(),
        "check.py": CHECK,
    }
    evidence = Evidence(members)
    members["report.html"] = render(evidence)
    members["SHA256SUMS"] = sums(members)
    numbers = in_numbers(verdict)
    signed = {
        "clearstamp": version("clearstamp"),
        "time": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "commitment": seal.commitment,
        "suspect": evidence.suspect["files"][0]["sha256"],
        **{name: numbers[name] for name in ("outcome", "p", "test", "right", "of", "tries")},
        "sums": sha256(members["SHA256SUMS"]),
    }
    members["manifest.json"] = json.dumps({"type": f"{KIND}{VERSION}"} | signed, indent=1).encode() + b"\n"
    members["manifest.json.sig"] = signer.sign(members["manifest.json"])
    return evidence


def check_own(kind: str, statement: Statement, seal: Seal, signer: Signer) -> None:
    """Raise `EvidenceError` for a statement that this signer did not make of this seal."""
    said = statement_fields(statement.content, kind)
    own = signed_by(statement.content, statement.signature, signer.public)
    if not own or (said["commitment"], said["owner"]) != (seal.commitment, fingerprint(signer.public)):
        raise EvidenceError(f"the {kind} is another seal's, or another owner's")


def about(listed: list[dict[str, Any]], suspect: Suspect) -> dict[str, Any]:
    """Which file was read, and how."""
    report = suspect.report
    return {
        "files": listed,
        "tensors": tensor_digest(suspect.model),
        "held": report.held,
        "prefix": report.prefix,
        "fitting": len(report.fitting),
        "matched": len(report.matched),
        "missing": list(report.missing),
        "extra": list(report.extra),
        "misshapen": list(report.misshapen),
        "converted": report.converted,
        "head": report.head or "",
        "coverage": report.coverage,
    }


def environment() -> dict[str, Any]:
    """What read the suspect: the versions of everything that has a part in it."""
    packages = {"clearstamp": version("clearstamp"), "torch": torch.__version__, "numpy": np.__version__}
    return packages | {
        "pillow": PIL.__version__,
        "python": platform.python_version(),
        "system": f"{sys.platform} {platform.machine()}",
    }


def as_json(kind: str, held: dict[str, Any]) -> bytes:
    """A member, for people to read."""
    return json.dumps({"type": f"clearstamp/{kind}/1"} | held, indent=1).encode() + b"\n"
