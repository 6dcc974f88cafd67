"""The paper's architectures."""

import pytest
import torch
from torch import nn

from clearstamp.errors import ClearStampError
from clearstamp.models import MODELS, build


def weights(model: nn.Module) -> list[tuple[int, ...]]:
    return [tuple(layer.weight.shape) for layer in model.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 20)])
def test_models_map_images_to_outputs(name, shape):
    assert build(name, shape, 7, seed=0)(torch.rand(2, *shape)).shape == (2, 7)


@pytest.mark.parametrize(("name", "norms"), [("cnn", 0), ("cnn-bn", 2)])
def test_cnn_sizes(name, norms):
    model = build(name, (1, 28, 28), 10, seed=0)
    assert weights(model) == [(32, 1, 5, 5), (64, 32, 5, 5), (512, 3136), (256, 512), (10, 256)]
    assert sum(isinstance(layer, nn.BatchNorm2d) for layer in model) == norms
    assert sum(isinstance(layer, nn.ReLU) for layer in model) == 4
    pools = [layer for layer in model if isinstance(layer, nn.MaxPool2d)]
    assert [pool.kernel_size for pool in pools] == [2, 2]


def test_fc_sizes():
    model = build("fc", (1, 28, 28), 10, seed=0)
    assert weights(model) == [(1024, 784), (1024, 1024), (1024, 1024), (10, 1024)]


def test_the_seed_decides_and_the_global_generator_is_not_touched():
    state = torch.get_rng_state()
    first = build("fc", (1, 8, 8), 3, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    again, other = (build("fc", (1, 8, 8), 3, seed=seed) for seed in (1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first[1].weight, other[1].weight)


def test_unknown_model():
    with pytest.raises(ClearStampError, match="unknown model; got: 'resnet'; expected: 'cnn' or 'cnn-bn' or 'fc'"):
        build("resnet", (1, 28, 28), 10, seed=0)
