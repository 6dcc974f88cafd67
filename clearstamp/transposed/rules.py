"""Rules: how one operation is run backwards.

A rule takes the signal at an operation's output and then **exactly the arguments of the forward operation**, where a
tensor that the signal goes on to is replaced by a meta tensor of its shape, with as many images as there are keys. It
returns the signal there:

    forward          aten.linear(x, weight, bias)
    its rule         linear(y, x, weight, bias)  ->  signal shaped like x

Where several arguments are computed from the model's input, the rule says which of them **carry** the signal on. Each
of these is a meta tensor, and the rule returns a tuple of one signal for each, in their order. The others are frozen:
they come as the values that they have on the public probe (see `clearstamp.transposed.base.public_probe`).

An argument that the operation calls ``train`` or ``training`` receives the mode of the walk, whatever the forward call
said. A rule refuses a setting that it does not cover by raising `TransposeError`.

Every rule carries one of three labels:

- ``adjoint``: the exact transpose of the operation's linear part, so <Ax, y> = <x, A'y>;
- ``convention``: a formula that the paper (or this library) lays down;
- ``passthrough``: the signal goes through the forward operation itself, or through untouched.

Two readouts, ``paper`` (as published) and ``adjoint`` (invariant to rescaling hidden ReLU units), are two tables of
rules over one walk.
"""

import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from clearstamp.errors import TransposeError

Label = Literal["adjoint", "convention", "passthrough"]
PAPER = "Krauß, Stang, Dmitrienko, USENIX Security 2024"
aten = torch.ops.aten


@dataclass(frozen=True)
class Rule:
    """A rule with its label, the source of its formula, and what a walk has to know of it.

    Attributes:
        weighted: is the operation a layer with weights, after which hardening puts its dropout?
        moves: does it only move numbers, add them up and leave blanks?
        carries: ``"all"``: every argument that depends on the model's input carries the signal on; ``"factor"``: of two
            the one that is not a gate, or the larger; ``"values"``: of two the one that is not a gate, or the one on
            the right, as in attention; ``"deepest"``: the one with the most weighted layers behind it; or its name.
        whole: does it need what is frozen once for every key, and not just once?
    """

    apply: Callable[..., Any]
    label: Label
    source: str
    weighted: bool = False
    moves: bool = False
    carries: str = "all"
    whole: bool = False

    @property
    def name(self) -> str:
        return self.apply.__name__


@dataclass(frozen=True)
class Readout:
    """A way to run a network backwards: a rule for each operation, by the operation's name."""

    name: str
    rules: dict[str, Rule] = field(default_factory=dict, repr=False)


READOUTS = {name: Readout(name) for name in ("paper", "adjoint")}
"""Every readout by its name."""


def name_of(operation: Any) -> str:
    """The name by which the rule of an operation, such as ``torch.ops.aten.linear``, is found."""
    return getattr(operation, "_qualified_op_name", None) or operation.__name__


