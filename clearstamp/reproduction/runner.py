"""Runs the steps of a plan and the notebooks that show them, several at a time, each after what it needs."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from os import environ
from queue import SimpleQueue
from threading import Lock

from clearstamp.errors import RecordError
from clearstamp.reproduction.plan import Plan, Step


@dataclass(frozen=True)
class Task:
    """Something to do after the tasks named in `after`; `alone` if nothing may run beside it."""

    name: str
    act: Callable[[], object]
    after: frozenset[str] = frozenset()
    seconds: float = 10.0
    alone: bool = False


@dataclass
class Progress:
    """What is done, what is running, and what failed."""

    tasks: Mapping[str, Task]
    done: list[str] = field(default_factory=list)
    running: dict[str, float] = field(default_factory=dict)
    failed: dict[str, Exception] = field(default_factory=dict)
    began: float = field(default_factory=time.monotonic)

    @property
    def open(self) -> list[Task]:
        """What is neither done nor running, and does not wait for anything that failed."""
        hopeless = set(self.failed)
        while more := {t.name for t in self.tasks.values() if t.after & hopeless} - hopeless:
            hopeless |= more
        closed = hopeless | set(self.done) | self.running.keys()
        return [task for name, task in self.tasks.items() if name not in closed]

    def left(self) -> float:
        """Seconds until all is done, judging by how long tasks took compared with what was expected."""
        elapsed = time.monotonic() - self.began
        spent = sum(self.tasks[name].seconds for name in self.done)
        going = [self.tasks[name].seconds for name in self.running]
        ahead = sum(task.seconds for task in self.open) + sum(going) / 2
        return ahead * (elapsed / spent if spent > 60 else 1 / max(len(going), 1))


def perform(tasks: Sequence[Task], jobs: int, watch: Callable[[Progress], None] = lambda progress: None) -> Progress:
    """Do every task, `jobs` at a time, those before the longest chains first; a failure stops only what needs it.

    `watch` is called whenever a task begins or ends, and every second.
    """
    by_name = {task.name: task for task in tasks}
    progress = Progress(by_name)
    ahead = ways(by_name)
    futures: dict[Future[object], str] = {}
    pool = ThreadPoolExecutor(jobs)
    try:
        while True:
            while task := choose(progress, jobs, ahead):
                progress.running[task.name] = time.monotonic()
                futures[pool.submit(task.act)] = task.name
            watch(progress)
            if not futures:
                return progress
            for future in wait(futures, timeout=1, return_when=FIRST_COMPLETED).done:
                name = futures.pop(future)
                del progress.running[name]
                if (error := future.exception()) is None:
                    progress.done.append(name)
                elif isinstance(error, Exception):
                    progress.failed[name] = error
                else:
                    raise error
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # after an interrupt, do not wait for what is running


def choose(progress: Progress, jobs: int, ahead: Mapping[str, float]) -> Task | None:
    """The next task that may begin now, None if there is none."""
    running = [progress.tasks[name] for name in progress.running]
    if len(running) == jobs or any(task.alone for task in running):
        return None
    ready = [task for task in progress.open if task.after <= set(progress.done)]
    beside = [task for task in ready if not task.alone]
    if beside:
        return max(beside, key=lambda task: ahead[task.name])
    return ready[0] if ready and not running else None


def ways(tasks: Mapping[str, Task]) -> dict[str, float]:
    """For each task, the seconds of the longest chain of tasks that begins with it."""
    found: dict[str, float] = {}

    def way(task: Task) -> float:
        if task.name not in found:
            later = [way(other) for other in tasks.values() if task.name in other.after]
            found[task.name] = task.seconds + max(later, default=0.0)
        return found[task.name]

    for task in tasks.values():
        way(task)
    return found


class Workers:
    """Processes that run experiments of a profile (see `worker`); started when all others are busy.

    They end as soon as they have run so many `steps`, not to take memory from the notebooks; for None with `stop`.
    `launch` is put before their commands, to start them elsewhere. Each has `threads`, or all `cores` for a step that
    runs alone.
    """

    def __init__(self, profile: str, jobs: int, cores: int, launch: Sequence[str] = ()):
        self.command = [*launch, sys.executable, "-m", "clearstamp.reproduction.worker", profile]
        self.threads, self.cores = max(1, cores // jobs), cores
        self.idle: SimpleQueue[subprocess.Popen[str]] = SimpleQueue()
        self.all: list[subprocess.Popen[str]] = []
        self.steps: int | None = None
        self.lock = Lock()

    def run(self, step: Step) -> None:
        """Run one step in a process that is idle, or in a new one. Raises `RecordError` if it fails."""
        worker = self.take()
        threads = self.cores if step.experiment.alone else self.threads
        asked = {"name": step.experiment.name, "seed": step.seed, "threads": threads}
        assert worker.stdin is not None and worker.stdout is not None, "opened as pipes"
        try:
            print(json.dumps(asked), file=worker.stdin, flush=True)
            answer = worker.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            raise RecordError(
                "a process that ran experiments ended", got=f"exit status {worker.wait()}", where=step.name
            )
        try:
            error = json.loads(answer)["error"]
        except ValueError as problem:
            worker.kill()
            raise RecordError("not the answer of a process that runs experiments", got=repr(answer)) from problem
        self.idle.put(worker)
        with self.lock:
            self.steps = None if self.steps is None else self.steps - 1
            if self.steps == 0:
                self.stop()
        if error:
            raise RecordError(error)

    def take(self) -> subprocess.Popen[str]:
        """A process that is idle, else a new one."""
        if not self.idle.empty():
            return self.idle.get()
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        env = environ | {"OMP_NUM_THREADS": str(self.threads)}
        # in a group of its own, so that an interrupt from the keyboard reaches the master alone, which ends it
        worker = subprocess.Popen(self.command, **pipes, text=True, env=env, process_group=0)  # type: ignore[call-overload]
        self.all.append(worker)
        return worker

    def stop(self) -> None:
        """End them all, whatever they are doing."""
        for worker in self.all:
            worker.terminate()
        for worker in self.all:
            with suppress(BrokenPipeError), worker:  # closes its pipes and waits
                pass


@contextmanager
def workers(profile: str, jobs: int, cores: int, launch: Sequence[str] = ()) -> Iterator[Workers]:
    """`Workers` that end with the block."""
    made = Workers(profile, jobs, cores, launch)
    try:
        yield made
    finally:
        made.stop()


def tasks(plan: Plan, pool: Workers) -> list[Task]:
    """One task for each step of a plan that is to be run: by `pool`, which ends after them."""
    todo = {step.name: step for step in plan.todo()}
    pool.steps = len(todo)
    return [
        Task(
            name=name,
            act=partial(pool.run, step),
            after=frozenset(needed.name for needed in plan.needed(step)) & todo.keys(),
            seconds=60.0 if step.seconds is None else step.seconds,
            alone=step.experiment.alone,
        )
        for name, step in todo.items()
    ]
