"""Every check once broken and seen to fail, and what a verifier is told."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save, save_file
from torch import nn

from clearstamp.errors import EvidenceError
from clearstamp.evidence import Evidence, Mark, Outcome, Seal, Signer, Statement, checks, verify_evidence
from clearstamp.evidence.checks import CHECKS, Check, Result
from clearstamp.evidence.draws import commitment
from clearstamp.evidence.examination import examine
from clearstamp.evidence.folder import suspect_files
from clearstamp.evidence.statements import shown, tensor_digest
from clearstamp.reading import extract
from tests.evidence.bundles import Case, edited, fresh, made, repainted, resigned, stamped
from tests.fuzz_evidence import fuzz

pytestmark = pytest.mark.usefixtures("quick")
PASSED = ["PASS"] * 9 + ["STATED"]


def marks(result: Result) -> list[str]:
    return [check.mark.value for check in result.checks]


def told(result: Result, name: str) -> Check:
    (check,) = (check for check in result.checks if check.name == name)
    return check


@pytest.mark.child
def test_evidence_in_which_all_is_right_passes_every_check(case: Case, tmp_path: Path):
    result = case.verify(case.evidence, tmp_path / "evidence")
    assert marks(result) == PASSED and result.exit_code == 0
    assert result.verdict.outcome is Outcome.MATCH and (result.verdict.right, result.verdict.of) == (20, 20)
    said = str(result)
    assert "\nPASS       draws        5 keys and 20 letters follow from seed and choices\n" in said
    assert "existed by 20" in said and "MATCH   p = 1.7e-24: " in said and "Not shown:\n- Who trained first" in said
    assert json.loads(json.dumps(result.as_json())) == result.as_json()
    assert result.as_json()["verdict"]["p"] == "1.65437E-24" and len(result.as_json()["checks"]) == len(CHECKS)


def test_a_zip_of_the_folder_is_as_good(case: Case, tmp_path: Path):
    case.evidence.write(tmp_path / "evidence")
    for name, where in (("inside.zip", "."), ("evidence.zip", "evidence")):
        command = [sys.executable, "-m", "zipfile", "-c", tmp_path / name, where]
        subprocess.run(command, cwd=tmp_path / ("evidence" if where == "." else "."), check=True)
        assert verify_evidence(tmp_path / name, **case.given()).exit_code == 0


def without(*names: str) -> dict[str, None]:
    return dict.fromkeys(names)


def statement(case: Case, kind: str, signer: Signer | None = None, **fields: Any) -> dict[str, bytes]:
    """A statement with other fields, signed and dated as it should be."""
    name = {"commitment": "seal/commitment.json", "deposit": "deposit/deposit.json"}[kind]
    content = edited(case.evidence, name, **fields)[name]
    signed = case.authority.dated(Statement(content, (signer or case.signer).sign(content)))
    return {name + ending: held for ending, held in signed.files().items()}


def swapped(case: Case, one: str, other: str) -> dict[str, bytes]:
    members = case.evidence.members
    return {one: members[other], other: members[one]}


def with_calendar(case: Case) -> dict[str, bytes | None]:
    return without("seal/commitment.json.tsr") | {"seal/commitment.json.ots": b"a proof"}


BROKEN: list[tuple[str, Callable[[Case], dict[str, bytes | None]], Mark, str]] = [
    ("commitment", lambda c: statement(c, "commitment", commitment="0" * 64), Mark.FAILED, "do not hash to"),
    ("commitment", lambda c: statement(c, "commitment", Signer.make()), Mark.FAILED, "not signed by the key"),
    ("commitment", lambda c: statement(c, "commitment", owner="0" * 64), Mark.FAILED, "not signed by the key"),
    ("commitment", lambda c: statement(c, "commitment", more=1), Mark.FAILED, "fields that are unknown.*'more'"),
    ("commitment", lambda c: {"seal/seed.bin": bytes(32)}, Mark.FAILED, "do not hash to the commitment"),
    (
        "commitment",
        lambda c: without("seal/commitment.json.sig"),
        Mark.FAILED,
        "missing; got: seal/commitment.json.sig",
    ),
    ("date", lambda c: without("seal/commitment.json.tsr"), Mark.UNCHECKED, "^undated$"),
    ("date", with_calendar, Mark.UNCHECKED, "undated; not checked here: ots verify seal/commitment.json.ots"),
    ("date", lambda c: {"seal/commitment.json.tsr": c.authority.token(b"old")}, Mark.FAILED, "Mismatch"),
    ("date", lambda c: {"seal/commitment.json.tsr": b"damaged"}, Mark.UNCHECKED, "cannot be read.*openssl ts -verify"),
    ("deposit", lambda c: statement(c, "deposit", commitment="0" * 64), Mark.FAILED, "do not hash to"),
    ("deposit", lambda c: statement(c, "deposit", Signer.make()), Mark.FAILED, "not signed by the key"),
    ("deposit", lambda c: without("deposit/deposit.json.tsr"), Mark.UNCHECKED, "undated"),
    ("draws", lambda c: swapped(c, "secrets/key-01.png", "secrets/key-02.png"), Mark.FAILED, "not what was drawn"),
    ("draws", lambda c: {"secrets/key-09.png": b""}, Mark.FAILED, "not of this seal: secrets/key-09.png"),
    ("draws", lambda c: without("secrets/key-01.png"), Mark.FAILED, "missing.*secrets/key-01.png"),
    ("draws", lambda c: {"secrets/glyphs.png": c.evidence.members["secrets/key-01.png"]}, Mark.FAILED, "not those of"),
    ("draws", lambda c: {"secrets/data.bin": bytes(9)}, Mark.FAILED, "not those of the choices"),
    ("reading", lambda c: swapped(c, "pictures/key-01.png", "pictures/key-02.png"), Mark.FAILED, "not what the pict"),
    ("reading", lambda c: edited(c.evidence, "reading.json", right=19), Mark.FAILED, "not what the pictures give"),
    ("reading", lambda c: edited(c.evidence, "suspect.json", fitting=0), Mark.FAILED, "attempts that cannot be"),
    ("reading", lambda c: edited(c.evidence, "suspect.json", searched=-1), Mark.FAILED, "attempts that cannot be"),
    (
        "reading",
        lambda c: edited(c.evidence, "suspect.json", searched=10**4000),
        Mark.FAILED,
        "attempts that cannot be",
    ),
    ("reading", lambda c: edited(c.evidence, "suspect.json", attempt="dreamt"), Mark.FAILED, "attempts that cannot be"),
    ("reading", lambda c: {"pictures/key-01.png": b""}, Mark.FAILED, "not a whole PNG"),
    (
        "pictures",
        lambda c: {"pictures/raw.safetensors": save({"signals": torch.zeros(5, 1, 28, 28)})},
        Mark.FAILED,
        "develops",
    ),
    (
        "pictures",
        lambda c: {"pictures/raw.safetensors": save({"signals": torch.zeros(4)})},
        Mark.FAILED,
        "another shape",
    ),
    ("pictures", lambda c: edited(c.evidence, "suspect.json", tensors="0"), Mark.FAILED, "another way.*: tensors"),
    ("report", lambda c: {"report.html": b"<h1>GUILTY"}, Mark.FAILED, "^report.html not what this release writes"),
    ("report", lambda c: {"check.py": b"import os"}, Mark.FAILED, "^check.py not what"),
    ("report", lambda c: without("README.txt"), Mark.FAILED, "missing; got: README.txt"),
]


@pytest.mark.parametrize(("name", "change", "mark", "sentence"), BROKEN)
def test_what_the_owner_signs_is_checked_all_the_same(case, tmp_path, name, change, mark, sentence):
    """Every one of these folders is signed, and has all its hashes right."""
    result = case.verify(resigned(case.evidence, case.signer, change(case)), tmp_path / "evidence")
    check = told(result, name)
    assert check.mark is mark
    assert re.search(sentence, check.sentence), check.sentence
    assert result.exit_code == (3 if mark is Mark.FAILED or Mark.FAILED.value in marks(result) else 4)
    assert (result.verdict is None) == (result.exit_code == 3)


@pytest.mark.parametrize(
    "said",
    [{"p": "1E-90"}, {"outcome": "WEAK"}, {"right": 19}, {"of": 21}, {"tries": 1}, {"test": "bits"}, {"suspect": "0"}],
)
def test_a_manifest_that_says_more_than_the_pictures_fails(case: Case, tmp_path: Path, said: dict[str, Any]):
    result = case.verify(resigned(case.evidence, case.signer, **said), tmp_path / "evidence")
    assert told(result, "reading") == Check(
        "reading", Mark.FAILED, f"the manifest says something else than the pictures: {', '.join(said)}"
    )
    assert result.exit_code == 3 and "NO VERDICT" in str(result)


def test_the_manifest_names_the_commitment(case: Case, tmp_path: Path):
    result = case.verify(resigned(case.evidence, case.signer, commitment="0" * 64), tmp_path / "evidence")
    assert told(result, "commitment").sentence == "the manifest names another commitment" and result.exit_code == 3


@pytest.mark.parametrize(
    "chosen",
    [
        {"codes": 2**70},
        {"rows": 2**40},
        {"input": [2**30, 2**30]},
        {"input": [2**15, 2**15]},
        {"key": [2**40]},
        {"bar": 2**40},
        {"alphabet": "ABCDEFGHIJKLMNOPQRSTUVWXYZ"},
        {"alphabet": "AAAAAAAAAAAAAAAA"},
        {"alphabet": ""},
    ],
    ids=str,
)
def test_choices_that_no_seal_can_have_fail_before_anything_is_drawn(
    case: Case, tmp_path: Path, chosen: dict[str, Any]
):
    """An alphabet of more letters than are drawn would make p smaller than chance is."""
    held = json.loads(case.seal.written) | chosen
    choices = json.dumps(held, indent=1, ensure_ascii=False).encode() + b"\n"
    bound = commitment(case.seal.seed, choices)
    changed = {"seal/choices.json": choices} | statement(case, "commitment", commitment=bound)
    changed |= statement(case, "deposit", commitment=bound)
    result = case.verify(resigned(case.evidence, case.signer, changed, commitment=bound), tmp_path / "evidence")
    assert told(result, "commitment").mark is Mark.PASS
    assert told(result, "draws").mark is Mark.FAILED and "out of range" in told(result, "draws").sentence
    assert result.exit_code == 3


# ------------------------------------------------------------------------------------------------ files and signature


def altered(evidence: Evidence, **members: bytes) -> Evidence:
    """With other members that nobody signed; underscores stand for dots."""
    return Evidence(evidence.members | {name.replace("_", "."): content for name, content in members.items()})


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda e: altered(e, reading_json=b"{}"), "changed, missing or extra: reading.json"),
        (lambda e: altered(e, evil_sh=b"rm"), "not a file of evidence: evil.sh"),
        (lambda e: altered(e, report_html=b"\x1b[31m"), "changed, missing or extra: report.html"),
        (lambda e: Evidence(e.members | {"seal/commitment.json.ots": b""}), "extra: seal/commitment.json.ots"),
        (lambda e: Evidence({n: c for n, c in e.members.items() if n != "check.py"}), "missing or extra: check.py"),
        (lambda e: Evidence({n: c for n, c in e.members.items() if n != "SHA256SUMS"}), "a file is missing"),
        (lambda e: altered(e, SHA256SUMS=e.members["SHA256SUMS"] + b"\n"), "changed, missing or extra"),
        (lambda e: altered(e, manifest_json=b"{}"), "not evidence, or not whole"),
        (lambda e: altered(e, manifest_json=b'{"p": 1, "p": 2}'), "not evidence, or not whole"),
    ],
)
def test_of_files_that_are_not_as_signed_nothing_more_is_looked_at(
    case: Case, tmp_path: Path, change: Any, sentence: str
):
    result = case.verify(change(case.evidence), tmp_path / "evidence")
    assert told(result, "files").mark is Mark.FAILED and sentence in told(result, "files").sentence
    assert marks(result)[1:] == ["UNCHECKED"] * 9 and result.exit_code == 3 and result.verdict is None


def test_hashes_of_other_files_fail_by_the_manifest(case: Case, tmp_path: Path):
    other = resigned(case.evidence, Signer.make(), {"report.html": b"GUILTY"})
    mixed = Evidence(
        other.members | {name: case.evidence.members[name] for name in ("manifest.json", "manifest.json.sig")}
    )
    result = case.verify(mixed, tmp_path / "evidence")
    assert told(result, "files").sentence == "SHA256SUMS is not the one of the manifest" and result.exit_code == 3


def test_a_field_that_occurs_twice_fails(case: Case, tmp_path: Path):
    manifest = case.evidence.members["manifest.json"].replace(b'"p":', b'"p": "1", "p":')
    signed = {"manifest.json": manifest, "manifest.json.sig": case.signer.sign(manifest)}
    result = case.verify(Evidence(case.evidence.members | signed), tmp_path / "evidence")
    assert "a field occurs twice" in told(result, "files").sentence and result.exit_code == 3


def test_a_signature_by_anybody_else_fails(case: Case, tmp_path: Path):
    forger = Signer.make()
    forged = resigned(case.evidence, forger, {"owner.pub": forger.public})
    flipped = (
        bytes([case.evidence.members["manifest.json.sig"][0] ^ 1]) + case.evidence.members["manifest.json.sig"][1:]
    )
    for number, (evidence, sentence) in enumerate(
        [
            (forged, "by another key than the one given"),
            (resigned(case.evidence, forger), "the manifest was not signed by"),
            (Evidence(case.evidence.members | {"manifest.json.sig": flipped}), "the manifest was not signed by"),
            (resigned(case.evidence, case.signer, {"owner.pub": b"-"}), "not a public key"),
        ]
    ):
        result = case.verify(evidence, tmp_path / str(number))
        assert told(result, "signature").mark is Mark.FAILED and sentence in told(result, "signature").sentence
        assert marks(result)[2:] == ["UNCHECKED"] * 8 and result.exit_code == 3
    result = verify_evidence(tmp_path / "0", **case.given(owner=None))
    assert (
        told(result, "signature").mark is Mark.UNCHECKED
        and "the folder's own key" in told(result, "signature").sentence
    )
    assert "not signed by the key of this folder" in told(result, "commitment").sentence


def test_what_the_verifier_does_not_give_is_unchecked(case: Case, tmp_path: Path):
    case.evidence.write(tmp_path / "evidence")
    for name, gone in (
        ("signature", "owner"),
        ("date", "roots"),
        ("pictures", "suspect"),
        ("pictures", "architecture"),
    ):
        result = verify_evidence(tmp_path / "evidence", **case.given(**{gone: None}))
        assert told(result, name).mark is Mark.UNCHECKED and result.exit_code == 4
        assert marks(result).count("UNCHECKED") == (2 if gone == "roots" else 1)  # the deposit is dated too
        assert result.verdict.outcome is Outcome.MATCH
    assert verify_evidence(tmp_path / "evidence").exit_code == 4


def test_slips_of_the_verifier_are_errors_or_unchecked_and_never_forgery(case: Case, tmp_path: Path):
    with pytest.raises(EvidenceError, match="no evidence there"):
        verify_evidence(tmp_path / "nowhere")
    case.evidence.write(tmp_path / "evidence")
    with pytest.raises(EvidenceError, match="not a public key"):
        verify_evidence(tmp_path / "evidence", owner=case.authority.root)
    with pytest.raises(EvidenceError, match="not certificates"):
        verify_evidence(tmp_path / "evidence", roots=case.signer.public)
    save_file(fresh(case.seal).state_dict(), tmp_path / "other.safetensors")
    result = verify_evidence(tmp_path / "evidence", **case.given(suspect=tmp_path / "other.safetensors"))
    assert "the file given is another one" in told(result, "pictures").sentence and result.exit_code == 4
    result = verify_evidence(tmp_path / "evidence", **case.given(architecture=nn.Linear(784, 8)))
    assert "cannot be read again: no tensor" in told(result, "pictures").sentence and result.exit_code == 4


def test_a_suspect_that_cannot_be_read_is_unchecked(case: Case, tmp_path: Path):
    case.evidence.write(tmp_path / "evidence")
    (tmp_path / "broken.index.json").write_text("[")
    for suspect in (tmp_path / "nothing", tmp_path, tmp_path / "broken.index.json"):
        result = verify_evidence(tmp_path / "evidence", **case.given(suspect=suspect))
        assert told(result, "pictures").mark is Mark.UNCHECKED and result.exit_code == 4


def test_an_architecture_that_fails_is_unchecked(case: Case, tmp_path: Path):
    def fail(name: str) -> nn.Module:
        raise RuntimeError("out of memory")

    case.evidence.write(tmp_path / "evidence")
    result = verify_evidence(tmp_path / "evidence", **case.given(architecture=fail))
    assert told(result, "pictures").sentence == "the file cannot be read again: out of memory"
    assert result.exit_code == 4


def test_pictures_that_are_no_numbers_are_not_those_of_anything(case: Case, tmp_path: Path):
    """A comparison with what is not a number is never true, not even that it differs too much."""
    model, file = fresh(case.seal), tmp_path / "overflows.safetensors"
    with torch.no_grad():
        model[1].weight.copy_(3e37 * torch.randn_like(model[1].weight).sign())
    save_file(model.state_dict(), file)
    said = {"files": suspect_files(file), "tensors": tensor_digest(model)}
    members = case.evidence.members | edited(case.evidence, "suspect.json", **said)
    evidence = repainted(Evidence(members), case.signer, case.evidence.signals)
    evidence = resigned(evidence, case.signer, suspect=evidence.suspect["files"][0]["sha256"])
    result = case.verify(evidence, tmp_path / "evidence", suspect=file)
    assert told(result, "pictures").mark is Mark.UNCHECKED and result.exit_code == 4
    with pytest.raises(EvidenceError, match="numbers that are not finite"):
        examined(case, file)


@pytest.mark.parametrize("name", ["manifest.json", "suspect.json", "seal/choices.json", "seal/commitment.json"])
@pytest.mark.parametrize("value", [b"9" * 5000, b"NaN", b"[" * 10**5, b'{"a": 1, "a": 1}'], ids=["9", "nan", "[", "2"])
def test_json_that_no_reader_takes_fails(case: Case, tmp_path: Path, name: str, value: bytes):
    written = case.evidence.members[name].rstrip().removesuffix(b"}") + b', "more": ' + value + b"}"
    if name == "manifest.json":
        changed = Evidence(case.evidence.members | {name: written, f"{name}.sig": case.signer.sign(written)})
    else:
        changed = resigned(case.evidence, case.signer, {name: written})
    result = case.verify(changed, tmp_path / "evidence")
    assert result.exit_code == 3 and "NO VERDICT" in str(result)


def test_without_the_extra_everything_else_is_checked(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    case.evidence.write(tmp_path / "evidence")
    monkeypatch.setitem(sys.modules, "rfc3161_client", None)
    result = verify_evidence(tmp_path / "evidence", **case.given())
    assert [check.name for check in result.checks if check.mark is Mark.UNCHECKED] == ["date", "deposit"]
    assert "clearstamp[evidence]" in told(result, "date").sentence and result.exit_code == 4


def test_a_newer_format_is_unchecked_and_a_newer_release_forgiven(case: Case, tmp_path: Path):
    result = case.verify(resigned(case.evidence, case.signer, type="clearstamp/evidence/2"), tmp_path / "format")
    assert marks(result) == ["UNCHECKED"] * 10 and "needs a newer release" in str(result) and result.exit_code == 4
    choices = case.evidence.members["seal/choices.json"].replace(b'"letters"', b'"runes"')
    newer = {"clearstamp": "999.0.0"}
    changed = {"seal/choices.json": choices} | statement(case, "commitment") | without("deposit/deposit.json")
    for number, (said, mark) in enumerate([(newer, Mark.UNCHECKED), ({}, Mark.FAILED)]):
        result = case.verify(resigned(case.evidence, case.signer, changed, **said), tmp_path / str(number))
        assert told(result, "draws").mark is mark and "unknown test" in told(result, "draws").sentence
    other = {"report.html": b"of another release"}
    result = case.verify(resigned(case.evidence, case.signer, other, clearstamp="0.0.9"), tmp_path / "older")
    assert told(result, "report").mark is Mark.STATED and result.exit_code == 0


# --------------------------------------------------------------------------------------------------- pictures, suspects


def examined(case: Case, file: Path, **said: Any) -> Evidence:
    """Evidence on another file, by the same owner."""
    statements = {"commitment": case.evidence.commitment, "deposit": case.evidence.deposit}
    return examine(file, case.seal, fresh(case.seal), signer=case.signer, **(statements | said))


def test_rounding_is_told_from_other_pictures(case: Case, tmp_path: Path):
    """A white pixel is darkened, in signals and pictures alike."""
    for by, mark in ((0, Mark.PASS), (1, Mark.PASS), (2, Mark.FAILED), (200, Mark.FAILED)):
        signals = case.evidence.signals.clone()
        signals[0, 0, 0, 0] = 1 - by / 255
        result = case.verify(repainted(case.evidence, case.signer, signals), tmp_path / str(by))
        assert told(result, "pictures").mark is mark, told(result, "pictures")
        assert f"by {by} of 255 levels at most" in told(result, "pictures").sentence
        assert marks(result).count("FAILED") == (mark is Mark.FAILED)


def test_pictures_of_a_stamped_model_are_not_those_of_an_innocent_file(case: Case, tmp_path: Path):
    innocent = tmp_path / "innocent.safetensors"
    save_file(fresh(case.seal).state_dict(), innocent)
    accused = repainted(examined(case, innocent), case.signer, case.evidence.signals)
    assert accused.verdict.outcome is Outcome.MATCH
    result = case.verify(accused, tmp_path / "evidence", suspect=innocent)
    assert "the file gives other pictures" in told(result, "pictures").sentence and result.exit_code == 3
    assert marks(result).count("FAILED") == 1


def test_a_model_without_the_stamp_is_no_match_and_not_cleared(case: Case, tmp_path: Path):
    innocent = tmp_path / "innocent.safetensors"
    save_file(fresh(case.seal).state_dict(), innocent)
    result = case.verify(examined(case, innocent), tmp_path / "evidence", suspect=innocent)
    assert marks(result) == PASSED and result.exit_code == 1 and result.verdict.outcome is Outcome.NO_MATCH
    assert "does not clear the model" in str(result) and "other tensors" in told(result, "deposit").sentence


def test_signals_that_hang_on_rounding_prove_nothing(case: Case, tmp_path: Path):
    """Weights of a million, alike for every pixel but for noise that float32 cannot carry."""
    model = fresh(case.seal)
    with torch.no_grad():
        model[1].weight.fill_(1e6).add_(0.1 * torch.randn_like(model[1].weight))
    save_file(model.state_dict(), tmp_path / "flat.safetensors")
    evidence = examined(case, tmp_path / "flat.safetensors")
    result = case.verify(evidence, tmp_path / "evidence", suspect=tmp_path / "flat.safetensors")
    assert "rounding alone" in told(result, "pictures").sentence and result.exit_code == 4


def test_parts_of_a_checkpoint_that_fit_are_counted_and_cannot_be_hidden(case: Case, tmp_path: Path):
    file = tmp_path / "both.pt"
    torch.save({"model": fresh(case.seal).state_dict(), "ema": stamped(case.seal).state_dict()}, file)
    evidence = examined(case, file, choose="ema")
    assert (evidence.suspect["fitting"], evidence.suspect["held"], evidence.verdict.tries) == (2, "ema", 4)
    assert case.verify(evidence, tmp_path / "evidence", suspect=file).exit_code == 0
    hidden = edited(evidence, "suspect.json", fitting=1)
    lied = repainted(Evidence(evidence.members | hidden), case.signer, evidence.signals)
    result = case.verify(lied, tmp_path / "hidden", suspect=file)
    assert told(result, "pictures").sentence == "read in another way than the examiner says: fitting"
    assert result.exit_code == 3


def test_a_layer_that_was_put_back_supports_at_most(case: Case, tmp_path: Path):
    """Of a model with one layer only all of it is the owner's, and the test says so."""
    file, owner = tmp_path / "beheaded.safetensors", stamped(case.seal)
    save_file({"1.weight": torch.zeros(3, 784), "1.bias": owner[1].bias.detach()}, file)
    evidence = examined(case, file, head_from=owner)
    assert evidence.manifest["outcome"] == "SUPPORTS" and evidence.suspect["head"] == "1"
    result = case.verify(evidence, tmp_path / "evidence", suspect=file)
    assert "is the owner's, and not in the evidence" in told(result, "pictures").sentence and result.exit_code == 4
    result = replace(result, checks=tuple(check for check in result.checks if check.mark is Mark.PASS))
    assert result.exit_code == 1 and "depends on the draws" in str(result)
    claimed = resigned(evidence, case.signer, outcome="MATCH")
    assert "something else" in told(case.verify(claimed, tmp_path / "claimed", suspect=file), "reading").sentence


