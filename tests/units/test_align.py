"""A suspect's units are found again by their weights, and put where its owner has them."""

import copy

import pytest
import torch
from torch import Tensor, nn

from clearstamp import align_units, canonical_form, fit
from clearstamp.attacks import (
    BatchNormRescaling,
    DummyUnits,
    MimicUnits,
    NormInputRescaling,
    Permutation,
    Rescaling,
    Scene,
    SilentUnits,
    SplitUnits,
)
from clearstamp.errors import AttackError
from clearstamp.stamp import Stamp
from clearstamp.transpose import transpose
from clearstamp.transposed.graph import capture
from clearstamp.units.align import match_space
from clearstamp.units.canonical import incoming
from clearstamp.units.spaces import find_spaces, narrow
from clearstamp.zoo import networks
from tests.units.test_units import (
    EXAMPLE,
    NETWORKS,
    SHAPE,
    Attending,
    Stream,
    bundled,
    chain,
    distance,
    every_network,
    grouped,
    randomised,
    residual,
    rewritten,
    sizes,
    tensors,
)

RESCALINGS = {
    "chain": (Rescaling(), BatchNormRescaling(), NormInputRescaling()),
    "residual": (BatchNormRescaling(), NormInputRescaling()),
    "dense": (BatchNormRescaling(), NormInputRescaling()),
    "mobile": (Rescaling(), BatchNormRescaling(), NormInputRescaling()),
    "grouped": (Rescaling(),),
}


def assert_alike(a: nn.Module, b: nn.Module, tolerance: float) -> None:
    for name, tensor in b.state_dict().items():
        torch.testing.assert_close(a.state_dict()[name], tensor, rtol=tolerance, atol=tolerance, msg=name)


@torch.no_grad()
@every_network
def test_units_that_were_reordered_and_rescaled_are_put_back(network):
    model = randomised(NETWORKS[network]()).double()
    example, inputs = EXAMPLE.double(), torch.rand(8, *SHAPE, dtype=torch.float64)
    suspect = rewritten(model, Permutation(), *RESCALINGS[network], Permutation(), example=example)
    before = [copy.deepcopy(each) for each in (suspect, model)]
    back = align_units(suspect, model, example)
    assert distance(tensors(suspect)[0], tensors(model)[0]) > 0.1
    assert_alike(back, model, 1e-12)
    assert distance(back(inputs), suspect(inputs)) < 1e-12
    for each, was in zip((suspect, model), before, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(tensors(each), tensors(was), strict=True))


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "shape", "rescaling"),
    [
        ("cnn", (1, 12, 12), (Rescaling(),)),
        ("resnet18-narrow", (3, 16, 16), (BatchNormRescaling(), NormInputRescaling())),
        ("vit-narrow", (1, 12, 12), ()),
    ],
)
def test_networks_of_the_zoo_are_put_back_up_to_rounding(name, shape, rescaling):
    model, example, inputs = (
        networks.build(name, shape, 4, seed=0).eval(),
        torch.zeros(1, *shape),
        torch.rand(8, *shape),
    )
    graph = capture(model, example)
    suspect = rewritten(model, Permutation(), *rescaling, example=graph)
    back = align_units(suspect, model, graph)
    assert max(distance(a, b) for a, b in zip(suspect.parameters(), model.parameters(), strict=True) if b.any()) > 0.1
    assert_alike(back, model, 1e-6)
    assert distance(back(inputs), suspect(inputs)) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("network", [bundled, Attending])
def test_groups_and_heads_are_put_back_and_their_units_within(network):
    model, example = randomised(network()).double(), EXAMPLE.double()
    form = canonical_form(model, example)
    for seed in range(5):
        torch.manual_seed(seed)
        suspect = rewritten(model, Permutation(), Rescaling(), example=example)
        assert_alike(align_units(suspect, model, example), model, 1e-12)
        assert_alike(canonical_form(suspect, example), form, 1e-9)


def test_matches_are_sought_no_more_when_none_changes(monkeypatch):
    model, calls = networks.build("cnn", (1, 28, 28), 4, seed=0), []

    def counted(*given) -> bool:
        calls.append(given)
        return match_space(*given)

    monkeypatch.setattr("clearstamp.units.align.match_space", counted)
    graph = capture(model, torch.zeros(1, 1, 28, 28))
    align_units(rewritten(model, Permutation(), Rescaling(), example=graph), model, graph)
    assert len(calls) == 8, "two for each of four layers: one that finds all, and one that finds nothing"


@pytest.mark.parametrize("readout", ["paper", "adjoint"])
def test_what_rescaling_wipes_is_read_again(readout):
    model = randomised(chain())
    suspect = rewritten(model, Permutation(), Rescaling(), BatchNormRescaling())
    keys = 5 * torch.randn(5, 4)
    models = model, suspect, align_units(suspect, model, EXAMPLE)
    seen, rescaled, back = (transpose(each, EXAMPLE, readout=readout)(keys).detach() for each in models)
    assert distance(back, seen) < 1e-5
    assert readout == "adjoint" or distance(rescaled, seen) > 0.1


