"""Commitments and deposits: what they say, and what is refused."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from clearstamp.errors import EvidenceError, SealError
from clearstamp.evidence import Seal, Signer, Statement, commit, deposit, verify
from clearstamp.evidence.signing import fingerprint, signed_by
from clearstamp.evidence.statements import statement_fields, tensor_digest
from tests.evidence.bundles import stamped


def test_a_commitment_binds_seal_and_key_and_tells_nothing_else(small: Seal, signer: Signer):
    found = commit(small, signer)
    said = statement_fields(found.content, "commitment")
    assert said == {"commitment": small.commitment, "owner": fingerprint(signer.public)}
    assert signed_by(found.content, found.signature, signer.public) and found.token is None
    assert small.seed.hex() not in found.content.decode() and "ours" not in found.content.decode()


def test_a_deposit_names_the_model_and_its_reading(small: Seal, signer: Signer):
    model = stamped(small)
    found = deposit(small, model, verify(small.transpose(model), small), signer)
    said = statement_fields(found.content, "deposit")
    assert said["model"] == tensor_digest(model) and said["commitment"] == small.commitment
    assert (said["reading"]["outcome"], said["reading"]["p"], said["reading"]["right"]) == ("MATCH", "1.65437E-24", 20)


def test_statements_are_saved_with_what_belongs_to_them(tmp_path: Path):
    whole = Statement(b"{}", b"signature", b"token", b"proof")
    whole.save(tmp_path / "whole.json")
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".ots", ".sig", ".tsr"]
    assert Statement.load(tmp_path / "whole.json") == whole
    (tmp_path / "whole.json.tsr").unlink()
    assert Statement.load(tmp_path / "whole.json").token is None
    (tmp_path / "whole.json.sig").unlink()
    with pytest.raises(EvidenceError, match=r"a statement without a signature; expected: .*whole\.json\.sig"):
        Statement.load(tmp_path / "whole.json")
    with pytest.raises(EvidenceError, match="no statement there"):
        Statement.load(tmp_path / "none.json")


def test_statements_of_other_fields_or_kinds_are_refused(small: Seal, signer: Signer):
    content = commit(small, signer).content
    for held, error, match in (
        (json.loads(content) | {"more": 1}, EvidenceError, "unknown, missing or of another type; got: 'more'"),
        (json.loads(content) | {"owner": 1}, EvidenceError, "got: 'owner'"),
        ({"type": "clearstamp/commitment/1"}, EvidenceError, "got: 'commitment', 'owner'"),
        (json.loads(content) | {"type": "clearstamp/deposit/1"}, SealError, "not of the expected type"),
    ):
        with pytest.raises(error, match=match):
            statement_fields(json.dumps(held).encode(), "commitment")
    with pytest.raises(SealError, match="occurs twice"):
        statement_fields(content.replace(b'"owner"', b'"owner": "", "owner"'), "commitment")


def test_the_digest_is_of_names_shapes_and_values_as_a_suspect_is_read():
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    digest = tensor_digest(model)
    model[1].num_batches_tracked += 1
    assert tensor_digest(model.double()) == digest  # double holds the same numbers
    assert tensor_digest(nn.DataParallel(model.float())) == digest
    assert tensor_digest(model.bfloat16()) != digest
    model.float()
    for name in ("0.weight", "1.running_var"):
        changed = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
        changed.load_state_dict(model.state_dict())
        before = tensor_digest(changed)
        with torch.no_grad():
            changed.state_dict()[name].view(-1)[0] += 1
        assert tensor_digest(changed) != before
    assert tensor_digest(nn.Sequential(model[0])) != tensor_digest(model[0])
