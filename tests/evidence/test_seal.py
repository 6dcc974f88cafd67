"""Seals: what they draw, what they refuse, and their file."""

import io
import json
import stat
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import clearstamp as cs
from clearstamp.coding.payload import read_bits
from clearstamp.errors import SealError
from clearstamp.evidence import Choices, Seal
from clearstamp.evidence.seal import ALPHABET, opened, png, sheet, strict_json
from clearstamp.pictures import draw_text


def test_a_stamp_shows_the_drawn_letters(letters: Seal):
    stamp = letters.stamp()
    assert stamp.keys.shape == (11, 10) and stamp.secrets.shape == (11, 1, 28, 28)
    assert all(set(label) <= set(ALPHABET) and len(label) == 4 for label in stamp.labels)
    corner = draw_text(stamp.labels[3][1], (1, 14, 14))  # the second letter stands in the first row's second cell
    assert torch.equal(stamp.secrets[3, :, :14, 14:], (corner * 255).round() / 255)


def test_keys_are_those_of_the_draws(letters: Seal):
    assert np.array_equal(letters.stamp().keys.numpy(), letters.draws.keys(11, (10,), 10.0))


def test_two_seals_of_one_choice_draw_apart(letters: Seal):
    other = replace(letters, seed=bytes(32))
    assert other.written == letters.written
    assert other.commitment != letters.commitment and other.stamp().labels != letters.stamp().labels


def test_the_owners_pictures_are_shown_in_the_drawn_order(ordered: Seal, photographs: list[Path]):
    order = ordered.draws.order(5)
    for key, place in enumerate(order):
        with Image.open(photographs[place]) as image:
            expected = np.asarray(image.resize((16, 16), Image.Resampling.LANCZOS))
        assert np.array_equal(ordered.secrets()[key, 0], expected)
    assert ordered.stamp().labels == tuple(f"picture {place}" for place in order)


def test_codes_stand_beside_the_owners_pictures(photographs: list[Path]):
    seal = Seal.make(outputs=10, shape=(1, 28, 28), images=photographs)
    assert seal.choices.test == "letters" and len(seal) == len(seal.stamp()) == 16
    assert seal.stamp().labels[-1].startswith("picture")


def test_bits_are_masked_by_the_draws(coded: Seal):
    stamp, about = coded.stamp(), coded.choices.coding
    shown = read_bits(stamp.secrets, about.patches, per_channel=True)
    laid = np.unpackbits(np.frombuffer(coded.coded, np.uint8))[: coded.choices.bits]
    assert np.array_equal(shown.reshape(-1) ^ laid, coded.draws.mask(coded.choices.bits))
    assert set(stamp.labels) == {"bits"}


def test_inputs_of_other_shapes_hold_letters():
    volume = Seal.make(outputs=(2, 3), shape=(2, 30, 28), codes=22, bar=40).stamp()
    assert volume.keys.shape == (22, 2, 3) and volume.secrets.shape == (22, 2, 30, 28)
    sound = Seal.make(outputs=10, shape=(1, 28 * 30), codes=11).stamp()
    assert sound.secrets.shape == (11, 1, 28 * 30)


def test_a_tap_lets_keys_in_at_a_layer(letters: Seal):
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10), torch.nn.ReLU(), torch.nn.Linear(10, 3))
    written = replace(letters.choices, tap="1").written()
    back = replace(letters, written=written).transpose(model)
    keys = torch.rand(2, 10)
    assert torch.allclose(back(keys).flatten(1), keys @ model[1].weight)


def test_a_tap_that_is_not_there_is_refused():
    with pytest.raises(cs.ClearStampError, match="no such layer in the model; got: '9'; expected: 0, 1"):
        cs.transpose(torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU()), torch.zeros(1, 4), output=cs.Tap("9"))


