"""The life cycle of a stamp as one experiment: a model is hardened, trained, fine-tuned, and read after each."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from clearstamp.errors import ClearStampError, RecordError
from clearstamp.files import checksum
from clearstamp.reading import Reading, read
from clearstamp.reproduction.experiments import FEW, Experiment, Findings, Settings, device, trained_weights, unknown
from clearstamp.reproduction.profiles import Precision, Profile, load_sets
from clearstamp.reproduction.records import BOTH_READOUTS, Moment, Readout, Score, Stage
from clearstamp.scores import similarity
from clearstamp.stamp import PAPER_KEY, Stamp
from clearstamp.training.checkpoint import tensors
from clearstamp.training.loops import Fit, accuracy, fit, harden
from clearstamp.training.losses import StampLoss
from clearstamp.training.schedules import Alternating, Joint, Schedule
from clearstamp.training.steps import OPTIMIZERS
from clearstamp.transpose import freeze, transpose
from clearstamp.transposed.base import Transposed
from clearstamp.transposed.graph import capture
from clearstamp.zoo.networks import build
from clearstamp.zoo.recipe import Normalize, Recipe

FOUR_LETTERS = tuple("".join(chr(65 + (4 * i + j * (1 + 2 * (i // 13))) % 26) for j in range(4)) for i in range(20))
ONE_LETTER = tuple("ABCDEFGHIJKLMNOPQRST")
ICONS = tuple("★☎♞♥☂⚓✈☀♫✂☃")
SECRETS = {"four letters": FOUR_LETTERS, "one letter": ONE_LETTER, "icons": ICONS}
"""The paper's three kinds of secrets."""


def texts(kind: str, count: int) -> tuple[str, ...]:
    """The first `count` of a kind of `SECRETS`. Raises `RecordError` if there are fewer."""
    found = SECRETS.get(kind, ())[:count]
    if len(found) < count:
        raise RecordError("not that many secrets", got=count, expected=f"at most {len(found)} {kind}")
    return found


def text_stamp(count: int, kind: str = "four letters", *, paper_key: bool = False, **about: Any) -> Stamp:
    """A stamp that shows `texts`, made by `Stamp.from_texts` from `about`; with `paper_key`, its key is the paper's."""
    drawn = Stamp.from_texts(texts(kind, count), **about)
    return replace(drawn, keys=torch.tensor([PAPER_KEY])) if paper_key else drawn


@dataclass(frozen=True, kw_only=True)
class Embedding:
    """How a stamp is embedded, the same in a declaration and in its settings.

    Hardening stops at the mean SSIM `target`, or as in the paper after all its steps for None. `lr` is that of
    hardening and training, as in the paper's default scenario (its Tables 2 and 3 have 1e-3); fine-tuning takes a tenth
    of it. `dropout` acts in hardening and constraint training, where a stamp step comes after each `every`-th task
    step, or `joint` with it (see `fit`). `until` is the last stage that is run. With a `recipe`, the model normalises
    its inputs, and is trained and fine-tuned by that, at rates of its own; `optimizer` and `lr` are hardening's.
    """

    readout: Readout = "paper"
    target: float | None = 0.99
    optimizer: str = "adam"
    lr: float = 1e-4
    dropout: float = 0.0
    every: int = 1
    joint: bool = False
    batch_size: int = 64
    until: Literal["hardened", "finetuned"] = "finetuned"
    recipe: Recipe | None = None


@dataclass(frozen=True, kw_only=True)
class LifeSettings(Embedding, Settings):
    """Everything that decides a life cycle but its seed.

    Attributes:
        network: one of `MODELS`.
        schedule: when and how constraint training steps on the stamp.
        stamp: makes the stamp, from `outputs`, `shape` and `seed`; see `text_stamp`.
        loss: makes the stamp loss of constraint training, from the model run backwards and the stamp.
        tune: what happens to the trained model, and what is measured then.
        judge: scores of the raw signals ``[k, C, H, W]`` of a stamp, beside those of its pictures.
    """

    network: str
    schedule: Schedule
    stamp: Callable[..., Stamp]
    loss: Callable[..., StampLoss]
    tune: Callable[["Life"], None]
    judge: Callable[[Tensor, Stamp], dict[str, Score]] | None = None
    needs: tuple["LifeSettings", ...] = ()


