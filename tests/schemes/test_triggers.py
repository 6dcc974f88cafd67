"""Trigger sets, each for what it does."""

import pytest
import torch
from torch import nn

from clearstamp.attacks import DropClass, Evasion, FeatureEvasion, Scene
from clearstamp.attacks.marks import Guarded
from clearstamp.errors import AttackError, SchemeError
from clearstamp.schemes import Adi, FrontierStitching, Li, Mark, Uchida, Zhang
from clearstamp.schemes.base import answers, driven, training_images
from clearstamp.schemes.li import encoded, encoder_for
from clearstamp.schemes.triggers import Mixed, abstract_pictures, fast_gradient_sign
from clearstamp.units.spaces import last_layer
from tests.schemes.test_schemes import CLASSES, SHAPE, images, learnt, marked, network


def test_every_batch_holds_the_next_triggers_and_every_trigger_has_its_turn():
    inputs, labels = torch.arange(5.0).reshape(5, 1, 1, 1), torch.arange(5)
    loader = [(torch.full((3, 1, 1, 1), -1.0), torch.full((3,), 9))] * 2
    mixed = Mixed(loader, inputs, labels, per_batch=2)
    turns = [batch[1][3:].tolist() for _ in range(3) for batch in mixed]
    assert turns == [[0, 1], [2, 3], [4, 0], [1, 2], [3, 4], [0, 1]]
    for shown, expected in mixed:
        assert torch.equal(shown[3:].flatten(), expected[3:].float())


def test_abstract_pictures_fill_their_range_and_differ():
    shown = abstract_pictures(20, (3, 12, 10), torch.Generator().manual_seed(1))
    assert shown.shape == (20, 3, 12, 10) and shown.min() >= 0 and shown.max() <= 1
    assert shown.std((1, 2, 3)).min() > 0.1
    assert torch.pdist(shown.flatten(1)).min() > 1


@pytest.mark.parametrize("kind", ["content", "noise", "unrelated"])
def test_zhang_s_triggers_have_one_label_that_is_not_their_source(kind):
    key = Zhang(kind=kind, triggers=10).draw(network(), images(), seed=3)
    assert set(key["labels"].tolist()) == {key.settings["target"]}
    assert key.settings["target"] != key.settings["source"]
    assert key["inputs"].min() >= 0 and key["inputs"].max() <= 1


def test_zhang_s_noise_is_one_pattern_for_all_images():
    scheme = Zhang(kind="noise", triggers=10, strength=0.01)
    key = scheme.draw(network(), images(), seed=3)
    plain, labels = training_images(images(), 10, seed=3, label=key.settings["source"])
    assert set(labels.tolist()) == {key.settings["source"]}
    moved = key["inputs"] - plain
    inside = ((plain > 0.1) & (plain < 0.9)).all(0)
    torch.testing.assert_close(moved[:, inside], moved[:1, inside].expand(10, -1))


def test_without_decoys_a_text_of_somebody_else_is_answered_as_well():
    """Why trigger sets of one pattern accuse whoever has a backdoor like it: see the chapter side by side."""
    scheme = Zhang(triggers=20, per_batch=8)
    model = network()
    key = scheme.draw(model, images(), seed=7)
    torch.manual_seed(0)
    key = scheme.embed(model, images(), key, epochs=8, lr=3e-3, batch_size=32, progress=False)
    others = [scheme.draw(model, images(), seed=seed) for seed in range(100, 160)]
    alike = [other for other in others if other.settings == key.settings]
    assert alike and max(scheme.extract(model, other).score for other in alike) > 0.9


def test_a_special_label_is_one_more_output_and_falls_with_it():
    model, key = marked("special-label")
    assert model(torch.zeros(1, *SHAPE)).shape == (1, CLASSES + 1)
    assert set(key["labels"].tolist()) == {CLASSES}
    found = DropClass(count=1).apply(model, images(), Mark(key))
    assert found.after.evidence.score == 0.0
    assert found.after.accuracy > 0.9


def test_half_of_a_frontier_s_examples_fool_the_model_that_they_were_made_for():
    scheme = marked("frontier-stitching")[1].scheme
    model = learnt(0)
    key = scheme.draw(model, images(), seed=1)
    assert scheme.extract(model, key).score == 0.5
    assert scheme.extract(marked("frontier-stitching")[0], marked("frontier-stitching")[1]).score > 0.9


def test_the_sign_of_the_gradient_raises_the_loss():
    model, (shown, labels) = learnt(0), images()[:50]
    loss = torch.nn.functional.cross_entropy
    moved = fast_gradient_sign(model, shown, labels, 0.05)
    assert loss(model(moved), labels) > loss(model(shown), labels)
    assert (moved - shown).abs().max() <= 0.05 + 1e-6


