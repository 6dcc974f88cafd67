"""GradSigns: slopes by calculus and by queries."""

import copy
from dataclasses import asdict, replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from clearstamp.data import Data
from clearstamp.errors import SchemeError
from clearstamp.schemes import GradSigns, Key, WhiteBoxGradSigns
from clearstamp.schemes.gradsigns import differences, slopes
from tests.schemes.test_schemes import SHAPE, images, learnt, marked, network


def smooth() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(196, 20), nn.Tanh(), nn.Linear(20, 4)).eval()


def drawn(model: nn.Module, data: Data | None = None) -> Key:
    return GradSigns(carriers=20, images=5).draw(model, data or images(), seed=3)


def test_slopes_are_the_derivatives_of_the_mean_cross_entropy_at_the_carriers():
    model = smooth().double()
    key = drawn(model)
    shown, target = key["images"].double(), torch.full((5,), key.settings["target"])
    reference = torch.zeros(20, dtype=torch.float64)
    for place, carrier in enumerate(key["carriers"]):
        move = torch.zeros(196, dtype=torch.float64)
        move[carrier] = 1e-5
        up, down = (F.cross_entropy(model(shown + by * move.reshape(SHAPE)), target) for by in (1, -1))
        reference[place] = (up - down).item() / 2e-5
    assert torch.allclose(slopes(model, shown, key), reference, rtol=1e-6, atol=1e-10)


def test_queries_show_the_slopes():
    model = smooth()
    key = drawn(model)
    reference = slopes(copy.deepcopy(model).double(), key["images"].double(), key)
    assert torch.allclose(differences(model, key, 1e-3).double(), reference, atol=1e-2 * reference.abs().max())


def test_queries_show_the_slopes_of_a_model_that_is_all_but_certain():
    model = smooth()
    key = drawn(model)
    with torch.no_grad():
        model[3].bias[key.settings["target"]] += 30
    reference = slopes(copy.deepcopy(model).double(), key["images"].double(), key)
    assert 0 < reference.abs().max() < 1e-11
    for found in (differences(model, key, 1e-2), slopes(model, key["images"], key)):
        assert torch.allclose(found.double(), reference, atol=2e-2 * reference.abs().max())


def test_queries_show_the_slopes_at_images_that_are_blank_but_for_the_noise():
    """Else their derivatives are one-sided, where all that a max pooling compares is equal."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.MaxPool2d(4), nn.Flatten(), nn.Linear(54, 4)).eval()
    key = drawn(model, Data(torch.zeros(40, *SHAPE), torch.arange(40) % 4))
    reference = slopes(model, key["images"], key)
    assert torch.allclose(differences(model, key, 1e-4), reference, atol=0.05 * reference.abs().max())


def test_the_key_of_one_way_to_read_serves_the_other():
    model, key = marked("grad-signs")
    other = replace(key, scheme=WhiteBoxGradSigns(**asdict(key.scheme)))
    by_queries, by_weights = key.scheme.extract(model, key), other.scheme.extract(model, other)
    assert by_queries.payload == by_weights.payload
    assert by_queries.queries > by_weights.queries == 0


def test_the_loss_leaves_running_statistics_and_generators_as_they_are():
    model = network().train()
    key = drawn(model)
    loss = key.scheme.loss(model, images(), key)
    before, generator = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    with torch.random.fork_rng():
        loss().backward()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(generator, torch.get_rng_state())
    assert model[0].weight.grad.abs().max() > 0


def test_attention_is_differentiated_twice():
    class Attention(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            rows = x.reshape(-1, 1, 14, 14)
            return F.scaled_dot_product_attention(rows, rows, rows).flatten(1)

    model = nn.Sequential(Attention(), nn.Linear(196, 4))
    key = drawn(model)
    loss = key.scheme.loss(model, images(), key)()
    loss.backward()
    assert model[1].weight.grad.abs().max() > 0


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"carriers": 197}, "number of carriers out of range; got: 197; expected: 1 to 196"),
        ({"images": 81}, "number of images out of range; got: 81; expected: 1 to 80"),
        ({"target": 4}, "no image of that class; got: 4; expected: 0 to 3"),
        ({"bits": 0}, "number of bits out of range"),
    ],
)
def test_settings_out_of_range_are_told(settings, problem):
    with pytest.raises(SchemeError, match=problem):
        GradSigns(**settings).draw(learnt(1), images(), seed=0)
