"""Stamps: how they are made, what is refused, and their file."""

import json
from dataclasses import replace

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from clearstamp import files
from clearstamp import stamp as module
from clearstamp.coding.payload import decode
from clearstamp.errors import StampError
from clearstamp.pictures import as_pictures, draw_text, montage
from clearstamp.scores import SimilarityTo, similarity
from clearstamp.stamp import MAX_KEY, PAPER_KEY, Stamp, draw_keys

SHAPE = (1, 28, 28)


def make(texts: tuple[str, ...] = ("A", "B"), **given) -> Stamp:
    return Stamp.from_texts(texts, **{"outputs": 10, "shape": SHAPE, "seed": 0} | given)


def same(a: Stamp, b: Stamp) -> bool:
    return torch.equal(a.keys, b.keys) and torch.equal(a.secrets, b.secrets) and a.labels == b.labels


def keys(count: int = 2) -> Tensor:
    return draw_keys(count, 10, seed=0)


def secrets(count: int = 2) -> Tensor:
    return torch.rand(count, *SHAPE)


# ---------------------------------------------------------------------------------------------------------- making


def test_a_stamp_of_texts():
    stamp = make(("ACME", "2024"))
    assert len(stamp) == 2 and stamp.labels == ("ACME", "2024")
    assert stamp.keys.shape == (2, 10) and stamp.secrets.shape == (2, *SHAPE)
    assert stamp.keys.dtype == stamp.secrets.dtype == torch.float32
    assert (stamp.secrets[:, :, [0, -1]] == 1).all() and (stamp.secrets[..., [0, -1]] == 1).all(), "a white margin"
    assert (stamp.secrets.flatten(1).min(1).values < 0.2).all(), "dark ink"


def test_dark_is_the_negative():
    torch.testing.assert_close(make(dark=True).secrets, 1 - make().secrets, rtol=0, atol=2 / 255)


def test_colour_texts_are_grey():
    secret = draw_text("A", (3, 28, 28))
    assert torch.equal(secret, draw_text("A", SHAPE).expand(3, -1, -1))


def test_a_text_is_broken_into_the_lines_that_let_it_be_largest():
    def lines(text: str) -> int:
        inked = (draw_text(text, (1, 64, 64))[0] < 0.5).any(1).int()
        return int((inked.diff() == 1).sum())

    assert [lines(text) for text in ("A", "ABCD", "ONE TWO", "ONE TWO SIX")] == [1, 2, 2, 3]


def test_keys_are_drawn_from_the_seed_alone():
    torch.manual_seed(1)
    first = make(seed=3)
    state = torch.get_rng_state()
    assert same(make(seed=3), first)
    assert torch.equal(torch.get_rng_state(), state), "the global generator is not touched"
    assert not torch.equal(make(seed=4).keys, first.keys)


def test_keys_fill_their_range():
    drawn = draw_keys(100, 100, seed=0, key_range=5.0)
    assert -5 <= drawn.min() < -4.9 and 4.9 < drawn.max() <= 5
    assert drawn.mean().abs() < 0.15  # five standard deviations


def test_the_papers_key_is_a_key():
    assert Stamp(torch.tensor([PAPER_KEY]), secrets(1), ("paper",)).keys.shape == (1, 10)


