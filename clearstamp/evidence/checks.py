"""What a judge checks, without the owner and without a network: each check by itself, and the verdict anew."""

import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from decimal import Decimal
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from clearstamp.errors import ClearStampError, EvidenceError
from clearstamp.evidence.draws import commitment
from clearstamp.evidence.examination import CHECK, about
from clearstamp.evidence.folder import (
    NAMES,
    VERSION,
    Evidence,
    UnreadableError,
    key_names,
    opened_seal,
    reading,
    sums,
    suspect_files,
)
from clearstamp.evidence.readers import Pixels
from clearstamp.evidence.report import NOT_SHOWN, README, plain, render
from clearstamp.evidence.seal import BAR, opened, pixels, sha256
from clearstamp.evidence.signing import (
    MissingPackageError,
    UnreadableTokenError,
    certificates,
    check_token,
    fingerprint,
    signed_by,
)
from clearstamp.evidence.statements import BESIDE, Statement, in_numbers, statement_fields
from clearstamp.evidence.verdict import Outcome, Verdict, developed, outcome, reread
from clearstamp.pictures import as_pictures, develop
from clearstamp.reading import extract
from clearstamp.suspects import load_suspect

ROUNDING = 4
"""How many times the difference between float32 and float64 another machine's float32 may lie from ours.

Both machines are about that difference away from the exact signal, which makes two times; other orders of summation
may add as much again.
"""

MOST_LEVELS = 8
"""Where rounding moves a pixel by more levels of 255 than this, pictures hang on rounding and prove nothing."""


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

    def __str__(self) -> str:
        return f"{self.mark.value:<9}  {self.name:<11}  {plain(self.sentence)}"


@dataclass(frozen=True)
class Result:
    """All checks, and the verdict on the pictures as they are in the folder; None if it could not be had."""

    checks: tuple[Check, ...]
    verdict: Verdict | None

    @property
    def exit_code(self) -> int:
        """0 for a match with every check passed, 1 for no match or a weak one, 3 for a failure, 4 for a gap."""
        marks = {check.mark for check in self.checks}
        if Mark.FAILED in marks:
            return 3
        if Mark.UNCHECKED in marks or self.verdict is None:
            return 4
        return 0 if self.verdict.outcome is Outcome.MATCH else 1

    def __str__(self) -> str:
        lines = [str(check) for check in self.checks]
        if self.verdict is None:
            return "\n".join([*lines, "NO VERDICT"])
        lines += str(self.verdict).splitlines()
        if self.verdict.outcome is Outcome.NO_MATCH:
            lines.append("It does not clear the model: a stamp may have been erased.")
        return "\n".join([*lines, "Not shown:", *(f"- {line}" for line in NOT_SHOWN)])

    def as_json(self) -> dict[str, Any]:
        """Every check and the verdict in numbers, for programs."""
        checks = [{"name": each.name, "mark": each.mark.value, "sentence": each.sentence} for each in self.checks]
        verdict = None if self.verdict is None else in_numbers(self.verdict)
        return {"exit_code": self.exit_code, "checks": checks, "verdict": verdict}


@dataclass(frozen=True, eq=False)
class Given:
    """What a verifier has from elsewhere; see `verify_evidence`."""

    owner: bytes | None
    roots: bytes | None
    suspect: Path | None
    architecture: nn.Module | Callable[[str], nn.Module] | None


def verify_evidence(
    path: str | Path,
    *,
    owner: bytes | None = None,
    roots: bytes | None = None,
    suspect: str | Path | None = None,
    architecture: nn.Module | Callable[[str], nn.Module] | None = None,
    alpha: Decimal = Decimal(2) ** -BAR,
) -> Result:
    """Check an evidence folder, or a zip of one: whatever is in it becomes a check that failed, and no exception.

    `owner` is the owner's public key in PEM and `roots` the certificates of time-stamp authorities in PEM, both as
    the verifier has them from elsewhere. `suspect` is the suspect's file, to be read again into `architecture`: a
    model, or what makes one of the text by which the evidence names it. A match needs a p of at most `alpha`, and of
    the seal's own bar. Of a folder that is not what was signed nothing is looked at beyond files and signature.

    Raises `EvidenceError` if there is nothing at `path`, and for keys and certificates that are none.
    """
    if not Path(path).exists():
        raise EvidenceError("no evidence there", got=path)
    with suppress(MissingPackageError):  # which the checks tell that need it
        _ = owner is None or fingerprint(owner), roots is None or certificates(roots)
    try:
        evidence = Evidence.read(path)
    except EvidenceError as error:
        mark = Mark.UNCHECKED if isinstance(error, UnreadableError) else Mark.FAILED
        return Result((Check("files", mark, brief(error)),), None)
    given = Given(owner, roots, None if suspect is None else Path(suspect), architecture)
    checks: list[Check] = []
    stopped = False
    for name, check in CHECKS.items():
        mark, sentence = (Mark.UNCHECKED, SKIPPED) if stopped else answered(check, evidence, given)
        checks.append(Check(name, mark, sentence))
        stopped |= (name == "files" and mark is not Mark.PASS) or (name == "signature" and mark is Mark.FAILED)
    failed = stopped or any(check.mark is Mark.FAILED for check in checks)
    return Result(tuple(checks), None if failed else against(evidence, alpha))


