"""One or more cases for every rule: how the forward operation is called, in all spellings that people use.

A rule without a case fails the suite. All numbers are float64 and drawn from one seed.
"""

import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

GENERATOR = torch.Generator().manual_seed(0)


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=GENERATOR)


def positive(*shape: int) -> Tensor:
    return randn(*shape).abs() + 0.5


@dataclass(frozen=True, eq=False)
class Case:
    """A call of `function` (a callable, or the name of a tensor method) on one input of `shape`, batch left out.

    The arguments are the input and `args`, or what `pack` makes of the input. Of several tensors that come out, the
    first is taken, or the `parts` first are joined into one row.
    """

    function: Any
    shape: tuple[int, ...]
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    pack: Callable[[Any], tuple[Any, ...]] | None = None
    parts: int = 0

    def forward(self, x: Tensor) -> Any:
        first, *others = (x, *self.args) if self.pack is None else self.pack(x)
        function = (
            operator.methodcaller(self.function, *others, **self.kwargs) if isinstance(self.function, str) else None
        )
        found = function(first) if function else self.function(first, *others, **self.kwargs)
        if self.parts == 1:
            return found[0]
        return torch.cat([part.flatten(1) for part in found[: self.parts]], 1) if self.parts else found

    def __str__(self) -> str:
        name = self.function if isinstance(self.function, str) else self.function.__name__
        shown = (list(a.shape) if isinstance(a, Tensor) else a for a in (*self.args, *self.kwargs.values()))
        return f"{'.' * isinstance(self.function, str)}{name}({', '.join(map(str, (list(self.shape), *shown)))})"


def repeated(values: Tensor, x: Tensor) -> Tensor:
    """`values` ``[1, ...]`` once for each input."""
    return values.expand(x.shape[0], *values.shape[1:])


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


CONVOLUTIONS = [
    case for axes, function in enumerate((F.conv1d, F.conv2d, F.conv3d), 1) for case in convolutions(function, axes)
]
TRANSPOSED = [
    Case(function, INPUTS[axes], (randn(4, 3, *[3] * axes), *bias), geometry)
    for axes, function in enumerate((F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d), 1)
    for bias, geometry in (
        ((randn(3),), {}),
        ((), {"stride": 2, "padding": 1, "output_padding": 1}),
        ((randn(6),), {"groups": 2, "dilation": 2}),
    )
]

