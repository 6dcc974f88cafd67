"""Accusers: what they claim, and that they neither look at nor change what they need not."""

import copy

import pytest
import torch
from torch import nn

from clearstamp.attacks import FalseClaim, Forgery, Scene
from clearstamp.attacks.forgery import agreed, claimed
from clearstamp.data import Data
from clearstamp.errors import AttackError
from clearstamp.reading import read
from clearstamp.scores import structural_similarity
from clearstamp.stamp import Stamp
from clearstamp.training.loops import fit
from clearstamp.transpose import transpose
from clearstamp.units.spaces import last_layer

SHAPE = (1, 12, 12)
EXAMPLE = torch.zeros(1, *SHAPE)


def network(seed: int) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(144, 48), nn.ReLU(), nn.Linear(48, 4))


@pytest.fixture
def data() -> Data:
    """Four classes told apart by the place of a bright stripe."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(4).repeat(64)
    images = torch.randint(0, 80, (256, *SHAPE), dtype=torch.uint8, generator=generator)
    for image, label in zip(images, labels.tolist(), strict=True):
        image[:, 3 * label : 3 * label + 3] += 150
    return Data(images, labels, 4)


@pytest.fixture
def owned() -> Stamp:
    return Stamp.from_texts(["A", "B", "C"], outputs=4, shape=SHAPE, seed=0)


def weights(model: nn.Module) -> list[torch.Tensor]:
    return [tensor.clone() for tensor in model.state_dict().values()]


def test_a_false_claim_looks_at_no_weight_of_the_model_that_it_is_made_against(data, owned):
    one, other = (FalseClaim(candidates=50).apply(network(seed), data, owned, seed=3) for seed in (1, 2))
    assert one.claim.digest == other.claim.digest
    assert one.steps == other.steps == 3 * 4


def test_a_false_claim_is_read_from_strangers_who_learned_the_same_task(data, owned):
    attack = FalseClaim(candidates=200, epochs=8, lr=3e-3)
    untrained = network(1)
    stranger = copy.deepcopy(untrained)
    fit(stranger, data.loader(seed=9), epochs=8, lr=3e-3, progress=False)
    found = attack.apply(stranger, data, owned, seed=3)
    shown = found.after.reading.correlation
    assert shown.min() > 0.6
    assert read(transpose(untrained, EXAMPLE), claimed(found)).correlation.mean() < 0.3
    assert not torch.equal(claimed(found).keys, owned.keys)


def test_of_candidates_those_are_taken_that_surrogates_agree_on_and_that_differ():
    one, other, *noise = torch.rand(4, 1, 5, 5, generator=torch.Generator().manual_seed(0))
    shown = torch.stack([torch.stack([one, one, own, other + 0.1 * own]) for own in noise])  # for each surrogate
    assert sorted(agreed(shown, 2)) in ([0, 3], [1, 3])


def off(images: torch.Tensor, secrets: torch.Tensor) -> torch.Tensor:
    """The loss that hardening and forgers bring down."""
    return (1 - structural_similarity(images, secrets)).mean() + (images - secrets).square().mean()


@pytest.mark.parametrize("by", ["keys", "head", "copy"])
def test_a_forger_leaves_the_model_and_ends_with_a_claim_that_reads_better_than_his_keys_did(by, data, owned):
    model = network(1)
    before = weights(model)
    forgery = Forgery(by=by, steps=100)
    found = forgery.apply(model, data, owned, seed=3)
    assert all(map(torch.equal, before, weights(model)))
    assert all(map(torch.equal, before, weights(found.model)))
    claim = claimed(found)
    assert len(claim) == len(owned)
    assert claim.keys.abs().max() <= forgery.key_range
    start = claimed(Forgery(by="copy").apply(model, data, owned, seed=3))
    at_first = read(transpose(model, EXAMPLE), Stamp(start.keys, claim.secrets, claim.labels))
    if by != "copy":
        after, first = (off(r.images, claim.secrets) for r in (found.after.reading, at_first))
        assert after < first - 0.05 and found.steps == 100
    else:
        assert found.after.reading.developed_ssim.min() > 0.999 and found.steps == 0


def test_a_painted_head_is_all_that_differs_from_the_model(owned):
    model = network(1)
    scene = Scene(copy.deepcopy(model), None, owned)
    Forgery(by="head", steps=20).run(scene)
    suspect = scene.evidence(scene.model)
    assert suspect is scene.evidence(scene.model) and suspect is not scene.model
    painted, own = last_layer(suspect, EXAMPLE), last_layer(scene.model, EXAMPLE)
    assert not torch.equal(painted.weight, own.weight)
    assert torch.equal(suspect[1].weight, model[1].weight) and all(p.requires_grad for p in suspect.parameters())


def test_accusers_who_ask_for_the_impossible_are_told(data, owned):
    for attack, problem in (
        (FalseClaim(surrogates=1), "number of surrogates out of range; got: 1; expected: at least 2"),
        (FalseClaim(candidates=2), "number of candidates out of range; got: 2; expected: at least 3"),
        (Forgery(by="word"), "unknown kind of forgery; got: word; expected: keys, head or copy"),
    ):
        with pytest.raises(AttackError, match=problem):
            attack.apply(network(1), data, owned)