def test_the_verifiers_bar_decides_not_the_owners(case: Case, tmp_path: Path):
    case.evidence.write(tmp_path / "evidence")
    for alpha, outcome, code in (("1.7e-24", Outcome.MATCH, 0), ("1.6e-24", Outcome.WEAK, 1)):
        result = verify_evidence(tmp_path / "evidence", **case.given(alpha=Decimal(alpha)))
        assert (result.verdict.outcome, result.exit_code) == (outcome, code)


def test_a_bar_that_the_seal_raised_binds_the_verifier(signer, authority, tmp_path):
    """It was chosen before the suspect was known."""
    seal = replace(Seal.make(outputs=8, shape=(1, 28, 28), codes=5, bar=78), seed=bytes(range(32)))
    case = made(seal, signer, authority, tmp_path, searched=3)
    assert case.evidence.manifest["outcome"] == "WEAK"
    result = case.verify(case.evidence, tmp_path / "evidence", alpha=Decimal("1e-9"))
    assert marks(result) == PASSED and result.verdict.outcome is Outcome.WEAK and result.exit_code == 1


def test_a_bar_that_the_owner_lowered_does_not_bind_the_verifier(signer, authority, tmp_path):
    seal = replace(Seal.make(outputs=4, shape=(1, 28, 28), codes=1, bar=8), seed=bytes(range(32)))
    case = made(seal, signer, authority, tmp_path)
    assert case.evidence.manifest["outcome"] == "MATCH"
    result = case.verify(case.evidence, tmp_path / "evidence")
    assert marks(result) == PASSED and result.verdict.outcome is Outcome.NO_MATCH and result.exit_code == 1
    assert verify_evidence(tmp_path / "evidence", **case.given(alpha=Decimal("0.001"))).exit_code == 0


