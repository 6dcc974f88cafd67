"""Attention, however it is written, is run backwards at the attention of the public probe."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.swin_transformer import ShiftedWindowAttention, ShiftedWindowAttentionV2

from clearstamp.stamp import Stamp
from clearstamp.training.losses import StampLoss
from clearstamp.transpose import transpose
from clearstamp.transposed.base import public_probe

SAME = {"rtol": 1e-9, "atol": 1e-9}  # float64, the same sums in another order


def drawn(layer: nn.Module) -> nn.Module:
    """The layer in evaluation mode, with every parameter drawn: none is left at zero."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return layer.double().eval()


def transformer(**given: bool) -> nn.TransformerEncoderLayer:
    return nn.TransformerEncoderLayer(8, 2, 16, **given)


class Itself(nn.Module):
    """Attention of the tokens to one another."""

    def __init__(self, attention: nn.MultiheadAttention):
        super().__init__()
        self.attention = attention

    def forward(self, x: Tensor) -> Tensor:
        values = x if self.attention.vdim == 8 else x[..., : self.attention.vdim]
        if not self.attention.batch_first:
            x, values = x.transpose(0, 1), values.transpose(0, 1)
        mixed, _ = self.attention(x, x, values)
        return mixed if self.attention.batch_first else mixed.transpose(0, 1)


TOKENS, IMAGES = (5, 8), (5, 7, 8)
LAYERS = [
    *(
        (lambda given=given: Itself(nn.MultiheadAttention(8, 2, **given)), TOKENS)
        for given in (
            {"batch_first": True},
            {"batch_first": False},
            {"batch_first": True, "bias": False},
            {"batch_first": True, "kdim": 8, "vdim": 6},
            {"batch_first": True, "add_zero_attn": True},
        )
    ),
    (lambda: transformer(batch_first=True), TOKENS),
    (lambda: transformer(batch_first=True, norm_first=True), TOKENS),
    (
        lambda: nn.TransformerEncoder(transformer(batch_first=True), 2, nn.LayerNorm(8), enable_nested_tensor=False),
        TOKENS,
    ),
    *(
        (lambda kind=kind, window=window, shift=shift, bias=bias: kind(8, window, shift, 2, qkv_bias=bias), IMAGES)
        for kind in (ShiftedWindowAttention, ShiftedWindowAttentionV2)
        for window, shift, bias in (
            ([2, 3], [1, 1], True),
            ([2, 3], [0, 0], True),
            ([5, 2], [2, 1], True),
            ([9, 9], [4, 4], False),
        )
    ),
]


@pytest.mark.parametrize(("make", "shape"), LAYERS)
def test_attention_that_is_linear_in_its_values_is_transposed_exactly(make, shape):
    """At the attention of the probe a layer without an activation is linear, and so is its picture."""
    layer = drawn(make())
    for module in layer.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            module.activation = nn.Identity()
    back = transpose(layer, torch.zeros(1, *shape, dtype=torch.float64))
    y = torch.randn(3, *back.key_shape, dtype=torch.float64)
    one, other = back(y[:1]), back(y[1:2])
    torch.testing.assert_close(back(2 * y[:1] - 3 * y[1:2]), 2 * one - 3 * other, **SAME)
    torch.testing.assert_close(back(y), torch.cat([back(each[None]) for each in y]), **SAME)
    back(y).square().sum().backward()
    weights = {name: weight.grad for name, weight in layer.named_parameters() if weight.dim() > 1}
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in weights.values()), weights.keys()


