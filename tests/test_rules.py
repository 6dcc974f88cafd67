"""Every rule against a slow reference, and the tables of rules against the cases."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clearstamp import rules
from clearstamp.errors import TransposeError
from clearstamp.rules import ACTIVATIONS, MODULES, READOUTS, module_type, rule
from clearstamp.transpose import transpose
from clearstamp.vision import from_windows, to_windows
from tests.cases import CASES, MODULE_CASES, Case, randn
from tests.reference import CONVENTIONS, dense_transpose

TOLERANCE = {"rtol": 1e-10, "atol": 1e-10}  # of float64 sums of at most a few hundred terms
KEYS = 3  # another batch size than the recorded one

# torch warns, once, that its forward pass copies the input for an even kernel with padding='same'
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")

PAIRS = [pytest.param(readout, case, id=f"{readout}-{case}") for readout in READOUTS for case in CASES]


def labelled(label: str) -> list:
    return [p for p in PAIRS if READOUTS[p.values[0]][p.values[1].function].label == label]


def backwards(readout: str, case: Case, y: Tensor) -> Tensor:
    return case.backwards(READOUTS[readout][case.function].apply, y)


def inputs(case: Case) -> Tensor:
    return torch.randn(KEYS, *case.shape, dtype=torch.float64)


def signals(case: Case) -> Tensor:
    """Random signals of the shape of the case's output."""
    return torch.randn_like(case.forward(inputs(case)))


# --------------------------------------------------------------------------------------------------- the formulas


@pytest.mark.parametrize(("readout", "case"), labelled("adjoint"))
def test_adjoint_is_the_dense_transpose(readout, case):
    y = signals(case)
    torch.testing.assert_close(backwards(readout, case, y), dense_transpose(case.forward, case.shape, y), **TOLERANCE)


@pytest.mark.parametrize(("readout", "case"), labelled("adjoint"))
def test_adjoint_keeps_the_inner_product(readout, case):
    x, y = inputs(case), signals(case)
    linear_part = case.forward(x) - case.forward(torch.zeros_like(x))
    torch.testing.assert_close((linear_part * y).sum(), (x * backwards(readout, case, y)).sum(), **TOLERANCE)


@pytest.mark.parametrize(("readout", "case"), labelled("convention"))
def test_convention_follows_its_formula(readout, case):
    y = signals(case)
    formula = CONVENTIONS[READOUTS[readout][case.function].name]
    torch.testing.assert_close(backwards(readout, case, y), formula(case, y), **TOLERANCE)


@pytest.mark.parametrize(("readout", "case"), labelled("passthrough"))
def test_passthrough_is_the_forward_function(readout, case):
    y = signals(case)
    untouched = y.clone()
    torch.manual_seed(1)
    image = backwards(readout, case, y)
    assert torch.equal(y, untouched), "a rule must not work in place"
    torch.manual_seed(1)
    torch.testing.assert_close(image, case.forward(y), rtol=0, atol=0)


@pytest.mark.parametrize(("readout", "case"), PAIRS)
def test_every_rule_gives_the_recorded_shape_for_any_number_of_keys(readout, case):
    assert backwards(readout, case, signals(case)).shape == (KEYS, *case.shape)


@pytest.mark.parametrize("readout", READOUTS)
def test_convolution_refuses_padding_with_values(readout):
    case = Case(F.conv2d, (1, 4, 4), (randn(1, 1, 3, 3), None), {"padding": 1, "padding_mode": "circular"})
    with pytest.raises(TransposeError, match="padding_mode='circular'.*zeros"):
        backwards(readout, case, randn(1, 1, 4, 4))


def test_pooling_refuses_indices():
    with pytest.raises(TransposeError, match="indices"):
        backwards("paper", Case(F.max_pool2d, (1, 4, 4), (2,), {"return_indices": True}), randn(1, 1, 2, 2))


def test_adjoint_batch_norm_needs_running_statistics():
    with pytest.raises(TransposeError, match="running statistics.*readout='paper'"):
        backwards("adjoint", Case(F.batch_norm, (4,), (None, None)), randn(1, 4))


# ----------------------------------------------------------------------------------------------------- the tables


@pytest.mark.parametrize("readout", READOUTS)
def test_every_rule_has_a_case_and_every_case_a_rule(readout):
    assert set(READOUTS[readout]) == {case.function for case in CASES}


def test_every_convention_has_a_formula_and_every_formula_a_rule():
    conventions = {rule.name for table in READOUTS.values() for rule in table.values() if rule.label == "convention"}
    assert conventions == set(CONVENTIONS)


def test_every_module_has_a_case_and_stands_for_a_rule():
    assert set(MODULES) == {type(make()) for make, _ in MODULE_CASES}
    assert {function for function, _ in MODULES.values()} <= set(READOUTS["paper"])