@dataclass(frozen=True, kw_only=True)
class LifeCycle(Embedding, Experiment):
    """One life cycle as it is declared; `settings` resolves it.

    `keys` counts the stamp's pairs, 0 for a model without a stamp; `paper_key` takes the paper's single key. `noise`
    (`relative` or not, see `StampLoss`; the paper has none) acts in constraint training alone. Other than None,
    `dataset` and `precision` stand for those of the profile, and in the profile ``paper`` also `epochs` and
    `hardening_steps`; `small` stands for `model` in all other profiles. With a recipe, fine-tuning takes as many epochs
    as training.
    """

    attacked_pictures: ClassVar[int] = FEW
    """The number of keys whose pictures a record of attacks on the model keeps."""
    held_out: ClassVar[bool] = False
    """Whether it is measured on held-out training images, and never on test images."""
    quick: ClassVar[dict[str, int]] = {}
    """What replaces fields of the profile ``quick``."""

    model: str = "cnn"
    keys: int = 11
    paper_key: bool = False
    secrets: str = "four letters"
    key_range: float = 10.0
    noise: float = 0.0
    relative: bool = False
    precision: Precision | None = None
    dataset: str | None = None
    small: str | None = None
    epochs: int | None = None
    hardening_steps: int | None = None

    @property
    def schedule(self) -> Schedule:
        """When and how constraint training steps on the stamp."""
        return (Joint if self.joint else Alternating)(every=self.every)

    def adapted(self, profile: Profile) -> Profile:
        """The profile, with what is declared in the place of its own."""
        own: dict[str, Any] = {"precision": self.precision}
        if profile.name == "paper":
            own |= {"epochs": self.epochs, "hardening_steps": self.hardening_steps}
        if profile.name == "quick":
            own |= self.quick
        if self.recipe:
            own["finetune_epochs"] = own.get("epochs") or profile.epochs
        return replace(profile, **{name: value for name, value in own.items() if value is not None})

    def settings(self, profile: Profile) -> LifeSettings:
        profile = self.adapted(profile)
        images = profile.images(self.dataset, held_out=self.held_out)
        return LifeSettings.of(
            self,
            profile,
            images,
            data=(images,),
            network=self.small if self.small and profile.name != "paper" else self.model,
            schedule=self.schedule,
            stamp=partial(
                text_stamp, count=self.keys, kind=self.secrets, key_range=self.key_range, paper_key=self.paper_key
            ),
            loss=partial(StampLoss, dropout=self.dropout, noise=self.noise, relative=self.relative),
            tune=finetune,
            **{f.name: getattr(self, f.name) for f in fields(Embedding)},
        )

    def check(self, settings: LifeSettings) -> Iterator[ClearStampError]:
        yield from super().check(settings)
        yield from unknown(settings.network)
        try:
            texts(self.secrets, self.keys)
        except RecordError as error:
            yield error

    def conduct(self, settings: LifeSettings, seed: int) -> Findings:
        return (marked if self.keys else unmarked)(settings, seed)


@dataclass(frozen=True, kw_only=True)
class Fingerprint(LifeCycle):
    """Hardening alone, for all its steps, also read in training mode: the mean of `WALKS` walks with dropout.

    The paper gives neither the rate of its dropout nor the mode in which it reads, but the SSIM that it reached by some
    number of steps on some networks. A rate that reaches the same there may have been the paper's.
    """

    WALKS: ClassVar[int] = 20

    target: float | None = None
    until: Literal["hardened", "finetuned"] = "hardened"

    def conduct(self, settings: LifeSettings, seed: int) -> Findings:
        life = hardened(settings, seed)
        stamp, dropout = life.stamp.to(device()), settings.dropout
        with torch.no_grad():
            walks = [similarity(life.back(stamp.keys, dropout=dropout), stamp.secrets) for _ in range(self.WALKS)]
        life.stages[-1].scores["ssim_training_mode"] = torch.stack(walks).mean().item()
        return life.stages, {"secrets": stamp.secrets.cpu(), "hardened": life.arrays["hardened"]}, {}


