"""Small twins of the experiments: every class, loader, attack, code, readout and precision, each in a second or so.

Their numbers and pictures are kept as goldens (see `test_golden.py`), which hold the code to its version.
"""

import gzip
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clearstamp import attacks
from clearstamp.attacks import Attack
from clearstamp.reproduction.campaigns import Campaign
from clearstamp.reproduction.capacity import Capacity
from clearstamp.reproduction.court import Accusation, Examination, Forgeries, Level, Sealed
from clearstamp.reproduction.coverage import Coverage, Hardened
from clearstamp.reproduction.exact import Interface, Interviewed, Unruled
from clearstamp.reproduction.experiments import Experiment
from clearstamp.reproduction.foreign import Foreign, ForeignHardened
from clearstamp.reproduction.generalizability import CrossData, Row
from clearstamp.reproduction.layers import Gains, Layers, Manner
from clearstamp.reproduction.lifecycle import Fingerprint, LifeCycle, Scheduled, Trial
from clearstamp.reproduction.price import Price, SealedTrial
from clearstamp.reproduction.profiles import Profile
from clearstamp.reproduction.rivals import Blind, OwnTerms, Pace, Rival
from clearstamp.reproduction.runtime import Cost
from clearstamp.schemes import Adi, DeepSigns, GradSigns, Uchida
from clearstamp.training.schedules import ADMM, AugmentedLagrangian
from clearstamp.zoo.datasets import MNIST_FILES, DataSet, Split, load
from clearstamp.zoo.packs import write_pack
from clearstamp.zoo.recipe import Recipe

SCALE = Profile(
    name="twin",
    dataset="mnist",
    train_images=96,
    test_images=48,
    hardening_steps=12,
    epochs=1,
    finetune_epochs=1,
    seeds=(0,),
)


@dataclass(frozen=True)
class Twin:
    """An experiment, and the names of the scores that are the same every time: all of them for None.

    `slack` multiplies what another processor may differ by, for twins in which small errors grow fast. `means` names
    arrays of numbers, whose means the golden keeps, those of p in parts of 1. Without `exact` even processors of one
    name differ in the last bits, since the name does not tell the generation.
    """

    experiment: Experiment
    scores: tuple[str, ...] | None = None
    slack: float = 1.0
    means: tuple[str, ...] = ()
    exact: bool = True

    @property
    def name(self) -> str:
        return f"{self.experiment.name}-v{self.experiment.version}"


FAST = {"lr": 1e-3, "keys": 3, "batch_size": 16}
SMALL = {"model": "fc", **FAST}
ON = {r: LifeCycle(name=f"life-fc-{r}", readout=r, **SMALL) for r in ("paper", "adjoint")}
UNMARKED = LifeCycle(name="unmarked-fc", keys=0, **{k: v for k, v in SMALL.items() if k != "keys"})
SEALED = Sealed(name="sealed-fc", model="fc", readout="adjoint", lr=1e-3, batch_size=16)
EXACT = LifeCycle(name="life-fc-gradient", readout="gradient", noise=0.01, joint=True, **SMALL)
SEALED_TRIAL = SealedTrial(name="sealed-trial-fc", model="fc", readout="gradient", lr=1e-3, batch_size=16)
NORMED = LifeCycle(name="life-cnn-bn-adjoint", model="cnn-bn", readout="adjoint", **FAST)

EVERY_ATTACK: dict[str, Attack] = {
    "fine-tuning": attacks.FineTuning(epochs=1, lr=1e-3),
    "last layer": attacks.FineTuning(epochs=1, lr=1e-3, layers="last", optimizer="sgd"),
    "last layer anew": attacks.FineTuning(epochs=1, lr=1e-3, reset_last=True, weight_decay=1e-2),
    "transfer": attacks.Transfer(epochs=1, lr=1e-3),
    "distillation": attacks.Distillation(epochs=1),
    "averaging": attacks.Averaging(weight=0.25),
    "pruning": attacks.Pruning(amount=0.6),
    "pruning, each layer": attacks.Pruning(amount=0.6, scope="layer"),
    "pruning, channels": attacks.Pruning(amount=0.3, scope="channels"),
    "fine-pruning": attacks.FinePruning(amount=0.5, epochs=1, lr=1e-3),
    "cast": attacks.Cast(dtype="bfloat16"),
    "quantization": attacks.Quantization(bits=4, per="channel"),
    "noise": attacks.Noise(scale=0.3),
    "permutation": attacks.Permutation(),
    "rescaling": attacks.Rescaling(),
    "logit shift": attacks.LogitShift(),
    "dummy units": attacks.DummyUnits(outgoing="cancelling"),
    "split units": attacks.SplitUnits(part=3.0),
    "erasure": attacks.Erasure(steps=3, looks=2, lr=1e-3),
    "erasure, black": attacks.Erasure(target="black", steps=2, lr=1e-3),
    "erasure, unmarked": attacks.Erasure(target="unmarked", steps=2, lr=1e-3),
    "erasure, random keys": attacks.Erasure(keys="random", count=None, steps=3, lr=1e-3, repair=True),
    "overwriting": attacks.Overwriting(steps=3, lr=1e-3),
}