def test_a_tap_runs_once():
    layer = torch.nn.Linear(4, 4)
    with pytest.raises(cs.ClearStampError, match="a tapped layer runs once; got: 2 times"):
        cs.transpose(torch.nn.Sequential(layer, layer), torch.zeros(1, 4), output=cs.Tap("0"))


def test_a_seal_that_could_never_match_is_refused(photographs: list[Path]):
    with pytest.raises(SealError, match="never show a match.*best p is 2.3e-10"):
        Seal.make(outputs=10, shape=(1, 28, 28), codes=2)
    with pytest.raises(SealError, match="never show a match"):
        Seal.make(outputs=10, shape=(1, 28, 28), codes=0, images=photographs)
    with pytest.raises(SealError, match="never show a match"):
        Seal.make(outputs=10, shape=(1, 28, 28), data=b"x", code="none", patches=2)


def test_attempts_count_against_the_floor():
    floor = Seal.make(outputs=10, shape=(1, 28, 28), codes=4, bar=64, attempts=("as is",)).choices.floor
    assert float(floor) == 2.0**-64
    with pytest.raises(SealError, match="2 attempts"):
        Seal.make(outputs=10, shape=(1, 28, 28), codes=4, bar=64)


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"shape": (1, 12, 12)}, "no letter can be read"),
        ({"shape": (1, 4)}, "nothing can be seen"),
        ({"test": "luck"}, "unknown test"),
        ({"test": "bits"}, "has nothing to count"),
        ({"test": "order"}, "has nothing to count"),
        ({"data": b"x", "test": "letters"}, "has nothing to count"),
        ({"reader": "oracle"}, "unknown reader"),
        ({"attempts": ("as is", "as is")}, "unknown attempt"),
        ({"attempts": ()}, "unknown attempt"),
        ({"key_range": 0.0}, "key range"),
        ({"readout": "sideways"}, "unknown readout"),
        ({"outputs": 0}, "out of range; expected: sizes of 1 to 65536$"),
        ({"outputs": 10**5}, "out of range; expected: sizes of 1 to 65536$"),
        ({"codes": 1001}, "out of range; expected: at most 1000 keys$"),
        ({"tap": ""}, "out of range; expected: a name, where keys enter at a layer$"),
        ({"codes": -1}, "out of range"),
        ({"codes": 0}, "without a picture"),
        ({"images": "logo.png"}, "one path instead of a list"),
        ({"images": ["/nowhere.png"]}, "not a readable image"),
        ({"data": b"x", "code": "morse"}, "unknown code"),
        ({"data": b"x", "patches": 99}, "patches out of range"),
    ],
)
def test_choices_that_cannot_be_are_refused(given: dict, problem: str):
    with pytest.raises(cs.ClearStampError, match=problem):
        Seal.make(**{"outputs": 10, "shape": (1, 28, 28)} | given)


# ---------------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("name", ["letters", "ordered", "coded"])
def test_a_saved_seal_comes_back(name: str, tmp_path: Path, request: pytest.FixtureRequest):
    seal: Seal = request.getfixturevalue(name)
    path = tmp_path / "acme.seal"
    seal.save(path)
    again = Seal.load(path)
    assert again == seal and again.commitment == seal.commitment
    assert torch.equal(again.stamp().secrets, seal.stamp().secrets)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_seal_tells_nothing_secret_of_itself(letters: Seal):
    assert letters.seed.hex() not in repr(letters) and letters.stamp().labels[0] not in repr(letters)


def changed(seal: Seal, folder: Path, change) -> Path:
    """The file of a seal after a change to what it holds."""
    path = folder / "acme.seal"
    seal.save(path)
    held = json.loads(path.read_text())
    change(held)
    path.write_text(json.dumps(held))
    return path


