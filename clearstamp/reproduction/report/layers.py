"""Where the time of training a deep network goes, and what makes it less, as it is shown."""

from collections.abc import Sequence

from IPython.display import Markdown

from clearstamp.reproduction.layers import OPTIMIZER, STEP
from clearstamp.reproduction.records import Record, Stage
from clearstamp.reproduction.report.tables import shown

SHARE = 0.01
"""The least share of a step's time for which layers have a line of their own."""
BESIDE = (STEP, OPTIMIZER)
"""What is no layer."""


def layers_table(records: Sequence[Record]) -> Markdown:
    """One line a kind of layer, the longest first: its share of a step's time and arithmetic, and the time over this.

    Layers that take less than `SHARE` are one line, and so is what the step does beside its layers.
    """
    rows = [row for record in records for row in lines(record)]
    head = ("of the step", "layers", "time", "operations", "time over that of its arithmetic")
    return shown("Where the time of a training step goes", records, head, rows, "lrrrr")


def lines(record: Record) -> list[tuple[str, ...]]:
    """The lines of one network."""
    (whole,) = (stage for stage in record.stages if stage.label == STEP)
    stages = sorted((stage for stage in record.stages if stage is not whole), key=lambda stage: -share(stage))
    small = [stage for stage in stages if share(stage) < SHARE and stage.label not in BESIDE]
    rows = [
        (stage.label, number(stage), f"{share(stage):.1%}", f"{work(stage) / work(whole):.1%}", over(stage))
        for stage in (whole, *stages)
        if stage not in small
    ]
    count, time, arithmetic = (sum(of(stage) for stage in small) for of in (count_of, share, work))
    rest = 1 - sum(share(stage) for stage in stages)
    return [
        *rows,
        ("all other layers", f"{count:.0f}", f"{time:.1%}", f"{arithmetic / work(whole):.1%}", ""),
        ("what is between them", "", f"{rest:.1%}", "", ""),
    ]


def number(stage: Stage) -> str:
    """How many layers there are; empty of what is no layer."""
    return "" if stage.label in BESIDE else f"{count_of(stage):.0f}"


def count_of(stage: Stage) -> float:
    """How many there are."""
    return float(stage.scores["count"] or 0)


def share(stage: Stage) -> float:
    """Of the step's time."""
    return float(stage.scores["time"] or 0)


def work(stage: Stage) -> float:
    """The operations."""
    return float(stage.scores["operations"] or 0)


def over(stage: Stage) -> str:
    """The time over that of the arithmetic; empty where there is none."""
    return f"{stage.scores['over']:.1f}" if "over" in stage.scores else ""


def gains_table(records: Sequence[Record]) -> Markdown:
    """One line a change to how steps are run: the time of an image over that without it."""
    rows = [
        (stage.label, f"{found['time']:.2f}", f"{found['quartile 1']:.2f} to {found['quartile 3']:.2f}")
        for record in records
        for stage in record.stages
        for found in [stage.scores]
    ]
    return shown("What makes a step shorter", records, ("change", "time of an image", "quartiles"), rows, "lrr")
