"""Attention written out: forwards of attention layers in operations that have a rule each.

Some layers compute attention in one call that `torch.fx` cannot look into. `WRITTEN` holds, for each such module type,
a forward that computes the same from the same parameters in evaluation mode, and keeps the batch first throughout.
"""

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from clearstamp.errors import TransposeError


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


WRITTEN: dict[type[nn.Module], Callable[..., Any]] = {
    nn.MultiheadAttention: multi_head,
    nn.TransformerEncoderLayer: encoder_layer,
    nn.TransformerEncoder: encoder,
}
"""For each module type, its forward written out."""
