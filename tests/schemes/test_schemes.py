"""What every scheme promises, on a network that trains within a second."""

import copy
import json
import math
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import pytest
import torch
from scipy import stats
from torch import nn

from clearstamp.attacks import ATTACKS, CounterClaim, SecondMark, Unlearning
from clearstamp.attacks.base import OWN
from clearstamp.data import Data
from clearstamp.errors import AttackError, SchemeError
from clearstamp.schemes import (
    SCHEMES,
    ActivationSigns,
    Adi,
    ClearStamp,
    DeepSigns,
    FrontierStitching,
    GradSigns,
    Key,
    Li,
    Mark,
    NeuNAC,
    Scheme,
    SpecialLabel,
    Tartaglione,
    Uchida,
    WaterMAS,
    WhiteBoxGradSigns,
    Zhang,
)
from clearstamp.training.loops import fit
from clearstamp.training.steps import OPTIMIZERS

SHAPE = (1, 14, 14)
CLASSES = 4


@dataclass(frozen=True)
class Small:
    """A scheme at a size for tests, and what it is trained with."""

    scheme: Scheme
    training: dict[str, Any] = field(default_factory=lambda: {"epochs": 8, "lr": 3e-3, "batch_size": 32})


LONGER = {"epochs": 16, "lr": 3e-3, "batch_size": 32}
SLOPES: dict[str, Any] = {"bits": 32, "carriers": 150, "images": 8, "strength": 3.0, "noise": 0.3}
SMALL = {
    "activation-signs": Small(ActivationSigns(bits=22, layer="8")),
    "clear-stamp": Small(ClearStamp(sealed=False, pairs=2, steps=300, lr=3e-3)),
    "li": Small(Li(share=0.08, per_batch=8, similarity=0.1, structure=0.1, response=1.0)),
    "adi": Small(Adi(triggers=20, per_batch=8), {"epochs": 20, "lr": 3e-3, "batch_size": 32}),
    "zhang": Small(Zhang(kind="noise", strength=0.5, triggers=20, per_batch=8, decoys=40)),
    "special-label": Small(SpecialLabel(triggers=20, per_batch=8, strength=0.1)),
    "frontier-stitching": Small(FrontierStitching(triggers=20, per_batch=8, strength=0.25)),
    "deep-signs": Small(DeepSigns(bits=22, strength=1.0, layer="8")),
    "grad-signs": Small(GradSigns(**SLOPES), LONGER),
    "uchida": Small(Uchida(bits=32, strength=0.1, layer="4")),
    "white-box-grad-signs": Small(WhiteBoxGradSigns(**SLOPES), LONGER),
    "neu-nac": Small(NeuNAC()),
    "tartaglione": Small(Tartaglione(deviation=0.1, strength=0.1, batch_size=32)),
    "water-mas": Small(WaterMAS(bits=64, batch_size=32)),
}


