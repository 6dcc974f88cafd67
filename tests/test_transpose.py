"""Whole models run backwards: what comes out, what must not change, and what is refused."""

import ast
import copy
import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clearstamp.errors import TransposeError
from clearstamp.rules import READOUTS
from clearstamp.transpose import transpose
from tests.reference import small_cnn_backwards

EXACT = {"rtol": 1e-12, "atol": 1e-12}  # float64, the same sums in another order
EXAMPLE = torch.zeros(1, 1, 8, 8, dtype=torch.float64)

both_readouts = pytest.mark.parametrize("readout", READOUTS)


def keys(count: int = 4, outputs: int = 3) -> Tensor:
    return torch.randn(count, outputs, dtype=torch.float64)


def relative_change(new: Tensor, old: Tensor) -> float:
    return ((new - old).norm() / old.norm()).item()


# ------------------------------------------------------------------------------------------------- what comes out


@both_readouts
def test_small_cnn_equals_the_one_written_by_hand(small_cnn, readout):
    model, k = small_cnn(), keys()
    images = transpose(model, EXAMPLE, readout=readout)(k)
    torch.testing.assert_close(images, small_cnn_backwards(model, k, readout), **EXACT)


def test_shapes_are_told(small_cnn):
    back = transpose(small_cnn(), EXAMPLE)
    assert (back.outputs, back.image_shape, back.readout) == (3, (1, 8, 8), "adjoint")
    assert repr(back) == "Transposed(Sequential, readout='adjoint': keys [k, 3] -> images [k, 1, 8, 8])"


@both_readouts
@pytest.mark.parametrize("size", [1, 2, 5])
def test_the_batch_size_of_the_example_does_not_matter(small_cnn, readout, size):
    model, k = small_cnn(), keys()
    images = [transpose(model, EXAMPLE.expand(n, -1, -1, -1), readout=readout)(k) for n in (1, size)]
    assert torch.equal(*images)


@both_readouts
def test_keys_do_not_see_each_other(small_cnn, readout):
    back, k = transpose(small_cnn(), EXAMPLE, readout=readout), keys()
    torch.testing.assert_close(back(k), torch.cat([back(key[None]) for key in k]), **EXACT)


@both_readouts
def test_weights_are_read_at_every_call(small_cnn, readout):
    model, other, k = small_cnn(), small_cnn(), keys()
    back = transpose(model, EXAMPLE, readout=readout)
    model.load_state_dict(other.state_dict())
    assert torch.equal(back(k), transpose(other, EXAMPLE, readout=readout)(k))


@both_readouts
def test_a_replaced_layer_s_weights_are_read_too(small_cnn, readout):
    model, k = small_cnn(), keys()
    back = transpose(model, EXAMPLE, readout=readout)
    model[6].weight = nn.Parameter(torch.randn_like(model[6].weight))
    assert torch.equal(back(k), transpose(model, EXAMPLE, readout=readout)(k))


@both_readouts
def test_signals_are_those_on_the_way_of_a_walk(small_cnn, readout):
    back, k = transpose(small_cnn(), EXAMPLE, readout=readout), keys()
    found = back.signals(k)
    assert [name.partition(" ")[2] for name in found] == (
        "(Linear) (ReLU) (Linear) (Flatten) (MaxPool2d) (ReLU) (Conv2d)".split()
    )
    images = list(found.values())
    assert torch.equal(images[-1], back(k)) and not images[-1].requires_grad
    assert [tuple(s.shape[1:]) for s in images[:4]] == [(5,), (5,), (32,), (2, 4, 4)]


@both_readouts
def test_the_code_of_a_walk_has_neither_loops_nor_branches(small_cnn, readout):
    back = transpose(small_cnn(), EXAMPLE, readout=readout)
    statements = ast.parse(back.code).body[0].body
    assert all(isinstance(s, ast.Assign | ast.Return) for s in statements)
    assert [n for n in re.findall(r"rules_([a-z]+)", back.code)] == (
        "linear relu linear reshape pooling relu convolution".split()
    )


# ----------------------------------------------------------------------------------------------------- symmetries


def permuted(model: nn.Sequential) -> nn.Sequential:
    """The same function with its hidden channels and units in another order."""
    twin = copy.deepcopy(model)
    convolution, hidden, last = twin[0], twin[4], twin[6]
    channels, units = torch.tensor([1, 0]), torch.tensor([3, 0, 4, 2, 1])
    with torch.no_grad():
        for layer, order in ((convolution, channels), (hidden, units)):
            layer.weight.copy_(layer.weight[order])
            layer.bias.copy_(layer.bias[order])
        hidden.weight.copy_(hidden.weight.unflatten(1, (2, 16))[:, channels].flatten(1))
        last.weight.copy_(last.weight[:, units])
    return twin