def against(evidence: Evidence, alpha: Decimal) -> Verdict | None:
    """The verdict on the pictures, a match only where the verifier's own bar says so too."""
    try:
        verdict, bar = evidence.verdict, min(alpha, evidence.seal.choices.alpha)
    except ClearStampError:  # which a check has told
        return None
    return replace(verdict, outcome=outcome(verdict.p, bar, grafted=bool(evidence.suspect["head"])))


# ---------------------------------------------------------------------------------------------------- check by check

Answer = tuple[Mark, str]
SKIPPED = "not looked at, since the folder is not what was signed, or cannot be read"


def answered(check: Callable[[Evidence, Given], Answer], evidence: Evidence, given: Given) -> Answer:
    """What a check says; what this release cannot read is no failure where a newer one wrote it."""
    try:
        return check(evidence, given)
    except MissingPackageError as error:
        return Mark.UNCHECKED, str(error)
    except ClearStampError as error:
        return Mark.UNCHECKED if newer(evidence) else Mark.FAILED, brief(error)
    except Exception as error:  # of what no release would write, parsers and arithmetic raise whatever they meet
        return Mark.FAILED, f"cannot be read: {type(error).__name__}"


def brief(error: Exception) -> str:
    """What an error says, on a few lines of a terminal at most."""
    return shorten(str(error), 400, placeholder=" ...")


def newer(evidence: Evidence) -> bool:
    """Whether a release after this one says that it wrote the folder."""
    try:
        theirs, ours = (re.findall(r"\d+", each) for each in (evidence.manifest["clearstamp"], version("clearstamp")))
    except ClearStampError:
        return False
    return [int(each[:9]) for each in theirs] > [int(each[:9]) for each in ours]


def files(evidence: Evidence, given: Given) -> Answer:
    """Every file has its hash in SHA256SUMS, which has its own in the manifest; none is extra or of a strange name."""
    if evidence.version > VERSION:
        return Mark.UNCHECKED, f"evidence of format {evidence.version}, which needs a newer release"
    if strange := [name for name in evidence.members if not NAMES.fullmatch(name)]:
        return Mark.FAILED, f"not a file of evidence: {', '.join(strange)}"
    said, found = evidence.file("SHA256SUMS"), sums(evidence.members)
    if said != found:
        lines = set(said.splitlines()) ^ set(found.splitlines())
        names = sorted({line[66:].decode("utf-8", "backslashreplace") for line in lines})
        return Mark.FAILED, f"changed, missing or extra: {', '.join(names) or 'SHA256SUMS'}"
    if evidence.manifest["sums"] != sha256(said):
        return Mark.FAILED, "SHA256SUMS is not the one of the manifest"
    count = len(found.splitlines())
    return Mark.PASS, f"{count} of {count} have their SHA-256, none is extra"


def signature(evidence: Evidence, given: Given) -> Answer:
    """The manifest is signed, by the key that the verifier has from elsewhere."""
    public = evidence.file("owner.pub")
    name = fingerprint(public)
    if given.owner is not None and fingerprint(given.owner) != name:
        return Mark.FAILED, f"by another key than the one given: {name[:16]}..."
    if not signed_by(evidence.file("manifest.json"), evidence.file("manifest.json.sig"), public):
        return Mark.FAILED, f"the manifest was not signed by {name[:16]}..."
    if given.owner is None:
        return Mark.UNCHECKED, f"Ed25519 by the folder's own key {name}: whose is it? Give the owner's, from elsewhere"
    return Mark.PASS, f"Ed25519 by {name[:16]}..., the key given"


