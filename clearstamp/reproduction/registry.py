"""The registry of experiments: every experiment that a chapter runs is declared here, once.

A chapter is a function from the profile to the chapter's groups: what the notebook runs and shows together.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import product
from typing import Any

from clearstamp.attacks import (
    AdversarialTuning,
    Attack,
    Averaging,
    BatchNormRescaling,
    Cast,
    Distillation,
    DropClass,
    DummyUnits,
    Erasure,
    Evasion,
    FinePruning,
    FineTuning,
    LogitShift,
    Noise,
    Overwriting,
    Permutation,
    Pruning,
    Quantization,
    QueryNoise,
    Rescaling,
    Sanitizer,
    ScorePerturbation,
    ScoreRounding,
    SecondMark,
    SplitUnits,
    Transfer,
    Unlearning,
)
from clearstamp.errors import RecordError
from clearstamp.reproduction import foreign
from clearstamp.reproduction.campaigns import UNMARKED, campaigns
from clearstamp.reproduction.capacity import LICENCE, Capacity
from clearstamp.reproduction.court import Accusation, Examination, Forgeries, Level, Sealed
from clearstamp.reproduction.coverage import HANDFUL, Coverage, Hardened, classifiers
from clearstamp.reproduction.exact import Interface, Interviewed, Unruled
from clearstamp.reproduction.experiments import Experiment, Settings, run_all
from clearstamp.reproduction.foreign import Foreign, ForeignHardened
from clearstamp.reproduction.generalizability import CrossData, Row
from clearstamp.reproduction.layers import Gains, Layers, Manner
from clearstamp.reproduction.lifecycle import Fingerprint, LifeCycle, Scheduled, Trial
from clearstamp.reproduction.price import Price, SealedTrial
from clearstamp.reproduction.profiles import Profile, profile
from clearstamp.reproduction.records import BOTH_READOUTS, Readout, Record
from clearstamp.reproduction.rivals import ALIGNED, Blind, OwnTerms, Pace, Rival
from clearstamp.reproduction.runtime import Cost
from clearstamp.schemes import (
    ActivationSigns,
    Adi,
    ClearStamp,
    DeepSigns,
    FrontierStitching,
    GradSigns,
    Li,
    NeuNAC,
    Scheme,
    SpecialLabel,
    Tartaglione,
    Uchida,
    WaterMAS,
    WhiteBoxGradSigns,
    Zhang,
)
from clearstamp.training import method
from clearstamp.training.schedules import ADMM, Alternating, AugmentedLagrangian, Joint, Schedule
from clearstamp.zoo.recipe import Recipe

FIRST = (0,)
"""The seed of what runs with one seed only."""


@dataclass(frozen=True)
class Group:
    """Experiments that are run and shown together, with `seeds`, or with those of the profile for None."""

    experiments: Sequence[Experiment]
    seeds: tuple[int, ...] | None = None


Groups = Mapping[str, Group]
Attacks = dict[str, Attack]

# -------------------------------------------------------------------------------------------- models of many chapters


def embedded(by: method.Method) -> dict[str, Any]:
    """The fields of a `LifeCycle` that embed a stamp by a method, in either readout."""
    assert isinstance(by.schedule, Joint | Alternating), "what a life cycle has fields for"
    about = {"target": by.target, "dropout": by.dropout, "noise": by.noise}
    return about | {"every": by.schedule.every, "joint": isinstance(by.schedule, Joint)}


PAPER, OURS, EXACTLY = embedded(method.PAPER), embedded(method.RECOMMENDED), embedded(method.EXACT)
ONE_KEY = [
    LifeCycle(name=f"1-key-{r}", readout=r, keys=1, paper_key=True, hardening_steps=7_000, **PAPER)
    for r in BOTH_READOUTS
]
PUBLISHED = [LifeCycle(name=f"11-keys-{r}", readout=r, **PAPER) for r in BOTH_READOUTS]
"""The default scenario as published, under both readouts."""
DEFAULT = LifeCycle(name="11-keys-default-adjoint", readout="adjoint", **OURS)
"""The default scenario as this library embeds by default."""
SEALED = Sealed(name="sealed-default-adjoint", readout="adjoint", **OURS)
"""The default scenario with a sealed stamp: eleven keys, 44 drawn letters."""
EXACT = LifeCycle(name="11-keys-gradient", readout="gradient", **EXACTLY)
"""The default scenario in the exact readout, by the recipe that suits it."""
MARKED = [*PUBLISHED, DEFAULT]
"""The models that every attack meets."""
RATES = [
    PUBLISHED[0] if rate == PAPER["dropout"] else replace(PUBLISHED[0], name=f"11-keys-dropout-{rate:g}", dropout=rate)
    for rate in (0.0, 0.1, 0.3, 0.5)
]
"""As published but for the rate of dropout."""

PRESERVING: Attacks = {
    "permutation": Permutation(),
    "rescaling": Rescaling(),
    "rescaling, 1024": Rescaling(factor=1024.0),
    "logit shift": LogitShift(),
    "dummy units": DummyUnits(),
    "split units": SplitUnits(),
}
"""Rewritings that leave what a model computes as it is."""
CANCELLING: Attacks = {
    "cancelling dummy units": DummyUnits(outgoing="cancelling"),
    "split units, 3 and -2": SplitUnits(part=3.0),
}
"""Those that only merging equal units undoes."""


def lasting(profile: Profile) -> Attacks:
    """The attacks by which settings of the embedding are compared."""
    steps = repairing(profile)
    attacks: Attacks = {"same rate": FineTuning(epochs=profile.epochs, lr=1e-4)}
    attacks |= {f"pruning {level} %": Pruning(amount=level / 100) for level in (60, 80, 90)}
    attacks |= {f"int{bits}": Quantization(bits=bits) for bits in (8, 4)}
    return attacks | {
        f"{keys} keys, LR {lr:g}": Erasure(keys=keys, count=None, steps=steps, lr=lr, repair=True)
        for keys in ("random", "known")
        for lr in (1e-4, 1e-3)
    }


def stronger(profile: Profile) -> Attacks:
    """Erasures by who has the training data, looked at on the way."""
    return {
        f"{keys} keys, LR {lr:g}": Erasure(keys=keys, count=None, steps=repairing(profile), looks=5, lr=lr, repair=True)
        for keys in ("known", "random")
        for lr in (1e-4, 1e-3)
    }


def repairing(profile: Profile) -> int:
    """Steps of an erasure that repairs the main task at the same time."""
    return {"tiny": 5, "quick": 20}.get(profile.name, 125)


# --------------------------------------------------------------------------------------------------------- chapters


def hardening(profile: Profile) -> Groups:
    return {
        "unmarked": Group([UNMARKED]),
        "one key": Group(ONE_KEY),
        "default": Group([replace(DEFAULT, name="1-key-default-adjoint", keys=1, paper_key=True)]),
        "fingerprints": Group(fingerprints(profile), FIRST),
    }


FINGERPRINTS = {
    "1-key": "1-key",
    "11-keys": "11-keys",
    "cifar10": "cifar10-cnn",
    "gtsrb": "gtsrb-cnn",
    "fc": "mnist-fc",
    "cnn-bn": "mnist-cnn-bn",
    "vgg11": "cifar100-vgg11",
}
"""For each fingerprint, the published experiment whose SSIM after hardening the paper gives."""


def fingerprints(profile: Profile) -> list[Fingerprint]:
    """Each rate of dropout, for the networks whose SSIM and steps of hardening the paper gives."""
    published = {e.name: e for e in (ONE_KEY[0], PUBLISHED[0], *table4("{name}-paper", "paper", **PAPER))}
    names = FINGERPRINTS if profile.name == "paper" else ("11-keys", "1-key")
    rates = {"tiny": (0.5,), "quick": (0.0, 0.3, 0.5)}.get(profile.name, tuple(n / 10 for n in range(8)))
    settings = [f.name for f in fields(LifeCycle) if f.name not in ("name", "dropout", "until")]
    found = []
    for name in names:
        of = published[f"{FINGERPRINTS[name]}-paper"]
        about = {setting: getattr(of, setting) for setting in settings}
        found += [Fingerprint(name=f"fingerprint-{name}-{rate:g}", dropout=rate, **about) for rate in rates]
    return found


def multi_key(profile: Profile) -> Groups:
    kinds = [
        LifeCycle(name=f"{kind.replace(' ', '-')}-{readout}", readout=readout, secrets=kind, **PAPER)
        for kind in ("one letter", "icons")
        for readout in BOTH_READOUTS
    ]
    ranges = [
        LifeCycle(name=f"key-range-{limit}-{readout}", readout=readout, key_range=limit, until="hardened", **PAPER)
        for limit in (5, 50)
        for readout in BOTH_READOUTS
    ]
    counts = [LifeCycle(name=f"{n}-keys-{r}", readout=r, keys=n, **PAPER) for n in (10, 20) for r in BOTH_READOUTS]
    counts.insert(2, replace(DEFAULT, name="10-keys-default-adjoint", keys=10))
    sgd = [
        LifeCycle(name=f"sgd-{r}", readout=r, optimizer="sgd", lr=0.01, hardening_steps=20_000, **PAPER)
        for r in BOTH_READOUTS
    ]
    return {
        "unmarked": Group([UNMARKED]),
        "eleven keys": Group(PUBLISHED),
        "default": Group([DEFAULT]),
        "other counts": Group(counts),
        "kinds of secrets": Group(kinds),
        "key ranges": Group(ranges),
        "SGD": Group(sgd),
        "open choices": Group(open_choices(profile), FIRST),
    }


def open_choices(profile: Profile) -> list[LifeCycle]:
    """The default scenario as published with other choices where the paper is silent or says two things."""
    others: dict[str, dict[str, Any]] = {"batch-256": {"batch_size": 256}, "rate-0.001": {"lr": 1e-3}}
    if profile.precision != "float32":
        others["float32"] = {"precision": "float32"}
    return [replace(PUBLISHED[0], name=f"11-keys-{name}", **other) for name, other in others.items()]


def pruning(profile: Profile) -> Groups:
    epochs = profile.finetune_epochs
    tuning: Attacks = {"same rate": FineTuning(epochs=5, lr=1e-4), "LR/10": FineTuning(epochs=4, lr=1e-5)}
    unseen: Attacks = {"LR/10, unseen data": FineTuning(epochs=4, lr=1e-5)}
    variants: Attacks = {
        "SGD": FineTuning(epochs=epochs, lr=0.01, optimizer="sgd"),
        "weight decay": FineTuning(epochs=epochs, lr=1e-4, weight_decay=1e-2),
        "last layer": FineTuning(epochs=epochs, lr=1e-4, layers="last"),
        "last layer anew": FineTuning(epochs=epochs, lr=1e-4, reset_last=True),
        "transfer": Transfer(epochs=epochs, lr=1e-4),
    }
    levels: Attacks = {f"{level} %": Pruning(amount=level / 100) for level in range(10, 100, 10)}
    levels |= {f"each layer {level} %": Pruning(amount=level / 100, scope="layer") for level in (60, 80, 90)}
    levels |= {f"channels {level} %": Pruning(amount=level / 100, scope="channels") for level in (20, 40, 60)}
    levels |= {"fine-pruning 40 %": FinePruning(amount=0.4, epochs=2, lr=1e-5)}
    types: Attacks = {dtype: Cast(dtype=dtype) for dtype in ("float16", "bfloat16")}
    types |= {f"int{b} per {per}": Quantization(bits=b, per=per) for b in (8, 4, 3) for per in ("tensor", "channel")}
    noise: Attacks = {f"{sigma:g} sigma": Noise(scale=sigma) for sigma in (0.1, 0.2, 0.3, 0.5, 0.7, 1.0)}
    return {
        "fine-tuning": Group(campaigns("fine-tuning", tuning, MARKED)),
        "unseen data": Group(campaigns("unseen", unseen, MARKED, unseen=True)),
        "variants": Group(campaigns("variants", variants, [PUBLISHED[0], DEFAULT])),
        "pruning": Group(campaigns("pruning", levels, MARKED)),
        "compression": Group(campaigns("compression", types, MARKED)),
        "noise": Group(campaigns("weight-noise", noise, MARKED)),
        "dropout": Group(RATES, FIRST),
        "dropout, attacked": Group(campaigns("lasting", lasting(profile), RATES), FIRST),
    }


def generalizability(profile: Profile) -> Groups:
    networks = classifiers() if profile.name == "paper" else HANDFUL if profile.name == "quick" else HANDFUL[-3:-1]
    families, others = foreign.families(), foreign.classifiers()
    if profile.name != "paper":
        few = 3 if profile.name == "quick" else 1
        families, others = tuple(name for name in families if name.startswith("timm/test_"))[:few], others[-few:]
    resnet18 = Row(
        name="resnet18-hardening",
        readout="adjoint",
        model="resnet18",
        small="resnet18-narrow",
        dataset="cifar10",
        target=0.95,
        lr=1e-3,
        until="hardened",
    )
    rows: dict[str, list[LifeCycle]] = {r: table4(f"{{name}}-{r}", r, **PAPER) for r in BOTH_READOUTS}
    rows["default"] = table4("{name}-default-adjoint", "adjoint", **OURS)
    shallow, deep = (slice(4), slice(4, None)) if profile.name != "tiny" else (slice(0), slice(4, None, 3))
    if profile.name == "quick":
        rows["default"] = rows["default"][shallow]
    recipe = by_recipe() if profile.name == "paper" else by_recipe()[:1]
    own = [
        replace(row, name=f"{row.name}-dropout-{OWN_RATES[row.name]:g}", dropout=OWN_RATES[row.name])
        for row in rows["paper"]
        if row.name in OWN_RATES
    ]
    return {
        **{name: Group(found[shallow]) for name, found in rows.items()},
        "own rates": Group(own if profile.name == "paper" else [], FIRST),
        **{f"{name}, deep": Group(found[deep], FIRST) for name, found in rows.items()},
        "recipe": Group(recipe, FIRST),
        "ResNet-18": Group([resnet18]),
        "coverage": Group([Coverage(name="coverage", networks=tuple(networks))], FIRST),
        "hardened": Group(
            [Hardened(name="coverage-hardened", networks=HANDFUL if profile.name != "tiny" else HANDFUL[2:3])], FIRST
        ),
        "timm": Group([Foreign(name="coverage-timm", networks=families)], FIRST),
        "transformers": Group([Foreign(name="coverage-transformers", networks=others)], FIRST),
        "transformers, hardened": Group([ForeignHardened(name="transformers-hardened", networks=others)], FIRST),
    }


OWN_RATES = {"mnist-fc-paper": 0.2, "mnist-cnn-bn-paper": 0.1}
"""For the rows that harden for few steps, the rate of dropout whose fingerprint lies nearest to the paper's SSIM."""


