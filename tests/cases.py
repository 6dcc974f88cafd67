"""One or more cases for every registered rule, and one for every module: how the forward function is called.

A rule without a case fails the suite. All numbers are float64 and drawn from one seed.
"""

import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.swin_transformer import _patch_merging_pad
from torchvision.ops import stochastic_depth

from clearstamp.rules import ACTIVATIONS, CONV, DROPOUT
from clearstamp.vision import from_windows, to_windows

GENERATOR = torch.Generator().manual_seed(0)


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=GENERATOR)


def positive(*shape: int) -> Tensor:
    return randn(*shape).abs() + 0.5


@dataclass(frozen=True)
class Case:
    """A call of `function` (a callable, or the name of a tensor method) on one input of `shape`, batch left out.

    The arguments are the input and `args`, or what `pack` makes of the input.
    """

    function: Any
    shape: tuple[int, ...]
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    pack: Callable[[Any], tuple[Any, ...]] | None = None

    def arguments(self, x: Any) -> tuple[Any, ...]:
        return (x, *self.args) if self.pack is None else self.pack(x)

    def forward(self, x: Tensor) -> Any:
        first, *others = self.arguments(x)
        if isinstance(self.function, str):
            return getattr(first, self.function)(*others, **self.kwargs)
        return self.function(first, *others, **self.kwargs)

    def backwards(self, rule: Callable[..., Any], y: Tensor) -> Tensor:
        recorded = torch.empty(2, *self.shape, dtype=torch.float64, device="meta")
        image = rule(y, *self.arguments(recorded), **self.kwargs)
        return image[0] if isinstance(image, tuple) else image

    def __str__(self) -> str:
        name = self.function if isinstance(self.function, str) else self.function.__name__
        shown = (list(a.shape) if isinstance(a, Tensor) else a for a in (*self.args, *self.kwargs.values()))
        return f"{'.' * isinstance(self.function, str)}{name}({', '.join(map(str, (list(self.shape), *shown)))})"


@dataclass(frozen=True)
class Parts(Case):
    """A call that gives several tensors, of these shapes without the batch; joined here into one row."""

    parts: tuple[tuple[int, ...], ...] = ()

    def forward(self, x: Tensor) -> Tensor:
        found = super().forward(x)
        return torch.cat([found[i].flatten(1) for i in range(len(self.parts))], 1)

    def backwards(self, rule: Callable[..., Any], y: Tensor) -> Tensor:
        pieces = y.split([prod(shape) for shape in self.parts], 1)
        signal = tuple(p.reshape(-1, *shape) for p, shape in zip(pieces, self.parts, strict=True))
        return super().backwards(rule, signal)  # type: ignore[arg-type]


def repeated(values: Tensor, x: Any) -> Tensor:
    """`values` ``[1, ...]`` once for each input; a rule gets what is frozen just once."""
    return values if isinstance(x, Tensor) and x.is_meta else values.expand(x.shape[0], *values.shape[1:])


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
    Case(F.group_norm, IMAGE, (2, positive(4), randn(4))),
    Case(F.group_norm, IMAGE, (1,), {"eps": 1e-2}),
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