def rescaled(model: nn.Sequential) -> nn.Sequential:
    """The same function with its hidden ReLU channels and units scaled by positive numbers."""
    twin = copy.deepcopy(model)
    convolution, hidden, last = twin[0], twin[4], twin[6]
    channels, units = (torch.tensor(s, dtype=torch.float64) for s in ([4.0, 0.3], [0.1, 7.0, 2.0, 0.5, 3.0]))
    with torch.no_grad():
        convolution.weight.mul_(channels[:, None, None, None])
        convolution.bias.mul_(channels)
        hidden.weight.div_(channels.repeat_interleave(16))
        hidden.weight.mul_(units[:, None])
        hidden.bias.mul_(units)
        last.weight.div_(units)
    return twin


@pytest.mark.parametrize("change", [permuted, rescaled])
def test_symmetries_leave_the_outputs_unchanged(small_cnn, change):
    model, x = small_cnn(), torch.randn(4, 1, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(change(model)(x), model(x), **EXACT)


@both_readouts
def test_permuting_hidden_units_leaves_images_unchanged(small_cnn, readout):
    model, k = small_cnn(), keys()
    images, old = (transpose(m, EXAMPLE, readout=readout)(k) for m in (permuted(model), model))
    assert relative_change(images, old) < 1e-12


def test_rescaling_relu_units_leaves_adjoint_images_unchanged_but_not_the_paper_s(small_cnn):
    model, k = small_cnn(), keys()
    changes = {
        readout: relative_change(*(transpose(m, EXAMPLE, readout=readout)(k) for m in (rescaled(model), model)))
        for readout in READOUTS
    }
    assert changes["adjoint"] < 1e-5
    assert changes["paper"] > 0.1


# ------------------------------------------------------------------------------------------------------- gradients


def used_by(readout: str, model: nn.Module) -> set[str]:
    """Names of the parameters that a readout reads: `adjoint` reads no bias of a layer with weights."""
    return {name for name, _ in model.named_parameters() if readout == "paper" or not name.endswith("bias")}


@both_readouts
def test_gradients_reach_every_weight(readout, small_cnn):
    model = small_cnn()
    transpose(model, EXAMPLE, readout=readout)(keys(50)).square().sum().backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert reached == used_by(readout, model)


@both_readouts
def test_gradients_are_those_of_finite_differences(readout, small_cnn):
    model, k = small_cnn(), keys()
    back = transpose(model, EXAMPLE, readout=readout)
    weight, step = model[4].weight, 1e-6
    back(k).square().sum().backward()
    slope = weight.grad[1, 2].item()
    with torch.no_grad():
        ends = []
        for sign in (1, -1):
            weight[1, 2] += sign * step
            ends.append(back(k).square().sum().item())
            weight[1, 2] -= sign * step
    assert slope == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-5, abs=1e-8)


# --------------------------------------------------------------------------------------- the model stays as it was


