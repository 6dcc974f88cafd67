"""Seals: an owner's choices, hashed before training, and the stamp that is drawn from that hash and a secret seed."""

import base64
import hashlib
import io
import json
import secrets
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from decimal import Decimal
from fractions import Fraction
from functools import cached_property
from itertools import chain
from math import factorial, prod
from pathlib import Path
from typing import Any, NoReturn, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from clearstamp.coding.codes import Bits
from clearstamp.coding.payload import Payload, capacity, draw_bits, laid_out, places
from clearstamp.errors import SealError
from clearstamp.evidence import chance
from clearstamp.evidence.draws import SEED, Draws, blocks, commitment, root
from clearstamp.evidence.readers import READERS, Numbers, Pixels
from clearstamp.files import write_atomically
from clearstamp.pictures import draw_text, open_image, picture_shape
from clearstamp.stamp import MAX_KEY, Stamp
from clearstamp.transpose import NAMES, transpose
from clearstamp.transposed.base import PROBE_SEED, Transposed
from clearstamp.transposed.graph import Graph, Tap, capture

ALPHABET = "45AFGJLMNQRVWXYZ"
"""Sixteen letters that are hard to take for one another: the worst pair, at 14 x 14 pixels, correlates at 0.70."""

BAR = 64
"""A match is a p of at most 2 to the power of minus this."""

TESTS = ("letters", "letters-soft", "bits", "order")
ATTEMPTS = ("as is", "merged units")
CHOICES, SEALED = "clearstamp/choices/1", "clearstamp/seal/1"
LONGEST, LARGEST = 2**16, 2**26
"""The most of anything that a file may ask for, such as pixels along a side, and of numbers in all keys."""

MOST_KEYS, MOST_PIXELS, MOST_BITS = 1000, 2**24, 2**18
"""How many keys, and numbers in all their pictures, a folder of evidence holds, and how many bits a verifier counts."""

CELL, MOST = 14, 4
"""The least side in pixels of a letter's cell, and the most letters along a side of a picture."""


