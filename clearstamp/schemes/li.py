"""Li et al.'s blind watermark: key samples that look like ordinary images, made by a trained encoder."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain, islice, repeat
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clearstamp.data import Batches, LabelledImages
from clearstamp.errors import SchemeError
from clearstamp.pictures import draw_text
from clearstamp.schemes.base import Key, device_of, driven, outputs_of, size_of, training_images
from clearstamp.schemes.triggers import Labelled
from clearstamp.scores import structural_similarity

ENCODER = "encoder/"


@dataclass(frozen=True, kw_only=True)
class Li(Labelled):
    """Images into which an encoder blends a logo, unseen, each with a drawn label that the model learns.

    Li, Hu, Zhang and Guo, "How to Prove Your Model Belongs to You", ACSAC 2019: encoder, a discriminator that tries to
    tell its samples from images, and the model learn against each other. As labels are drawn and committed to, p is
    exact, where the paper asks for an accuracy near 1. Open there, and chosen here: the logo is a text, covers are
    drawn from the training images, squared errors are taken of images from -1 to 1, and the optimizer of the model is
    whatever the task has.

    Attributes:
        share: of the training images that are covers.
        per_batch: covers in each batch.
        logo: the text on the logo.
        similarity: weight of the mean squared error between sample and cover.
        structure: weight of 1 - SSIM.
        deception: weight of the discriminator's loss.
        response: weight of the model's loss on its labels; the released code has 0.1, and 1 for `deception`.
        lr: the learning rate of encoder and discriminator (Adam, betas 0.5 and 0.999).
    """

    drawn_labels: ClassVar[bool] = True

    share: float = 0.01
    per_batch: int = 20
    logo: str = "©"
    similarity: float = 3.0
    structure: float = 5.0
    deception: float = 0.1
    response: float = 0.01
    lr: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.per_batch < 1:
            raise SchemeError("settings out of range", got=self, expected="per_batch >= 1")

    def draw(self, model: nn.Module, data: LabelledImages, *, seed: int) -> Key:
        covers, _ = training_images(data, max(1, round(self.share * size_of(data))), seed=seed)
        outputs = outputs_of(model, data)
        labels = torch.randint(outputs, (len(covers),), generator=torch.Generator().manual_seed(seed))
        logo = draw_text(self.logo, data.shape)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            encoder = encoder_for(data.shape)
        drawn = Key(self, data.shape, {"covers": covers, "labels": labels, "logo": logo}, {"classes": outputs})
        return with_encoder(drawn, encoder)

    def batches(self, model: nn.Module, loader: Batches, key: Key) -> "Game":
        return Game(self, model, key, loader)

    def completed(self, key: Key, batches: Batches) -> Key:
        assert isinstance(batches, Game), "as this scheme makes them"
        return with_encoder(key, batches.encoder)

    def queries(self, key: Key) -> Tensor:
        return key["samples"]

    def forge(self, model: nn.Module, data: LabelledImages, *, seed: int) -> Key:
        drawn = self.draw(model, data, seed=seed)
        return replace(drawn, tensors=drawn.tensors | {"samples": driven(model, drawn["samples"], drawn["labels"])})


class Game:
    """The task's batches, with key samples at the end of each; before each, discriminator and encoder take a step."""

    def __init__(self, scheme: Li, model: nn.Module, key: Key, loader: Batches):
        self.scheme, self.model, self.loader, self.device = scheme, model, loader, device_of(model)
        self.encoder = encoder_of(key).to(self.device).train()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(key["labels"].sum()))
            self.discriminator = discriminator_for(key.shape).to(self.device)
        self.covers, self.labels, self.logo = (key[name].to(self.device) for name in ("covers", "labels", "logo"))
        self.turns = chain.from_iterable(repeat(range(len(self.labels))))
        self.encoding, self.telling = (
            torch.optim.Adam(net.parameters(), lr=scheme.lr, betas=(0.5, 0.999))
            for net in (self.encoder, self.discriminator)
        )

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in self.loader:
            turn = list(islice(self.turns, self.scheme.per_batch))
            with torch.autocast(self.device.type, enabled=False):
                samples = self.step(self.covers[turn], self.labels[turn])
            yield torch.cat([images.to(self.device), samples]), torch.cat([labels.to(self.device), self.labels[turn]])

    def step(self, covers: Tensor, labels: Tensor) -> Tensor:
        """One step of the discriminator and one of the encoder; the samples ``[m, C, H, W]`` that the model gets."""
        samples, by = self.encoder(covers, self.logo), self.scheme
        told = self.discriminator(torch.cat([covers, samples.detach()])).squeeze(1)
        genuine = torch.cat([torch.ones(len(covers)), torch.zeros(len(covers))]).to(told)
        self.telling.zero_grad()
        F.binary_cross_entropy_with_logits(told, genuine).backward()
        self.telling.step()
        deceived = self.discriminator(samples).squeeze(1)
        loss = by.similarity * F.mse_loss(2 * samples, 2 * covers)
        loss = loss + by.structure * (1 - structural_similarity(samples, covers)).mean()
        loss = loss + by.deception * F.binary_cross_entropy_with_logits(deceived, torch.ones_like(deceived))
        loss = loss + by.response * F.cross_entropy(self.model(samples), labels)
        self.encoding.zero_grad()
        own = list(self.encoder.parameters())
        for weight, slope in zip(own, torch.autograd.grad(loss, own), strict=True):
            weight.grad = slope
        self.encoding.step()
        return samples.detach()