def assert_in_place(back: nn.Module, true: nn.Module, example: Tensor) -> None:
    """Each unit is where it was before it was moved: nothing is more like it."""
    for space, own in zip(find_spaces(back, example), find_spaces(true, example), strict=True):
        a, b = (nn.functional.normalize(incoming(each.moved[0])) for each in (space, own))
        assert torch.equal((a @ b.T).argmax(1), torch.arange(space.units))


def noisy(model: nn.Module, scale: float) -> nn.Module:
    """A copy with an error of `scale` times their spread on all weights."""
    found = copy.deepcopy(model)
    with torch.no_grad():
        for weight in found.parameters():
            weight += scale * weight.std(correction=0) * torch.randn_like(weight)
    return found


@pytest.mark.parametrize("name", [*NETWORKS, "cnn", "resnet18-narrow"])
def test_units_that_were_trained_further_are_found_again(name):
    """After a few steps on images and labels of chance, and noise."""
    shape = (3, 16, 16) if "resnet" in name else SHAPE
    model = randomised(NETWORKS[name]()) if name in NETWORKS else networks.build(name, shape, 4, seed=0).eval()
    example, inputs, further = torch.zeros(1, *shape), torch.rand(8, *shape), noisy(model, 0.3)
    batches = [(torch.rand(16, *shape), torch.randint(4, (16,))) for _ in range(5)]
    fit(further, batches, epochs=1, lr=1e-3, progress=False)
    suspect = rewritten(further, Permutation(), *RESCALINGS.get(name, ()), example=example)
    back = align_units(suspect, model, example)
    assert_in_place(back, further, example)
    with torch.no_grad():
        assert distance(back(inputs), suspect(inputs)) < 1e-5


@pytest.mark.parametrize("name", ["cnn", "resnet18-narrow"])
def test_units_are_found_again_under_as_much_noise_as_weights(name):
    shape = (3, 16, 16) if "resnet" in name else SHAPE
    model, example = networks.build(name, shape, 4, seed=0).eval(), torch.zeros(1, *shape)
    further = noisy(model, 0.9)
    assert_in_place(align_units(rewritten(further, Permutation(), example=example), model, example), further, example)


@torch.no_grad()
@pytest.mark.parametrize(
    "attack", [DummyUnits(), MimicUnits(), SplitUnits(), SplitUnits(part=3.0)], ids=lambda each: type(each).__name__
)
@pytest.mark.parametrize("network", ["chain", "residual"])
def test_units_that_were_added_are_taken_out_first(network, attack):
    model = randomised(NETWORKS[network]()).double()
    suspect = rewritten(model, attack, Permutation(), *RESCALINGS[network], example=EXAMPLE.double())
    back = align_units(suspect, model, EXAMPLE.double())
    assert sizes(suspect) != sizes(model) == sizes(back)
    assert_alike(back, model, 1e-6)


@torch.no_grad()
def test_units_that_are_left_over_stand_behind_the_others():
    model, inputs = randomised(chain()), torch.rand(8, *SHAPE)
    scene = Scene(copy.deepcopy(model), None, Stamp.from_texts(["A"], outputs=4, shape=SHAPE, seed=0))
    SilentUnits().run(scene)
    suspect = rewritten(scene.model, Permutation())
    back = align_units(suspect, model, EXAMPLE)
    assert sizes(back) == sizes(suspect) != sizes(model)
    for layer, rows, columns in ((0, 4, 1), (4, 6, 4), (8, 16, 54), (10, 4, 16)):
        torch.testing.assert_close(back[layer].weight[:rows, :columns], model[layer].weight)
    assert distance(back(inputs), suspect(inputs)) < 1e-5
    assert sizes(align_units(suspect, model, EXAMPLE, inputs=(0, 1))) == sizes(model)


@torch.no_grad()
def test_for_units_that_are_missing_some_without_effect_are_put_in():
    model = randomised(chain()).double()
    smaller, inputs = copy.deepcopy(model), torch.rand(8, *SHAPE).double()
    spaces = find_spaces(smaller, EXAMPLE.double())
    narrow(spaces, [torch.arange(space.units) != 1 for space in spaces])
    suspect = rewritten(smaller, Permutation(), *RESCALINGS["chain"], example=EXAMPLE.double())
    back = align_units(suspect, model, EXAMPLE.double())
    assert sizes(back) == sizes(model)
    assert distance(back(inputs), suspect(inputs)) < 1e-12
    there = torch.tensor([0, 2, 3])
    torch.testing.assert_close(back[0].weight[there], model[0].weight[there])
    assert not back[0].weight[1].any() and not back[4].weight[:, 1].any()


