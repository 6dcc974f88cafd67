from pathlib import Path

import pytest
import torch

from clearstamp.attacks import Averaging, Pruning
from clearstamp.evidence.verifier import SHA256, SIDE, read_verifier, resized
from clearstamp.reproduction import verifier
from clearstamp.reproduction.verifier import LETTER, MARGIN, OTHER, SECRET, TRUE, Budget, Marked, Pairs, Reading

TINY = Budget(
    trained=(1,),  # a fully connected network, as are all of these
    calibrated=(4,),
    held_out=(100, 103),
    seen={"pruning": Pruning(amount=0.5)},
    unseen={"averaging": Averaging(weight=0.5)},
    hardening=20,
    digits=64,
    steps=3,
)


@pytest.fixture(scope="module")
def marked() -> Marked:
    (found,) = TINY.models(TINY.trained)
    return found


def test_a_tiny_budget_makes_weights_that_load_and_a_card_that_names_them(tmp_path: Path):
    sha256 = verifier.make(tmp_path, TINY)
    read = read_verifier(tmp_path / "verifier.safetensors", sha256)
    assert read(torch.rand(2, SIDE, SIDE).double(), torch.rand(3, SIDE, SIDE).double()).shape == (2, 3)
    card = (tmp_path / "verifier.md").read_text(encoding="utf-8")
    assert sha256 in card and "averaging" in card and "{" not in card


def test_training_follows_from_its_seed(marked: Marked):
    first, again, other = (verifier.train([marked], steps=2, seed=seed, progress=False) for seed in (0, 0, 1))
    assert torch.equal(first.features[0].weight, again.features[0].weight)
    assert not torch.equal(first.features[0].weight, other.features[0].weight)


def test_nothing_that_is_held_out_is_trained_on():
    seeds = [set(part) for part in (verifier.TRAINED, verifier.CALIBRATED, verifier.HELD_OUT)]
    texts = [set(part) for part in (verifier.LETTERS, verifier.UNSEEN_LETTERS)]
    icons = [set(part) for part in (verifier.ICONS, verifier.UNSEEN_ICONS)]
    attacks = [set(part) for part in (verifier.SEEN, verifier.UNSEEN)]
    for parts in (seeds, texts, icons, attacks):
        assert len(set.union(*parts)) == sum(map(len, parts))
    assert len(verifier.LETTERS) == len(verifier.UNSEEN_LETTERS) == 16


def test_a_model_is_read_before_and_after_every_attack_and_where_there_is_nothing(marked: Marked):
    read = [(reading.attack, reading.strength) for reading in marked.readings]
    before = [("hardening", "10 steps"), ("hardening", "20 steps")]
    assert read == [*before, ("none", ""), ("wrong keys", ""), ("unmarked", ""), ("pruning", "")]
    assert all(reading.signals.shape == marked.secrets.shape for reading in marked.readings)


def test_cells_are_cut_as_letters_are_put_together(marked: Marked):
    cells = verifier.cut(marked.secrets[: len(marked.letters)])
    assert torch.equal(cells, marked.glyphs[marked.letters.flatten()])


def test_near_misses_differ_from_the_secret_in_one_letter_and_from_each_other(marked: Marked):
    missed = verifier.near_misses(marked)
    assert missed.shape == (8, 60, *marked.secrets.shape[1:])
    for secret, near in zip(marked.secrets, missed, strict=False):
        assert len(near.unique(dim=0)) == 60
        wrong = (verifier.cut(near) != verifier.cut(secret[None]).repeat(60, 1, 1)).flatten(1).any(1)
        assert (wrong.reshape(60, 4).sum(1) == 1).all()


def test_half_of_the_pictures_are_spoiled_and_stay_pictures():
    pictures = torch.randint(256, (400, SIDE, SIDE)).float()
    spoiled = verifier.spoiled(pictures)
    changed = (spoiled != pictures).flatten(1).any(1)
    assert 150 < changed.sum() < 250
    assert spoiled.min() >= 0 and spoiled.max() <= 255 and torch.equal(spoiled, spoiled.round())


def test_where_nothing_is_shown_every_likelihood_is_to_fall(marked: Marked):
    unmarked = next(reading for reading in marked.readings if reading.attack == "unmarked")
    for lesson in verifier.lessons(marked, unmarked, "as read"):
        reader = verifier.Verifier()
        verifier.lesson_loss(reader, lesson).backward()
        assert lesson.right is None and reader.bias.grad > 0


def test_a_template_reads_the_secrets_themselves(marked: Marked):
    clean = Reading("none", "", marked.secrets / 255)
    letters, pictures = verifier.read_all(verifier.template, marked, [clean], "clamped", marked.secrets)
    assert torch.equal(letters.argmax(1), marked.letters.flatten())
    assert torch.equal(pictures.argmax(1), torch.arange(11))


def test_areas_and_shares_are_those_of_the_pairs():
    pairs = Pairs()
    truth, near = torch.tensor([True, False, False]), torch.tensor([False, False, True])
    pairs.add(LETTER, torch.tensor([2.0, 1.0, 5.0]), truth, near, None)
    pairs.add(LETTER, torch.tensor([0.0, 1.5, 9.0]), truth, near, "unmarked")
    assert pairs.area(LETTER, OTHER) == 1 and pairs.area(LETTER, "near misses") == 0
    assert pairs.of(LETTER, "unmarked").tolist() == [0.0, 1.5]
    assert pairs.above(LETTER, TRUE, 1.9) == 1 and pairs.above(LETTER, "unmarked", 1.0) == 0.5


def test_pairs_of_a_model_are_counted_by_kind(marked: Marked):
    found = verifier.pairs(verifier.template, [marked], lambda reading: reading.attack == "none")
    sizes = {place: len(torch.cat(scores)) for place, scores in found.scores.items()}
    assert sizes[LETTER, TRUE] == 32 and sizes[LETTER, OTHER] == 32 * 14 and sizes[LETTER, "near misses"] == 32
    assert sizes[SECRET, TRUE] == 11 and sizes[SECRET, OTHER] == 110 and sizes[SECRET, "near misses"] == 8 * 60
    assert sizes[SECRET, "unmarked"] == 121
    true, near, margins = (found.of(SECRET, pair) for pair in (TRUE, "near misses", MARGIN))
    assert torch.equal(margins, (true[:8, None] - near.reshape(8, 60)).flatten())


def test_resizing_leaves_pictures_of_the_right_size_alone():
    pictures = torch.randint(256, (2, SIDE, SIDE), dtype=torch.uint8)
    assert torch.equal(resized(pictures), pictures.double())


@pytest.mark.parametrize(("sha256", "told"), [(SHA256, False), ("0" * 64, True)])
def test_the_command_says_when_the_code_names_other_weights(sha256, told, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(verifier, "make", lambda folder, budget: sha256)
    assert verifier.main(["--folder", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert f"{tmp_path / 'verifier.safetensors'}: SHA-256 {sha256}" in printed
    assert ("names other weights" in printed) == told
