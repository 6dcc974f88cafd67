"""python tests/fuzz_evidence.py COUNT [SEED]: changed evidence, which verifies only if every member is as it was.

Folders and zips are cut, flipped, swapped, doubled and linked at random, some of them signed anew by the owner or by
somebody else, and given to `verify_evidence` with everything that a verifier has. At the end it prints how often which
check came to what, and the exit codes. An exit code of 0 is an error unless the members read are byte for byte those
of the original or, where the owner signed anew, give the same p.
"""

import json
import os
import random
import resource
import sys
import tempfile
import warnings
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from clearstamp import checkpoints, suspects
from clearstamp.evidence import Evidence, Seal, Signer, verify_evidence
from clearstamp.evidence import seal as sealing
from tests.evidence.bundles import Authority, Case, made, remembered, resigned

Members = dict[str, bytes]


def flipped(content: bytes, draw: random.Random) -> bytes:
    """With one bit or some of them changed."""
    changed = bytearray(content or b"\0")
    for _ in range(draw.choice([1, 1, 3, 50])):
        changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def rewritten(content: bytes, draw: random.Random) -> bytes:
    """JSON with one field changed, doubled, added or gone, or with other spaces."""
    try:
        held = json.loads(content)
    except ValueError:
        return flipped(content, draw)
    name = draw.choice(list(held))
    values = [None, 0, -1, 2**70, 1e308, "", "0" * 64, [], {}, "\x1b[31m", True, held[draw.choice(list(held))]]
    kind = draw.randrange(5)
    if kind == 0:
        held[name] = draw.choice(values)
    elif kind == 1:
        held.pop(name)
    elif kind == 2:
        held[draw.choice(["more", name.upper(), name + " "])] = draw.choice(values)
    elif kind == 3:
        doubled = json.dumps({name: draw.choice(values)})[1:-1]
        return content.replace(b"{", b"{" + doubled.encode() + b", ", 1)
    else:
        return json.dumps(held, separators=(",", ":")).encode()
    return json.dumps(held, indent=1).encode()


def changed(members: Members, stale: Members, draw: random.Random) -> Members:
    """The members with one thing wrong, or nothing. `stale` are those of another seal of the same owner."""
    names = list(members)
    one, other = draw.sample(names, 2)
    found = dict(members)
    kind = draw.randrange(11)
    if kind == 0:
        found[one] = flipped(found[one], draw)
    elif kind == 1:
        found[one], found[other] = found[other], found[one]
    elif kind == 2:
        found.pop(one)
    elif kind == 3:
        found[draw.choice([one + "x", one.upper(), "seal/" + one, "evil.sh", "../evil", f"./{one}"])] = found[other]
    elif kind == 4:
        found[one] = found[one][: draw.randrange(len(found[one]))] if found[one] else b"x"
    elif kind == 5:
        found[one] += draw.choice([b"\0", b"\n", b" ", found[one]])
    elif kind == 6:
        found[one] = stale.get(one, b"")
    elif kind == 7:
        part = draw.choice(["seal/", "secrets/", "pictures/", "deposit/", "seal/commitment"])
        found |= {name: content for name, content in stale.items() if name.startswith(part)}
    elif kind == 8:
        name = draw.choice([name for name in names if name.endswith(".json")])
        found[name] = rewritten(found[name], draw)
    elif kind == 9:
        name = draw.choice([name for name in names if name.endswith((".tsr", ".sig", ".pub", ".png", ".safetensors"))])
        found[name] = flipped(found[name], draw)
    return found


def readable(members: Members) -> bool:
    """Whether there is a manifest that can be signed anew."""
    try:
        return isinstance(json.loads(members.get("manifest.json", b"")), dict)
    except ValueError:
        return False


def write_folder(path: Path, members: Members, draw: random.Random) -> None:
    """A folder, at times with a link, a folder or a twin in it."""
    for name, content in members.items():
        target = path / name.lstrip("/").replace("../", "")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    kind = draw.randrange(12)
    plain = [each for each in path.rglob("*") if each.is_file()]
    if kind == 0:
        target = draw.choice(plain)
        target.rename(path.parent / "outside")
        target.symlink_to(path.parent / "outside")
    elif kind == 1:
        (path / draw.choice(["more", "seal/more", "deposit/more"])).mkdir(parents=True, exist_ok=True)
    elif kind == 2:
        target = draw.choice(plain)
        target.with_name(target.name.swapcase()).write_bytes(b"twin")
    elif kind == 3:
        os.mkfifo(path / "pipe")


