"""Other watermarks beside ClearStamp: one contract, one network, the same attacks, the same statistics."""

import copy
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, replace
from functools import cache, partial
from statistics import median
from typing import Any, ClassVar, Literal

import torch
from scipy.stats import mannwhitneyu
from torch import Tensor, nn
from torch.optim import SGD, RMSprop

from clearstamp.attacks import Attack, CounterClaim, Evasion, FeatureEvasion, Look, Scene
from clearstamp.errors import AttackError, ClearStampError, SchemeError
from clearstamp.reproduction.experiments import Experiment, Findings, Settings, device, unknown
from clearstamp.reproduction.profiles import Images, Profile, load_sets
from clearstamp.reproduction.records import Score, Stage
from clearstamp.reproduction.runtime import kept_for_backward
from clearstamp.schemes import ClearStamp, Evidence, Key, Li, Mark, Scheme
from clearstamp.schemes.li import encoded
from clearstamp.scores import structural_similarity
from clearstamp.training.loops import accuracy, fit
from clearstamp.training.steps import MakeOptimizer, adam
from clearstamp.transposed.graph import Graph, capture
from clearstamp.units.align import align_units
from clearstamp.zoo.datasets import DataSet
from clearstamp.zoo.networks import build

ALIGNED = "rewriting, aligned"
"""The family of attacks that the owner answers by `align_units`."""
DETECTORS: dict[str, type[Evasion]] = {"inputs": Evasion, "features": FeatureEvasion}
"""The detectors of queries, by what they see of them."""
INNOCENT = 1_000
"""Added to a number, the seed of a model without a mark."""