class Functional(nn.Module):
    """Batch norm and dropout as functions that read the module's mode, and a tensor made inside forward()."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(64)
        self.last = nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        norm = self.norm
        h = F.batch_norm(x.flatten(1), norm.running_mean, norm.running_var, norm.weight, norm.bias, self.training)
        h = F.linear(F.dropout(h, 0.5, self.training), torch.eye(64, dtype=torch.float64))
        return self.last(F.relu(h, inplace=True))


class OwnNorm(nn.BatchNorm2d):
    """A batch norm with a forward of its own, which is therefore traced: it counts its batches in training mode."""

    def forward(self, input: Tensor) -> Tensor:
        if self.training:
            self.num_batches_tracked.add_(1)
        return F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, self.training)


def modules_with_norm() -> list[nn.Module]:
    dropout_and_norm = [nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(True), nn.Dropout(0.5), nn.Flatten()]
    return [
        nn.Sequential(*dropout_and_norm, nn.Linear(72, 3)),
        nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 3)),
        nn.Sequential(nn.ReLU(inplace=True), OwnNorm(1), nn.Flatten(), nn.Linear(64, 3)),
        Functional(),
    ]


def portrait(model: nn.Module) -> tuple:
    """Everything of a model that could change: modes, hooks, attributes."""
    modules = list(model.modules())
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for m in modules]
    return [m.training for m in modules], hooks, [sorted(vars(m)) for m in modules]


@both_readouts
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("index", range(4))
def test_the_model_is_not_changed(readout, training, index):
    model = modules_with_norm()[index].double().train(training)
    if index:
        model.get_submodule("last" if index == 3 else "2" if index == 1 else "3").eval()  # modes may be mixed
    state, before = copy.deepcopy(model.state_dict()), portrait(model)
    example = torch.randn(1, 1, 8, 8, dtype=torch.float64)
    kept = example.clone()
    back = transpose(model, example, readout=readout)
    back(keys())
    back(keys(), dropout=0.3)
    assert portrait(model) == before
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(example, kept)


# ------------------------------------------------------------------------------------------------ kinds of models


@both_readouts
def test_a_layer_used_twice(readout):
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 4), nn.Linear(4, 3)).double()
    _, shared, last = model
    twice = nn.Sequential(nn.Flatten(), shared, nn.ReLU(), shared, last)
    k, paper = keys(), readout == "paper"
    images = transpose(twice, torch.zeros(1, 1, 2, 2, dtype=torch.float64), readout=readout)(k)
    y = (k - paper * last.bias) @ last.weight
    y = (y - paper * shared.bias) @ shared.weight
    y = (y.clamp_min(0) - paper * shared.bias) @ shared.weight
    torch.testing.assert_close(images.flatten(1), y, **EXACT)


class Scaled(nn.Module):
    """A linear layer whose weight is computed in the graph."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(3, 64, dtype=torch.float64))
        self.s = nn.Parameter(torch.tensor(1.5, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(torch.flatten(x, 1), self.w * self.s)


@both_readouts
def test_a_weight_computed_in_the_graph(readout):
    model, k = Scaled(), keys()
    back = transpose(model, EXAMPLE, readout=readout)
    for scale in (1.5, -2.0):  # as it is now, not as it was when traced
        with torch.no_grad():
            model.s.fill_(scale)
        torch.testing.assert_close(back(k).flatten(1), k @ model.w * scale, **EXACT)
    back(k).square().sum().backward()
    assert model.w.grad.abs().sum() > 0 and model.s.grad.abs() > 0


@both_readouts
def test_a_parametrised_layer(readout):
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(64, 3)).double()
    model, k = nn.Sequential(nn.Flatten(), layer), keys()
    images = transpose(model, EXAMPLE, readout=readout)(k)
    expected = (k - layer.bias if readout == "paper" else k) @ layer.weight
    torch.testing.assert_close(images.flatten(1), expected, **EXACT)


class Add(nn.Module):
    """x + f(x): one value with two users."""

    def __init__(self) -> None:
        super().__init__()
        self.f = nn.Linear(64, 64)

    def forward(self, x: Tensor) -> Tensor:
        return torch.add(torch.flatten(x, 1), self.f(torch.flatten(x, 1)))


def test_signals_sum_where_the_forward_model_fans_out():
    model, k = Add().double(), keys(2, 64)
    images = transpose(model, EXAMPLE, readout="adjoint")(k)
    torch.testing.assert_close(images.flatten(1), k + k @ model.f.weight, **EXACT)


# --------------------------------------------------------------------------------------------------------- dropout


@both_readouts
def test_extra_dropout_follows_every_weighted_layer_but_the_one_nearest_the_input(monkeypatch, readout, small_cnn):
    seen = []

    def dropout(signal: Tensor, rate: float) -> Tensor:
        seen.append((tuple(signal.shape), rate))
        return signal

    monkeypatch.setattr(F, "dropout", dropout)
    back = transpose(small_cnn(), EXAMPLE, readout=readout)
    back(keys(), dropout=0.25)
    assert seen == [((4, 5), 0.25), ((4, 32), 0.25)]  # after the last and the hidden layer, not after the convolution
    seen.clear()
    back(keys())
    back(keys(), dropout=0.0)
    assert seen == []


@both_readouts
def test_the_readout_is_deterministic_and_only_training_walks_drop(readout):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Dropout(0.5), nn.Linear(16, 3)).double().train()
    back, k = transpose(model, EXAMPLE, readout=readout), keys()
    assert torch.equal(back(k), back(k))
    assert torch.equal(back(k), transpose(model.eval(), EXAMPLE, readout=readout)(k))
    assert not torch.equal(back(k, dropout=0.0), back(k)), "the model's own dropout acts in a training walk"
    assert not torch.equal(back(k, dropout=0.3), back(k, dropout=0.3))


# ------------------------------------------------------------------------------------------------------- bad input


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) if x.sum() > 0 else -x.flatten(1)


class Unsupported(nn.Module):
    """Layers without a rule, behind a skip connection."""

    def __init__(self) -> None:
        super().__init__()
        self.circular = nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular")
        self.memory = nn.LSTM(8, 8)
        self.gate = nn.GLU()
        self.soft = nn.Softmax(1)

    def forward(self, x: Tensor) -> Tensor:
        h = x + self.circular(x)
        h, _ = self.memory(h.flatten(1, 2))
        return self.soft(self.gate(h).flatten(1)).exp()