REWRITING: dict[str, Attack] = {
    "norm input": attacks.NormInputRescaling(),
    "mimics": attacks.MimicUnits(),
    "silent": attacks.SilentUnits(),
    "composed": attacks.Composed(share=0.2),
}

ACCUSING: dict[str, Attack] = {
    "false claim": attacks.FalseClaim(surrogates=2, candidates=40),
    **{f"forgery, {by}": attacks.Forgery(by=by, steps=5) for by in ("keys", "head", "copy")},
}

RIVALLING: dict[str, Attack] = {
    "pruning": attacks.Pruning(amount=0.6),
    "second mark": attacks.SecondMark(epochs=1, lr=1e-3),
    "rewriting, aligned: permutation": attacks.Permutation(),
    "interface: noise": attacks.QueryNoise(),
}

ASKED: dict[str, Attack] = {
    "tuning": attacks.AdversarialTuning(epochs=1, lr=1e-3),
    "dropped": attacks.DropClass(count=1),
    "rounded": attacks.ScoreRounding(decimals=1),
    "perturbed": attacks.ScorePerturbation(),
    "sanitizer": attacks.Sanitizer(epochs=1),
    "detector": attacks.Evasion(epochs=1),
    "unlearning": attacks.Unlearning(steps=3),
    "counter-claim": attacks.CounterClaim(),
}

SEEN: dict[str, Attack] = {"detector": attacks.FeatureEvasion(epochs=1)}

