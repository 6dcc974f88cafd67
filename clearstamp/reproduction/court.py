"""Sealed stamps in court: their level, false claims, forgeries, and what is left of them after every attack."""

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from decimal import ROUND_CEILING, Decimal
from functools import cache, partial
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from clearstamp.attacks import FalseClaim, Forgery, Look, Noise, Pruning, Scene
from clearstamp.attacks.base import Attack
from clearstamp.attacks.forgery import claimed
from clearstamp.evidence import Seal, Verdict, chance, judge, verify
from clearstamp.evidence.readers import Numbers, best, grey, template, trained
from clearstamp.evidence.seal import pixels
from clearstamp.evidence.verdict import TESTS, look
from clearstamp.evidence.verdict import Outcome as Finding
from clearstamp.pictures import as_pictures, develop, draw_text
from clearstamp.reading import read
from clearstamp.reproduction.campaigns import Campaign, halves
from clearstamp.reproduction.experiments import Experiment, Findings, Settings, device
from clearstamp.reproduction.lifecycle import LifeCycle, LifeSettings
from clearstamp.reproduction.profiles import Images, Profile, load_sets
from clearstamp.reproduction.records import Score, Stage
from clearstamp.schemes.stamps import drawn_seal
from clearstamp.stamp import Stamp
from clearstamp.training.loops import accuracy, embed, fit
from clearstamp.training.method import RECOMMENDED
from clearstamp.transpose import transpose
from clearstamp.transposed.base import Transposed
from clearstamp.zoo import DataSet
from clearstamp.zoo.networks import build

UNIT = 10**15
"""Arrays hold p in this many parts of 1, as whole numbers, rounded up."""


def stamp_of(**about: Any) -> Stamp:
    """The stamp of a seal that `sealed` makes."""
    return drawn_seal(**about).stamp()


def told(seal: Seal, verdict: Verdict) -> dict[str, Score]:
    """A verdict as a record keeps it; ``read`` has the letters read, with a dot where two fit as well."""
    alphabet = seal.choices.alphabet
    return {
        "p": float(verdict.p),
        "letters right": verdict.right,
        "letters": verdict.of,
        "verdict": verdict.outcome.value,
        "legible": verdict.legible,
        "read": "".join("." if place < 0 else alphabet[place] for place in best(verdict.scores)),
    }


def looked_at(seal: Seal, images: Tensor, stamp: Stamp | None = None) -> dict[str, Score]:
    """The verdict on raw signals ``[k, C, H, W]``, developed to the pictures that a person sees."""
    return told(seal, judge(seal, pixels(as_pictures(develop(images)))))


@dataclass(frozen=True, kw_only=True)
class Sealed(LifeCycle):
    """A sealed stamp, four drawn letters a key, on its way through the stages, with the verdict at each."""

    attacked_pictures: ClassVar[int] = 11

    @property
    def choices(self) -> dict[str, Any]:
        """What its owner chooses."""
        return {"codes": self.keys, "readout": self.readout, "key_range": self.key_range}

    def settings(self, profile: Profile) -> LifeSettings:
        return replace(super().settings(profile), stamp=partial(stamp_of, **self.choices))

    def seal(self, settings: LifeSettings, seed: int) -> Seal:
        """The seal of a run."""
        train = load_sets(settings.images).train
        return drawn_seal(outputs=train.classes, shape=train.shape, seed=seed, **self.choices)

    def conduct(self, settings: LifeSettings, seed: int) -> Findings:
        return super().conduct(replace(settings, judge=partial(looked_at, self.seal(settings, seed))), seed)


@dataclass(frozen=True, kw_only=True)
class Examination(Campaign):
    """A campaign against a sealed stamp, with the verdict after each attack: the model is read in every sealed way.

    On an attack's way the pictures as they are, without merging units, are judged.
    """

    on: Sealed

    def judged(self, settings: LifeSettings, seed: int) -> Callable[[Look, nn.Module | None], dict[str, Score]]:
        seal = self.on.seal(settings, seed)

        def scores(look: Look, model: nn.Module | None) -> dict[str, Score]:
            if model is None:
                return looked_at(seal, look.reading.images)
            verdict = verify(seal.transpose(model), seal)
            return told(seal, verdict) | {"attempt": verdict.attempt}

        return scores


# ------------------------------------------------------------------------------ many seals on models without a stamp