def test_every_elementwise_activation_of_torch_is_declared():
    across_features = {"GLU", "MultiheadAttention", "Softmax", "Softmax2d", "LogSoftmax", "Softmin"}
    declared = {kind.__name__ for kind in (*ACTIVATIONS, nn.RReLU)}
    assert declared == set(nn.modules.activation.__all__) - across_features


@pytest.mark.parametrize("readout", READOUTS)
def test_every_rule_names_its_source(readout):
    assert all(entry.source for entry in READOUTS[readout].values())
    assert {entry.label for entry in READOUTS[readout].values()} == {"adjoint", "convention", "passthrough"}


def test_only_convolutions_and_linear_layers_are_weighted():
    weighted = {function for table in READOUTS.values() for function, rule in table.items() if rule.weighted}
    assert weighted == {F.linear, F.conv1d, F.conv2d, F.conv3d}


def test_a_second_rule_for_a_function_raises(monkeypatch):
    monkeypatch.setattr(rules, "READOUTS", {"paper": dict(READOUTS["paper"]), "adjoint": dict(READOUTS["adjoint"])})
    with pytest.raises(TransposeError, match="relu.*has a rule in the 'adjoint' readout already"):
        rule(F.relu, label="passthrough", source="a test", readouts=("adjoint",))(lambda y, x: y)


def test_a_second_declaration_of_a_module_raises():
    with pytest.raises(TransposeError, match="Linear is declared already"):
        rules.module(F.linear, "weight bias", nn.Linear)


# ---------------------------------------------------------------------------------------------------- in a model


class Call(nn.Module):
    """A model that makes the call of one case."""

    def __init__(self, case: Case):
        super().__init__()
        self.case = case

    def forward(self, x: Tensor) -> Tensor:
        return torch.flatten(self.case.forward(x), 1)


ELSEWHERE = (to_windows, from_windows, torch.cat, torch.concat, torch.stack, torch.bmm, "bmm")
"""Tested in whole models in test_architectures.py: their other arguments are as many as the inputs, or are wrapped."""


@pytest.mark.parametrize(("readout", "case"), [p for p in PAIRS if p.values[1].function not in ELSEWHERE])
def test_every_function_and_method_finds_its_rule_in_a_model(readout, case):
    y = signals(case)
    back = transpose(Call(case), torch.zeros(1, *case.shape, dtype=torch.float64), readout=readout)
    still = case
    if "training" in READOUTS[readout][case.function].signature.parameters:  # the readout, whatever the call said
        still = deterministic(case)
    torch.testing.assert_close(back(y.flatten(1)), backwards(readout, still, y), rtol=0, atol=0)


def deterministic(case: Case) -> Case:
    """The same call in evaluation mode."""
    if "training" in case.kwargs:
        return replace(case, kwargs=case.kwargs | {"training": False})
    return replace(case, args=tuple(False if a is True else a for a in case.args))


@pytest.mark.parametrize("readout", READOUTS)
@pytest.mark.parametrize(("make", "shape"), [pytest.param(*c, id=type(c[0]()).__name__) for c in MODULE_CASES])
def test_every_module_is_its_functional_form(readout, make, shape):
    layer = make().double()
    function, attributes = MODULES[type(layer)]
    example = torch.zeros(1, *shape, dtype=torch.float64)
    back = transpose(nn.Sequential(layer, nn.Flatten()), example, readout=readout)
    y = torch.randn(KEYS, *layer.eval()(example).shape[1:], dtype=torch.float64)
    arguments = {name: getattr(layer, name) for name in attributes}
    entry = READOUTS[readout][function]
    if "training" in entry.signature.parameters:
        arguments["training"] = False
    expected = entry.apply(y, torch.empty(2, *shape, device="meta"), **arguments)
    torch.testing.assert_close(back(y.flatten(1)), expected, rtol=0, atol=0)
    if entry.label == "adjoint":
        torch.testing.assert_close(expected, dense_transpose(layer, shape, y), **TOLERANCE)
    if entry.label == "passthrough":
        torch.testing.assert_close(expected, layer(y), rtol=0, atol=0)


# ------------------------------------------------------------------------------------------------------ subclasses


class Renamed(nn.Linear):
    """Runs the forward of its base."""


class Doubled(nn.Linear):
    """Runs a forward of its own."""

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, 2 * self.weight, self.bias)


def test_a_subclass_is_its_base_only_if_it_runs_its_forward():
    assert module_type(Renamed(4, 3)) is nn.Linear
    assert module_type(Doubled(4, 3)) is None
    assert module_type(nn.Softmax(1)) is None


def test_a_subclass_with_a_forward_of_its_own_is_run_backwards_as_it_computes():
    layer = Doubled(4, 3).double()
    back = transpose(nn.Sequential(layer), torch.zeros(1, 4, dtype=torch.float64), readout="adjoint")
    keys = randn(KEYS, 3)
    torch.testing.assert_close(back(keys), keys @ (2 * layer.weight), **TOLERANCE)
