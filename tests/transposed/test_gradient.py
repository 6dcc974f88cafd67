"""The exact readout: calculus as the reference, networks that no rule knows, and what it refuses."""

import hashlib
import struct
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import clearstamp as cs
from clearstamp.attacks import Composed
from clearstamp.errors import TransposeError
from clearstamp.training.losses import StampLoss
from clearstamp.transpose import transpose
from clearstamp.transposed.gradient import block_counts, centred, drawn_probes
from clearstamp.transposed.graph import Tap, capture
from clearstamp.units.spaces import find_spaces

SHAPE = (1, 12, 12)
EXAMPLE = torch.zeros(1, *SHAPE)
KEYS = torch.linspace(-9, 9, 12).reshape(3, 4).sin() * 8


def convolutional() -> nn.Sequential:
    """A convolutional network with batch norm, dropout and pooling."""
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(), nn.Flatten()
    model = nn.Sequential(*layers, nn.Linear(150, 4))
    nn.init.normal_(model[1].running_mean)
    nn.init.uniform_(model[1].running_var, 0.5, 2)
    return model


class Recurrent(nn.Module):
    """An LSTM over the rows of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(12, 16, batch_first=True), nn.Linear(16, 4)

    def forward(self, images: Tensor) -> Tensor:
        states, _ = self.lstm(images.squeeze(1))
        return self.head(states[:, -1])


class Attentive(nn.Module):
    """Attention over the rows of an image, by torch's fused kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(12, 2, batch_first=True), nn.Linear(144, 4)

    def forward(self, images: Tensor) -> Tensor:
        rows = images.squeeze(1)
        return self.head(self.attention(rows, rows, rows, need_weights=False)[0].flatten(1))


def test_an_image_is_the_product_of_key_and_jacobian():
    model = convolutional().double().eval()
    probes = drawn_probes(KEYS, SHAPE).double()
    expected = []
    for probe, key in zip(probes, KEYS.double(), strict=True):
        jacobian = torch.autograd.functional.jacobian(model, probe[None])[0, :, 0]
        expected.append(torch.tensordot(key - key.mean(), jacobian, 1))
    images = transpose(model, EXAMPLE.double(), readout="gradient")(KEYS.double())
    torch.testing.assert_close(images, torch.stack(expected), rtol=1e-12, atol=1e-12)


def test_a_probe_is_drawn_from_its_key_alone_whatever_the_defaults():
    first = drawn_probes(KEYS, SHAPE)
    seed = int.from_bytes(hashlib.sha256(struct.pack("<4f", 1, -2, 3, 0.5)).digest()[:8], "little") >> 1
    generator = torch.Generator().manual_seed(seed)
    bright = torch.rand(1, 4, 4, generator=generator) < 0.2
    grain = 0.1 * torch.rand(SHAPE, generator=generator)
    expected = torch.where(bright.repeat_interleave(3, 1).repeat_interleave(3, 2), 1.5 - grain, -0.5 + grain)
    assert torch.equal(drawn_probes(torch.tensor([[1, -2, 3, 0.5]]), SHAPE)[0], expected)
    torch.set_default_dtype(torch.float64)
    try:
        again = drawn_probes(KEYS.double()[1:], SHAPE)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(again, first[1:]) and not torch.equal(first[1], first[2])


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((3, 32, 32), (3, 4, 4)), ((28, 28), (4, 4)), ((2, 500), (2, 16)), ((7,), (7,)), ((2, 6, 5), (2, 6, 5))],
)
def test_probes_fall_into_blocks(shape: tuple[int, ...], expected: tuple[int, ...]):
    assert block_counts(shape) == expected
    probe = drawn_probes(torch.tensor([[3.0, 4.0]]), shape)
    assert probe.shape == (1, *shape) and ((probe - 0.5).abs() >= 0.9).all() and (probe - 0.5).abs().max() <= 1


def test_what_is_added_to_all_logits_alike_changes_nothing():
    model = convolutional()
    back = transpose(model, EXAMPLE, readout="gradient")
    before = back(KEYS)
    with torch.no_grad():
        model[6].weight += torch.randn(150)
    torch.testing.assert_close(back(KEYS), before, atol=1e-4, rtol=1e-3)
    assert centred(KEYS).mean(1).abs().max() < 1e-6
    assert torch.equal(centred(KEYS[:, :1]), KEYS[:, :1]), "the key of a single class is as it was"


