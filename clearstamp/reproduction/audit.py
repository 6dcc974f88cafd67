"""Audits: records are made again in a separate folder and compared; each audit is one line in ``audits.jsonl``."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import field
from datetime import UTC, datetime
from math import isfinite
from pathlib import Path
from tempfile import TemporaryDirectory

from pydantic import FiniteFloat, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from clearstamp.errors import RecordError
from clearstamp.reproduction import records
from clearstamp.reproduction.experiments import TOLERANCE, conduct, differences, find
from clearstamp.reproduction.records import STRICT, Provenance, Record, Sha256, told
from clearstamp.reproduction.registry import resolved


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Audit:
    """The result of making a record again.

    Attributes:
        record: its name.
        digest: of its key.
        date: of the audit, in UTC.
        differences: the greatest of each score over all stages, for the scores that are compared.
        missing: the scores that only one of the two has at some stage.
        agrees: whether nothing is missing and every difference is within its tolerance; False if nothing was compared.
        provenance: of the repetition.
    """

    record: str
    digest: Sha256
    date: str
    differences: dict[str, FiniteFloat]
    agrees: bool
    provenance: Provenance
    missing: list[str] = field(default_factory=list)


ADAPTER = TypeAdapter(Audit)


def file(profile_name: str) -> Path:
    """Where a profile's audits are."""
    return records.artifacts() / profile_name / "audits.jsonl"


def load(profile_name: str) -> list[Audit]:
    """Every audit of a profile, the oldest first. Raises `RecordError` for a line that is not an audit, naming it."""
    path, audits = file(profile_name), []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines() if path.is_file() else [], start=1):
        try:
            audits.append(ADAPTER.validate_json(line))
        except ValidationError as error:
            raise RecordError("not an audit", got=told(error), where=f"{path}, line {number}") from error
    return audits


def latest(profile_name: str) -> dict[str, Audit]:
    """The last audit of each record, the oldest first, unless the record has been replaced since."""
    made = {record.name: record.digest for record in records.load_all(profile_name)}
    last: dict[str, Audit] = {}
    for audit in load(profile_name):
        if made.get(audit.record) == audit.digest:
            last.pop(audit.record, None)  # so that it takes its place at the end
            last[audit.record] = audit
    return last


def due(profile_name: str) -> list[str]:
    """The records of today's experiments: those never audited first, then by their last audit."""
    place = {name: place for place, name in enumerate(latest(profile_name))}  # of its line: dates can be equal
    names = [records.named(*key) for key, settings in resolved(profile_name).items() if find(settings, key[1])]
    return sorted(names, key=lambda name: (place.get(name, -1), name))


def perform(profile_name: str, names: Sequence[str]) -> Iterator[Audit]:
    """Make some records again, with the models that they need, and compare them; each audit is written at once.

    Raises `RecordError` if there is no such record, or no experiment that it answers to.
    """
    today = {records.named(*key): (settings, key[1]) for key, settings in resolved(profile_name).items()}
    for name in names:
        if name not in today or find(*today[name]) is None:
            raise RecordError("no record to audit", got=name, expected="one that answers to an experiment of today")
    for name in names:
        with elsewhere():
            again, _ = conduct(*today[name])
            repeated = [*records.load_all(profile_name), again]  # first the models that it needed
        for other in repeated:
            if was := records.find(profile_name, other.name):
                audit = compared(was, other)
                with file(profile_name).open("a", encoding="utf-8") as log:
                    log.write(ADAPTER.dump_json(audit).decode() + "\n")
                yield audit


@contextmanager
def elsewhere() -> Iterator[None]:
    """Within the block, artifacts go to a temporary folder."""
    before = os.environ.get("CLEARSTAMP_ARTIFACTS")
    with TemporaryDirectory() as folder:
        os.environ["CLEARSTAMP_ARTIFACTS"] = folder
        try:
            yield
        finally:
            if before is None:
                del os.environ["CLEARSTAMP_ARTIFACTS"]
            else:
                os.environ["CLEARSTAMP_ARTIFACTS"] = before


def compared(record: Record, again: Record) -> Audit:
    """The audit of a record by its repetition."""
    found = differences(record, again)
    return Audit(
        record=record.name,
        digest=record.digest,
        date=datetime.now(UTC).isoformat(timespec="milliseconds"),
        differences={name: round(most, 6) for name, most in found.items() if isfinite(most)},
        missing=[name for name, most in found.items() if not isfinite(most)],
        agrees=bool(found) and all(most <= TOLERANCE[name] for name, most in found.items()),
        provenance=again.provenance,
    )
