"""Every rule against a slow reference, each found by capturing a call of its operation."""

from collections.abc import Callable
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clearstamp.errors import TransposeError
from clearstamp.transpose import transpose
from clearstamp.transposed.base import Transposed, public_probe
from clearstamp.transposed.graph import Graph, capture, operation
from clearstamp.transposed.rules import READOUTS, Readout, Rule, register_vjp_rule
from tests.cases import CASES, COMPOSED, IMAGE, INPUTS, Case, randn
from tests.reference import CONVENTIONS, dense_transpose

TOLERANCE = {"rtol": 1e-10, "atol": 1e-10}  # of float64 sums of at most a few hundred terms
KEYS = 3

# torch warns, once, that its forward pass copies the input for an even kernel with padding='same'
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")

PAIRS = [pytest.param(readout, case, id=f"{readout}-{case}") for readout in READOUTS for case in CASES]
ORDER = {"convention": 0, "passthrough": 1, "adjoint": 2}


class Call(nn.Module):
    """A model that makes the call of one case."""

    def __init__(self, case: Case):
        super().__init__()
        self.case = case

    def forward(self, x: Tensor) -> Tensor:
        return self.case.forward(x)


def example(case: Case) -> Tensor:
    return torch.zeros(1, *case.shape, dtype=torch.float64)


@cache
def captured(case_at: int) -> Graph:
    case = CASES[case_at]
    return capture(Call(case), example(case))


def rules_of(readout: str, case: Case) -> list[Rule]:
    """The rules that the signal passes on its way back through a case."""
    graph = captured(CASES.index(case))
    found = (READOUTS[readout].rules.get(operation(node)) for node in graph.nodes if node in graph.signals)
    return [rule for rule in found if rule is not None]


def chief(readout: str, case: Case) -> Rule:
    """Of these the one that decides what comes out: the others move the signal at most."""
    return min(rules_of(readout, case), key=lambda rule: (rule.name == "identity", ORDER[rule.label], rule.moves))


def backwards(readout: str, case: Case) -> Transposed:
    return transpose(Call(case), captured(CASES.index(case)), readout=readout)


def signals(case: Case) -> Tensor:
    """Random signals of the shape of the case's output."""
    return torch.randn_like(case.forward(torch.randn(KEYS, *case.shape, dtype=torch.float64)))


@pytest.mark.parametrize(("readout", "case"), PAIRS)
def test_a_rule_does_what_its_label_says(readout, case):
    rule, y = chief(readout, case), signals(case)
    untouched = y.clone()
    back = backwards(readout, case)
    torch.manual_seed(1)
    drops = any(argument is True for argument in case.args) or case.kwargs.get("training", False)
    image = back(y, dropout=0.0) if drops else back(y)
    torch.manual_seed(1)
    if rule.label == "adjoint":
        expected = dense_transpose(case.forward, case.shape, y)
    elif rule.label == "convention":
        expected = CONVENTIONS[rule.name](case, y)
    else:
        expected = case.forward(y)
    assert image.shape == (KEYS, *case.shape)
    assert torch.equal(y, untouched), "a rule must not work in place"
    tolerance = {"rtol": 0, "atol": 0} if rule.label == "passthrough" else TOLERANCE
    torch.testing.assert_close(image, expected, **tolerance)


@pytest.mark.parametrize("case", COMPOSED, ids=str)
def test_an_operation_without_a_rule_is_run_backwards_as_torch_composes_it(case):
    y = signals(case)
    image = transpose(Call(case), example(case), readout="adjoint")(y)
    torch.testing.assert_close(image, dense_transpose(case.forward, case.shape, y), **TOLERANCE)


class Glu(nn.Module):
    """A gate that torch writes as one operation, or written out."""

    def __init__(self, *, whole: bool):
        super().__init__()
        torch.manual_seed(0)
        self.whole, self.first, self.last = whole, nn.Linear(6, 8).double(), nn.Linear(4, 3).double()

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        value, gate = x.chunk(2, 1)
        return self.last(F.glu(x, 1) if self.whole else value * gate.sigmoid())


@pytest.mark.parametrize("readout", READOUTS)
def test_a_gate_in_one_operation_is_the_same_gate_written_out(readout):
    keys, blank = randn(KEYS, 3), torch.zeros(1, 6, dtype=torch.float64)
    one, other = (transpose(Glu(whole=whole), blank, readout=readout) for whole in (True, False))
    torch.testing.assert_close(one(keys), other(keys), **TOLERANCE)
    (held,) = one.frozen_values().values()
    assert held.shape == (1, 4), "the gate"


