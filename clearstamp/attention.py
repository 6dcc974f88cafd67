"""Attention written out: forwards of attention layers in operations that have a rule each.

Some layers compute attention in one call that `torch.fx` cannot look into. `WRITTEN` holds, for each such module type,
a forward that computes the same from the same parameters in evaluation mode, and keeps the batch first throughout.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torchvision.models.swin_transformer import ShiftedWindowAttention, ShiftedWindowAttentionV2

from clearstamp.errors import TransposeError
from clearstamp.rules import moves, rule


def multi_head(
    self: nn.MultiheadAttention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, None]:
    """`nn.MultiheadAttention` of batch-first inputs ``[n, L, E]``; the attention weights are not handed out."""
    if not self.batch_first or self.bias_k is not None or self.add_zero_attn or key_padding_mask is not None:
        raise TransposeError(
            "attention of a form that is not written out",
            got=f"batch_first={self.batch_first}, add_bias_kv={self.bias_k is not None}, "
            f"add_zero_attn={self.add_zero_attn}, key_padding_mask={key_padding_mask is not None}",
            expected="batch_first=True and none of the others",
        )
    weights: Any = (
        (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        if self.in_proj_weight is None
        else self.in_proj_weight.chunk(3)
    )
    biases: Any = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
    q, k, v = (
        F.linear(x, weights[i], biases[i]).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        for i, x in enumerate((query, key, value))
    )
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask, 0.0, is_causal and attn_mask is None)
    return self.out_proj(mixed.transpose(1, 2).flatten(2)), None


def encoder_layer(
    self: nn.TransformerEncoderLayer,
    src: Tensor,
    src_mask: Tensor | None = None,
    src_key_padding_mask: Tensor | None = None,
    is_causal: bool = False,
) -> Tensor:
    """`nn.TransformerEncoderLayer`."""

    def attend(x: Tensor) -> Tensor:
        return self.self_attn(x, x, x, key_padding_mask=src_key_padding_mask, attn_mask=src_mask, is_causal=is_causal)[
            0
        ]

    def think(x: Tensor) -> Tensor:
        return self.linear2(self.activation(self.linear1(x)))

    if self.norm_first:
        x = src + attend(self.norm1(src))
        return x + think(self.norm2(x))
    x = self.norm1(src + attend(src))
    return self.norm2(x + think(x))


def encoder(
    self: nn.TransformerEncoder,
    src: Tensor,
    mask: Tensor | None = None,
    src_key_padding_mask: Tensor | None = None,
    is_causal: bool | None = None,
) -> Tensor:
    """`nn.TransformerEncoder`."""
    for layer in self.layers:
        src = layer(src, mask, src_key_padding_mask, bool(is_causal))
    return src if self.norm is None else self.norm(src)


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


@rule(from_windows, label="adjoint", source="transpose of a rearrangement", carries="windows")
def windows_again(y: Tensor, windows: Tensor, like: Tensor, window: tuple[int, ...], shift: tuple[int, ...]) -> Tensor:
    """Cut into windows again."""
    return to_windows(y, window, shift)


WRITTEN: dict[type[nn.Module], Callable[..., Any]] = {
    nn.MultiheadAttention: multi_head,
    nn.TransformerEncoderLayer: encoder_layer,
    nn.TransformerEncoder: encoder,
    ShiftedWindowAttention: windowed,
    ShiftedWindowAttentionV2: windowed,
}
"""For each module type, its forward written out."""