def table4(names: str, readout: Readout, **embedding: Any) -> list[LifeCycle]:
    """The ten rows of the paper's Table 4 in its order, named by ``{name}`` in `names`.

    Learning rates, and epochs where the paper's text is silent, are this library's: 1e-3 for ResNets, 1e-4 for others.
    """

    def row(name: str, **about: Any) -> LifeCycle:
        kind: type[LifeCycle] = CrossData if "onto" in about else Row
        return kind(name=names.format(name=name), readout=readout, **(embedding | about))

    narrow: dict[str, dict[str, Any]] = {
        name: {"model": name, "small": f"{name}-narrow"} for name in ("resnet18", "resnet34", "vgg11", "vit")
    }
    deep: dict[str, Any] = {"hardening_steps": 4_000, "epochs": 10, "lr": 1e-3}
    long: dict[str, Any] = {"hardening_steps": 1_000, "epochs": 200}
    return [
        row("cifar10-cnn", dataset="cifar10"),
        row("gtsrb-cnn", dataset="gtsrb"),
        row("mnist-fc", model="fc", hardening_steps=200),
        row("mnist-cnn-bn", model="cnn-bn", hardening_steps=1_000),
        row("cifar10-resnet18", dataset="cifar10", **narrow["resnet18"], **deep),
        row("gtsrb-resnet18", dataset="gtsrb", **narrow["resnet18"], **deep),
        row("cifar10-resnet34", dataset="cifar10", **narrow["resnet34"], **deep),
        row("cifar100-to-cifar10-resnet18", dataset="cifar100", onto="cifar10", **narrow["resnet18"], **deep),
        row("cifar100-vgg11", dataset="cifar100", **narrow["vgg11"], **long),
        row("cifar100-vit", dataset="cifar100", **narrow["vit"], **long),
    ]