class Executed:
    """Whoever unpickles this creates a file."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self) -> Any:
        return open, (str(self.trace), "w")


@pytest.mark.child
@pytest.mark.parametrize("kind", ["reduce", "huge", "names", "nan", "sparse"])
def test_hostile_suspects_run_nothing_and_are_unchecked(case: Case, tmp_path: Path, kind: str):
    """The accuser says, and signs, that his pictures were read out of them."""
    trace, file = tmp_path / "executed", tmp_path / "\x1b[31m<script>.pt"
    weights: dict[str, Any] = dict(stamped(case.seal).state_dict())
    weights |= {
        "reduce": {"1.bias": Executed(trace)},
        "huge": {"1.bias": torch.zeros(1).expand(2**20, 2**20)},
        "names": {"\x1b[31m<script>alert(1)</script>": torch.zeros(1)},
        "nan": {"1.bias": torch.full((8,), float("nan"))},
        "sparse": {"1.bias": torch.zeros(8).to_sparse()},
    }[kind]
    torch.save(weights, file)
    said = edited(case.evidence, "suspect.json", files=suspect_files(file), source="\x1b[31m<script>alert(1)</script>")
    evidence = repainted(Evidence(case.evidence.members | said), case.signer, case.evidence.signals)
    evidence = resigned(evidence, case.signer, suspect=evidence.suspect["files"][0]["sha256"])
    result = case.verify(evidence, tmp_path / "evidence", suspect=file)
    assert not trace.exists()
    assert (
        told(result, "pictures").mark is Mark.UNCHECKED and "cannot be read again" in told(result, "pictures").sentence
    )
    assert result.exit_code == 4 and marks(result).count("UNCHECKED") == 1
    assert "\x1b" not in str(result) and "\\x1b[31m<script>" in str(result)
    page = evidence.members["report.html"].decode()
    assert "<script" not in page and "\x1b" not in page and "\\x1b[31m&lt;script&gt;.pt" in page


def test_a_layer_without_a_rule_is_unchecked(case: Case, tmp_path: Path):
    class Sinh(nn.Sequential):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return super().forward(images).sinh()

    case.evidence.write(tmp_path / "evidence")
    result = verify_evidence(tmp_path / "evidence", **case.given(architecture=Sinh(*fresh(case.seal))))
    assert "sinh" in told(result, "pictures").sentence and result.exit_code == 4


def test_an_architecture_is_made_of_the_text_that_names_it(case: Case, tmp_path: Path):
    asked = []

    def build(name: str) -> nn.Module:
        asked.append(name)
        return fresh(case.seal)

    case.evidence.write(tmp_path / "evidence")
    assert verify_evidence(tmp_path / "evidence", **case.given(architecture=build)).exit_code == 0
    assert asked == ["one linear layer"]


def test_p_is_the_same_whatever_arithmetic_reads_the_suspect(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Another machine rounds otherwise; p follows from the pictures in the folder."""
    case.evidence.write(tmp_path / "evidence")
    monkeypatch.setattr(checks, "extract", lambda back, stamp: extract(back, stamp) * (1 + 1e-6) + 1e-6)
    result = verify_evidence(tmp_path / "evidence", **case.given())
    assert marks(result) == PASSED and result.exit_code == 0
    assert shown(result.verdict.p) == case.evidence.manifest["p"]


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_changed_bundles_verify_only_if_every_member_is_as_it_was(signer: Signer, tmp_path: Path):
    codes, answers = fuzz(200, 0, signer, tmp_path)
    assert sum(codes.values()) == 200 and codes[0] > 0 and codes[3] > 100
    assert {f"{name} FAILED" for name in ("files", "signature", "draws", "reading", "report")} <= set(answers)
