"""The paper's architectures."""

import pytest
import torch
from torch import nn

from clearstamp.errors import ClearStampError
from clearstamp.stamp import Stamp
from clearstamp.training.loops import harden
from clearstamp.transpose import transpose
from clearstamp.zoo.networks import MODELS, build


def weights(model: nn.Module) -> list[tuple[int, ...]]:
    return [tuple(layer.weight.shape) for layer in model.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32)])
def test_models_map_images_to_outputs(name, shape):
    assert build(name, shape, 7, seed=0)(torch.rand(2, *shape)).shape == (2, 7)


@pytest.mark.parametrize("readout", ["paper", "adjoint"])
@pytest.mark.parametrize("name", [name for name in MODELS if f"{name}-narrow" not in MODELS])
def test_models_harden(name, readout):
    shape = (3, 32, 32)
    stamp = Stamp.from_texts(["A"], outputs=7, shape=shape, seed=0)
    back = transpose(build(name, shape, 7, seed=0), stamp.secrets, readout=readout)
    losses = harden(back, stamp, steps=12, target=None, lr=1e-3, progress=False).losses
    assert losses[-1] < losses[0] - 0.02


def parameters(model: nn.Module) -> int:
    return sum(weight.numel() for weight in model.parameters())


def test_sizes_of_the_published_networks():
    sizes = {name: parameters(build(name, (3, 32, 32), 10, seed=0)) for name in ("resnet18", "resnet34", "vgg11")}
    # those of the small-image forms that are commonly stated: 11.17, 21.28 and (with two hidden layers of 512) 9.75 M
    assert {name: round(size / 1e6, 2) for name, size in sizes.items()} == {
        "resnet18": 11.17,
        "resnet34": 21.28,
        "vgg11": 9.75,
    }


def test_a_narrow_network_has_the_layers_of_the_wide_one():
    for name in ("resnet18", "resnet34", "vgg11", "vit"):
        wide, narrow = (weights(build(n, (3, 32, 32), 10, seed=0)) for n in (name, f"{name}-narrow"))
        assert len(wide) == len(narrow)
        assert all(a[0] in (10, 4 * b[0]) for a, b in zip(wide, narrow, strict=True))


def test_a_vit_wants_a_square_image():
    with pytest.raises(ClearStampError, match="no image for this ViT"):
        build("vit", (3, 32, 20), 10, seed=0)


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
    with pytest.raises(ClearStampError, match="unknown model; got: 'lenet'; expected: 'cnn' or 'cnn-bn' or 'fc' or"):
        build("lenet", (1, 28, 28), 10, seed=0)