def test_the_greater_of_two_signals_goes_to_both_as_in_pooling():
    class Maxout(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.maximum(x, 2 * x.flip(1))

    y = randn(KEYS, 4)
    image = transpose(Maxout(), torch.zeros(1, 4, dtype=torch.float64), readout="adjoint")(y)
    torch.testing.assert_close(image, y + 2 * y.flip(1), **TOLERANCE)


def test_a_root_lets_signals_of_both_signs_through():
    class PowerMean(nn.Module):
        """Generalised-mean pooling."""

        def forward(self, x: Tensor) -> Tensor:
            return x.clamp(min=0).pow(3).mean(1).pow(1 / 3)

    y = randn(KEYS, 4)
    image = transpose(PowerMean(), torch.zeros(1, 5, 4, dtype=torch.float64), readout="adjoint")(y)
    torch.testing.assert_close(image, y[:, None].expand(-1, 5, -1).pow(3).clamp(min=0), **TOLERANCE)


BLANK = torch.zeros(1, 4, dtype=torch.float64)
with torch.random.fork_rng():
    torch.manual_seed(0)
    FACTORS = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)]).double()


class Forward(nn.Module):
    """A forward of two linear layers."""

    def __init__(self, forward: Callable[..., Tensor]):
        super().__init__()
        self.layers, self.run = FACTORS, forward

    def forward(self, x: Tensor) -> Tensor:
        return self.run(x, *self.layers)


def gate(x: Tensor, layer: nn.Module) -> Tensor:
    """What a layer makes of it, between 0 and 1."""
    return layer(x).sigmoid()


SPELT = {
    "lerp": (lambda x, f, g: torch.lerp(x, f(x), gate(x, g)), lambda x, f, g: x + gate(x, g) * (f(x) - x)),
    "addcmul": (lambda x, f, g: torch.addcmul(x, f(x), gate(x, g)), lambda x, f, g: x + f(x) * gate(x, g)),
    "maximum": (lambda x, f, g: torch.max(f(x), g(x)), lambda x, f, g: torch.maximum(f(x), g(x))),
    "divisor": (
        lambda x, f, g: g(x).square().add(1).rsqrt() * f(x),
        lambda x, f, g: f(x) / g(x).square().add(1).sqrt(),
    ),
    "mask": (lambda x, f, g: (g(x) > -9).to(x.dtype) * f(x), lambda x, f, g: f(x) * (g(x) > -9)),
    "bounds": (
        lambda x, f, g: f(x).clamp(max=gate(x, g)),
        lambda x, f, g: torch.clamp_max(f(x), gate(PROBE, g).detach()),
    ),
}
PROBE = public_probe((4,)).double()


@pytest.mark.parametrize("readout", READOUTS)
@pytest.mark.parametrize("name", SPELT)
def test_two_spellings_of_one_operation_show_the_same(name, readout):
    keys = randn(KEYS, 4)
    one, other = (transpose(Forward(forward), BLANK, readout=readout)(keys) for forward in SPELT[name])
    torch.testing.assert_close(one, other, **TOLERANCE)
    assert one.abs().amax(1).min() > 1e-3


def test_complex_weights_are_conjugated():
    class Layers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            about = {"bias": False, "dtype": torch.complex128}
            self.first, self.last = nn.Linear(6, 6, **about), nn.Conv1d(1, 2, 3, **about)
            self.back = nn.ConvTranspose1d(2, 1, 3, **about)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x.to(torch.complex128)).conj()
            x = torch.sub(x, x * 1j, alpha=0.5j)
            return torch.view_as_real(self.back(self.last(x[:, None]))).flatten(1)

    model, y = Layers(), randn(KEYS, 12)
    image = transpose(model, torch.zeros(1, 6, dtype=torch.float64), readout="adjoint")(y)
    torch.testing.assert_close(image, dense_transpose(model, (6,), y), **TOLERANCE)


@pytest.mark.parametrize("readout", READOUTS)
def test_a_fourier_neural_operator_that_writes_its_frequencies_is_read_and_trained(readout):
    class Operator(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(2, 3, 3, 3, dtype=torch.complex128))
            self.beside = nn.Conv2d(2, 3, 1).double()

        def forward(self, x: Tensor) -> Tensor:
            found = torch.zeros(len(x), 3, 8, 5, dtype=torch.complex128)
            found[:, :, :3, :3] = torch.einsum("bixy,ioxy->boxy", torch.fft.rfft2(x)[:, :, :3, :3], self.weight)
            return torch.fft.irfft2(found, s=(8, 8)) + self.beside(x)

    model, y = Operator(), randn(KEYS, 3, 8, 8)
    back = transpose(model, torch.zeros(1, 2, 8, 8, dtype=torch.float64), readout=readout)
    back(y).square().sum().backward()
    assert model.beside.weight.grad is not None and bool(model.beside.weight.grad.abs().max() > 0)
    if readout == "adjoint":
        assert model.weight.grad is not None
        torch.testing.assert_close(back(y), dense_transpose(model, (2, 8, 8), y), **TOLERANCE)


