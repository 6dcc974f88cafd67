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
    found = [s for s in record.results if (s.startswith(f"{attack}, ") or s == attack if attack else is_end(record, s))]
    if not found:
        raise RecordError("the record has no such attack", got=repr(attack), expected=", ".join(record.results))
    return ["before", *found]


def is_end(record: Record, stage: str) -> bool:
    """Is a stage of a campaign the end of an attack, rather than a look on its way?"""
    return "steps" in record.results[stage]


def by_experiment(records: Sequence[Record]) -> dict[str, list[Record]]:
    """The records of each experiment, one a seed."""
    names = dict.fromkeys(record.experiment for record in records)
    return {name: [record for record in records if record.experiment == name] for name in names}