class Tokens(nn.Module):
    """One attention layer over the rows of an image, behind a class token; the class token's answer goes out."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x.squeeze(1)], 1)
        x, _ = self.attention(x, x, x, need_weights=False)
        return self.head(x[:, 0])


@pytest.mark.parametrize("readout", ["paper", "adjoint"])
def test_attention_is_transposed_at_the_public_probe(readout):
    model, paper = drawn(Tokens()), readout == "paper"
    keys = torch.randn(2, 3, dtype=torch.float64)
    attention = model.attention
    w_q, w_k, w_v = attention.in_proj_weight.chunk(3)
    b_q, b_k, b_v = attention.in_proj_bias.chunk(3)
    tokens = torch.cat([model.token[0], public_probe((1, 5, 8)).double()[0, 0]])
    y = (keys - paper * model.head.bias) @ model.head.weight
    y = (y - paper * attention.out_proj.bias) @ attention.out_proj.weight
    # In `paper` also the tokens that nobody reads lose the bias of the projection that follows them.
    rest = (0 * y - paper * attention.out_proj.bias) @ attention.out_proj.weight
    signal = torch.stack([y, *[rest] * 5], 1)  # [k, tokens, 8]
    values = torch.empty(2, 6, 8, dtype=torch.float64)
    for head in range(2):
        part = slice(4 * head, 4 * head + 4)
        q, k = tokens @ w_q[part].T + b_q[part], tokens @ w_k[part].T + b_k[part]
        weights = (q @ k.T / 2).softmax(-1)
        values[:, :, part] = torch.einsum("ij,nid->njd", weights, signal[:, :, part])
    expected = ((values - paper * b_v) @ w_v)[:, 1:]
    # the first head.bias is taken off once, at the class token alone
    back = transpose(model, torch.zeros(1, 1, 5, 8, dtype=torch.float64), readout=readout)
    torch.testing.assert_close(back(keys)[:, 0], expected, **SAME)


@pytest.mark.parametrize("readout", ["paper", "adjoint"])
def test_gradients_flow_through_the_attention_of_the_probe(readout):
    model = drawn(Tokens())
    back = transpose(model, torch.zeros(1, 1, 5, 8, dtype=torch.float64), readout=readout)
    back(torch.randn(4, 3, dtype=torch.float64)).square().sum().backward()
    assert all(rows.abs().sum() > 0 for rows in model.attention.in_proj_weight.grad.chunk(3))
    assert model.token.grad.abs().sum() > 0, "the probe's attention sees the class token"


PACKED = [
    lambda qkv: qkv.chunk(3, -1),
    lambda qkv: qkv.reshape(len(qkv), -1, 3, 8).permute(2, 0, 1, 3).unbind(0),
    lambda qkv: qkv.split(8, -1),
    lambda qkv: (qkv[..., :8], qkv[..., 8:16], qkv[..., 16:]),
]


@pytest.mark.parametrize("readout", ["paper", "adjoint"])
def test_however_query_key_and_value_are_unpacked_the_picture_is_the_same(readout):
    class Packed(nn.Module):
        def __init__(self, unpack) -> None:
            super().__init__()
            self.qkv, self.head, self.unpack = nn.Linear(8, 24), nn.Linear(8, 3), unpack

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.unpack(self.qkv(x))
            return self.head((x + F.scaled_dot_product_attention(q, k, v)).mean(1))

    k = torch.randn(2, 3, dtype=torch.float64)
    images = [
        transpose(drawn(Packed(unpack)), torch.zeros(1, 5, 8, dtype=torch.float64), readout=readout)(k)
        for unpack in PACKED
    ]
    for image in images[1:]:
        torch.testing.assert_close(image, images[0], **SAME)


def test_other_weights_reach_the_probe_too():
    model, other = drawn(Tokens()).float(), drawn(Tokens()).float()
    with torch.no_grad():
        for weight in other.parameters():
            weight.add_(0.1)
    stamp = Stamp.from_secrets(torch.rand(2, 1, 11, 8), outputs=3, seed=0)
    back, expected = (transpose(m, stamp.secrets[:1], readout="adjoint") for m in (model, other))
    images = StampLoss(back, stamp, dropout=0.0).walk(stamp.keys, dict(other.named_parameters()))
    torch.testing.assert_close(images, expected(stamp.keys))