NORMALISATIONS = [
    Case(F.batch_norm, IMAGE, (randn(4), positive(4), positive(4), randn(4))),
    Case(F.batch_norm, IMAGE, (randn(4), positive(4), positive(4), randn(4), False, 0.1, 1e-2)),
    Case(F.batch_norm, (4,), (randn(4), positive(4))),
    Case(F.layer_norm, IMAGE, ((7,), positive(7), randn(7))),
    Case(F.layer_norm, IMAGE, ((6, 7), positive(6, 7), randn(6, 7), 1e-2)),
    Case(F.layer_norm, (4,), ((4,),)),
    Case(F.group_norm, IMAGE, (2, positive(4), randn(4))),
    Case(F.group_norm, IMAGE, (1,), {"eps": 1e-2}),
    Case(F.rms_norm, IMAGE, ((7,), positive(7))),
    Case(F.rms_norm, (4,), ((4,),)),
    Case(F.instance_norm, IMAGE, (None, None, positive(4), randn(4))),
    Case(F.instance_norm, IMAGE),
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
INDEXED = [
    Case(function, INPUTS[axes], (2,), {"return_indices": True}, parts=1)
    for axes, functions in {
        1: (F.max_pool1d, F.adaptive_max_pool1d),
        2: (F.max_pool2d, F.adaptive_max_pool2d),
        3: (F.max_pool3d, F.adaptive_max_pool3d),
    }.items()
    for function in functions
]

DRAWN = {axes: torch.rand(1, 4, axes, generator=GENERATOR, dtype=torch.float64) for axes in (2, 3)}
INDEXED += [
    Case(f, INPUTS[axes], pack=lambda x, drawn=DRAWN[axes]: (x, 2, 2, None, True, repeated(drawn, x)), parts=1)
    for f, axes in ((F.fractional_max_pool2d, 2), (F.fractional_max_pool3d, 3))
]

MEANS = [
    Case(torch.amin, IMAGE, ((2, 3),)),
    Case(torch.logsumexp, IMAGE, (1,)),
    Case(torch.min, IMAGE, (2,), parts=1),
    Case(torch.median, IMAGE, (2, True), parts=1),
    Case(torch.linalg.vector_norm, IMAGE, (3, 2)),
    Case("norm", IMAGE, (), {"dim": 1, "keepdim": True}),
    *(Case(f, IMAGE, (1,)) for f in (torch.std, torch.var)),
    *(Case(f, IMAGE, ((2, 3),), {"correction": 0, "keepdim": True}) for f in (torch.std, torch.var)),
    Case(torch.std, IMAGE, (1, False, True)),
    Case(torch.max, IMAGE, (2,), parts=1),
    Case("max", IMAGE, (-1, True), parts=1),
    Case(torch.amax, IMAGE, ((2, 3),)),
    Case("amax", IMAGE, (1,), {"keepdim": True}),
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
SPELLINGS: dict[Any, tuple[Any, ...]] = {
    F.celu: (torch.celu,),
    F.hardshrink: ("hardshrink",),
    F.prelu: ("prelu",),
    F.relu: (torch.relu, torch.relu_, "relu", "relu_"),
    F.selu: (torch.selu,),
    F.sigmoid: (torch.sigmoid, "sigmoid", "sigmoid_"),
    F.tanh: (torch.tanh, "tanh", "tanh_"),
    F.threshold: (torch.threshold,),
} | dict.fromkeys(
    (
        *(F.elu, F.gelu, F.hardsigmoid, F.hardswish, F.hardtanh, F.leaky_relu, F.logsigmoid, F.mish, F.relu6),
        *(F.silu, F.softplus, F.softshrink),
    ),
    (),
)
ELEMENTWISE = [
    Case(spelling, IMAGE, args, pack=(lambda x, args=args: (x.clone(), *args)))
    for function, others in SPELLINGS.items()
    for args in SETTINGS.get(function, ((),))
    for spelling in (function, *others)
] + [
    Case(F.gelu, IMAGE, (), {"approximate": "tanh"}),
    Case(F.relu, IMAGE, (), {"inplace": True}, pack=lambda x: (x.clone(),)),
    Case(torch.clamp, IMAGE, (-0.5, 0.7)),
    Case("clamp_min", IMAGE, (0.1,)),
    *(Case(torch.pow, IMAGE, (2,)), Case("square", IMAGE)),
    Case("clamp_max", IMAGE, (0.1,)),
    *(
        Case(f, IMAGE)
        for f in (torch.sin, torch.cos, torch.tan, torch.atan, torch.asinh, torch.cosh, torch.exp, torch.abs)
    ),
    *(Case(f, IMAGE) for f in (torch.erf, torch.erfc, torch.exp2)),
    *(Case(f, IMAGE, (randn(4, 1, 1),)) for f in (torch.maximum, torch.minimum, torch.fmax, torch.fmin, torch.max)),
    Case(torch.maximum, IMAGE, pack=lambda x, c=randn(4, 1, 1): (c, x)),
    *(Case(torch.flip, IMAGE, pack=lambda x, f=f: (f(x, 1), (2,))) for f in (F.softmax, F.log_softmax)),
    Case("clip", IMAGE, (-0.5, 0.7)),
    *(Case(f, IMAGE, (0.1, 0.4), {"training": training}) for f in (F.rrelu, torch.rrelu) for training in (True, False)),
]

STRAIGHT = [
    *(Case(f, IMAGE) for f in (torch.sqrt, torch.log, torch.log1p, torch.log2, torch.log10)),
    *(Case(f, IMAGE) for f in (torch.sign, torch.round, torch.floor, torch.ceil, torch.trunc, torch.nan_to_num)),
    Case(torch.fake_quantize_per_tensor_affine, IMAGE, (0.1, 0, -128, 127)),
    Case(
        torch.fake_quantize_per_channel_affine,
        IMAGE,
        (torch.full((4,), 0.1), torch.zeros(4, dtype=torch.int32), 1, -128, 127),
    ),
]

DROPOUTS = [
    Case(function, INPUTS[axes], (0.3, training))
    for function, axes in {
        **{F.dropout: 2, F.dropout1d: 1, F.dropout2d: 2, F.dropout3d: 3},
        **{F.alpha_dropout: 2, F.feature_alpha_dropout: 2},
    }.items()
    for training in (True, False)
]

RESHAPES = [
    Case(torch.flatten, IMAGE, (1,)),
    Case("flatten", IMAGE, (2,)),
    Case(torch.reshape, IMAGE, ((-1, 42, 4),)),
    Case("reshape", IMAGE, (-1, 42, 4)),
    Case("view", IMAGE, (-1, 8, 21)),
    *(Case(f, IMAGE, pack=lambda x: (x, torch.empty(x.shape[0], 8, 21))) for f in ("reshape_as", "view_as")),
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
    *(Case(torch.clone, IMAGE), Case("clone", IMAGE), Case("detach", IMAGE), Case("type_as", IMAGE, (randn(1),))),
    Case("contiguous", IMAGE, pack=lambda x: (x.transpose(1, 2),)),
    Case("to", IMAGE, pack=lambda x: (x.float(), torch.float64)),
]


def placed(x: Tensor) -> Tensor:
    """Some channels, written to the places of others."""
    blank = torch.zeros_like(x)
    blank[:, PLACES[:2]] = x[:, 1:3]
    return blank


PLACES, CORNERS = torch.tensor([2, 0, 2]), torch.tensor([0, 3, 9, 10, 17, 22])
MOVES = [
    Case(torch.chunk, IMAGE, (2, 1), parts=2),
    Case("chunk", IMAGE, (2,), {"dim": 1}, parts=1),
    Case(torch.split, IMAGE, ([1, 3], 1), parts=2),
    Case("split", IMAGE, (2, 1), parts=2),
    Case(torch.tensor_split, IMAGE, (3, 1), parts=3),
    Case(torch.unbind, (2, 5), (1,), parts=2),
    Case("unbind", (2, 5), (-2,), parts=2),
    *(Case(f, IMAGE, ((1, -2), (2, 3))) for f in (torch.roll, "roll")),
    *(Case(f, IMAGE, ((1, 3),)) for f in (torch.flip, "flip")),
    *(Case(f, IMAGE, (2, 1, 3)) for f in (torch.narrow, "narrow")),
    *(Case(f, IMAGE, (1, 3)) for f in (torch.moveaxis, torch.movedim, torch.swapaxes, torch.swapdims)),
    *(Case(f, IMAGE, (1, 3)) for f in ("moveaxis", "movedim", "swapaxes")),
    Case("expand", (4, 1, 7), (-1, -1, 6, -1)),
    Case("expand_as", (4, 1, 7), pack=lambda x, c=randn(4, 6, 7): (x, repeated(c[None], x))),
    Case("repeat", (4, 3), (1, 2, 2)),
    Case(torch.tile, (4, 3), ((1, 2),)),
    Case(torch.repeat_interleave, (4, 3), (2, 1)),
    Case("select", IMAGE, (2, 3)),
    Case(torch.index_select, IMAGE, (1, PLACES)),
    Case(torch.gather, (4, 3), pack=lambda x: (x, 1, repeated(PLACES[None, :, None], x).expand(-1, -1, 3))),
    Case(torch.as_strided, (6,), pack=lambda x: (x, (x.shape[0], 2, 3), (6, 3, 1))),
    Case("unfold", IMAGE, (2, 2, 2)),
    Case(torch.t, (5,), pack=lambda x: (x.t(),)),
    Case(getattr, (4, 5), ("mT",)),
    Case(getattr, (5,), pack=lambda x: (x.t(), "T")),
    Case(torch.adjoint, (4, 5)),
    Case(torch.diagonal, (4, 4), (0, 1, 2)),
    Case(torch.tril, (4, 4)),
    Case(torch.triu, (4, 4), (1,)),
    Case(torch.rot90, IMAGE, (1, (2, 3))),
    Case(F.pad, IMAGE, ((1, 2, 0, 1),)),
    Case(F.pad, IMAGE, ((1, 2, 0, 1),), {"mode": "reflect"}),
    Case(F.pad, IMAGE, ((1, 2, 0, 1),), {"mode": "circular"}),
    Case(torch.constant_pad_nd, IMAGE, ((1, 1),)),
    *(
        Case(F.interpolate, INPUTS[axes], (), {"scale_factor": 2, "mode": mode})
        for axes, modes in {
            1: ("nearest", "nearest-exact", "linear"),
            2: ("nearest", "nearest-exact", "bilinear", "bicubic"),
            3: ("nearest", "nearest-exact", "trilinear"),
        }.items()
        for mode in modes
    ),
    Case(F.interpolate, IMAGE, ((9, 4),)),
    Case(F.interpolate, IMAGE, ((9, 4),), {"mode": "bilinear", "antialias": True}),
    Case(F.interpolate, IMAGE, ((9, 4),), {"mode": "bicubic", "antialias": True}),
    Case(F.pixel_shuffle, IMAGE, (2,)),
    Case(F.pixel_unshuffle, (2, 4, 6), (2,)),
    Case(F.channel_shuffle, IMAGE, (2,)),
    Case(F.unfold, IMAGE, (3,), {"padding": 1}),
    Case(F.fold, (8, 6), ((3, 4), 2)),
    Case(torch.cumsum, IMAGE, (1,)),
    Case(torch.sum, IMAGE, ((2, 3),)),
    Case("sum", IMAGE, (1, True)),
    Case(torch.masked_fill, IMAGE, (randn(6, 7) > 0, 0.0)),
    Case(torch.fill, IMAGE, pack=lambda x: (x.clone(), 0.0)),
    Case(torch.index_add, IMAGE, pack=lambda x: (torch.zeros_like(x), 1, PLACES, x[:, 1:])),
    Case(torch.index_copy, IMAGE, pack=lambda x: (torch.zeros_like(x), 1, PLACES[:2], x[:, 1:3])),
    Case(placed, IMAGE),
    *(
        Case(
            f,
            (4, 3),
            pack=lambda x: (torch.zeros_like(x), 1, repeated(PLACES[None, :, None], x).expand(-1, -1, 3), x[:, 1:]),
        )
        for f in (torch.scatter, torch.scatter_add)
    ),
    Case(torch.diag_embed, (4, 3)),
    Case(F.grid_sample, IMAGE, (), {"align_corners": False}, lambda x, g=randn(1, 5, 4, 2): (x, repeated(g, x))),
    Case(F.max_unpool2d, (1, 3, 2), pack=lambda x: (x, repeated(CORNERS.view(1, 1, 3, 2), x), 2)),
    Case(F.max_unpool3d, (1, 3, 2, 1), pack=lambda x: (x, repeated(CORNERS.view(1, 1, 3, 2, 1), x), 2)),
    Case(torch.where, IMAGE, pack=lambda x, m=randn(6, 7) > 0: (m, x, torch.zeros_like(x))),
    Case(torch.slice_scatter, IMAGE, pack=lambda x: (torch.zeros_like(x), x[:, 1:3], 1, 1, 3)),
    Case(torch.select_scatter, IMAGE, pack=lambda x: (torch.zeros_like(x), x[:, 1], 1, 3)),
    Case(operator.getitem, IMAGE, ((slice(None), 0),)),
    Case(operator.getitem, IMAGE, ((slice(None), PLACES),)),
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
    + [Case(torch.rsub, IMAGE, (2.5,)), Case(torch.rsub, IMAGE, (randn(4, 1, 7),), {"alpha": 0.5})]
    + [Case(torch.rsub, IMAGE, kwargs={"alpha": 0.5}, pack=lambda x, c=randn(1, *IMAGE): (c, x))]
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
    Case(torch.matmul, (4, 5), (randn(5),)),
    Case(torch.mm, (5,), pack=lambda x, c=randn(5, 3): (x, c)),
    Case(F.bilinear, (6,), pack=lambda x, w=randn(3, 6, 2): (x, torch.ones_like(x[:, :2]), w)),
    Case(torch.einsum, (4, 5), pack=lambda x, c=randn(1, 3, 4): ("n i j, n j d -> n i d", c, x)),
    Case(torch.einsum, (3, 4), pack=lambda x, c=randn(4, 2): ("nij,jd->nid", x, c)),
]

QUERY, KEY, MASK = randn(1, 2, 5, 3), randn(1, 2, 6, 3), randn(5, 6)
ATTENTION = [
    Case(F.scaled_dot_product_attention, (2, 6, 4), pack=lambda v: (QUERY, KEY, v)),
    Case(F.scaled_dot_product_attention, (2, 6, 4), (), {"attn_mask": MASK, "scale": 0.3}, lambda v: (QUERY, KEY, v)),
    Case(F.scaled_dot_product_attention, (2, 6, 4), (), {"attn_mask": MASK > -1}, lambda v: (QUERY, KEY, v)),
    Case(F.scaled_dot_product_attention, (2, 6, 4), (), {"is_causal": True}, lambda v: (QUERY, KEY, v)),
    Case(
        F.scaled_dot_product_attention,
        (1, 6, 4),
        (),
        {"enable_gqa": True},
        lambda v: (QUERY, repeated(KEY[:, :1], v), v),
    ),
]


def filtered(x: Tensor, response: Tensor) -> Tensor:
    """A filter in the frequencies."""
    return torch.fft.irfft2(torch.fft.rfft2(x) * response, s=x.shape[-2:])


def mixed(x: Tensor) -> Tensor:
    """The real part of what all frequencies hold."""
    return torch.fft.fft2(x).real + torch.fft.ifft2(x).imag


def turned(x: Tensor, angle: float) -> Tensor:
    """Pairs of numbers as complex ones, turned."""
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * torch.polar(torch.ones(()), torch.tensor(angle)).to(pairs)).flatten(-2)


def paired(x: Tensor) -> Tensor:
    """Complex numbers made of two real ones, through a matrix and over a divisor."""
    return torch.view_as_real(torch.complex(x, 2 * x) @ torch.complex(EYE, EYE.flip(0)) / (1 + 2j))


EYE = torch.eye(6, dtype=torch.float64)
COMPOSED = [
    Case(filtered, (4, 6), (torch.complex(randn(4, 4), randn(4, 4)),)),
    Case(mixed, (4, 6)),
    *(Case(turned, (4, 6), (0.7,)), Case(paired, (4, 6))),
    *(Case(f, (4, 6), (randn(6),)) for f in (torch.multiply, torch.divide, torch.inner)),
    Case(torch.lerp, (4, 6), pack=lambda x: (x, x.flip(2), 0.3)),
    Case(torch.addcmul, IMAGE, pack=lambda x, c=randn(1, 4, 1, 1), b=randn(1, 4, 1, 1): (b, c, x)),
    Case(torch.tensordot, (4, 6), (randn(6, 4, 3),), {"dims": ([2, 1], [0, 1])}),
    Case(torch.addmm, (6,), (randn(6, 3),), {"alpha": 0.5, "beta": 2}, lambda x, w=randn(6, 3): (x[:, :3], x, w)),
    Case(torch.baddbmm, (4, 6), pack=lambda x, w=randn(1, 6, 4): (torch.zeros(1, 4, 4).to(x), x, repeated(w, x))),
    *(Case(f, (4, 6), pack=lambda x: ((x, 2 * x),)) for f in (torch.hstack, torch.dstack)),
    Case(torch.diff, (4, 6)),
]
"""What torch composes of operations that have a rule: without one of its own, it is run backwards as these are."""

CASES = [
    *(
        *LINEAR,
        *CONVOLUTIONS,
        *TRANSPOSED,
        *NORMALISATIONS,
        *POOLS,
        *INDEXED,
        *MEANS,
        *ELEMENTWISE,
        *STRAIGHT,
        *DROPOUTS,
        *RESHAPES,
        *IDENTITIES,
    ),
    *(*MOVES, *SUMS, *PRODUCTS, *ATTENTION),
]
