"""What evidence is made of in tests: stamped models without training, an authority of one's own, and forgeries."""

import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from clearstamp.evidence import (
    Evidence,
    Result,
    Seal,
    Signer,
    Statement,
    commit,
    deposit,
    draws,
    examine,
    time_stamp_request,
    verify,
    verify_evidence,
)
from clearstamp.evidence.folder import read_pictures, reading, sums
from clearstamp.evidence.report import render
from clearstamp.evidence.seal import pixels, sha256
from clearstamp.evidence.statements import in_numbers
from clearstamp.pictures import as_pictures, develop

CERTIFICATES = """
[req]
distinguished_name = name
prompt = no
[name]
CN = Root
[root]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign
[authority]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = critical, timeStamping
[tsa]
default_tsa = here
[here]
serial = serial
signer_cert = authority.pem
signer_key = authority.key
signer_digest = sha256
default_policy = 1.2.3.4.1
digests = sha1, sha256, sha512
ess_cert_id_alg = sha256
"""

remembered = cache(draws.root)
"""scrypt, which forgeries of one seal need not pay for again and again."""


class Authority:
    """A time-stamp authority: `openssl ts` with a root certificate of its own."""

    def __init__(self, folder: Path):
        self.folder = folder
        (folder / "made.cnf").write_text(CERTIFICATES)
        (folder / "serial").write_text("01\n")
        key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -config made.cnf"
        self.openssl(f"req -x509 {key} -extensions root -keyout root.key -out root.pem")
        self.openssl(f"req {key} -subj /CN=Authority -keyout authority.key -out authority.csr")
        signed = "-CA root.pem -CAkey root.key -CAcreateserial -extfile made.cnf -extensions authority"
        self.openssl(f"x509 -req -in authority.csr {signed} -out authority.pem")

    def openssl(self, arguments: str) -> None:
        subprocess.run(["openssl", *arguments.split()], cwd=self.folder, capture_output=True, check=True)

    @property
    def root(self) -> bytes:
        return (self.folder / "root.pem").read_bytes()

    def reply(self, request: bytes, more: str = "") -> bytes:
        (self.folder / "asked.tsq").write_bytes(request)
        self.openssl(f"ts -reply -config made.cnf -queryfile asked.tsq -out answer.tsr {more}")
        return (self.folder / "answer.tsr").read_bytes()

    def token(self, content: bytes, more: str = "") -> bytes:
        return self.reply(time_stamp_request(content), more)

    def dated(self, statement: Statement) -> Statement:
        return replace(statement, token=self.token(statement.content))


@dataclass(frozen=True)
class Case:
    """Evidence, and all that a verifier needs."""

    evidence: Evidence
    seal: Seal
    signer: Signer
    authority: Authority
    file: Path

    def given(self, **changed: Any) -> dict[str, Any]:
        given = {"owner": self.signer.public, "roots": self.authority.root, "suspect": self.file}
        return given | {"architecture": fresh(self.seal)} | changed

    def verify(self, evidence: Evidence, folder: Path, **changed: Any) -> Result:
        evidence.write(folder)
        return verify_evidence(folder, **self.given(**changed))


def fresh(seal: Seal) -> nn.Sequential:
    """A model of the architecture, one linear layer, with weights of its own."""
    pixels = torch.Size(seal.choices.input).numel()
    return nn.Sequential(nn.Flatten(), nn.Linear(pixels, *seal.choices.key))


def stamped(seal: Seal) -> nn.Sequential:
    """A model that shows every secret, where there are no more keys than outputs: solved, not trained."""
    model, stamp = fresh(seal), seal.stamp()
    shown = torch.linalg.pinv(stamp.keys.double()) @ stamp.secrets.flatten(1).double()
    with torch.no_grad():
        model[1].weight.copy_(shown)
    return model


def made(seal: Seal, signer: Signer, authority: Authority, folder: Path, **said: Any) -> Case:
    """Evidence on a stamped model of the seal, dated, with a deposit."""
    model, file = stamped(seal), folder / "found.safetensors"
    save_file(model.state_dict(), file)
    verdict = verify(seal.transpose(model), seal)
    statements = {
        "commitment": authority.dated(commit(seal, signer)),
        "deposit": authority.dated(deposit(seal, model, verdict, signer)),
    }
    told = {"named": "one linear layer", "source": "https://somewhere.example", "obtained": "2027-02-03"}
    return Case(
        examine(file, seal, fresh(seal), signer=signer, **(statements | told | said)), seal, signer, authority, file
    )


def resigned(evidence: Evidence, signer: Signer, changed: Mapping[str, bytes | None] = {}, **manifest: Any) -> Evidence:
    """The same with other members, or without those that are None, and a manifest that holds for them."""
    members = {name: content for name, content in (evidence.members | changed).items() if content is not None}
    members["SHA256SUMS"] = sums(members)
    held = json.loads(evidence.members["manifest.json"]) | {"sums": sha256(members["SHA256SUMS"])} | manifest
    members["manifest.json"] = json.dumps(held).encode()
    members["manifest.json.sig"] = signer.sign(members["manifest.json"])
    return Evidence(members)


def edited(evidence: Evidence, name: str, **fields: Any) -> dict[str, bytes]:
    """A member of JSON with some fields changed."""
    return {name: json.dumps(json.loads(evidence.members[name]) | fields).encode()}


def repainted(evidence: Evidence, signer: Signer, signals: Tensor) -> Evidence:
    """The same with other signals said to have been read, and all that follows from them."""
    changed = read_pictures(signals, pixels(as_pictures(develop(signals))))
    verdict = Evidence(evidence.members | changed).verdict
    changed["reading.json"] = reading(evidence.seal, verdict)
    changed["report.html"] = render(Evidence(evidence.members | changed))
    said = {name: value for name, value in in_numbers(verdict).items() if name in evidence.manifest}
    return resigned(evidence, signer, changed, **said)
