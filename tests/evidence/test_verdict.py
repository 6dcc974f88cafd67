"""Verdicts: what a perfect, a spoilt, a flat and a stranger's reading come to."""

from dataclasses import replace
from decimal import Decimal

import numpy as np
import pytest
import torch
from torch import nn

import clearstamp as cs
from clearstamp.attacks import DummyUnits
from clearstamp.errors import SealError
from clearstamp.evidence import Outcome, Seal, chance, judge, verify
from clearstamp.evidence.verdict import NOT_INNOCENCE, look, reread


def spoilt(pictures: np.ndarray, share: float) -> np.ndarray:
    """Pictures of which a share, from the last on, show noise."""
    found = pictures.copy()
    first = round(len(found) * (1 - share))
    found[first:] = np.random.default_rng(0).integers(0, 256, found[first:].shape)
    return found


def with_test(seal: Seal, test: str) -> Seal:
    return replace(seal, written=replace(seal.choices, test=test).written())


@pytest.mark.parametrize("name", ["letters", "ordered", "coded"])
def test_a_perfect_reading_reaches_the_floor(name: str, request: pytest.FixtureRequest):
    seal: Seal = request.getfixturevalue(name)
    verdict = judge(seal, seal.secrets())
    assert verdict.p == chance.UP.multiply(Decimal(2), seal.choices.floor)
    assert verdict.right == verdict.of and verdict.legible and verdict.outcome is Outcome.MATCH
    assert verdict.correlation == pytest.approx(1, abs=1e-5)


def test_a_soft_reading_comes_close_to_the_floor(letters: Seal):
    soft = with_test(letters, "letters-soft")
    verdict = judge(soft, soft.secrets())
    assert soft.choices.floor < verdict.p < 2.0**-64


@pytest.mark.parametrize("test", ["letters", "letters-soft"])
def test_six_of_ten_pictures_are_enough(test: str, letters: Seal):
    seal = with_test(letters, test)
    verdict = judge(seal, spoilt(seal.secrets(), 0.4))
    assert verdict.outcome is Outcome.MATCH and 24 <= verdict.right < 36


def test_a_match_need_not_be_legible(letters: Seal):
    pale = letters.secrets() // 20 + np.random.default_rng(0).integers(0, 60, (11, 1, 28, 28), np.uint8)
    verdict = judge(letters, pale)
    assert verdict.outcome is Outcome.MATCH and not verdict.legible
    assert "not legible" in str(verdict)


def test_between_the_bar_and_a_millionth_is_weak(letters: Seal):
    verdict = judge(letters, spoilt(letters.secrets(), 0.7))
    assert verdict.outcome is Outcome.WEAK
    assert Decimal(2) ** -64 < verdict.p <= Decimal("1e-6")


@pytest.mark.parametrize("name", ["letters", "ordered", "coded"])
@pytest.mark.parametrize("level", [0, 128, 255])
def test_flat_pictures_show_nothing(name: str, level: int, request: pytest.FixtureRequest):
    seal: Seal = request.getfixturevalue(name)
    verdict = judge(seal, np.full_like(seal.secrets(), level))
    assert verdict.outcome is Outcome.NO_MATCH and not verdict.legible and verdict.correlation == 0
    assert verdict.p == 1 or name == "coded"  # where white pictures guess half of the bits right


@pytest.mark.parametrize("test", ["letters", "letters-soft"])
def test_flat_letters_have_p_one(test: str, letters: Seal):
    seal = with_test(letters, test)
    assert judge(seal, np.full_like(seal.secrets(), 255)).p == 1


def test_another_seals_pictures_are_no_match(letters: Seal):
    other = replace(letters, seed=bytes(32))
    verdict = judge(letters, other.secrets())
    assert verdict.outcome is Outcome.NO_MATCH and verdict.right < 12 and verdict.p > Decimal("1e-4")


