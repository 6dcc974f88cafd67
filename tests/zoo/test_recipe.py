"""The recipe for deep networks: each of its parts, and a network that trains by it."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import clearstamp as cs
from clearstamp.errors import TrainingError
from clearstamp.zoo import Normalize, Recipe, build, load

SHAPE = (3, 12, 12)


def test_the_rate_rises_in_a_line_and_falls_in_a_line():
    recipe = Recipe(lr=0.1, warm_up=0.25)
    rates = [recipe.rate(done) for done in (0.0, 0.125, 0.25, 0.625, 1.0)]
    assert rates == [0, 0.5, 1, 0.5, 0]


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_kernels_and_matrices_decay_and_nothing_else(kind):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    made = Recipe(lr=0.1, optimizer=kind, weight_decay=0.3).make_optimizer(model.parameters(), lr=0.2)
    decay = {id(w): group["weight_decay"] for group in made.param_groups for w in group["params"]}
    assert decay == {id(w): 0.3 if name in ("0.weight", "3.weight") else 0.0 for name, w in model.named_parameters()}
    assert {group["lr"] for group in made.param_groups} == {0.2}
    assert type(made).__name__.lower() == kind and all(group["fused"] for group in made.param_groups)
    if kind == "sgd":
        assert all((group["momentum"], group["nesterov"]) == (0.9, True) for group in made.param_groups)


def test_labels_are_smoothed():
    outputs, labels = torch.randn(5, 4, dtype=torch.float64), torch.arange(5) % 4
    wanted = F.one_hot(labels, 4) * 0.8 + 0.2 / 4
    expected = -(wanted * outputs.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(Recipe(lr=0.1, label_smoothing=0.2).loss(outputs, labels), expected)


def test_every_image_is_moved_and_flipped_by_itself_and_anew():
    """Each is a window of the image with its edge mirrored outwards, perhaps turned left to right."""
    images, labels = torch.rand(6, *SHAPE), torch.arange(6)
    batches = Recipe(lr=0.1, shift=2).augmented([(images, labels)])
    ((first, same),), ((second, _),) = list(batches), list(batches)
    assert torch.equal(same, labels) and first.shape == images.shape and len(batches) == 1
    padded = F.pad(images, (2, 2, 2, 2), mode="reflect")
    places: list[tuple[int, int, int]] = []
    for image, wide in zip(first, padded, strict=True):
        windows = {(y, x): wide[:, y : y + 12, x : x + 12] for y in range(5) for x in range(5)}
        fits = [
            (*at, f) for at, w in windows.items() for f in (False, True) if torch.equal(image, w.flip(2) if f else w)
        ]
        places += fits[:1]
    assert len(places) == 6 and len(set(places)) > 3
    assert not torch.equal(first, second)


def test_an_image_keeps_its_side_without_flips_and_its_place_without_shifts():
    images = torch.rand(20, *SHAPE)
    ((found, _),) = Recipe(lr=0.1, shift=0, flip=False).augmented([(images, torch.zeros(20))])
    assert torch.equal(found, images)
    ((found, _),) = Recipe(lr=0.1, shift=0).augmented([(images, torch.zeros(20))])
    assert {torch.equal(a, b) for a, b in zip(found, images, strict=True)} == {True, False}
    assert all(torch.equal(a, b) or torch.equal(a, b.flip(2)) for a, b in zip(found, images, strict=True))


@pytest.mark.parametrize("scale", [1, 255])
def test_a_normalised_set_has_mean_0_and_deviation_1_in_each_channel(scale):
    images = torch.rand(50, *SHAPE) * torch.tensor([0.2, 0.5, 1.0]).view(3, 1, 1)
    given = images if scale == 1 else (images * 255).byte()
    taken = images if scale == 1 else given.float() / 255
    found = Normalize.of(given)(taken).double()
    torch.testing.assert_close(found.mean((0, 2, 3)), torch.zeros(3, dtype=torch.float64), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.std((0, 2, 3)), torch.ones(3, dtype=torch.float64), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "about",
    [{"lr": 0.0}, {"lr": math.inf}, {"weight_decay": -1.0}, {"label_smoothing": 1.0}, {"warm_up": 0.0}, {"shift": -1}],
)
def test_a_recipe_out_of_range(about):
    ((name, value),) = about.items()
    with pytest.raises(TrainingError, match=rf"recipe out of range; got: Recipe\(.*{name}={value}"):
        Recipe(**about)


def test_a_stamped_network_learns_by_the_recipe_and_keeps_its_stamp():
    train = load("digits", "train").take(512)
    model = nn.Sequential(Normalize.of(train.images), build("cnn-bn", train.shape, train.classes, seed=0))
    stamp = cs.Stamp.from_texts(["ME"], outputs=10, shape=train.shape, seed=0)
    back = cs.transpose(model, stamp.secrets)
    cs.harden(back, stamp, lr=1e-3, progress=False)
    recipe = Recipe(flip=False, shift=2)
    batches, loss = recipe.augmented(train.loader(32, seed=0)), cs.StampLoss(back, stamp)
    cs.fit(model, batches, epochs=4, stamp_loss=loss, progress=False, **recipe.settings())
    assert cs.accuracy(model, load("digits", "test").loader(250)) > 0.9
    assert cs.read(back, stamp).ssim.item() > 0.6
