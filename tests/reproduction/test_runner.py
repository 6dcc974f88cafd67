"""What runs side by side, in which order, and what a failure stops."""

import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from safetensors.torch import load_file

from clearstamp.errors import RecordError
from clearstamp.reproduction import plan, records, runner, worker
from clearstamp.reproduction.records import named
from clearstamp.reproduction.registry import declared
from clearstamp.reproduction.runner import Progress, Task, perform

sys.path.append(str(Path(__file__).parents[2] / "notebooks"))
import reproduce


def tasks(ran: list[str], *made: tuple) -> list[Task]:
    """Tasks that note their names, from ``(name, after, seconds, alone)``."""
    return [Task(name, lambda name=name: ran.append(name), frozenset(after), *more) for name, after, *more in made]


def test_a_task_runs_after_what_it_needs_and_the_longest_way_first():
    ran: list[str] = []
    perform(tasks(ran, ("short", "", 1), ("end", ["base"], 50), ("base", "", 1), ("long", "", 20)), 1)
    assert ran == ["base", "end", "long", "short"]


def test_so_many_run_at_once_and_what_is_alone_runs_alone():
    together = threading.Barrier(2, timeout=20)
    seen: list[set[str]] = []
    made = [Task(name, together.wait, seconds=5) for name in "ab"]
    made += [Task("timing", lambda: None, seconds=50, alone=True), Task("after", lambda: None, frozenset(["timing"]))]
    progress = perform(made, 2, lambda progress: seen.append(set(progress.running)))
    assert {"a", "b"} in seen and {"timing"} in seen
    assert not any("timing" in running and len(running) > 1 for running in seen)
    assert set(progress.done) == {"a", "b", "timing", "after"}


def test_a_failure_stops_what_needs_it_and_nothing_else():
    ran: list[str] = []

    def fail() -> None:
        raise RecordError("broken")

    made = [Task("bad", fail), *tasks(ran, ("next", ["bad"]), ("last", ["next"]), ("other", ""))]
    progress = perform(made, 1)
    assert ran == ["other"] and list(progress.failed) == ["bad"]
    assert progress.open == []


def test_the_time_that_is_left_follows_how_the_expectations_fared():
    made = {name: Task(name, lambda: None, seconds=seconds) for name, seconds in (("a", 100), ("b", 200), ("c", 40))}
    fresh = Progress(made, running={"b": 0.0})
    assert fresh.left() == pytest.approx(100 + 40 + 100)
    later = Progress(made, done=["a"], running={"b": 0.0}, began=time.monotonic() - 300)
    assert later.left() == pytest.approx(3 * (40 + 100), rel=0.01), "three times slower than expected"


@pytest.fixture
def scale(tmp_path, monkeypatch):
    monkeypatch.setenv("CLEARSTAMP_ARTIFACTS", str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # a run sets it for the notebooks that it executes
    return tmp_path / "tiny"


def whole(folder: Path) -> dict[str, list]:
    """Every record, read whole, and no other file than those of records, weights and notebooks."""
    endings = {".json", ".safetensors", ".ipynb"}
    assert {p.suffix for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".")} <= endings
    for path in folder.rglob("*.safetensors"):
        load_file(path)
    return {record.name: record.stages for record in records.load_all("tiny")}


def test_a_killed_run_leaves_no_half_file_and_the_next_one_goes_on_from_there(scale, capsys):
    """Processes as a user starts them; the second run ends what the first began, the third finds nothing to do."""
    chosen = ["01-hardening", "--profile", "tiny", "--jobs", "2"]
    first = subprocess.Popen([sys.executable, reproduce.__file__, *chosen], stderr=subprocess.DEVNULL)
    try:
        while not (scale / "records").is_dir() or not whole(scale):
            assert first.poll() is None
            time.sleep(0.05)
    finally:
        first.kill()
        first.wait()
    kept = whole(scale)
    expected = {named(*key) for key in declared("tiny", chosen[:1])}
    assert 0 < len(kept) < len(expected)
    assert reproduce.main(chosen) == 0
    told = capsys.readouterr().err
    assert (
        f"{len(expected)} experiments, {len(expected) - len(kept)} of them to run" in told
        and "01-hardening  done" in told
        and "%|" not in told
    )
    found = whole(scale)
    assert found.keys() == expected
    assert {name: found[name] for name in kept} == kept
    made = {path: path.stat().st_mtime_ns for path in scale.rglob("*") if path.is_file()}
    assert scale / "01-hardening.ipynb" in made
    assert reproduce.main(chosen) == 0
    assert {path: path.stat().st_mtime_ns for path in scale.rglob("*") if path.is_file()} == made


