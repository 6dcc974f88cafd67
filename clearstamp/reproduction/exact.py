"""The exact readout beyond images: networks that no rule knows, and pictures seen through an interface."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from clearstamp.reading import read
from clearstamp.reproduction.experiments import Experiment, Findings, Settings
from clearstamp.reproduction.lifecycle import LifeSettings, OnModel, text_stamp, trained
from clearstamp.reproduction.profiles import load_sets
from clearstamp.reproduction.records import Stage
from clearstamp.scores import correlation, similarity
from clearstamp.training.loops import fit, harden
from clearstamp.training.losses import StampLoss
from clearstamp.training.schedules import Joint
from clearstamp.transpose import transpose
from clearstamp.transposed.queries import read_by_queries

# ------------------------------------------------------------------------------------------- through an interface


@dataclass(frozen=True)
class Interface:
    """What a service tells of a model's answers: logits or probabilities, whole or in part.

    Attributes:
        probabilities: whether it tells these, and not logits.
        decimals: digits after the point to which it rounds; None for all.
        noise: standard deviation of the normal error that it adds.
        top: how many of the classes it tells, the likeliest; None for all.
        step: of the queries that it is asked, see `read_by_queries`.
    """

    probabilities: bool = False
    decimals: int | None = None
    noise: float = 0.0
    top: int | None = None
    step: float = 1e-3

    def shown(self, model: nn.Module) -> Callable[[Tensor], Tensor]:
        """The interface of a model: images ``[n, *input]`` in, answers ``[n, classes]`` out."""
        model.eval()

        @torch.no_grad()
        def ask(images: Tensor) -> Tensor:
            device = next(model.parameters()).device
            with torch.autocast(device.type, enabled=False):
                answers = model(images.to(device))
            answers = answers.double().softmax(1) if self.probabilities else answers
            if self.noise:
                answers = answers + self.noise * torch.randn_like(answers)
            if self.decimals is not None:
                answers = answers.round(decimals=self.decimals)
            if self.top is not None:
                answers = answers * (answers >= answers.topk(self.top).values[:, -1:])
            return answers

        return ask


@dataclass(frozen=True, kw_only=True)
class Interviewed(OnModel):
    """The first `keys` pictures of a marked model as its `interfaces` show them, and after how many queries.

    Scored are the correlation with the exact picture and the SSIM with the secret.
    """

    interfaces: dict[str, Interface] = field(hash=False)
    keys: int = 4
    shares: tuple[float, ...] = (0.05, 0.1, 0.2, 0.4, 1.0)

    def conduct(self, settings: LifeSettings, seed: int) -> Findings:
        (needed,) = settings.needs
        sets, model = load_sets(settings.images), trained(needed, seed)
        shape = sets.train.shape
        stamp = settings.stamp(shape=shape, outputs=sets.train.classes, seed=seed).pick(torch.arange(self.keys))
        exact = read(transpose(model, stamp.secrets[:1], readout="gradient"), stamp)
        stages = [Stage(label="exact", scores=exact.summary())]
        arrays = {"secrets": stamp.secrets, "exact": exact.images}
        torch.manual_seed(seed)
        size = stamp.secrets[0].numel()
        for name, interface in self.interfaces.items():
            for share in self.shares if name == next(iter(self.interfaces)) else (1.0,):
                found = read_by_queries(
                    interface.shown(model),
                    stamp.keys,
                    shape,
                    coefficients=max(1, round(share * size)),
                    step=interface.step,
                    probabilities=interface.probabilities,
                )
                label = f"{name}, {share:.0%}"
                scores = {
                    "queries": found.queries / len(stamp),
                    "exact correlation": correlation(found.images, exact.images).mean().item(),
                    "ssim": similarity(found.images, stamp.secrets).mean().item(),
                }
                stages.append(Stage(label=label, scores=scores))
                arrays[label] = found.images
        return stages, arrays, {}


# ------------------------------------------------------------------------------------------ networks without a rule


@dataclass(frozen=True)
class Task:
    """A network that no rule knows, or whose inputs are no images, and what it learns: inputs and labels from seeds."""

    model: Callable[[], nn.Module]
    draw: Callable[[int], tuple[Tensor, Tensor]]


class RowsInTurn(nn.Module):
    """An LSTM that reads the rows ``[b, 24, 24]`` of a picture one after another."""

    def __init__(self, hidden: int = 96, outputs: int = 8):
        super().__init__()
        self.lstm = nn.LSTM(24, hidden, batch_first=True)
        self.head = nn.Linear(hidden, outputs)

    def forward(self, rows: Tensor) -> Tensor:
        states, _ = self.lstm(rows)
        return self.head(states.mean(1))


def segmenter() -> nn.Module:
    """A U-shaped network without its bridges: pictures ``[b, 1, 24, 24]`` to a class for every pixel, of two."""
    return nn.Sequential(
        *(nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(64, 128, 5, padding=2), nn.ReLU(), nn.Upsample(scale_factor=4, mode="bilinear")),
        *(nn.Conv2d(128, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 2, 1)),
    )


def listener() -> nn.Module:
    """A network of one-dimensional convolutions: sound ``[b, 1, 576]`` to one of eight pitches."""
    return nn.Sequential(
        *(nn.Conv1d(1, 32, 9, stride=2, padding=4), nn.ReLU(), nn.Conv1d(32, 64, 9, stride=4, padding=4), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(64 * 72, 128), nn.ReLU(), nn.Linear(128, 8)),
    )


def stripes(count: int) -> tuple[Tensor, Tensor]:
    """Pictures ``[count, 24, 24]`` of waves in noise, and in which of eight directions they run."""
    labels = torch.randint(8, (count,))
    down, right = torch.meshgrid(torch.arange(24.0), torch.arange(24.0), indexing="ij")
    angles = (labels * torch.pi / 8).reshape(-1, 1, 1)
    waves = (0.9 * (down * angles.sin() + right * angles.cos()) + 6.28 * torch.rand(count, 1, 1)).sin()
    return (0.5 + 0.3 * waves + 0.1 * torch.randn(count, 24, 24)).clamp(0, 1), labels


def discs(count: int) -> tuple[Tensor, Tensor]:
    """Pictures ``[count, 1, 24, 24]`` of a bright disc in noise, and which pixels ``[count, 24, 24]`` it covers."""
    down, right = torch.meshgrid(torch.arange(24.0), torch.arange(24.0), indexing="ij")
    places, radii = 6 + 12 * torch.rand(count, 2, 1, 1), 3 + 4 * torch.rand(count, 1, 1)
    inside = ((down - places[:, 0]) ** 2 + (right - places[:, 1]) ** 2).sqrt() < radii
    return (0.3 + 0.4 * inside + 0.15 * torch.randn(count, 24, 24)).clamp(0, 1).unsqueeze(1), inside.long()


def tones(count: int) -> tuple[Tensor, Tensor]:
    """Sound ``[count, 1, 576]`` of one tone in noise, and which of eight pitches it has."""
    labels = torch.randint(8, (count,))
    pitches = (0.1 * 2 ** (labels / 3)).reshape(-1, 1, 1)
    waves = (torch.arange(576.0) * pitches + 6.28 * torch.rand(count, 1, 1)).sin()
    return (0.5 + 0.25 * waves + 0.1 * torch.randn(count, 1, 576)).clamp(0, 1), labels


TASKS = {
    "LSTM": Task(RowsInTurn, stripes),
    "segmentation": Task(segmenter, discs),
    "sound": Task(listener, tones),
}


@dataclass(frozen=True, kw_only=True)
class Unruled(Experiment):
    """Each of `TASKS` hardened with four keys, trained jointly on images that a seed draws, and read after both."""

    steps: int = 1000
    images: int = 4096
    epochs: int = 6
    lr: float = 1e-3
    every: int = 1

    def conduct(self, settings: Settings, seed: int) -> Findings:
        share = {"paper": 1, "quick": 8}.get(settings.profile, 64)
        stages, arrays = [], {}
        for name, task in TASKS.items():
            torch.manual_seed(seed)
            (inputs, labels), test = task.draw(self.images // share), task.draw(500)
            model = task.model()
            back = transpose(model, inputs[:1], readout="gradient")
            stamp = text_stamp(4, outputs=back.key_shape, shape=back.image_shape, seed=seed)
            harden(back, stamp, steps=self.steps // share, target=None, lr=self.lr, dropout=0.0, progress=False)
            for moment in ("hardened", "trained"):
                if moment == "trained":
                    batches = DataLoader(TensorDataset(inputs, labels), 64, shuffle=True)
                    loss = StampLoss(back, stamp, dropout=0.0)
                    about: dict[str, Any] = {"lr": self.lr, "stamp_loss": loss, "schedule": Joint(every=self.every)}
                    fit(model, batches, epochs=self.epochs, progress=False, **about)
                with torch.no_grad():
                    right = (model.eval()(test[0]).argmax(1) == test[1]).double().mean().item()
                reading = read(back, stamp)
                stages.append(
                    Stage(label=f"{name}, {moment}", network=name, scores=reading.summary() | {"accuracy": right})
                )
                arrays[f"{name}, {moment}"] = reading.images
            arrays[f"{name}, secrets"] = stamp.secrets
        return stages, arrays, {}
