"""Audits repeat records in a folder of their own, compare, and note what came of it."""

import sys
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import pytest

from clearstamp.attacks import Noise
from clearstamp.errors import RecordError
from clearstamp.reproduction import audit, records
from clearstamp.reproduction.campaigns import campaigns
from clearstamp.reproduction.experiments import run_all
from clearstamp.reproduction.lifecycle import LifeCycle
from clearstamp.reproduction.profiles import PROFILES
from clearstamp.reproduction.registry import CHAPTERS, Group

sys.path.append(str(Path(__file__).parents[2] / "notebooks"))
import audit as program

ON = LifeCycle(name="one", model="fc", keys=2)
(ATTACKED,) = campaigns("noise", {"a little": Noise(scale=0.1)}, [ON])


@pytest.fixture(autouse=True)
def made(tmp_path, monkeypatch):
    """A chapter of a model and of an attack on it, with their records."""
    monkeypatch.setenv("CLEARSTAMP_ARTIFACTS", str(tmp_path))
    monkeypatch.setitem(PROFILES, "tiny", replace(PROFILES["tiny"], train_images=64, hardening_steps=3))
    monkeypatch.setitem(CHAPTERS, "01-hardening", lambda profile: {"all": Group([ON, ATTACKED])})
    return run_all([ON, ATTACKED], "tiny")


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_an_audit_repeats_a_record_and_what_it_needs_and_touches_nothing(made, tmp_path):
    before = contents(tmp_path)
    found = list(audit.perform("tiny", ["noise-one-seed0"]))
    assert [(a.record, a.agrees) for a in found] == [("one-seed0", True), ("noise-one-seed0", True)]
    assert found[0].differences["ssim"] == 0.0 and found[0].digest == made[0].digest
    log = contents(tmp_path).keys() - before.keys()
    assert log == {audit.file("tiny")} and {p: b for p, b in contents(tmp_path).items() if p in before} == before
    assert audit.load("tiny") == found


def test_a_record_that_cannot_be_had_again_is_told(made, capsys):
    made[0].stages[1].scores["ssim"] += 0.06
    made[0].save()
    assert program.main(["--profile", "tiny", "one-seed0"]) == 1
    assert "one-seed0  DIFFERS  (greatest differences: accuracy 0.0000" in capsys.readouterr().out
    (line,) = audit.load("tiny")
    assert not line.agrees and line.differences["ssim"] == pytest.approx(0.06, abs=1e-5)


def test_what_was_never_verified_is_due_first_then_what_was_so_longest_ago(made, monkeypatch):
    monkeypatch.setattr(audit, "datetime", SimpleNamespace(now=lambda _: datetime(2024, 8, 14)))  # a clock too coarse
    assert audit.due("tiny") == ["noise-one-seed0", "one-seed0"]
    list(audit.perform("tiny", ["noise-one-seed0"]))
    assert audit.due("tiny") == ["one-seed0", "noise-one-seed0"], "its model was verified before it"
    replace(made[0], parameters=made[0].parameters | {"lr": 1.0}).save()
    assert "one-seed0" not in audit.latest("tiny") | dict.fromkeys(audit.due("tiny")), "another record by now"


def test_records_of_former_experiments_are_not_due(made):
    replace(made[0], experiment="0-old").save()
    assert audit.due("tiny") == ["noise-one-seed0", "one-seed0"]


def test_a_score_that_only_one_has_and_a_record_without_scores_to_compare_do_not_agree(made):
    (stage,) = (stage for stage in made[0].stages if stage.label == "trained")
    lacking = replace(made[0], stages=[replace(stage, scores={"accuracy": stage.scores["accuracy"]})])
    found = audit.compared(lacking, replace(made[0], stages=[stage]))
    assert not found.agrees and "ssim" in found.missing and found.differences == {"accuracy": 0.0}
    nothing = replace(made[0], stages=[replace(stage, scores={"seconds": 1.0})])
    assert not audit.compared(nothing, nothing).agrees


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--count", "0"], "no such number of records; got: 0"),
        (["--profile", "quick"], "nothing to audit; got: no record in profile 'quick'"),
        (["--profile", "tiny", "one-seed0", "nonsense"], "no record to audit; got: nonsense"),
    ],
)
def test_a_command_line_that_cannot_work_is_told_before_anything_is_run(words, problem, capsys, monkeypatch):
    monkeypatch.setattr(audit, "conduct", lambda *_: pytest.fail("something was run"))
    assert program.main(words) == 1
    assert capsys.readouterr().err.startswith(f"error: {problem}")


def test_only_records_of_today_s_experiments_can_be_audited(made):
    for name in ("two-seed0", "one-seed5"):
        with pytest.raises(RecordError, match=f"no record to audit; got: {name}"):
            list(audit.perform("tiny", [name]))
    replace(made[0], version=9).save()
    with pytest.raises(RecordError, match="no record to audit; got: one-seed0"):
        list(audit.perform("tiny", ["one-seed0"]))


@pytest.mark.parametrize(
    ("line", "problem"), [("{", "eof while parsing"), ("{}", "record: field required"), ('{"colour": 1}', "colour: ")]
)
def test_a_damaged_line_is_an_error_that_names_file_and_line(line, problem):
    list(audit.perform("tiny", ["one-seed0"]))
    with audit.file("tiny").open("a") as log:
        log.write(line)
    with pytest.raises(RecordError, match=f"not an audit; got: .*{problem}.*audits.jsonl, line 2"):
        audit.load("tiny")


def test_records_of_the_repetition_are_gone(made):
    list(audit.perform("tiny", ["one-seed0"]))
    assert [record.name for record in records.load_all("tiny")] == ["noise-one-seed0", "one-seed0"]
