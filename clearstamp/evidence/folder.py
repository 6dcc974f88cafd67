"""The evidence folder: what lies in it, written and read strictly. A zip is for transport only."""

import hashlib
import json
import os
import re
import stat
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from clearstamp.checkpoints import shards
from clearstamp.errors import EvidenceError
from clearstamp.evidence.readers import Numbers, Pixels, best
from clearstamp.evidence.seal import Choices, Seal, opened, png, sha256, strict_json
from clearstamp.evidence.statements import BESIDE, Statement, checked, in_numbers
from clearstamp.evidence.verdict import Verdict, judge
from clearstamp.files import write_atomically

KIND = "clearstamp/evidence/"
VERSION = 1

LARGEST, MOST = 2**28, 4096
"""Bytes of all members together, and how many there may be."""

UNSUMMED = ("manifest.json", "manifest.json.sig", "SHA256SUMS")
"""What the list of hashes cannot hold: itself, and what signs it."""

NAMES = re.compile(
    r"README\.txt|SHA256SUMS|check\.py|owner\.pub|manifest\.json(\.sig)?|report\.html"
    r"|(environment|reading|suspect)\.json|seal/(choices\.json|seed\.bin)"
    r"|(seal/commitment|deposit/deposit)\.json(\.sig|\.tsr|\.ots)?|pictures/raw\.safetensors"
    r"|(pictures|secrets)/key-\d{2,4}\.png|secrets/(picture-\d{2,4}\.png|glyphs\.png|data\.bin|bits\.bin)"
)
"""What a member may be called."""

FOLDERS = ("seal", "deposit", "pictures", "secrets")

MANIFEST = {
    "clearstamp": str,
    "time": str,
    "commitment": str,
    "suspect": str,
    "outcome": str,
    "p": str,
    "test": str,
    "right": int,
    "of": int,
    "tries": int,
    "sums": str,
}
SUSPECT = {
    "files": list,
    "tensors": str,
    "architecture": str,
    "held": str,
    "prefix": str,
    "fitting": int,
    "matched": int,
    "missing": list,
    "extra": list,
    "misshapen": list,
    "converted": dict,
    "head": str,
    "coverage": float,
    "attempt": str,
    "source": str,
    "obtained": str,
    "searched": int,
}
"""The fields of each of these files, and the types of their values."""


class UnreadableError(EvidenceError):
    """Evidence that the system does not let one read, which says nothing about what is in it."""