@torch.no_grad()
def test_what_is_left_of_pruned_weights_is_put_back_where_it_was():
    model = randomised(chain())
    pruned = copy.deepcopy(model)
    for layer in (pruned[0], pruned[4], pruned[8]):
        layer.weight[layer.weight.abs() < layer.weight.abs().median()] = 0
    back = align_units(rewritten(pruned, Permutation(), *RESCALINGS["chain"]), model, EXAMPLE)
    assert_alike(back, pruned, 1e-6)


@torch.no_grad()
def test_units_that_were_pruned_stay_silent_and_all_numbers_finite():
    model = randomised(chain())
    suspect = rewritten(model, Permutation())
    for layer in (suspect[0], suspect[4], suspect[8]):
        layer.weight[:2] = 0
        layer.bias[:2] = 0
    back, inputs = align_units(suspect, model, EXAMPLE), torch.rand(8, *SHAPE)
    assert all(tensor.isfinite().all() for tensor in tensors(back))
    torch.testing.assert_close(back(inputs), suspect(inputs))
    assert int((back[8].weight == 0).all(1).sum()) == 2


@torch.no_grad()
def test_no_variance_becomes_negative():
    model = randomised(chain())
    suspect = copy.deepcopy(model)
    suspect[0].weight *= 8
    suspect[1].running_var[:2] = 1e-7
    back, inputs = align_units(suspect, model, EXAMPLE), torch.rand(8, *SHAPE)
    assert (back[1].running_var >= 0).all()
    assert distance(back(inputs), suspect(inputs)) < 1e-5
    torch.testing.assert_close(back[0].weight[2:], model[0].weight[2:], rtol=0.2, atol=0)


@torch.no_grad()
def test_a_suspect_of_another_precision_and_one_that_takes_integers_are_put_back_too():
    model = randomised(chain())
    suspect = rewritten(model, Permutation(), Rescaling())
    assert_alike(align_units(suspect.half(), model, EXAMPLE).float(), model, 1e-2)
    layers = nn.Embedding(10, 8), nn.Flatten(), nn.Linear(24, 6), nn.ReLU(), nn.Linear(6, 4)
    model, example = nn.Sequential(*layers), torch.zeros(1, 3, dtype=torch.int64)
    suspect = rewritten(model, Permutation(), example=example)
    assert not torch.equal(suspect[2].weight, model[2].weight)
    assert torch.equal(align_units(suspect, model, example)[2].weight, model[2].weight)


def wider() -> nn.Module:
    model = chain()
    model[10] = nn.Linear(16, 5)
    return model


@pytest.mark.parametrize(
    ("suspect", "reference", "problem"),
    [
        (
            residual,
            chain,
            "layers are not those of the reference.*got: hidden units: 8 6 6; expected: hidden units: 4 6 16",
        ),
        (wider, chain, "layers are not those.*put back what was replaced"),
        (lambda: nn.Sequential(nn.Conv2d(1, 12, 3, 2), nn.ReLU(), *grouped()[2:]), grouped, "cannot be captured"),
    ],
    ids=["other layers", "other outputs", "no network"],
)
def test_models_of_other_layers_are_refused(suspect, reference, problem):
    with pytest.raises(AttackError, match=problem):
        align_units(suspect(), reference(), EXAMPLE)


@pytest.mark.parametrize("cut", [False, True], ids=["view", "slice"])
def test_a_space_whose_number_the_code_names_is_not_padded(cut):
    class Named(nn.Module):
        def __init__(self, width: int):
            super().__init__()
            self.width, self.a, self.b = width, nn.Conv2d(1, width, 3), nn.Linear(100 * width, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x).relu()
            return self.b(y[:, : self.width].flatten(1) if cut else y.view(-1, 100 * self.width))

    with pytest.raises(AttackError, match="got: hidden units: 3; expected: hidden units: 4"):
        align_units(Named(3), Named(4), EXAMPLE)


@torch.no_grad()
def test_matches_settle_on_all_that_writes_and_reads_a_unit():
    """What writes the units first is nearly the same for all: only what comes later tells them apart."""
    model = Stream(6).double()
    model.f.weight[:] = model.f.weight[0] + 1e-3 * torch.randn(6, 144)
    further = copy.deepcopy(model)
    further.f.weight += 0.01 * torch.randn(6, 144)
    suspect = rewritten(further, Permutation(), example=EXAMPLE.double())
    back = align_units(suspect, model, EXAMPLE.double())
    assert torch.equal(torch.cdist(back.o.weight.T, further.o.weight.T).argmin(1), torch.arange(6))
    first = nn.functional.normalize(suspect.f.weight) @ nn.functional.normalize(model.f.weight).T
    assert not torch.equal(suspect.o.weight.T[first.argmax(0)], further.o.weight.T), "what writes them first misleads"