@pytest.mark.parametrize(
    "change",
    [
        lambda held: held.pop("seed"),
        lambda held: held.update(seed="00"),
        lambda held: held.update(seed="zz" * 32),
        lambda held: held.update(type="clearstamp/seal/2"),
        lambda held: held.update(extra=1),
        lambda held: held.update(glyphs=""),
        lambda held: held.update(pictures=["AAAA"]),
        lambda held: held.update(pictures=7),
        lambda held: held.update(data="!"),
        lambda held: held.update(choices=held["choices"].replace("ours", "mine").replace('"text"', '"texts"')),
        lambda held: held.update(choices=held["choices"].replace('": ', '":  ')),
        lambda held: held.update(choices=held["choices"].replace('"codes": 11', '"codes": 11.5')),
        lambda held: held.update(choices=held["choices"].replace('"probe": 2024', '"probe": 1')),
        lambda held: held.update(choices=held["choices"].replace('"codes": 11', '"codes": 11, "codes": 11')),
        lambda held: held.update(choices="[" * 100_000),
        lambda held: held.update(choices=None),
    ],
)
def test_a_changed_seal_is_refused(change, letters: Seal, tmp_path: Path):
    with pytest.raises(SealError):
        Seal.load(changed(letters, tmp_path, change))


def test_fields_that_occur_twice_are_refused():
    assert strict_json(b'{"type": "x", "a": {"b": 1}}', "x") == {"a": {"b": 1}}
    for twice in (b'{"type": "x", "a": 1, "a": 1}', b'{"type": "x", "a": {"b": 1, "b": 2}}'):
        with pytest.raises(SealError, match="occurs twice"):
            strict_json(twice, "x")


def test_files_that_are_no_seal_are_refused(tmp_path: Path):
    for content in (b"", b"{}", b"[]", b"\xff\xfe", b"null"):
        (tmp_path / "x").write_bytes(content)
        with pytest.raises(SealError, match="not a whole seal.*x"):
            Seal.load(tmp_path / "x")
    with pytest.raises(SealError, match="not a whole seal"):
        Seal.load(tmp_path)


def test_choices_come_back_from_their_bytes(coded: Seal):
    assert Choices.read(coded.written) == coded.choices
    assert Choices.read(coded.written).written() == coded.written


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_pictures_come_back_from_their_png(channels: int):
    pixels = np.random.default_rng(0).integers(0, 256, (4, channels, 9, 8), np.uint8)
    assert np.array_equal(opened(png(pixels), pixels.shape), pixels)
    with pytest.raises(SealError, match="another size"):
        opened(png(pixels), (3, channels, 9, 8))
    with pytest.raises(SealError, match="PNG"):
        opened(png(pixels)[:-60], pixels.shape)


def test_letters_are_told_apart():
    glyphs = 1 - sheet(14, 14).reshape(16, -1) / 255
    alike = np.corrcoef(glyphs) - np.eye(16)
    assert 0.69 < alike.max() < 0.71


def with_more(written: bytes, kind: bytes, content: bytes, *, behind: bool = False) -> bytes:
    """A PNG with one more chunk in it, or behind it."""
    chunk = len(content).to_bytes(4) + kind + content + zlib.crc32(kind + content).to_bytes(4)
    return written + chunk if behind else written[:33] + chunk + written[33:]


@pytest.mark.parametrize(
    ("kind", "content"),
    [(b"tRNS", bytes(2)), (b"gAMA", bytes([0, 0, 1, 0])), (b"acTL", bytes(8)), (b"cICP", bytes(4)), (b"tEXt", b"a\0b")],
)
def test_a_png_that_shows_others_than_are_counted_is_refused(kind: bytes, content: bytes):
    """Transparency, levels, animation, colours: what a page shows is not the pixels alone then."""
    pixels = np.random.default_rng(0).integers(0, 256, (1, 1, 9, 8), np.uint8)
    whole = png(pixels)
    for changed in (with_more(whole, kind, content), with_more(whole, kind, content, behind=True), whole + b"more"):
        with pytest.raises(SealError, match="not a whole PNG, or not of pixels alone"):
            opened(changed, pixels.shape)