MEANS = [
    Case(torch.mean, IMAGE, ((2, 3),)),
    Case(torch.mean, IMAGE, (-1, True)),
    Case("mean", IMAGE, ([2, 3],)),
    Case("mean", (5, 4), (1,), {"keepdim": True}),
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

IDENTITIES = [
    *(Case(torch.clone, IMAGE), Case("clone", IMAGE), Case("contiguous", IMAGE)),
    *(Case(stochastic_depth, IMAGE, (0.3, mode, training)) for mode in ("row", "batch") for training in (True, False)),
]

HALVES = ((2, 6, 7), (2, 6, 7))
MOVES = [
    Parts(torch.chunk, IMAGE, (2, 1), parts=HALVES),
    Parts("chunk", IMAGE, (2,), {"dim": 1}, parts=HALVES),
    Parts(torch.split, IMAGE, ([1, 3], 1), parts=((1, 6, 7), (3, 6, 7))),
    Parts("split", IMAGE, (2, 1), parts=HALVES),
    Parts(torch.unbind, (2, 5), (1,), parts=((5,), (5,))),
    Parts("unbind", (2, 5), (-2,), parts=((5,), (5,))),
    *(Case(f, IMAGE, ((1, -2), (2, 3))) for f in (torch.roll, "roll")),
    *(Case(f, IMAGE, ((1, 3),)) for f in (torch.flip, "flip")),
    *(Case(f, IMAGE, (2, 1, 3)) for f in (torch.narrow, "narrow")),
    *(
        Case(f, IMAGE, (1, 3))
        for f in (*(torch.moveaxis, torch.movedim, torch.swapaxes), *("moveaxis", "movedim", "swapaxes"))
    ),
    Case("expand", (4, 1, 7), (-1, -1, 6, -1)),
    Case("repeat", (4, 3), (1, 2, 2)),
    Case("select", IMAGE, (2, 3)),
    Case(F.pad, IMAGE, ((1, 2, 0, 1),)),
    Case(F.pad, IMAGE, ((1, 2, 0, 1),), {"mode": "reflect"}),
    Case(F.interpolate, IMAGE, ((9, 4),)),
    Case(F.interpolate, IMAGE, (), {"scale_factor": 2, "mode": "bilinear", "align_corners": False}),
    Case(F.pixel_shuffle, IMAGE, (2,)),
    Case(F.pixel_unshuffle, (2, 4, 6), (2,)),
    Case(F.channel_shuffle, IMAGE, (2,)),
    Case(F.unfold, IMAGE, (3,), {"padding": 1}),
    Case(F.fold, (8, 6), ((3, 4), 2)),
    Case(_patch_merging_pad, (5, 6, 4)),
    Case(to_windows, (5, 6, 4), ((2, 3), (1, 1))),
    Case(from_windows, (6, 6, 4), pack=lambda x: (x, torch.zeros(1, 5, 6, 4), (2, 3), (1, 1))),
    Case(operator.getitem, IMAGE, ((slice(None), 0),)),
    Case(operator.getitem, IMAGE, ((..., slice(1, None, 2), slice(None)),)),
    *(Case(f, IMAGE, pack=lambda x, c=randn(1, 2, 6, 7): ([repeated(c, x), x], 1)) for f in (torch.cat, torch.concat)),
    Case(torch.stack, IMAGE, pack=lambda x, c=randn(1, *IMAGE): ([x, repeated(c, x)], 2)),
]

SUMS = (
    [
        case
        for method, in_place, functions in (
            ("add", "add_", (operator.add, operator.iadd, torch.add)),
            ("sub", "sub_", (operator.sub, operator.isub, torch.sub)),
        )
        for function in (*functions, method, in_place)
        for case in (
            Case(function, IMAGE, pack=lambda x, c=randn(4, 1, 7): (x.clone(), c)),
            Case(function, IMAGE, pack=lambda x: (x.clone(), 2.5)),
        )
    ]
    + [
        Case(function, IMAGE, pack=lambda x, c=randn(1, *IMAGE): (c, x))
        for function in (operator.add, torch.add, operator.sub, torch.sub)
    ]
    + [Case(torch.add, IMAGE, kwargs={"alpha": 0.3}, pack=lambda x, c=randn(1, *IMAGE): (c, x))]
)
PRODUCTS = [
    *(
        Case(function, IMAGE, pack=lambda x, c=c: (x.clone(), c))
        for function in (operator.mul, operator.imul, torch.mul, "mul", "mul_")
        for c in (randn(4, 1, 1), -3.0)
    ),
    Case(operator.mul, (4, 1, 7), pack=lambda x, c=randn(1, 4, 6, 7): (c, x)),  # broadcast forward, summed backwards
    *(
        Case(function, IMAGE, pack=lambda x: (x.clone(), 4.0))
        for function in (operator.truediv, operator.itruediv, torch.div, "div")
    ),
    *(Case(function, IMAGE) for function in (operator.neg, torch.neg, "neg")),
    *(
        Case(function, (4, 5), pack=lambda x, c=randn(1, 5, 3): (x, c))
        for function in (operator.matmul, torch.matmul, "matmul")
    ),
    *(Case(function, (4, 5), pack=lambda x, c=randn(1, 5, 3): (x, repeated(c, x))) for function in (torch.bmm, "bmm")),
    Case(torch.matmul, (4, 5), pack=lambda x, c=randn(1, 3, 4): (c, x)),
    Case(torch.einsum, (4, 5), pack=lambda x, c=randn(1, 3, 4): ("n i j, n j d -> n i d", c, x)),
    Case(torch.einsum, (3, 4), pack=lambda x, c=randn(4, 2): ("nij,jd->nid", x, c)),
]

QUERY, KEY, MASK = randn(1, 2, 5, 3), randn(1, 2, 6, 3), randn(5, 6)
ATTENTION = [
    Case(F.scaled_dot_product_attention, (2, 6, 4), pack=lambda v: (QUERY, KEY, v)),
    Case(F.scaled_dot_product_attention, (2, 6, 4), (), {"attn_mask": MASK, "scale": 0.3}, lambda v: (QUERY, KEY, v)),
    Case(F.scaled_dot_product_attention, (2, 6, 4), (), {"attn_mask": MASK > -1}, lambda v: (QUERY, KEY, v)),
    Case(F.scaled_dot_product_attention, (2, 6, 4), (), {"is_causal": True}, lambda v: (QUERY, KEY, v)),
]

CASES = [
    *(*LINEAR, *CONVOLUTIONS, *NORMALISATIONS, *POOLS, *MEANS, *ELEMENTWISE, *DROPOUTS, *RESHAPES, *IDENTITIES),
    *(*MOVES, *SUMS, *PRODUCTS, *ATTENTION),
]

MODULE_CASES: list[tuple[Callable[[], nn.Module], tuple[int, ...]]] = [
    # how the module is made, and the shape of one input
    (lambda: nn.Linear(4, 3), (4,)),
    (lambda: nn.Conv1d(4, 6, 3, stride=2, padding=1, groups=2), INPUTS[1]),
    (lambda: nn.Conv2d(4, 6, 3, padding="same", dilation=2), INPUTS[2]),
    (lambda: nn.Conv3d(4, 6, 2, stride=2, bias=False), INPUTS[3]),
    (lambda: nn.BatchNorm1d(4), INPUTS[1]),
    (lambda: nn.BatchNorm2d(4, eps=1e-2), INPUTS[2]),
    (lambda: nn.BatchNorm3d(4), INPUTS[3]),
    (lambda: nn.LayerNorm(7, eps=1e-2), IMAGE),
    (lambda: nn.GroupNorm(2, 4), IMAGE),
    (lambda: nn.PixelShuffle(2), IMAGE),
    (lambda: nn.PixelUnshuffle(2), (2, 4, 6)),
    (lambda: nn.ChannelShuffle(2), IMAGE),
    (lambda: nn.Upsample(scale_factor=2), IMAGE),
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
