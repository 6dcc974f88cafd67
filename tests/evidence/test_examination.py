"""Evidence as its owner makes it, and that openssl and sha256sum accept it."""

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from clearstamp.errors import EvidenceError, SealError, SuspectError
from clearstamp.evidence import Evidence, Seal, Signer, commit, examine
from clearstamp.evidence import seal as sealing
from clearstamp.evidence.report import COMMANDS
from tests.evidence.bundles import Authority, Case, fresh, made, stamped

pytestmark = pytest.mark.usefixtures("quick")


def shell(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command.split(), cwd=folder, capture_output=True, text=True, check=False)


def test_the_commands_of_the_report_accept_what_is_written_and_no_change(case: Case, tmp_path: Path):
    folder = tmp_path / "evidence"
    case.evidence.write(folder)
    (tmp_path / "tsa.pem").write_bytes(case.authority.root)
    signed, listed, summed, dated = (command for _, command in COMMANDS[:4])
    for command, said in ((signed, "Verified Successfully"), (listed, "report.html: OK"), (dated, "Verification: OK")):
        done = shell(command, folder)
        assert done.returncode == 0 and said in done.stdout + done.stderr
    assert shell(summed, folder).stdout.split()[0] == json.loads((folder / "manifest.json").read_text())["sums"]
    for statement in ("seal/commitment.json", "deposit/deposit.json"):
        own = signed.replace("manifest.json", statement)
        assert shell(own, folder).returncode == 0
        assert shell(dated.replace("seal/commitment.json", statement), folder).returncode == 0
    for name, command in (("manifest.json", signed), ("report.html", listed), ("seal/commitment.json", dated)):
        (folder / name).write_bytes((folder / name).read_bytes() + b" ")
        assert shell(command, folder).returncode != 0


def test_the_owners_model_and_file_are_only_read(case: Case):
    model, before = fresh(case.seal), case.file.read_bytes()
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    examine(case.file, case.seal, model, signer=case.signer, commitment=case.evidence.commitment)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert case.file.read_bytes() == before


def test_statements_of_another_seal_or_owner_are_refused(case: Case, letters: Seal):
    other = Signer.make()
    said = {"signer": case.signer, "commitment": case.evidence.commitment, "deposit": case.evidence.deposit}
    for wrong, kind in (
        ({"commitment": commit(letters, case.signer)}, "commitment"),
        ({"commitment": commit(case.seal, other)}, "commitment"),
        ({"commitment": replace(case.evidence.commitment, signature=bytes(64))}, "commitment"),
        ({"signer": other, "commitment": commit(case.seal, other)}, "deposit"),
    ):
        with pytest.raises(EvidenceError, match=f"the {kind} is another seal's, or another owner's"):
            examine(case.file, case.seal, fresh(case.seal), **(said | wrong))


def test_what_cannot_be_read_makes_no_evidence(case: Case, tmp_path: Path):
    said = {"signer": case.signer, "commitment": case.evidence.commitment}
    with pytest.raises(EvidenceError, match="the suspect's file cannot be read"):
        examine(tmp_path / "none.pt", case.seal, fresh(case.seal), **said)
    (tmp_path / "words.pt").write_bytes(b"words")
    with pytest.raises(SuspectError, match="nothing of it was executed"):
        examine(tmp_path / "words.pt", case.seal, fresh(case.seal), **said)
    with pytest.raises(SealError, match="number of searched models out of range; got: 0"):
        examine(case.file, case.seal, fresh(case.seal), **said, searched=0)


def test_searched_files_and_half_checkpoints_are_told(case: Case, tmp_path: Path):
    weight, file = stamped(case.seal)[1].weight.detach().bfloat16(), tmp_path / "half.safetensors"
    save_file({"model.1.weight": weight, "optimizer": torch.ones(3)}, file)
    said = {"signer": case.signer, "commitment": case.evidence.commitment, "searched": 1000, "partial": True}
    found = examine(file, case.seal, fresh(case.seal), **said)
    assert found.verdict.tries == 2000 and found.manifest["p"] == "1.65437E-21"
    told = {name: found.suspect[name] for name in ("prefix", "matched", "missing", "extra", "converted")}
    assert told.pop("extra") == ["optimizer"]
    assert told == {"prefix": "model.", "matched": 1, "missing": ["1.bias"], "converted": {"bfloat16": 1}}
    assert 0.99 < found.suspect["coverage"] < 1


def test_every_word_in_the_folder_is_the_owners_or_the_librarys(case: Case):
    """No path, host or user of the machine on which evidence is made."""
    members = {name: content for name, content in case.evidence.members.items() if not name.endswith(".png")}
    assert not [name for name, content in members.items() if str(case.file.parent).encode() in content]
    assert case.evidence.suspect["files"][0]["name"] == "found.safetensors"


@pytest.mark.parametrize("kind", ["ordered", "coded"])
def test_other_tests_make_evidence_that_passes(kind, signer: Signer, authority: Authority, request, tmp_path: Path):
    seal = request.getfixturevalue(kind)
    if kind == "coded":
        seal = sealing.Seal.make(outputs=16, shape=(3, 16, 16), data=b"licence 7", patches=8, per_channel=True)
    found = made(seal, signer, authority, tmp_path)
    assert isinstance(found.evidence, Evidence) and found.evidence.manifest["outcome"] == "MATCH"
    given = found.given() | ({"alpha": seal.choices.alpha} if kind == "ordered" else {})
    result = found.verify(found.evidence, tmp_path / "evidence", **given)
    assert result.exit_code == 0, str(result)
    assert ("order of 5 pictures" if kind == "ordered" else "bits follow") in str(result)