def test_what_was_about_to_be_written_is_swept_away_once_it_is_old(scale):
    (scale / "records").mkdir(parents=True)
    old, new, other = (scale / "records" / name for name in (".a.json.77", ".b.json.78", ".keep"))
    for path in (old, new, other):
        path.write_text("{")
    os.utime(old, (0, 0))
    os.utime(other, (0, 0))
    records.prepare("tiny")
    assert not old.exists() and new.exists() and other.exists()


def test_what_goes_wrong_in_a_worker_is_told(scale):
    steps = plan.make("tiny", ["01-hardening"]).steps
    broken = replace(steps["unmarked-seed0"], seed=77)  # which no chapter declares
    with runner.workers("tiny", 1, 1) as pool, pytest.raises(RecordError, match="ended; got: exit status 1"):
        pool.run(broken)
    assert not records.folder("tiny").exists()


def test_a_failed_experiment_is_told_in_a_line_and_stops_what_needs_it(scale, monkeypatch, capsys):
    def fail(step):
        if step.name == "unmarked-seed0":
            raise RecordError("no luck")

    monkeypatch.setattr(runner.Workers, "run", lambda self, step: fail(step))
    monkeypatch.setattr(reproduce, "execute", lambda *_: None)
    assert reproduce.main(["01-hardening", "02-multi-key", "--profile", "tiny", "--jobs", "1"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert "unmarked-seed0  failed: no luck" in lines
    assert lines[-1].startswith("error: not everything was run; got: 1 failed: unmarked-seed0; not run, since")
    assert "01-hardening, 02-multi-key; what to do" in lines[-1]


def test_a_result_that_cannot_be_written_is_told_in_a_line(scale):
    steps = plan.make("tiny", ["01-hardening"]).steps
    (scale / "records" / "unmarked-seed0.json").mkdir(parents=True)  # cannot be written over
    with runner.workers("tiny", 1, 1) as pool, pytest.raises(RecordError, match="a file could not be read or written"):
        pool.run(steps["unmarked-seed0"])


def test_an_error_of_the_code_leaves_its_traceback_in_a_file(scale, monkeypatch):
    answers = StringIO()
    lines = iter([json.dumps({"name": "unmarked", "seed": 0, "threads": 1})])
    monkeypatch.setattr(worker, "requests", lambda _: lines)
    monkeypatch.setattr(worker, "run", lambda *_: {}["key"])
    monkeypatch.setattr(sys, "argv", ["worker", "tiny"])
    monkeypatch.setattr(sys, "stdout", answers)
    worker.main()
    told = json.loads(answers.getvalue())["error"]
    assert told.startswith("an error of the code; got: KeyError: 'key'; where: ") and told.endswith(
        "unmarked-seed0.log"
    )
    assert "Traceback" in (scale / "failed" / "unmarked-seed0.log").read_text()


@pytest.mark.parametrize(
    ("launch", "problem"),
    [
        (["false"], "a process that ran.*status 1"),
        (["sh", "-c", "read line; echo no job; cat"], "not the answer.*no job"),
    ],
)
def test_a_launcher_that_starts_no_worker_is_told(scale, launch, problem):
    steps = plan.make("tiny", ["01-hardening"]).steps
    with runner.workers("tiny", 1, 1, launch) as pool, pytest.raises(RecordError, match=problem):
        pool.run(steps["unmarked-seed0"])


def test_who_interrupts_does_not_wait_for_what_is_going_on():
    release = threading.Event()

    def interrupt(progress: Progress) -> None:
        raise KeyboardInterrupt

    try:
        with pytest.raises(KeyboardInterrupt):
            perform([Task("long", lambda: release.wait(60))], 1, interrupt)
        assert not release.is_set()
    finally:
        release.set()


def test_workers_end_with_the_block(scale):
    with runner.workers("tiny", 2, 2) as pool:
        one, two = pool.take(), pool.take()
        assert one.poll() is None and two.poll() is None
    assert one.poll() is not None and two.poll() is not None


def test_workers_end_with_the_last_step_of_a_plan(scale):
    with runner.workers("tiny", 2, 2) as pool:
        pool.command = ["sh", "-c", """while read line; do echo '{"error": null}'; done"""]
        *others, last = runner.tasks(plan.make("tiny", ["01-hardening"]), pool)
        idle = pool.take()
        for task in others:
            task.act()
        assert others and idle.poll() is None
        last.act()
        assert len(pool.all) == 2 and all(worker.poll() is not None for worker in pool.all)


def test_a_worker_whose_master_is_gone_ends():
    with runner.workers("tiny", 1, 1) as pool:
        worker = pool.take()
        worker.stdin.close()
        assert worker.wait(60) == 0