@dataclass(frozen=True, repr=False, eq=False)
class Evidence:
    """An evidence folder in memory: the bytes of every member by its name, so that nothing changes once it is checked.

    The properties raise `EvidenceError` or `SealError` for members that are not what they should be.
    """

    members: Mapping[str, bytes]

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """A folder or a zip, whole. Raises `EvidenceError` for links, names that cannot be, and more than is read.

        Raises `UnreadableError`, which is one, where the system refuses.

        Nothing is said about who made it: that is for `verify_evidence`. Of a zip the members alone count: other
        bytes between them change nothing.
        """
        path = Path(path)
        members: dict[str, bytes] = {}
        left, taken = LARGEST, set[str]()
        try:
            for name, content in folder_members(path) if path.is_dir() else zip_members(path):
                left -= len(content)
                if left < 0 or len(members) >= MOST:
                    expected = f"at most {MOST} files of {LARGEST >> 20} MiB together"
                    raise EvidenceError("more than evidence has", expected=expected, where=path)
                if name.casefold() in taken:
                    raise EvidenceError("two files of one name", got=ascii(name), where=path)
                members[name] = content
                taken.add(name.casefold())
        except OSError as error:
            raise UnreadableError("the evidence cannot be read", got=error) from error
        return cls(members)

    def write(self, path: str | Path) -> None:
        """As a new folder. Raises `EvidenceError` if there is one that holds anything."""
        path = Path(path)
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise EvidenceError("there is something already", got=path, remedy="choose another folder")
        for name, content in self.members.items():
            write_atomically(path / name, content)

    def file(self, name: str) -> bytes:
        """A member. Raises `EvidenceError` if it is not there."""
        if name not in self.members:
            raise EvidenceError("a file is missing", got=name)
        return self.members[name]

    # --------------------------------------------------------------------------------------------- what members say

    @property
    def version(self) -> int:
        """Of the format, as the manifest has it, before anything else is looked at."""
        try:
            held = json.loads(self.file("manifest.json"))
            return int(re.fullmatch(rf"{KIND}(\d{{1,4}})", held["type"])[1])  # type: ignore[index]
        except (ValueError, RecursionError, TypeError, KeyError) as error:
            raise EvidenceError("not evidence, or not whole", where="manifest.json") from error

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """What was signed: verdict, p, and the hash of all hashes."""
        return checked(strict_json(self.file("manifest.json"), f"{KIND}{VERSION}"), MANIFEST, "manifest.json")

    @cached_property
    def suspect(self) -> dict[str, Any]:
        """Which file was examined, how it was read, and what is said of where it came from.

        ``["architecture"]`` is the text that names the architecture.
        """
        found = checked(strict_json(self.file("suspect.json"), "clearstamp/suspect/1"), SUSPECT, "suspect.json")
        for each in found["files"]:
            if type(each) is not dict:
                raise EvidenceError("not the list of a suspect's files", where="suspect.json")
            checked(each, {"name": str, "size": int, "sha256": str}, "suspect.json")
        tries = (found["fitting"], found["searched"])
        if not 1 <= min(tries) <= max(tries) < 10**9 or found["attempt"] not in self.seal.choices.attempts:
            raise EvidenceError("attempts that cannot be", where="suspect.json")
        return found

    @cached_property
    def seal(self) -> Seal:
        """The opened seal."""
        written = self.file("seal/choices.json")
        count = len(Choices.read(written).pictures)
        return Seal(
            written,
            self.file("seal/seed.bin"),
            glyphs=self.members.get("secrets/glyphs.png", b""),
            pictures=tuple(self.file(f"secrets/picture-{place:02d}.png") for place in range(1, count + 1)),
            data=self.members.get("secrets/data.bin", b""),
        )

    @cached_property
    def pictures(self) -> Pixels:
        """What was read out of the suspect, ``[k, C, H, W]``: the pixels of the PNGs."""
        shape = (1, *self.seal.choices.shape)
        return np.concatenate([opened(self.file(name), shape) for name in key_names("pictures", len(self.seal))])

    @cached_property
    def signals(self) -> Tensor:
        """The same before it was developed, as it came out of the model: float32 ``[k, *input]``."""
        try:
            found = load(self.file("pictures/raw.safetensors"))["signals"]
        except (SafetensorError, KeyError, ValueError) as error:
            raise EvidenceError("not a whole safetensors file", where="pictures/raw.safetensors") from error
        expected = (len(self.seal), *self.seal.choices.input)
        if found.dtype != torch.float32 or tuple(found.shape) != expected or not found.isfinite().all():
            raise EvidenceError("signals of another shape", got=list(found.shape), expected=expected)
        return found

    @cached_property
    def verdict(self) -> Verdict:
        """On the pictures as they are in the folder, whatever the manifest says."""
        suspect = self.suspect
        searched, grafted = suspect["searched"] * suspect["fitting"], bool(suspect["head"])
        return judge(self.seal, self.pictures, attempt=suspect["attempt"], searched=searched, grafted=grafted)

    @property
    def commitment(self) -> Statement:
        """As signed and dated at sealing."""
        return self.statement("seal/commitment.json")

    @property
    def deposit(self) -> Statement | None:
        """As signed and dated after training."""
        return self.statement("deposit/deposit.json") if "deposit/deposit.json" in self.members else None

    def statement(self, name: str) -> Statement:
        beside = {each: self.members.get(name + ending) for each, ending in BESIDE.items()}
        return Statement(self.file(name), self.file(f"{name}.sig"), beside["token"], beside["calendar"])


# ---------------------------------------------------------------------------------------------- what a folder holds


