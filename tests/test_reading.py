"""Reading a stamp out of a model."""

import pytest
import torch
from torch import nn

from clearstamp.errors import StampError
from clearstamp.pictures import develop
from clearstamp.reading import extract, read
from clearstamp.scores import correlation, similarity
from clearstamp.stamp import Stamp
from clearstamp.transpose import transpose
from clearstamp.transposed.base import Transposed
from clearstamp.transposed.rules import READOUTS

SHAPE = (1, 28, 28)
TEXTS = list("ABCDEFGHIJ")
both_readouts = pytest.mark.parametrize("readout", READOUTS)


@pytest.fixture
def stamp() -> Stamp:
    return Stamp.from_texts(TEXTS, outputs=10, shape=SHAPE, seed=0)


def unmarked(readout: str) -> Transposed:
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10))
    return transpose(model, torch.zeros(1, *SHAPE), readout=readout)


def marked(stamp: Stamp, level: float = 0.0, contrast: float = 1.0) -> Transposed:
    """One linear layer that was solved for: every key gives its secret, at some level and contrast."""
    layer = nn.Linear(784, 10, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.linalg.solve(stamp.keys, level + contrast * stamp.secrets.flatten(1)))
    return transpose(nn.Sequential(nn.Flatten(), layer), torch.zeros(1, *SHAPE))


@both_readouts
def test_extraction_is_the_raw_signal_without_gradients(stamp, readout):
    back = unmarked(readout)
    images = extract(back, stamp)
    assert torch.equal(images, back(stamp.keys)) and not images.requires_grad


def test_a_marked_model_shows_its_stamp(stamp):
    reading = read(marked(stamp), stamp)
    for scores in (reading.ssim, reading.correlation):
        torch.testing.assert_close(scores, torch.ones(10), rtol=0, atol=1e-2)


def test_only_ssim_sees_level_and_contrast(stamp):
    reading = read(marked(stamp, level=4.0, contrast=0.5), stamp)
    assert reading.ssim.max() < 0.7
    assert reading.developed_ssim.min() > 0.95 and reading.correlation.min() > 0.99


@both_readouts
def test_an_unmarked_model_shows_nothing(stamp, readout):
    summary = read(unmarked(readout), stamp).summary()
    assert abs(summary["correlation"]) < 0.1
    assert summary["ssim"] < 0.2 and summary["developed_ssim"] < 0.2


def test_a_wrong_key_shows_nothing(stamp):
    other = Stamp.from_texts(TEXTS, outputs=10, shape=SHAPE, seed=1)
    assert read(marked(stamp), other).summary()["ssim"] < 0.5


@both_readouts
def test_a_reading_is_its_scores(stamp, readout):
    reading = read(unmarked(readout), stamp)
    torch.testing.assert_close(reading.ssim, similarity(reading.images, stamp.secrets), rtol=0, atol=0)
    torch.testing.assert_close(reading.developed_ssim, similarity(develop(reading.images), stamp.secrets))
    torch.testing.assert_close(reading.correlation, correlation(reading.images, stamp.secrets), rtol=0, atol=0)
    assert reading.summary() == pytest.approx(
        {
            "ssim": sum(reading.ssim.tolist()) / 10,
            "ssim_min": min(reading.ssim.tolist()),
            "developed_ssim": sum(reading.developed_ssim.tolist()) / 10,
            "correlation": sum(reading.correlation.tolist()) / 10,
        },
        abs=1e-6,
    )


@pytest.mark.parametrize(("outputs", "shape"), [(9, SHAPE), (10, (1, 28, 27)), (10, (3, 28, 28))])
def test_a_stamp_that_does_not_fit(outputs, shape):
    stamp = Stamp.from_texts(["A"], outputs=outputs, shape=shape, seed=0)
    for look in (extract, read):
        with pytest.raises(StampError, match="does not fit the model"):
            look(unmarked("paper"), stamp)
