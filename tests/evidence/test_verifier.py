import hashlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from clearstamp.errors import StampError
from clearstamp.evidence import verifier
from clearstamp.evidence.verifier import load_verifier, read_verifier, scores
from clearstamp.pictures import draw_text
from clearstamp.scores import correlation

ALPHABET = "45AFGJLMNQRVWXYZ"


def levels(text: str, side: int) -> torch.Tensor:
    return (draw_text(text, (side, side)) * 255).round().byte()


def drawn(texts: list[str] | str, side: int) -> torch.Tensor:
    return torch.stack([levels(text, side) for text in texts])


def test_the_weights_are_small_and_those_that_code_and_card_name():
    content = verifier.WEIGHTS.read_bytes()
    assert len(content) < 200_000
    assert hashlib.sha256(content).hexdigest() == verifier.SHA256
    named = re.findall(r"\b[0-9a-f]{64}\b", verifier.WEIGHTS.with_suffix(".md").read_text(encoding="utf-8"))
    assert named == [verifier.SHA256]


def test_changed_weights_are_refused(tmp_path: Path):
    content = bytearray(verifier.WEIGHTS.read_bytes())
    content[-1] ^= 1
    (tmp_path / "changed").write_bytes(content)
    with pytest.raises(StampError, match="not those that belong to this code.*install clearstamp again"):
        read_verifier(tmp_path / "changed", verifier.SHA256)


def test_missing_weights_are_an_error_of_this_library(tmp_path: Path):
    with pytest.raises(StampError, match="cannot be read.*No such file"):
        read_verifier(tmp_path / "nowhere", verifier.SHA256)


def test_the_verifier_is_loaded_when_it_is_asked_for_and_once():
    code = "import sys, clearstamp; print('clearstamp.evidence.verifier' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
    assert load_verifier() is load_verifier()


def test_scores_are_the_same_for_any_batch_and_order():
    pictures = torch.randint(256, (verifier.AT_ONCE + 5, 14, 14), dtype=torch.uint8)
    secrets = drawn(ALPHABET, 14)
    whole = scores(pictures, secrets)
    order, turned = torch.randperm(len(pictures)), torch.randperm(len(secrets))
    assert whole.shape == (len(pictures), 16) and whole.dtype == torch.float64
    assert torch.equal(scores(pictures[order], secrets[turned]), whole[order][:, turned])
    assert torch.equal(torch.cat([scores(picture[None], secrets) for picture in pictures[-9:]]), whole[-9:])
    assert torch.equal(torch.cat([scores(pictures, secret[None]) for secret in secrets[:2]], 1), whole[:, :2])


@pytest.mark.parametrize("side", [28, 32, 56, 224])
def test_a_secret_scores_above_its_near_misses_and_they_above_others(side: int):
    texts = ["AFGJ", "AFGL", "AFRJ", "4FGJ", "XYZ5"]
    found = scores(drawn(texts[:1], side), drawn(texts, side))[0]
    assert found[0] == found.max() and found[0] > 0
    assert (found[1:4] < found[0]).all() and (found[4] < found[1:4]).all()


def test_a_picture_and_a_secret_need_not_be_of_one_size():
    found = scores(drawn(ALPHABET, 14), drawn(ALPHABET, 56))
    assert torch.equal(found.argmax(1), torch.arange(16))


def test_level_and_contrast_change_nothing():
    picture = drawn("R", 14).to(torch.int64)
    secrets = drawn(ALPHABET, 14)
    plain = scores(picture * 28, secrets)
    assert torch.allclose(scores(picture * 84 - 1000, secrets), plain, rtol=0, atol=2e-3)  # both are rounded to levels
    assert not torch.allclose(scores(-picture, secrets), plain, atol=1)


def test_a_flat_picture_is_as_unlike_one_secret_as_another():
    flat = torch.stack([torch.full((14, 14), level, dtype=torch.uint8) for level in (0, 77, 255)])
    found = scores(flat, drawn(ALPHABET, 14))
    assert found.unique().numel() == 1 and found[0, 0] < 0


@pytest.mark.parametrize(
    "pictures",
    [
        torch.zeros(2, 14, 14),
        torch.zeros(2, 1, 14, 14, dtype=torch.uint8),
        torch.zeros(2, 14, 7, dtype=torch.uint8),
        torch.zeros(0, 14, 14, dtype=torch.uint8),
    ],
    ids=["floats", "a channel", "too narrow", "none"],
)
def test_what_is_no_grey_picture_is_refused(pictures: torch.Tensor):
    secrets = drawn("A", 14)
    with pytest.raises(StampError, match="not grey pictures"):
        scores(pictures, secrets)
    with pytest.raises(StampError, match="not grey pictures"):
        scores(secrets, pictures)


def shares_right(noise: torch.Tensor) -> tuple[float, float]:
    """The shares of noisy letters ``[16 n, 14, 14]`` that a template and the verifier read right."""
    glyphs = drawn(ALPHABET, 14)
    letters = torch.arange(16).repeat(len(noise) // 16)
    noisy = (glyphs[letters] / 4 + 96 + noise).clamp(0, 255).round().byte()
    pairs = [part.flatten(0, 1).double() for part in torch.broadcast_tensors(noisy[:, None], glyphs)]
    template = correlation(*pairs).reshape(len(noisy), 16).argmax(1)
    verified = scores(noisy, glyphs).argmax(1)
    return tuple(float((found == letters).double().mean()) for found in (template, verified))


def test_letters_in_white_noise_are_read_nearly_as_well_as_by_a_template_which_is_best_there():
    template, verified = shares_right(60 * torch.randn(400, 14, 14))
    assert template > 0.95 and verified > 0.95


def test_letters_among_blotches_are_read_better_than_by_a_template():
    blotches = F.interpolate(torch.randn(400, 1, 4, 4), (14, 14), mode="bilinear").squeeze(1)
    template, verified = shares_right(90 * blotches)
    assert verified > 0.9 > 0.75 > template