@pytest.mark.parametrize(
    "forward",
    [
        lambda x, f, g: g(f(x).softmax(0)),
        lambda x, f, g: f(x).flip(0),
        lambda x, f, g: f(x)[torch.arange(len(x)), torch.full((len(x),), 2)][:, None] * torch.ones(1, 2).to(x),
        lambda x, f, g: f(x) * F.gumbel_softmax(g(x)),
        lambda x, f, g: f(x) * torch.randn_like(x),
    ],
)
def test_what_mixes_images_or_draws_numbers_is_refused(forward):
    with pytest.raises(TransposeError, match="the picture of a key depends on other keys, or on chance"):
        transpose(Forward(forward), BLANK, readout="adjoint")


def test_numbers_that_carry_no_signal_are_told():
    with pytest.raises(TransposeError, match=r"no signal can come.*inputs of torch.int64"):
        transpose(nn.Sequential(nn.Embedding(10, 4), nn.Flatten()), torch.zeros(1, 3, dtype=torch.long))
    with pytest.raises(TransposeError, match=r"no signal can come.*an output of whole numbers' making"):
        transpose(Forward(lambda x, f, g: (f(x) > 0) * 2.0 - 1), BLANK)
    with pytest.raises(TransposeError, match="scaled_dot_product_attention.*the signal has nowhere to go on to"):
        stored = torch.randn(1, 5, 4, dtype=torch.float64)
        transpose(Forward(lambda x, f, g: F.scaled_dot_product_attention(f(x)[:, None], stored, stored)), BLANK)


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:Please use quant_min and quant_max:UserWarning")
def test_training_for_whole_numbers_lets_the_signal_through():
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    model.qconfig = torch.ao.quantization.get_default_qat_qconfig("fbgemm")
    aware = torch.ao.quantization.prepare_qat(model.train())
    aware(torch.randn(8, 4))
    keys = torch.randn(KEYS, 3)
    image = transpose(aware.eval(), torch.zeros(1, 4), readout="adjoint")(keys)
    first, last = (layer.weight_fake_quant(layer.weight) for layer in (aware[0], aware[2]))
    torch.testing.assert_close(image, (keys @ last).relu() @ first)


