"""Tartaglione et al.'s watermark: a picture in secret weights, around which the loss is made to rise."""

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from scipy.stats import pearsonr
from torch import Tensor, nn

from clearstamp.data import LabelledImages
from clearstamp.errors import SchemeError
from clearstamp.pictures import draw_text, random_words
from clearstamp.schemes.base import Evidence, Key, UnfitError
from clearstamp.schemes.locked import LockedWeights, Positions, drawn_positions, in_spreads, placed


@dataclass(frozen=True, kw_only=True)
class Tartaglione(LockedWeights):
    """A picture in weights at secret positions, one for each of its values, which are set before training and locked.

    Tartaglione, Grangetto, Cavagnino and Botta, "Delving in the Loss Landscape to Embed Robust Watermarks into Neural
    Networks", ICPR 2020: the free weights learn the task, and to raise the loss of replicas in which noise moves the
    picture. As read here, the released code steps down that loss instead, lets weight decay shrink what it locks, and
    sets weights ten times the picture's values, whatever the layer; this step goes up, as in Tartaglione's lecture,
    locked weights are put back, and the picture gets mean 0 and `scale` times each layer's own standard deviation. A
    replica's loss above ln C, that of guessing, is not raised further.

    Positions are drawn in random order, so that an unrelated model deals its weights to the pixels of any picture at
    random, and p is that of Pearson's r: exact for normal weights, close for others. The score is r, or 0 below 0.

    Attributes:
        text: on the picture, which has the shape of an input; if empty, up to four letters are drawn.
        replicas: how many each step takes; 0 locks alone.
        deviation: the standard deviation of the noise that moves the picture of a replica, in units of the weights.
        strength: the weight of the replicas' mean loss, lambda, by default that of the released code.
    """

    readable: ClassVar[bool] = True

    text: str = ""
    replicas: int = 4
    deviation: float = 0.01
    strength: float = 1e-6

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.deviation == 0:
            raise SchemeError("settings out of range", got=self, expected="deviation > 0")

    def draw(self, model: nn.Module, data: LabelledImages, *, seed: int) -> Key:
        generator = torch.Generator().manual_seed(seed)
        (word,) = random_words(1, data.shape, generator)
        picture = draw_text(self.text or word, data.shape)
        tensors, settings = placed(model, drawn_positions(model, picture.numel(), generator))
        return Key(self, data.shape, tensors | {"picture": picture}, settings)

    def values(self, key: Key) -> Tensor:
        picture = key["picture"].flatten()
        return (picture - picture.mean()) / picture.std(correction=0)

    @property
    def alone(self) -> bool:
        return self.replicas == 0 or super().alone

    def around(self, positions: Positions, images: Tensor, labels: Tensor) -> Tensor:
        values, losses = positions.values().detach(), []
        for _ in range(self.replicas):
            logits = positions.answers(images, values + self.deviation * torch.randn_like(values))
            losses.append(F.cross_entropy(logits, labels).clamp(max=math.log(logits.shape[1])))
        return torch.stack(losses).mean()

    def forge(self, model: nn.Module, data: LabelledImages, *, seed: int) -> Key:
        """Positions whose weights show the picture, as near as the model has them, faint where `scale` is above 1."""
        drawn = self.draw(model, data, seed=seed)
        weights, wanted = in_spreads(model), self.values(drawn)
        flat = torch.empty(len(wanted), dtype=torch.int64)
        for level in wanted.unique():
            pixels = (wanted == level).nonzero().squeeze(1)
            flat[pixels] = (weights - level).abs().topk(len(pixels), largest=False).indices
            weights[flat[pixels]] = torch.inf
        tensors, _ = placed(model, flat)
        return replace(drawn, tensors=drawn.tensors | tensors)

    def read(self, suspect: nn.Module, key: Key) -> Evidence:
        found, picture = self.locked(suspect, key).cpu().float() / key["spread"] / self.scale, key["picture"]
        if not found.isfinite().all() or found.std() <= 1e-6 * found.abs().max():
            raise UnfitError("weights that are all alike, or no numbers")
        by = pearsonr(found.double().numpy(), picture.double().flatten().numpy(), alternative="greater")
        shown = found.reshape(1, *picture.shape) * picture.std(correction=0) + picture.mean()
        return Evidence(max(0.0, float(by.statistic)), picture.numel(), float(by.pvalue), pictures=shown)
