"""Reading through an interface: the exact picture is the reference."""

import pytest
import torch
from torch import Tensor, nn

from clearstamp.errors import TransposeError
from clearstamp.scores import correlation
from clearstamp.transpose import transpose
from clearstamp.transposed.queries import cosine_patterns, read_by_queries, smoothest_first

SHAPE = (2, 6, 5)
KEYS = torch.linspace(-9, 9, 12).reshape(3, 4).sin() * 8


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Conv2d(2, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(96, 4)
    return nn.Sequential(*layers).double()


@pytest.fixture(scope="module")
def exact(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return transpose(model, torch.zeros(1, *SHAPE).double(), readout="gradient")(KEYS.double())


class Interface:
    """A model that counts what it is asked."""

    def __init__(self, answer: nn.Module):
        self.answer, self.asked = answer, 0

    def __call__(self, images: Tensor) -> Tensor:
        self.asked += len(images)
        return self.answer(images.double())


def test_patterns_are_orthonormal():
    patterns = cosine_patterns(smoothest_first(SHAPE), SHAPE).flatten(1)
    torch.testing.assert_close(patterns @ patterns.T, torch.eye(60).double(), atol=1e-12, rtol=0)
    assert patterns[0].std() < 1e-12, "the first is flat"


def test_all_queries_show_the_exact_picture(model: nn.Module, exact: Tensor):
    interface = Interface(model)
    found = read_by_queries(interface, KEYS, SHAPE, step=1e-3, batch=50)
    assert found.queries == interface.asked == 2 * 60 * 3
    assert correlation(found.images.double(), exact).min() > 0.999


def test_probabilities_show_it_as_well(model: nn.Module, exact: Tensor):
    found = read_by_queries(Interface(nn.Sequential(model, nn.Softmax(1))), KEYS, SHAPE, step=1e-3, probabilities=True)
    assert correlation(found.images.double(), exact).min() > 0.999


def test_classes_that_are_not_told_are_left_out(model: nn.Module):
    def three(images: Tensor) -> Tensor:
        answers = model(images.double()).softmax(1)
        return answers * (answers >= answers.topk(3).values[:, 2:])

    found = read_by_queries(three, KEYS, SHAPE, step=1e-3, probabilities=True)
    assert found.images.isfinite().all() and found.images.abs().sum() > 0


def test_more_queries_show_more(model: nn.Module, exact: Tensor):
    found = [read_by_queries(Interface(model), KEYS, SHAPE, coefficients=n, step=1e-3) for n in (6, 20, 60)]
    errors = [float((each.images - exact).norm()) for each in found]
    assert [each.queries for each in found] == [36, 120, 360] and errors == sorted(errors, reverse=True)


@pytest.mark.parametrize(
    "about", [{"coefficients": 0}, {"coefficients": 61}, {"step": 0.0}, {"step": 1.2}, {"batch": 1}]
)
def test_settings_out_of_range(model: nn.Module, about: dict[str, float]):
    with pytest.raises(TransposeError, match="settings of the queries out of range"):
        read_by_queries(model, KEYS, SHAPE, **about)  # type: ignore[arg-type]


def test_answers_that_do_not_fit_the_keys(model: nn.Module):
    with pytest.raises(TransposeError, match="answers do not fit the keys"):
        read_by_queries(lambda images: model(images.double())[:, :3], KEYS, SHAPE)