def test_a_stamp_of_images(tmp_path):
    Image.new("RGB", (56, 40), (255, 0, 0)).save(tmp_path / "red.png")
    Image.new("RGBA", (10, 10), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    stamp = Stamp.from_images([tmp_path / "red.png", str(tmp_path / "clear.png")], outputs=4, shape=(3, 16, 8), seed=0)
    assert stamp.labels == ("red", "clear")
    assert torch.equal(stamp.secrets[0], torch.tensor([1.0, 0, 0]).reshape(3, 1, 1).expand(3, 16, 8))
    assert (stamp.secrets[1] == 1).all(), "transparent parts are white"
    grey = Stamp.from_images([tmp_path / "red.png"], outputs=4, shape=(1, 8, 8), seed=0).secrets
    torch.testing.assert_close(grey, torch.full((1, 1, 8, 8), 0.299), rtol=0, atol=1 / 255)


@pytest.mark.parametrize("kind", [list, torch.stack])
def test_a_stamp_of_tensors(kind):
    given = [torch.rand(SHAPE, dtype=torch.float64) for _ in range(2)]
    stamp = Stamp.from_secrets(kind(given), outputs=10, seed=0)
    assert torch.equal(stamp.secrets, torch.stack(given).float()) and stamp.labels == ("secret 0", "secret 1")
    assert torch.equal(stamp.keys, draw_keys(2, 10, seed=0))


def test_equal_keys_with_equal_secrets_are_one_pair_twice():
    assert len(Stamp(keys(1).repeat(2, 1), secrets(1).repeat(2, 1, 1, 1), ("a", "b"))) == 2


def test_stamps_are_joined_in_their_order():
    first, second = make(), Stamp.from_bytes(b"C", outputs=10, shape=SHAPE, seed=1, code="none")
    joined = Stamp.joined(first, second)
    assert same(joined.pick(torch.arange(2)), first) and len(joined) == 2 + len(second)
    assert torch.equal(joined.keys[2:], second.keys) and torch.equal(joined.secrets[2:], second.secrets)
    assert joined.labels == first.labels + second.labels and joined.payload is None


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"outputs": 9}, r"different shapes; got: keys \[9\] and .* \[1, 28, 28\], keys \[10\] and .* expected: one"),
        ({"shape": (3, 28, 28)}, r"stamps of different shapes; got: .* secrets \[3, 28, 28\]"),
    ],
)
def test_stamps_that_do_not_fit_are_not_joined(others, message):
    with pytest.raises(StampError, match=message):
        Stamp.joined(make(), make(**others))
    with pytest.raises(StampError, match="stamps of different shapes; got: none"):
        Stamp.joined()
    with pytest.raises(StampError, match="frozen values cannot be joined"):
        Stamp.joined(make(), replace(make(("C",), seed=1), frozen={"a": torch.ones(1)}))


# ------------------------------------------------------------------------------------------------------- bad input

NAN, INF = float("nan"), float("inf")


def edited(values: Tensor, value: float) -> Tensor:
    values.flatten()[-1] = value
    return values


@pytest.mark.parametrize(
    ("make_keys", "make_secrets", "labels", "message"),
    [
        (lambda: torch.zeros(0, 10), secrets, "ab", "keys of the wrong shape"),
        (lambda: keys()[0], secrets, "ab", r"keys of the wrong shape; got: \[10\]"),
        (lambda: [[1.0]], secrets, "ab", "keys of the wrong shape; got: list"),
        (keys, lambda: torch.zeros(2), "ab", "secrets of the wrong shape"),
        (keys, lambda: torch.zeros(2, 1, 0, 28), "ab", "secrets of the wrong shape"),
        (keys, lambda: None, "ab", "secrets of the wrong shape; got: NoneType"),
        (keys, lambda: secrets(3), "ab", "differ in number; got: 2 keys, 3 secrets, 2 labels"),
        (keys, secrets, "a", "differ in number"),
        (lambda: edited(keys(), NAN), secrets, "ab", "a key is not finite; where: key 1"),
        (lambda: edited(keys(), INF), secrets, "ab", "a key is not finite"),
        (lambda: edited(keys(), -2 * MAX_KEY), secrets, "ab", "a key is out of range; got: 2000"),
        (keys, lambda: edited(secrets(), NAN), "ab", "a secret is not finite; where: secret 1"),
        (keys, lambda: edited(secrets(), 1.5), "ab", "a secret is out of range.*divide 8-bit images by 255"),
        (keys, lambda: edited(secrets(), -0.5), "ab", "a secret is out of range"),
        (lambda: keys(1).repeat(2, 1), secrets, "ab", "two equal keys with different secrets; where: pairs 0 and 1"),
    ],
)
def test_pairs_that_are_no_stamp(make_keys, make_secrets, labels, message):
    with pytest.raises(StampError, match=message):
        Stamp(make_keys(), make_secrets(), tuple(labels))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"texts": ()}, "an empty stamp"),
        ({"texts": "AB"}, r"one string instead of a list.*pass \[text\]"),
        ({"texts": ("A", " \n")}, "without a visible character"),
        ({"texts": ("W" * 60,)}, "too long to be read.*28 x 28 pixels.*several secrets"),
        ({"texts": ("A\U00013000",)}, "characters that the font does not have"),
        ({"shape": (1, 28, 7)}, "nothing can be seen"),
        ({"shape": (1, 61)}, "nothing can be seen"),
        ({"shape": (50,)}, "nothing can be seen"),
        ({"shape": ()}, "nothing can be seen"),
        ({"outputs": (4, 0)}, "key size out of range"),
        ({"outputs": ()}, "key size out of range"),
        ({"outputs": 0}, "key size out of range"),
        ({"key_range": 0.0}, "key range out of range"),
        ({"key_range": 2 * MAX_KEY}, "key range out of range"),
        ({"key_range": NAN}, "key range out of range"),
    ],
)
def test_texts_that_make_no_stamp(given, message):
    with pytest.raises(StampError, match=message):
        make(**given)