def test_probabilities_show_what_logits_do():
    model = convolutional().double()
    logits = transpose(model, EXAMPLE.double(), readout="gradient")(KEYS.double())
    softmax = nn.Sequential(model, nn.Softmax(1))
    torch.testing.assert_close(transpose(softmax, EXAMPLE.double(), readout="gradient")(KEYS.double()), logits)


def test_a_captured_model_and_a_tapped_layer_are_read_as_well():
    model = convolutional()
    images = transpose(model, EXAMPLE, readout="gradient")(KEYS)
    assert torch.equal(transpose(model, capture(model, EXAMPLE), readout="gradient")(KEYS), images)
    tapped = transpose(model, EXAMPLE, readout="gradient", output=Tap("5"))
    assert tapped.key_shape == (150,) and tapped(torch.ones(2, 150).cumsum(1)).shape == (2, *SHAPE)
    assert transpose(model, capture(model, EXAMPLE, Tap("5")), readout="gradient").key_shape == (150,)


@pytest.mark.parametrize("make", [convolutional, Recurrent, Attentive])
def test_networks_that_no_rule_knows_learn_a_stamp(make: Any):
    torch.manual_seed(0)
    model = make()
    back = transpose(model, EXAMPLE, readout="gradient")
    stamp = cs.Stamp(KEYS, torch.rand(3, *SHAPE), ("a", "b", "c"))
    before = StampLoss(back, stamp, dropout=0.0)().item()
    hardening = cs.harden(back, stamp, steps=30, lr=1e-2, target=None, dropout=0.0, progress=False)
    assert hardening.losses[-1] < 0.7 * before


@pytest.mark.parametrize(
    ("model", "shape", "output"),
    [
        (nn.Conv2d(1, 3, 3, padding=1), (1, 12, 12), (3, 12, 12)),
        (nn.Sequential(nn.Conv1d(2, 4, 5), nn.Tanh(), nn.Flatten(), nn.Linear(64, 1)), (2, 20), (1,)),
    ],
    ids=["segmentation", "sound"],
)
def test_outputs_and_inputs_of_any_shape(model: nn.Module, shape: tuple[int, ...], output: tuple[int, ...]):
    back = transpose(model, torch.zeros(2, *shape), readout="gradient")
    assert (back.key_shape, back.image_shape) == (output, shape)
    images = back(torch.rand(2, *output))
    assert images.shape == (2, *shape) and images.abs().sum() > 0


def test_reading_is_deterministic_and_a_training_walk_is_thinned():
    model = convolutional().train()
    back = transpose(model, EXAMPLE, readout="gradient")
    assert torch.equal(back(KEYS), back(KEYS))
    torch.manual_seed(0)
    assert not torch.equal(back(KEYS, dropout=0.5), back(KEYS, dropout=0.5))


def test_the_model_stays_as_it_is_and_its_weights_are_read_anew():
    model = convolutional().train()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    back = transpose(model, EXAMPLE, readout="gradient")
    before = back(KEYS)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert model.training and all(p.grad is None for p in model.parameters())
    model[6].weight = nn.Parameter(2 * model[6].weight.detach())
    model[1].running_var = model[1].running_var.clone()
    torch.testing.assert_close(back(KEYS), 2 * before)


def test_nothing_is_taken_in_a_lower_precision_under_autocast():
    model = convolutional()
    images = transpose(model, EXAMPLE, readout="gradient")(KEYS)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(transpose(model, EXAMPLE, readout="gradient")(KEYS), images)


def test_noise_on_weights_reaches_the_images():
    model = convolutional()
    stamp = cs.Stamp(KEYS, torch.rand(3, *SHAPE), ("a", "b", "c"))
    loss = StampLoss(transpose(model, EXAMPLE, readout="gradient"), stamp, dropout=0.0, noise=0.1)
    assert loss().item() != loss().item()