@dataclass(frozen=True, kw_only=True)
class Rival(Experiment):
    """One scheme on one network: what it costs, whom it accuses, and what it withstands.

    Everything is trained from the same weights on the same batches as the twin without a mark, by Adam at `lr`; what a
    scheme marks once it is trained goes on from the twin for one epoch. `nulls` models without a mark were trained
    likewise from other seeds: half of them set the threshold where p is nan, the other half and `fresh` keys that an
    accuser draws say how high innocent scores are. The `attacks` are named ``family: setting``.
    """

    version: ClassVar[int] = 3
    pictures: ClassVar[int] = 6

    scheme: Scheme
    attacks: dict[str, Attack] = field(hash=False, default_factory=dict)
    model: str = "cnn"
    dataset: str | None = None
    most: int = 6_000
    lr: float = 1e-3
    nulls: int = 10
    fresh: int = 20

    def parameters(self) -> dict[str, Any]:
        attacks = {label: attack.about for label, attack in self.attacks.items()}
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("scheme", "attacks")}
        return plain | {"scheme": self.scheme.about, "attacks": attacks}

    def settings(self, profile: Profile) -> Settings:
        profile = replace(profile, precision="float32")
        images = profile.images(self.dataset).at_most(self.most, self.most // 5)
        return Settings.of(self, profile, images, data=(images,))

    def check(self, settings: Settings) -> Iterator[ClearStampError]:
        yield from super().check(settings)
        yield from unknown(self.model)

    def conduct(self, settings: Settings, seed: int) -> Findings:
        return Contest(self, settings, seed).run()


class Contest:
    """One scheme on one network, with the models that it is held against."""

    def __init__(self, rival: Rival, settings: Settings, seed: int):
        self.rival, self.scheme, self.settings, self.seed = rival, rival.scheme, settings, seed
        if isinstance(rival.scheme, ClearStamp):
            self.scheme = replace(rival.scheme, steps=settings.hardening_steps)
        self.sets = load_sets(settings.images)
        self.twin = self.plain(seed)
        self.nulls = [self.plain(INNOCENT + number) for number in range(rival.nulls)]
        self.key, self.model = self.marked()
        self.graph = capture(self.model, torch.zeros(1, *self.sets.train.shape, device=device()))
        known = [self.scheme.extract(model, self.key).score for model in self.nulls[: rival.nulls // 2]]
        self.highest = max(known, default=math.nan)

    def plain(self, seed: int) -> nn.Module:
        """A model without a mark."""
        return plain(self.settings.images, self.rival.model, self.settings.epochs, self.rival.lr, seed)

    def marked(self) -> tuple[Key, nn.Module]:
        """The key and the marked model."""
        train, late = self.sets.train, self.scheme.needs_trained
        fresh = build(self.rival.model, train.shape, train.classes, seed=self.seed).to(device())
        model = copy.deepcopy(self.twin) if late else fresh
        torch.manual_seed(self.seed)
        key = self.scheme.draw(model, train, seed=self.seed)
        about: dict[str, Any] = {"epochs": 1 if late else self.settings.epochs, "lr": self.rival.lr, "seed": self.seed}
        return self.scheme.embed(model, train, key, progress=False, **about), model.eval()

    def run(self) -> Findings:
        evidence = self.scheme.extract(self.model, self.key)
        before = Look("before", self.accuracy(self.model), evidence)
        scores = self.scored(evidence) | {"accuracy": before.accuracy, "queries": evidence.queries}
        scores["bits"] = evidence.trials * self.scheme.bits_each if evidence.score == 1 else 0
        stages = [
            Stage(label="twin", scores={"accuracy": self.accuracy(self.twin)}),
            Stage(label="marked", scores=scores),
            *self.innocent(),
        ]
        for label, attack in self.rival.attacks.items():
            owner = self.aligned if label.startswith(ALIGNED) and self.scheme.access == "weights" else None
            mark = Mark(self.key, owner)
            stages.append(Stage(label=label, attack=label, scores=self.attacked(attack, mark, before)))
        seen = evidence.pictures if self.scheme.readable else self.scheme.queries(self.key)
        return stages, {} if seen is None else {"seen": seen}, {}

    def accuracy(self, model: nn.Module) -> float:
        return accuracy(model, self.sets.test.loader(250))

    def scored(self, evidence: Evidence) -> dict[str, Score]:
        """The evidence, and whether it is accepted."""
        accepted = self.scheme.judge(evidence, highest_null=self.highest).accepted
        p = None if math.isnan(evidence.p) else evidence.p
        return {"score": evidence.score, "trials": evidence.trials, "p": p, "accepted": accepted}

    def innocent(self) -> Iterator[Stage]:
        """How the owner's key, fresh keys, and one that was made up fit models without a mark."""
        train, models = self.sets.train, self.nulls[self.rival.nulls // 2 :]
        accuser = self.plain(INNOCENT + self.rival.nulls)
        seeds = range(INNOCENT + self.seed * self.rival.fresh, INNOCENT + (self.seed + 1) * self.rival.fresh)
        drawn = [self.scheme.draw(accuser, train, seed=seed) for seed in seeds]
        for label, keys in (("owner's key", [self.key]), ("fresh keys", drawn)):
            found = [self.scored(self.scheme.extract(model, key)) for model in models for key in keys]
            least = min((one["p"] for one in found if one["p"] is not None), default=None)
            highest = max(one["score"] for one in found)
            accused: dict[str, Score] = {"accused": sum(one["accepted"] for one in found), "of": len(found)}
            yield Stage(label=f"innocent, {label}", scores=accused | {"score": highest, "p": least})
        forged = CounterClaim().apply(models[0], train, Mark(self.key), test=train.take(1), seed=self.seed)
        yield Stage(label="innocent, made-up key", scores=self.scored(forged.after.evidence))

    def aligned(self, suspect: nn.Module, graph: Graph) -> nn.Module:
        """A suspect with its units in the order and at the scale of the owner's model."""
        return align_units(suspect, self.model, self.graph)

    def attacked(self, attack: Attack, mark: Mark, before: Look) -> dict[str, Score]:
        """What is left after an attack; ``failed`` says why it could not be made."""
        known: dict[str, Any] = {"test": self.sets.test, "unmarked": self.nulls[0], "before": before}
        try:
            found = attack.apply(self.model, self.sets.train, mark, graph=self.graph, seed=self.seed, **known)
        except (AttackError, SchemeError) as error:
            return {"failed": str(error)}
        return self.scored(found.after.evidence) | {"accuracy": found.after.accuracy}


@cache
def plain(images: Images, name: str, epochs: int, lr: float, seed: int) -> nn.Module:
    """A model without a mark, which nobody may change."""
    train = load_sets(images).train
    model = build(name, train.shape, train.classes, seed=seed).to(device())
    torch.manual_seed(seed)
    fit(model, train.loader(seed=seed), epochs=epochs, lr=lr, progress=False)
    return model.eval()


Work = Callable[[nn.Module, DataSet], object]
"""A training of a model on images."""


@dataclass(frozen=True, kw_only=True)
class OfSchemes(Experiment):
    """An experiment on several schemes by their titles, of which a record keeps the settings."""

    schemes: dict[str, Scheme] = field(hash=False)

    def parameters(self) -> dict[str, Any]:
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "schemes"}
        return plain | {"schemes": {title: each.about for title, each in self.schemes.items()}}


@dataclass(frozen=True, kw_only=True)
class Pace(OfSchemes):
    """The time of a batch with each mark over that of one without: the median of `rounds`, one after another.

    What comes before the first batch, such as hardening, is left out, as the difference between a long and a short
    training is taken, both of the same model without a mark. ``memory``: the most that is kept for a backward pass of
    the short training, over as much without the mark.
    """

    version: ClassVar[int] = 2
    alone: ClassVar[bool] = True

    model: str = "cnn"
    lr: float = 1e-3
    short: int = 5
    long: int = 20
    rounds: int = 5

    def settings(self, profile: Profile) -> Settings:
        profile = replace(profile, precision="float32")
        return Settings.of(self, profile, images := profile.images().at_most(6_000, 1_200), data=(images,))

    def conduct(self, settings: Settings, seed: int) -> Findings:
        train = load_sets(settings.images).train
        model = plain(settings.images, self.model, settings.epochs, self.lr, seed)
        about: dict[str, Any] = {"epochs": 1, "lr": self.lr, "seed": seed}
        stages = []
        for title, chosen in self.schemes.items():
            scheme = replace(chosen, steps=0) if isinstance(chosen, ClearStamp) else chosen
            unmarked = partial(training, **about)
            marked = partial(training, scheme=scheme, key=scheme.draw(model, train, seed=seed), **about)
            ratios = []
            for _ in range(self.rounds):
                alone = self.difference(model, train, unmarked)
                ratios.append(self.difference(model, train, marked) / alone)
            scores: dict[str, Score] = {"time": median(ratios), "least": min(ratios), "most": max(ratios)}
            scores["memory"] = self.memory(model, train, marked) / self.memory(model, train, unmarked)
            stages.append(Stage(label=title, scores=scores))
        return stages, {}, {}

    def difference(self, model: nn.Module, train: DataSet, work: Work) -> float:
        """Seconds of a long training less those of a short one."""
        ends = []
        for batches in (self.short, self.long):
            copied, data = copy.deepcopy(model), train.take(min(64 * batches, len(train)))
            began = time.perf_counter()
            work(copied, data)
            ends.append(time.perf_counter() - began)
        return ends[1] - ends[0]

    def memory(self, model: nn.Module, train: DataSet, work: Work) -> int:
        """The most bytes that a short training keeps for a backward pass."""
        copied, data = copy.deepcopy(model), train.take(min(64 * self.short, len(train)))
        return kept_for_backward(copied, lambda: work(copied, data))


def training(
    model: nn.Module, data: DataSet, *, scheme: Scheme | None = None, key: Key | None = None, seed: int, **about: Any
) -> None:
    """Train a model, with a mark if there is a scheme and its key."""
    if scheme is None or key is None:
        fit(model, data.loader(seed=seed), progress=False, **about)
    else:
        scheme.embed(model, data, key, seed=seed, progress=False, **about)


# ------------------------------------------------------------------------------ by the measures of their own sources


@dataclass(frozen=True, kw_only=True)
class OwnTerms(OfSchemes):
    """Some schemes on the network of their own source: what they cost there, and what is read.

    A model is trained for `before` epochs; from there it goes on for `epochs` without a mark, the twin, and with each.
    """

    model: str
    optimizer: Literal["adam", "rmsprop"] = "adam"
    lr: float = 1e-3
    before: int = 0
    epochs: int = 5
    batch_size: int = 64
    most: int | None = None

    def settings(self, profile: Profile) -> Settings:
        profile = replace(profile, precision="float32")
        if profile.name == "paper":
            profile = replace(profile, epochs=self.epochs)
        images = profile.images()
        if self.most is not None:
            images = images.at_most(self.most, self.most // 5)
        return Settings.of(self, profile, images, data=(images,))

    def conduct(self, settings: Settings, seed: int) -> Findings:
        sets = load_sets(settings.images)
        train, test = sets.train, sets.test.loader(250)
        how: dict[str, Any] = {"lr": self.lr, "optimizer": TRAINED_BY[self.optimizer], "progress": False}
        base = build(self.model, train.shape, train.classes, seed=seed).to(device())
        torch.manual_seed(seed)
        before = self.before if settings.profile == "paper" else min(self.before, settings.epochs)
        if before:
            fit(base, train.loader(self.batch_size, seed=seed), epochs=before, **how)
        twin = copy.deepcopy(base)
        torch.manual_seed(seed)
        fit(twin, train.loader(self.batch_size, seed=seed + 1), epochs=settings.epochs, **how)
        stages = [Stage(label="twin", scores={"accuracy": accuracy(twin, test)})]
        for title, scheme in self.schemes.items():
            model, key = copy.deepcopy(base), scheme.draw(base, train, seed=seed)
            torch.manual_seed(seed)
            about = how | {"epochs": settings.epochs, "batch_size": self.batch_size, "seed": seed + 1}
            key = scheme.embed(model, train, key, **about)
            found, blank = scheme.extract(model.eval(), key), scheme.extract(twin.eval(), key)
            scores: dict[str, Score] = {"accuracy": accuracy(model, test), "queries": found.queries, "p": found.p}
            scores |= {"score": found.score, "trials": found.trials, "score of the twin": blank.score}
            stages.append(Stage(label=title, scores=scores))
        return stages, {}, {}


TRAINED_BY: dict[str, MakeOptimizer] = {"adam": adam, "rmsprop": RMSprop}

# --------------------------------------------------------------------------------------------- Li et al. on MNIST


@dataclass(frozen=True, kw_only=True)
class Blind(Experiment):
    """Li et al.'s own experiments on LeNet-5: accuracy, key accuracy, transfer between owners, detectors of queries.

    `deception` and `response` are weights of `Li`, as published or as in the released code. The model is trained by SGD
    with momentum at `lr` in batches of `batch_size`; the matrix of `owners`, each with the others' keys, and the
    detectors are on `few` images for `few_epochs`.
    """

    version: ClassVar[int] = 2
    pictures: ClassVar[int] = 6

    deception: float = 0.1
    response: float = 0.01
    model: str = "lenet5"
    epochs: int = 30
    lr: float = 0.1
    batch_size: int = 100
    owners: int = 5
    few: int = 2_000
    few_epochs: int = 10

    def settings(self, profile: Profile) -> Settings:
        profile = replace(profile, precision="float32")
        if profile.name == "paper":
            profile = replace(profile, epochs=self.epochs)
        return Settings.of(self, profile, images := profile.images(), data=(images,))

    def conduct(self, settings: Settings, seed: int) -> Findings:
        sets, scheme = load_sets(settings.images), Li(deception=self.deception, response=self.response)
        test = sets.test.loader(250)
        twin = self.model_of(sets.train, seed)
        fit(twin, sets.train.loader(self.batch_size, seed=seed), **self.training(settings.epochs))
        key, model = self.owned(scheme, sets.train, settings.epochs, seed)
        found, others = scheme.extract(model, key), sets.test.take(min(len(sets.test), 1_000))
        images, _ = others[:]
        samples = encoded(key, images)
        alike = structural_similarity(samples, images).mean().item()
        with torch.no_grad():
            same = (model(samples.to(device())).argmax(1) == model(images.to(device())).argmax(1)).float().mean().item()
        scores: dict[str, Score] = {"accuracy": accuracy(model, test), "score": found.score, "p": found.p}
        stages = [
            Stage(label="twin", scores={"accuracy": accuracy(twin, test), "score": scheme.extract(twin, key).score}),
            Stage(label="marked", scores=scores | {"ssim": alike, "other covers as before": same}),
        ]
        few = sets.train.take(min(self.few, len(sets.train)))
        epochs = self.few_epochs if settings.profile == "paper" else settings.epochs
        owned = [self.owned(scheme, few, epochs, seed * self.owners + number) for number in range(self.owners)]
        matrix = torch.tensor([[scheme.extract(model, key).score for _, model in owned] for key, _ in owned])
        apart = matrix[~torch.eye(self.owners, dtype=torch.bool)]
        own = matrix.diagonal().mean().item()
        stages.append(Stage(label="transfer", scores={"own": own, "others": apart.mean().item()}))
        scene = Scene(owned[0][1], few, Mark(owned[0][0]), seed=seed)
        for seen, evasion in DETECTORS.items():
            detector = evasion(own_epochs=epochs, share=1.0).detector(scene)
            area = told_apart(detector, owned[0][0]["samples"], few[:][0])
            stages.append(Stage(label=f"detector of {seen}", scores={"AUC": area}))
        shown = torch.stack([key["covers"][:3], key["samples"][:3]]).flatten(0, 1)
        return stages, {"seen": shown, "transfer": matrix.flatten()}, {}

    def model_of(self, data: DataSet, seed: int) -> nn.Module:
        """The network before training."""
        torch.manual_seed(seed)
        return build(self.model, data.shape, data.classes, seed=seed).to(device())

    def training(self, epochs: int) -> dict[str, Any]:
        """How it is trained."""
        return {"epochs": epochs, "lr": self.lr, "optimizer": MOMENTUM, "progress": False}

    def owned(self, scheme: Li, data: DataSet, epochs: int, seed: int) -> tuple[Key, nn.Module]:
        """An owner's key and model."""
        model = self.model_of(data, seed)
        key = scheme.draw(model, data, seed=seed)
        about = self.training(epochs)
        return scheme.embed(model, data, key, batch_size=self.batch_size, seed=seed, **about), model.eval()


MOMENTUM = partial(SGD, momentum=0.9, weight_decay=5e-4, fused=True)
"""The optimizer of Li et al.'s released code."""


def told_apart(detector: nn.Module, queries: Tensor, images: Tensor) -> float:
    """The area under the ROC curve of a detector of queries."""
    with torch.no_grad():
        asked, plain = (detector(each.to(device())).diff(dim=1).squeeze(1).cpu().numpy() for each in (queries, images))
    return float(mannwhitneyu(asked, plain).statistic / (len(asked) * len(plain)))
