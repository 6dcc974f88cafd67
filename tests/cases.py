"""One or more cases for every registered rule, and one for every module: how the forward function is called.

A rule without a case fails the suite. All numbers are float64 and drawn from one seed.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clearstamp.rules import ACTIVATIONS, CONV, DROPOUT

GENERATOR = torch.Generator().manual_seed(0)


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=GENERATOR)


def positive(*shape: int) -> Tensor:
    return randn(*shape).abs() + 0.5


@dataclass(frozen=True)
class Case:
    """A call of `function` (a callable, or the name of a tensor method) on one input of `shape`, batch left out."""

    function: Any
    shape: tuple[int, ...]
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.function, str):
            return getattr(x, self.function)(*self.args, **self.kwargs)
        return self.function(x, *self.args, **self.kwargs)

    def __str__(self) -> str:
        name = self.function if isinstance(self.function, str) else self.function.__name__
        shown = (list(a.shape) if isinstance(a, Tensor) else a for a in (*self.args, *self.kwargs.values()))
        return f"{'.' * isinstance(self.function, str)}{name}({', '.join(map(str, (list(self.shape), *shown)))})"


IMAGE = (4, 6, 7)
INPUTS = {1: (4, 9), 2: (4, 7, 6), 3: (4, 5, 4, 6)}  # by the number of spatial axes

LINEAR = [
    Case(F.linear, (4,), (randn(3, 4), randn(3))),
    Case(F.linear, (4,), (randn(3, 4),)),
    Case(F.linear, (5, 4), (randn(3, 4), randn(3))),
]

GEOMETRIES: list[dict[str, Any]] = [
    {},
    {"stride": 2},
    {"stride": 3, "padding": 1},
    {"padding": 2, "dilation": 2},
    {"stride": 2, "padding": 1, "dilation": 2, "groups": 2},
    {"groups": 4},
    {"padding": "valid"},
    {"padding": "same"},
    {"padding": "same", "dilation": 2},
]


def convolutions(function: Any, axes: int) -> list[Case]:
    def case(kernel: int, bias: Tensor | None, geometry: dict[str, Any]) -> Case:
        weight = randn(8, 4 // geometry.get("groups", 1), *[kernel] * axes)
        return Case(function, INPUTS[axes], (weight,) if bias is None else (weight, bias), geometry)

    uneven = {"stride": tuple(range(1, axes + 1)), "padding": tuple(range(axes))}
    odd = [case(3, randn(8), geometry) for geometry in (*GEOMETRIES, uneven) if fits(geometry, axes)]
    return [
        *odd,
        case(2, randn(8), {"stride": 2}),
        case(2, randn(8), {"padding": "same"}),
        case(3, None, {"padding": 1}),
    ]


def fits(geometry: dict[str, Any], axes: int) -> bool:
    """A kernel of 3 with dilation 2 reaches over 5 pixels, which the 3-d input holds only when it is padded."""
    return axes < 3 or geometry.get("dilation", 1) == 1 or bool(geometry.get("padding"))


CONVOLUTIONS = [case for axes, function in enumerate(CONV, 1) for case in convolutions(function, axes)]

NORMALISATIONS = [
    Case(F.batch_norm, IMAGE, (randn(4), positive(4), positive(4), randn(4))),
    Case(F.batch_norm, IMAGE, (randn(4), positive(4), positive(4), randn(4), False, 0.1, 1e-2)),
    Case(F.batch_norm, (4,), (randn(4), positive(4))),
    Case(F.layer_norm, IMAGE, ((7,), positive(7), randn(7))),
    Case(F.layer_norm, IMAGE, ((6, 7), positive(6, 7), randn(6, 7), 1e-2)),
    Case(F.layer_norm, (4,), ((4,),)),
]

POOLS = [
    Case(function, INPUTS[axes], args, kwargs)
    for axes, functions in {
        1: (F.max_pool1d, torch.max_pool1d, F.avg_pool1d),
        2: (F.max_pool2d, torch.max_pool2d, F.avg_pool2d),
        3: (F.max_pool3d, torch.max_pool3d, F.avg_pool3d),
    }.items()
    for function in functions
    for args, kwargs in [((2,), {}), ((3, 2, 1), {}), ((3,), {"stride": 2, "ceil_mode": True})]
] + [
    Case(function, INPUTS[axes], (size,))
    for axes, function in {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}.items()
    for size in (1, 3)
]

SETTINGS: dict[Any, tuple[tuple[Any, ...], ...]] = {
    # arguments other than the defaults; the first are those of a function that has no defaults
    F.celu: ((), (0.5,)),
    F.elu: ((), (0.5,)),
    F.hardshrink: ((), (0.2,)),
    F.hardtanh: ((), (-0.3, 0.4)),
    F.leaky_relu: ((), (0.3,)),
    F.prelu: ((positive(1),), (positive(4),)),
    F.softplus: ((), (2.0, 1.0)),
    F.softshrink: ((), (0.2,)),
    F.threshold: ((0.1, -2.0),),
}
ELEMENTWISE = [
    Case(spelling, IMAGE, args)
    for function, _, spellings in ACTIVATIONS.values()
    for args in SETTINGS.get(function, ((),))
    for spelling in (function, *spellings)
] + [
    Case(F.gelu, IMAGE, (), {"approximate": "tanh"}),
    Case(F.relu, IMAGE, (), {"inplace": True}),
    *(Case(f, IMAGE, (0.1, 0.4), {"training": training}) for f in (F.rrelu, torch.rrelu) for training in (True, False)),
]

DROPOUTS = [
    Case(function, INPUTS[1 if function is F.dropout1d else 3 if function is F.dropout3d else 2], (0.3, training))
    for function in DROPOUT.values()
    for training in (True, False)
]

RESHAPES = [
    Case(torch.flatten, IMAGE, (1,)),
    Case("flatten", IMAGE, (2,)),
    Case(torch.reshape, IMAGE, ((-1, 42, 4),)),
    Case("reshape", IMAGE, (-1, 42, 4)),
    Case("view", IMAGE, (-1, 8, 21)),
    Case(torch.unflatten, IMAGE, (1, (2, 2))),
    Case("unflatten", IMAGE, (1, (2, 2))),
    Case(torch.squeeze, (4, 1, 6), (2,)),
    Case("squeeze", (4, 1, 6), (2,)),
    Case(torch.unsqueeze, IMAGE, (2,)),
    Case("unsqueeze", IMAGE, (-1,)),
    Case(torch.permute, IMAGE, ((0, 2, 3, 1),)),
    Case("permute", IMAGE, (0, 3, 1, 2)),
    Case("permute", IMAGE, ((0, -1, 1, 2),)),
    Case(torch.transpose, IMAGE, (1, 3)),
    Case("transpose", IMAGE, (-1, 2)),
]

IDENTITIES = [Case(torch.clone, IMAGE), Case("clone", IMAGE), Case("contiguous", IMAGE)]

CASES = [*LINEAR, *CONVOLUTIONS, *NORMALISATIONS, *POOLS, *ELEMENTWISE, *DROPOUTS, *RESHAPES, *IDENTITIES]

MODULE_CASES: list[tuple[Callable[[], nn.Module], tuple[int, ...]]] = [
    # how the module is made, and the shape of one input
    (lambda: nn.Linear(4, 3), (4,)),
    (lambda: nn.Conv1d(4, 6, 3, stride=2, padding=1, groups=2), INPUTS[1]),
    (lambda: nn.Conv2d(4, 6, 3, padding="same", dilation=2), INPUTS[2]),
    (lambda: nn.Conv3d(4, 6, 2, stride=2, bias=False), INPUTS[3]),
    (lambda: nn.BatchNorm1d(4), INPUTS[1]),
    (lambda: nn.BatchNorm2d(4, eps=1e-2), INPUTS[2]),
    (lambda: nn.LayerNorm(7, eps=1e-2), IMAGE),
    *((lambda kind=kind: kind(3, 2, 1), INPUTS[1]) for kind in (nn.MaxPool1d, nn.AvgPool1d)),
    *((lambda kind=kind: kind(3, 2, 1), INPUTS[2]) for kind in (nn.MaxPool2d, nn.AvgPool2d)),
    *((lambda kind=kind: kind(3, 2, 1), INPUTS[3]) for kind in (nn.MaxPool3d, nn.AvgPool3d)),
    (lambda: nn.AdaptiveAvgPool1d(3), INPUTS[1]),
    (lambda: nn.AdaptiveAvgPool2d((1, 3)), INPUTS[2]),
    (lambda: nn.AdaptiveAvgPool3d(1), INPUTS[3]),
    *((kind, IMAGE) for kind in ACTIVATIONS if kind is not nn.Threshold),
    (lambda: nn.PReLU(4), IMAGE),
    (lambda: nn.GELU("tanh"), IMAGE),
    (lambda: nn.Threshold(0.1, -2.0), IMAGE),
    (lambda: nn.RReLU(0.1, 0.4), IMAGE),
    *((kind, INPUTS[2]) for kind in DROPOUT if kind not in (nn.Dropout1d, nn.Dropout3d)),
    (nn.Dropout1d, INPUTS[1]),
    (nn.Dropout3d, INPUTS[3]),
    (nn.Identity, IMAGE),
    (lambda: nn.Flatten(2), IMAGE),
    (lambda: nn.Unflatten(1, (2, 2)), IMAGE),
]