def by_recipe() -> list[LifeCycle]:
    """The deep rows of Table 4 by a recipe that makes the most of few epochs, and the first in the other readout too.

    Embedded by default, but for the rate of dropout: it acts after each layer, and at 0.3 nothing gets through twenty
    of them. The deeper a network, the lower the rate; no rate was tried on test images.
    """
    found = []
    for row in table4("{name}-recipe-adjoint", "adjoint", **OURS)[4:]:
        resnet = row.model.startswith("resnet")
        recipe = Recipe(lr=3e-3 if resnet else 1e-3, flip=row.dataset != "gtsrb")
        dropout = 0.05 if row.model in ("resnet34", "vit") else 0.1
        about: dict[str, Any] = {"epochs": 3 if resnet else 10, "hardening_steps": 600, "lr": 1e-3, "dropout": dropout}
        found.append(replace(row, recipe=recipe, **about))
    return [*found, replace(found[0], name="cifar10-resnet18-recipe-paper", readout="paper")]


def adaptive_adversary(profile: Profile) -> Groups:
    erasing: Attacks = {
        "known key, noise": Erasure(steps=11, looks=11),
        "known key, black": Erasure(target="black", steps=11, looks=11),
        "known key, unmarked": Erasure(target="unmarked", steps=6, looks=6),
        "eleven known keys": Erasure(count=None, steps=4, looks=4),
        "random key": Erasure(keys="random", steps=4, looks=4),
        "eleven random keys": Erasure(keys="random", count=None, steps=4, looks=4),
        "overwriting": Overwriting(steps=7, looks=7),
    }
    rates: Attacks = {f"LR {lr:g}": Erasure(steps=11, looks=11, lr=lr) for lr in (2e-3, 4e-3, 8e-3)}
    batch_norm = [LifeCycle(name=f"batch-norm-{r}", model="cnn-bn", readout=r) for r in BOTH_READOUTS]
    factors: Attacks = {f"factor {2**n}": Rescaling(factor=float(2**n)) for n in range(9)}
    extraction: Attacks = {"distillation": Distillation(epochs=profile.epochs)}
    extraction |= {f"average, {w:g} unmarked": Averaging(weight=w) for w in (0.25, 0.5, 0.75)}
    return {
        "erasure": Group(campaigns("erasure", erasing, MARKED)),
        "rates": Group(campaigns("rates", rates, PUBLISHED[:1])),
        "stronger": Group(campaigns("stronger", stronger(profile), MARKED)),
        "preserving": Group(campaigns("preserving", PRESERVING | CANCELLING, MARKED)),
        "batch norm": Group(
            campaigns("preserving-norm", {"batch-norm rescaling": BatchNormRescaling()}, batch_norm), FIRST
        ),
        "rescaling": Group(campaigns("rescaling", factors, PUBLISHED)),
        "merged": Group(campaigns("merged", CANCELLING, MARKED[1:], merge=True)),
        "extraction": Group(campaigns("extraction", extraction, [PUBLISHED[0], DEFAULT])),
        "price": Group(prices(profile), FIRST),
    }