class Encoder(nn.Module):
    """From covers ``[n, C, H, W]`` in [0, 1] and a logo ``[C, H, W]`` to samples like the covers.

    Cover and logo each pass a stem to three channels; `body` makes one image of both, from -1 to 1.
    """

    def __init__(self, channels: int, body: nn.Module):
        super().__init__()
        self.cover, self.mark = stem(channels), stem(channels)
        self.body = body

    def forward(self, covers: Tensor, logo: Tensor) -> Tensor:
        marks = logo.expand(len(covers), -1, -1, -1)
        joined = torch.cat([self.cover(2 * covers - 1), self.mark(2 * marks - 1)], 1)
        return (self.body(joined) + 1) / 2


class UNet(nn.Module):
    """Halves the size at each of `widths`, doubles it again, and hands what it halves on to the other side."""

    def __init__(self, channels: int, outputs: int, widths: tuple[int, ...] = (64, 128, 256, 512)):
        super().__init__()
        inner = (channels, *widths)
        self.down = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 4, 2, 1), nn.BatchNorm2d(b), nn.LeakyReLU(0.2))
            for a, b in zip(inner, widths, strict=False)
        )
        self.up = nn.ModuleList(
            nn.Sequential(
                nn.ConvTranspose2d(b if b == widths[-1] else 2 * b, a, 4, 2, 1), nn.BatchNorm2d(a), nn.LeakyReLU(0.2)
            )
            for a, b in zip(reversed(widths[:-1]), reversed(widths), strict=False)
        )
        self.last = nn.Sequential(nn.ConvTranspose2d(2 * widths[0], outputs, 4, 2, 1), nn.Tanh())

    def forward(self, images: Tensor) -> Tensor:
        passed: list[Tensor] = []
        for halve in self.down:
            images = halve(images)
            passed.append(images)
        passed.pop()
        for double in self.up:
            images = torch.cat([double(images), passed.pop()], 1)
        return self.last(images)


def stem(channels: int) -> nn.Sequential:
    """What an image passes before it meets the other."""
    return nn.Sequential(nn.ConvTranspose2d(channels, 3, 3, 1, 1), nn.BatchNorm2d(3), nn.LeakyReLU(0.2))


def encoder_for(shape: tuple[int, ...]) -> Encoder:
    """The encoder for images (C, H, W): the U-Net where four halvings leave whole pixels, else four convolutions."""
    channels, height, width = shape
    if height % 16 == 0 and width % 16 == 0:
        return Encoder(channels, UNet(6, channels))
    hidden: list[nn.Module] = []
    for inner in (6, 64, 64):
        hidden += [nn.Conv2d(inner, 64, 3, padding=1), nn.BatchNorm2d(64), nn.LeakyReLU(0.2)]
    return Encoder(channels, nn.Sequential(*hidden, nn.Conv2d(64, channels, 3, padding=1), nn.Tanh()))


def discriminator_for(shape: tuple[int, ...]) -> nn.Sequential:
    """From images ``[n, C, H, W]`` to logits ``[n, 1]``: how like a cover each looks."""
    channels, height, width = shape
    if channels == 1:
        parts: list[nn.Module] = [nn.Flatten(), nn.Linear(height * width, 64), nn.LeakyReLU(0.2), nn.Linear(64, 32)]
        return nn.Sequential(*parts, nn.LeakyReLU(0.2), nn.Linear(32, 1))
    parts = []
    widths = (channels, 8, 16, 32, 16, 8, 3)
    for place, (a, b) in enumerate(zip(widths, widths[1:], strict=False)):
        ends = place in (0, len(widths) - 2)
        parts += [nn.Conv2d(a, b, 4, 2, 1) if ends else nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU()]
    return nn.Sequential(*parts, nn.Flatten(), nn.Linear(3 * (height // 4) * (width // 4), 1))


def encoder_of(key: Key) -> Encoder:
    """The encoder that a key holds. Raises `SchemeError` for the key of another scheme."""
    if not isinstance(key.scheme, Li):
        raise SchemeError("the key holds no encoder", got=key.scheme.name, expected=Li.name)
    encoder = encoder_for(key.shape)
    encoder.load_state_dict(
        {name.removeprefix(ENCODER): each for name, each in key.tensors.items() if name.startswith(ENCODER)}
    )
    return encoder


@torch.no_grad()
def encoded(key: Key, images: Tensor) -> Tensor:
    """The samples ``[n, C, H, W]`` that a key's encoder makes of images like its covers."""
    encoder = encoder_of(key).eval()
    return torch.cat([encoder(part, key["logo"]) for part in images.split(250)])


def with_encoder(key: Key, encoder: Encoder) -> Key:
    """The key with an encoder and the samples that it makes, which no longer depend on a batch."""
    weights = {ENCODER + name: tensor.detach().cpu().clone() for name, tensor in encoder.state_dict().items()}
    held = replace(key, tensors={**key.tensors, **weights})
    return replace(held, tensors={**held.tensors, "samples": encoded(held, key["covers"])})
