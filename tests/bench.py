"""Measure what hardening and constraint training cost: ``make bench``.

Steps are counted, times are given as ratios: nothing here depends on how fast this machine is.
"""

import math
import resource
import shutil
import statistics
from dataclasses import dataclass
from typing import Any

import torch

import clearstamp as cs
from clearstamp.reproduction.lifecycle import FOUR_LETTERS
from clearstamp.reproduction.runtime import Cost, Workbench, ratios
from clearstamp.zoo import networks as models

GOALS = {"paper": 300, "adjoint": 800}
SHAPE, OUTPUTS, BATCH, KEYS = (1, 28, 28), 10, 64, 11
ROUNDS, STEPS = 21, 3
EVERY = cs.RECOMMENDED.schedule.every
RATE = cs.RECOMMENDED.dropout


def stamped(readout: str, seed: int) -> tuple[cs.Transposed, cs.Stamp]:
    """The default CNN run backwards, and a stamp of eleven keys."""
    model = models.build("cnn", SHAPE, OUTPUTS, seed=seed)
    stamp = cs.Stamp.from_texts(FOUR_LETTERS[:KEYS], outputs=OUTPUTS, shape=SHAPE, seed=seed)
    return cs.transpose(model, torch.zeros(1, *SHAPE), readout=readout), stamp


def hardening() -> bool:
    """Steps to a mean SSIM of 0.95; were all within the goal?"""
    met = True
    print(f"hardening: default CNN, {KEYS} keys, no dropout, steps to mean SSIM 0.95; in brackets with dropout {RATE}")
    print(f"  {'readout':8} {'seed':>4} {'steps':>6} {'goal':>6}")
    for readout, goal in GOALS.items():
        for seed in (0, 1, 2):
            back, stamp = stamped(readout, seed)
            done = cs.harden(back, stamp, steps=2 * goal, dropout=0.0, check_every=10, progress=False)
            thinned = cs.harden(*stamped(readout, seed), dropout=RATE, check_every=10, progress=False)
            within = done.reached and done.steps <= goal
            met &= within
            steps = str(done.steps) if done.reached else f">{done.steps}"
            verdict = "met" if within else "MISSED"
            print(f"  {readout:8} {seed:4} {steps:>6} {goal:6}  {verdict} ({thinned.steps})", flush=True)
    return met


@dataclass(frozen=True)
class Question:
    """A ratio of two steps of a workbench, and the goal for it: at most, or for what ours saves, at least."""

    text: str
    subject: str
    twin: str
    most: float = math.inf
    least: float = 0.0
    readout: str = "adjoint"
    every: int = 1
    dropout: float = 0.0


QUESTIONS = (
    Question("training as published (the paper: 1.40)", "alternate", "task", readout="paper", dropout=cs.PAPER.dropout),
    Question(
        f"training by default, the stamp once in {EVERY} batches", "joint", "task", 1.15, every=EVERY, dropout=RATE
    ),
    Question("  the same with two optimizers", "alternate", "task", every=EVERY, dropout=RATE),
    Question("  the same without dropout", "joint", "task", every=EVERY),
    Question("reading 11 keys, over a forward pass of 11 images", "extract", "forward", most=1.3),
    Question("a stamp step written by hand, over ours", "plain", "stamp", least=1.5),
)
COMPILED = Question("  over ours, compiled", "plain", "compiled")


def costs() -> bool:
    """Each ratio, interleaved; were all within their goals?"""
    met = True
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    print(f"\ntime as a ratio, batch {BATCH}, {KEYS} keys, {torch.get_num_threads()} threads, {ROUNDS} rounds")
    for asked in (*QUESTIONS, *([COMPILED] if compiler else [])):
        about: dict[str, Any] = {
            "readout": asked.readout,
            "keys": KEYS,
            "batch": BATCH,
            "every": asked.every,
            "dropout": asked.dropout,
        }
        bench = Workbench(Cost(name="bench", subject=asked.subject, twin=asked.twin, **about))
        subject, twin = getattr(bench, asked.subject), getattr(bench, asked.twin)
        low, median, high = statistics.quantiles(ratios(subject, twin, ROUNDS, STEPS), n=4)
        within = asked.least <= median <= asked.most
        met &= within
        goal = (
            f"at most {asked.most:.2f}" if asked.most < math.inf else f"at least {asked.least:.2f}" * (asked.least > 0)
        )
        verdict = ("met" if within else "MISSED") if goal else ""
        print(f"  {asked.text:54} {median:.2f} ({low:.2f} to {high:.2f})  {goal:13} {verdict}", flush=True)
    return met


def main() -> None:
    met = hardening() & costs()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # kibibytes on Linux
    print(f"\npeak memory of this process: {peak:.2f} GiB (goal: under 4)")
    print("all goals met" if met and peak < 4 else "NOT all goals met")


if __name__ == "__main__":
    main()