def suspect_files(path: Path) -> list[dict[str, Any]]:
    """Name, bytes and SHA-256 of a suspect's file, or of an index and its shards. Raises `EvidenceError`."""
    found = []
    try:
        for each in (path, *shards(path)):
            with open(each, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                found.append({"name": each.name, "size": file.tell(), "sha256": digest})
    except OSError as error:
        raise EvidenceError("the suspect's file cannot be read", got=error) from error
    return found


def key_names(folder: str, count: int) -> list[str]:
    """The names of the pictures of so many keys."""
    return [f"{folder}/key-{place:02d}.png" for place in range(1, count + 1)]


def statement_files(name: str, statement: Statement) -> dict[str, bytes]:
    """The members that hold a statement and what belongs to it."""
    return {name + ending: content for ending, content in statement.files().items()}


def opened_seal(seal: Seal) -> dict[str, bytes]:
    """The members that hold a seal, and the pictures that its keys are to reveal."""
    found = {"seal/choices.json": seal.written, "seal/seed.bin": seal.seed}
    found |= {f"secrets/picture-{place:02d}.png": given for place, given in enumerate(seal.pictures, 1)}
    found |= zip(key_names("secrets", len(seal)), map(png, seal.secrets()), strict=True)
    if seal.glyphs:
        found["secrets/glyphs.png"] = seal.glyphs
    if seal.choices.payload is not None:
        found |= {"secrets/data.bin": seal.data, "secrets/bits.bin": seal.coded}
    return found


def read_pictures(signals: Tensor, pictures: Pixels) -> dict[str, bytes]:
    """The members that hold what was read."""
    found = {"pictures/raw.safetensors": save({"signals": signals.contiguous()})}
    return found | dict(zip(key_names("pictures", len(pictures)), map(png, pictures), strict=True))


def reading(seal: Seal, verdict: Verdict) -> bytes:
    """``reading.json``: what was counted, and which letters were drawn and read; ``?`` where two score alike."""
    held: dict[str, Any] = {"type": "clearstamp/reading/1"} | in_numbers(verdict)
    if seal.choices.letters:
        held |= {"drawn": spelled(seal, seal.letters.reshape(-1)), "read": spelled(seal, best(verdict.scores))}
    held["picture"] = list(seal.choices.shape)
    rows = ",\n  ".join(json.dumps(row) for row in verdict.scores.tolist())
    return (json.dumps(held, indent=1)[:-2] + f',\n "scores": [\n  {rows}\n ]\n}}\n').encode()


def spelled(seal: Seal, places: Numbers) -> list[str]:
    """Letters by their places in the alphabet, as a string for each picture."""
    letters = ["?" if place < 0 else seal.choices.alphabet[place] for place in places]
    size = len(letters) // seal.choices.codes
    return ["".join(letters[start : start + size]) for start in range(0, len(letters), size)]


def sums(members: Mapping[str, bytes]) -> bytes:
    """``SHA256SUMS``, as `sha256sum` writes and checks it."""
    names = sorted(name for name in members if name not in UNSUMMED)
    return "".join(f"{sha256(members[name])}  {name}\n" for name in names).encode("utf-8", "surrogateescape")


# ---------------------------------------------------------------------------------------------------- read strictly


def folder_members(path: Path) -> Iterator[tuple[str, bytes]]:
    """Every file of a folder by its name. Raises `EvidenceError` for a link, and for folders that evidence lacks."""
    for entry in sorted(os.scandir(path), key=lambda entry: entry.name):
        if entry.is_dir(follow_symlinks=False) and entry.name in FOLDERS:
            for inner in sorted(os.scandir(entry.path), key=lambda entry: entry.name):
                yield f"{entry.name}/{inner.name}", file_content(inner)
        else:
            yield entry.name, file_content(entry)


def file_content(entry: os.DirEntry[str]) -> bytes:
    """The bytes of a plain file, of which no more is read than evidence may have."""
    if not entry.is_file(follow_symlinks=False):
        raise EvidenceError("neither a plain file nor a folder of evidence", got=ascii(entry.name))
    file = os.open(entry.path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    with os.fdopen(file, "rb") as opened_file:
        return opened_file.read(LARGEST + 1)


def zip_members(path: Path) -> Iterator[tuple[str, bytes]]:
    """Every file of a zip by its name, without a folder around all of them.

    Raises `EvidenceError` for what the same names could hide, for links, encryption, and anything that does not unpack.
    """
    with open(path, "rb") as opened_file:
        try:
            archive = zipfile.ZipFile(opened_file)
            entries = [entry for entry in archive.infolist() if not plain_folder(entry)]
            around = re.match(r"\w[^/\\:]*/", os.path.commonprefix([entry.filename for entry in entries]))
            for entry in entries:
                kind = stat.S_IFMT(entry.external_attr >> 16)
                if kind not in (0, stat.S_IFREG) or entry.flag_bits & 1 or entry.orig_filename != entry.filename:
                    raise EvidenceError("neither a plain file nor a folder of evidence", got=ascii(entry.filename))
                with archive.open(entry) as file:
                    yield entry.filename.removeprefix(around[0] if around else ""), file.read(LARGEST + 1)
        except EvidenceError:
            raise
        except Exception as error:  # of a damaged zip the library raises whatever its parsers meet
            raise EvidenceError("neither a folder nor a whole zip", got=type(error).__name__, where=path) from error


def plain_folder(entry: zipfile.ZipInfo) -> bool:
    """Whether an entry of a zip is a folder of evidence, or one around all of it, and holds nothing itself."""
    return entry.is_dir() and entry.file_size == 0