def test_attempts_and_searched_models_multiply_p(letters: Seal):
    one, many = (judge(letters, letters.secrets(), searched=n) for n in (1, 1000))
    assert one.tries == 2 and many.tries == 2000
    assert float(many.p / one.p) == pytest.approx(1000)
    assert judge(letters, letters.secrets(), searched=10**60).outcome is Outcome.NO_MATCH


def test_bytes_are_read_with_the_bits(coded: Seal):
    assert judge(coded, coded.secrets()).data == b"licence 7"
    assert judge(coded, spoilt(coded.secrets(), 1.0)).data is None


def test_bits_that_are_as_black_as_white_are_wrong(coded: Seal):
    grey = np.zeros_like(coded.secrets())
    grey[..., ::2] = 255
    assert judge(coded, grey).right == 0


def test_swapped_pictures_are_counted(ordered: Seal):
    swapped = ordered.secrets()[[1, 0, 2, 3, 4]]
    verdict = judge(ordered, swapped)
    assert verdict.right == 3
    assert 2 * Decimal(2) / 120 <= verdict.p <= 2 * Decimal(30) / 120


def test_the_reader_sees_letters_through_what_all_pictures_share(letters: Seal):
    shared = np.random.default_rng(0).integers(0, 128, (1, 1, 28, 28))
    pictures = (letters.secrets() // 4 + shared).astype(np.uint8)
    assert judge(letters, pictures).right == 44


def test_pictures_of_another_shape_are_refused(letters: Seal):
    with pytest.raises(SealError, match="another shape"):
        judge(letters, letters.secrets()[:-1])
    with pytest.raises(SealError, match="another shape"):
        judge(letters, letters.secrets().astype(np.float32))


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_every_verdict_says_what_p_is_not(share: float, letters: Seal):
    assert NOT_INNOCENCE in str(judge(letters, spoilt(letters.secrets(), share)))


# ---------------------------------------------------------------------------------------------------------- models


@pytest.fixture(scope="module")
def tiny() -> tuple[Seal, cs.Transposed]:
    """A linear model that shows its stamp: the secrets are the least-squares answer to the keys."""
    torch.manual_seed(0)
    seal = Seal.make(outputs=12, shape=(1, 28, 28))
    stamp, layer = seal.stamp(), nn.Linear(784, 12)
    with torch.no_grad():
        layer.weight.copy_(torch.linalg.lstsq(stamp.keys, stamp.secrets.flatten(1)).solution)
    return seal, seal.transpose(nn.Sequential(nn.Flatten(), layer))


def test_a_model_with_the_stamp_matches(tiny: tuple[Seal, cs.Transposed]):
    seal, back = tiny
    verdict = verify(back, seal)
    assert verdict.outcome is Outcome.MATCH and verdict.right == 44 and verdict.attempt == "as is"


def test_another_model_does_not(tiny: tuple[Seal, cs.Transposed]):
    seal, _ = tiny
    verdict = verify(seal.transpose(nn.Sequential(nn.Flatten(), nn.Linear(784, 12))), seal)
    assert verdict.outcome is Outcome.NO_MATCH


def test_a_grafted_layer_supports_at_most(tiny: tuple[Seal, cs.Transposed]):
    seal, back = tiny
    assert verify(back, seal, grafted=True).outcome is Outcome.SUPPORTS
    stranger = seal.transpose(nn.Sequential(nn.Flatten(), nn.Linear(784, 12)))
    assert verify(stranger, seal, grafted=True).outcome is Outcome.NO_MATCH


def test_the_pictures_of_a_verdict_are_those_that_a_person_sees(tiny: tuple[Seal, cs.Transposed]):
    seal, back = tiny
    developed = cs.develop(cs.extract(back, seal.stamp())) * 255
    assert np.array_equal(verify(back, seal).pictures, developed.double().round().byte().numpy())
    assert np.array_equal(look(back, seal.stamp()), verify(back, seal).pictures)


def test_merging_is_tried_where_reading_as_is_fails(tiny: tuple[Seal, cs.Transposed], monkeypatch: pytest.MonkeyPatch):
    seal, back = tiny
    read: list[str] = []
    secrets = seal.stamp().secrets

    def reread(back: cs.Transposed, seal: Seal, attempt: str) -> cs.Transposed:
        read.append(attempt)
        return back

    monkeypatch.setattr("clearstamp.evidence.verdict.reread", reread)
    monkeypatch.setattr("clearstamp.evidence.verdict.extract", lambda *_: secrets * (read[-1] == "merged units"))
    verdict = verify(back, seal)
    assert read == ["as is", "merged units"] and verdict.attempt == "merged units" and verdict.tries == 2


def test_units_that_cancel_are_merged():
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 32), nn.ReLU(), nn.Linear(32, 12))
    seal = Seal.make(outputs=12, shape=(1, 28, 28))
    cs.harden(seal.transpose(model), seal.stamp(), dropout=0.0, lr=1e-2, steps=300, progress=False)
    images = cs.Data(torch.rand(12, 1, 28, 28), torch.arange(12))
    attacked = DummyUnits(share=1.0, outgoing="cancelling").apply(model, images, seal.stamp()).model
    verdict = verify(seal.transpose(attacked), seal)
    assert verdict.outcome is Outcome.MATCH and verdict.attempt == "merged units"


