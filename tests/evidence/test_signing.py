"""Keys, signatures and time-stamps, and that openssl takes what this library makes and the other way round."""

import hashlib
import stat
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from clearstamp.errors import EvidenceError
from clearstamp.evidence import Signer, check_token, fetch_token, signing, time_stamp_request
from clearstamp.evidence.signing import MissingPackageError, UnreadableTokenError, fingerprint, signed_by
from tests.evidence.bundles import Authority

RSA = "genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:1024"


def openssl(arguments: str, folder: Path) -> str:
    done = subprocess.run(["openssl", *arguments.split()], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def test_a_key_is_saved_for_its_owner_alone_and_never_over_another(tmp_path: Path):
    signer = Signer.make()
    public = signer.save(tmp_path / "owner.key")
    assert public == tmp_path / "owner.key.pub" and public.read_bytes() == signer.public
    assert stat.S_IMODE((tmp_path / "owner.key").stat().st_mode) == 0o600
    assert Signer.load(tmp_path / "owner.key").public == signer.public
    with pytest.raises(EvidenceError, match="a key is there already; got: .*owner.key;"):
        Signer.make().save(tmp_path / "owner.key")
    (tmp_path / "other.pub").symlink_to("nowhere")
    with pytest.raises(EvidenceError, match="a key is there already; got: .*other.pub;"):
        Signer.make().save(tmp_path / "other")


def test_what_was_signed_is_told_from_all_else(signer: Signer):
    signature = signer.sign(b"words")
    assert len(signature) == 64 and signed_by(b"words", signature, signer.public)
    assert not signed_by(b"word", signature, signer.public)
    assert not signed_by(b"words", signature, Signer.make().public)
    assert not signed_by(b"words", bytes([signature[0] ^ 1]) + signature[1:], signer.public)
    assert not signed_by(b"words", b"", signer.public)


def test_openssl_accepts_signatures_and_its_keys_are_accepted(signer: Signer, tmp_path: Path):
    openssl("genpkey -algorithm ed25519 -out theirs.key", tmp_path)
    openssl("pkey -in theirs.key -pubout -out theirs.pub", tmp_path)
    theirs = Signer.load(tmp_path / "theirs.key")
    assert theirs.public == (tmp_path / "theirs.pub").read_bytes()
    (tmp_path / "words").write_bytes(b"words")
    (tmp_path / "words.sig").write_bytes(theirs.sign(b"words"))
    said = openssl("pkeyutl -verify -pubin -inkey theirs.pub -rawin -in words -sigfile words.sig", tmp_path)
    assert "Signature Verified Successfully" in said
    openssl("pkey -pubin -in theirs.pub -outform DER -out theirs.der", tmp_path)
    assert fingerprint(theirs.public) == hashlib.sha256((tmp_path / "theirs.der").read_bytes()).hexdigest()


def test_other_keys_are_refused(signer: Signer, tmp_path: Path):
    openssl(f"{RSA} -out rsa.key", tmp_path)
    openssl("pkey -in rsa.key -pubout -out rsa.pub", tmp_path)
    openssl("genpkey -algorithm ed25519 -aes256 -pass pass:word -out locked.key", tmp_path)
    with pytest.raises(EvidenceError, match="private key of another kind; got: RSAPrivateKey"):
        Signer.load(tmp_path / "rsa.key")
    with pytest.raises(EvidenceError, match="not a private key; got: Password"):
        Signer.load(tmp_path / "locked.key")
    with pytest.raises(EvidenceError, match="no private key there"):
        Signer.load(tmp_path / "none.key")
    with pytest.raises(EvidenceError, match="public key of another kind; got: RSAPublicKey"):
        fingerprint((tmp_path / "rsa.pub").read_bytes())
    with pytest.raises(EvidenceError, match="not a public key"):
        fingerprint(signer.public[:60])


def test_without_the_extra_a_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    def absent(module: str) -> None:
        raise ImportError(module)

    monkeypatch.setattr(signing.importlib, "import_module", absent)
    with pytest.raises(MissingPackageError, match=r"the package cryptography; .*clearstamp\[evidence\]"):
        Signer.make()
    with pytest.raises(MissingPackageError, match="the package rfc3161-client"):
        time_stamp_request(b"words")


def test_a_time_stamp_holds_for_its_bytes_and_its_root_alone(authority: Authority, tmp_path: Path):
    token = authority.token(b"words")
    found = check_token(b"words", token, authority.root)
    assert found.authority == "CN=Authority" and found.time.tzname() == "UTC"
    with pytest.raises(EvidenceError, match="does not hold; got: Mismatch between messages"):
        check_token(b"word", token, authority.root)
    with pytest.raises(EvidenceError, match="does not hold; got: Error while verifying certificates"):
        check_token(b"words", token, Authority(tmp_path).root)
    with pytest.raises(EvidenceError, match="not certificates"):
        check_token(b"words", token, b"")
    with pytest.raises(UnreadableTokenError):
        check_token(b"words", token[:-9], authority.root)


def test_a_time_stamp_that_only_openssl_reads_is_not_called_false(authority: Authority):
    """Of two certificates in the order in which OpenSSL 3.0 writes them the library says InvalidSetOrdering."""
    token = authority.token(b"words", "-chain root.pem")
    (authority.folder / "words").write_bytes(b"words")
    assert "Verification: OK" in openssl("ts -verify -data words -in answer.tsr -CAfile root.pem", authority.folder)
    with pytest.raises(UnreadableTokenError, match="InvalidSetOrdering"):
        check_token(b"words", token, authority.root)


@pytest.mark.parametrize(("kind", "right"), [("sha1", False), ("sha256", True), ("sha512", True)])
def test_a_time_stamp_of_a_hash_that_only_openssl_takes_is_not_called_false(
    authority: Authority, kind: str, right: bool
):
    (authority.folder / "words").write_bytes(b"words")
    openssl(f"ts -query -data words -{kind} -cert -out {kind}.tsq", authority.folder)
    token = authority.reply((authority.folder / f"{kind}.tsq").read_bytes())
    if right:
        assert check_token(b"words", token, authority.root).authority == "CN=Authority"
    else:
        with pytest.raises(UnreadableTokenError, match="status 0, hash 1.3.14.3.2.26"):
            check_token(b"words", token, authority.root)


def test_a_time_stamp_that_was_granted_with_changes_is_not_called_false(authority: Authority):
    """As openssl takes it; the status is one of its first bytes, and not signed."""
    token = authority.token(b"words")
    at = token.index(b"\x02\x01\x00")
    changed = token[:at] + b"\x02\x01\x01" + token[at + 3 :]
    with pytest.raises(UnreadableTokenError, match="status 1"):
        check_token(b"words", changed, authority.root)


def test_nothing_is_not_dated():
    with pytest.raises(EvidenceError, match="nothing to be dated; got: 0 bytes"):
        time_stamp_request(b"")


@contextmanager
def served(answer: bytes) -> Iterator[tuple[str, list[bytes]]]:
    """The address of a server that gives one answer to everything, and what it was sent."""
    asked: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", asked
        finally:
            server.shutdown()
            thread.join()


def test_a_token_is_fetched_and_no_more_is_told_than_a_hash(authority: Authority):
    token = authority.token(b"words")
    with served(token) as (url, asked):
        assert fetch_token(b"words", url) == token
    assert hashlib.sha256(b"words").digest() in asked[0] and b"words" not in asked[0]
    for answer in (b"", authority.token(b"other"), token + bytes(2**17)):
        with served(answer) as (url, _), pytest.raises(EvidenceError, match="no time-stamp of these bytes"):
            fetch_token(b"words", url)
    for address in ("http://127.0.0.1:1", "http://127.0.0.1:port", "http://", "http://a b/"):
        with pytest.raises(EvidenceError, match="does not answer"):
            fetch_token(b"words", address)
    with pytest.raises(EvidenceError, match="not the address of a time-stamp authority"):
        fetch_token(b"words", "file:///etc/passwd")