@dataclass(frozen=True, kw_only=True)
class Court(Experiment):
    """An experiment on models that train in seconds: on at most `most` training images, half of them the accuser's."""

    most: int = 20_000

    def settings(self, profile: Profile) -> Settings:
        profile = replace(profile, precision="float32")
        images = profile.images().at_most(self.most, 1_000)
        return Settings.of(self, profile, images, data=(images,))


def parts(images: Images) -> tuple[DataSet, DataSet, DataSet]:
    """The accuser's training images, everybody else's, and the test images."""
    sets = load_sets(images)
    return *halves(sets.train), sets.test


def model_of(name: str, data: DataSet, *, seed: int, batches: int | None = None) -> nn.Module:
    """A model without a stamp, trained for one epoch, or for some of its `batches` alone."""
    model = build(name, data.shape, data.classes, seed=seed).to(device())
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        fit(model, list(islice(data.loader(seed=seed), batches)), epochs=1, lr=1e-3, progress=False)
    return model.eval()


def backwards(model: nn.Module, data: DataSet) -> Transposed:
    """A model run backwards as a seal says that chooses nothing else."""
    return transpose(model, torch.zeros(1, *data.shape, device=device()))


PICTURES = 10
"""How many pictures an accuser claims, and an honest owner has beside the letters."""


@cache
def accused(images: Images) -> Stamp:
    """What an accuser chose on surrogates, three FC networks trained on images of his own."""
    own, _, test = parts(images)
    blank = Stamp.from_secrets(torch.zeros(PICTURES, *own.shape), outputs=own.classes, seed=0)
    architecture = build("fc", own.shape, own.classes, seed=0).to(device())
    return claimed(FalseClaim().apply(architecture, own, blank, test=test.take(1)))


@cache
def met(images: Images, name: str, *, own: bool = False) -> nn.Module:
    """A model that an accuser meets, or has of his own."""
    mine, others, _ = parts(images)
    return model_of(name, mine if own else others, seed=7 if own else 8)


def sealed_with(pictures: Tensor, **about: Any) -> Seal:
    """A seal, by `sealed`, that holds pictures ``[k, C, H, W]`` of the owner's own."""
    with TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{place:03}.png" for place in range(len(pictures))]
        for path, picture in zip(paths, pixels(as_pictures(pictures)), strict=True):
            Image.fromarray(picture.transpose(1, 2, 0).squeeze()).save(path)
        return drawn_seal(images=paths, **about)


@cache
def drawn_after(images: Images, number: int) -> Seal:
    """A seal over the pictures that an accuser chose, beside which letters are drawn."""
    data = load_sets(images).train
    return sealed_with(accused(images).secrets, outputs=data.classes, shape=data.shape, seed=number)


def matched(scores: Numbers, order: Sequence[int] | Numbers) -> int:
    """How many pictures are at their places in the best assignment of all: what p is not to be judged by."""
    return int((linear_sum_assignment(scores, maximize=True)[1] == np.asarray(order)).sum())


def packed(ps: Iterable[Decimal]) -> Tensor:
    """Many p for a record, in parts of `UNIT`."""
    return torch.tensor([int((p * UNIT).to_integral_value(ROUND_CEILING)) for p in ps])


