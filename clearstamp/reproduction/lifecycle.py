"""The life cycle of a stamp as one experiment: a model is hardened, trained, fine-tuned, and read after each."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from clearstamp.errors import ClearStampError, RecordError
from clearstamp.losses import StampLoss
from clearstamp.method import Alternating, Joint
from clearstamp.reading import Reading, read
from clearstamp.reproduction.experiments import FEW, Experiment, Findings, Profile, device, load_sets, trained_weights
from clearstamp.reproduction.records import READOUTS, Moment, Readout, Score, Stage
from clearstamp.scores import similarity
from clearstamp.stamp import PAPER_KEY, Stamp
from clearstamp.training import OPTIMIZERS, Fit, accuracy, fit, harden
from clearstamp.transpose import Transposed, freeze, transpose
from clearstamp.zoo.networks import MODELS, build

FOUR_LETTERS = tuple("".join(chr(65 + (4 * i + j * (1 + 2 * (i // 13))) % 26) for j in range(4)) for i in range(20))
ONE_LETTER = tuple("ABCDEFGHIJKLMNOPQRST")
ICONS = tuple("★☎♞♥☂⚓✈☀♫✂☃")
SECRETS = {"four letters": FOUR_LETTERS, "one letter": ONE_LETTER, "icons": ICONS}
"""The paper's three kinds of secrets."""


@dataclass(frozen=True, kw_only=True)
class LifeCycle(Experiment):
    """One experiment: everything that decides its result but the profile's scale and the seed.

    `keys` counts the stamp's pairs, 0 for a model without a stamp; `paper_key` takes the paper's single key.
    Hardening stops at the mean SSIM `target`, or as in the paper after all its steps for None. `until` is the last
    stage that is run. `lr` is that of hardening and training, as in the paper's default scenario (its Tables 2 and
    3 have 1e-3); fine-tuning takes a tenth of it. `dropout` acts in hardening and constraint training, `noise`
    (`relative` or not, see `StampLoss`; the paper has none) in constraint training alone, where a stamp step comes
    after each `every`-th task step, or `joint` with it (see `fit`). `precision` stands for the profile's, and
    `dataset` for the profile's own where that is not the embedded digits; `epochs` and `hardening_steps` stand for
    those of the profile ``paper``, and `small` for `model` in all others.
    """

    looks: ClassVar[int] = FEW
    """Of how many keys a record of attacks on the model keeps the pictures."""

    readout: Readout = "paper"
    model: str = "cnn"
    keys: int = 11
    paper_key: bool = False
    secrets: str = "four letters"
    key_range: float = 10.0
    target: float | None = 0.99
    optimizer: str = "adam"
    lr: float = 1e-4
    dropout: float = 0.0
    noise: float = 0.0
    relative: bool = False
    every: int = 1
    joint: bool = False
    precision: Literal["float32", "bfloat16"] | None = None
    batch_size: int = 64
    until: Literal["hardened", "finetuned"] = "finetuned"
    dataset: str | None = None
    small: str | None = None
    epochs: int | None = None
    hardening_steps: int | None = None

    def scaled(self, scale: Profile) -> Profile:
        own: dict[str, Any] = {"precision": self.precision}
        if scale.name == "paper":
            own |= {"epochs": self.epochs, "hardening_steps": self.hardening_steps}
        return replace(scale.on(self.dataset), **{name: value for name, value in own.items() if value is not None})

    def check(self, scale: Profile) -> Iterator[ClearStampError]:
        yield from super().check(scale)
        if (name := self.network(scale)) not in MODELS:
            yield RecordError("unknown model", got=repr(name), expected=" or ".join(map(repr, MODELS)))
        try:
            self.texts()
        except ClearStampError as error:
            yield error

    def network(self, scale: Profile) -> str:
        """The model's name at this scale."""
        return self.small if self.small and scale.name != "paper" else self.model

    def conduct(self, scale: Profile, seed: int) -> Findings:
        return (plain if self.keys == 0 else marked)(self, scale, seed)

    def loss(self, back: Transposed, stamp: Stamp) -> StampLoss:
        """The loss of constraint training."""
        return StampLoss(back, stamp, dropout=self.dropout, noise=self.noise, relative=self.relative)

    def tune(self, life: "Life") -> None:
        """Somebody's fine-tuning, at a tenth of the learning rate."""
        batches = life.sets.train.loader(self.batch_size, seed=life.seed + 1000)
        optimizer = OPTIMIZERS[self.optimizer]
        fit(
            life.model, batches, epochs=life.scale.finetune_epochs, lr=self.lr / 10, optimizer=optimizer, progress=False
        )
        life.look("finetuned")

    def texts(self) -> tuple[str, ...]:
        """What the secrets show. Raises `RecordError` if there is not as much of it."""
        texts = SECRETS.get(self.secrets, ())[: self.keys]
        if len(texts) < self.keys:
            raise RecordError("not that many secrets", got=self.keys, expected=f"at most {len(texts)} {self.secrets}")
        return texts

    def stamp(self, shape: tuple[int, int, int], outputs: int, seed: int) -> Stamp:
        """The stamp, its keys drawn from `seed`."""
        drawn = Stamp.from_texts(self.texts(), outputs=outputs, shape=shape, seed=seed, key_range=self.key_range)
        return replace(drawn, keys=torch.tensor([PAPER_KEY])) if self.paper_key else drawn


