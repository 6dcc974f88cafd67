"""A trained verifier: a small siamese network that says how likely a picture shows a secret (paper, Appendix 7.4).

Both go through the same convolutions. The logit is a weighted sum of correlations: of the picture with the secret, as a
template has it, and of their feature maps, place by place. Without biases a flat picture has flat maps, and is as
unlike one secret as another; neither brightness nor contrast changes anything.

It never decides alone: it is one reader of several, and p comes from the sealed draws whoever reads. `verifier.md`,
beside this file, tells what it was trained on and how well it reads; ``make verifier`` makes it anew.
"""

import hashlib
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load
from torch import Tensor, nn

from clearstamp.errors import StampError

__all__ = ["Verifier", "load_verifier", "scores"]

WEIGHTS = Path(__file__).with_name("verifier.safetensors")
SHA256 = "bfde39df4dea9af88eae25ba650ec1b119eeb333d0e2f11a14fb888fd64718d3"
"""Of the file of weights that belongs to this code."""

SIDE = 28
"""Height and width in pixels at which the network sees a picture or a secret."""
FLAT = 1e-3
"""The norm up to which a map counts as flat; a single pixel that is a grey level brighter makes one near 1."""
AT_ONCE = 256
"""How many pictures are embedded at a time, which bounds the memory."""


class Verifier(nn.Module):
    """The network: pictures ``[n, 28, 28]`` and secrets ``[m, 28, 28]`` in grey levels to logits ``[n, m]``."""

    def __init__(self, channels: int = 16):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, channels, 9, stride=2, padding=4, bias=False),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
        )
        self.weight = nn.Parameter(torch.tensor([5.0] + [10.0 / channels] * channels))
        self.bias = nn.Parameter(torch.tensor(-5.0))

    def embed(self, pictures: Tensor) -> list[Tensor]:
        """The picture itself ``[n, 1, 28, 28]`` and its feature maps ``[n, channels, 14, 14]``, each standardised."""
        seen = standardised(pictures.unsqueeze(1))
        return [seen, standardised(self.features(seen * SIDE))]

    def compare(self, pictures: list[Tensor], secrets: list[Tensor]) -> Tensor:
        """Logits ``[n, m]`` of what `embed` made of pictures and of secrets."""
        weights = self.weight.split([maps.shape[1] for maps in secrets])
        weighted = [maps * weight[:, None, None] for maps, weight in zip(secrets, weights, strict=True)]
        return self.bias + sum(p.flatten(1) @ s.flatten(1).T for p, s in zip(pictures, weighted, strict=True))

    def forward(self, pictures: Tensor, secrets: Tensor) -> Tensor:
        return self.compare(self.embed(pictures), self.embed(secrets))


def standardised(maps: Tensor) -> Tensor:
    """Maps ``[n, c, H, W]``, each of mean 0 and norm 1; flat ones are 0."""
    centred = maps - maps.mean((2, 3), keepdim=True)
    norm = centred.flatten(2).norm(dim=2)[..., None, None]
    return torch.where(norm > FLAT, centred / norm.clamp_min(FLAT), 0.0)


def resized(pictures: Tensor) -> Tensor:
    """Grey pictures ``[n, H, W]`` of whole levels as the network sees them: ``[n, 28, 28]`` float64, still whole.

    Raises `StampError` for anything else, and for height or width under 8.
    """
    whole = pictures.dtype in (torch.uint8, torch.int16, torch.int32, torch.int64)
    if not whole or pictures.dim() != 3 or len(pictures) == 0 or min(pictures.shape[1:]) < 8:
        raise StampError(
            "not grey pictures",
            got=f"{pictures.dtype} {list(pictures.shape)}",
            expected="whole levels, such as torch.uint8, [n, H, W], n >= 1, H and W >= 8",
        )
    levels = pictures.unsqueeze(1).double()
    return F.interpolate(levels, (SIDE, SIDE), mode="bilinear", antialias=True).squeeze(1).round()


@cache
def load_verifier() -> Verifier:
    """The trained network in float64. Raises `StampError` unless its weights are the ones that belong to this code."""
    return read_verifier(WEIGHTS, SHA256)


def read_verifier(path: Path, sha256: str) -> Verifier:
    """The network of a file of weights. Raises `StampError` if the file is missing or has another SHA-256."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise StampError("the weights of the verifier cannot be read", got=error, remedy="install it again") from error
    if (found := hashlib.sha256(content).hexdigest()) != sha256:
        raise StampError(
            "the weights of the verifier are not those that belong to this code",
            got=f"SHA-256 {found}",
            expected=sha256,
            where=path,
            remedy="install clearstamp again, or name the new SHA-256 in the code after `make verifier`",
        )
    weights = load(content)
    verifier = Verifier(channels=len(weights["weight"]) - 1)
    verifier.load_state_dict(weights)
    return verifier.double().eval().requires_grad_(False)


def scores(pictures: Tensor, secrets: Tensor) -> Tensor:
    """How likely each picture shows each secret: logits ``[n, m]``, float64.

    Pictures ``[n, H, W]`` and secrets ``[m, H, W]`` are grey, in whole levels: uint8, or any others, such as what is
    left of them when their mean is taken off. Their sizes may differ. Each is embedded once. The logits are rounded to
    six decimals, so that they are the same for any order and number of pictures. Raises `StampError` for pictures of
    another kind, and if the weights are not those that belong to this code.
    """
    verifier = load_verifier()
    known = verifier.embed(resized(secrets))
    logits = [verifier.compare(verifier.embed(part), known) for part in resized(pictures).split(AT_ONCE)]
    return torch.cat(logits).round(decimals=6)