@pytest.mark.parametrize("given", [[], torch.zeros(0, *SHAPE)])
def test_no_secrets_make_no_stamp(given):
    with pytest.raises(StampError, match="an empty stamp"):
        Stamp.from_secrets(given, outputs=10, seed=0)


@pytest.mark.parametrize(
    ("shape", "seen"),
    [
        ((4, 20, 30), (4, 20, 30)),
        ((2, 5, 20, 30), (10, 20, 30)),
        ((20, 30), (1, 20, 30)),
        ((2, 600), (2, 24, 25)),
        ((400,), (1, 20, 20)),
    ],
)
def test_inputs_of_any_shape_show_text(shape, seen):
    stamp = Stamp.from_texts(["A", "B"], outputs=(3, 4, 4), shape=shape, seed=0)
    assert stamp.secrets.shape == (2, *shape) and stamp.keys.shape == (2, 3, 4, 4)
    pictures = as_pictures(stamp.secrets)
    assert torch.equal(pictures[0], draw_text("A", seen))
    assert similarity(stamp.secrets, stamp.secrets).min() > 0.999
    assert SimilarityTo(stamp.secrets)(stamp.secrets.flip(0)).max() < 0.9
    assert montage(stamp.secrets).shape[0] >= seen[1]


def test_bytes_lie_in_inputs_of_any_shape():
    stamp = Stamp.from_bytes(b"own", outputs=10, shape=(2, 600), seed=0)
    assert decode(stamp.secrets, stamp.payload).right


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_keys_do_not_depend_on_torch_s_default_type(dtype):
    expected, before = make().keys, torch.get_default_dtype()
    try:
        torch.set_default_dtype(dtype)
        assert torch.equal(make().keys, expected)
    finally:
        torch.set_default_dtype(before)


def test_keys_do_not_depend_on_torch_s_default_device():
    expected = make().keys
    with torch.device("meta"):
        assert torch.equal(draw_keys(2, 10, seed=0), expected)


def test_secrets_of_different_shapes_make_no_stamp():
    with pytest.raises(StampError, match=r"secrets of different shapes; got: \[\[1, 8, 8\], \[1, 9, 8\]\]"):
        Stamp.from_secrets([torch.zeros(1, 8, 8), torch.zeros(1, 9, 8)], outputs=10, seed=0)


