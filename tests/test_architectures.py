"""Skips, gates, splits and joins in whole models, and every classifier of torchvision."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clearstamp.errors import StampError, TransposeError
from clearstamp.stamp import Stamp
from clearstamp.transpose import freeze, transpose
from clearstamp.transposed.base import public_probe

EXACT = {"rtol": 1e-12, "atol": 1e-12}  # float64, the same sums in another order
EXAMPLE = torch.zeros(1, 6, dtype=torch.float64)
PROBE = public_probe((6,)).double()

both_readouts = pytest.mark.parametrize("readout", ["paper", "adjoint"])


def keys(outputs: int, count: int = 4) -> Tensor:
    return torch.randn(count, outputs, dtype=torch.float64)


class Block(nn.Module):
    """Layers with weights, and a forward that a test gives."""

    def __init__(self, forward, *sizes: tuple[int, int]):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(*size) for size in sizes)
        self.own = forward
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.own(x, *self.layers)


# ----------------------------------------------------------------------------------------------------------- skips


def residual() -> Block:
    return Block(lambda x, f, g, last: last(F.relu(x + g(F.relu(f(x))))), (6, 5), (5, 6), (6, 3))


def test_adjoint_sends_the_signal_through_both_branches():
    model, k = residual(), keys(3)
    f, g, last = model.layers
    y = (k @ last.weight).relu()
    expected = y + (y @ g.weight).relu() @ f.weight
    torch.testing.assert_close(transpose(model, EXAMPLE, readout="adjoint")(k), expected, **EXACT)


@pytest.mark.parametrize("stored", [False, True])
def test_paper_takes_the_frozen_branch_off_and_follows_the_deeper_one(stored):
    model, other, k = residual(), residual(), keys(3)
    f, g, last = model.layers
    frozen = freeze(other, EXAMPLE) if stored else None
    skip = torch.randn(1, 6, dtype=torch.float64) if stored else PROBE
    if stored:
        frozen = dict.fromkeys(frozen, skip)
    y = ((k - last.bias) @ last.weight).relu() - skip
    y = ((y - g.bias) @ g.weight).relu()
    expected = (y - f.bias) @ f.weight
    torch.testing.assert_close(transpose(model, EXAMPLE, readout="paper", frozen=frozen)(k), expected, **EXACT)


def test_frozen_values_are_those_of_the_other_model_on_the_public_probe():
    model = Block(lambda x, f, g, last: last(f(x) + g(F.relu(f(x)))), (6, 5), (5, 5), (5, 3))
    (value,) = freeze(model, EXAMPLE).values()
    torch.testing.assert_close(value, model.layers[0](PROBE), **EXACT)
    assert not value.requires_grad
    assert freeze(nn.Sequential(nn.Linear(6, 3)).double(), EXAMPLE) == {}


def test_a_stored_value_stays_when_the_weights_move():
    model, k = Block(lambda x, f, g, last: last(f(x) + g(F.relu(f(x)))), (6, 5), (5, 5), (5, 3)), keys(3)
    stored_values = freeze(model, EXAMPLE)
    live, stored = (transpose(model, EXAMPLE, readout="paper", frozen=f) for f in (None, stored_values))
    torch.testing.assert_close(live(k), stored(k), **EXACT)
    with torch.no_grad():
        model.layers[0].bias.add_(1.0)  # moves the skip by 1, and the bias that the last step takes off
    shift = (stored(k) - live(k)) @ model.layers[0].weight.pinverse()
    assert shift.abs().max() > 1e-3


@pytest.mark.parametrize(
    ("readout", "frozen", "message"),
    [
        ("paper", {"other": torch.zeros(1, 6)}, "do not fit the model.*freeze"),
        (
            "paper",
            {"image": torch.zeros(1, 5)},
            r"do not fit the model; got: \{'image': \[1, 5\]\}; expected: \{'image': \[1, 6\]\}",
        ),
        ("adjoint", {"image": torch.zeros(1, 6)}, "expected: none in the 'adjoint' readout"),
    ],
)
def test_frozen_values_that_do_not_fit(readout, frozen, message):
    with pytest.raises(TransposeError, match=message):
        transpose(residual(), EXAMPLE, readout=readout, frozen=frozen)


def test_a_stamp_keeps_frozen_values_in_its_file(tmp_path):
    frozen = {"add": torch.randn(1, 4, 2, 2)}
    stamp = Stamp(torch.zeros(1, 3), torch.zeros(1, 1, 8, 8), ("A",), frozen)
    stamp.save(tmp_path / "stamp.safetensors")
    loaded = Stamp.load(tmp_path / "stamp.safetensors")
    assert torch.equal(loaded.frozen["add"], frozen["add"]) and loaded.frozen.keys() == {"add"}
    assert stamp.to("cpu").frozen.keys() == {"add"}
    with pytest.raises(StampError, match="a frozen value is not finite"):
        Stamp(stamp.keys, stamp.secrets, ("A",), {"add": torch.tensor([float("nan")])})


# ----------------------------------------------------------------------------------------------- gates and products


@both_readouts
@pytest.mark.parametrize("gate", [torch.sigmoid, F.hardsigmoid, lambda x: F.softmax(x, 1)])
@pytest.mark.parametrize("swapped", [False, True])
def test_a_gate_is_frozen_at_the_public_probe(readout, gate, swapped):
    def forward(x, f, g, last):
        factors = (f(x), gate(g(x)))
        return last(factors[swapped] * factors[not swapped])

    model, k, paper = Block(forward, (6, 5), (6, 5), (5, 3)), keys(3), readout == "paper"
    f, g, last = model.layers
    y = (k - paper * last.bias) @ last.weight * gate(g(PROBE))
    expected = (y - paper * f.bias) @ f.weight
    back = transpose(model, EXAMPLE, readout=readout)
    torch.testing.assert_close(back(k), expected, **EXACT)
    back(k).sum().backward()
    assert g.weight.grad.abs().sum() > 0, "the gate's weights are trained through the probe"


@both_readouts
def test_of_two_factors_without_a_gate_the_larger_one_carries_the_signal(readout):
    model = Block(lambda x, f, g, last: last(f(x) * g(x)), (6, 5), (6, 1), (5, 3))
    k, paper = keys(3), readout == "paper"
    f, g, last = model.layers
    y = (k - paper * last.bias) @ last.weight * g(PROBE)
    torch.testing.assert_close(transpose(model, EXAMPLE, readout=readout)(k), (y - paper * f.bias) @ f.weight, **EXACT)


@both_readouts
def test_of_two_equal_factors_the_first_carries_the_signal_and_the_other_is_named(readout):
    model, k, paper = Block(lambda x, f, g: f(x) * g(x), (6, 3), (6, 3)), keys(3), readout == "paper"
    f, g = model.layers
    back = transpose(model, EXAMPLE, readout=readout)
    torch.testing.assert_close(back(k), (k * g(PROBE) - paper * f.bias) @ f.weight, **EXACT)
    assert back.frozen == ["layers.1 (Linear)"]


@both_readouts
def test_a_square_is_a_product_of_which_one_factor_is_frozen(readout):
    model, k, paper = Block(lambda x, f: (lambda y: y * y)(f(x)), (6, 3)), keys(3), readout == "paper"
    (f,) = model.layers
    expected = (k * f(PROBE) - paper * f.bias) @ f.weight
    torch.testing.assert_close(transpose(model, EXAMPLE, readout=readout)(k), expected, **EXACT)


@both_readouts
def test_a_divisor_is_frozen_and_an_inverse_is_a_gap(readout):
    model, k, paper = Block(lambda x, f, g: f(x) / g(x), (6, 3), (6, 3)), keys(3), readout == "paper"
    f, g = model.layers
    expected = (k / g(PROBE) - paper * f.bias) @ f.weight
    torch.testing.assert_close(transpose(model, EXAMPLE, readout=readout)(k), expected, **EXACT)
    with pytest.raises(TransposeError, match="no rule for aten::reciprocal"):
        transpose(Block(lambda x, f: 1 / f(x), (6, 3)), EXAMPLE, readout=readout)


@both_readouts
@pytest.mark.parametrize("images_first", [True, False])
def test_frozen_values_whose_parts_share_an_axis_with_the_images(readout, images_first):
    def forward(x, f, last):
        parts = x.reshape(-1, 2, 3) if images_first else x.reshape(-1, 2, 3).transpose(0, 1)
        parts = parts.reshape(-1, 3)
        mixed = f(parts) * torch.sigmoid(parts)
        mixed = mixed.reshape(-1, 2, 3) if images_first else mixed.reshape(2, -1, 3).transpose(0, 1)
        return last(mixed.flatten(1))

    model, k, paper = Block(forward, (3, 3), (6, 2)), keys(2), readout == "paper"
    f, last = model.layers
    y = ((k - paper * last.bias) @ last.weight) * torch.sigmoid(PROBE)
    expected = ((y.reshape(-1, 2, 3) - paper * f.bias) @ f.weight).flatten(1)
    torch.testing.assert_close(transpose(model, EXAMPLE, readout=readout)(k), expected, **EXACT)


@both_readouts
def test_attention_as_a_product_of_matrices(readout):
    def forward(x, f, last):
        x = x.unflatten(1, (2, 3))
        weights = torch.softmax(x @ x.transpose(1, 2), -1)
        return last(torch.bmm(weights, f(x)).flatten(1))

    model, k, paper = Block(forward, (3, 3), (6, 2)), keys(2), readout == "paper"
    f, last = model.layers
    tokens = PROBE.unflatten(1, (2, 3))
    weights = torch.softmax(tokens @ tokens.mT, -1)[0]
    y = weights.T @ ((k - paper * last.bias) @ last.weight).unflatten(1, (2, 3))
    expected = ((y - paper * f.bias) @ f.weight).flatten(1)
    torch.testing.assert_close(transpose(model, EXAMPLE, readout=readout)(k), expected, **EXACT)


# ------------------------------------------------------------------------------------------------- splits and joins


@both_readouts
def test_split_shuffle_and_join(readout):
    def forward(x, f, last):
        left, right = x.chunk(2, 1)
        x = torch.cat([left, f(right)], 1)
        return last(x.view(x.size(0), 2, 3).transpose(1, 2).reshape(x.size(0), -1))

    model, k, paper = Block(forward, (3, 3), (6, 2)), keys(2), readout == "paper"
    f, last = model.layers
    y = ((k - paper * last.bias) @ last.weight).reshape(-1, 3, 2).transpose(1, 2).reshape(-1, 6)
    expected = torch.cat([y[:, :3], (y[:, 3:] - paper * f.bias) @ f.weight], 1)
    torch.testing.assert_close(transpose(model, EXAMPLE, readout=readout)(k), expected, **EXACT)


@both_readouts
def test_a_part_that_nobody_reads_is_blank(readout):
    model = Block(lambda x, last: last(x.split(3, 1)[0]), (3, 2))
    k = keys(2)
    images = transpose(model, EXAMPLE, readout=readout)(k)
    expected = (k - (readout == "paper") * model.layers[0].bias) @ model.layers[0].weight
    torch.testing.assert_close(images, F.pad(expected, (0, 3)), **EXACT)


@both_readouts
def test_a_constant_that_is_joined_takes_its_part_of_the_signal_away(readout):
    def forward(x, last):
        return last(torch.stack([x, torch.ones_like(x[:, :1]).expand(-1, 6)], 1).flatten(1))

    model, k = Block(forward, (12, 2)), keys(2)
    expected = (k - (readout == "paper") * model.layers[0].bias) @ model.layers[0].weight
    torch.testing.assert_close(transpose(model, EXAMPLE, readout=readout)(k), expected[:, :6], **EXACT)