def test_images_are_driven_to_the_labels_that_are_asked_for():
    model, (shown, labels) = learnt(0), images()[:50]
    wanted = (labels + 1) % CLASSES
    assert (model(driven(model, shown, wanted)).argmax(1) == wanted).float().mean() > 0.9


def test_a_frontier_that_is_out_of_reach_is_told():
    with pytest.raises(SchemeError, match="too few examples on one side of the frontier"):
        FrontierStitching(triggers=20, strength=1e-6).draw(learnt(0), images(), seed=1)


@pytest.mark.parametrize(
    ("scheme", "problem"),
    [
        (lambda: Adi(triggers=0), "number of triggers out of range"),
        (lambda: Zhang(kind="text"), "unknown kind of triggers"),
        (lambda: Zhang(kind="unrelated", decoys=5), "number of decoys out of range"),
        (lambda: Zhang(triggers=1000).draw(network(), images(), seed=1), "too few images of class"),
    ],
)
def test_settings_out_of_range_are_told(scheme, problem):
    with pytest.raises(SchemeError, match=problem):
        scheme()


# ---------------------------------------------------------------------------------------------------- Li et al.


def test_an_encoder_keeps_the_shape_of_its_covers():
    for shape in ((1, 14, 14), (3, 32, 32)):
        logo = torch.zeros(shape)
        samples = encoder_for(shape)(torch.rand(4, *shape), logo)
        assert samples.shape == (4, *shape) and samples.min() >= 0 and samples.max() <= 1


def test_the_samples_of_a_key_are_what_its_encoder_makes_of_its_covers():
    _, key = marked("li")
    torch.testing.assert_close(key["samples"], encoded(key, key["covers"]), rtol=0, atol=1e-5)


def test_training_brings_samples_near_their_covers():
    drawn = Li(share=0.08).draw(network(), images(), seed=7)
    off = (drawn["samples"] - drawn["covers"]).square().mean()
    scheme = Li(share=0.08, per_batch=8)
    key = scheme.draw(network(), images(), seed=7)
    torch.manual_seed(0)
    done = scheme.embed(network(), images(), key, epochs=4, lr=3e-3, batch_size=32, progress=False)
    assert (done["samples"] - done["covers"]).square().mean() < 0.5 * off
    assert torch.equal(done["labels"], key["labels"]) and torch.equal(done["covers"], key["covers"])


# ------------------------------------------------------------------------------------------- a detector of queries


@pytest.mark.parametrize("evasion", [Evasion, FeatureEvasion])
def test_a_detector_learns_to_tell_another_owner_s_queries_from_images(evasion):
    key = Adi(triggers=200).draw(network(), images(), seed=7)
    scene = Scene(network(), images(), Mark(key), seed=1)
    detector = evasion(epochs=100, lr=0.1, share=0.5).detector(scene)
    flagged = [(detector(shown).argmax(1) == 1).float().mean() for shown in (key["inputs"], images()[:][0])]
    assert flagged[0] > flagged[1] + 0.5


def with_head(*head: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), *head).eval()


@pytest.mark.parametrize(
    "model",
    [
        network(),
        Guarded(network(), nn.Sequential(nn.Flatten(), nn.Linear(196, 2)), seed=0),
        with_head(nn.Flatten(), nn.Linear(432, CLASSES), nn.BatchNorm1d(CLASSES)),
        with_head(nn.Conv2d(3, CLASSES, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    ],
    ids=["linear", "behind an interface", "normalised", "convolution"],
)
def test_a_detector_by_features_sees_what_the_last_layer_takes(model):
    shown = images()[:5][0]
    scene = Scene(model, images(), Mark(Adi(triggers=8).draw(model, images(), seed=7)))
    taken = []
    last_layer(model, scene.graph()).register_forward_pre_hook(lambda _, inputs: taken.append(inputs[0]))
    answers(model, shown)
    torch.testing.assert_close(answers(FeatureEvasion().view(scene), shown), taken[0].flatten(1), rtol=0, atol=0)


def test_what_is_flagged_is_answered_at_random_and_all_else_as_before():
    model, shown = learnt(0), images()[:40][0]
    detector = nn.Sequential(nn.Flatten(), nn.Linear(196, 2))
    with torch.no_grad():
        detector[1].weight.zero_()
        detector[1].bias.copy_(torch.tensor([1.0, 0.0]))
        assert torch.equal(Guarded(model, detector, seed=0)(shown), model(shown))
        detector[1].bias.copy_(torch.tensor([0.0, 1.0]))
        answers = Guarded(model, detector, seed=0)(shown).argmax(1)
    assert 0 < (answers == model(shown).argmax(1)).float().mean() < 0.6


def test_an_owner_who_asks_nothing_cannot_be_evaded():
    model, key = marked("uchida")
    assert isinstance(key.scheme, Uchida)
    with pytest.raises(AttackError, match="no queries that could be told"):
        Evasion().apply(model, images(), Mark(key))
