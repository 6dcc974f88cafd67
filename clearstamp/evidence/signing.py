"""Signatures and time-stamps: Ed25519 by `cryptography`, RFC 3161 by `rfc3161_client`, both of the extra `evidence`.

Everything is signed and dated as it is stored, byte by byte, so that `openssl` checks it without this library.
"""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Self


class Signer:
    """An Ed25519 key that signs. **Secret.**

    `pem` is the private key, PKCS8 in PEM and without a passphrase, as `Signer.make` or
    `openssl genpkey -algorithm ed25519` write it. Raises `EvidenceError` for anything else.
    """

    def __init__(self, pem: bytes):
        raise NotImplementedError

    @classmethod
    def make(cls) -> Self:
        """A new key, from the system's source of randomness."""
        raise NotImplementedError

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """The key in a file. Raises `EvidenceError` if there is none."""
        raise NotImplementedError

    def save(self, path: str | Path) -> Path:
        """Write the private key, for its owner alone to read, and beside it ``path.pub``, which is returned.

        Raises `EvidenceError` if either is there already: a lost key cannot be had again.
        """
        raise NotImplementedError

    @property
    def public(self) -> bytes:
        """The public key, in PEM."""
        raise NotImplementedError

    def sign(self, content: bytes) -> bytes:
        """The signature: 64 bytes."""
        raise NotImplementedError


def signed_by(content: bytes, signature: bytes, public: bytes) -> bool:
    """Whether a signature of these bytes is that of a public key in PEM. Raises `EvidenceError` for another key."""
    raise NotImplementedError


def fingerprint(public: bytes) -> str:
    """SHA-256 of a public key in PEM, over its DER form, in hexadecimal. Raises `EvidenceError` for another key."""
    raise NotImplementedError


@dataclass(frozen=True)
class TimeStamp:
    """What a time-stamp says: when its authority had seen the bytes, and who that is."""

    time: datetime
    authority: str


class UnreadableTokenError(Exception):
    """A time-stamp that the library does not parse, which says nothing about its being right: openssl may."""


def time_stamp_request(content: bytes) -> bytes:
    """What is sent to a time-stamp authority (``.tsq``): the SHA-256 of the bytes, and nothing else of them."""
    raise NotImplementedError


def fetch_token(content: bytes, url: str, *, seconds: float = 30.0) -> bytes:
    """Ask a time-stamp authority for a token (``.tsr``). The only place of this library that uses a network.

    Raises `EvidenceError` if it does not answer in time, or with anything but a token of these bytes.
    """
    raise NotImplementedError


def check_token(content: bytes, token: bytes, roots: bytes) -> TimeStamp:
    """What a token (``.tsr``) says of these bytes, offline, down to the root certificates in PEM that one trusts.

    Raises `EvidenceError` if it does not hold, `UnreadableTokenError` if it cannot be told.
    """
    raise NotImplementedError