TWINS = [
    *map(Twin, ON.values()),
    Twin(UNMARKED),
    Twin(LifeCycle(name="life-cnn-paper", readout="paper", dropout=0.2, target=None, **FAST)),
    Twin(
        LifeCycle(name="life-cnn-adjoint-bfloat16", readout="adjoint", noise=0.015, precision="bfloat16", **FAST),
        slack=3,
    ),
    Twin(
        LifeCycle(name="life-relative-joint", readout="adjoint", noise=1.0, relative=True, every=2, joint=True, **SMALL)
    ),
    Twin(LifeCycle(name="life-sgd-icons", readout="paper", secrets="icons", optimizer="sgd", **SMALL)),
    Twin(LifeCycle(name="life-paper-key", readout="paper", **SMALL | {"keys": 1, "paper_key": True})),
    Twin(LifeCycle(name="life-digits", dataset="digits", readout="adjoint", **SMALL)),
    Twin(NORMED),
    Twin(Fingerprint(name="fingerprint", dropout=0.5, **SMALL)),
    Twin(Trial(name="trial", readout="adjoint", dropout=0.3, every=2, joint=True, **SMALL)),
    Twin(
        Scheduled(name="scheduled-lagrangian", by=AugmentedLagrangian(limit=0.5, period=2), readout="adjoint", **SMALL)
    ),
    Twin(Scheduled(name="scheduled-admm", by=ADMM(period=2), readout="adjoint", **SMALL)),
    Twin(
        Row(name="row-cifar10-resnet18", readout="paper", dataset="cifar10", model="resnet18-narrow", **FAST), slack=3
    ),
    Twin(
        Row(name="row-recipe", readout="adjoint", recipe=Recipe(), model="cnn-bn", dataset="cifar10", **FAST), slack=3
    ),
    Twin(Row(name="row-gtsrb-vit", readout="adjoint", dataset="gtsrb", model="vit-narrow", **FAST), exact=False),
    Twin(CrossData(name="cross-data", readout="adjoint", dataset="cifar100", onto="cifar10", model="cnn", **FAST)),
    *[
        Twin(Capacity(name=f"capacity-{c}", readout="adjoint", length=9, code=c, patches=4, **SMALL))
        for c in ("none", "hamming")
    ],
    Twin(Capacity(name="capacity-ldpc", readout="paper", length=12, patches=6, sample=2, noise=0.01, **SMALL)),
    Twin(Capacity(name="capacity-reed-solomon", readout="adjoint", length=5, code="reed-solomon", patches=8, **SMALL)),
    *[Twin(Campaign(name=f"campaign-{r}", on=ON[r], attacks=EVERY_ATTACK, unmarked=UNMARKED)) for r in ON],
    Twin(Campaign(name="campaign-merge", on=ON["adjoint"], attacks={"split": EVERY_ATTACK["split units"]}, merge=True)),
    Twin(Campaign(name="campaign-unseen", on=ON["paper"], attacks={"tuned": EVERY_ATTACK["fine-tuning"]}, unseen=True)),
    Twin(Campaign(name="campaign-batch-norm", on=NORMED, attacks={"rescaling": attacks.BatchNormRescaling()})),
    Twin(Campaign(name="campaign-rewriting", on=NORMED, attacks=REWRITING, merge=True)),
    Twin(Campaign(name="campaign-accusing", on=ON["adjoint"], attacks=ACCUSING)),
    Twin(SEALED),
    Twin(Examination(name="examination", on=SEALED, attacks={"split": EVERY_ATTACK["split units"]})),
    Twin(
        Accusation(name="accusation", strangers=("fc",), seals=2),
        means=tuple(f"{test}/{model}" for test in ("order", "letters") for model in ("ground", "fc")),
    ),
    Twin(
        Level(name="level", models=3),
        means=(
            *("bits", "letters", "letters-soft", "letters, always A", "letters, flat"),
            *("order, flat", "order, honest pictures", "order, surrogates' pictures"),
        ),
    ),
    Twin(
        Forgeries(name="forgeries-told-apart", owners=1, innocents=1, tries=1),
        means=tuple(
            f"{kind}/{score}" for kind in ("genuine", "keys", "head", "copy") for score in ("SSIM", "correlation")
        ),
    ),
    Twin(EXACT, exact=False),
    Twin(SEALED_TRIAL, scores=("accuracy", "ssim", "developed_ssim"), exact=False),
    Twin(
        Price(name="price", on=SEALED_TRIAL, shares=(1.0,), rates=(1e-4,), anew_rates=(1e-3,), most=0.01),
        scores=("accuracy", "developed_ssim"),
        exact=False,
    ),
    Twin(
        Interviewed(
            name="interviewed",
            on=EXACT,
            interfaces={"logits": Interface(), "top": Interface(probabilities=True, top=3)},
            keys=1,
            shares=(0.1, 1.0),
        ),
        exact=False,
    ),
    Twin(Unruled(name="unruled"), exact=False),
    Twin(
        Rival(name="rival", scheme=Uchida(bits=32), attacks=RIVALLING, model="fc", nulls=2, fresh=2),
        scores=("accuracy", "score", "accused"),
        exact=False,
    ),
    Twin(
        Rival(name="rival-asked", scheme=Adi(triggers=20, per_batch=8), attacks=ASKED, model="fc", nulls=2, fresh=2),
        scores=("accuracy", "score", "accused"),
        exact=False,
    ),
    Twin(
        Rival(name="rival-seen", scheme=Adi(triggers=20, per_batch=8), attacks=SEEN, model="fc", nulls=2, fresh=2),
        scores=("accuracy", "score", "accused"),
        exact=False,
    ),
    Twin(Layers(name="layers", model="resnet18-narrow", batch=2, rounds=1, side=64), scores=("count", "operations")),
    Twin(Gains(name="gains", model="resnet18-narrow", rounds=2, changes={"fused": Manner(fused=True)}), scores=()),
    Twin(Pace(name="pace", schemes={"Uchida": Uchida()}, model="fc", short=1, long=2, rounds=1), scores=("memory",)),
    Twin(
        OwnTerms(
            name="own-terms",
            schemes={"short": DeepSigns(bits=8), "by queries": GradSigns(bits=4, carriers=8, images=2, strength=1.0)},
            model="deepsigns-mlp",
            optimizer="rmsprop",
            before=1,
        ),
        scores=("accuracy", "score", "trials", "queries"),
        exact=False,
    ),
    Twin(Blind(name="blind", owners=2, few=60), exact=False),
    Twin(Coverage(name="coverage", networks=("squeezenet1_1",))),
    Twin(Hardened(name="hardened", networks=("shufflenet_v2_x0_5",), steps=3, lr=1e-3)),
    Twin(Foreign(name="foreign", networks=("timm/test_vit", "transformers/Swin"))),
    Twin(ForeignHardened(name="foreign-hardened", networks=("transformers/ViT",), steps=3)),
    *[
        Twin(
            Cost(name=f"cost-{subject}", subject=subject, twin="task", keys=5, batch=4, rounds=2, repeats=1, **about),
            scores=("operations", "memory", "parameters"),
        )
        for subject, about in {
            "alternate": {"every": 2, "readout": "paper"},
            "joint": {"noise": 0.015},
            "stamp": {"at_once": 2},
            "plain": {},
            "extract": {},
        }.items()
    ],
]


SIZES: dict[Split, int] = {"train": 120, "test": 60}


def images(split: Split) -> DataSet:
    """What the small MNIST holds: embedded digits."""
    return load("digits", split).take(SIZES[split])


def write_sets(folder: Path) -> None:
    """Small sets in the format of MNIST's authors and of the packs, so that twins go through the real loaders."""
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for split in SIZES:
        name, part = MNIST_FILES[split], images(split)
        for kind, values in (("images-idx3", part.images[:, 0].numpy()), ("labels-idx1", part.labels.byte().numpy())):
            shape = b"".join(size.to_bytes(4, "big") for size in values.shape)
            content = bytes([0, 0, 8, values.ndim]) + shape + values.tobytes()
            (raw / f"{name}-{kind}-ubyte.gz").write_bytes(gzip.compress(content, mtime=0))
    random = np.random.default_rng(0)
    for pack, classes in (("cifar10", 10), ("cifar100", 100), ("gtsrb32", 43)):
        for split, count in SIZES.items():
            labels = np.arange(count) % classes
            centres = np.random.default_rng(1).integers(0, 256, (classes, 4, 4, 3))
            pixels = np.kron(centres[labels], np.ones((1, 8, 8, 1))) + random.normal(0, 25, (count, 32, 32, 3))
            write_pack(folder / pack / f"{split}.zip", pixels.clip(0, 255).astype(np.uint8), labels)
