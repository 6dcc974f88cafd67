"""The stages of a record, and the scores that are shown of each."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any

from clearstamp.errors import RecordError
from clearstamp.reproduction import claims
from clearstamp.reproduction.court import Examination, Sealed
from clearstamp.reproduction.lifecycle import LifeCycle, Trial
from clearstamp.reproduction.profiles import STAND_IN, profile
from clearstamp.reproduction.records import Record
from clearstamp.reproduction.registry import EXACT, EXACTLY, OURS, PAPER

STAGES = {
    "hardened": "after hardening",
    "trained": "after constraint training",
    "finetuned": "after fine-tuning at LR/10",
}
SCORES = {
    "accuracy": "accuracy",
    "ssim": "SSIM",
    "ssim_min": "least SSIM",
    "developed_ssim": "developed SSIM",
    "correlation": "correlation",
}


def pictured(records: Sequence[Record], of: str = "secrets") -> list[Record]:
    """The records that keep pictures, by the name `of` some of them: those of the first seed."""
    return [record for record in records if of in record.arrays]


def stages_of(record: Record, attack: str) -> list[str]:
    """``"before"`` and the stages of one attack of a campaign, or for none the ends of all of them."""
    found = [stage.label for stage in record.stages if (stage.attack == attack if attack else stage.ends)]
    if not found:
        known = dict.fromkeys(stage.attack for stage in record.stages if stage.attack)
        raise RecordError("the record has no such attack", got=repr(attack), expected=", ".join(known))
    return ["before", *found]


def ends(record: Record) -> list[str]:
    """``"before"`` and the ends of all attacks of a campaign."""
    return [stage.label for stage in record.stages if stage.ends or stage.attack is None]


def by_experiment(records: Sequence[Record]) -> dict[str, list[Record]]:
    """The records of each experiment, one a seed."""
    return grouped(records, lambda record: record.experiment)


def by_model(records: Sequence[Record]) -> dict[str, list[Record]]:
    """The records of each way to mark a model, in words."""
    return grouped(records, in_words)


def grouped(records: Sequence[Record], name: Callable[[Record], str]) -> dict[str, list[Record]]:
    """The records of each name, in the order of their first."""
    found: dict[str, list[Record]] = {}
    for record in records:
        found.setdefault(name(record), []).append(record)
    return found


NETWORKS = {"cnn": "default CNN", "cnn-bn": "CNN with batch norm", "fc": "three FC layers"}
NETWORKS |= {"resnet18": "ResNet-18", "resnet34": "ResNet-34", "vgg11": "VGG11", "vit": "ViT"}
SETS = {"mnist": "MNIST", "cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "gtsrb": "GTSRB"}
WORDS: dict[str, Callable[[Any], str]] = {
    "readout": "{} readout".format,
    "model": lambda name: NETWORKS.get(name.removesuffix("-narrow"), name),
    "dataset": lambda name: SETS.get(name, name),
    "keys": lambda count: {0: "no stamp", 1: "1 key"}.get(count, f"{count} keys"),
    "secrets": str,
    "key_range": "keys within ±{:g}".format,
    "optimizer": str.upper,
    "lr": "LR {:g}".format,
    "noise": "noise {:g}".format,
    "batch_size": "batches of {}".format,
    "precision": str,
    "length": "{:,} bytes".format,
    "code": "code {}".format,
}
"""How a setting is told that is not that of the default scenario."""


def in_words(record: Record) -> str:
    """How the model of a record was marked: as published, by default, for the exact readout, or how else."""
    given: Mapping[str, Any] = record.parameters.get("on", record.parameters)
    if "keys" not in given or "readout" not in given or "secrets" not in given:
        return record.experiment
    usual = {f.name: f.default for f in fields(LifeCycle)}
    usual |= {name: getattr(profile(record.profile), name) for name in ("dataset", "precision")}
    if record.parameters is not given:  # a campaign keeps its model's declaration, not resolved
        usual |= {"dataset": None, "precision": None}

    def embedded_as(settings: Mapping[str, Any]) -> bool:
        return all(given[name] == settings.get(name, usual[name]) for name in ("dropout", "noise", "every", "joint"))

    if not given["keys"]:
        parts = []
    elif "by" in given:
        parts, usual["readout"] = [scheduled(given["by"])], "adjoint"  # of them all
    elif given.get("recipe"):
        parts = ["recipe"]
    elif embedded_as(OURS):
        parts, usual["readout"] = ["default"], "adjoint"
    elif given["readout"] == EXACT.readout and embedded_as(EXACTLY):
        parts = ["exact"]
        usual |= {"readout": EXACT.readout, "noise": EXACT.noise}
    elif embedded_as(PAPER):
        parts = ["published"]
    elif given["until"] == "hardened":
        parts = [f"dropout {given['dropout']:g}"]
    else:
        parts = [
            f"dropout {given['dropout']:g}",
            f"{'joint' if given['joint'] else 'alternate'} every {given['every']}",
        ]
    if record.kind in (Sealed.__name__, Examination.__name__):
        parts = ["sealed", *parts]
    if record.kind == Trial.__name__:
        usual["readout"] = "adjoint"  # of them all
    if row := table_row(record):
        parts, particular = [*parts, row], {"readout", "keys"}
    else:
        particular = {name for name in WORDS if (name, given.get(name)) != ("dataset", STAND_IN)}
    return ", ".join(
        [
            *parts,
            *(
                say(given[name])
                for name, say in WORDS.items()
                if name in particular & given.keys() and given[name] != usual.get(name)
            ),
        ]
    )


def scheduled(by: Mapping[str, Any]) -> str:
    """A schedule as a record keeps it, in words."""
    words = {
        "Joint": "weighted sum, {weight:g}" if by.get("every") == 1 else "joint every {every}",
        "Alternating": "alternate every {every}",
        "AugmentedLagrangian": "augmented Lagrangian, loss at most {limit:g}",
        "ADMM": "ADMM, rho {rho:g}",
    }
    return words[by["schedule"]].format(**by)


BY_RECIPE = ("recipe-adjoint", "recipe-paper")
"""What stands for ``{readout}`` in the name of a row that was trained by a recipe."""


def table_row(record: Record) -> str:
    """The network and data set of a row of the paper's Table 4, as the paper has them, whatever stands in for these."""
    for experiment, claim in claims.ssim_after_hardening().items():
        names = (experiment.format(readout=name) for name in (*claims.EMBEDDINGS.values(), *BY_RECIPE))
        if claim.where == "Table 4" and record.experiment in names:
            return claims.network(claim)
    return ""
