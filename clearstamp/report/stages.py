"""The stages of a record, and the scores that are shown of each."""

from collections.abc import Sequence

from clearstamp.errors import RecordError
from clearstamp.records import Record

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
READOUTS = {"paper": "tab:blue", "adjoint": "tab:orange"}


def pictured(records: Sequence[Record]) -> list[Record]:
    """The records that keep pictures: those of the first seed."""
    return [record for record in records if "secrets" in record.arrays]


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
    names = dict.fromkeys(record.experiment for record in records)
    return {name: [record for record in records if record.experiment == name] for name in names}