def test_other_ways_backwards_are_refused(tiny: tuple[Seal, cs.Transposed]):
    seal, back = tiny
    with pytest.raises(SealError, match="not run backwards as the seal says.*paper"):
        verify(cs.transpose(back.model, torch.zeros(1, 1, 28, 28), readout="paper"), seal)
    with pytest.raises(SealError, match="searched"):
        verify(back, seal, searched=0)
    with pytest.raises(cs.ClearStampError, match="does not fit"):
        verify(seal.transpose(nn.Sequential(nn.Flatten(), nn.Linear(784, 3))), seal)


def test_an_unsealed_stamp_gets_no_verdict(tiny: tuple[Seal, cs.Transposed]):
    seal, back = tiny
    with pytest.raises(SealError, match="an unsealed stamp gets no verdict"):
        verify(back, seal.stamp())


def test_frozen_values_of_the_owners_choice_are_refused():
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(784, 12), nn.Linear(784, 12)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x.flatten(1)
            return self.a(x) + self.b(x)

    seal = Seal.make(outputs=12, shape=(1, 28, 28), readout="paper")
    model, example = Sum(), torch.zeros(1, 1, 28, 28)
    painted = cs.transpose(model, example, readout="paper", frozen=cs.freeze(Sum(), example))
    with pytest.raises(SealError, match="frozen values"):
        verify(painted, seal)
    assert verify(seal.transpose(model), seal).outcome is Outcome.NO_MATCH


class Named(nn.Module):
    """A model that gives a dictionary, as those for segmentation do."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(784, 32), nn.ReLU(), nn.Linear(32, 12))
        self.head = nn.Sequential(nn.ReLU(), nn.Linear(12, 3))

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"out": self.head(self.body(images)), "features": images}


def test_merging_reads_at_the_tap_and_leaves_its_units_alone():
    """Whatever the model's own output is; of two equal units at the tap both have their own number of each key."""
    seal, model = Seal.make(outputs=12, shape=(1, 28, 28), tap="body"), Named()
    with torch.no_grad():
        for layer in (model.body[1], model.body[3]):
            layer.weight[1], layer.bias[1] = layer.weight[0], layer.bias[0]
    merged = reread(seal.transpose(model), seal, "merged units")
    assert merged.key_shape == (12,) and len(merged.model.body[1].weight) == 31
    assert verify(seal.transpose(model), seal).tries == 2


def test_a_model_of_buffers_alone_is_read(tiny: tuple[Seal, cs.Transposed]):
    class Fixed(nn.Module):
        def __init__(self, weight: torch.Tensor):
            super().__init__()
            self.register_buffer("count", torch.tensor(7))
            self.register_buffer("weight", weight)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.flatten(1) @ self.weight.T

    seal, back = tiny
    assert verify(seal.transpose(Fixed(back.model[1].weight.detach())), seal).outcome is Outcome.MATCH