def prices(profile: Profile) -> list[Price]:
    """What it costs to remove a sealed stamp, for some ways to embed it: by network, then by the attacker's images."""
    embeddings: dict[str, dict[str, Any]] = {
        "default": {"readout": "adjoint", **OURS},
        "published": {"readout": "paper", **PAPER},
        "no-dropout": {"readout": "adjoint", **OURS, "dropout": 0.0, "every": 8},
        "noise": {"readout": "adjoint", **OURS, "noise": 0.015, "every": 1},
        "gradient": {"readout": "gradient", **EXACTLY},
    }
    if profile.name != "paper":
        few: dict[str, Any] = {"shares": (1.0,), "rates": (1e-3,), "anew_rates": (1e-3,)}
        if profile.name == "tiny":
            few |= {"attackers": ("trains on", "all keys"), "rates": (1e-2,)}
        chosen = {"tiny": ("gradient",), "quick": ("default", "gradient")}[profile.name]
        return [Price(name=f"price-{name}", on=trial(name, embeddings[name]), **few) for name in chosen]
    deep = {"dataset": "cifar10", "model": "resnet18-narrow", "lr": 1e-3}
    thinned = {name: about | {"dropout": min(about["dropout"], 0.1)} for name, about in embeddings.items()}
    some, every = (0.01,), (0.01, 0.1, 1.0)
    return [
        *(Price(name=f"price-{name}", on=trial(name, about)) for name, about in embeddings.items()),
        *(Price(name=f"price-few-{name}", on=trial(name, about), shares=some) for name, about in embeddings.items()),
        *(
            Price(name=f"price-{title}-{name}", on=trial(f"{title}-{name}", about | network), shares=every)
            for title, network, ways in (
                ("cifar10", {"dataset": "cifar10"}, embeddings),
                ("resnet18", deep, thinned),  # at greater rates of dropout it does not harden
            )
            for name, about in ways.items()
        ),
    ]


def trial(name: str, about: Mapping[str, Any]) -> SealedTrial:
    """A sealed stamp that is embedded so."""
    return SealedTrial(name=f"sealed-trial-{name}", **about)


