"""Whole models run backwards: what comes out, what must not change, and what is refused."""

import ast
import copy
import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.optim.swa_utils import AveragedModel

from clearstamp.errors import TransposeError
from clearstamp.transpose import transpose
from clearstamp.transposed.base import public_probe
from clearstamp.transposed.graph import capture
from clearstamp.transposed.rules import READOUTS
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


@pytest.mark.skipif(not hasattr(torch.fx.config, "do_not_emit_stack_traces"), reason="this torch always notes them")
def test_a_capture_notes_no_stacks_and_leaves_the_settings_of_torch_alone(small_cnn):
    settings = dict(vars(torch.fx.config))
    graph = capture(small_cnn(), EXAMPLE)
    assert not any("stack_trace" in node.meta for node in graph.nodes)
    assert vars(torch.fx.config) == settings


def test_shapes_are_told(small_cnn):
    back = transpose(small_cnn(), EXAMPLE)
    assert (back.key_shape, back.image_shape, back.readout) == ((3,), (1, 8, 8), "adjoint")
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
    layers = "6 (Linear)|5 (ReLU)|4 (Linear)|3 (Flatten)|2 (MaxPool2d)"
    assert list(found) == [*layers.split("|"), "1 (ReLU)", "0 (Conv2d)"]
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
    """Operations without a rule, behind a skip connection."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = nn.LSTM(8, 8, batch_first=True)
        self.order = Moved(lambda x: x.sort(1).values)

    def forward(self, x: Tensor) -> Tensor:
        h, _ = self.memory((x + x).flatten(1, 2))
        return 1 / self.order(h.flatten(1)).topk(4).values


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
    for gap in ("memory (LSTM)", "order (Moved, sort)", "topk (topk)", "reciprocal (reciprocal)"):
        assert gap in message
    assert message.startswith("4 of the model's operations") and repr(readout) in message


@both_readouts
@pytest.mark.parametrize("shape", [(2, 8, 8), (3, 8, 8)])
def test_the_batch_axis_may_lie_anywhere(readout, shape):
    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(64 * shape[0], 3)

        def forward(self, x: Tensor) -> Tensor:
            packed = x.permute(1, 0, 2, 3).reshape(-1, 8, 8)  # channels and images share an axis
            return self.linear(F.relu(packed).view(shape[0], -1, 64).transpose(0, 1).flatten(1))

    model = Around().double()
    plain = nn.Sequential(nn.ReLU(), nn.Flatten(), model.linear)
    example, k = torch.zeros(1, *shape, dtype=torch.float64), keys()
    back, expected = (transpose(m, example, readout=readout) for m in (model, plain))
    torch.testing.assert_close(back(k), expected(k), **EXACT)


@both_readouts
def test_what_mixes_the_images_of_a_batch_is_refused(readout):
    with pytest.raises(TransposeError, match="mixes the images of a batch"):
        transpose(Moved(lambda x: x.flatten(1) - x.flatten(1).mean(0)), EXAMPLE, readout=readout)


@pytest.mark.parametrize(
    ("model", "example", "message"),
    [
        (Branching(), EXAMPLE, "cannot be captured.*Branching.*control flow"),
        (nn.Flatten(0), EXAMPLE, "not one row per image"),
        (Moved(lambda x: {"a": x}), EXAMPLE, 'not clear which.*got: dict, with a; .*output="logits"'),
        (Moved(lambda x: None), EXAMPLE, "not clear which.*got: NoneType"),
        (Moved(lambda x: torch.ones(len(x), 3)), EXAMPLE, "does not depend on its input"),
        (nn.Linear(4, 3), torch.zeros(1, 5), r"cannot be captured; got: an input \[5\].*give an example"),
        (nn.Linear(4, 3), torch.zeros(0, 4), r"not an input batch; got: \(0, 4\)"),
        (nn.Linear(4, 3), torch.zeros(4), "not an input batch"),
        (nn.Linear(4, 3), [[1.0] * 4], "not an input batch; got: list"),
    ],
)
def test_models_and_examples_that_do_not_fit(model, example, message):
    with pytest.raises(TransposeError, match=f"(?s){message}"):
        transpose(model, example)


class Named:
    def __init__(self, logits: Tensor):
        self.logits = logits


@both_readouts
@pytest.mark.parametrize(
    ("answer", "output"),
    [
        (lambda y: (y, 2 * y), None),
        (lambda y: [2 * y, y], 1),
        (lambda y: {"logits": y, "aux": 2 * y}, "logits"),
        (lambda y: {"aux": {"deep": y}}, lambda answer: answer["aux"]["deep"]),
        (lambda y: F.softmax(y, 1), None),
        (lambda y: F.log_softmax(y, -1), None),
    ],
)
def test_the_output_that_is_meant(readout, answer, output):
    linear, k = nn.Linear(64, 3).double(), keys()
    model = nn.Sequential(nn.Flatten(), linear, Moved(answer))
    images = transpose(model, EXAMPLE, readout=readout, output=output)(k)
    assert torch.equal(images, transpose(model[:2], EXAMPLE, readout=readout)(k))


@pytest.mark.parametrize("output", ["logits", 3, lambda answer: None])
def test_an_output_that_is_not_there(output):
    with pytest.raises(TransposeError, match="not clear which"):
        transpose(Moved(lambda x: {"a": x}), EXAMPLE, output=output)


@both_readouts
def test_keys_and_images_of_any_shape(readout):
    model = nn.Sequential(nn.Conv1d(2, 8, 3, padding=1), nn.ReLU(), nn.ConvTranspose1d(8, 4, 4, stride=2)).double()
    back = transpose(model, torch.zeros(1, 2, 20, dtype=torch.float64), readout=readout)
    k = torch.randn(3, *back.key_shape, dtype=torch.float64)
    assert back.key_shape == (4, 42) and back(k).shape == (3, 2, 20)
    with pytest.raises(TransposeError, match=r"expected: \[k, 4, 42\]"):
        back(k[:, :2])


@both_readouts
@pytest.mark.parametrize(
    "wrap", [nn.DataParallel, torch.compile, lambda m: torch.compile(nn.DataParallel(m)), AveragedModel]
)
def test_wrappers_are_seen_through(small_cnn, readout, wrap):
    model, k = small_cnn(), keys()
    back = transpose(wrap(model), EXAMPLE, readout=readout)
    assert torch.equal(back(k), transpose(model, EXAMPLE, readout=readout)(k))


@both_readouts
@pytest.mark.parametrize("prepare", [nn.utils.weight_norm, lambda m: prune.l1_unstructured(m, "weight", 0.5)])
@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated:FutureWarning")
def test_weights_that_hooks_make_are_computed_anew(readout, prepare):
    layer = nn.Linear(64, 3).double()
    prepare(layer)
    model, k = nn.Sequential(nn.Flatten(), layer), keys()
    back = transpose(model, EXAMPLE, readout=readout)
    with torch.no_grad():
        next(weight for name, weight in layer.named_parameters() if name.startswith("weight")).mul_(-3)
    model(EXAMPLE)  # the hook sets the weight
    expected = (k - layer.bias if readout == "paper" else k) @ layer.weight
    torch.testing.assert_close(back(k).flatten(1), expected, **EXACT)


def test_an_activation_that_a_model_keeps_does_not_stop_it(small_cnn):
    class Keeping(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            self.kept = super().forward(x)
            return self.kept

    model, k = Keeping(*small_cnn()), keys()
    kept = model(EXAMPLE)
    assert torch.equal(transpose(model, EXAMPLE)(k), transpose(nn.Sequential(*model), EXAMPLE)(k))
    assert model.kept is kept


def test_a_walk_that_is_not_finite_names_the_layer_and_the_readout_that_would_do():
    norm = nn.BatchNorm2d(1).double()
    nn.init.zeros_(norm.weight)
    model = nn.Sequential(norm, nn.Flatten(), nn.Linear(64, 3).double())
    with pytest.raises(TransposeError, match=r"(?s)0 \(BatchNorm2d\): its signal is not finite.*readout='adjoint'"):
        transpose(model, EXAMPLE, readout="paper")
    assert transpose(model, EXAMPLE)(keys()).isfinite().all()


@both_readouts
def test_a_layer_of_which_a_part_is_read_is_as_many_layers_as_parts(readout):
    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.packed, self.last = nn.Linear(64, 15), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.packed(x.flatten(1)).reshape(-1, 3, 5).unbind(1)[2])

    model, k = Packed().double(), keys()
    own = nn.Linear(64, 5).double()
    with torch.no_grad():
        own.weight.copy_(model.packed.weight[10:])
        own.bias.copy_(model.packed.bias[10:])
    expected = transpose(nn.Sequential(nn.Flatten(), own, model.last), EXAMPLE, readout=readout)(k)
    torch.testing.assert_close(transpose(model, EXAMPLE, readout=readout)(k), expected, **EXACT)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_the_public_probe_does_not_depend_on_torch_s_default_type(dtype):
    expected = public_probe((1, 4, 4))
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(dtype)
        assert torch.equal(public_probe((1, 4, 4)), expected)
    finally:
        torch.set_default_dtype(before)


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
