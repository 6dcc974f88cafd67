"""The paper's claims, from `claims.yml`, compared with the records."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from statistics import mean
from typing import Literal

import pydantic.dataclasses
import yaml
from pydantic import FiniteFloat, TypeAdapter, ValidationError

from clearstamp.errors import RecordError
from clearstamp.reproduction import markdown
from clearstamp.reproduction.records import STRICT, Moment, Record, told

FILE = Path(__file__).with_name("claims.yml")


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=STRICT)
class Claim:
    """One number of the paper that the book checks.

    `experiment` may hold ``{readout}``, for which `EMBEDDINGS` has what stands there. `row` names the row of the
    paper's table that it stands in. `moment`, `attack`, `step` and `keys` say at which stage of the experiment the
    score `metric` is taken (see `records.Stage`). `verdict` says how the reproduced mean has to stand to the paper's
    value: within `tolerance` of it (``near``), no more than that below it (``least``), or no more than that above it
    (``most``); `reason` says why. Of a claim that falls, `tried` says what was tried to make it hold.
    `beside` names the claim of how much was erased at that price: a price says nothing as long as less was erased.
    """

    id: str
    claim: str
    where: str
    notebook: str
    experiment: str
    metric: str
    paper: FiniteFloat
    verdict: Literal["near", "least", "most"]
    tolerance: FiniteFloat
    reason: str
    tried: str | None = None
    beside: str | None = None
    row: str | None = None
    moment: Moment | None = None
    attack: str | None = None
    step: int | None = None
    keys: int | None = None

    def value(self, record: Record, readout: str) -> float:
        """The number in a record. Raises `RecordError` if it is not there."""
        at = {name: getattr(self, name) for name in ("moment", "attack", "step", "keys")}
        stage = record.find(self.metric, readout=readout, **at)
        if stage is None:
            raise RecordError(
                "a claim asks for a number that its record does not hold",
                got=", ".join(f"{name} {value}" for name, value in (at | {"metric": self.metric}).items() if value),
                where=f"{self.id}, {record.name}",
            )
        return float(stage.scores[self.metric])

    def holds(self, value: float) -> bool:
        """Whether a reproduced value supports the claim."""
        off = value - self.paper
        below, above = self.verdict != "most", self.verdict != "least"  # which side of the paper's value counts
        return not (below and off < -self.tolerance) and not (above and off > self.tolerance)


EMBEDDINGS = {"published": "paper", "adjoint readout": "adjoint", "default": "default-adjoint"}
"""What stands for ``{readout}`` in an experiment's name: as published, in the other readout, by default."""


@dataclass(frozen=True)
class Outcome:
    """A claim and the value that each embedding gave for each seed; `reduced` names the data if not the paper's."""

    claim: Claim
    values: dict[str, list[float]]
    reduced: str = ""
    beside: "Outcome | None" = None

    @property
    def told(self) -> tuple[str, str, str]:
        """The claim in words: its id, what it says and where, and the paper's number."""
        claim = self.claim
        return claim.id, f"{claim.claim} ({claim.where})", f"{claim.paper:.3f}"

    @property
    def verdict(self) -> str:
        """The verdict on what was embedded and read as published; empty if the experiment was not run."""
        if not self.values["published"]:
            return ""
        text = {True: "holds", False: "FALLS", None: "open: less was erased"}[self.holds("published")]
        return text + (f", reduced scale ({self.reduced})" if self.reduced else "")

    def holds(self, embedding: str) -> bool | None:
        """Whether an embedding supports the claim; None if it was not run, or if less was erased at that price."""
        if not self.values[embedding]:
            return None
        held = self.claim.holds(mean(self.values[embedding]))
        if held or self.beside is None:
            return held
        left, paper = mean(self.beside.values[embedding]), self.beside.claim
        return None if left > paper.paper + paper.tolerance else held

    def cell(self, embedding: str, style: str = ".3f") -> str:
        """Mean and, over several seeds, the range; empty if not run."""
        values = self.values[embedding]
        if not values:
            return ""
        spread = f" ({min(values):{style}} to {max(values):{style}})" if len(values) > 1 else ""
        return f"{mean(values):{style}}{spread}"


CLAIMS = TypeAdapter(tuple[Claim, ...])


@cache
def load(path: Path = FILE) -> tuple[Claim, ...]:
    """Every claim. Raises `RecordError` for a file or an entry that is not valid, and for an id given twice."""
    try:
        claims = CLAIMS.validate_python(yaml.safe_load(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        raise RecordError("not a claims file", got=told(error), where=path) from error
    except (OSError, yaml.YAMLError) as error:
        raise RecordError("not a claims file", got=f"{type(error).__name__}: {error}", where=path) from error
    ids = [claim.id for claim in claims]
    if twice := sorted({i for i in ids if ids.count(i) > 1}):
        raise RecordError("claim ids given twice", got=", ".join(twice), where=path)
    return claims


@cache
def ssim_after_hardening() -> dict[str, Claim]:
    """The claims of the SSIM after hardening that stand in a table of the paper, by experiment."""
    return {c.experiment: c for c in load() if c.row and (c.moment, c.metric) == ("hardened", "ssim")}


def network(claim: Claim) -> str:
    """The network, and the data set or the number of keys, of a claim after hardening, in the paper's words."""
    return str(claim.row).removesuffix(", after hardening")


def judge(claims: Iterable[Claim], records: Iterable[Record]) -> list[Outcome]:
    """Each claim beside the records of one profile. A claim without a record has no values: it was not run."""
    by_name: dict[str, list[Record]] = {}
    for record in records:
        by_name.setdefault(record.experiment, []).append(record)
    outcomes = []
    for claim in claims:
        values: dict[str, list[float]] = {}
        for embedding, name in EMBEDDINGS.items():
            made = by_name.get(claim.experiment.format(readout=name), [])
            values[embedding] = [claim.value(record, name.rpartition("-")[2]) for record in made]
        reduced = [r for r in by_name.get(claim.experiment.format(readout="paper"), []) if r.profile != "paper"]
        data = dict.fromkeys(" and ".join(record.data) or "no data" for record in reduced)
        outcomes.append(Outcome(claim, values, ", ".join(data)))
    by_id = {outcome.claim.id: outcome for outcome in outcomes}
    return [replace(o, beside=by_id[o.claim.beside]) if o.claim.beside else o for o in outcomes]


def table(
    outcomes: Iterable[Outcome],
    style: Literal["markdown", "plain"] = "markdown",
    links: Mapping[str, str] | None = None,
) -> str:
    """The claims table: the paper's value, that of each embedding, and the verdict; with `links` for each id."""
    head = ["id", "claim", "paper", *EMBEDDINGS, "verdict"] + (["shown in; records"] if links else [])
    lines = [
        [
            *o.told,
            *map(o.cell, EMBEDDINGS),
            o.verdict,
            *([links[o.claim.id]] if links else []),
        ]
        for o in outcomes
    ]
    if style == "markdown":
        return markdown.table(head, lines, "llrrrrl")
    widths = [max(len(line[i]) for line in [head, *lines]) for i in range(len(head))]
    return "\n".join(
        "  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in [head, *lines]
    )