@dataclass(frozen=True, kw_only=True)
class Choices:
    """All that an owner chooses. Its bytes as written are hashed before anything is drawn.

    Attributes:
        text: the owner's words.
        input: the shape of the model's input.
        key: the shape of one key, that of the model's output or of the tap.
        tap: the layer at whose output keys enter, so that no head is read; None for the model's output.
        readout: of `clearstamp.transpose`.
        probe: the seed of the public probe; the only one that is allowed.
        key_range: keys are uniform in plus and minus this.
        test: the one test, of `TESTS`.
        reader: who reads for it, of `READERS`.
        codes: how many pictures hold drawn letters, or masked bits.
        rows: of letters in such a picture.
        columns: of letters in such a picture.
        alphabet: the letters.
        glyphs: the SHA-256 of the sheet that shows them.
        pictures: the SHA-256 of each of the owner's pictures, in the owner's order.
        payload: for the test ``"bits"``, how bytes lie in the pictures, and their SHA-256; else None.
        attempts: how a suspect is read, in this order; p is multiplied by their number.
        bar: a match is a p of at most 2 to the power of minus this.

    Raises `SealError` for choices that no seal can have.
    """

    text: str
    input: tuple[int, ...]
    key: tuple[int, ...]
    tap: str | None
    readout: str
    probe: int
    key_range: float
    test: str
    reader: str
    codes: int
    rows: int
    columns: int
    alphabet: str
    glyphs: str
    pictures: tuple[str, ...]
    payload: dict[str, Any] | None
    attempts: tuple[str, ...]
    bar: int

    def __post_init__(self) -> None:
        self.check_types()
        self.check_names()
        if self.probe != PROBE_SEED:
            raise SealError("only the public probe is allowed", got=self.probe, expected=PROBE_SEED)
        if not 0 < self.key_range <= MAX_KEY:
            raise SealError("key range out of range", got=self.key_range, expected=f"0 < key_range <= {MAX_KEY:g}")
        if self.codes + len(self.pictures) < 1:
            raise SealError("a seal without a picture", expected="codes, pictures or bytes")
        if self.payload is not None:
            places(self.shape, self.payload["patches"], self.payload["per_channel"])
            most, length = min(self.bits, MOST_BITS), self.payload["length"]
            if self.bits > most or not 0 <= 8 * length <= most or self.coding.coded > most:
                expected = f"at most {most} bits once they are encoded"
                raise SealError("more bytes than the pictures hold, or than are counted", got=length, expected=expected)
        countable = {"bits": self.bits, "order": len(self.pictures)}.get(self.test, self.letters)
        if not countable:
            raise SealError("the test has nothing to count", got=repr(self.test), expected="letters, bits or pictures")

    def check_types(self) -> None:
        """Raise `SealError` for values that a file could hold, and a seal could not."""
        sizes = (*self.input, *self.key, self.codes, self.rows, self.columns, self.bar)
        texts = (self.text, self.readout, self.tap or "", self.alphabet, self.glyphs, *self.pictures)
        about = {"code": str, "length": int, "patches": int, "per_channel": bool, "sha256": str}
        typed = (
            all(type(size) is int for size in sizes)
            and all(isinstance(text, str) and text == text.encode(errors="ignore").decode() for text in texts)
            and (self.tap is None or isinstance(self.tap, str))
            and type(self.key_range) is float
            and (self.payload is None or {name: type(value) for name, value in self.payload.items()} == about)
        )
        if not typed:
            raise SealError("choices out of range", expected="whole numbers and texts")
        count, least = self.codes + len(self.pictures), min(map(min, (self.input or (0,), self.key or (0,))))
        letters = len(set(self.alphabet)) == len(self.alphabet) == (16 if self.letters else 0)
        bounds = {
            f"sizes of 1 to {LONGEST}": least > 0 and min(sizes) >= 0 and max(sizes) <= LONGEST,
            f"at most {MOST_KEYS} keys": count <= MOST_KEYS,
            f"at most {LARGEST} numbers in all of them": prod(self.key) * count <= LARGEST,
            f"at most {MOST_PIXELS} numbers in all pictures": prod(self.input) * count <= MOST_PIXELS,
            f"at most {MOST} rows and columns of letters": max(self.rows, self.columns) <= MOST,
            "an alphabet of 16 letters, where there are any": letters,
            "a name, where keys enter at a layer": self.tap != "",
        }
        if missed := [bound for bound, kept in bounds.items() if not kept]:
            raise SealError("choices out of range", expected=", ".join(missed))

    def check_names(self) -> None:
        """Raise `SealError` for a name that this release does not know."""
        for what, got, known in (
            ("test", (self.test,), TESTS),
            ("reader", (self.reader,), tuple(READERS)),
            ("readout", (self.readout,), NAMES),
            ("attempt", self.attempts, ATTEMPTS),
        ):
            if not got or not set(got) <= set(known) or len(set(got)) < len(got):
                raise SealError(f"unknown {what}", got=", ".join(map(repr, got)), expected=", ".join(known))

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(C, H, W)`` of the input seen as a picture."""
        return picture_shape(self.input)

    @property
    def letters(self) -> int:
        """How many letters are drawn."""
        return self.codes * self.rows * self.columns if self.payload is None else 0

    @property
    def bits(self) -> int:
        """How many bits the payload's pictures hold."""
        if self.payload is None:
            return 0
        return self.codes * capacity(self.shape, self.payload["patches"], self.payload["per_channel"])

    @property
    def coding(self) -> Payload:
        """How the payload's bytes lie in the pictures."""
        held = {name: value for name, value in (self.payload or {}).items() if name != "sha256"}
        return Payload(**held, seed=0, checksum=0)

    @property
    def alpha(self) -> Decimal:
        """The greatest p of a match, 2^-bar."""
        return chance.at_most_one(Fraction(1, 2**self.bar))

    @cached_property
    def floor(self) -> Decimal:
        """The least p that the test can give, before it is multiplied by the attempts."""
        if self.test == "bits":
            return chance.binomial(self.bits, self.bits, 2)
        if self.test == "order":
            sizes = [stop - start for start, stop in blocks(len(self.pictures))]
            return chance.together([chance.at_most_one(Fraction(1, factorial(n))) for n in sizes])
        return chance.binomial(self.letters, self.letters, 16)

    def written(self) -> bytes:
        """As JSON, for people to read; the very bytes are hashed."""
        return json.dumps({"type": CHOICES} | asdict(self), indent=1, ensure_ascii=False).encode() + b"\n"

    @classmethod
    def read(cls, written: bytes) -> Self:
        """From the bytes of `written`. Raises `SealError` for anything else."""
        held = strict_json(written, CHOICES)
        expected = {each.name for each in fields(cls)}
        if set(held) != expected:
            raise SealError("choices of other fields", got=", ".join(sorted(set(held) ^ expected)))
        tuples = {name: tuple(value) for name, value in held.items() if isinstance(value, list)}
        try:
            found = cls(**held | tuples)
            same = found.written() == written
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise SealError("choices that cannot be", got=error) from error
        if not same:
            raise SealError("choices that this library would not write so")
        return found


