"""Rules: how one layer is run backwards.

A rule takes the signal at a layer's output and then **exactly the arguments of the forward function**, where the
input tensor is replaced by a meta tensor of its recorded shape. It returns the signal at the layer's input:

    forward          F.linear(x, weight, bias)
    its rule         linear(y, x, weight, bias)  ->  signal shaped like x, batch size taken from y

Where several arguments are computed from the model's input, the rule says which of them **carry** the signal on. Each
of these is a meta tensor, and the rule returns a tuple of one signal for each, in their order. The others are frozen:
they come as the values ``[1, ...]`` that they have on the public probe (see `clearstamp.transpose.public_probe`).

A parameter named ``training`` receives the mode of the walk, whatever the forward call said. A rule refuses a setting
that it does not cover by raising `TransposeError`.

Every rule carries one of three labels:

- ``adjoint``: the exact transpose of the layer's linear part, so <Ax, y> = <x, A'y>;
- ``convention``: a formula that the paper (or this library) lays down;
- ``passthrough``: the signal goes through the layer's own forward function, or through untouched.

Two readouts, ``paper`` (as published) and ``adjoint`` (invariant to rescaling hidden ReLU units), are two tables of
rules over one walk. A module is its functional form with its attributes as arguments: `MODULES` says which.
"""

import inspect
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from clearstamp.errors import TransposeError

Label = Literal["adjoint", "convention", "passthrough"]
PAPER = "Krauß, Stang, Dmitrienko, USENIX Security 2024"


@dataclass(frozen=True)
class Rule:
    """A rule with its label, the source of its formula, whether it has weights, and what carries the signal on.

    `carries` is ``"all"``: every argument that depends on the model's input; ``"factor"``: of two such arguments the
    one that is not a gate; ``"deepest"``: the one with the most weighted layers behind it; or a parameter's name.
    """

    apply: Callable[..., Any]
    label: Label
    source: str
    weighted: bool = False
    carries: str = "all"

    @property
    def name(self) -> str:
        return self.apply.__name__

    @property
    def signature(self) -> inspect.Signature:
        return inspect.signature(self.apply)


READOUTS: dict[str, dict[Any, Rule]] = {"paper": {}, "adjoint": {}}
"""For each readout, the rule of every forward function and (by name) tensor method."""

MODULES: dict[type[nn.Module], tuple[Any, tuple[str, ...]]] = {}
"""For each module type, the forward function it stands for and the attributes that are its arguments."""


