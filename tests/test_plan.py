"""The plan in every world: no data, MNIST alone, all sets; what cannot work is told before anything is run."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from clearstamp import data, experiments, plan, registry
from clearstamp.errors import RecordError
from clearstamp.experiments import PROFILES, run_all, weights_file
from clearstamp.lifecycle import LifeCycle
from clearstamp.registry import CHAPTERS, Group

sys.path.append(str(Path(__file__).parent.parent / "notebooks"))
import reproduce

WHOLE = {"mnist": data.MNIST_SIZES} | {name: source.sizes for name, source in data.SOURCES.items()}
WORLDS = {"nothing": {}, "MNIST alone": {"mnist": data.MNIST_SIZES}, "all sets": WHOLE}
LACKING = {"nothing": set(WHOLE), "MNIST alone": set(data.SOURCES), "all sets": set()}
every_world = pytest.mark.parametrize("world", WORLDS)


@pytest.fixture(autouse=True)
def artifacts(tmp_path, monkeypatch):
    monkeypatch.setenv("CLEARSTAMP_ARTIFACTS", str(tmp_path))


@pytest.fixture
def live(world, monkeypatch):
    """On a machine with just these sets."""
    embedded = {"digits": {split: data.size("digits", split) for split in ("train", "test")}}
    there = WORLDS[world] | embedded
    monkeypatch.setattr(data, "size", lambda name, split: there.get(name, {}).get(split))


@every_world
def test_quick_works_in_every_world(live, world):
    made = plan.make("quick")
    made.check()
    used = {
        each.dataset for step in made.todo() for each in step.experiment.sets(step.experiment.at(PROFILES["quick"]))
    }
    assert used == {"digits"} | set(WORLDS[world]) if world != "all sets" else used == set(WHOLE)
    assert len(made.steps) == len(made.todo()) > 100
    assert made.table().count("\n") > 100


@every_world
def test_paper_names_every_set_that_is_missing_in_one_error(live, world):
    if not LACKING[world]:
        plan.make("paper").check()
        return
    with pytest.raises(RecordError, match="nothing was run, since this cannot work in profile 'paper'") as told:
        plan.make("paper").check()
    assert {name for name in WHOLE if f"no train images of {name}:" in str(told.value)} == LACKING[world]
    assert "make data" in str(told.value) and len(str(told.value).splitlines()) < 12


def chapter(monkeypatch, *made, seeds=None):
    monkeypatch.setitem(CHAPTERS, "01-hardening", lambda scale: {"some": Group(made, seeds)})
    return ["01-hardening"]


def test_all_that_cannot_work_is_one_error_that_is_told_before_anything_runs(monkeypatch, capsys):
    bad = [
        LifeCycle(name="giant", model="colossus"),
        LifeCycle(name="greedy", keys=30),
        LifeCycle(name="other", dataset="cifar10"),
    ]
    chapter(monkeypatch, *bad)
    monkeypatch.setattr(data, "size", lambda name, split: {"train": 40, "test": 5}[split] if name == "mnist" else None)
    monkeypatch.setitem(PROFILES, "paper", replace(PROFILES["paper"], test_images=7))
    monkeypatch.setattr(experiments, "perform", lambda *_: pytest.fail("something was run"))
    assert reproduce.main(["01-hardening", "--profile", "paper"]) == 1
    told = capsys.readouterr().err
    for words in (
        "unknown model; got: 'colossus'",
        "not that many secrets; got: 30",
        "missing data set; got: no train images of cifar10: 3 runs, other-seed0, other-seed1, other-seed2",
        "not that many images; got: 7; expected: 1 to 5; where: mnist, test: 6 runs, giant-seed0",
    ):
        assert words in told
    assert "Traceback" not in told


def test_what_is_on_record_is_not_run_and_needs_no_data(monkeypatch):
    here = LifeCycle(name="one", model="fc", keys=2, until="hardened")
    monkeypatch.setitem(PROFILES, "tiny", replace(PROFILES["tiny"], hardening_steps=2, train_images=64))
    chapters = chapter(monkeypatch, here, replace(here, name="two"))
    run_all([here], "tiny")
    made = plan.make("tiny", chapters)
    assert [step.name for step in made.todo()] == ["two-seed0"]
    assert [line.split()[-1] for line in made.table().splitlines()[1:3]] == ["recorded", "run"]
    assert "2 experiments, 1 of them to run" in made.table()
    monkeypatch.setattr(data, "size", lambda *_: None)
    with pytest.raises(RecordError, match="missing data set.*: 1 runs, two-seed0"):
        plan.make("tiny", chapters).check()
    monkeypatch.setenv("CLEARSTAMP_RECORDED", "1")
    recorded = plan.make("tiny", chapters)
    recorded.check()
    assert recorded.todo() == [] and "not recorded" in recorded.table()


def test_a_lost_model_is_trained_again_only_if_it_is_needed(monkeypatch):
    monkeypatch.setitem(PROFILES, "tiny", replace(PROFILES["tiny"], hardening_steps=2, train_images=64))
    on = LifeCycle(name="one", model="fc", keys=2)
    (record,) = run_all([on], "tiny")
    weights_file(record).unlink()
    assert plan.make("tiny", chapter(monkeypatch, on)).todo() == []
    (attacked,) = registry.campaigns("noise", {"one": registry.Noise(scale=0.1)}, [on])
    made = plan.make("tiny", chapter(monkeypatch, on, attacked))
    assert [(step.name, step.lost) for step in made.todo()] == [("one-seed0", True), ("noise-one-seed0", False)]
    assert [step.name for step in made.needed(made.steps["noise-one-seed0"])] == ["one-seed0"]


def test_times_are_those_of_records_then_those_that_were_measured(monkeypatch, tmp_path):
    monkeypatch.setitem(PROFILES, "tiny", replace(PROFILES["tiny"], hardening_steps=2, train_images=64))
    here = LifeCycle(name="one", model="fc", keys=2, until="hardened")
    chapters = chapter(monkeypatch, here)
    monkeypatch.setattr(plan, "SECONDS", tmp_path / "seconds.json")
    plan.SECONDS.write_text(json.dumps({"tiny": {"one": 90.0}}))
    plan.measured.cache_clear()
    assert plan.make("tiny", chapters).steps["one-seed0"].seconds == 90.0
    assert "1.5 min" in plan.make("tiny", chapters).table()
    (record,) = run_all([here], "tiny")
    changed = chapter(monkeypatch, replace(here, lr=1e-3))
    assert plan.make("tiny", changed).steps["one-seed0"].seconds == record.seconds
    plan.keep_seconds("tiny")
    assert json.loads(plan.SECONDS.read_text()) == {"tiny": {"one": record.seconds}}
    plan.measured.cache_clear()


def test_the_plan_is_printed_and_nothing_is_run(monkeypatch, capsys):
    monkeypatch.setattr(reproduce, "reproduce", lambda *_: pytest.fail("something was run"))
    assert reproduce.main(["--plan", "--profile", "tiny"]) == 0
    told = capsys.readouterr().out
    assert all(name in told for name in CHAPTERS) and "512 of 1,437 train, 200 of 360 test" in told
    monkeypatch.setattr(data, "size", lambda *_: None)
    assert reproduce.main(["--plan", "--profile", "tiny"]) == 1, "the plan is shown, and what cannot work"
    shown = capsys.readouterr()
    assert "512 of missing train" in shown.out and "missing data set; got: no train images of digits" in shown.err
    assert reproduce.main(["--plan", "--profile", "huge"]) == 1
    assert capsys.readouterr().err.startswith("error: unknown profile; got: 'huge'")
