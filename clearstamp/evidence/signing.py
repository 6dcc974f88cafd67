"""Signatures and time-stamps: Ed25519 by `cryptography`, RFC 3161 by `rfc3161_client`, both of the extra `evidence`.

Everything is signed and dated as it is stored, byte by byte, so that `openssl` checks it without this library.
"""

import hashlib
import http.client
import importlib
import os
import urllib.request
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Self

from clearstamp.errors import EvidenceError
from clearstamp.files import write_atomically

GRANTED_WITH_CHANGES, SHA2 = 1, "2.16.840.1.101.3.4.2."
"""A status of RFC 3161, and how the names of hashes begin: of that one and of other hashes the library says nothing."""

LARGEST_TOKEN = 2**16
"""Bytes of a time-stamp that are still read; those in use have 2 to 8 thousand."""


class MissingPackageError(EvidenceError):
    """The extra is not installed."""


def needed(module: str) -> Any:
    """A module of the extra, imported when it is first used. Raises `MissingPackageError` if it is not there."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0].replace("_", "-")
        remedy = 'pip install "clearstamp[evidence]"'
        raise MissingPackageError(f"signatures and time-stamps need the package {package}", remedy=remedy) from error


class Signer:
    """An Ed25519 key that signs. **Secret.**

    `pem` is the private key, PKCS8 in PEM and without a passphrase, as `Signer.make` or
    `openssl genpkey -algorithm ed25519` write it. Raises `EvidenceError` for anything else.
    """

    def __init__(self, pem: bytes):
        serialization = needed("cryptography.hazmat.primitives.serialization")
        ed25519 = needed("cryptography.hazmat.primitives.asymmetric.ed25519")
        unsupported = needed("cryptography.exceptions").UnsupportedAlgorithm
        try:
            key = serialization.load_pem_private_key(pem, password=None)
        except (ValueError, TypeError, unsupported) as error:  # TypeError: there is a passphrase
            raise EvidenceError("not a private key", got=error, expected="Ed25519, PEM, no passphrase") from error
        if not isinstance(key, ed25519.Ed25519PrivateKey):
            raise EvidenceError("a private key of another kind", got=type(key).__name__, expected="Ed25519")
        self._key = key

    @classmethod
    def make(cls) -> Self:
        """A new key, from the system's source of randomness."""
        made = needed("cryptography.hazmat.primitives.asymmetric.ed25519").Ed25519PrivateKey.generate()
        return cls(private_pem(made))

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """The key in a file. Raises `EvidenceError` if there is none."""
        try:
            pem = Path(path).read_bytes()
        except OSError as error:
            raise EvidenceError("no private key there", got=error) from error
        return cls(pem)

    def save(self, path: str | Path) -> Path:
        """Write the private key, for its owner alone to read, and beside it ``path.pub``, which is returned.

        Raises `EvidenceError` if either is there already: a lost key cannot be had again.
        """
        private, public = Path(path), Path(f"{path}.pub")
        if there := [each for each in (private, public) if os.path.lexists(each)]:
            raise EvidenceError("a key is there already", got=there[0], remedy="choose another name")
        write_atomically(private, private_pem(self._key), mode=0o600)
        write_atomically(public, self.public)
        return public

    @property
    def public(self) -> bytes:
        """The public key, in PEM."""
        serialization = needed("cryptography.hazmat.primitives.serialization")
        return self._key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )

    def sign(self, content: bytes) -> bytes:
        """The signature: 64 bytes."""
        return self._key.sign(content)


def private_pem(key: Any) -> bytes:
    """A private key as `Signer` takes it."""
    serialization = needed("cryptography.hazmat.primitives.serialization")
    plain = serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)


def public_key(pem: bytes) -> Any:
    """An Ed25519 key of its PEM. Raises `EvidenceError` for anything else."""
    serialization = needed("cryptography.hazmat.primitives.serialization")
    ed25519 = needed("cryptography.hazmat.primitives.asymmetric.ed25519")
    unsupported = needed("cryptography.exceptions").UnsupportedAlgorithm
    try:
        key = serialization.load_pem_public_key(pem)
    except (ValueError, unsupported) as error:
        raise EvidenceError("not a public key", got=error, expected="Ed25519, in PEM") from error
    if not isinstance(key, ed25519.Ed25519PublicKey):
        raise EvidenceError("a public key of another kind", got=type(key).__name__, expected="Ed25519")
    return key


