"""ClearStamp behind the contract: seals, and keys that enter within the model."""

import copy

import pytest
import torch
from torch import nn

from clearstamp.evidence.seal import Seal
from clearstamp.schemes import ClearStamp, Key
from tests.schemes.test_schemes import SHAPE, images, network

TAPPED = ClearStamp(sealed=False, pairs=2, steps=300, lr=3e-3, tap="8")


def embedded(scheme: ClearStamp) -> tuple[nn.Module, Key]:
    """A network with a stamp after a little training, and its key."""
    model = network()
    key = scheme.draw(model, images(), seed=7)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        key = scheme.embed(model, images(), key, epochs=4, lr=3e-3, batch_size=32, progress=False)
    return model.eval(), key


def beheaded(model: nn.Module) -> nn.Module:
    """The model with a last layer for seven classes, drawn anew."""
    other = copy.deepcopy(model)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        other[11] = nn.Linear(24, 7)
    return other


def test_a_stamp_whose_keys_enter_within_the_model_outlives_its_head():
    model, key = embedded(TAPPED)
    assert key["keys"].shape == (2, 24)
    before, after = TAPPED.extract(model, key), TAPPED.extract(beheaded(model), key)
    assert before.score == after.score and torch.equal(before.pictures, after.pictures)
    assert before.score > TAPPED.extract(network(), key).score + 0.15


def test_sealed_letters_are_read_where_the_seal_says():
    scheme = ClearStamp(pairs=17, steps=600, lr=3e-3, tap="8")
    model, key = embedded(scheme)
    assert scheme.seal(key).choices.key == (24,) and scheme.seal(key).choices.tap == "8"
    found, headless = scheme.verify(model, key), scheme.extract(beheaded(model), key)
    assert found.accepted and found.evidence.p == headless.p
    assert not scheme.verify(network(), key).accepted


@pytest.mark.parametrize("choices", [{"readout": "paper"}, {"tap": "8"}, {"readout": "gradient", "tap": "8"}])
def test_a_deposited_seal_is_read_by_its_own_choices(choices):
    seal = Seal.make(outputs=24 if "tap" in choices else 4, shape=SHAPE, codes=17, **choices)
    key = ClearStamp().deposit(seal)
    assert {"readout": key.scheme.readout, "tap": key.scheme.tap} == {"readout": "adjoint", "tap": None} | choices
    model = network().eval()
    mine, its = key.scheme.backwards(model, key.scheme.stamp(key)), seal.transpose(model)
    keys = seal.stamp().keys
    torch.testing.assert_close(mine(keys), its(keys))


def test_a_key_drawn_before_there_were_taps_has_the_same_digest(tmp_path):
    key = ClearStamp(sealed=False).draw(network(), images(), seed=7)
    assert set(key.about["scheme"]) == {"name", "readout", "sealed", "pairs", "steps", "lr"}
    tapped = TAPPED.draw(network(), images(), seed=7)
    assert tapped.about["scheme"]["tap"] == "8"
    tapped.save(tmp_path / "key")
    assert Key.load(tmp_path / "key").scheme == TAPPED