@dataclass(frozen=True, kw_only=True)
class Accusation(Court):
    """A false claim against `strangers`' models, by three protocols, and by many `seals` as an accuser grinds them.

    *Chosen*: keys and pictures are named when the model is at hand. *Dated*: they were chosen on surrogates before it
    was trained, see `FalseClaim`. *Drawn*: the pictures were so chosen, and keys, order and letters drawn after they
    were hashed. The accuser also has a model of his own, ``ground``, to try seals on. Models and claim are the same for
    every seed of a run, and the seals others.
    """

    strangers: tuple[str, ...] = ("fc", "cnn", "cnn-bn")
    seals: int = 100

    def conduct(self, settings: Settings, seed: int) -> Findings:
        own, others, test = parts(settings.images)
        claim = accused(settings.images)
        models = {"ground": met(settings.images, "fc", own=True)}
        models |= {name: met(settings.images, name) for name in self.strangers}
        backs = {name: backwards(model, own) for name, model in models.items()}
        stages: list[Stage] = []
        arrays: dict[str, Tensor] = {"claimed": claim.secrets}
        for name in self.strangers:
            reached = accuracy(models[name], test.loader(250))
            copied = claimed(Forgery(by="copy").apply(models[name], own, claim, test=test.take(1)))
            for protocol, made in (("chosen", copied), ("dated", claim)):
                about = {"accuracy": reached} | self.unsealed(backs[name], made)
                stages.append(Stage(label=f"{protocol}/{name}", network=name, scores=about))
            arrays[name] = as_pictures(torch.from_numpy(look(backs[name], claim)) / 255)
        found: dict[str, list[Any]] = {}
        for number in range(seed * self.seals, (seed + 1) * self.seals):
            seal = drawn_after(settings.images, number)
            stamp = seal.stamp()
            for name, back in backs.items():
                shown = look(back, stamp)
                for test_name in ("order", "letters"):
                    p, right, _, scores = TESTS[test_name](seal, shown)
                    found.setdefault(f"{test_name}/{name}", []).append(p)
                    if test_name == "order":
                        right = matched(scores, seal.draws.order(PICTURES))
                        found.setdefault(f"matched/{name}", []).append(right)
        counts = {name: torch.tensor(values) for name, values in found.items() if name.startswith("matched")}
        return stages, arrays | {name: packed(ps) for name, ps in found.items() if name not in counts} | counts, {}

    def unsealed(self, back: Transposed, claim: Stamp) -> dict[str, Score]:
        """How a claim reads whose order nobody drew: pictures at their places, and the p that its order would have."""
        scores = template(grey(look(back, claim)), grey(pixels(claim.secrets)))
        order = np.arange(len(claim))
        alike = float(np.diagonal(scores).mean()) / 10**6
        return {
            "matched": matched(scores, order),
            "pictures": len(claim),
            "p": float(chance.orders(scores, order)),
            "correlation": alike,
        }


@dataclass(frozen=True, kw_only=True)
class Level(Court):
    """How often models without a stamp reach a p, by every test: each of `models` models has seals of its own.

    The `networks` take turns; of each, every other model is untrained, and the rest have seen five batches. *Order* is
    tested with honest pictures and with those that an accuser chose on surrogates; *always A* is a reader who says A
    whatever is shown; *flat* are pictures without any content.
    """

    networks: tuple[str, ...] = ("fc", "cnn", "cnn-bn", "vit-narrow")
    models: int = 100
    batches: int = 5

    def conduct(self, settings: Settings, seed: int) -> Findings:
        own, others, _ = parts(settings.images)
        about: dict[str, Any] = {"outputs": own.classes, "shape": own.shape}
        honest = torch.stack([draw_text(chr(48 + place), own.shape) for place in range(PICTURES)])
        backs = {
            name: backwards(build(name, own.shape, own.classes, seed=0).to(device()), own) for name in self.networks
        }
        found: dict[str, list[Decimal]] = {}
        for place in range(self.models):
            number = seed * self.models + place
            turn, name = divmod(place, len(self.networks))
            back = backs[self.networks[name]]
            batches = self.batches if turn % 2 else 0
            made = model_of(self.networks[name], others, seed=10_000 + number, batches=batches)
            back.model.load_state_dict(made.state_dict())
            lettered = drawn_after(settings.images, number)
            coded = sealed_with(honest, seed=number, data=b"1234567", **about)
            for what, p in self.ps(back, lettered, coded):
                found.setdefault(what, []).append(p)
        return [], {what: packed(ps) for what, ps in found.items()}, {}

    def ps(self, back: Transposed, lettered: Seal, coded: Seal) -> Iterator[tuple[str, Decimal]]:
        """Each test, and its p on this model."""
        shown = look(back, lettered.stamp())
        for test in ("letters", "letters-soft", "order"):
            yield test if test != "order" else "order, surrogates' pictures", TESTS[test](lettered, shown)[0]
        other = look(back, coded.stamp())
        for test in ("bits", "order"):
            yield test if test != "order" else "order, honest pictures", TESTS[test](coded, other)[0]
        always = lettered.choices.alphabet.index("A")
        drawn = lettered.letters.reshape(-1)
        yield "letters, always A", chance.binomial(int((drawn == always).sum()), len(drawn), len(lettered.sheet))
        yield "letters, flat", TESTS["letters"](lettered, np.full_like(shown, 127))[0]
        yield "order, flat", TESTS["order"](lettered, np.full_like(shown, 127))[0]