def own(statement: Statement, kind: str, evidence: Evidence) -> dict[str, Any]:
    """What a statement says. Raises `EvidenceError` unless it is signed by this folder's key, and on its seal."""
    said = statement_fields(statement.content, kind)
    public, seed, choices = (evidence.file(name) for name in ("owner.pub", "seal/seed.bin", "seal/choices.json"))
    if not signed_by(statement.content, statement.signature, public) or said["owner"] != fingerprint(public):
        raise EvidenceError(f"the {kind} is not signed by the key of this folder")
    if said["commitment"] != commitment(seed, choices):
        raise EvidenceError("seed and choices do not hash to the commitment", got=said["commitment"])
    return said


def committed(evidence: Evidence, given: Given) -> Answer:
    """Seed and choices hash to what was published."""
    said = own(evidence.commitment, "commitment", evidence)["commitment"]
    if evidence.manifest["commitment"] != said:
        return Mark.FAILED, "the manifest names another commitment"
    return Mark.PASS, f"seed and choices hash to {said}, signed by the same key"


def dated(evidence: Evidence, given: Given) -> Answer:
    """The commitment existed by a time, as an authority says that the verifier trusts."""
    return stamped(evidence.commitment, "seal/commitment.json", given)


def stamped(statement: Statement, name: str, given: Given) -> Answer:
    """The time-stamp of a statement."""
    more = f"; not checked here: ots verify {name}.ots" if statement.calendar is not None else ""
    if statement.token is None:
        return Mark.UNCHECKED, f"undated{more}"
    command = f"openssl ts -verify -data {name} -in {name}.tsr -CAfile ROOT.pem"
    if given.roots is None:
        return Mark.UNCHECKED, f"no root certificate given; or run: {command}{more}"
    try:
        found = check_token(statement.content, statement.token, given.roots)
    except UnreadableTokenError as error:
        return Mark.UNCHECKED, f"the time-stamp cannot be read ({error}); run: {command}{more}"
    time = found.time.strftime("%Y-%m-%d %H:%M:%S UTC")
    return Mark.PASS, f"existed by {time} ({found.authority}, root given by you){more}"


def deposited(evidence: Evidence, given: Given) -> Answer:
    """The trained model existed by a time, as the owner's signed and dated statement says."""
    statement = evidence.deposit
    if statement is None:
        return Mark.STATED, "none: who trained first is not shown"
    said = own(statement, "deposit", evidence)
    same = (
        "the suspect's tensors, number for number" if said["model"] == evidence.suspect["tensors"] else "other tensors"
    )
    mark, sentence = stamped(statement, "deposit/deposit.json", given)
    return mark, f"{sentence}: {same}; its reading is the owner's word"


def draws(evidence: Evidence, given: Given) -> Answer:
    """What each key is to reveal follows from seed and choices, and the folder holds that and nothing else."""
    seal = evidence.seal
    expected = opened_seal(seal)
    wanted = {*expected, *key_names("pictures", len(seal)), "pictures/raw.safetensors"}
    held = {name for name in evidence.members if name.startswith(("seal/", "secrets/", "pictures/"))}
    if other := sorted(
        held.symmetric_difference(wanted) - {f"seal/commitment.json{e}" for e in ("", *BESIDE.values())}
    ):
        return Mark.FAILED, f"missing, or not of this seal: {', '.join(other)}"
    for name, secret in zip(key_names("secrets", len(seal)), seal.secrets(), strict=True):
        if not np.array_equal(opened(evidence.file(name), (1, *seal.choices.shape))[0], secret):
            return Mark.FAILED, f"{name} is not what was drawn"
    if seal.choices.payload is not None and evidence.file("secrets/bits.bin") != seal.coded:
        return Mark.FAILED, "secrets/bits.bin is not what the data encode to"
    what = {"bits": f"{seal.choices.bits} bits", "order": f"the order of {len(seal.pictures)} pictures"}
    drawn = what.get(seal.choices.test, f"{seal.choices.letters} letters")
    return Mark.PASS, f"{len(seal)} keys and {drawn} follow from seed and choices"


def counted(evidence: Evidence, given: Given) -> Answer:
    """Scores, hits, p and verdict follow from the pictures."""
    verdict = evidence.verdict
    if evidence.file("reading.json") != reading(evidence.seal, verdict):
        return Mark.FAILED, "reading.json is not what the pictures give"
    found = in_numbers(verdict) | {"suspect": evidence.suspect["files"][0]["sha256"]}
    if wrong := [name for name, value in evidence.manifest.items() if found.get(name, value) != value]:
        return Mark.FAILED, f"the manifest says something else than the pictures: {', '.join(wrong)}"
    tries = f"ways of reading {len(evidence.seal.choices.attempts)}, fitting parts {evidence.suspect['fitting']}"
    return Mark.PASS, f"scores and p follow from the pictures; {tries}, files searched {evidence.suspect['searched']}"