class Moved(nn.Module):
    def __init__(self, forward) -> None:
        super().__init__()
        self.change = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.change(x)


@both_readouts
def test_all_gaps_are_named_in_one_error(readout):
    with pytest.raises(TransposeError) as caught:
        transpose(Unsupported(), EXAMPLE.float(), readout=readout)
    message = str(caught.value)
    for gap in ("circular (Conv2d)", "memory (LSTM)", "gate (GLU)", "soft (Softmax)", "method exp"):
        assert gap in message
    assert message.startswith("5 of the model's operations") and repr(readout) in message


@both_readouts
def test_a_moved_batch_axis_is_refused_even_if_it_is_moved_back(readout):
    model = Moved(lambda x: x.permute(1, 0, 2, 3).permute(1, 0, 2, 3).flatten(1))
    with pytest.raises(TransposeError, match="batch axis does not stay first"):
        transpose(model, torch.zeros(1, 3, 8, 8), readout=readout)


@pytest.mark.parametrize("change", [lambda x: x.permute(1, 0, 2, 3).flatten(1), lambda x: x.transpose(0, 1).flatten(1)])
def test_a_moved_batch_axis_is_refused_even_if_the_sizes_agree(change):
    with pytest.raises(TransposeError, match="batch axis"):
        transpose(Moved(change), torch.zeros(1, 2, 8, 8))


@pytest.mark.parametrize(
    ("model", "example", "message"),
    [
        (Branching(), EXAMPLE, "cannot be traced.*Branching.*control flow"),
        (nn.Conv2d(1, 1, 3), EXAMPLE.float(), r"not one vector per image; got: \[n, 1, 6, 6\]"),
        (nn.Flatten(0), EXAMPLE, "not one vector per image"),
        (Moved(lambda x: (x, x)), EXAMPLE, "not one tensor"),
        (Moved(lambda x: x.flatten(1).chunk(2, 1)), EXAMPLE, "not one tensor"),
        (Moved(lambda x: torch.ones(2, 3)), EXAMPLE, "not one tensor"),
        (nn.Linear(4, 3), torch.zeros(1, 5), r"does not run on the example; got: \[5\]"),
        (nn.Linear(4, 3), torch.zeros(0, 4), r"not an input batch; got: \(0, 4\)"),
        (nn.Linear(4, 3), torch.zeros(4), "not an input batch"),
        (nn.Linear(4, 3), [[1.0] * 4], "not an input batch; got: list"),
        (nn.Sequential(nn.MaxPool1d(2), nn.Linear(2, 3)), torch.zeros(1, 4), "1 of the model's operations.*MaxPool1d"),
    ],
)
def test_models_and_examples_that_do_not_fit(model, example, message):
    with pytest.raises(TransposeError, match=f"(?s){message}"):
        transpose(model, example)


def test_unknown_readout(small_cnn):
    with pytest.raises(TransposeError, match="unknown readout; got: 'papre'; expected: 'paper' or 'adjoint'"):
        transpose(small_cnn(), EXAMPLE, readout="papre")


@pytest.mark.parametrize("shape", [(3,), (2, 4), (1, 2, 3)])
def test_keys_of_the_wrong_shape(small_cnn, shape):
    with pytest.raises(TransposeError, match=r"keys do not fit.*expected: \[k, 3\]"):
        transpose(small_cnn(), EXAMPLE)(torch.zeros(shape, dtype=torch.float64))


@pytest.mark.parametrize("rate", [-0.1, 1.0, float("nan")])
def test_dropout_out_of_range(small_cnn, rate):
    with pytest.raises(TransposeError, match="dropout rate out of range"):
        transpose(small_cnn(), EXAMPLE)(keys(), dropout=rate)


# ------------------------------------------------------------------------------------------------------- precision


@both_readouts
def test_autocast_changes_nothing(readout, small_cnn):
    model, k, example = small_cnn().float(), keys().float(), EXAMPLE.float()
    expected = transpose(model, example, readout=readout)(k)
    with torch.autocast("cpu", torch.bfloat16):
        images = transpose(model, example, readout=readout)(k)
    assert images.dtype == torch.float32 and torch.equal(images, expected)


def test_keys_of_another_type(small_cnn):
    with pytest.raises(TransposeError, match=r"got: torch.float32; expected: torch.float64.*keys.to\(torch.float64\)"):
        transpose(small_cnn(), EXAMPLE)(keys().float())
