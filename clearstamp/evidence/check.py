"""Redo draws and p of this evidence: python check.py [FOLDER]. It needs numpy and Pillow, not what wrote the folder."""

import json
import sys
from decimal import ROUND_CEILING, Context, Decimal
from hashlib import scrypt, sha256, shake_256
from itertools import accumulate, combinations, permutations
from math import factorial, isqrt
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def pixels(path: Path, channels: int) -> Any:
    held = np.asarray(Image.open(path).convert("RGB" if channels == 3 else "L"), np.int64)
    return held.transpose(2, 0, 1) if held.ndim == 3 else held.reshape(channels, -1, held.shape[1])


def template(pictures: Any, shown: Any) -> Any:
    left, right = (values.reshape(len(values), -1) for values in (pictures, shown))
    products = (left.shape[1] * (left @ right.T) - np.outer(left.sum(1), right.sum(1))).astype(object)
    spreads = [(left.shape[1] * (x**2).sum(1) - x.sum(1) ** 2).astype(object) for x in (left, right)]
    roots = np.vectorize(isqrt, [np.int64])(products**2 * 10**12 // np.maximum(np.outer(*spreads), 1))
    return np.where(products > 0, roots, -roots)


def binomial(right: int, of: int, one_in: int) -> Decimal:
    ways = accumulate(range(of, right, -1), lambda found, n: found * n * (one_in - 1) // (of - n + 1), initial=1)
    return Decimal(sum(ways)) / Decimal(one_in**of)


def chernoff(scores: Any, drawn: Any) -> Decimal:
    values = (scores - scores.max(1, keepdims=True)).astype(np.float64)
    reached, widest = values[np.arange(len(values)), drawn].sum(), float(-values.min()) or 1.0
    slopes = np.geomspace(1e-3, 1e4, 400) / widest
    least = min(float(np.log(np.exp(slope * values).mean(1)).sum() - slope * reached) for slope in slopes)
    return Decimal(min(0.0, least) * 0.999).exp()


def orders(scores: Any, drawn: list[int]) -> Decimal:
    half, reached, as_good = len(drawn) // 2, int(scores[np.arange(len(drawn)), drawn].sum()), 0
    for chosen in combinations(range(len(drawn)), half):
        others = sorted(set(range(len(drawn))) - set(chosen))
        first = scores[np.arange(half), np.array(list(permutations(chosen)), int)].sum(1)
        second = scores[np.arange(half, len(drawn)), np.array(list(permutations(others)), int)].sum(1)
        as_good += len(first) * len(second) - int(np.searchsorted(np.sort(second), reached - first).sum())
    return Decimal(as_good) / factorial(len(drawn))


sys.excepthook = lambda kind, error, _: print(f"NOT to be checked: {kind.__name__}: {error}", file=sys.stderr)
folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
names = ("seal/choices", "seal/commitment", "manifest", "reading", "suspect")
choices, commitment, manifest, reading, suspect = (json.loads((folder / f"{x}.json").read_bytes()) for x in names)
seed, salt = (folder / "seal/seed.bin").read_bytes(), sha256((folder / "seal/choices.json").read_bytes()).digest()
(channels, height, width), codes, about = reading["picture"], choices["codes"], choices["payload"]
owned = [folder / f"secrets/picture-{x:02d}.png" for x in range(1, len(choices["pictures"]) + 1)]
bits, glyphs, given = folder / "secrets/bits.bin", folder / "secrets/glyphs.png", choices["reader"] != "template"
said = [*zip(owned, choices["pictures"], strict=True), (glyphs, choices["glyphs"]), (bits, (about or {}).get("sha256"))]
wrong = [path for path, held in said if path.exists() and sha256(path.read_bytes()).hexdigest() != held]
if wrong or sha256(b"clearstamp/commitment/1\0" + seed + salt).hexdigest() != commitment["commitment"]:
    sys.exit("NOT the seed, choices, pictures, letters or bits of the commitment")
root = scrypt(seed, salt=salt, n=2**17, r=8, p=1, maxmem=2**28, dklen=32)
letters, mask, order = (shake_256(root + b"\0" + x).digest(2**20) for x in (b"letters", b"mask", b"order"))
keys = [pixels(folder / f"pictures/key-{x:02d}.png", channels) for x in range(1, codes + len(owned) + 1)]
grey = np.stack([picture.sum(0) for picture in keys])
if choices["test"] == "bits":
    side, own = about["patches"], about["per_channel"]
    down, along = (np.arange(size) * side // size for size in (height, width))
    where = ((np.arange(channels)[:, None, None] * side * own + down[:, None]) * side + along).reshape(-1)
    sides = np.stack([2 * np.bincount(where, x.reshape(-1)) - 255 * np.bincount(where) for x in keys[:codes]])
    coded, masked = (np.unpackbits(np.frombuffer(x, "u1"))[: sides.size] for x in (bits.read_bytes(), mask))
    p = binomial(int((sides.reshape(-1) * (2.0 * (coded ^ masked) - 1) > 0).sum()), sides.size, 2)
elif choices["test"] == "order":
    shown = np.stack([pixels(path, channels).sum(0) for path in owned])
    scores = np.array(reading["scores"]) if given else template(grey[codes:], shown)
    blocks, octets, product = -(-len(owned) // 12), iter(order), Decimal(1)
    for start, stop in ((len(owned) * x // blocks, len(owned) * (x + 1) // blocks) for x in range(blocks)):
        drawn = list(range(stop - start))
        for last in range(len(drawn) - 1, 0, -1):
            at = next(octet for octet in octets if octet < 256 - 256 % (last + 1)) % (last + 1)
            drawn[last], drawn[at] = drawn[at], drawn[last]
        product *= orders(scores[start:stop, start:stop], drawn)
    log = -product.ln() or Decimal("1e-99")  # for Fisher's sum over the blocks
    p = sum((product * log**n / factorial(n) for n in range(blocks)), Decimal())
else:
    rows, columns = choices["rows"], choices["columns"]
    high, wide, coded = height // rows, width // columns, grey[:codes] * codes - grey[:codes].sum(0) * (codes >= 4)
    cells = coded[:, : rows * high, : columns * wide].reshape(codes, rows, high, columns, wide)
    cut = cells.transpose(0, 1, 3, 2, 4).reshape(-1, high, wide)
    scores = np.array(reading["scores"]) if given else template(cut, pixels(glyphs, 16))
    meant = np.array([half for octet in letters for half in (octet >> 4, octet & 15)][: len(scores)])
    right = (scores.argmax(1) == meant) & ((scores == scores.max(1, keepdims=True)).sum(1) == 1)
    p = binomial(int(right.sum()), len(meant), 16) if choices["test"] == "letters" else chernoff(scores, meant)
tries = len(choices["attempts"]) * suspect["fitting"] * suspect["searched"]
p = Context(prec=6, rounding=ROUND_CEILING).plus(min(Decimal(1), p * tries))
print(f"p = {p}" + ", by the scores of reading.json" * given)
sys.exit(None if p == Decimal(manifest["p"]) else "NOT as the manifest says")