def test_images_that_make_no_stamp(tmp_path):
    (tmp_path / "text.png").write_text("no image")
    Image.effect_noise((64, 64), 50).save(tmp_path / "whole.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "whole.png").read_bytes()[:-1000])
    for name in ("text.png", "half.png", "missing.png"):
        with pytest.raises(StampError, match=f"not a readable image file.*{name}"):
            Stamp.from_images([tmp_path / name], outputs=10, shape=SHAPE, seed=0)
    for path in (tmp_path / "whole.png", str(tmp_path / "whole.png")):
        with pytest.raises(StampError, match=r"one path instead of a list.*pass \[path\]"):
            Stamp.from_images(path, outputs=10, shape=SHAPE, seed=0)


# ------------------------------------------------------------------------------------------------------------ file


def test_a_stamp_survives_its_file(tmp_path):
    stamp, path = make(("Ä", "B")), tmp_path / "new folder" / "owner.safetensors"
    stamp.save(path)
    assert same(Stamp.load(path), stamp)
    assert same(Stamp.load(str(path)), stamp)
    stamp.save(path)
    assert [file.name for file in path.parent.iterdir()] == ["owner.safetensors"], "no temporary file is left"


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file_alone(tmp_path, monkeypatch, step):
    path = tmp_path / "owner.safetensors"
    make().save(path)
    old = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as broken, pytest.raises(OSError, match="disk full"):
        broken.setattr(files.os, step, fail)
        make(seed=1).save(path)
    assert path.read_bytes() == old
    assert [file.name for file in tmp_path.iterdir()] == ["owner.safetensors"]


def rewritten(path, tensors: dict | None = None, **about: object) -> None:
    """The stamp file at `path` with other tensors, or with other words about them."""
    stamp = make()
    stamp.save(path)
    with module.safe_open(path, framework="pt") as file:
        words = json.loads(file.metadata()["clearstamp"]) | about
    save_file(tensors or {"keys": stamp.keys, "secrets": stamp.secrets}, path, {"clearstamp": json.dumps(words)})


def truncated(path) -> None:
    make().save(path)
    path.write_bytes(path.read_bytes()[:-100])


def flipped(path) -> None:
    make().save(path)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: None, "not a readable stamp file.*fetch the file again"),
        (truncated, "not a readable stamp file"),
        (lambda path: path.write_bytes(b""), "not a readable stamp file"),
        (lambda path: path.write_text("no safetensors" * 50), "not a readable stamp file"),
        (lambda path: torch.save({"keys": 1}, path), "not a readable stamp file"),
        (
            lambda path: save_file({"weight": torch.zeros(2)}, path),
            r"a safetensors file, but not a stamp; got: \['weight'\]",
        ),
        (lambda path: save_file({"weight": torch.zeros(2)}, path, {"clearstamp": "{"}), "not a readable stamp file"),
        (lambda path: rewritten(path, format="other"), "a safetensors file, but not a stamp"),
        (lambda path: rewritten(path, {"keys": torch.zeros(1, 2)}), "a safetensors file, but not a stamp"),
        (lambda path: rewritten(path, version=2), "unknown version of the stamp format; got: 2; expected: 1"),
        (lambda path: rewritten(path, labels=["another", "name"]), "wrong checksum"),
        (lambda path: rewritten(path, checksum="0" * 64), "wrong checksum"),
        (lambda path: rewritten(path, {"keys": keys(), "secrets": secrets()}), "wrong checksum"),
        (flipped, "wrong checksum"),
    ],
)
def test_files_that_are_no_stamp(tmp_path, spoil, message):
    path = tmp_path / "owner.safetensors"
    spoil(path)
    with pytest.raises(StampError, match=message) as caught:
        Stamp.load(path)
    assert str(path) in str(caught.value)


def test_the_papers_key_is_the_first_draw_of_seed_0():
    torch.testing.assert_close(draw_keys(1, 10, seed=0), torch.tensor([PAPER_KEY]), rtol=0, atol=1.1e-4)
