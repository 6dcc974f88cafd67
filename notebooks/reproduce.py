"""Run the experiments of all chapters and the notebooks that show them; what is there already is not run again.

    python notebooks/reproduce.py --profile quick
    python notebooks/reproduce.py --profile paper 03-pruning --jobs 8 --launch "srun --gpus=1"
    python notebooks/reproduce.py --profile paper --only "*-recipe-*" --only "*-resnet18-*"

It begins with a plan (`--plan`: and ends there), and runs nothing if a part of that cannot work.
"""

import argparse
import os
import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from execute import ROOT, execute
from jupyter_core.utils import ensure_event_loop
from tqdm import tqdm

from clearstamp.errors import ClearStampError, RecordError
from clearstamp.reproduction import plan as plans
from clearstamp.reproduction import records, runner
from clearstamp.reproduction.plan import Plan
from clearstamp.reproduction.registry import CHAPTERS
from clearstamp.reproduction.runner import Progress, Task


class Bar:
    """One bar for all experiments and a line for each notebook; without a terminal a line every half a minute."""

    EVERY = 30.0

    def __init__(self, plan: Plan, tasks: Sequence[Task]):
        self.experiments = {task.name for task in tasks} & plan.steps.keys()
        self.live, self.told, self.shown = sys.stderr.isatty(), time.monotonic(), set[str]()
        self.bar = tqdm(
            total=len(self.experiments), bar_format="{n_fmt} of {total_fmt} |{bar:16}| {desc}", disable=not self.live
        )

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def __call__(self, progress: Progress) -> None:
        for name in [name for name in progress.done if name not in self.shown | self.experiments]:
            self.shown.add(name)
            tqdm.write(f"{name}  done", file=sys.stderr)
        for name, error in progress.failed.items():
            if name not in self.shown:
                self.shown.add(name)
                tqdm.write(f"{name}  failed: {error}", file=sys.stderr)
        finished = len(self.experiments & set(progress.done))
        what = ", ".join(progress.running) or "done"
        words = f"about {progress.left() / 60:.0f} min to go: {what}"
        if self.live:
            self.bar.n = finished
            self.bar.set_description_str(words)
        elif time.monotonic() - self.told > self.EVERY and progress.running:
            self.told = time.monotonic()
            print(f"{finished} of {len(self.experiments)} experiments, {words}", file=sys.stderr, flush=True)


def reproduce(plan: Plan, jobs: int, launch: Sequence[str] = (), chapters: Sequence[str] = ()) -> None:
    """Carry out a plan, and show it in the notebooks of `chapters`.

    Raises `RecordError` if a part of it failed, after all else is done.
    """
    with runner.workers(plan.profile, jobs, os.cpu_count() or 1, launch) as pool:
        tasks = runner.tasks(plan, pool)
        tasks += [notebook(chapter, plan, {task.name for task in tasks}) for chapter in chapters]
        os.environ["OMP_NUM_THREADS"] = str(pool.threads)  # for the notebooks' kernels
        with Bar(plan, tasks) as bar:
            progress = runner.perform(tasks, jobs, bar)
    if progress.failed:
        skipped = [task.name for task in tasks if task.name not in (*progress.done, *progress.failed)]
        raise RecordError(
            "not everything was run",
            got=f"{len(progress.failed)} failed: {', '.join(progress.failed)}"
            + (f"; not run, since they need one of these: {', '.join(skipped)}" if skipped else ""),
            remedy="what was finished is kept, so a new run goes on from there",
        )


def notebook(chapter: str, plan: Plan, todo: set[str]) -> Task:
    """Execute a notebook once all that it shows is there."""

    def act() -> None:
        try:
            execute(ROOT / "notebooks" / f"{chapter}.ipynb", plan.profile)
        finally:
            ensure_event_loop().close()  # this thread's, which spoke to the kernel

    after = frozenset(step.name for step in plan.of(chapter)) & todo
    return Task(chapter, act, after, plans.measured().get(plan.profile, {}).get(chapter, 15.0))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("chapters", nargs="*", help="names of notebooks; all of them if none is given")
    parser.add_argument("--profile", default="quick", help="tiny, quick or paper")
    parser.add_argument(
        "--only", action="append", default=[], help="a pattern of experiments' names: run these alone, and no notebook"
    )
    parser.add_argument("--plan", action="store_true", help="say what would be run, and run nothing")
    parser.add_argument("--jobs", type=int, default=0, help="how many processes side by side; 0 for one a core")
    parser.add_argument("--note-times", action="store_true", help="keep the times of this profile's records for plans")
    parser.add_argument("--launch", default="", help="a command that starts another one elsewhere, such as srun")
    options = parser.parse_args(arguments)
    for name in ("CLEARSTAMP_ARTIFACTS", "CLEARSTAMP_DATA"):
        if os.environ.get(name):
            os.environ[name] = os.path.abspath(os.environ[name])  # before the folder changes
    os.chdir(ROOT)
    jobs = options.jobs or (1 if torch.cuda.is_available() else min(os.cpu_count() or 1, 8))
    try:
        if jobs < 1:
            raise RecordError("no such number of processes", got=jobs, expected="at least 1, or 0 for one a core")
        launch = launcher(options.launch)
        if options.note_times:
            plans.keep_seconds(options.profile)
            return 0
        plan = plans.make(
            options.profile, [Path(name).stem for name in options.chapters] or tuple(CHAPTERS), options.only
        )
        if options.plan:
            print(plan.table(), flush=True)
        plan.check()
        if options.plan:
            return 0
        records.prepare(plan.profile)
        print(plan.total(), file=sys.stderr)
        reproduce(plan, jobs, launch, () if options.only else plan.chapters)
    except ClearStampError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; a new run goes on from the records that are there", file=sys.stderr, flush=True)
        os._exit(130)  # not waiting for a notebook that is being executed; its kernel ends with this process
    return 0


def launcher(text: str) -> list[str]:
    """The words of a command that starts another one. Raises `RecordError` if there is no such command."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise RecordError("not a command", got=repr(text), expected=str(error)) from error
    if words and shutil.which(words[0]) is None:
        raise RecordError("no such command", got=words[0], where="--launch")
    return words


if __name__ == "__main__":
    sys.exit(main())