@dataclass(frozen=True, kw_only=True)
class Trial(LifeCycle):
    """A candidate for the default setting: since one is chosen by these results, test images are not used."""

    held_out: ClassVar[bool] = True


@dataclass(frozen=True, kw_only=True)
class Scheduled(Trial):
    """A trial of any schedule, in the place of `every` and `joint`."""

    by: Schedule

    @property
    def schedule(self) -> Schedule:
        return self.by

    def parameters(self) -> dict[str, Any]:
        return super().parameters() | {"by": {"schedule": type(self.by).__name__} | asdict(self.by)}


@dataclass(frozen=True, kw_only=True)
class OnModel(Experiment):
    """An experiment on the trained model of one life cycle, with that one's settings."""

    on: LifeCycle

    def parameters(self) -> dict[str, Any]:
        return super().parameters() | {"on": self.on.parameters()}

    def needs(self) -> tuple[LifeCycle, ...]:
        return (self.on,)

    def settings(self, profile: Profile) -> LifeSettings:
        needed = self.on.settings(profile)
        return replace(needed, experiment=self, needs=(needed,))


# --------------------------------------------------------------------------------- a run, from settings and a seed


def trained(settings: LifeSettings, seed: int) -> nn.Module:
    """The model as it was after training, not yet fine-tuned."""
    model = fresh_model(settings, seed)
    model.load_state_dict(trained_weights(settings, seed))
    return model


def fresh_model(settings: LifeSettings, seed: int) -> nn.Module:
    """The model as it is built, on its device."""
    train = load_sets(settings.images).train
    model = build(settings.network, train.shape, train.classes, seed=seed)
    if settings.recipe:
        model = nn.Sequential(Normalize.of(train.images), model)
    return model.to(device(), memory_format=torch.channels_last)  # type: ignore[call-overload]


def train(settings: LifeSettings, seed: int, model: nn.Module, loss: StampLoss | None = None) -> Fit:
    """Train for the epochs of the settings, over the same images in the same order with and without a stamp."""
    batches: Iterable[tuple[Tensor, Tensor]] = load_sets(settings.images).train.loader(settings.batch_size, seed=seed)
    how: dict[str, Any] = {"lr": settings.lr, "optimizer": OPTIMIZERS[settings.optimizer]}
    if settings.recipe:
        batches, how = settings.recipe.augmented(batches), settings.recipe.settings()
    return fit(
        model,
        batches,
        epochs=settings.epochs,
        stamp_loss=loss,
        schedule=settings.schedule,
        checkpoint=checkpoint(settings, seed, model),
        progress=False,
        **how,
    )


def checkpoint(settings: LifeSettings, seed: int, model: nn.Module) -> Path | None:
    """The file of one training, named by all that decides it: a stale one has another name."""
    if settings.checkpoints is None:
        return None
    kind = f"{type(settings.experiment).__name__} {settings.experiment.version}"
    about = settings.parameters, settings.images, load_sets(settings.images).about, settings.bases
    own = settings.epochs, settings.lr, settings.recipe, seed
    return settings.checkpoints / checksum((kind, *map(str, about + own)), tensors(model))


def tuning(settings: LifeSettings) -> LifeSettings:
    """The settings with the epochs of fine-tuning, and a tenth of the learning rate."""
    recipe = settings.recipe and replace(settings.recipe, lr=settings.recipe.lr / 10)
    return replace(settings, epochs=settings.finetune_epochs, lr=settings.lr / 10, recipe=recipe)


def finetune(life: "Life") -> None:
    """Train the model further on its own data, as somebody who takes it over might."""
    train(tuning(life.settings), life.seed + 1000, life.model)
    life.measure("finetuned")


