"""Hidden units are found, rewritten, and merged where they are equal."""

import pytest
import torch
from torch import nn

from clearstamp.attacks import BatchNormRescaling, DummyUnits, Rescaling, SplitUnits
from clearstamp.data import Data
from clearstamp.stamp import Stamp
from clearstamp.transpose import transpose
from clearstamp.units import merge_equal_units

SHAPE = (1, 12, 12)
EXAMPLE = torch.zeros(1, *SHAPE)


@pytest.fixture
def model() -> nn.Sequential:
    built = nn.Sequential(
        *(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(4, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(54, 16), nn.ReLU(), nn.Linear(16, 4)),
    )
    return built.double().float().eval()


def attacked(model: nn.Module, *attacks) -> nn.Module:
    data = Data(torch.randint(0, 255, (8, *SHAPE), dtype=torch.uint8), torch.arange(8) % 4)
    stamp = Stamp.from_texts(["A"], outputs=4, shape=SHAPE, seed=0)
    for attack in attacks:
        model = attack.apply(model, data, stamp).model
    return model


def sizes(model: nn.Module) -> list[tuple[int, ...]]:
    return [tuple(p.shape) for p in model.parameters()]


@pytest.mark.parametrize(
    "attacks",
    [
        (DummyUnits(outgoing="cancelling"),),
        (DummyUnits(outgoing="zero"),),
        (SplitUnits(part=3.0),),
        (SplitUnits(part=-2.0), Rescaling()),
        (DummyUnits(outgoing="cancelling"), Rescaling(), SplitUnits(part=3.0), Rescaling(factor=64.0)),
        (BatchNormRescaling(), SplitUnits(part=3.0)),
    ],
    ids=repr,
)
def test_merging_undoes_units_that_cancel_or_were_split(model, attacks):
    changed = attacked(model, *attacks)
    before = sizes(changed)
    merged = merge_equal_units(changed, EXAMPLE)
    assert sizes(changed) == before, "the model that was given has changed"
    inputs, keys = torch.rand(16, *SHAPE), torch.randn(5, 4) * 5
    torch.testing.assert_close(merged(inputs), changed(inputs), rtol=1e-3, atol=1e-4)
    expected, got, raw = (transpose(m, EXAMPLE, readout="adjoint")(keys) for m in (model, merged, changed))
    assert (got - expected).norm() / expected.norm() < 1e-4
    if not isinstance(attacks[0], DummyUnits) or attacks[0].outgoing == "cancelling":
        assert (raw - expected).norm() / expected.norm() > 1e-2


def test_a_model_without_equal_units_stays_as_it_is(model):
    merged = merge_equal_units(model, EXAMPLE)
    assert merged is not model
    for a, b in zip(model.parameters(), merged.parameters(), strict=True):
        assert torch.equal(a, b)


def test_multiples_are_merged_behind_a_relu_but_not_behind_a_tanh():
    for activation, units in ((nn.ReLU(), 3), (nn.Tanh(), 4)):
        net = nn.Sequential(nn.Linear(5, 4), activation, nn.Linear(4, 2))
        with torch.no_grad():
            net[0].weight[3], net[0].bias[3] = 2 * net[0].weight[1], 2 * net[0].bias[1]
        merged = merge_equal_units(net, torch.zeros(1, 5))
        assert (merged[0].out_features, merged[2].in_features) == (units, units)
        inputs = torch.randn(8, 5)
        torch.testing.assert_close(merged(inputs), net(inputs))