def capacity(profile: Profile) -> Groups:
    noise = 0.015
    length = {"tiny": 8, "quick": 134}.get(profile.name, len(LICENCE))  # bytes; the whole licence at the paper's scale
    dots = [Capacity(name=f"36-bits-{r}", readout=r, length=49, code="none", **PAPER) for r in BOTH_READOUTS]
    noisy = Capacity(name="36-bits-noise-adjoint", readout="adjoint", length=49, code="none", noise=noise)
    texts = {
        code: Capacity(name=f"licence-{code}", readout="adjoint", length=length, code=code, patches=10, noise=noise)
        for code in ("none", "hamming", "reed-solomon", "ldpc")
    }
    deep = PAPER | {"model": "resnet18", "small": "resnet18-narrow", "dataset": "cifar10", "lr": 1e-3}
    deep["hardening_steps"] = 4_000
    resnet = [
        Capacity(name=f"licence-{c}-resnet18-adjoint", readout="adjoint", length=length, code=c, patches=10, **deep)
        for c in (("none", "hamming", "ldpc") if profile.name == "paper" else ("ldpc",))
    ]

    def until_hardened(name: str, readout: Readout, **about: Any) -> Capacity:
        about |= {"until": "hardened", "target": None, "hardening_steps": 500}
        return Capacity(name=f"{name}-{readout}", readout=readout, code="none", **about)

    counts = {"tiny": (1,), "quick": (1, 2, 4)}.get(profile.name, (1, 4, 16))
    sizes = {"tiny": (2, 7), "quick": (4, 7, 10, 14)}.get(profile.name, (4, 7, 10, 14, 28))
    by_keys = {r: [until_hardened(f"keys-{n}", r, length=49 * n) for n in counts] for r in BOTH_READOUTS}
    by_size = {
        r: [until_hardened(f"patches-{p}", r, length=11 * p * p // 8, patches=p) for p in sizes] for r in BOTH_READOUTS
    }
    times = {"tiny": (1,), "quick": (2,)}.get(profile.name, (4, 8))
    many = replace(texts["ldpc"], hardening_steps=500, noise=0.005, sample=96)
    attacks: Attacks = {f"pruning {level} %": Pruning(amount=level / 100) for level in (20, 40, 60)}
    attacks |= {"int8": Quantization(bits=8)}
    return {
        "unmarked": Group([UNMARKED], FIRST),
        "dots": Group(dots),
        "dots, noise": Group([noisy]),
        "licence": Group(list(texts.values()), FIRST),
        "licence, more seeds": Group([texts["ldpc"]], profile.seeds[1:]),
        "ResNet-18": Group(resnet, FIRST),
        **{f"number of images, {r}": Group(by_keys[r], FIRST) for r in BOTH_READOUTS},
        **{f"bits of an image, {r}": Group(by_size[r], FIRST) for r in BOTH_READOUTS},
        "largest": Group([replace(many, name=f"licence-{n}-times", length=n * length) for n in times], FIRST),
        "attacks": Group(campaigns("payload", attacks, [texts["ldpc"]]), FIRST),
    }


def trials(profile: Profile) -> list[Trial]:
    """The settings from which the library's default is chosen."""
    about: dict[str, dict[str, Any]] = {
        "dropout 0, every 8": {},
        "dropout 0.1, every 8": {"dropout": 0.1},
        "dropout 0.3, every 8": {"dropout": 0.3},
        "dropout 0.5, every 8": {"dropout": 0.5},
        "dropout 0.3, every 4": {"dropout": 0.3, "every": 4},
        "dropout 0.5, every 4": {"dropout": 0.5, "every": 4},
        "dropout 0.3, every 3": {"dropout": 0.3, "every": 3},
        "dropout 0.3, every 2": {"dropout": 0.3, "every": 2},
        "dropout 0.3, every batch": {"dropout": 0.3, "every": 1},
        "dropout 0.3, every 8, alternate": {"dropout": 0.3, "joint": False},
        "dropout 0.3, every batch, alternate": {"dropout": 0.3, "every": 1, "joint": False},
        "noise, every 8": {"noise": 0.015},
        "dropout 0.3 and noise, every 8": {"dropout": 0.3, "noise": 0.015},
    }
    chosen = slice(4, 5) if profile.name == "tiny" else slice(0, 5, 4) if profile.name == "quick" else slice(None)
    common: dict[str, Any] = {"readout": "adjoint", **OURS, "dropout": 0.0, "every": 8}
    return [
        Trial(name=f"trial {setting}".replace(",", "").replace(" ", "-"), **(common | own))
        for setting, own in list(about.items())[chosen]
    ]


def schedules(profile: Profile) -> list[Scheduled]:
    """The schedules of the paper's Appendix 7.4, beside those in use: without dropout, so that a limit is an SSIM."""
    found: dict[str, Schedule] = {"weighted-1": Joint(every=1)}
    found |= {f"weighted-{weight:g}": Joint(every=1, weight=weight) for weight in (0.01, 0.1, 10.0, 100.0)}
    found |= {f"lagrangian-{ssim:g}": AugmentedLagrangian(limit=round(1 - ssim, 2)) for ssim in (0.95, 0.9, 0.99)}
    found |= {"admm": ADMM(), "in-turn": Alternating(), "joint-every-3": Joint()}
    chosen = {"tiny": ("lagrangian-0.95",), "quick": ("weighted-1", "lagrangian-0.95")}.get(profile.name, tuple(found))
    common: dict[str, Any] = {"readout": "adjoint", "target": OURS["target"]}
    return [Scheduled(name=f"schedule-{name}", by=found[name], **common) for name in chosen]


def runtime(profile: Profile) -> Groups:
    fewer = {"tiny": {"rounds": 2, "repeats": 1}, "quick": {"rounds": 5, "repeats": 1}}
    few: dict[str, Any] = fewer.get(profile.name, {})

    def cost(name: str, subject: str, twin: str = "task", **about: Any) -> Cost:
        return Cost(name=name, subject=subject, twin=twin, **(about | few))

    def training(name: str, on: LifeCycle, **about: Any) -> Cost:
        about |= {"readout": on.readout, "every": on.every, "dropout": on.dropout, "noise": on.noise}
        return cost(name, "joint" if on.joint else "alternate", **about)

    costs = [training(f"cost-{on.readout}", on) for on in PUBLISHED]
    costs += [training("cost-default-adjoint", DEFAULT), training("cost-bfloat16", DEFAULT, precision="bfloat16")]
    costs += [training(f"cost-{on.name}", on) for on in trials(profile)]

    fast = LifeCycle(name="rate-0.001", readout="adjoint", lr=1e-3, until="hardened")
    variants = [replace(fast, name=f"rate-{lr:g}", lr=lr) for lr in (1e-4, 3e-4)] + [fast]
    variants += [replace(fast, name=f"key-range-{size:g}", key_range=size) for size in (3.0, 30.0)]
    variants += [replace(fast, name="dropout-0.1", dropout=0.1)]

    pruned: Attacks = {"pruning 80 %": Pruning(amount=0.8)}
    keys = {"tiny": (1, 10), "quick": (1, 10, 100)}.get(profile.name, (1, 10, 100, 1000))
    sizes = {"tiny": (32,), "quick": (32, 48)}.get(profile.name, (32, 64, 128, 224))
    networks = {"tiny": ("squeezenet1_1",), "quick": ("squeezenet1_1", "resnet18")}.get(
        profile.name, ("vit-narrow", "squeezenet1_1", "resnet18", "resnet50", "vit_b_16")
    )
    step: dict[str, Any] = {"rounds": 5, "repeats": 1}
    along = {
        "keys": [cost(f"cost-keys-{n}", "stamp", keys=n, at_once=100 if n > 100 else None, **step) for n in keys],
        "size": [cost(f"cost-size-{n}", "stamp", model="resnet18", size=n, batch=8, **step) for n in sizes],
        "parameters": [
            cost(f"cost-{name}", "stamp", model=name, channels=3, size=32, batch=8, **step) for name in networks
        ],
    }
    small: dict[str, Any] = {} if profile.name == "paper" else {"model": "resnet18-narrow", "rounds": few["rounds"]}
    base = Manner() if profile.name == "paper" else Manner(batch=16)
    best = replace(base, channels_last=True, fused=True, threads=None)
    changes = {
        "channels side by side": replace(base, channels_last=True),
        "fused optimizer": replace(base, fused=True),
        "all cores": replace(base, threads=None),
        "these three": best,
        "16 bits": replace(base, precision="bfloat16"),
        "these four": replace(best, precision="bfloat16"),
        "batches four times as large": replace(base, batch=4 * base.batch),
    }
    return {
        "costs": Group(costs, FIRST),
        "parts": Group([cost(f"part-{part}", part) for part in ("walk", "measure", "stamp", "update")], FIRST),
        "layers": Group([Layers(name="layers-resnet18", **small)], FIRST),
        "gains": Group([Gains(name="gains-resnet18", base=base, changes=changes, **small)], FIRST),
        "trials": Group(trials(profile), FIRST),
        "trials, attacked": Group(campaigns("lasting", lasting(profile), trials(profile)), FIRST),
        "schedules": Group(schedules(profile), FIRST),
        "schedules, attacked": Group(campaigns("pruned", pruned, schedules(profile)), FIRST),
        "hardening": Group(variants),
        "by hand": Group([cost("cost-by-hand", "plain", "stamp", rounds=21)], FIRST),
        "extraction": Group([cost("cost-extraction", "extract", "forward", rounds=21)], FIRST),
        **{f"scale, {what}": Group(group, FIRST) for what, group in along.items()},
    }


def in_court(profile: Profile) -> Groups:
    count, owners, tries = {"tiny": (3, 1, 1), "quick": (20, 1, 3)}.get(profile.name, (100, 4, 60))
    many = tuple(range(10)) if profile.name == "paper" else FIRST
    must: Attacks = {"pruning 60 %": Pruning(amount=0.6), "int8": Quantization(bits=8)}
    must |= PRESERVING | CANCELLING
    strength: Attacks = {f"pruning {level} %": Pruning(amount=level / 100) for level in (*range(10, 100, 10), 95)}
    strength |= {f"noise {sigma:g} sigma": Noise(scale=sigma) for sigma in (0.1, 0.3, 0.5, 0.7, 1.0, 1.5)}
    steps = repairing(profile)
    erasing: Attacks = {
        f"{keys} keys": Erasure(keys=keys, count=None, steps=steps, looks=5, lr=1e-3, repair=True)
        for keys in ("random", "known")
    }
    erasing |= {"same rate": FineTuning(epochs=profile.epochs, lr=1e-4)}

    def examined(family: str, attacks: Attacks) -> list[Examination]:
        return [Examination(name=f"{family}-{SEALED.name}", on=SEALED, attacks=attacks)]

    return {
        "false claim": Group([Accusation(name="false-claim", seals=count)], many),
        "level": Group([Level(name="level", models=count)], many),
        "forgeries": Group([Forgeries(name="forgeries", owners=owners, tries=tries)], FIRST),
        "sealed": Group([SEALED]),
        "plain": Group([UNMARKED, DEFAULT]),
        "attacked": Group(examined("attacked", must)),
        "strength": Group(examined("strength", strength), FIRST),
        "erased": Group(examined("erased", erasing), FIRST),
    }


def exact_readout(profile: Profile) -> Groups:
    interfaces = {
        "logits": Interface(),
        "logits, 3 decimals": Interface(decimals=3, step=0.03),
        "logits, 1 decimal": Interface(decimals=1, step=0.03),
        "logits, noise 0.01": Interface(noise=0.01, step=0.03),
        "logits, noise 0.1": Interface(noise=0.1, step=0.03),
        "probabilities": Interface(probabilities=True),
        "probabilities, 5 decimals": Interface(probabilities=True, decimals=5, step=0.03),
        "probabilities, 3 decimals": Interface(probabilities=True, decimals=3, step=0.03),
        "probabilities, top 5": Interface(probabilities=True, top=5),
        "probabilities, top 3": Interface(probabilities=True, top=3),
    }
    keys = {"tiny": 1, "quick": 2}.get(profile.name, 4)
    if profile.name == "tiny":
        interfaces = {name: interfaces[name] for name in ("logits", "probabilities, top 3")}
    attacks = {name: attack for name, attack in lasting(profile).items() if not isinstance(attack, Erasure)}
    return {
        "lives": Group([DEFAULT, EXACT]),
        "preserving": Group(campaigns("preserving", PRESERVING | CANCELLING, [DEFAULT, EXACT])),
        "lasting": Group(campaigns("lasting", attacks, [EXACT])),
        "stronger": Group(campaigns("stronger", stronger(profile), [DEFAULT, EXACT])),
        "queries": Group([Interviewed(name="queries-gradient", on=EXACT, interfaces=interfaces, keys=keys)]),
        "networks": Group([Unruled(name="networks-gradient")], FIRST),
    }


RIVALS: dict[str, Scheme] = {
    "ClearStamp, adjoint": ClearStamp(),
    "ClearStamp, paper": ClearStamp(readout="paper"),
    "ClearStamp, gradient": ClearStamp(readout="gradient"),
    "ClearStamp, tapped": ClearStamp(tap="9"),
    "ClearStamp, unsealed": ClearStamp(sealed=False),
    "Uchida": Uchida(),
    "DeepSigns": DeepSigns(bits=32),
    "activation signs": ActivationSigns(),
    "GradSigns, weights": WhiteBoxGradSigns(bits=32, strength=1.0),
    "GradSigns, queries": GradSigns(bits=32, strength=1.0),
    "Tartaglione": Tartaglione(),
    "Tartaglione, locked alone": Tartaglione(replicas=0),
    "WaterMAS": WaterMAS(),
    "NeuNAC": NeuNAC(),
    "Adi": Adi(),
    "Zhang, text": Zhang(),
    "Zhang, noise": Zhang(kind="noise"),
    "Zhang, unrelated": Zhang(kind="unrelated"),
    "special label": SpecialLabel(),
    "frontier stitching": FrontierStitching(),
    "Li": Li(),
}
"""The watermarks that stand side by side, with their published settings, but for messages of 32 bits where 16 could
meet no bar, and for the strength of GradSigns, as the published one is for many times as many steps."""

CENTRES: dict[str, Scheme] = {f"DeepSigns, {bits} bits": DeepSigns(bits=bits) for bits in (4, 16, 32, 128)}
"""DeepSigns with messages of the lengths that its source tried."""
SLOPES: dict[str, Scheme] = {
    f"GradSigns, {bits} bits, by {seen}": kind(bits=bits, carriers=carriers, strength=1.0)
    for bits, carriers in ((32, 64), (64, 384))
    for seen, kind in (("weights", WhiteBoxGradSigns), ("queries", GradSigns))
}
"""GradSigns with the carriers of its released code, at the strength that it has in the table."""


def named(title: str) -> str:
    """The name of an experiment with a title."""
    return title.lower().replace(",", "").replace(" ", "-")


def contested(profile: Profile) -> Attacks:
    """The grid of attacks that every watermark meets, named ``family: setting``: fixed before any was tuned to it."""
    epochs = profile.epochs
    grid: Attacks = {
        "fine-tuning: LR/10": FineTuning(epochs=epochs, lr=1e-4),
        "fine-tuning: same rate": FineTuning(epochs=epochs, lr=1e-3),
        "fine-tuning: last layer anew": FineTuning(epochs=epochs, lr=1e-3, reset_last=True),
        "fine-tuning: adversarial": AdversarialTuning(epochs=1, lr=1e-3),
        **{f"pruning: {level} %": Pruning(amount=level / 100) for level in (40, 60, 80, 90)},
        "pruning: with fine-tuning, 40 %": FinePruning(amount=0.4, epochs=1, lr=1e-4),
        **{f"noise: {sigma:g} sigma": Noise(scale=sigma) for sigma in (0.1, 0.3, 0.5)},
        "rounding: float16": Cast(dtype="float16"),
        **{f"rounding: int{bits}": Quantization(bits=bits) for bits in (8, 4)},
    }
    rewriting: Attacks = {
        "permutation": Permutation(),
        "rescaling": Rescaling(),
        "split units": SplitUnits(),
        "cancelling dummy units": DummyUnits(outgoing="cancelling"),
    }
    grid |= {f"rewriting: {name}": attack for name, attack in rewriting.items()}
    grid |= {f"{ALIGNED}: {name}": attack for name, attack in rewriting.items()}
    grid |= {
        "second mark": SecondMark(epochs=1, lr=1e-3),
        **{f"unlearning: {keys} key": Unlearning(keys=keys, lr=1e-3) for keys in ("known", "guessed")},
        "interface: noise on queries": QueryNoise(scale=0.1),
        "interface: one decimal": ScoreRounding(decimals=1),
        "interface: perturbed scores": ScorePerturbation(),
        "interface: sanitizer": Sanitizer(epochs=epochs),
        "interface: detector of queries": Evasion(own_epochs=epochs),
        "head: a class dropped": DropClass(count=1),
        "head: transfer": Transfer(epochs=1, lr=1e-3),
        "copying: average of two": Averaging(weight=0.5),
        "copying: distillation": Distillation(epochs=epochs),
    }
    few = {
        "quick": ("fine-tuning: same rate", "pruning: 80 %", "rewriting: permutation", f"{ALIGNED}: permutation"),
        "tiny": ("pruning: 80 %", "copying: average of two"),
    }
    return {name: grid[name] for name in few.get(profile.name, grid)}


def side_by_side(profile: Profile) -> Groups:
    few: dict[str, Any] = {
        "tiny": {"nulls": 2, "fresh": 2},
        "quick": {"nulls": 4, "fresh": 5},
    }
    size, grid = few.get(profile.name, {}), contested(profile)
    chosen = {"tiny": ("Uchida",), "quick": ("ClearStamp, adjoint", "Uchida", "Zhang, unrelated")}.get(
        profile.name, tuple(RIVALS)
    )
    rivals = [Rival(name=f"rival-{named(title)}", scheme=RIVALS[title], attacks=grid, **size) for title in chosen]
    coloured = [replace(rival, name=f"{rival.name}-cifar10", dataset="cifar10") for rival in rivals]
    blind = [Blind(name="blind-published"), Blind(name="blind-code", deception=1.0, response=0.1)]
    if profile.name != "paper":
        blind = [replace(one, owners=2, few=400) for one in blind[:1]]
    own = [
        OwnTerms(
            name="own-terms-deepsigns", schemes=CENTRES, model="deepsigns-mlp", optimizer="rmsprop", before=5, epochs=1
        ),
        OwnTerms(name="own-terms-gradsigns", schemes=SLOPES, model="cnn", most=20_000),
    ]
    rounds, long = {"tiny": (1, 7), "quick": (3, 10)}.get(profile.name, (7, 20))
    pace = Pace(name="pace", schemes={title: RIVALS[title] for title in chosen}, rounds=rounds, long=long)
    return {
        "Li": Group(blind, FIRST),
        "own terms": Group(own if profile.name == "paper" else own[:1], FIRST),
        "MNIST": Group(rivals),
        "time": Group([pace], FIRST),
        "CIFAR-10": Group(coloured if profile.name == "paper" else [], FIRST),
    }


CHAPTERS: dict[str, Callable[[Profile], Groups]] = {
    "00-your-own-model": lambda profile: {},
    "01-hardening": hardening,
    "02-multi-key": multi_key,
    "03-pruning": pruning,
    "04-generalizability": generalizability,
    "05-adaptive-adversary": adaptive_adversary,
    "06-capacity": capacity,
    "07-runtime": runtime,
    "08-in-court": in_court,
    "09-side-by-side": side_by_side,
    "10-exact-readout": exact_readout,
}
"""Every notebook and what it runs."""


class Chapter:
    """The groups of one notebook in a profile. Raises `RecordError` for an unknown one of either."""

    def __init__(self, name: str, profile_name: str):
        if name not in CHAPTERS:
            raise RecordError("unknown chapter", got=repr(name), expected=" or ".join(map(repr, CHAPTERS)))
        self.name, self.profile = name, profile(profile_name)
        self.groups = CHAPTERS[name](self.profile)

    def __getitem__(self, group: str) -> Group:
        if group not in self.groups:
            raise RecordError("unknown group", got=repr(group), expected=", ".join(self.groups), where=self.name)
        return self.groups[group]

    def run(self, *groups: str) -> list[Record]:
        """The records of these groups: those that are there, and what is not is run (see `run_all`)."""
        chosen = [self[group] for group in groups]
        return [r for g in chosen for r in run_all(g.experiments, self.profile.name, g.seeds)]

    def declared(self) -> Iterator[tuple[Experiment, int]]:
        """Each experiment with each of its seeds."""
        for group in self.groups.values():
            yield from product(group.experiments, self.profile.seeds if group.seeds is None else group.seeds)


def declared(profile_name: str, chapters: Sequence[str] = tuple(CHAPTERS)) -> dict[tuple[str, int], Experiment]:
    """Every experiment of some chapters, and what these need, by name and seed.

    Raises `RecordError` if two different experiments have one name.
    """
    found: dict[tuple[str, int], Experiment] = {}
    for name in chapters:
        todo = list(Chapter(name, profile_name).declared())
        while todo:
            experiment, seed = todo.pop(0)
            other = found.setdefault((experiment.name, seed), experiment)
            if other != experiment:
                raise RecordError("two different experiments of one name", got=experiment.name, where=name)
            todo += [(needed, seed) for needed in experiment.needs()]
    return found


def resolved(profile_name: str, chapters: Sequence[str] = tuple(CHAPTERS)) -> dict[tuple[str, int], Settings]:
    """The settings of everything that is `declared`, by name and seed.

    Raises `RecordError` as `declared` does.
    """
    chosen = profile(profile_name)
    return {key: experiment.settings(chosen) for key, experiment in declared(profile_name, chapters).items()}
