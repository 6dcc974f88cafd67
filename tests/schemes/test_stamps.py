"""ClearStamp behind the contract: seals, and keys that enter within the model."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from clearstamp.attacks import ATTACKS, DummyUnits, Forgery
from clearstamp.errors import AttackError, SchemeError, StampError
from clearstamp.evidence.seal import Seal
from clearstamp.schemes import ClearStamp, Key, Mark
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


@pytest.mark.parametrize("tap", ["8", "0"])
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("erasure", {"steps": 2, "target": "unmarked"}),
        ("overwriting", {"steps": 2}),
        ("forgery", {"steps": 2}),
        ("forgery", {"by": "copy"}),
        ("false-claim", {"surrogates": 2, "candidates": 3}),
    ],
)
def test_attacks_on_stamps_enter_where_the_owner_s_keys_do(tap, name, settings):
    model, scheme = network().eval(), replace(TAPPED, tap=tap)
    key = scheme.draw(model, images(), seed=7)
    found = ATTACKS[name](**settings).apply(model, images(), Mark(key), unmarked=network())
    assert found.after.reading.ssim.shape == (2,)
    if found.claim is not None:
        assert found.claim.scheme == scheme and found.claim["keys"].shape == key["keys"].shape


def test_units_that_are_added_where_keys_enter_are_taken_out_before_a_sealed_stamp_is_read():
    scheme, model = ClearStamp(pairs=17, tap="8"), network().eval()
    key = scheme.draw(model, images(), seed=7)
    found = DummyUnits().apply(model, images(), Mark(key))
    assert len(found.model[8].weight) > len(model[8].weight) == 24
    pictures = found.before.evidence.pictures
    torch.testing.assert_close(
        found.after.evidence.pictures, pictures, rtol=1e-4, atol=1e-4 * float(pictures.abs().max())
    )
    assert found.after.evidence.trials == found.before.evidence.trials > 0


def test_a_stamp_that_does_not_fit_an_attacked_model_reads_as_nothing():
    model = network().eval()
    key = TAPPED.draw(model, images(), seed=7)
    found = DummyUnits().apply(model, images(), Mark(key))
    assert (found.after.evidence.score, found.after.evidence.p) == (0.0, 1.0) and found.before.evidence.trials == 2
    with pytest.raises(StampError, match="does not fit the model"):
        DummyUnits().apply(found.model, images(), Mark(key))


def test_no_head_is_forged_where_none_is_read():
    model = network().eval()
    key = TAPPED.draw(model, images(), seed=7)
    with pytest.raises(AttackError, match="keys enter before it"):
        Forgery(by="head", steps=2).apply(model, images(), Mark(key))


@pytest.mark.parametrize("settings", [{"tap": "no such layer"}, {"tap": "8", "pairs": 1}, {"pairs": 1}])
def test_what_cannot_be_drawn_is_an_error_of_the_scheme(settings):
    with pytest.raises(SchemeError, match="stamp cannot be drawn"):
        ClearStamp(**settings).draw(network(), images(), seed=7)
    with pytest.raises(SchemeError, match="a layer without a name"):
        ClearStamp(tap="", sealed=False)


@pytest.mark.parametrize("readout", ["adjoint", "paper", "gradient"])
def test_a_suspect_without_the_layer_scores_0(readout):
    key = ClearStamp(readout=readout, tap="8", pairs=17).draw(network(), images(), seed=7)
    found = key.scheme.extract(nn.Sequential(nn.Flatten(), nn.Linear(196, 4)), key)
    assert (found.score, found.trials, found.p) == (0, 0, 1)