def register_vjp_rule(
    *operations: Any,
    label: Label,
    source: str,
    readouts: tuple[str, ...] = ("paper", "adjoint"),
    weighted: bool = False,
    moves: bool = False,
    carries: str = "all",
    whole: bool = False,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register the decorated rule for `operations`, such as ``torch.ops.aten.linear``; for the rest see `Rule`.

    In-place forms have the rule of the plain one. Raises `TransposeError` if an operation has a rule already.
    """

    def register(apply: Callable[..., Any]) -> Callable[..., Any]:
        entry = Rule(apply, label, source, weighted, moves, carries, whole)
        for readout in readouts:
            rules = READOUTS[readout].rules
            for name in map(name_of, operations):
                if name in rules:
                    raise TransposeError(f"{name} has a rule in the {readout!r} readout already")
                rules[name] = entry
        return apply

    return register


def carrying(value: Any) -> bool:
    """Is this argument of a rule one that carries the signal on?"""
    return isinstance(value, Tensor) and value.is_meta


def real_if(x: Tensor, y: Tensor) -> Tensor:
    """The transpose of taking real numbers for complex ones, if that was done to x."""
    return y if x.is_complex() or not y.is_complex() else y.real


def cut_to(y: Tensor, x: Tensor) -> Tensor:
    """The transpose of broadcasting x to the shape of y."""
    return real_if(x, y).sum_to_size(x.shape)


def conjugate(value: Any) -> Any:
    """A factor as a transpose has it: the same, unless it is complex."""
    return value.conj() if isinstance(value, Tensor) else value.conjugate()


# ------------------------------------------------------------------------------------------------ linear layers

LAYER: dict[str, Any] = {"weighted": True, "carries": "input"}
PAPER_LAYER = LAYER | {"label": "convention", "source": PAPER, "readouts": ("paper",)}
EXACT_LAYER = LAYER | {"label": "adjoint", "source": "transpose of the linear part", "readouts": ("adjoint",)}


@register_vjp_rule(aten.linear, **PAPER_LAYER)
def linear_paper(y: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """(y - b) W for a forward layer y = x W' + b."""
    return (y if bias is None else y - bias) @ conjugate(weight)


@register_vjp_rule(aten.linear, **EXACT_LAYER)
def linear(y: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """y W for a forward layer y = x W' + b."""
    return y @ conjugate(weight)


# ------------------------------------------------------------------------------------------------- convolutions

CONV = (aten.conv1d, aten.conv2d, aten.conv3d)
CONV_TRANSPOSE = (aten.conv_transpose1d, aten.conv_transpose2d, aten.conv_transpose3d)


def per_axis(value: int | list[int], axes: int) -> list[int]:
    """A setting of a convolution for each of its axes, where one number stands for all."""
    sizes = [value] if isinstance(value, int) else list(value)
    return sizes * axes if len(sizes) == 1 else sizes


@register_vjp_rule(*CONV, **EXACT_LAYER)
def convolution(
    y: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """conv_transpose(y, W) with the forward layer's geometry, cut or padded to the recorded input shape."""
    axes = x.dim() - 2
    kernel, stride, dilation = weight.shape[2:], per_axis(stride, axes), per_axis(dilation, axes)
    reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    if padding == "same":  # an odd total puts the extra zero at the far end: the cut below removes it
        padding = [r // 2 for r in reach]
    padding = [0] * axes if padding == "valid" else per_axis(padding, axes)
    natural = [(n - 1) * s - 2 * p + r + 1 for n, s, p, r in zip(y.shape[2:], stride, padding, reach, strict=True)]
    missing = [max(size - n, 0) for size, n in zip(x.shape[2:], natural, strict=True)]
    transposed = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}[axes]
    image = transposed(y, conjugate(weight), None, stride, padding, missing, groups, dilation)
    recorded: Any = (..., *(slice(size) for size in x.shape[2:]))
    return image[recorded]


def without_bias(y: Tensor, bias: Tensor | None) -> Tensor:
    """The signal with the bias of its channels taken off."""
    return y if bias is None else y - per_channel(bias, y)


@register_vjp_rule(*CONV, **PAPER_LAYER)
def convolution_paper(
    y: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None, *geometry: Any, **named: Any
) -> Tensor:
    """conv_transpose(y - b, W): the bias, one per output channel, is taken off first."""
    return convolution(without_bias(y, bias), x, weight, None, *geometry, **named)


@register_vjp_rule(*CONV_TRANSPOSE, **EXACT_LAYER)
def transposed_convolution(
    y: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Tensor:
    """conv(y, W) with the forward layer's geometry."""
    forward = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[x.dim() - 2]
    return forward(y, conjugate(weight), None, stride, padding, dilation, groups)


@register_vjp_rule(*CONV_TRANSPOSE, **PAPER_LAYER)
def transposed_convolution_paper(
    y: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None, *geometry: Any
) -> Tensor:
    """conv(y - b, W): the bias, one per output channel, is taken off first."""
    return transposed_convolution(without_bias(y, bias), x, weight, None, *geometry)


# ------------------------------------------------------------------------------------------------ normalisation


def per_channel(values: Tensor, signal: Tensor) -> Tensor:
    """[channels] -> [channels, 1, ...], so that it broadcasts over a signal [batch, channels, ...]."""
    return values.reshape(-1, *[1] * (signal.dim() - 2))


def undo_affine(y: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """(y - beta) sqrt(1 + eps) / gamma: the inverse of a normalisation whose mean is 0 and whose variance is 1."""
    signal = y if bias is None else y - bias
    return signal * (1 + eps) ** 0.5 / (1 if weight is None else weight)


@register_vjp_rule(
    aten.batch_norm, aten.instance_norm, label="convention", source=f"{PAPER}: E = 0, Var = 1", readouts=("paper",)
)
def batch_norm_paper(
    y: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> Tensor:
    """(y - beta) sqrt(1 + eps) / gamma per channel."""
    gamma, beta = (v if v is None else per_channel(v, y) for v in (weight, bias))
    return undo_affine(y, gamma, beta, eps)


@register_vjp_rule(aten.batch_norm, label="adjoint", source="transpose of the folded layer", readouts=("adjoint",))
def batch_norm(
    y: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
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


@register_vjp_rule(
    aten._native_batch_norm_legit_no_training,
    label="convention",
    source=f"{PAPER}: E = 0, Var = 1",
    readouts=("paper",),
)
def native_batch_norm_paper(y: tuple[Tensor, ...], x: Tensor, *arguments: Any) -> Tensor:
    """(y - beta) sqrt(1 + eps) / gamma per channel."""
    *tensors, momentum, eps = arguments
    return batch_norm_paper(y[0], x, *tensors, False, momentum, eps, False)


@register_vjp_rule(
    aten._native_batch_norm_legit_no_training,
    label="adjoint",
    source="transpose of the folded layer",
    readouts=("adjoint",),
)
def native_batch_norm(y: tuple[Tensor, ...], x: Tensor, *arguments: Any) -> Tensor:
    """y gamma / sqrt(running variance + eps) per channel: the layer as it is folded for inference."""
    *tensors, momentum, eps = arguments
    return batch_norm(y[0], x, *tensors, False, momentum, eps, False)


@register_vjp_rule(
    aten.instance_norm, label="convention", source="scale of the layer at unit variance", readouts=("adjoint",)
)
def instance_norm(y: Tensor, x: Tensor, weight: Tensor | None, *settings: Any) -> Tensor:
    """y gamma per channel."""
    return y if weight is None else y * per_channel(weight, y)


@register_vjp_rule(aten.layer_norm, label="convention", source=f"{PAPER}: E = 0, Var = 1", readouts=("paper",))
def layer_norm_paper(
    y: Tensor,
    x: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Tensor:
    """(y - beta) sqrt(1 + eps) / gamma per feature."""
    return undo_affine(y, weight, bias, eps)


@register_vjp_rule(aten.rms_norm, label="convention", source="as layer norm: Var = 1", readouts=("paper",))
def rms_norm_paper(
    y: Tensor, x: Tensor, normalized_shape: Any, weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    """y / gamma per feature."""
    return y if weight is None else y / weight


@register_vjp_rule(
    *(aten.layer_norm, aten.rms_norm),
    label="convention",
    source="scale of the layer at unit variance",
    readouts=("adjoint",),
)
def layer_norm(y: Tensor, x: Tensor, normalized_shape: Any, weight: Tensor | None = None, *settings: Any) -> Tensor:
    """y gamma per feature."""
    return y if weight is None else y * weight


@register_vjp_rule(aten.group_norm, label="convention", source="as batch norm: E = 0, Var = 1", readouts=("paper",))
def group_norm_paper(
    y: Tensor,
    x: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Tensor:
    """(y - beta) sqrt(1 + eps) / gamma per channel."""
    gamma, beta = (v if v is None else per_channel(v, y) for v in (weight, bias))
    return undo_affine(y, gamma, beta, eps)


@register_vjp_rule(
    aten.group_norm, label="convention", source="scale of the layer at unit variance", readouts=("adjoint",)
)
def group_norm(y: Tensor, x: Tensor, num_groups: int, weight: Tensor | None = None, *settings: Any) -> Tensor:
    """y gamma per channel."""
    return y if weight is None else y * per_channel(weight, y)


# ------------------------------------------------------------------------------------------------------ pooling

POOLS = (
    *(aten.max_pool1d, aten.max_pool2d, aten.max_pool3d),
    *(aten.avg_pool1d, aten.avg_pool2d, aten.avg_pool3d),
    *(aten.adaptive_avg_pool1d, aten.adaptive_avg_pool2d, aten.adaptive_avg_pool3d),
)
POOLS_WITH_INDICES = (
    *(aten.max_pool1d_with_indices, aten.max_pool2d_with_indices, aten.max_pool3d_with_indices),
    *(aten.adaptive_max_pool1d, aten.adaptive_max_pool2d, aten.adaptive_max_pool3d),
    *(aten.fractional_max_pool2d, aten.fractional_max_pool3d),
)


@register_vjp_rule(*POOLS, label="convention", source=PAPER)
def pooling(y: Tensor, x: Tensor, *geometry: Any, **named: Any) -> Tensor:
    """Nearest-neighbour interpolation to the recorded input size."""
    if y.dim() == 4 and y.is_cpu:
        y = y.contiguous(memory_format=torch.channels_last)  # interpolated several times faster there
    return F.interpolate(y, size=x.shape[2:], mode="nearest")


@register_vjp_rule(*POOLS_WITH_INDICES, label="convention", source=PAPER)
def pooling_with_indices(y: tuple[Tensor, Tensor], x: Tensor, *geometry: Any, **named: Any) -> Tensor:
    """Nearest-neighbour interpolation to the recorded input size."""
    return pooling(y[0], x)


def spread(y: Tensor, x: Tensor, dim: Any, keepdim: bool) -> Tensor:
    """The signal at every place that was made one."""
    axes = sorted(d % x.dim() for d in ((dim,) if isinstance(dim, int) else dim or range(x.dim())))
    for axis in axes if not keepdim else ():
        y = y.unsqueeze(axis)
    return y.expand(x.shape)


@register_vjp_rule(aten.mean, aten.amax, aten.amin, aten.logsumexp, label="convention", source="global pooling")
def mean(y: Tensor, x: Tensor, dim: Any = None, keepdim: bool = False, **named: Any) -> Tensor:
    """The signal at every place that the mean or maximum was taken of, as in pooling."""
    return spread(y, x, dim, keepdim)


@register_vjp_rule(aten.linalg_vector_norm, label="convention", source="global pooling")
def norm(y: Tensor, x: Tensor, ord: Any = 2, dim: Any = None, keepdim: bool = False, **named: Any) -> Tensor:
    """The signal at every place that the norm was taken of, as in pooling."""
    return spread(y, x, dim, keepdim)


@register_vjp_rule(aten.std, aten.var, label="convention", source="global pooling")
def deviation(y: Tensor, x: Tensor, dim: Any = None, *settings: bool, keepdim: bool = False, **named: Any) -> Tensor:
    """The signal at every place that the deviation was taken of, as in pooling."""
    return spread(y, x, dim, settings[1] if len(settings) > 1 else keepdim)


@register_vjp_rule(aten.max, aten.min, aten.median, label="convention", source="global pooling")
def max_(y: tuple[Tensor, Tensor], x: Tensor, dim: int, keepdim: bool = False) -> Tensor:
    """The signal at every place that the maximum was taken of, as in pooling."""
    return spread(y[0], x, dim, keepdim)


@register_vjp_rule(aten.sum, label="adjoint", source="transpose of a sum")
def total(y: Tensor, x: Tensor, dim: Any = None, keepdim: bool = False, **named: Any) -> Tensor:
    """The signal at every place that was summed."""
    return spread(y, x, dim, keepdim)


# -------------------------------------------------------------------------------------------------- activations

ACTIVATIONS = (
    *(aten.celu, aten.elu, aten.gelu, aten.hardshrink, aten.hardsigmoid, aten.hardswish, aten.hardtanh),
    *(aten.leaky_relu, aten.log_sigmoid, aten.mish, aten.prelu, aten.relu, aten.relu6, aten.selu, aten.silu),
    *(aten.sigmoid, aten.softplus, aten.softshrink, aten.tanh, aten.threshold),
    *(aten.clamp, aten.clamp_min, aten.clamp_max, aten.clip, aten.square),
    *(aten.sin, aten.cos, aten.tan, aten.atan, aten.asinh, aten.cosh),
    *(aten.erf, aten.erfc, aten.exp, aten.exp2, aten.abs),
)
"""Elementwise activations."""

SOFTMAX = (aten.softmax, aten._softmax)
GATES = frozenset(map(name_of, (*SOFTMAX, aten.sigmoid, aten.hardsigmoid)))
"""What gives a gate its values: of two factors, the one that comes out of one of these is the gate."""


def elementwise(operation: Any) -> Callable[..., Tensor]:
    """The rule of an activation: itself, of the signal."""

    def activation(y: Tensor, x: Tensor, *settings: Any, **named: Any) -> Tensor:
        return operation(y, *settings, **named)

    activation.__name__ = name_of(operation).removeprefix("aten::")
    activation.__doc__ = f"{activation.__name__} of the signal, with the forward layer's own settings."
    return activation


for operation in (*ACTIVATIONS, *SOFTMAX, aten.log_softmax, aten._log_softmax):
    register_vjp_rule(operation, label="passthrough", source=PAPER, carries="self")(elementwise(operation))


@register_vjp_rule(aten.pow, label="passthrough", source=PAPER, carries="self")
def pow(y: Tensor, x: Any, exponent: Any) -> Tensor:
    """A whole power of the signal; the signal untouched, as it has signs, for any other."""
    whole = isinstance(exponent, int | float) and exponent > 0 and exponent == int(exponent)
    return aten.pow(y, exponent) if whole else y


@register_vjp_rule(
    *(aten.sqrt, aten.log, aten.log1p, aten.log2, aten.log10),
    *(aten.sign, aten.round, aten.floor, aten.ceil, aten.trunc, aten.nan_to_num),
    *(aten.fake_quantize_per_tensor_affine, aten.fake_quantize_per_channel_affine),
    *(aten._fake_quantize_learnable_per_tensor_affine, aten._fake_quantize_learnable_per_channel_affine),
    *(aten.fused_moving_avg_obs_fake_quant, aten._fused_moving_avg_obs_fq_helper_functional),
    label="convention",
    source="straight through: Bengio, Léonard, Courville, 2013",
    carries="self",
)
def straight_through(y: Any, x: Tensor, *settings: Any, **named: Any) -> Tensor:
    """The signal, untouched: rounding has no slope, and the signal, which has signs, no root and no logarithm."""
    return y if isinstance(y, Tensor) else y[0]


def extremum(operation: Any) -> Callable[..., Any]:
    """The rule of the greater or the smaller of two."""

    def either(y: Tensor, input: Any, other: Any) -> Any:
        if carrying(input) and carrying(other):
            return cut_to(y, input), cut_to(y, other)
        return cut_to(operation(y, other), input) if carrying(input) else cut_to(operation(input, y), other)

    either.__name__ = name_of(operation).removeprefix("aten::")
    either.__doc__ = (
        f"The {either.__name__} of the signal and a constant; of two signals, it goes to both, as in pooling."
    )
    return either


for operation in (aten.maximum, aten.minimum, aten.fmax, aten.fmin):
    register_vjp_rule(operation, label="passthrough", source=PAPER)(extremum(operation))


# ------------------------------------------------------------------------------------------------------ dropout

DROPOUT = (aten.dropout, aten.feature_dropout, aten.alpha_dropout, aten.feature_alpha_dropout, aten.rrelu)
"""What draws random numbers in training mode alone."""

for operation in DROPOUT:
    register_vjp_rule(operation, label="passthrough", source=PAPER)(elementwise(operation))


# ------------------------------------------------------------------------------------------------------- shapes


@register_vjp_rule(
    *(aten.flatten, aten.reshape, aten.view, aten._unsafe_view, aten.unflatten, aten.reshape_as, aten.view_as),
    *(aten.squeeze, aten.unsqueeze),
    label="adjoint",
    source="a reshape is its own inverse's transpose",
    moves=True,
    carries="self",
)
def reshape(y: Tensor, x: Tensor, *shape: Any) -> Tensor:
    """Back to the recorded shape."""
    return y.reshape(x.shape)


@register_vjp_rule(aten.permute, label="adjoint", source="a permutation's transpose is its inverse", moves=True)
def permute(y: Tensor, x: Tensor, dims: list[int]) -> Tensor:
    """The inverse permutation."""
    order = [d % x.dim() for d in dims]
    return y.permute(*sorted(range(x.dim()), key=order.__getitem__))


@register_vjp_rule(
    *(aten.transpose, aten.swapaxes, aten.swapdims),
    label="adjoint",
    source="a transposition is its own inverse",
    moves=True,
)
def transpose(y: Tensor, x: Tensor, dim0: int, dim1: int) -> Tensor:
    """The same two axes swapped again."""
    return y.transpose(dim0, dim1)


@register_vjp_rule(
    *(aten.clone, aten.contiguous, aten.alias, aten.detach, aten.to, aten._to_copy, aten.type_as),
    label="passthrough",
    source="the layer changes nothing",
    carries="self",
)
def identity(y: Tensor, x: Tensor, *settings: Any, **named: Any) -> Tensor:
    """The signal, untouched."""
    return real_if(x, y).to(x.dtype)


@register_vjp_rule(aten.copy, label="adjoint", source="transpose of a broadcast", moves=True, carries="src")
def copy(y: Tensor, x: Tensor, src: Tensor, non_blocking: bool = False) -> Tensor:
    """The signal to what was written; what was there before is gone."""
    return cut_to(y, src).to(src.dtype)


def transposed(operation: Any) -> Callable[..., Any]:
    """The exact transpose of an operation that is linear in what carries the signal, which torch's autograd knows."""

    def moved(y: Any, *args: Any, **named: Any) -> Any:
        leaves, form = tree_flatten((args, named))
        places = [place for place, leaf in enumerate(leaves) if carrying(leaf)]
        some = next(iter(tree_leaves(y)))

        def forward(*signals: Tensor) -> Any:
            filled = list(leaves)
            for place, signal in zip(places, signals, strict=True):
                filled[place] = signal
            args, named = tree_unflatten(filled, form)
            found = operation(*args, **named)
            return tuple(found) if isinstance(found, list) else found

        kinds = [some.dtype.to_complex() if leaves[place].is_complex() else some.dtype.to_real() for place in places]
        blanks = [some.new_zeros(leaves[place].shape, dtype=kind) for place, kind in zip(places, kinds, strict=True)]
        signals = torch.func.vjp(forward, *blanks)[1](y)
        return signals if len(signals) > 1 else signals[0]

    moved.__name__ = name_of(operation).removeprefix("aten::")
    moved.__doc__ = "Every number back to where it came from; what came from one place is summed."
    return moved


DIFFERENTIATED = "transpose, by automatic differentiation"
MOVES = (
    *(aten.chunk, aten.split, aten.split_with_sizes, aten.tensor_split, aten.unbind, aten.roll, aten.flip),
    *(aten.narrow, aten.movedim, aten.moveaxis, aten.expand, aten.repeat, aten.tile),
    *(aten.repeat_interleave, aten.index, aten.index_select, aten.gather, aten.as_strided, aten.unfold),
    *(aten.t, aten.numpy_T, aten.mT, aten.adjoint, aten.diagonal, aten.tril, aten.triu, aten.rot90),
    *(aten.pad, aten.constant_pad_nd, aten.pixel_shuffle, aten.pixel_unshuffle, aten.channel_shuffle),
    *(aten.im2col, aten.col2im, aten.masked_fill, aten.fill),
    *(aten.view_as_real, aten.view_as_complex, aten.complex, aten.real, aten.imag, aten._conj),
    *(aten.index_add, aten.index_put, aten.index_copy, aten.scatter, aten.scatter_add, aten.diag_embed),
)
RESAMPLINGS = (
    *(aten.upsample_nearest1d, aten.upsample_nearest2d, aten.upsample_nearest3d, aten.upsample_linear1d),
    *(aten.upsample_bilinear2d, aten.upsample_bicubic2d, aten.upsample_trilinear3d),
    *(aten._upsample_nearest_exact1d, aten._upsample_nearest_exact2d, aten._upsample_nearest_exact3d),
    *(aten._upsample_bilinear2d_aa, aten._upsample_bicubic2d_aa),
)
for operation in MOVES:
    register_vjp_rule(operation, label="adjoint", source=DIFFERENTIATED, moves=True, whole=True)(transposed(operation))
FOURIER = (aten._fft_r2c, aten._fft_c2r, aten._fft_c2c)
for operation in (*RESAMPLINGS, *FOURIER, aten.cumsum):
    register_vjp_rule(operation, label="adjoint", source=DIFFERENTIATED, whole=True)(transposed(operation))
for operation in (aten.expand_as, aten.max_unpool2d, aten.max_unpool3d):
    register_vjp_rule(operation, label="adjoint", source=DIFFERENTIATED, moves=True, carries="self", whole=True)(
        transposed(operation)
    )
register_vjp_rule(aten.grid_sampler, label="adjoint", source=DIFFERENTIATED, carries="input", whole=True)(
    transposed(aten.grid_sampler)
)


@register_vjp_rule(aten.slice, label="adjoint", source="transpose of a selection", moves=True)
def slice_(
    y: Tensor, x: Tensor, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Tensor:
    """The signal at the selected places, zero elsewhere."""
    size = x.shape[dim]
    first, last, _ = slice(start, end, step).indices(size)
    return aten.slice_backward(y, list(x.shape), dim, first, last, step)


@register_vjp_rule(aten.select, label="adjoint", source="transpose of a selection", moves=True)
def select(y: Tensor, x: Tensor, dim: int, index: int) -> Tensor:
    """The signal at the selected place, zero elsewhere."""
    return aten.select_backward(y, list(x.shape), dim, index)


@register_vjp_rule(aten.slice_scatter, label="adjoint", source="transpose of a selection written over", moves=True)
def slice_scatter(
    y: Tensor, x: Tensor, src: Tensor, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> tuple[Tensor, ...]:
    """The signal at the selected places to what was written there, elsewhere to what was there before."""
    part = aten.slice(y, dim, start, end, step)
    rest = y - slice_(part, y, dim, start, end, step)
    return tuple(piece for piece, each in ((rest, x), (part, src)) if carrying(each))


@register_vjp_rule(aten.select_scatter, label="adjoint", source="transpose of a selection written over", moves=True)
def select_scatter(y: Tensor, x: Tensor, src: Tensor, dim: int, index: int) -> tuple[Tensor, ...]:
    """The signal at the selected place to what was written there, elsewhere to what was there before."""
    part = y.select(dim, index)
    rest = y - select(part, y, dim, index)
    return tuple(piece for piece, each in ((rest, x), (part, src)) if carrying(each))


@register_vjp_rule(operator.getitem, label="adjoint", source="transpose of a selection", moves=True)
def getitem(y: Any, x: Any, index: int) -> Any:
    """The signal in the selected part, zero in the others."""
    some = next(iter(tree_leaves(y)))
    parts = tree_map(lambda part: some.new_zeros(part.shape), list(x))
    parts[index] = y
    return (tuple(parts),)


@register_vjp_rule(aten.cat, aten.concat, label="adjoint", source="transpose of a concatenation", moves=True)
def cat(y: Tensor, tensors: Any, dim: int = 0) -> tuple[Tensor, ...]:
    """The signal cut into the parts that were joined."""
    parts = y.split([part.shape[dim] for part in tensors], dim)
    return tuple(piece for piece, part in zip(parts, tensors, strict=True) if carrying(part))


@register_vjp_rule(aten.stack, label="adjoint", source="transpose of a concatenation", moves=True)
def stack(y: Tensor, tensors: Any, dim: int = 0) -> tuple[Tensor, ...]:
    """The signal cut into the parts that were joined."""
    return tuple(piece for piece, part in zip(y.unbind(dim), tensors, strict=True) if carrying(part))


# --------------------------------------------------------------------------------------------------- arithmetic


@register_vjp_rule(aten.add, label="adjoint", source="a sum is a fan-out run backwards", readouts=("adjoint",))
def add(y: Tensor, input: Any, other: Any, *, alpha: float = 1) -> tuple[Tensor, ...]:
    """The signal to every summand; constants are left out, as biases are."""
    return tuple(cut_to(y * conjugate(by), x) for x, by in ((input, 1), (other, alpha)) if carrying(x))


@register_vjp_rule(
    aten.add, label="convention", source=f"{PAPER}: one branch frozen", readouts=("paper",), carries="deepest"
)
def add_paper(y: Tensor, input: Any, other: Any, *, alpha: float = 1) -> Tensor:
    """y - b to the deeper branch; b is the other one, frozen, or a constant."""
    return cut_to(y - alpha * other, input) if carrying(input) else cut_to((y - input) / alpha, other)


@register_vjp_rule(aten.sub, label="adjoint", source="transpose of the linear part", readouts=("adjoint",))
def sub(y: Tensor, input: Any, other: Any, *, alpha: float = 1) -> tuple[Tensor, ...]:
    """The signal to the first, its negative to the second."""
    return add(y, input, other, alpha=-alpha)


@register_vjp_rule(
    aten.sub, label="convention", source=f"{PAPER}: one branch frozen", readouts=("paper",), carries="deepest"
)
def sub_paper(y: Tensor, input: Any, other: Any, *, alpha: float = 1) -> Tensor:
    """y + b to the deeper branch; b is the other one, frozen, or a constant."""
    return add_paper(y, input, other, alpha=-alpha)


@register_vjp_rule(aten.rsub, label="adjoint", source="transpose of the linear part", readouts=("adjoint",))
def rsub(y: Tensor, input: Any, other: Any, alpha: float = 1) -> tuple[Tensor, ...]:
    """The signal's negative to the first, the signal to the second."""
    return add(y * -alpha, input, other, alpha=-1 / alpha)


@register_vjp_rule(
    aten.rsub, label="convention", source=f"{PAPER}: one branch frozen", readouts=("paper",), carries="deepest"
)
def rsub_paper(y: Tensor, input: Any, other: Any, alpha: float = 1) -> Tensor:
    """b - y to the deeper branch; b is the other one, frozen, or a constant."""
    return add_paper(y, other, input, alpha=-alpha) if carrying(input) else cut_to(y + alpha * input, other)


@register_vjp_rule(aten.mul, label="adjoint", source="transpose at the gate's value", carries="factor")
def mul(y: Tensor, input: Any, other: Any) -> Tensor:
    """The signal times the other factor: a constant, or a gate frozen at its value on the public probe."""
    return cut_to(y * conjugate(other), input) if carrying(input) else cut_to(y * conjugate(input), other)


@register_vjp_rule(aten.div, label="adjoint", source="transpose at the divisor's value", carries="self")
def div(y: Tensor, input: Any, other: Any, *, rounding_mode: str | None = None) -> Tensor:
    """The signal over the divisor, a constant or frozen at its value on the public probe."""
    return cut_to(y / conjugate(other), input)


@register_vjp_rule(aten.neg, label="adjoint", source="transpose")
def neg(y: Tensor, x: Tensor) -> Tensor:
    """The signal's negative."""
    return -y


@register_vjp_rule(aten.matmul, aten.bmm, aten.mm, label="adjoint", source="transpose", carries="values")
def matmul(y: Tensor, input: Tensor, other: Tensor) -> Tensor:
    """The signal times the other matrix transposed: a constant, or attention frozen on the public probe."""
    if other.dim() == 1:
        return cut_to(y.unsqueeze(-1) * conjugate(other), input)
    return cut_to(y @ other.mH, input) if carrying(input) else cut_to(input.mH @ y, other)


for operation, carries in ((aten.einsum, "factor"), (aten.bilinear, "factor"), (aten.where, "all")):
    register_vjp_rule(operation, label="adjoint", source=DIFFERENTIATED, carries=carries, whole=True)(
        transposed(operation)
    )


# ---------------------------------------------------------------------------------------------------- attention


@register_vjp_rule(
    aten.scaled_dot_product_attention,
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
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """A'y to the values, where A is the attention of the current weights on the public probe."""
    groups = query.shape[-3] // key.shape[-3] if enable_gqa else 1
    if groups > 1:
        key = key.repeat_interleave(groups, -3)
    scores = query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -torch.inf)
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
    signal = scores.softmax(-1).mT @ y
    return signal.unflatten(-3, (-1, groups)).sum(-3) if groups > 1 else cut_to(signal, value)