def unmarked(settings: LifeSettings, seed: int) -> Findings:
    """The unmarked twin: same initial weights, same batches; read with the keys of the marked models."""
    sets, model = load_sets(settings.images), fresh_model(settings, seed)
    test = sets.test.loader(250)
    about: dict[str, Any] = {"shape": sets.train.shape, "outputs": sets.train.classes, "seed": seed}
    stamps = [settings.stamp(count=1, paper_key=True, **about), settings.stamp(count=11, **about)]
    stages: list[Stage] = []
    arrays: dict[str, Tensor] = {}

    def measure(moment: Moment) -> None:
        stages.append(Stage(label=moment, moment=moment, scores={"accuracy": accuracy(model, test)}))
        for stamp in stamps:
            for readout in BOTH_READOUTS:
                reading = read(transpose(model, graph, readout=readout), stamp)
                keys = len(stamp)
                label = f"{moment}/{keys} {'key' if keys == 1 else 'keys'}/{readout}"
                scores = reading.summary()
                stages.append(Stage(label=label, moment=moment, keys=keys, readout=readout, scores=scores))
                arrays[label] = reading.images

    graph = capture(model, stamps[0].secrets[:1].to(device()))
    torch.manual_seed(seed)
    measure("untrained")
    train(settings, seed, model)
    measure("trained")
    return stages, arrays, snapshot(model)


class Life:
    """A marked model passing through the stages, and what was measured at each.

    Attributes:
        model: the model as it is.
        graph: what every model of its architecture computes.
        stamp: what is embedded, with the values that the `paper` readout freezes (see `reference`).
        back: the model run backwards.
        stages, arrays: for the record.
    """

    def __init__(self, settings: LifeSettings, seed: int):
        self.settings, self.seed = settings, seed
        self.sets = load_sets(settings.images)
        self.model = fresh_model(settings, seed)
        self.graph = capture(self.model, torch.zeros(1, *self.sets.train.shape, device=device()))
        stamp = settings.stamp(shape=self.sets.train.shape, outputs=self.sets.train.classes, seed=seed)
        self.stamp = replace(stamp, frozen=self.reference()) if settings.readout == "paper" else stamp
        self.back = self.transposed(self.model)
        self.stages: list[Stage] = []
        self.arrays: dict[str, Tensor] = {"secrets": self.stamp.secrets}

    def transposed(self, model: nn.Module) -> Transposed:
        """Another model of the same architecture, to be run backwards in the same way."""
        return transpose(model, self.graph, readout=self.settings.readout, frozen=self.stamp.frozen)

    def reference(self) -> dict[str, Tensor]:
        """The values that the `paper` readout freezes, from a model trained for one epoch without a stamp."""
        if not freeze(self.model, self.graph):
            return {}
        other = fresh_model(self.settings, self.seed + 500)
        train(replace(self.settings, epochs=1), self.seed + 500, other)
        return freeze(other, self.graph)

    def measure(self, moment: Moment, **more: Score) -> None:
        """Measure accuracy and read the stamp."""
        reached = accuracy(self.model, self.sets.test.loader(250))
        self.keep(moment, read(self.back, self.stamp), accuracy=reached, **more)

    def keep(self, moment: Moment, reading: Reading, **more: Score) -> None:
        """Note what was read at a moment."""
        scores = more | reading.summary()
        if self.settings.judge:
            scores |= self.settings.judge(reading.images, self.stamp)
        self.stages.append(Stage(label=moment, moment=moment, scores=scores))
        self.arrays[moment] = reading.images


def marked(settings: LifeSettings, seed: int) -> Findings:
    """Hardening, constraint training and fine-tuning, read after each."""
    life = hardened(settings, seed)
    if settings.until == "hardened":
        return life.stages, life.arrays, {}
    training = train(settings, seed, life.model, settings.loss(life.back, life.stamp))
    life.measure("trained")
    weights = snapshot(life.model)
    life.arrays["training/losses"] = smooth(training.losses)
    life.arrays["training/stamp losses"] = smooth(training.stamp_losses)
    settings.tune(life)
    return life.stages, life.arrays, weights


def hardened(settings: LifeSettings, seed: int) -> Life:
    """A marked model after hardening."""
    life = Life(settings, seed)
    frames: dict[int, Tensor] = {}
    torch.manual_seed(seed)
    hardening = harden(
        life.back,
        life.stamp,
        steps=settings.hardening_steps,
        target=settings.target,
        lr=settings.lr,
        dropout=settings.dropout,
        optimizer=OPTIMIZERS[settings.optimizer],
        on_check=frames.__setitem__,
        progress=False,
    )
    reached = {
        f"steps to {goal}": next((step for step, ssim in hardening.ssim if ssim >= goal), None) for goal in (0.9, 0.95)
    }
    life.measure("hardened", steps=hardening.steps, reached=hardening.reached, **reached)
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