def signed_by(content: bytes, signature: bytes, public: bytes) -> bool:
    """Whether a signature of these bytes is that of a public key in PEM. Raises `EvidenceError` for another key."""
    key = public_key(public)
    try:
        key.verify(signature, content)
    except needed("cryptography.exceptions").InvalidSignature:
        return False
    return True


def fingerprint(public: bytes) -> str:
    """SHA-256 of a public key in PEM, over its DER form, in hexadecimal. Raises `EvidenceError` for another key."""
    serialization = needed("cryptography.hazmat.primitives.serialization")
    der = public_key(public).public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(der).hexdigest()


# ------------------------------------------------------------------------------------------------------- time-stamps


@dataclass(frozen=True)
class TimeStamp:
    """What a time-stamp says: when its authority had seen the bytes, and who that is."""

    time: datetime
    authority: str


class UnreadableTokenError(Exception):
    """A time-stamp that the library does not parse, which says nothing about its being right: openssl may."""


def time_stamp_request(content: bytes) -> bytes:
    """What is sent to a time-stamp authority (``.tsq``): the SHA-256 of the bytes, and nothing else of them.

    Raises `EvidenceError` if there are none.
    """
    if not content:
        raise EvidenceError("nothing to be dated", got="0 bytes")
    client = needed("rfc3161_client")
    builder = client.TimestampRequestBuilder().data(content).hash_algorithm(client.HashAlgorithm.SHA256)
    return builder.build().as_bytes()


def fetch_token(content: bytes, url: str, *, seconds: float = 30.0) -> bytes:
    """Ask a time-stamp authority for a token (``.tsr``). The only place of this library that uses a network.

    Raises `EvidenceError` if it does not answer in time, or with anything but a token of these bytes.
    """
    if not url.startswith(("http://", "https://")):
        raise EvidenceError("not the address of a time-stamp authority", got=repr(url), expected="http(s)://...")
    headers = {"Content-Type": "application/timestamp-query", "Accept": "application/timestamp-reply"}
    request = urllib.request.Request(url, time_stamp_request(content), headers, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=seconds) as answer:
            token: bytes = answer.read(LARGEST_TOKEN + 1)
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise EvidenceError("the time-stamp authority does not answer", got=error, where=url) from error
    if (
        len(token) > LARGEST_TOKEN or hashlib.sha256(content).digest() not in token
    ):  # whether the library parses it or not
        raise EvidenceError("the authority's answer is no time-stamp of these bytes", where=url)
    return token


def check_token(content: bytes, token: bytes, roots: bytes) -> TimeStamp:
    """What a token (``.tsr``) says of these bytes, offline, down to the root certificates in PEM that one trusts.

    Raises `EvidenceError` if it does not hold, `UnreadableTokenError` if it cannot be told.
    """
    client, x509 = needed("rfc3161_client"), needed("cryptography.x509")
    trusted = certificates(roots)
    try:
        found = client.decode_timestamp_response(token)
        hashed = found.tst_info.message_imprint.hash_algorithm.dotted_string
        if found.status == GRANTED_WITH_CHANGES or not hashed.startswith(SHA2):
            raise UnreadableTokenError(f"status {found.status}, hash {hashed}")
        client.VerifierBuilder(roots=trusted).build().verify_message(found, content)
        (signer,) = found.signed_data.signer_infos
        held = map(x509.load_der_x509_certificate, found.signed_data.certificates)
        leaf = next(each for each in held if (each.issuer, each.serial_number) == (signer.issuer, signer.serial_number))
        return TimeStamp(found.tst_info.gen_time, leaf.subject.rfc4514_string())
    except client.VerificationError as error:
        raise EvidenceError("the time-stamp does not hold", got=error) from error
    except UnreadableTokenError:
        raise
    except Exception as error:  # whatever parsers of certificates meet
        raise UnreadableTokenError(str(error)) from error


def certificates(roots: bytes) -> list[Any]:
    """Certificates of their PEM. Raises `EvidenceError` for anything else."""
    try:
        return needed("cryptography.x509").load_pem_x509_certificates(roots)
    except ValueError as error:
        raise EvidenceError("not certificates", got=error, expected="PEM") from error