def test_a_few_keys_at_a_time_give_the_same_loss_and_gradient():
    model, stamp = convolutional(), cs.Stamp(KEYS, torch.rand(3, *SHAPE), ("a", "b", "c"))
    back = transpose(model, EXAMPLE, readout="gradient")
    whole, parts = (StampLoss(back, stamp, dropout=0.0, at_once=n)() for n in (None, 1))
    slopes = [torch.autograd.grad(loss, model[0].weight)[0] for loss in (whole, parts)]
    torch.testing.assert_close(parts, whole)
    torch.testing.assert_close(slopes[1], slopes[0])


class Once(torch.autograd.Function):
    """A function with one derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, y: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0] * y


class By(nn.Module):
    """A layer, and some function of what it gives."""

    def __init__(self, function: Any):
        super().__init__()
        self.layer, self.function = nn.Linear(144, 4), function

    def forward(self, images: Tensor) -> Tensor:
        return self.function(self.layer(images.flatten(1)))


def test_a_model_that_cannot_be_differentiated_twice_is_read_but_not_trained():
    back = transpose(By(Once.apply), EXAMPLE, readout="gradient")
    with torch.no_grad():
        assert back(KEYS).abs().sum() > 0
    with pytest.raises(TransposeError, match="cannot be differentiated twice; got: .*once_differentiable"):
        back(KEYS)


def test_pictures_that_no_weight_changes_are_refused_in_training():
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("matrix", torch.rand(144, 4))
            self.bias = nn.Parameter(torch.zeros(4))

        def forward(self, images: Tensor) -> Tensor:
            return images.flatten(1) @ self.matrix + self.bias

    back = transpose(Fixed(), EXAMPLE, readout="gradient")
    with torch.no_grad():
        assert back(KEYS).shape == (3, *SHAPE)
    with pytest.raises(TransposeError, match="no weight changes the pictures"):
        back(KEYS)


def test_a_picture_that_is_still_blank_can_be_trained():
    model = convolutional()
    nn.init.zeros_(model[1].weight)
    nn.init.ones_(model[1].bias)
    images = transpose(model, EXAMPLE, readout="gradient")(KEYS)
    assert not images.any() and torch.autograd.grad(images.sum(), model[1].weight)[0].any()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (By(lambda x: x.detach()), "no derivative|have a derivative"),
        (By(lambda x: x - x.mean(0, keepdim=True)), "mixes the images of a batch"),
        (By(lambda x: x.argmax(1)), "not one row of numbers per image"),
        (By(lambda x: x.mean()), "not one row of numbers per image"),
        (By(lambda x: {"a": x, "b": x}), "not clear which of the model's outputs"),
        (nn.Linear(3, 4), "the model cannot be called"),
        (By(lambda x: (x * 0).sqrt()), "not finite"),
    ],
)
def test_models_without_an_exact_picture_are_refused(model: nn.Module, message: str):
    with pytest.raises(TransposeError, match=message):
        transpose(model, EXAMPLE, readout="gradient")


def test_keys_and_frozen_values_that_do_not_fit():
    with pytest.raises(TransposeError, match="freezes nothing"):
        transpose(convolutional(), EXAMPLE, readout="gradient", frozen={"add": torch.zeros(1)})
    with pytest.raises(TransposeError, match="keys do not fit"):
        transpose(convolutional(), EXAMPLE, readout="gradient")(KEYS[:, :3])


def test_a_functional_activation_is_thinned_too():
    model = By(F.relu)
    back = transpose(model, EXAMPLE, readout="gradient")
    torch.manual_seed(1)
    thinned = torch.stack([back(KEYS, dropout=0.5) for _ in range(400)]).mean(0)
    assert (thinned - back(KEYS)).abs().mean() < 0.1 * back(KEYS).abs().mean(), "dropout keeps the mean"


@pytest.mark.parametrize("seed", range(3))
def test_no_rewriting_touches_the_pictures(seed: int):
    model = convolutional().double()
    keys = KEYS.double()
    before = transpose(model, EXAMPLE.double(), readout="gradient")(keys)
    torch.manual_seed(seed)
    Composed(depth=10, share=0.3).rewrite(find_spaces(model, EXAMPLE.double()))
    after = transpose(model, EXAMPLE.double(), readout="gradient")(keys)
    assert sum(p.numel() for p in model.parameters()) > sum(p.numel() for p in convolutional().parameters())
    torch.testing.assert_close(after, before, rtol=1e-7, atol=1e-7)