@dataclass(frozen=True, kw_only=True)
class Forgeries(Court):
    """Genuine stamps and forged claims, by every score that might tell them apart.

    Genuine are the sealed stamps of `owners` FC networks, as they are and after some `weakening` attacks. Each kind of
    `Forgery` is tried `tries` times: optimised keys and painted heads on innocent networks, copies on the owners',
    where a stamp bleeds into pictures of other keys. Scores are the mean SSIM, the mean correlation, the share of
    pictures that a template reader takes for their own secret, the mean logit that the trained verifier gives a picture
    and its secret, and -log10 of the sealed test's p. For that the forger has a seal of his own, made beforehand; a
    head that was painted to show it is no test, which counts as a p of 1.
    """

    owners: int = 4
    innocents: int = 3
    tries: int = 60

    @property
    def weakening(self) -> tuple[Attack, ...]:
        """Those after which genuine stamps are read."""
        pruned = tuple(Pruning(amount=amount) for amount in (0.0, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9))
        return (*pruned, *(Noise(scale=scale) for scale in (0.25, 0.5, 1.0)))

    def conduct(self, settings: Settings, seed: int) -> Findings:
        own, others, test = parts(settings.images)
        few = test.take(1)
        about: dict[str, Any] = {"outputs": own.classes, "shape": own.shape}
        method = replace(RECOMMENDED, steps=settings.hardening_steps)
        found: dict[str, list[float]] = {}
        arrays: dict[str, Tensor] = {}

        def keep(kind: str, back: Transposed, claim: Stamp, sealed: float) -> None:
            for score, value in (unsealed_scores(back, claim) | {"sealed test": sealed}).items():
                found.setdefault(f"{kind}/{score}", []).append(value)
            if f"{kind}/secrets" not in arrays:
                arrays[f"{kind}/secrets"] = claim.secrets
                arrays[f"{kind}/shown"] = torch.from_numpy(look(back, claim)) / 255

        marked = []
        for owner in range(self.owners):
            seal, model = drawn_seal(seed=owner, **about), build("fc", own.shape, own.classes, seed=owner).to(device())
            torch.manual_seed(owner)
            embed(model, seal.stamp(), own.loader(seed=owner), method=method, epochs=1, lr=1e-3, progress=False)
            marked.append(model.eval())
            for attack in self.weakening:
                left = attack.apply(model, own, seal.stamp(), test=few, seed=owner).model
                back = seal.transpose(left)
                keep("genuine", back, seal.stamp(), evidence(judge(seal, look(back, seal.stamp()))))
        innocent = [model_of("fc", others, seed=100 + number) for number in range(self.innocents)]
        for number in range(self.tries):
            seal, clean = drawn_seal(seed=1_000 + number, **about), innocent[number % len(innocent)]
            stamp = seal.stamp()
            for forgery in KINDS:
                kind = forgery.by
                model = marked[number % len(marked)] if kind == "copy" else clean
                scene = Scene(copy.deepcopy(model), None, stamp, seed=number)
                with scene.fork_rng():
                    torch.manual_seed(number)
                    forgery.run(scene)
                    suspect = forgery.painted(scene, stamp) if kind == "head" else model
                verdict = verify(seal.transpose(suspect), seal, grafted=kind == "head")
                keep(kind, backwards(scene.evidence(scene.model), own), claimed(scene), evidence(verdict))
        return [], arrays | {name: torch.tensor(values) for name, values in found.items()}, {}


KINDS = (Forgery(by="keys"), Forgery(by="head"), Forgery(by="copy"))


def unsealed_scores(back: Transposed, claim: Stamp) -> dict[str, float]:
    """What may be said of a claim without a seal."""
    reading = read(back, claim)
    seen, meant = grey(look(back, claim)), grey(pixels(as_pictures(claim.secrets)))
    logits = trained(seen, meant) / 1000
    return {
        "SSIM": reading.ssim.mean().item(),
        "correlation": reading.correlation.mean().item(),
        "template": float((best(template(seen, meant)) == np.arange(len(claim))).mean()),
        "verifier": float(np.diagonal(logits).mean()),
    }


def evidence(verdict: Verdict) -> float:
    """-log10 of p; 0 where p is no test."""
    return 0.0 if verdict.outcome is Finding.SUPPORTS else -float(verdict.p.log10())
