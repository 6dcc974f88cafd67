"""The plan in every world: no data, MNIST alone, all sets; what cannot work is told before anything is run."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from clearstamp.errors import DataError, RecordError
from clearstamp.reproduction import experiments, plan, records, registry, report
from clearstamp.reproduction.experiments import run_all, weights_file
from clearstamp.reproduction.lifecycle import LifeCycle, Scheduled
from clearstamp.reproduction.profiles import PROFILES
from clearstamp.reproduction.registry import CHAPTERS, Group
from clearstamp.training.schedules import Joint
from clearstamp.zoo import datasets as data
from tests.tables import compact

sys.path.append(str(Path(__file__).parents[2] / "notebooks"))
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
    has(monkeypatch, WORLDS[world])


def has(monkeypatch, sets):
    """Let the machine have just these sets beside the embedded digits."""
    there = sets | {"digits": {split: data.size("digits", split) for split in ("train", "test")}}

    def size(name, split):
        if name not in there:
            raise DataError("missing data set", got=name)
        return there[name][split]

    monkeypatch.setattr(data, "found", lambda name: name in there)
    monkeypatch.setattr(data, "size", size)


@every_world
def test_quick_works_in_every_world(live, world):
    made = plan.make("quick")
    made.check()
    used = {images.dataset for step in made.todo() for images in step.settings.data}
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
    assert {name for name in WHOLE if f"missing data set; got: {name}:" in str(told.value)} == LACKING[world]
    assert "make data" in str(told.value) and len(str(told.value).splitlines()) < 12


def chapter(monkeypatch, *made, seeds=None):
    monkeypatch.setitem(CHAPTERS, "01-hardening", lambda profile: {"some": Group(made, seeds)})
    return ["01-hardening"]


def test_all_that_cannot_work_is_one_error_that_is_told_before_anything_runs(monkeypatch, capsys):
    bad = [
        LifeCycle(name="giant", model="colossus"),
        LifeCycle(name="greedy", keys=30),
        LifeCycle(name="other", dataset="cifar10"),
    ]
    chapter(monkeypatch, *bad)
    has(monkeypatch, {"mnist": {"train": 40, "test": 5}})
    monkeypatch.setitem(PROFILES, "paper", replace(PROFILES["paper"], test_images=7))
    monkeypatch.setattr(experiments, "perform", lambda *_: pytest.fail("something was run"))
    assert reproduce.main(["01-hardening", "--profile", "paper"]) == 1
    told = capsys.readouterr().err
    for words in (
        "unknown model; got: 'colossus'",
        "not that many secrets; got: 30",
        "missing data set; got: cifar10: 3 runs, other-seed0, other-seed1, other-seed2",
        "not that many images; got: 7; expected: 1 to 5; where: mnist, test: 6 runs, giant-seed0",
    ):
        assert words in told
    assert "Traceback" not in told


def lost(monkeypatch):
    """Let the machine lose even the embedded digits."""

    def size(name, split):
        raise DataError("missing data set", got=name)

    monkeypatch.setattr(data, "found", lambda name: False)
    monkeypatch.setattr(data, "size", size)


def test_every_damaged_record_and_data_set_is_told_in_the_one_error(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(PROFILES, "tiny", replace(PROFILES["tiny"], hardening_steps=2, train_images=64))
    here = LifeCycle(name="one", model="fc", keys=2, until="hardened")
    chapters = chapter(monkeypatch, here, replace(here, name="two"), replace(here, name="three"))
    for record in run_all([here, replace(here, name="two")], "tiny"):
        (records.folder("tiny") / f"{record.name}.json").write_text("{")
    monkeypatch.setenv("CLEARSTAMP_DATA", str(tmp_path / "data"))
    (tmp_path / "data" / "cifar10").mkdir(parents=True)
    for split in ("train", "test"):
        (tmp_path / "data" / "cifar10" / f"{split}.zip").write_bytes(b"PK")
    monkeypatch.setitem(PROFILES, "tiny", replace(PROFILES["tiny"], dataset="cifar10"))
    assert reproduce.main(["--plan", "--profile", "tiny", *chapters]) == 1
    told = capsys.readouterr()
    assert "64 of damaged train" in told.out
    lines = told.err.splitlines()
    assert [sum(word in line for line in lines) for word in ("one-seed0.json", "two-seed0.json", "train.zip")] == [
        1,
        1,
        1,
    ]


def test_what_is_on_record_is_not_run_and_needs_no_data(monkeypatch):
    here = LifeCycle(name="one", model="fc", keys=2, until="hardened")
    monkeypatch.setitem(PROFILES, "tiny", replace(PROFILES["tiny"], hardening_steps=2, train_images=64))
    chapters = chapter(monkeypatch, here, replace(here, name="two"))
    run_all([here], "tiny")
    made = plan.make("tiny", chapters)
    assert [step.name for step in made.todo()] == ["two-seed0"]
    assert [line.split()[-1] for line in made.table().splitlines()[1:3]] == ["recorded", "run"]
    assert "2 experiments, 1 of them to run" in made.table()
    lost(monkeypatch)
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
    assert "recorded, 1 to train again for others" in made.table()
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


def test_a_life_that_never_ran_takes_its_arithmetic_at_the_pace_of_those_that_did(monkeypatch):
    about = {"hardening_steps": 2, "train_images": 64, "test_images": 20, "epochs": 1, "finetune_epochs": 2}
    monkeypatch.setitem(PROFILES, "tiny", replace(PROFILES["tiny"], **about))
    here = LifeCycle(name="one", model="fc", keys=2, every=1, batch_size=32)
    (record,) = run_all([here], "tiny")
    image = plan.forward("fc", "digits")
    assert image == 2 * (784 * 1024 + 2 * 1024 * 1024 + 1024 * 10)
    done = plan.arithmetic(here.settings(PROFILES["tiny"]))
    assert done == plan.Arithmetic(image, 3 * image * (64 * 3 + 2 * (2 + 2)), complete=True)
    other = replace(here, name="other", keys=6, until="hardened")
    made = plan.make("tiny", chapter(monkeypatch, here, other, LifeCycle(name="CNN", until="hardened")))
    assert made.steps["other-seed0"].seconds == pytest.approx(record.seconds * 6 * 2 / (64 * 3 + 2 * (2 + 2)))
    assert [made.steps[f"{name}-seed0"].estimated for name in ("one", "other", "CNN")] == [False, True, True]
    assert "to run" in made.table() and "about 0.0 min" in made.table() and "for 2 that never ran" in made.total()


def test_without_any_record_no_time_is_made_up(monkeypatch):
    made = plan.make("tiny", chapter(monkeypatch, LifeCycle(name="one", model="fc", until="hardened")))
    assert made.steps["one-seed0"].seconds is None and "1 of them whose time is not known" in made.total()


def test_a_measured_time_of_no_seconds_is_known(monkeypatch):
    monkeypatch.setattr(plan, "measured", lambda: {"tiny": {"one": 0.0}})
    made = plan.make("tiny", chapter(monkeypatch, LifeCycle(name="one", model="fc", until="hardened")))
    step = made.steps["one-seed0"]
    assert step.seconds == 0 and not step.estimated and "not known" not in made.total()


def test_the_stamp_steps_of_a_life_are_those_of_its_schedule():
    about = {"model": "fc", "batch_size": 32}
    lives = [LifeCycle(name="one", joint=True, every=3, **about), Scheduled(name="two", by=Joint(every=3), **about)]
    one, two = (plan.arithmetic(replace(life.settings(PROFILES["tiny"]), images=SOME)) for life in lives)
    assert one == two


SOME = replace(PROFILES["tiny"].images("digits"), train=64)


def test_what_is_left_of_a_chapter_is_told_though_its_time_is_not_known(monkeypatch):
    one, other = (LifeCycle(name=name, model="fc", until="hardened", keys=keys) for name, keys in (("a", 1), ("b", 2)))
    chapters = chapter(monkeypatch, one, other)
    monkeypatch.setattr(plan, "measured", lambda: {"tiny": {"a": 7200.0}})
    lines = compact(report.missing_table(chapters[0], "tiny").data).splitlines()[2:]
    assert [line.split("|")[-2].strip() for line in lines] == ["2.0", "not known"]
    run_all([one, other], "tiny")
    assert "is left to run" in report.missing_table(chapters[0], "tiny").data


def test_every_experiment_of_quick_has_a_measured_time():
    names = {name for name, _ in registry.declared("quick")}
    assert names <= plan.measured()["quick"].keys()


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--jobs", "-3"], "no such number of processes; got: -3"),
        (["--launch", "no-such-command here"], "no such command; got: no-such-command"),
        (["--launch", "srun 'x"], "not a command"),
        (["01-hardenin"], "unknown chapter; got: '01-hardenin'"),
    ],
)
def test_a_command_line_that_cannot_work_is_told_in_a_line(words, problem, capsys):
    assert reproduce.main([*words, "--profile", "tiny"]) == 1
    told = capsys.readouterr().err
    assert told.startswith(f"error: {problem}") and len(told.splitlines()) == 1


def test_results_that_cannot_be_written_are_told_before_anything_is_run(monkeypatch, tmp_path, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setenv("CLEARSTAMP_ARTIFACTS", str(tmp_path / "file"))
    monkeypatch.setattr(reproduce, "reproduce", lambda *_: pytest.fail("something was run"))
    assert reproduce.main(["01-hardening", "--profile", "tiny"]) == 1
    assert capsys.readouterr().err.startswith("error: results cannot be written; got: ")


def test_the_plan_is_printed_and_nothing_is_run(monkeypatch, capsys):
    monkeypatch.setattr(reproduce, "reproduce", lambda *_: pytest.fail("something was run"))
    assert reproduce.main(["--plan", "--profile", "tiny"]) == 0
    told = capsys.readouterr().out
    assert all(name in told for name in CHAPTERS) and "512 of 1,437 train, 200 of 360 test" in told
    lost(monkeypatch)
    assert reproduce.main(["--plan", "--profile", "tiny"]) == 1, "the plan is shown, and what cannot work"
    shown = capsys.readouterr()
    assert "digits, missing" in shown.out and "missing data set; got: digits" in shown.err
    assert reproduce.main(["--plan", "--profile", "huge"]) == 1
    assert capsys.readouterr().err.startswith("error: unknown profile; got: 'huge'")


def test_a_part_of_a_plan_has_what_fits_and_what_that_needs(monkeypatch):
    has(monkeypatch, WHOLE)
    part = plan.make("paper", only=["pruning-paper", "*-recipe-*"])
    rows = {step.experiment.name for step in plan.make("paper", ["04-generalizability"]).steps.values()}
    recipes = {name for name in rows if "-recipe-" in name}
    assert len(recipes) == 7
    assert {step.experiment.name for step in part.steps.values()} == recipes | {"pruning-paper", "11-keys-paper"}
    shown = [line for line in part.table().splitlines() if line in CHAPTERS]
    assert shown == ["02-multi-key", "03-pruning", "04-generalizability"]
    with pytest.raises(RecordError, match=r"no experiment has such a name; got: \*-resnet19, b; expected: patterns"):
        plan.make("paper", only=["*-resnet19", "b"])


def test_a_part_is_run_without_notebooks(monkeypatch, capsys):
    chapter(monkeypatch, LifeCycle(name="small", model="fc", keys=1), LifeCycle(name="other", model="fc", keys=1))
    command = ["01-hardening", "--profile", "tiny", "--only", "sm*", "--jobs", "1"]
    ran: list[tuple] = []
    monkeypatch.setattr(reproduce, "reproduce", lambda made, *rest: ran.append((list(made.steps), *rest)))
    assert reproduce.main(command) == 0
    assert ran == [(["small-seed0"], 1, [], ())]
    assert reproduce.main([*command[:3], "--jobs", "1"]) == 0
    assert ran[1] == (["small-seed0", "other-seed0"], 1, [], ("01-hardening",))