def network(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            *(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(8, 12, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(108, 24), nn.Dropout(0.1), nn.ReLU(), nn.Linear(24, CLASSES)),
        )


@cache
def images() -> Data:
    """Four bright squares, one a class, in noise."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(320) % CLASSES
    shown = 0.4 * torch.rand(320, *SHAPE, generator=generator)
    for place, label in enumerate(labels.tolist()):
        row, column = 7 * (label // 2), 7 * (label % 2)
        shown[place, :, row : row + 7, column : column + 7] += 0.5
    return Data(shown, labels)


@cache
def learnt(seed: int) -> nn.Module:
    """A network that knows its task, and has no mark."""
    model = network(seed)
    fit(model, images().loader(seed=seed), epochs=5, lr=3e-3, progress=False)
    return model.eval()


def start(scheme: Scheme) -> nn.Module:
    """What a scheme begins with."""
    return copy.deepcopy(learnt(0)) if scheme.needs_trained else network()


@cache
def marked(name: str) -> tuple[nn.Module, Key]:
    """A marked network and its key."""
    small = SMALL[name]
    model = start(small.scheme)
    key = small.scheme.draw(model, images(), seed=7)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        key = small.scheme.embed(model, images(), key, progress=False, **small.training)
    return model.eval(), key


def state(model: nn.Module) -> list[torch.Tensor]:
    return [tensor.clone() for tensor in model.state_dict().values()]


every = pytest.mark.parametrize("name", sorted(SCHEMES))
BLACK_BOX = sorted(name for name, scheme in SCHEMES.items() if scheme.access != "weights")
MESSAGES = [name for name, small in SMALL.items() if hasattr(small.scheme, "bits")]


def test_every_scheme_is_tried_here():
    assert set(SMALL) == set(SCHEMES)


@every
def test_a_mark_is_embedded_and_verified(name):
    model, key = marked(name)
    found = key.scheme.verify(model, key, null=[learnt(1), learnt(2)])
    assert found.accepted, found
    assert found.evidence.p <= 1e-6 or math.isnan(found.evidence.p)


@every
def test_the_task_is_learnt_beside_the_mark(name):
    model, key = marked(name)
    answers = model(images().images).argmax(1)
    assert (answers == images().labels).float().mean() > 0.95


@every
def test_a_key_survives_a_round_trip_to_disk(name, tmp_path):
    model, key = marked(name)
    key.save(tmp_path / "key.safetensors")
    again = Key.load(tmp_path / "key.safetensors")
    assert again.digest == key.digest and again.scheme == key.scheme and again.shape == key.shape
    assert again.settings == key.settings
    assert all(torch.equal(again[tensor], key[tensor]) for tensor in key.tensors)
    one, other = key.scheme.extract(model, key), again.scheme.extract(model, again)
    assert (one.score, one.trials, one.payload) == (other.score, other.trials, other.payload)


@every
def test_the_same_seed_draws_the_same_key_and_another_seed_another(name):
    scheme = SMALL[name].scheme
    model = start(scheme)
    before = state(model)
    one, same, other = (scheme.draw(model, images(), seed=seed).digest for seed in (1, 1, 2))
    assert one == same != other
    assert all(map(torch.equal, before, state(model)))


@every
def test_fresh_keys_find_nothing_in_a_marked_model(name):
    model, key = marked(name)
    fresh = [key.scheme.draw(model, images(), seed=seed) for seed in range(100, 120)]
    assert not [seed for seed, other in enumerate(fresh) if key.scheme.verify(model, other, null=[learnt(1)]).accepted]


@every
def test_the_key_finds_nothing_in_unmarked_models(name):
    _, key = marked(name)
    for seed in (1, 2, 3):
        assert not key.scheme.verify(learnt(seed), key, null=[learnt(4)]).accepted


@every
def test_extraction_leaves_the_suspect_and_the_generators_as_they_were(name):
    model, key = marked(name)
    suspect = copy.deepcopy(model)
    suspect.train()
    suspect[1].eval()
    before, modes = state(suspect), [module.training for module in suspect.modules()]
    generator = torch.get_rng_state()
    key.scheme.extract(suspect, key)
    assert all(map(torch.equal, before, state(suspect)))
    assert modes == [module.training for module in suspect.modules()]
    assert torch.equal(generator, torch.get_rng_state())
    assert all(parameter.grad is None for parameter in suspect.parameters())


@every
def test_a_suspect_that_does_not_fit_scores_nothing(name):
    _, key = marked(name)
    for stranger in (nn.Sequential(nn.Flatten(), nn.Linear(9, 4)), nn.Sequential(nn.Conv2d(3, 4, 3))):
        found = key.scheme.extract(stranger, key)
        assert (found.score, found.p) == (0.0, 1.0)
        assert not key.scheme.verify(stranger, key).accepted


@every
def test_a_key_of_other_settings_is_refused(name):
    model, key = marked(name)
    other = ClearStamp() if name == "uchida" else Uchida()
    with pytest.raises(SchemeError, match="a key of another scheme"):
        other.extract(model, key)


@every
def test_a_key_file_that_was_changed_is_refused(name, tmp_path):
    _, key = marked(name)
    path = tmp_path / "key.safetensors"
    key.save(path)
    written = bytearray(path.read_bytes())
    written[-1] ^= 1
    path.write_bytes(written)
    with pytest.raises(SchemeError):
        Key.load(path)


@every
def test_a_commitment_binds_key_and_nonce(name):
    _, key = marked(name)
    other = replace(key, tensors=key.tensors | {"more": torch.zeros(1)})
    assert len({key.commitment(b"1" * 32), key.commitment(b"2" * 32), other.commitment(b"1" * 32)}) == 3
    json.dumps(key.about)


@pytest.mark.parametrize("name", MESSAGES)
def test_p_of_fresh_keys_on_an_unmarked_model_is_uniform(name):
    scheme = SMALL[name].scheme
    found = [scheme.extract(learnt(1), scheme.draw(learnt(1), images(), seed=seed)) for seed in range(200, 400)]
    right = [round(evidence.score * evidence.trials) for evidence in found]
    expected = stats.binom.pmf(range(scheme.bits + 1), scheme.bits, 0.5)
    low, high = stats.binom.ppf((0.25, 0.75), scheme.bits, 0.5)
    share = [sum(r < low for r in right), sum(low <= r <= high for r in right), sum(r > high for r in right)]
    parts = [expected[: int(low)].sum(), expected[int(low) : int(high) + 1].sum(), expected[int(high) + 1 :].sum()]
    assert stats.chisquare(share, [200 * part for part in parts]).pvalue > 0.01
    assert all(
        evidence.p == pytest.approx(stats.binom.sf(r - 1, scheme.bits, 0.5))
        for evidence, r in zip(found, right, strict=True)
    )


@every
def test_an_owner_asks_the_queries_of_the_key_and_counts_them(name):
    model, key = marked(name)
    asked: list[torch.Tensor] = []
    suspect = copy.deepcopy(model)
    suspect.register_forward_pre_hook(lambda _, inputs: asked.extend(inputs[0]))
    queries, found = key.scheme.queries(key), key.scheme.extract(suspect, key)
    if name not in BLACK_BOX:
        assert queries is None and found.queries == 0
        return
    assert found.queries == len(asked) == len(queries)
    assert sorted(each.tolist() for each in asked) == sorted(each.tolist() for each in queries)


@pytest.mark.parametrize("name", BLACK_BOX)
@pytest.mark.parametrize("attack", ["permutation", "rescaling", "split-units", "batch-norm-rescaling"])
def test_a_verdict_by_queries_is_unchanged_by_what_keeps_the_function(name, attack):
    model, key = marked(name)
    found = ATTACKS[attack]().apply(model, images(), Mark(key))
    assert found.after.evidence.score == pytest.approx(found.before.evidence.score, abs=1e-3)
    assert found.after.evidence.p <= 1e-6 or math.isnan(found.after.evidence.p)


@every
def test_every_scheme_meets_attacks(name):
    model, key = marked(name)
    for attack in ("pruning", "fine-tuning", "noise"):
        found = ATTACKS[attack]().apply(model, images(), Mark(key))
        assert 0 <= found.after.evidence.score <= 1
        if key.scheme.fragile:
            assert not key.scheme.judge(found.after.evidence).accepted
        assert found.before.evidence.score == pytest.approx(key.scheme.extract(model, key).score)


LOCKING = [name for name, small in SMALL.items() if type(small.scheme).after_step is not Scheme.after_step]


@pytest.mark.parametrize("name", LOCKING)
@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
def test_locked_weights_stay_to_the_last_bit(name, optimizer):
    """What `prepare` sets and `after_step` locks does not move, whatever the optimizer and its decay."""
    scheme = SMALL[name].scheme
    model = start(scheme)
    key = scheme.draw(model, images(), seed=7)
    scheme.prepare(model, images(), key)
    locked = scheme.locked(model, key)  # type: ignore[attr-defined]
    before = locked.clone()

    def decaying(parameters: Any, lr: float) -> torch.optim.Optimizer:
        return OPTIMIZERS[optimizer](parameters, lr=lr, weight_decay=0.1)

    scheme.embed(model, images(), key, epochs=1, lr=1e-2, optimizer=decaying, progress=False)
    assert torch.equal(before, scheme.locked(model, key))  # type: ignore[attr-defined]


@every
def test_an_attacker_unlearns_a_known_mark_or_is_told_that_there_is_no_loss(name):
    model, key = marked(name)
    attack = Unlearning(steps=60, lr=1e-2)
    if key.scheme.loss(copy.deepcopy(model), images(), key) is None:
        with pytest.raises(AttackError, match="the scheme has no loss"):
            attack.apply(model, images(), Mark(key))
        return
    found = attack.apply(model, images(), Mark(key))
    assert found.after.evidence.score < found.before.evidence.score - 0.1
    assert found.steps == 2 * 60


def test_a_mark_whose_loss_weighs_little_is_unlearnt_no_slower():
    model, key = marked("uchida")
    light = replace(key, scheme=replace(key.scheme, strength=key.scheme.strength / 1000))
    heard, quiet = (Unlearning(steps=60, lr=1e-2).apply(model, images(), Mark(each)).after for each in (key, light))
    assert heard.evidence.score == quiet.evidence.score < 0.6


SURE = ("grad-signs", "white-box-grad-signs")
"""Where a model that has learnt its task has no slopes left that so few steps could sign."""


@every
def test_a_second_mark_of_the_same_scheme_is_read_beside_the_first(name):
    model, key = marked(name)
    found = SecondMark(epochs=30, lr=3e-3).apply(model, images(), Mark(key))
    theirs, ours = found.trace
    assert (theirs.label, ours.label) == ("the attacker's mark", "after")
    assert found.claim is None
    drawn = key.scheme.draw(model, images(), seed=OWN)
    if name not in SURE:
        assert theirs.evidence.score > key.scheme.extract(model, drawn).score + 0.2


FORGEABLE = sorted(set(SMALL) - {"clear-stamp", "special-label"})


@pytest.mark.parametrize("name", FORGEABLE)
def test_key_material_can_be_made_up_for_a_model_without_a_mark(name):
    """Which is why a key counts only with a commitment that is older than the model."""
    scheme = SMALL[name].scheme
    mark = Mark(scheme.draw(start(scheme), images(), seed=7))
    found = CounterClaim().apply(learnt(1), images(), mark)
    assert found.claim is not None and found.claim.digest != mark.key.digest
    assert found.after.evidence.score >= 0.9 >= found.before.evidence.score


def test_a_label_that_a_model_does_not_have_cannot_be_made_up():
    scheme = SMALL["special-label"].scheme
    mark = Mark(scheme.draw(network(), images(), seed=7))
    assert CounterClaim().apply(learnt(1), images(), mark).after.evidence.score == 0.0
