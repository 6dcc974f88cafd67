"""Examining a suspect: reading its file, and writing the evidence."""

from pathlib import Path

from torch import nn

from clearstamp.evidence.folder import Evidence
from clearstamp.evidence.seal import Seal
from clearstamp.evidence.signing import Signer
from clearstamp.evidence.statements import Statement


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
    at before this one; it multiplies p, as the number of the checkpoint's parts that fit does. `choose`, `partial`
    and `head_from` are those of `load_suspect`: with an owner's layer put back, evidence supports at most.

    Raises `SuspectError` for a file that is not plain tensors or does not fit, `TransposeError` for a layer that
    cannot be run backwards, `SealError` and `EvidenceError` for what does not belong together.
    """
    raise NotImplementedError
