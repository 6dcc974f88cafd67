"""DeepSigns and activation signs: what one layer takes in and gives."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from clearstamp.errors import SchemeError
from clearstamp.schemes import ActivationSigns, DeepSigns
from clearstamp.schemes.base import UnfitError
from clearstamp.schemes.layers import name_at, signals
from tests.schemes.test_schemes import images, learnt, marked, network


def test_signals_are_those_of_the_layer_alone():
    model, shown = learnt(0), images().images[:7]
    with torch.no_grad():
        assert torch.allclose(signals(model, "11", shown, "input", at_once=3), model[:11](shown), atol=1e-6)
        assert torch.allclose(signals(model, "11", shown, "output", at_once=3), model(shown), atol=1e-6)
    assert not model[11]._forward_hooks


def test_signals_before_a_relu_that_overwrites_them():
    model = nn.Sequential(nn.Flatten(), nn.Linear(196, 12), nn.ReLU(inplace=True), nn.Linear(12, 4))
    shown = images().images[:5]
    with torch.no_grad():
        found = signals(model, "1", shown, "output")
        assert torch.equal(found, model[1](model[0](shown)))
    assert found.min() < 0


def test_a_layer_that_runs_twice_has_no_signals_to_read():
    layer = nn.Linear(196, 196)
    with pytest.raises(UnfitError, match="does not run once for a batch; got: 2 times"):
        signals(nn.Sequential(nn.Flatten(), layer, layer), "1", images().images[:5], "output")


def test_layers_are_named_by_the_place_at_which_they_run():
    class Reversed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last, self.first = nn.Linear(8, 4), nn.Linear(196, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(self.first(x.flatten(1)))

    model = Reversed()
    assert [name_at(model, images(), place) for place in (0, 1, -1, -2)] == ["first", "last", "last", "first"]
    with pytest.raises(SchemeError, match="too few layers; got: 2 linear or convolutional layers; where: place 2"):
        name_at(model, images(), 2)


@pytest.mark.parametrize("scheme", [DeepSigns(), ActivationSigns(bits=16)])
def test_where_no_layer_is_named_it_is_that_of_the_last_hidden_activations(scheme):
    key = scheme.draw(network(), images(), seed=0)
    assert key.settings["layer"] == ("11" if scheme.name == "deep-signs" else "8")


def test_bits_are_read_in_the_mean_activations_of_the_deposited_images():
    model, key = marked("deep-signs")
    assert len(key["images"]) == 40
    with torch.no_grad():
        centre = copy.deepcopy(model).double()[:8](key["images"].double()).mean(0)
    assert torch.equal(key["projection"].double() @ centre > 0, key["bits"].bool())


def test_bits_are_the_signs_of_neurons_before_the_relu():
    model, key = marked("activation-signs")
    with torch.no_grad():
        given = copy.deepcopy(model).double()[:9](key["triggers"].double()).mean(0)
    assert torch.equal(given[key["neurons"]] > 0, key["bits"].bool())
    size = given.square().mean().sqrt()
    assert given[key["neurons"]].abs().min() > 0.5 * size


def test_the_loss_of_deep_signs_is_that_of_its_formula():
    model = network().double().eval()
    scheme = DeepSigns(bits=5, gathering=0.3, strength=0.7, sample=6)
    key = scheme.draw(network(), images(), seed=0)
    loss = scheme.loss(model, images(), key)
    loss.images = loss.images.double()
    places = torch.randint(80, (6,), generator=torch.Generator().manual_seed(0))
    found = model[:11](images().images[images().labels == key.settings["target"]].double()[places])
    centre = found.mean(0)
    spread = ((found - centre) ** 2).sum() / 6
    wrong = F.softplus((1 - 2 * key["bits"].double()) * (key["projection"].double() @ centre)).sum()
    assert loss().item() == pytest.approx((0.3 * spread + 0.7 * wrong).item(), rel=1e-12)


def test_the_loss_of_activation_signs_is_a_hinge():
    model = network().double().eval()
    scheme = ActivationSigns(bits=20, triggers=3, margin=0.9, strength=0.7, layer="8")
    key = scheme.draw(network(), images(), seed=0)
    key.tensors["triggers"] = key["triggers"].double()
    given = model[:9](key["triggers"]).mean(0)
    sides = (2 * key["bits"].double() - 1) * given[key["neurons"]] / (given.detach().norm() / 24**0.5)
    expected, loss = 0.7 * F.relu(0.9 - sides).sum() / 20, scheme.loss(model, images(), key)()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    assert torch.allclose(*(torch.autograd.grad(each, model[8].bias)[0] for each in (loss, expected)), rtol=1e-12)


@pytest.mark.parametrize("scheme", [DeepSigns(layer="8"), ActivationSigns(bits=16, layer="8")])
def test_the_loss_leaves_modes_and_statistics_as_they_are(scheme):
    model = network().train()
    model[9].eval()
    before, modes = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
    scheme.loss(model, images(), scheme.draw(model, images(), seed=0))().backward()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert modes == [module.training for module in model.modules()]
    assert model[8].weight.grad is None if scheme.name == "deep-signs" else model[8].weight.grad.abs().max() > 0
    assert model[0].weight.grad.abs().max() > 0


@pytest.mark.parametrize(
    ("scheme", "problem"),
    [
        (DeepSigns(share=0.0), "share of the images out of range"),
        (DeepSigns(target=7), "no image of that class"),
        (DeepSigns(layer="absent"), "no layer of that name; got: absent"),
        (DeepSigns(layer="2"), "a layer of another kind; got: ReLU; where: 2"),
        (ActivationSigns(triggers=0), "number of triggers out of range"),
        (ActivationSigns(bits=25, layer="8"), "more bits than neurons; got: 25; expected: at most 24; where: 8"),
    ],
)
def test_settings_out_of_range_are_told(scheme, problem):
    with pytest.raises(SchemeError, match=problem):
        scheme.draw(network(), images(), seed=0)