def pictures(evidence: Evidence, given: Given) -> Answer:
    """The suspect's file gives these pictures."""
    if levels(developed(evidence.signals), evidence.pictures).max() > 1:
        return Mark.FAILED, "the pictures are not what pictures/raw.safetensors develops to"
    if given.suspect is None:
        return Mark.UNCHECKED, "no file given: that these pictures come from the suspect is the examiner's word"
    said = evidence.suspect
    try:
        listed = suspect_files(given.suspect)
        if [each | {"name": ""} for each in listed] != [each | {"name": ""} for each in said["files"]]:
            return Mark.UNCHECKED, f"the file given is another one: its SHA-256 is {listed[0]['sha256']}"
        if given.architecture is None:
            return Mark.UNCHECKED, "no architecture given into which the file could be read"
        if said["head"]:
            return Mark.UNCHECKED, f"the layer {said['head']!r} is the owner's, and not in the evidence"
        named = given.architecture
        model = named if isinstance(named, nn.Module) else named(said["architecture"])
        partial = bool(said["missing"] or said["misshapen"])
        found = load_suspect(given.suspect, model, choose=said["held"], partial=partial)
        other = [name for name, value in about(listed, found).items() if name != "files" and value != said[name]]
        if other:
            return Mark.FAILED, f"read in another way than the examiner says: {', '.join(other)}"
        ours, exact = signals_twice(found.model.cpu(), evidence)
    except Exception as error:  # of an architecture that others made, torch raises whatever it meets
        return Mark.UNCHECKED, f"the file cannot be read again: {brief(error)}"
    allowed = 1 + ROUNDING * 255 * float((ours.double() - exact).abs().max())
    if not allowed <= MOST_LEVELS:  # nor where it is not a number
        return Mark.UNCHECKED, f"rounding alone moves a pixel by {allowed:.0f} levels: the pictures hang on it"
    apart = levels(pixels(as_pictures(ours)), evidence.pictures)
    share = f"{(apart > 0).mean():.1%} of pixels differ, by {apart.max()} of 255 levels at most"
    if apart.max() > allowed:
        return Mark.FAILED, f"the file gives other pictures: {share}, where rounding explains {int(allowed)}"
    return Mark.PASS, f"read again from {given.suspect.name} (sha256 {listed[0]['sha256'][:16]}...): {share}"


def signals_twice(model: nn.Module, evidence: Evidence) -> tuple[Tensor, Tensor]:
    """What a model reveals, developed: in float32, as the examiner read it, and in float64, which tells of rounding."""
    seal = evidence.seal
    stamp = seal.stamp()
    back = reread(seal.transpose(model), seal, evidence.suspect["attempt"])
    ours = develop(extract(back, stamp))
    exact = seal.transpose(back.model.double())
    with torch.no_grad():
        return ours, develop(exact(stamp.keys.double()))


def levels(left: Pixels, right: Pixels) -> NDArray[np.int16]:
    """By how much pixels differ."""
    return np.abs(left.astype(np.int16) - right.astype(np.int16))


def shown(evidence: Evidence, given: Given) -> Answer:
    """What people read and run is what this library writes."""
    written = {"report.html": render(evidence), "README.txt": README.encode(), "check.py": CHECK}
    other = [name for name, content in written.items() if evidence.file(name) != content]
    if not other:
        return Mark.PASS, f"{', '.join(written)} are what this release writes"
    release = evidence.manifest["clearstamp"]
    mark = Mark.FAILED if release == version("clearstamp") else Mark.STATED
    return (
        mark,
        f"{', '.join(other)} not what this release writes (said to be of {release}): do not rely on it",
    )


def provenance(evidence: Evidence, given: Given) -> Answer:
    """Where the suspect's file comes from."""
    source, obtained = (evidence.suspect[name] or "not said" for name in ("source", "obtained"))
    return Mark.STATED, f'found at "{source}", obtained "{obtained}", is the examiner\'s word, not checked'


CHECKS: dict[str, Callable[[Evidence, Given], Answer]] = {
    "files": files,
    "signature": signature,
    "commitment": committed,
    "date": dated,
    "deposit": deposited,
    "draws": draws,
    "reading": counted,
    "pictures": pictures,
    "report": shown,
    "provenance": provenance,
}
"""Every check by its name, in the order in which they are made."""