@dataclass(frozen=True, kw_only=True)
class Fingerprint(LifeCycle):
    """Hardening alone, for its whole length, read as ever and in training mode: the mean of `WALKS` walks with dropout.

    The paper does not give the rate of its dropout, nor the mode in which it reads, but what SSIM it reached by how
    many steps on which networks: what a rate gives there tells whether it may have been the paper's.
    """

    WALKS: ClassVar[int] = 20

    target: float | None = None
    until: Literal["hardened", "finetuned"] = "hardened"

    def conduct(self, scale: Profile, seed: int) -> Findings:
        life = hardened(self, scale, seed)
        stamp = life.stamp.to(device())
        with torch.no_grad():
            walks = [similarity(life.back(stamp.keys, dropout=self.dropout), stamp.secrets) for _ in range(self.WALKS)]
        life.stages[-1].scores["ssim_training_mode"] = torch.stack(walks).mean().item()
        return life.stages, {"secrets": stamp.secrets.cpu(), "hardened": life.arrays["hardened"]}, {}


@dataclass(frozen=True, kw_only=True)
class Trial(LifeCycle):
    """A setting among which one is chosen: with two thirds of the images at most, and no look at the test images."""

    def scaled(self, scale: Profile) -> Profile:
        scale = replace(super().scaled(scale), held_out=True)
        if scale.train_images is None or scale.test_images is None:
            return replace(scale, train_images=20_000, test_images=4_000)
        return replace(scale, train_images=scale.train_images * 2 // 3, test_images=scale.test_images * 2 // 3)


def trained(experiment: LifeCycle, scale: Profile, seed: int) -> nn.Module:
    """The model as it was after training, not yet fine-tuned."""
    model = fresh_model(experiment, experiment.at(scale), seed)
    model.load_state_dict(trained_weights(experiment, scale, seed))
    return model


def fresh_model(experiment: LifeCycle, scale: Profile, seed: int) -> nn.Module:
    """The model as it is built, on its device."""
    sets = load_sets(scale)
    model = build(experiment.network(scale), sets.train.shape, sets.train.classes, seed=seed)
    return model.to(device(), memory_format=torch.channels_last)  # type: ignore[call-overload]


def train(experiment: LifeCycle, scale: Profile, seed: int, model: nn.Module, loss: StampLoss | None) -> Fit:
    """The profile's epochs, over the same images in the same order with and without a stamp."""
    loader = load_sets(scale).train.loader(experiment.batch_size, seed=seed)
    return fit(
        model,
        loader,
        epochs=scale.epochs,
        lr=experiment.lr,
        stamp_loss=loss,
        schedule=(Joint if experiment.joint else Alternating)(every=experiment.every),
        optimizer=OPTIMIZERS[experiment.optimizer],
        progress=False,
    )


def plain(experiment: LifeCycle, scale: Profile, seed: int) -> Findings:
    """The unmarked twin: same initial weights, same batches; read with the keys that the marked models get."""
    sets = load_sets(scale)
    model, test = fresh_model(experiment, scale, seed), sets.test.loader(250)
    marked = (replace(experiment, keys=1, paper_key=True), replace(experiment, keys=11))
    stamps = [each.stamp(sets.train.shape, sets.train.classes, seed) for each in marked]
    stages: list[Stage] = []
    arrays: dict[str, Tensor] = {}

    def look(moment: Moment) -> None:
        stages.append(Stage(label=moment, moment=moment, scores={"accuracy": accuracy(model, test)}))
        for stamp in stamps:
            for readout in READOUTS:
                reading = read(transpose(model, stamp.secrets[:1].to(device()), readout=readout), stamp)
                keys = len(stamp)
                label = f"{moment}/{keys} {'key' if keys == 1 else 'keys'}/{readout}"
                scores = reading.summary()
                stages.append(Stage(label=label, moment=moment, keys=keys, readout=readout, scores=scores))
                arrays[label] = reading.images

    torch.manual_seed(seed)
    look("untrained")
    train(experiment, scale, seed, model, None)
    look("trained")
    return stages, arrays, snapshot(model)


class Life:
    """A marked model on its way through the stages, with what was seen at each.

    Attributes:
        model: the model as it is.
        stamp: with what the `paper` readout freezes, taken from a model that was trained for one epoch without a stamp.
        back: the model run backwards.
        stages, arrays: for the record.
    """

    def __init__(self, experiment: LifeCycle, scale: Profile, seed: int):
        self.experiment, self.scale, self.seed = experiment, scale, seed
        self.sets = load_sets(scale)
        self.model = fresh_model(experiment, scale, seed)
        stamp = experiment.stamp(self.sets.train.shape, self.sets.train.classes, seed)
        self.stamp = replace(stamp, frozen=self.reference()) if experiment.readout == "paper" else stamp
        self.back = self.transposed(self.model)
        self.stages: list[Stage] = []
        self.arrays: dict[str, Tensor] = {"secrets": self.stamp.secrets}

    @property
    def example(self) -> Tensor:
        """One blank input batch."""
        return torch.zeros(1, *self.sets.train.shape, device=device())

    def transposed(self, model: nn.Module) -> Transposed:
        """A model of the same architecture, run backwards as this one is."""
        return transpose(model, self.example, readout=self.experiment.readout, frozen=self.stamp.frozen)

    def reference(self) -> dict[str, Tensor]:
        """What the `paper` readout freezes."""
        if not freeze(self.model, self.example):
            return {}
        other = fresh_model(self.experiment, self.scale, self.seed + 500)
        train(self.experiment, replace(self.scale, epochs=1), self.seed + 500, other, None)
        return freeze(other, self.example)

    def look(self, moment: Moment, **more: Score) -> None:
        """Measure accuracy and read the stamp."""
        reached = accuracy(self.model, self.sets.test.loader(250))
        self.keep(moment, read(self.back, self.stamp), accuracy=reached, **more)

    def keep(self, moment: Moment, reading: Reading, **more: Score) -> None:
        """Note what was seen at a moment."""
        self.stages.append(Stage(label=moment, moment=moment, scores=more | reading.summary()))
        self.arrays[moment] = reading.images


def marked(experiment: LifeCycle, scale: Profile, seed: int) -> Findings:
    """Hardening, constraint training and fine-tuning, read after each."""
    life = hardened(experiment, scale, seed)
    if experiment.until == "hardened":
        return life.stages, life.arrays, {}
    training = train(experiment, scale, seed, life.model, experiment.loss(life.back, life.stamp))
    life.look("trained")
    weights = snapshot(life.model)
    life.arrays["training/losses"] = smooth(training.losses)
    life.arrays["training/stamp losses"] = smooth(training.stamp_losses)
    experiment.tune(life)
    return life.stages, life.arrays, weights


def hardened(experiment: LifeCycle, scale: Profile, seed: int) -> Life:
    """A marked model after hardening."""
    life = Life(experiment, scale, seed)
    frames: dict[int, Tensor] = {}
    torch.manual_seed(seed)
    hardening = harden(
        life.back,
        life.stamp,
        steps=scale.hardening_steps,
        target=experiment.target,
        lr=experiment.lr,
        dropout=experiment.dropout,
        optimizer=OPTIMIZERS[experiment.optimizer],
        on_check=frames.__setitem__,
        progress=False,
    )
    reached = {
        f"steps to {goal}": next((step for step, ssim in hardening.ssim if ssim >= goal), None) for goal in (0.9, 0.95)
    }
    life.look("hardened", steps=hardening.steps, reached=hardening.reached, **reached)
    shown = slider_steps(sorted(frames))
    life.arrays["hardening/steps"] = torch.tensor(shown)
    life.arrays["hardening/frames"] = torch.stack([frames[step] for step in shown])
    life.arrays["hardening/losses"] = torch.tensor(hardening.losses)
    return life


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the model's weights and buffers on the CPU."""
    return {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in model.state_dict().items()
    }


def slider_steps(steps: list[int], most: int = 16) -> list[int]:
    """At most `most` of the steps: the first, the last, and denser at the beginning, where the image appears."""
    if len(steps) <= most:
        return steps
    places = (torch.linspace(0, 1, most) ** 2 * (len(steps) - 1)).round().int().tolist()
    return [steps[i] for i in dict.fromkeys(places)]


def smooth(losses: list[float], points: int = 200) -> Tensor:
    """The mean of each of at most `points` equal stretches of a loss curve."""
    curve = torch.tensor(losses)
    return torch.stack([part.mean() for part in curve.tensor_split(min(points, len(curve)))])
