"""Live exploration: every slider manipulates a copy of the model and shows what is left."""

import copy
import io

import pytest
import torch
from PIL import Image
from torch import nn

from clearstamp.attacks import Pruning
from clearstamp.data import Data
from clearstamp.errors import AttackError, StampError
from clearstamp.explorer import ERASURE_STEPS, Explorer, Manipulation, explore
from clearstamp.reading import read
from clearstamp.stamp import Stamp
from clearstamp.training.loops import harden
from clearstamp.transpose import transpose

SHAPE = (1, 12, 12)
SLIDERS = {"pruning": 0.9, "noise": 0.5, "rescaling": 3, "keys": 0.5, "erasure": ERASURE_STEPS}


@pytest.fixture(scope="module")
def stamp() -> Stamp:
    return Stamp.from_texts(["A", "B"], outputs=4, shape=SHAPE, seed=0)


@pytest.fixture(scope="module")
def model(stamp) -> nn.Module:
    torch.manual_seed(0)
    made = nn.Sequential(nn.Flatten(), nn.Linear(144, 64), nn.ReLU(), nn.Linear(64, 4))
    harden(transpose(made, torch.zeros(1, *SHAPE), readout="paper"), stamp, lr=1e-3, steps=300, progress=False)
    return made


@pytest.fixture
def test_images() -> Data:
    return Data(torch.randint(0, 256, (9, *SHAPE)).byte(), torch.arange(9) % 4)


def test_nothing_done_is_the_stamp_as_it_is_read(model, stamp):
    found, _ = Explorer(model, stamp, None, "paper", 0)(Manipulation())
    expected = read(transpose(model, torch.zeros(1, *SHAPE), readout="paper"), stamp)
    assert torch.equal(found.images, expected.images)


@pytest.mark.parametrize(("name", "amount"), SLIDERS.items())
def test_every_manipulation_harms_a_copy_alone_and_the_same_way_each_time(model, stamp, name, amount):
    before = copy.deepcopy(model.state_dict())
    explorer = Explorer(model, stamp, None, "paper", 0)
    whole, found, again = (explorer(Manipulation(**m))[0] for m in ({}, {name: amount}, {name: amount}))
    assert found.ssim.mean() < whole.ssim.mean() - 0.05
    assert torch.equal(found.images, again.images)
    assert all(torch.equal(weight, before[key]) for key, weight in model.state_dict().items())


@pytest.mark.parametrize(("name", "amount"), SLIDERS.items())
def test_a_slider_redraws_picture_and_scores(model, stamp, test_images, name, amount):
    picture, text, *sliders = explore(model, stamp, test_images, readout="paper").children
    by_name = dict(zip(SLIDERS, sliders, strict=True))
    first = (picture.value, text.value.partition("(")[0])
    assert Image.open(io.BytesIO(picture.value)).size == (5 * 26, 5 * 26)
    assert "on 9 images" in text.value
    by_name[name].value = amount
    assert picture.value != first[0] and text.value.partition("(")[0] != first[1]


def test_without_test_images_no_accuracy_is_told(model, stamp):
    _, text, *_ = explore(model, stamp, readout="paper").children
    assert "accuracy" not in text.value and "mean SSIM" in text.value


def test_a_manipulation_that_does_not_fit_is_told_in_its_place(stamp):
    linear = nn.Sequential(nn.Flatten(), nn.Linear(144, 4))
    _, text, *sliders = explore(linear, stamp).children
    sliders[2].value = 1
    assert "the model has no hidden units" in text.value


def test_what_does_not_fit_the_model(model, stamp):
    with pytest.raises(StampError, match="does not fit"):
        explore(model, Stamp.from_texts(["A"], outputs=5, shape=SHAPE, seed=0))
    other = Data(torch.zeros(3, 1, 8, 8, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64), 4)
    with pytest.raises(AttackError, match="test images do not fit"):
        explore(model, stamp, other)


@pytest.mark.parametrize("amount", [0.0, 0.3, 0.95])
def test_pruning_is_that_of_the_attack(model, stamp, test_images, amount):
    reading, reached = Explorer(model, stamp, test_images, "paper", 0)(Manipulation(pruning=amount))
    expected = Pruning(amount=amount).apply(model, test_images, stamp, readout="paper").after
    assert torch.equal(reading.images, expected.reading.images) and reached == expected.accuracy
