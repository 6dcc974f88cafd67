"""Measure what hardening and constraint training cost: ``make bench``.

Steps are counted, times are given as ratios: nothing here depends on how fast this machine is.
"""

import resource
import statistics

import torch

import clearstamp as cs
from clearstamp import models
from clearstamp.lifecycle import FOUR_LETTERS
from clearstamp.runtime import Cost, Workbench, ratios

GOALS = {"paper": 300, "adjoint": 800}
SHAPE, OUTPUTS, BATCH, KEYS = (1, 28, 28), 10, 64, 11
ROUNDS, STEPS = 21, 3


def stamped(readout: str, seed: int) -> tuple[cs.Transposed, cs.Stamp]:
    """The default CNN run backwards, and a stamp of eleven keys."""
    model = models.build("cnn", SHAPE, OUTPUTS, seed=seed)
    stamp = cs.Stamp.from_texts(FOUR_LETTERS[:KEYS], outputs=OUTPUTS, shape=SHAPE, seed=seed)
    return cs.transpose(model, torch.zeros(1, *SHAPE), readout=readout), stamp


def hardening() -> bool:
    """Steps to a mean SSIM of 0.95; were all within the goal?"""
    met = True
    print(f"hardening: default CNN, {KEYS} keys, steps to mean SSIM 0.95 (the paper: 0.92 after 10,000)")
    print(f"  {'readout':8} {'seed':>4} {'steps':>6} {'goal':>6}")
    for readout, goal in GOALS.items():
        for seed in (0, 1, 2):
            back, stamp = stamped(readout, seed)
            done = cs.harden(back, stamp, steps=2 * goal, target=0.95, check_every=10, progress=False)
            within = done.reached and done.steps <= goal
            met &= within
            steps = str(done.steps) if done.reached else f">{done.steps}"
            print(f"  {readout:8} {seed:4} {steps:>6} {goal:6}  {'met' if within else 'MISSED'}", flush=True)
    return met


def cost_of_a_stamp_step(readout: str) -> list[float]:
    """Time of a training step with a stamp step after it over one without, a ratio a round; the two interleaved."""
    bench = Workbench(Cost(name="bench", subject="alternate", twin="task", readout=readout, keys=KEYS, batch=BATCH))
    return ratios(bench.alternate, bench.task, ROUNDS, STEPS)


def main() -> None:
    met = hardening()
    print(f"\ntraining step, marked over unmarked, batch {BATCH}, {ROUNDS} rounds (the paper, whole epochs: 1.40)")
    for readout in GOALS:
        low, median, high = statistics.quantiles(cost_of_a_stamp_step(readout), n=4)
        print(f"  {readout:8} median {median:.2f}, quartiles {low:.2f} to {high:.2f}", flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # kibibytes on Linux
    print(f"\npeak memory of this process: {peak:.2f} GiB (goal: under 4)")
    print("all goals met" if met and peak < 4 else "NOT all goals met")


if __name__ == "__main__":
    main()