@dataclass(frozen=True, repr=False)
class Seal:
    """An owner's choices, a secret seed, and the pictures that belong to them. **Secret**: it reads and erases a stamp.

    Attributes:
        written: the choices as they were hashed.
        seed: 32 secret bytes.
        glyphs: the sheet of letters, a PNG; empty without letters.
        pictures: the owner's pictures, PNGs of the model's input size.
        data: the bytes of the payload; empty without one.

    Raises `SealError` if they do not belong together.
    """

    written: bytes
    seed: bytes
    glyphs: bytes
    pictures: tuple[bytes, ...]
    data: bytes

    def __post_init__(self) -> None:
        choices = self.choices
        if len(self.seed) != SEED:
            raise SealError("a seed of the wrong length", got=f"{len(self.seed)} bytes", expected=f"{SEED} bytes")
        about = choices.payload or {"length": 0}
        whole = (len(self.pictures), len(self.data)) == (len(choices.pictures), about["length"])
        hashes = [(self.glyphs, choices.glyphs), *zip(self.pictures, choices.pictures, strict=False)]
        if whole and choices.payload is not None:
            hashes.append((self.coded, about["sha256"]))
        if not whole or any(sha256(held) != said for held, said in hashes):
            raise SealError("pictures, letters or bytes that are not those of the choices")

    @classmethod
    def make(
        cls,
        *,
        outputs: int | Sequence[int],
        shape: Sequence[int],
        codes: int = 11,
        images: Sequence[str | Path] = (),
        data: bytes | None = None,
        text: str = "",
        test: str | None = None,
        reader: str = "template",
        tap: str | None = None,
        readout: str = "adjoint",
        key_range: float = 10.0,
        code: str = "ldpc",
        patches: int = 14,
        per_channel: bool = False,
        attempts: Sequence[str] = ATTEMPTS,
        bar: int = BAR,
    ) -> Self:
        """A new seal, with a seed from the system's source of randomness.

        `outputs` is the length or the shape of the model's output, or of the layer `tap`; `shape` that of its input.
        `codes` pictures hold drawn letters; `images` are files of the owner's own, such as a logo. With `data` the
        pictures of codes hold these bytes instead, masked by drawn bits, as many pictures as it takes. The test is
        ``"letters"``, with `data` ``"bits"``, and without either ``"order"``: which picture belongs to which key.

        Raises `SealError` for choices that do not fit, and if the test could never reach the bar, even on a perfect
        reading.
        """
        if isinstance(images, str | Path):
            raise SealError("one path instead of a list of paths", got=repr(str(images)), remedy="pass [path]")
        if max(shape, default=0) > LONGEST or prod(shape) > MOST_PIXELS:
            expected = f"sizes of 1 to {LONGEST}, at most {MOST_PIXELS} numbers in all pictures"
            raise SealError("choices out of range", got=tuple(shape), expected=expected)
        seen = picture_shape(shape)
        rows, columns = (min(MOST, size // CELL) for size in seen[1:])
        payload = None
        if data is not None:
            about = Payload(code, len(data), patches, per_channel, seed=0, checksum=0)
            each = capacity(seen, patches, per_channel)
            codes = -(-about.coded // each)
            payload = {name: getattr(about, name) for name in ("code", "length", "patches", "per_channel")}
            payload["sha256"] = sha256(np.packbits(laid_out(data, about, codes * each)).tobytes())
        drawn = codes > 0 and data is None
        if drawn and 0 in (rows, columns):
            raise SealError(
                "no letter can be read in inputs of this shape", got=tuple(shape), remedy="codes=0, images="
            )
        glyphs = png(sheet(seen[1] // rows, seen[2] // columns)) if drawn else b""
        pictures = [png(pixels(open_image(path, seen))) for path in images]
        choices = Choices(
            text=text,
            input=tuple(shape),
            key=(outputs,) if isinstance(outputs, int) else tuple(outputs),
            tap=tap,
            readout=readout,
            probe=PROBE_SEED,
            key_range=float(key_range),
            test=test or ("bits" if payload else "letters" if drawn else "order"),
            reader=reader,
            codes=codes,
            rows=rows if drawn else 0,
            columns=columns if drawn else 0,
            alphabet=ALPHABET if drawn else "",
            glyphs=sha256(glyphs),
            pictures=tuple(map(sha256, pictures)),
            payload=payload,
            attempts=tuple(attempts),
            bar=bar,
        )
        if chance.UP.multiply(choices.floor, Decimal(len(choices.attempts))) > choices.alpha:
            raise SealError(
                "this seal could never show a match",
                got=f"{len(choices.attempts)} attempts at a test {choices.test!r} whose best p is {choices.floor:.1e}",
                expected=f"at most 2^-{bar}",
                remedy="more pictures with letters (codes=)",
            )
        return cls(choices.written(), secrets.token_bytes(SEED), glyphs, tuple(pictures), data or b"")

    def __repr__(self) -> str:
        return f"Seal({len(self)} keys, test {self.choices.test!r}, commitment {self.commitment})"

    def __len__(self) -> int:
        return self.choices.codes + len(self.pictures)

    @cached_property
    def choices(self) -> Choices:
        return Choices.read(self.written)

    @cached_property
    def draws(self) -> Draws:
        """Everything that is drawn. The first use takes half a second, on purpose."""
        return Draws(root(self.seed, self.written))

    @property
    def commitment(self) -> str:
        """SHA-256 in hexadecimal over seed and choices, which is published and dated."""
        return commitment(self.seed, self.written)

    @cached_property
    def letters(self) -> Numbers:
        """The drawn letters of each picture of codes, by their places in the alphabet, ``[k, letters]``."""
        choices = self.choices
        return self.draws.letters(choices.letters).reshape(choices.codes, choices.rows * choices.columns)

    @cached_property
    def sheet(self) -> Pixels:
        """Every letter of the alphabet, ``[16, 1, height, width]``; none without letters."""
        choices = self.choices
        if not choices.letters:
            return np.zeros((0, 1, 1, 1), np.uint8)
        _, height, width = choices.shape
        return opened(self.glyphs, (len(choices.alphabet), 1, height // choices.rows, width // choices.columns))

    @cached_property
    def coded(self) -> bytes:
        """The bytes as they lie in the pictures, encoded and interleaved, before the mask: eight bits a byte."""
        return np.packbits(laid_out(self.data, self.choices.coding, self.choices.bits)).tobytes()

    @cached_property
    def bits(self) -> Bits:
        """What the pictures show of the bytes, masked: bits ``[k, n]``."""
        bits = np.unpackbits(np.frombuffer(self.coded, np.uint8))[: self.choices.bits]
        return (bits ^ self.draws.mask(self.choices.bits)).reshape(self.choices.codes, -1)

    @cached_property
    def owned(self) -> Pixels:
        """The owner's pictures in the owner's order, ``[n, C, H, W]``."""
        shape = (1, *self.choices.shape)
        return np.concatenate([np.empty((0, *shape[1:]), np.uint8), *(opened(each, shape) for each in self.pictures)])

    def secrets(self) -> Pixels:
        """What each key is to reveal, uint8 ``[k, C, H, W]``: first the codes, then the owner's pictures as drawn."""
        choices = self.choices
        channels, height, width = choices.shape
        if choices.payload is not None:
            about = choices.coding
            drawn = pixels(draw_bits(self.bits, choices.shape, about.patches, per_channel=about.per_channel))
        else:
            drawn = np.full((choices.codes, channels, height, width), 255, np.uint8)
            for picture, letters in zip(drawn, self.letters, strict=True):
                for place, letter in enumerate(letters):
                    row, column = divmod(place, choices.columns)
                    glyph = self.sheet[letter]
                    _, high, wide = glyph.shape
                    picture[:, row * high : (row + 1) * high, column * wide : (column + 1) * wide] = glyph
        return np.concatenate([drawn, self.owned[self.draws.order(len(self.pictures))]])

    def stamp(self) -> Stamp:
        """The stamp to be embedded, as any other."""
        choices = self.choices
        keys = self.draws.keys(len(self), choices.key, choices.key_range)
        shown = torch.from_numpy(self.secrets().astype(np.float32) / 255).reshape(-1, *choices.input)
        codes = ["".join(choices.alphabet[letter] for letter in letters) or "bits" for letters in self.letters]
        labels = (*codes, *(f"picture {place}" for place in self.draws.order(len(self.pictures))))
        return Stamp(torch.from_numpy(keys), shown, labels)

    def graph(self, model: nn.Module) -> Graph:
        """What the model computes up to where keys enter. Raises `TransposeError` if it cannot be captured."""
        numbers = (each for each in chain(model.parameters(), model.buffers()) if each.is_floating_point())
        like = next(numbers, torch.zeros(0))
        output = None if self.choices.tap is None else Tap(self.choices.tap)
        return capture(model, like.new_zeros(1, *self.choices.input), output)

    def transpose(self, model: nn.Module) -> Transposed:
        """The model run backwards as the seal says. Raises `TransposeError` as `clearstamp.transpose` does."""
        return transpose(model, self.graph(model), readout=self.choices.readout)

    def save(self, path: str | Path) -> None:
        """Write one JSON file, readable by its owner alone."""
        write_atomically(Path(path), self.whole(), mode=0o600)

    def whole(self) -> bytes:
        """All of it, as `save` writes it."""
        held = {
            "type": SEALED,
            "choices": self.written.decode(),
            "seed": self.seed.hex(),
            "glyphs": base64.b64encode(self.glyphs).decode(),
            "pictures": [base64.b64encode(picture).decode() for picture in self.pictures],
            "data": base64.b64encode(self.data).decode(),
        }
        return json.dumps(held, indent=1).encode() + b"\n"

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what `save` wrote. Raises `SealError` for anything else."""
        try:
            return cls.of(Path(path).read_bytes())
        except (OSError, SealError) as error:
            raise SealError("not a whole seal", got=error, where=path) from error

    @classmethod
    def of(cls, whole: bytes) -> Self:
        """Read what `whole` gave. Raises `SealError` for anything else."""
        try:
            held = strict_json(whole, SEALED)
            if set(held) != {"choices", "seed", "glyphs", "pictures", "data"}:
                raise SealError("a seal of other fields", got=", ".join(held))
            named = {name: base64.b64decode(held[name], validate=True) for name in ("glyphs", "data")}
            pictures = tuple(base64.b64decode(picture, validate=True) for picture in held["pictures"])
            return cls(held["choices"].encode(), bytes.fromhex(held["seed"]), pictures=pictures, **named)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise SealError("not a whole seal", got=error) from error


def strict_json(written: bytes, kind: str) -> dict[str, Any]:
    """The fields of a JSON object of a type, which is left out. Raises `SealError` for repeated or other ones."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) < len(pairs):
            raise SealError("a field occurs twice", got=", ".join(name for name, _ in pairs))
        return dict(pairs)

    def never(text: str) -> NoReturn:
        raise SealError("a number that JSON does not have", got=text)

    try:
        held = json.loads(written.decode(), object_pairs_hook=once, parse_constant=never)
    except (ValueError, RecursionError) as error:  # ValueError: of other bytes, of no JSON, and of thousands of digits
        raise SealError("not readable JSON", got=error) from error
    if not isinstance(held, dict) or held.pop("type", None) != kind:
        raise SealError("not of the expected type", expected=kind)
    return held


def sha256(content: bytes) -> str:
    """In hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def pixels(images: Tensor) -> Pixels:
    """Images of values in [0, 1], of any shape, as 8 bits."""
    found: Pixels = (images.detach().cpu().double() * 255).round().to(torch.uint8).numpy()
    return found


def sheet(height: int, width: int) -> Pixels:
    """Every letter of the alphabet in a cell of this size, ``[16, 1, height, width]``."""
    return np.stack([pixels(draw_text(letter, (1, height, width))) for letter in ALPHABET])


def png(pictures: Pixels) -> bytes:
    """Pictures ``[..., C, H, W]`` as one PNG under one another: in colour if they have three channels."""
    *_, channels, height, width = pictures.shape
    image = (
        Image.fromarray(pictures.reshape(-1, channels, height, width).transpose(0, 2, 3, 1).reshape(-1, width, 3))
        if channels == 3
        else Image.fromarray(pictures.reshape(-1, width))
    )
    written = io.BytesIO()
    image.save(written, "PNG")
    return written.getvalue()


def opened(content: bytes, shape: tuple[int, int, int, int]) -> Pixels:
    """The pictures ``[k, C, H, W]`` that `png` wrote. Raises `SealError` for anything else.

    Also for a PNG that holds more than pixels, such as a colour profile, transparency or an animation, by which an eye
    would see others than are counted.
    """
    count, channels, height, width = shape
    mode, high = ("RGB", count * height) if channels == 3 else ("L", count * channels * height)
    kinds = chunks(content)
    if (kinds[:1], {*kinds[1:-1]}, kinds[-1:]) != ([b"IHDR"], {b"IDAT"}, [b"IEND"]):
        raise SealError("not a whole PNG, or not of pixels alone")
    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            if (image.mode, image.size) != (mode, (width, high)):
                raise SealError("a picture of another size", got=f"{image.mode} {image.size}", expected=(width, high))
            held = np.asarray(image)
    except SealError:
        raise
    except Exception as error:  # of damaged files Pillow raises whatever its parsers meet
        raise SealError("not a whole PNG", got=type(error).__name__) from error
    return held.reshape(count, height, width, 3).transpose(0, 3, 1, 2) if mode == "RGB" else held.reshape(shape)


def chunks(content: bytes) -> list[bytes]:
    """What a PNG is made of: the kind of each part, to the last byte."""
    found, place = [], 8
    while place < len(content):
        found.append(content[place + 4 : place + 8])
        place += 12 + int.from_bytes(content[place : place + 4])
    return found
