"""A process that runs experiments for `runner`: python -m clearstamp.reproduction.worker PROFILE

Each line that it reads asks for one, ``{"name": ..., "seed": ..., "threads": ...}``; for each it writes one line,
``{"error": null}``, or what went wrong. It ends when its input does, even in the middle of an experiment.
"""

import gc
import json
import os
import sys
import traceback
from collections.abc import Iterator
from queue import SimpleQueue
from threading import Thread
from typing import IO

import torch

from clearstamp.errors import ClearStampError, RecordError
from clearstamp.files import write_atomically
from clearstamp.reproduction.experiments import has_weights, run, trained_weights
from clearstamp.reproduction.records import artifacts, named
from clearstamp.reproduction.registry import resolved


def requests(source: IO[str]) -> Iterator[str]:
    """The lines of `source`, read ahead, so that the process ends as soon as nobody waits for its results."""
    lines: SimpleQueue[str] = SimpleQueue()

    def listen() -> None:
        for line in source:
            lines.put(line)
        os._exit(0)

    Thread(target=listen, daemon=True).start()
    while True:
        yield lines.get()


def main() -> None:
    """Answer requests from standard input until it ends."""
    answers, sys.stdout = sys.stdout, sys.stderr  # nothing that an experiment prints is an answer
    profile = sys.argv[1]
    runs = resolved(profile)
    for line in requests(sys.stdin):
        asked = json.loads(line)
        torch.set_num_threads(asked["threads"])
        name, seed = asked["name"], asked["seed"]
        settings = runs[name, seed]
        error = None
        try:
            record = run(settings, seed)
            if record.weights.get(name) and not has_weights(record):
                trained_weights(settings, seed)
        except ClearStampError as problem:
            error = str(problem)
        except OSError as problem:
            error = str(RecordError("a file could not be read or written", got=problem))
        except Exception as problem:
            log = artifacts() / profile / "failed" / f"{named(name, seed)}.log"
            write_atomically(log, traceback.format_exc().encode())
            error = str(RecordError("an error of the code", got=f"{type(problem).__name__}: {problem}", where=log))
        gc.collect()  # models refer to themselves, so gigabytes pile up otherwise
        print(json.dumps({"error": error}), file=answers, flush=True)


if __name__ == "__main__":
    main()
