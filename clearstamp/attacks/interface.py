"""Attackers who change what a suspect is asked or answers, and none of its weights.

The model goes behind a `clearstamp.wrapped.Wrapped`. Accuracy is that of what it answers then. An owner who has the
weights reads the model inside: to them, these attacks do nothing.
"""

from abc import abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clearstamp.attacks.base import Attack, Scene, check
from clearstamp.training.steps import adam
from clearstamp.transposed.graph import unwrapped
from clearstamp.wrapped import Wrapped


@dataclass(frozen=True, kw_only=True)
class Interface(Attack):
    """An attack that puts the model behind an interface."""

    def run(self, scene: Scene) -> None:
        scene.model = self.wrapped(scene)
        if scene.mark.scheme.access == "weights":
            scene.evidence = unwrapped

    @abstractmethod
    def wrapped(self, scene: Scene) -> Wrapped:
        """The model behind the interface. Raises `AttackError` for settings out of range."""


@dataclass(frozen=True, kw_only=True)
class QueryNoise(Interface):
    """Add normal noise of spread `scale` to every input before the model sees it, drawn anew at every query.

    Against marks that are read from small differences between answers (Aramoon et al., GradSigns, 2021).
    """

    scale: float = 0.05

    def wrapped(self, scene: Scene) -> Wrapped:
        check(0 <= self.scale < float("inf"), "noise out of range", self.scale, "a finite number, at least 0")
        return Noisy(scene.model, self.scale, scene.seed)


class Noisy(Wrapped):
    """A model that is asked with noise, from a generator of its own."""

    def __init__(self, model: nn.Module, scale: float, seed: int):
        super().__init__(model)
        self.scale, self.random = scale, torch.Generator().manual_seed(seed)

    def asked(self, images: Tensor) -> Tensor:
        return images + self.scale * torch.randn(images.shape, generator=self.random).to(images)


@dataclass(frozen=True, kw_only=True)
class ScoreRounding(Interface):
    """Answer with probabilities that are rounded to so many `decimals` (Aramoon et al., GradSigns, 2021: 4 to 1).

    The answer holds their logarithms, in the place of logits. A probability that was rounded to 0 is answered as the
    least that float32 holds. Classes may share the first place then, of which the first one counts for accuracy.
    """

    decimals: int = 2

    def wrapped(self, scene: Scene) -> Wrapped:
        check(1 <= self.decimals <= 7, "number of decimals out of range", self.decimals, "1 to 7")
        return Rounded(scene.model, self.decimals)


class Rounded(Wrapped):
    """A model whose probabilities are rounded."""

    def __init__(self, model: nn.Module, decimals: int):
        super().__init__(model)
        self.decimals = decimals

    def answered(self, logits: Tensor) -> Tensor:
        return logarithms(logits.double().softmax(1).round(decimals=self.decimals))


@dataclass(frozen=True, kw_only=True)
class ScorePerturbation(Interface):
    """Answer with probabilities of which a random part went from the likeliest class to the least likely one.

    At most so much that the order of the first `kept` classes stays, and so does accuracy; drawn anew for every image.
    As in the code that Aramoon et al. published with GradSigns (2021). The answer holds logarithms of the
    probabilities, in the place of logits.
    """

    kept: int = 3

    def wrapped(self, scene: Scene) -> Wrapped:
        check(self.kept >= 2, "number of classes out of range", self.kept, "at least 2")
        return Perturbed(scene.model, self.kept, scene.seed)


class Perturbed(Wrapped):
    """A model whose least likely class is answered as likelier than it is, at the cost of the likeliest."""

    def __init__(self, model: nn.Module, kept: int, seed: int):
        super().__init__(model)
        self.kept, self.random = kept, torch.Generator().manual_seed(seed)

    def answered(self, logits: Tensor) -> Tensor:
        scores = logits.double().softmax(1)
        ranked, classes = scores.sort(dim=1, descending=True, stable=True)
        lead, rise = ranked[:, 0] - ranked[:, 1], ranked[:, min(self.kept, ranked.shape[1]) - 1] - ranked[:, -1]
        share = torch.rand(len(scores), generator=self.random).to(scores)
        moved = (share * torch.minimum(lead, rise)).unsqueeze(1)
        return logarithms(scores.scatter_add(1, classes[:, [0, -1]], torch.cat([-moved, moved], 1)))


def logarithms(scores: Tensor) -> Tensor:
    """Logarithms of probabilities, of which 0 counts as the least that float32 holds."""
    return scores.clamp_min(torch.finfo(torch.float32).tiny).log()


@dataclass(frozen=True, kw_only=True)
class Sanitizer(Interface):
    """Send every input through an autoencoder first, which keeps what images have in common and loses the rest.

    It is trained on the attacker's images, for their mean squared error: two convolutions of stride 2, `width` channels
    wide, and two more after their output was brought back to the size of the image.
    """

    epochs: int = 5
    lr: float = 1e-3
    width: int = 16

    def wrapped(self, scene: Scene) -> Wrapped:
        check(self.epochs >= 1, "number of epochs out of range", self.epochs, "at least 1")
        check(self.width >= 1, "width out of range", self.width, "at least 1")
        batches = scene.need_data().loader(seed=scene.seed)
        autoencoder = Autoencoder(scene.shape[0], self.width).to(scene.device)
        descent = adam(autoencoder.parameters(), lr=self.lr)
        for _ in range(self.epochs):
            for images, _ in batches:
                images = images.to(scene.device)
                descent.zero_grad()
                F.mse_loss(autoencoder(images), images).backward()
                descent.step()
                scene.steps += 1
        return Sanitized(scene.model, autoencoder)


class Autoencoder(nn.Module):
    """Images ``[n, C, H, W]`` by way of a quarter of their height and width."""

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.encode = nn.Sequential(
            *(nn.Conv2d(channels, width, 3, stride=2, padding=1), nn.ReLU()),
            *(nn.Conv2d(width, width, 3, stride=2, padding=1), nn.ReLU()),
        )
        self.decode = nn.Sequential(
            *(nn.Conv2d(width, width, 3, padding=1), nn.ReLU()),
            nn.Conv2d(width, channels, 3, padding=1),
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.decode(F.interpolate(self.encode(images), images.shape[2:], mode="bilinear", align_corners=False))


class Sanitized(Wrapped):
    """A model that sees what an autoencoder makes of its inputs."""

    def __init__(self, model: nn.Module, autoencoder: nn.Module):
        super().__init__(model)
        self.autoencoder = autoencoder.train(model.training)

    def asked(self, images: Tensor) -> Tensor:
        return self.autoencoder(images)