def test_the_size_of_a_complex_number_has_no_rule():
    class Spectrum(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.fft.rfft(x).abs()

    with pytest.raises(TransposeError, match=r"abs.*its rule is one for real numbers"):
        transpose(Spectrum(), torch.zeros(1, 6), readout="adjoint")


def test_of_thousands_of_gaps_the_first_are_named():
    class OneByOne(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([2 * row for row in x])

    with pytest.raises(TransposeError, match=r"unbind.*it mixes the images of a batch(?s:.*)and \d{4} more"):
        transpose(OneByOne(), torch.zeros(1, 4), readout="adjoint")


# ---------------------------------------------------------------------------------------------------- the tables


@pytest.mark.parametrize("readout", READOUTS)
def test_every_rule_has_a_case(readout):
    tried = {operation(node) for at in range(len(CASES)) for node in captured(at).signals}
    elsewhere = {"aten::_native_batch_norm_legit_no_training", "aten::alias", "aten::copy", "aten::_unsafe_view"}
    composed = ("_softmax", "_log_softmax", "_fft_r2c", "_fft_c2r", "_fft_c2c", "_to_copy", "_conj")
    composed += ("view_as_real", "view_as_complex", "complex", "real", "imag")
    composed += ("fused_moving_avg_obs_fake_quant", "_fused_moving_avg_obs_fq_helper_functional")
    composed += tuple(f"_fake_quantize_learnable_per_{kind}_affine" for kind in ("tensor", "channel"))
    elsewhere |= {f"aten::{name}" for name in composed}
    assert sorted(set(READOUTS[readout].rules) - tried - elsewhere) == []


def test_every_convention_has_a_formula_and_every_formula_a_rule():
    conventions = {
        rule.name for table in READOUTS.values() for rule in table.rules.values() if rule.label == "convention"
    }
    assert conventions == set(CONVENTIONS)


@pytest.mark.parametrize("readout", READOUTS)
def test_every_rule_names_its_source(readout):
    rules = READOUTS[readout].rules.values()
    assert all(entry.source for entry in rules)
    assert {entry.label for entry in rules} == {"adjoint", "convention", "passthrough"}


def test_only_convolutions_and_linear_layers_are_weighted():
    weighted = {name for table in READOUTS.values() for name, rule in table.rules.items() if rule.weighted}
    convolutions = {f"aten::conv{kind}{axes}d" for kind in ("", "_transpose") for axes in (1, 2, 3)}
    assert weighted == {"aten::linear"} | convolutions


def test_a_second_rule_for_an_operation_raises():
    with pytest.raises(TransposeError, match="aten::relu has a rule in the 'adjoint' readout already"):
        register_vjp_rule(torch.ops.aten.relu, label="passthrough", source="a test", readouts=("adjoint",))(
            lambda y, x: y
        )


def test_a_readout_is_a_table_of_rules_that_anybody_can_make():
    rules = dict(READOUTS["adjoint"].rules)
    rules["aten::relu"] = Rule(lambda y, x: 2 * y, "convention", "a test")
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU()).double()
    back = transpose(model, torch.zeros(1, 4, dtype=torch.float64), readout=Readout("doubled", rules))
    keys = randn(KEYS, 3)
    assert back.readout == "doubled"
    torch.testing.assert_close(back(keys), 2 * keys @ model[0].weight, **TOLERANCE)


# -------------------------------------------------------------------------------------------------------- modules

MODULES = [
    *((make, INPUTS[1]) for make in (lambda: nn.Conv1d(4, 6, 3, stride=2, groups=2), lambda: nn.BatchNorm1d(4))),
    *((make, INPUTS[2]) for make in (lambda: nn.Conv2d(4, 6, 3, padding="same", dilation=2), nn.Identity)),
    (lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"), INPUTS[2]),
    (lambda: nn.Conv3d(4, 6, 2, stride=2, bias=False), INPUTS[3]),
    (lambda: nn.ConvTranspose2d(4, 2, 3, stride=2), INPUTS[2]),
    (lambda: nn.BatchNorm2d(4, eps=1e-2), INPUTS[2]),
    *((make, IMAGE) for make in (lambda: nn.PixelShuffle(2), lambda: nn.ChannelShuffle(2), lambda: nn.Flatten(2))),
    *((make, IMAGE) for make in (lambda: nn.Upsample(scale_factor=2), lambda: nn.Unflatten(1, (2, 2)))),
    *((make, IMAGE) for make in (nn.ReLU, nn.PReLU, nn.GELU, nn.Tanhshrink, nn.SiLU, nn.ReLU6, nn.Softplus)),
    (lambda: nn.ZeroPad2d(1), IMAGE),
]


@pytest.mark.parametrize(("make", "shape"), [pytest.param(*c, id=type(c[0]()).__name__) for c in MODULES])
def test_a_module_is_its_operations(make, shape):
    layer = make().double().eval()
    y = torch.randn_like(layer(torch.zeros(KEYS, *shape, dtype=torch.float64)))
    image = transpose(layer, torch.zeros(1, *shape, dtype=torch.float64), readout="adjoint")(y)
    activation = type(layer).__module__.endswith("activation")
    torch.testing.assert_close(image, layer(y) if activation else dense_transpose(layer, shape, y), **TOLERANCE)


@pytest.mark.parametrize("readout", READOUTS)
def test_batch_norm_after_a_change_in_place_is_the_same_rule(readout):
    class Overwriting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(4)
            nn.init.uniform_(self.norm.weight, 0.5, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.norm(x) @ torch.eye(6, dtype=torch.float64)
            x[:, 0] = 3 * x[:, 0]
            return x.detach()

    model, plain = Overwriting().double(), nn.BatchNorm2d(4).double()
    plain.load_state_dict(model.norm.state_dict())
    y = randn(KEYS, *INPUTS[2])
    tripled = y.clone()
    tripled[:, 0] *= 3
    back, expected = (
        transpose(m, torch.zeros(1, *INPUTS[2], dtype=torch.float64), readout=readout) for m in (model, plain)
    )
    torch.testing.assert_close(back(y), expected(tripled), **TOLERANCE)


def test_adjoint_batch_norm_needs_running_statistics():
    with pytest.raises(TransposeError, match="running statistics.*readout='paper'"):
        transpose(nn.BatchNorm2d(4, track_running_stats=False), torch.zeros(1, *INPUTS[2]), readout="adjoint")


class Doubled(nn.Linear):
    """Runs a forward of its own."""

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, 2 * self.weight, self.bias)


def test_a_subclass_with_a_forward_of_its_own_is_run_backwards_as_it_computes():
    layer = Doubled(4, 3).double()
    back = transpose(layer, torch.zeros(1, 4, dtype=torch.float64), readout="adjoint")
    keys = randn(KEYS, 3)
    torch.testing.assert_close(back(keys), keys @ (2 * layer.weight), **TOLERANCE)
