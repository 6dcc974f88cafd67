"""What networks of torchvision need beside torch's own operations; `transpose` imports it where they are in use."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torchvision.models.swin_transformer import ShiftedWindowAttention, ShiftedWindowAttentionV2, _patch_merging_pad
from torchvision.ops import stochastic_depth

from clearstamp.attention import WRITTEN
from clearstamp.rules import moves, rule

moves(_patch_merging_pad)  # Swin halves its resolution with it


@rule(stochastic_depth, label="passthrough", source="the readout has all its layers")
def whole_depth(y: Tensor, x: Tensor, p: float, mode: str, training: bool = True) -> Tensor:
    """The signal, untouched in the readout; whole rows dropped in a training walk."""
    return stochastic_depth(y, p, mode, training)


def windowed(self: ShiftedWindowAttention, x: Tensor) -> Tensor:
    """torchvision's attention in shifted windows, of images ``[n, H, W, C]``."""
    window, shift = tuple(self.window_size), tuple(self.shift_size)
    bias = self.qkv.bias
    cosine = isinstance(self, ShiftedWindowAttentionV2)
    if cosine and bias is not None:  # the second version's keys have no bias
        q_bias, k_bias, v_bias = bias.chunk(3)
        bias = torch.cat([q_bias, 0 * k_bias, v_bias])
    heads = F.linear(to_windows(x, window, shift), self.qkv.weight, bias).unflatten(-1, (3, self.num_heads, -1))
    q, k, v = (heads[:, :, :, i].transpose(2, 3) for i in range(3))  # [n, windows, heads, places, C / heads]
    scale = None
    if cosine:
        q = F.normalize(q, dim=-1) * torch.clamp(self.logit_scale, max=math.log(100.0)).exp()
        k, scale = F.normalize(k, dim=-1), 1.0
    mask = window_mask(x, window, shift) + self.get_relative_position_bias()
    mixed = F.scaled_dot_product_attention(q, k, v, mask, scale=scale)
    return from_windows(self.proj(mixed.transpose(2, 3).flatten(3)), x, window, shift)


def geometry(x: Tensor, window: tuple[int, ...], shift: tuple[int, ...]) -> tuple[list[int], list[int]]:
    """Height and width of images ``[n, H, W, C]`` padded to whole windows, and the shift that these allow."""
    padded = [-(-size // w) * w for size, w in zip(x.shape[1:3], window, strict=True)]
    return padded, [0 if w >= size else s for s, w, size in zip(shift, window, padded, strict=True)]


def to_windows(x: Tensor, window: tuple[int, ...], shift: tuple[int, ...]) -> Tensor:
    """Images ``[n, H, W, C]``, padded and rolled, cut into windows ``[n, windows, places, C]``."""
    (height, width), (down, right) = geometry(x, window, shift)
    x = F.pad(x, (0, 0, 0, width - x.shape[2], 0, height - x.shape[1])).roll((-down, -right), (1, 2))
    x = x.unflatten(2, (-1, window[1])).unflatten(1, (-1, window[0]))
    return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def from_windows(windows: Tensor, like: Tensor, window: tuple[int, ...], shift: tuple[int, ...]) -> Tensor:
    """The inverse of `to_windows`, for images of the height and width of `like`."""
    (height, width), (down, right) = geometry(like, window, shift)
    x = windows.unflatten(2, tuple(window)).unflatten(1, (height // window[0], width // window[1]))
    x = x.transpose(2, 3).flatten(3, 4).flatten(1, 2)
    return x.roll((down, right), (1, 2))[:, : like.shape[1], : like.shape[2]]


def window_mask(x: Tensor, window: tuple[int, ...], shift: tuple[int, ...]) -> Tensor:
    """``[windows, 1, places, places]``: -100 between places that only rolling has made neighbours, else 0."""
    padded, shift = geometry(x, window, shift)  # type: ignore[assignment]
    rows, columns = (
        torch.bucketize(
            torch.arange(size, device=x.device), torch.tensor([size - w, size - s], device=x.device), right=True
        )
        if s
        else torch.zeros(size, device=x.device, dtype=torch.long)
        for size, w, s in zip(padded, window, shift, strict=True)
    )
    regions = (3 * rows[:, None] + columns)[None, :, :, None].to(x.dtype)
    places = to_windows(regions, window, (0, 0))[0, :, :, 0]
    return -100.0 * (places[:, None] != places[:, :, None])[:, None].to(x.dtype)


for name in ("to_windows", "from_windows", "window_mask"):
    fx.wrap(name)
moves(to_windows)
WRITTEN |= {ShiftedWindowAttention: windowed, ShiftedWindowAttentionV2: windowed}


@rule(from_windows, label="adjoint", source="transpose of a rearrangement", carries="windows")
def windows_again(y: Tensor, windows: Tensor, like: Tensor, window: tuple[int, ...], shift: tuple[int, ...]) -> Tensor:
    """Cut into windows again."""
    return to_windows(y, window, shift)