def write_zip(path: Path, members: Members, draw: random.Random) -> None:
    """A zip, at times with a member twice, a link or a twin, cut, or with bits flipped."""
    entries: list[tuple[Any, bytes]] = list(members.items())
    name = draw.choice(list(members))
    kind = draw.randrange(12)
    if kind == 0:
        entries.insert(draw.randrange(len(entries)), (name, draw.choice([b"other", members[name]])))
    elif kind == 1:
        link = zipfile.ZipInfo(name)
        link.external_attr = 0o120777 << 16
        entries = [(link, b"/etc/passwd") if entry == name else (entry, held) for entry, held in entries]
    elif kind == 2:
        entries.append((name.swapcase(), members[name]))
    with zipfile.ZipFile(path, "w", draw.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])) as archive:
        for entry, content in entries:
            archive.writestr(entry, content)
    content = path.read_bytes()
    if kind == 3:
        content = content[: draw.randrange(len(content))]
    elif kind in (4, 5, 6):
        content = flipped(content, draw)
    elif kind == 7:
        content = draw.choice([b"#!/bin/sh\n" + content, content + b"more"])
    path.write_bytes(content)


def attempt(case: Case, stale: Members, stranger: Signer, folder: Path, draw: random.Random) -> tuple[int, list[str]]:
    """One changed bundle: the exit code, and what each check came to; an `AssertionError` if it is a false 0."""
    original = dict(case.evidence.members)
    members = changed(original, stale, draw)
    signing = draw.randrange(3)
    if signing == 1 and readable(members):  # a dishonest owner
        members = dict(resigned(Evidence(members), case.signer).members)
    elif signing == 2 and draw.random() < 0.3:
        members = dict(resigned(Evidence(original), stranger, {"owner.pub": stranger.public}).members)
    path = folder / "evidence"
    if draw.random() < 0.5:
        path = path.with_suffix(".zip")
        write_zip(path, members, draw)
    else:
        write_folder(path, members, draw)
    result = verify_evidence(path, **case.given())
    assert result.exit_code in (0, 3, 4), str(result)
    if result.exit_code == 0 and signing == 1:  # what is the owner's word may be another; what was read may not
        assert result.verdict is not None and result.verdict.p == case.evidence.verdict.p
    elif result.exit_code == 0:
        assert Evidence.read(path).members == original
    str(result), json.dumps(result.as_json())
    return result.exit_code, [f"{check.name} {check.mark.value}" for check in result.checks]


def fuzz(count: int, seed: int, owner: Signer, folder: Path) -> tuple[Counter[int], Counter[str]]:
    """How often each exit code, and each answer of each check, came."""
    draw, codes, answers = random.Random(seed), Counter[int](), Counter[str]()
    torch.manual_seed(seed)
    places = [folder / name for name in ("ours", "stale", "authority")]
    for place in places:
        place.mkdir()
    authority = Authority(places[2])
    case, other = (
        made(Seal.make(outputs=8, shape=(1, 28, 28), codes=5), owner, authority, place) for place in places[:2]
    )
    stranger = Signer.make()
    for _ in range(count):
        with tempfile.TemporaryDirectory(dir=folder) as inner:
            code, said = attempt(case, dict(other.evidence.members), stranger, Path(inner), draw)
        codes[code] += 1
        answers.update(said)
    return codes, answers


def main(count: int, seed: int = 0) -> None:
    warnings.filterwarnings("ignore", "Duplicate name")
    sealing.root = remembered  # scrypt once for each seal
    suspects.parsed = checkpoints.read_parts  # no process of its own
    begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tempfile.TemporaryDirectory() as folder:
        codes, answers = fuzz(count, seed, Signer.make(), Path(folder))
    taken = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - begun
    for what, times in sorted(answers.items()):
        print(f"{times:6}  {what}")
    print(f"{sum(codes.values())} bundles, exit codes {dict(sorted(codes.items()))}, {taken / 2**20:.2f} GiB")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
