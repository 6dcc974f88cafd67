"""Attention written out computes what the layers compute, and is run backwards as its formula says."""

import copy
from types import MethodType

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.swin_transformer import ShiftedWindowAttention, ShiftedWindowAttentionV2

from clearstamp.attention import WRITTEN
from clearstamp.errors import TransposeError
from clearstamp.losses import StampLoss
from clearstamp.stamp import Stamp
from clearstamp.transpose import public_probe, transpose
from clearstamp.vision import from_windows, to_windows

SAME = {"rtol": 1e-9, "atol": 1e-9}  # float64, the same sums in another order


def drawn(layer: nn.Module) -> nn.Module:
    """The layer in evaluation mode, with every parameter drawn: none is left at zero."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return layer.double().eval()


def transformer(**given: bool) -> nn.TransformerEncoderLayer:
    return nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, **given)


TOKENS, IMAGES = (5, 8), (5, 7, 8)
LAYERS = [
    (lambda: nn.MultiheadAttention(8, 2, batch_first=True), TOKENS),
    (lambda: nn.MultiheadAttention(8, 2, batch_first=True, bias=False), TOKENS),
    (lambda: nn.MultiheadAttention(8, 2, batch_first=True, kdim=8, vdim=6), TOKENS),
    (transformer, TOKENS),
    (lambda: transformer(norm_first=True), TOKENS),
    (lambda: nn.TransformerEncoder(transformer(), 2, norm=nn.LayerNorm(8), enable_nested_tensor=False), TOKENS),
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
def test_a_written_layer_computes_what_the_layer_computes(make, shape):
    layer = drawn(make())
    x = torch.randn(3, *shape, dtype=torch.float64)
    inputs = (x, x, x[..., : layer.vdim]) if isinstance(layer, nn.MultiheadAttention) else (x,)
    expected = layer(*inputs)
    for module in layer.modules():
        if type(module) in WRITTEN:
            module.forward = MethodType(WRITTEN[type(module)], module)
    found = layer(*inputs)
    if isinstance(layer, nn.MultiheadAttention):
        found, expected = found[0], expected[0]
    torch.testing.assert_close(found, expected, **SAME)


def test_every_written_layer_is_tested():
    assert {type(make()) for make, _ in LAYERS} == set(WRITTEN)


@pytest.mark.parametrize("window", [(2, 3), (5, 4), (7, 7)])
@pytest.mark.parametrize("shift", [(0, 0), (1, 2)])
def test_windows_are_put_together_again(window, shift):
    x = torch.randn(2, 5, 8, 3)
    assert torch.equal(from_windows(to_windows(x, window, shift), x, window, shift), x)


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


def test_writing_out_leaves_the_model_as_it_is():
    model = drawn(Tokens())
    before = copy.deepcopy(vars(model.attention))
    transpose(model, torch.zeros(1, 1, 5, 8, dtype=torch.float64), readout="adjoint")
    assert vars(model.attention).keys() == before.keys()


def test_attention_of_another_form_is_refused():
    class Late(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.attention(x, x, x)[0].flatten(1)

    with pytest.raises(TransposeError, match="not written out; got: batch_first=False.*expected: batch_first=True"):
        transpose(Late(), torch.zeros(1, 5, 8))


def test_other_weights_reach_the_probe_too():
    model, other = drawn(Tokens()).float(), drawn(Tokens()).float()
    with torch.no_grad():
        for weight in other.parameters():
            weight.add_(0.1)
    stamp = Stamp.from_secrets(torch.rand(2, 1, 11, 8), outputs=3, seed=0)
    back, expected = (transpose(m, stamp.secrets[:1], readout="adjoint") for m in (model, other))
    images = StampLoss(back, stamp, dropout=0.0).walk(stamp.keys, dict(other.named_parameters()))
    torch.testing.assert_close(images, expected(stamp.keys))