def rule(
    *functions: Any,
    label: Label,
    source: str,
    readouts: tuple[str, ...] = ("paper", "adjoint"),
    weighted: bool = False,
    carries: str = "all",
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register the decorated rule for forward `functions` (callables, or names of tensor methods).

    `weighted` marks layers that hooks of hardening treat as a transposed layer of their own (the extra dropout); for
    `carries` see `Rule`. Raises `TransposeError` if a function has a rule already.
    """

    def register(apply: Callable[..., Any]) -> Callable[..., Any]:
        entry = Rule(apply, label, source, weighted, carries)
        for readout in readouts:
            for function in functions:
                if function in READOUTS[readout]:
                    raise TransposeError(f"{function} has a rule in the {readout!r} readout already")
                READOUTS[readout][function] = entry
        return apply

    return register


def module(function: Any, attributes: str, *types: type[nn.Module]) -> None:
    """Declare that modules of `types` are `function` with their `attributes` (space-separated) as arguments."""
    for kind in types:
        if kind in MODULES:
            raise TransposeError(f"{kind.__name__} is declared already")
        MODULES[kind] = (function, tuple(attributes.split()))


def module_type(layer: nn.Module) -> type[nn.Module] | None:
    """The declared type whose `forward` this layer runs; None where there is none or it was overridden."""
    for kind in type(layer).__mro__:
        if kind in MODULES:
            return kind if type(layer).forward is kind.forward else None
    return None


# ------------------------------------------------------------------------------------------------ linear layers


@rule(F.linear, label="convention", source=f"{PAPER}", readouts=("paper",), weighted=True)
def linear_paper(y: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """(y - b) W for a forward layer y = x W' + b."""
    return (y if bias is None else y - bias) @ weight


@rule(F.linear, label="adjoint", source="transpose of the linear part", readouts=("adjoint",), weighted=True)
def linear(y: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """y W for a forward layer y = x W' + b."""
    return y @ weight


module(F.linear, "weight bias", nn.Linear)


# ------------------------------------------------------------------------------------------------- convolutions

CONV = {F.conv1d: F.conv_transpose1d, F.conv2d: F.conv_transpose2d, F.conv3d: F.conv_transpose3d}


def per_axis(value: int | tuple[int, ...], axes: int) -> tuple[int, ...]:
    return (value,) * axes if isinstance(value, int) else tuple(value)


@rule(*CONV, label="adjoint", source="transpose of the linear part", readouts=("adjoint",), weighted=True)
def convolution(
    y: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
) -> Tensor:
    """conv_transpose(y, W) with the forward layer's geometry, cut or padded to the recorded input shape."""
    if padding_mode != "zeros":
        raise TransposeError(
            "convolution pads with values of its input",
            got=f"padding_mode={padding_mode!r}",
            expected="padding_mode='zeros'",
            remedy="pad with zeros",
        )
    axes = x.dim() - 2
    kernel, stride, dilation = weight.shape[2:], per_axis(stride, axes), per_axis(dilation, axes)
    reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    if padding == "same":  # an odd total puts the extra zero at the far end: the cut below removes it
        padding = tuple(r // 2 for r in reach)
    padding = (0,) * axes if padding == "valid" else per_axis(padding, axes)
    natural = [(n - 1) * s - 2 * p + r + 1 for n, s, p, r in zip(y.shape[2:], stride, padding, reach, strict=True)]
    missing = tuple(max(size - n, 0) for size, n in zip(x.shape[2:], natural, strict=True))
    transposed = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}[axes]
    image = transposed(y, weight, None, stride, padding, missing, groups, dilation)
    recorded: Any = (..., *(slice(size) for size in x.shape[2:]))
    return image[recorded]


@rule(*CONV, label="convention", source=f"{PAPER}", readouts=("paper",), weighted=True)
def convolution_paper(
    y: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None, *geometry: Any, **named: Any
) -> Tensor:
    """conv_transpose(y - b, W): the bias, one per output channel, is taken off first."""
    signal = y if bias is None else y - per_channel(bias, y)
    return convolution(signal, x, weight, None, *geometry, **named)


module(F.conv1d, "weight bias stride padding dilation groups padding_mode", nn.Conv1d)
module(F.conv2d, "weight bias stride padding dilation groups padding_mode", nn.Conv2d)
module(F.conv3d, "weight bias stride padding dilation groups padding_mode", nn.Conv3d)


# ------------------------------------------------------------------------------------------------ normalisation


def per_channel(values: Tensor, signal: Tensor) -> Tensor:
    """[channels] -> [channels, 1, ...], so that it broadcasts over a signal [batch, channels, ...]."""
    return values.reshape(-1, *[1] * (signal.dim() - 2))


def undo_affine(y: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """(y - beta) sqrt(1 + eps) / gamma: the inverse of a normalisation whose mean is 0 and whose variance is 1."""
    signal = y if bias is None else y - bias
    return signal * (1 + eps) ** 0.5 / (1 if weight is None else weight)


@rule(F.batch_norm, label="convention", source=f"{PAPER}: E = 0, Var = 1", readouts=("paper",))
def batch_norm_paper(
    y: Tensor,
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float | None = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """(y - beta) sqrt(1 + eps) / gamma per channel."""
    gamma, beta = (v if v is None else per_channel(v, y) for v in (weight, bias))
    return undo_affine(y, gamma, beta, eps)


@rule(F.batch_norm, label="adjoint", source="transpose of the folded layer", readouts=("adjoint",))
def batch_norm(
    y: Tensor,
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float | None = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """y gamma / sqrt(running variance + eps) per channel: the layer as it is folded for inference."""
    if running_var is None:
        raise TransposeError(
            "batch norm without running statistics is not a fixed linear layer",
            got="track_running_stats=False",
            remedy="use readout='paper', or keep running statistics",
        )
    scale = torch.rsqrt(running_var + eps)
    return y * per_channel(scale if weight is None else weight * scale, y)


@rule(F.layer_norm, label="convention", source=f"{PAPER}: E = 0, Var = 1", readouts=("paper",))
def layer_norm_paper(
    y: Tensor,
    x: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """(y - beta) sqrt(1 + eps) / gamma per feature."""
    return undo_affine(y, weight, bias, eps)


@rule(F.layer_norm, label="convention", source="scale of the layer at unit variance", readouts=("adjoint",))
def layer_norm(
    y: Tensor,
    x: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """y gamma per feature."""
    return y if weight is None else y * weight


@rule(F.group_norm, label="convention", source="as batch norm: E = 0, Var = 1", readouts=("paper",))
def group_norm_paper(
    y: Tensor, x: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """(y - beta) sqrt(1 + eps) / gamma per channel."""
    gamma, beta = (v if v is None else per_channel(v, y) for v in (weight, bias))
    return undo_affine(y, gamma, beta, eps)


@rule(F.group_norm, label="convention", source="scale of the layer at unit variance", readouts=("adjoint",))
def group_norm(
    y: Tensor, x: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """y gamma per channel."""
    return y if weight is None else y * per_channel(weight, y)


module(
    F.batch_norm,
    "running_mean running_var weight bias momentum eps",
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
)
module(F.layer_norm, "normalized_shape weight bias eps", nn.LayerNorm)
module(F.group_norm, "num_groups weight bias eps", nn.GroupNorm)


# ------------------------------------------------------------------------------------------------------ pooling

MAX_POOL = (F.max_pool1d, F.max_pool2d, F.max_pool3d, torch.max_pool1d, torch.max_pool2d, torch.max_pool3d)
AVERAGE_POOL = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)
ADAPTIVE_POOL = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)


@rule(*MAX_POOL, *AVERAGE_POOL, *ADAPTIVE_POOL, label="convention", source=f"{PAPER}")
def pooling(y: Tensor, x: Tensor, *geometry: Any, return_indices: bool = False, **named: Any) -> Tensor:
    """Nearest-neighbour interpolation to the recorded input size."""
    if return_indices:
        raise TransposeError(
            "pooling hands its indices to another layer", got="return_indices=True", expected="return_indices=False"
        )
    if y.dim() == 4 and y.is_cpu:
        y = y.contiguous(memory_format=torch.channels_last)  # interpolated several times faster there
    return F.interpolate(y, size=x.shape[2:], mode="nearest")


@rule(torch.mean, "mean", label="convention", source="global average pooling")
def mean(y: Tensor, x: Tensor, dim: Any, keepdim: bool = False) -> Tensor:
    """The signal at every place that the mean was taken of, as in pooling."""
    axes = sorted(d % x.dim() for d in ((dim,) if isinstance(dim, int) else dim))
    for axis in axes if not keepdim else ():
        y = y.unsqueeze(axis)
    return y.expand(len(y), *x.shape[1:])


for dim, (max_type, average_type, adaptive_type) in enumerate(
    [
        (nn.MaxPool1d, nn.AvgPool1d, nn.AdaptiveAvgPool1d),
        (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d),
        (nn.MaxPool3d, nn.AvgPool3d, nn.AdaptiveAvgPool3d),
    ]
):
    module(MAX_POOL[dim], "kernel_size stride padding dilation ceil_mode return_indices", max_type)
    module(AVERAGE_POOL[dim], "kernel_size stride padding ceil_mode count_include_pad", average_type)
    module(ADAPTIVE_POOL[dim], "output_size", adaptive_type)


# -------------------------------------------------------------------------------------------------- activations

ACTIVATIONS: dict[type[nn.Module], tuple[Any, str, tuple[Any, ...]]] = {
    # module: functional form, its arguments, other spellings
    nn.CELU: (F.celu, "alpha", (torch.celu,)),
    nn.ELU: (F.elu, "alpha", ()),
    nn.GELU: (F.gelu, "approximate", ()),
    nn.Hardshrink: (F.hardshrink, "lambd", ("hardshrink",)),
    nn.Hardsigmoid: (F.hardsigmoid, "", ()),
    nn.Hardswish: (F.hardswish, "", ()),
    nn.Hardtanh: (F.hardtanh, "min_val max_val", ()),
    nn.LeakyReLU: (F.leaky_relu, "negative_slope", ()),
    nn.LogSigmoid: (F.logsigmoid, "", ()),
    nn.Mish: (F.mish, "", ()),
    nn.PReLU: (F.prelu, "weight", ("prelu",)),
    nn.ReLU: (F.relu, "", (torch.relu, torch.relu_, "relu", "relu_")),
    nn.ReLU6: (F.relu6, "", ()),
    nn.SELU: (F.selu, "", (torch.selu,)),
    nn.SiLU: (F.silu, "", ()),
    nn.Sigmoid: (F.sigmoid, "", (torch.sigmoid, "sigmoid", "sigmoid_")),
    nn.Softplus: (F.softplus, "beta threshold", ()),
    nn.Softshrink: (F.softshrink, "lambd", ()),
    nn.Softsign: (F.softsign, "", ()),
    nn.Tanh: (F.tanh, "", (torch.tanh, "tanh", "tanh_")),
    nn.Tanhshrink: (F.tanhshrink, "", ()),
    nn.Threshold: (F.threshold, "threshold value", (torch.threshold,)),
}
"""Every elementwise activation of torch.nn."""

SHAPE_ALONE = (
    *(torch.zeros_like, torch.ones_like, torch.full_like, torch.empty_like),
    *("new_zeros", "new_ones", "new_full", "new_empty"),
)
"""What takes nothing of its argument but shape, type and device."""

GATES: tuple[Any, ...] = (
    *(F.softmax, torch.softmax, "softmax", nn.Softmax, F.sigmoid, torch.sigmoid, "sigmoid", "sigmoid_", nn.Sigmoid),
    *(F.hardsigmoid, nn.Hardsigmoid),
)
"""What gives a gate its values: of two factors, the one that comes out of one of these is the gate."""


def activation_rule(function: Any) -> Callable[..., Tensor]:
    def activation(y: Tensor, x: Tensor, *args: Any, inplace: bool = False, **named: Any) -> Tensor:
        return function(y, *args, **named)  # never in place: the signal may be needed elsewhere

    activation.__name__ = function.__name__
    activation.__doc__ = f"{function.__name__} of the signal, with the forward layer's own settings."
    return activation


for kind, (function, attributes, spellings) in ACTIVATIONS.items():
    module(function, attributes, kind)
    rule(function, *spellings, label="passthrough", source=f"{PAPER}")(activation_rule(function))


@rule(F.rrelu, torch.rrelu, label="passthrough", source=f"{PAPER}")
def rrelu(
    y: Tensor, x: Tensor, lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False, inplace: bool = False
) -> Tensor:
    """rrelu of the signal: random slopes in training mode, their mean otherwise."""
    return F.rrelu(y, lower, upper, training)


module(F.rrelu, "lower upper", nn.RReLU)


# ------------------------------------------------------------------------------------------------------ dropout

DROPOUT = {
    nn.Dropout: F.dropout,
    nn.Dropout1d: F.dropout1d,
    nn.Dropout2d: F.dropout2d,
    nn.Dropout3d: F.dropout3d,
    nn.AlphaDropout: F.alpha_dropout,
    nn.FeatureAlphaDropout: F.feature_alpha_dropout,
}


def dropout_rule(function: Any) -> Callable[..., Tensor]:
    def dropout(y: Tensor, x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        return function(y, p, training)

    dropout.__name__ = function.__name__
    dropout.__doc__ = f"{function.__name__} of the signal in training mode, nothing otherwise."
    return dropout


for kind, function in DROPOUT.items():
    module(function, "p", kind)
    rule(function, label="passthrough", source=f"{PAPER}")(dropout_rule(function))


# ------------------------------------------------------------------------------------------------------- shapes


@rule(
    torch.flatten,
    torch.reshape,
    torch.unflatten,
    torch.squeeze,
    torch.unsqueeze,
    *("flatten", "reshape", "view", "unflatten", "squeeze", "unsqueeze"),
    label="adjoint",
    source="a reshape is its own inverse's transpose",
)
def reshape(y: Tensor, x: Tensor, *shape: Any, **named: Any) -> Tensor:
    """Back to the recorded shape; the batch stays first."""
    return y.reshape(len(y), *x.shape[1:])


@rule(torch.permute, "permute", label="adjoint", source="a permutation's transpose is its inverse")
def permute(y: Tensor, x: Tensor, *dims: Any) -> Tensor:
    """The inverse permutation."""
    order = [int(d) % x.dim() for d in (dims[0] if len(dims) == 1 else dims)]
    if order[0] != 0:
        raise TransposeError("the batch axis does not stay first", got=f"axes {order}")
    return y.permute(*sorted(range(x.dim()), key=order.__getitem__))


@rule(torch.transpose, "transpose", label="adjoint", source="a transposition is its own inverse")
def transpose(y: Tensor, x: Tensor, dim0: int, dim1: int) -> Tensor:
    """The same two axes swapped again."""
    if 0 in (dim0 % x.dim(), dim1 % x.dim()):
        raise TransposeError("the batch axis does not stay first", got=f"axes {dim0} and {dim1} swapped")
    return y.transpose(dim0, dim1)


@rule(torch.clone, "clone", "contiguous", label="passthrough", source="the layer changes nothing")
def identity(y: Tensor, x: Tensor, **named: Any) -> Tensor:
    """The signal, untouched."""
    return y


module(torch.clone, "", nn.Identity)
module(torch.flatten, "start_dim end_dim", nn.Flatten)
module(torch.unflatten, "dim unflattened_size", nn.Unflatten)


def moves(function: Any) -> None:
    """Register the exact transpose of a linear function of one tensor, which torch's autograd knows."""

    def moved(y: Any, x: Tensor, *args: Any, **named: Any) -> Tensor:
        values = next(iter(y)) if isinstance(y, tuple) else y

        def forward(image: Tensor) -> Any:
            found = (
                getattr(image, function)(*args, **named)
                if isinstance(function, str)
                else function(image, *args, **named)
            )
            return tuple(found) if isinstance(y, tuple) else found

        back = torch.func.vjp(forward, values.new_zeros(len(values), *x.shape[1:]))[1]
        return back(y)[0]

    moved.__name__ = function if isinstance(function, str) else function.__name__
    moved.__doc__ = "Every number back to where it came from; what came from one place is summed."
    rule(function, label="adjoint", source="transpose, by automatic differentiation")(moved)


for spelling in ("chunk", "split", "unbind", "roll", "flip", "narrow", "moveaxis", "movedim", "swapaxes"):
    moves(getattr(torch, spelling))
    moves(spelling)
for spelling in ("expand", "repeat", "select"):
    moves(spelling)
for function in (F.pad, F.interpolate, F.pixel_shuffle, F.pixel_unshuffle, F.channel_shuffle, F.unfold, F.fold):
    moves(function)

module(F.pixel_shuffle, "upscale_factor", nn.PixelShuffle)
module(F.pixel_unshuffle, "downscale_factor", nn.PixelUnshuffle)
module(F.channel_shuffle, "groups", nn.ChannelShuffle)
module(F.interpolate, "size scale_factor mode align_corners recompute_scale_factor", nn.Upsample)


@rule(operator.getitem, label="adjoint", source="transpose of a selection")
def select(y: Tensor, x: Any, index: Any) -> Any:
    """The signal at the selected places, zero elsewhere."""
    if isinstance(x, Tensor):
        image = y.new_zeros(len(y), *x.shape[1:])
        image[index] = y
        return image
    some = next(iter(tree_leaves(y)))
    parts = tree_map(lambda part: some.new_zeros(len(some), *part.shape[1:]), list(x))
    parts[index] = y
    return (tuple(parts),)


@rule(torch.cat, torch.concat, label="adjoint", source="transpose of a concatenation")
def cat(y: Tensor, tensors: Any, dim: int = 0) -> tuple[Tensor, ...]:
    """The signal cut into the parts that were joined."""
    parts = y.split([part.shape[dim] for part in tensors], dim)
    return tuple(piece for piece, part in zip(parts, tensors, strict=True) if part.is_meta)


@rule(torch.stack, label="adjoint", source="transpose of a concatenation")
def stack(y: Tensor, tensors: Any, dim: int = 0) -> tuple[Tensor, ...]:
    """The signal cut into the parts that were joined."""
    return tuple(piece for piece, part in zip(y.unbind(dim), tensors, strict=True) if part.is_meta)


# --------------------------------------------------------------------------------------------------- arithmetic


def carrying(value: Any) -> bool:
    """Is this argument of a rule one that carries the signal on?"""
    return isinstance(value, Tensor) and value.is_meta


def cut_to(y: Tensor, x: Tensor) -> Tensor:
    """The transpose of broadcasting x to the shape of y."""
    return y.sum_to_size(len(y), *x.shape[1:])


@rule(
    *(operator.add, operator.iadd, torch.add, "add", "add_"),
    label="adjoint",
    source="a sum is a fan-out run backwards",
    readouts=("adjoint",),
)
def add(y: Tensor, input: Any, other: Any, *, alpha: float = 1) -> tuple[Tensor, ...]:
    """The signal to every summand; constants are left out, as biases are."""
    return tuple(cut_to(y * by, x) for x, by in ((input, 1), (other, alpha)) if carrying(x))


@rule(
    *(operator.add, operator.iadd, torch.add, "add", "add_"),
    label="convention",
    source=f"{PAPER}: one branch frozen",
    readouts=("paper",),
    carries="deepest",
)
def add_paper(y: Tensor, input: Any, other: Any, *, alpha: float = 1) -> Tensor:
    """y - b to the deeper branch; b is the other one, frozen, or a constant."""
    return cut_to(y - alpha * other, input) if carrying(input) else cut_to((y - input) / alpha, other)


@rule(
    *(operator.sub, operator.isub, torch.sub, "sub", "sub_"),
    label="adjoint",
    source="transpose of the linear part",
    readouts=("adjoint",),
)
def sub(y: Tensor, input: Any, other: Any) -> tuple[Tensor, ...]:
    """The signal to the first, its negative to the second."""
    return tuple(cut_to(sign * y, x) for x, sign in ((input, 1), (other, -1)) if carrying(x))


@rule(
    *(operator.sub, operator.isub, torch.sub, "sub", "sub_"),
    label="convention",
    source=f"{PAPER}: one branch frozen",
    readouts=("paper",),
    carries="deepest",
)
def sub_paper(y: Tensor, input: Any, other: Any) -> Tensor:
    """y + b to the deeper branch; b is the other one, frozen, or a constant."""
    return cut_to(y + other, input) if carrying(input) else cut_to(input - y, other)


@rule(
    *(operator.mul, operator.imul, torch.mul, "mul", "mul_"),
    label="adjoint",
    source="transpose at the gate's value",
    carries="factor",
)
def mul(y: Tensor, input: Any, other: Any) -> Tensor:
    """The signal times the other factor: a constant, or a gate frozen at its value on the public probe."""
    return cut_to(y * other, input) if carrying(input) else cut_to(y * input, other)


@rule(operator.truediv, operator.itruediv, torch.div, "div", label="adjoint", source="transpose", carries="factor")
def div(y: Tensor, input: Any, other: Any) -> Tensor:
    """The signal over the divisor, which must not carry the signal itself."""
    if not carrying(input):
        raise TransposeError("division by what depends on the input is not linear")
    return cut_to(y / other, input)


@rule(operator.neg, torch.neg, "neg", label="adjoint", source="transpose")
def neg(y: Tensor, x: Tensor) -> Tensor:
    """The signal's negative."""
    return -y


@rule(operator.matmul, torch.matmul, torch.bmm, "matmul", "bmm", label="adjoint", source="transpose", carries="factor")
def matmul(y: Tensor, input: Tensor, other: Tensor) -> Tensor:
    """The signal times the other matrix transposed: a constant, or attention frozen on the public probe."""
    return cut_to(y @ other.mT, input) if carrying(input) else cut_to(input.mT @ y, other)


@rule(torch.einsum, label="adjoint", source="transpose", carries="factor")
def einsum(y: Tensor, equation: str, *operands: Any) -> Tensor:
    """The same sum with the signal in the place of the operand that carries it."""
    inputs, _, output = equation.replace(" ", "").partition("->")
    terms = inputs.split(",")
    place = next(i for i, operand in enumerate(operands) if carrying(operand))
    if (
        not output
        or "..." in equation
        or not set(terms[place]) <= set(output).union(*terms[:place], *terms[place + 1 :])
    ):
        raise TransposeError(
            "this sum cannot be turned around", got=equation, expected="every index named, as in ij,jk->ik"
        )
    others = [(term, operand) for i, (term, operand) in enumerate(zip(terms, operands, strict=True)) if i != place]
    turned = ",".join((output, *(term for term, _ in others))) + "->" + terms[place]
    return torch.einsum(turned, y, *(operand for _, operand in others))


# ---------------------------------------------------------------------------------------------------- attention


@rule(
    F.scaled_dot_product_attention,
    label="adjoint",
    source="transpose at the attention of the public probe",
    carries="value",
)
def attention(
    y: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    """A'y to the values, where A is the attention of the current weights on the public probe."""
    scores = query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -torch.inf)
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
    return scores.softmax(-1).mT @ y