@pytest.mark.parametrize("mode", ["1", "P", "RGBA", "LA", "I;16"])
def test_a_png_of_another_mode_is_refused(mode: str):
    written = io.BytesIO()
    Image.new("L", (8, 8)).convert("I" if mode == "I;16" else mode).convert(mode).save(written, "PNG")
    with pytest.raises(SealError, match="PNG|another size"):
        opened(written.getvalue(), (1, 1, 8, 8))


def test_whatever_pillow_meets_in_a_damaged_png_is_one_error():
    """A header that is cut short, and a length that is none."""
    for content in (b"", b"\x89PNG\r\n\x1a\n", png(np.zeros((1, 9, 8), np.uint8)).replace(b"IHDR", b"IDAT")):
        with pytest.raises(SealError, match="not a whole PNG"):
            opened(content, (1, 1, 9, 8))
    whole = png(np.zeros((1, 9, 8), np.uint8))
    short = whole[:8] + (4).to_bytes(4) + b"IHDR" + bytes(8) + whole[33:]
    with pytest.raises(SealError, match="not a whole PNG"):
        opened(short, (1, 1, 9, 8))


@pytest.mark.parametrize(
    ("written", "problem"),
    [
        (b'{"type": "x", "a": ' + b"9" * 5000 + b"}", "not readable JSON; got: .*digits"),
        (b'{"type": "x", "a": NaN}', "a number that JSON does not have; got: NaN"),
        (b'{"type": "x", "a": -Infinity}', "a number that JSON does not have; got: -Infinity"),
        (b'{"type": "x", "a": ' + b"[" * 10**5, "not readable JSON"),
        (b"\xff", "not readable JSON"),
    ],
    ids=["digits", "nan", "infinity", "deep", "bytes"],
)
def test_numbers_and_nesting_that_no_reader_takes_are_refused(written: bytes, problem: str):
    with pytest.raises(SealError, match=problem):
        strict_json(written, "x")


@pytest.mark.parametrize(
    "change",
    [
        {"payload": 5},
        {"payload": []},
        {"tap": 0},
        {"tap": ""},
        {"tap": []},
        {"codes": 1001},
        {"input": [1, 4096, 4096], "codes": 2},
        {"rows": 5},
        {"key": [2**13, 2**13], "codes": 11},
        {"text": "\ud800"},
    ],
    ids=str,
)
def test_choices_of_other_types_and_sizes_are_refused(change: dict, letters: Seal):
    written = json.dumps(json.loads(letters.written) | change, indent=1).encode() + b"\n"
    with pytest.raises(SealError, match="choices that cannot be|out of range"):
        Choices.read(written)


def test_a_text_that_is_none_is_refused_at_sealing():
    """As a shell hands on bytes that are no letters."""
    with pytest.raises(SealError, match="out of range"):
        Seal.make(outputs=10, shape=(1, 28, 28), text="\udcff")


def test_more_bits_than_are_counted_are_refused():
    """Else a verifier would count for days."""
    with pytest.raises(SealError, match="or than are counted; got: 32769; expected: at most 262144 bits"):
        Seal.make(outputs=2, shape=(1, 512, 512), data=bytes(32769), code="none", patches=512)


@pytest.mark.parametrize("length", [-1, 10**9, 2**40])
def test_a_payload_longer_than_its_pictures_is_refused_before_it_is_encoded(length: int, coded: Seal):
    """It would take the memory that it asks for."""
    with pytest.raises(SealError, match="more bytes than the pictures hold"):
        replace(coded.choices, payload=coded.choices.payload | {"length": length})


def test_bytes_that_are_not_the_payload_are_refused(coded: Seal, letters: Seal):
    for seal, data in ((coded, b"licence 8"), (coded, b""), (coded, bytes(10**6)), (letters, b"x")):
        with pytest.raises(SealError, match="not those of the choices"):
            replace(seal, data=data)
