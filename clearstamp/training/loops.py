"""Hardening, constraint training and plain training."""

from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from clearstamp.errors import TrainingError
from clearstamp.scores import similarity
from clearstamp.stamp import Stamp
from clearstamp.training.checkpoint import Checkpoint, Stateful
from clearstamp.training.losses import StampLoss
from clearstamp.training.method import RECOMMENDED, Method
from clearstamp.training.schedules import Schedule, TaskAlone
from clearstamp.training.steps import Descent, MakeOptimizer, adam
from clearstamp.transpose import transpose
from clearstamp.transposed.base import Transposed


@dataclass(frozen=True)
class Hardening:
    """How hardening went: optimizer steps, whether the target was reached, and the course of loss and mean SSIM."""

    steps: int
    reached: bool
    losses: list[float] = field(repr=False)
    ssim: list[tuple[int, float]] = field(repr=False)


def harden(
    back: Transposed,
    stamp: Stamp,
    *,
    steps: int = RECOMMENDED.steps,
    target: float | None = RECOMMENDED.target,
    lr: float = 1e-4,
    dropout: float = RECOMMENDED.dropout,
    noise: float = 0.0,
    optimizer: MakeOptimizer = adam,
    check_every: int = 10,
    on_check: Callable[[int, Tensor], None] | None = None,
    compiled: bool = False,
    checkpoint: Path | str | None = None,
    progress: bool = True,
) -> Hardening:
    """Step 1: over-fit the transposed model to the stamp, and to nothing else.

    Stops as soon as the mean SSIM of the plain readout reaches `target`, or after `steps`; with ``target=None`` always
    after `steps`. The readout is checked before the first step and after every `check_every` steps, without `dropout`
    and `noise`, which act in the steps alone (see `StampLoss`); `on_check(step, images)` is called each time. A higher
    `lr` takes fewer steps but moves the weights farther, which may cost accuracy. `compiled` runs the loss through
    `torch.compile`, which takes half a minute or more; ``make bench`` shows whether that pays on a machine.

    With the path of a `checkpoint`, a later call with the same arguments goes on from there, as in `fit`. It is written
    at a check if the last is half a minute old, and at the end; `on_check` is not called again for checks before it.

    Raises `StampError` if the stamp does not fit, `TrainingError` if the loss is not finite: the weights are then those
    before the bad step. Raises `TrainingError` for a checkpoint of another run.
    """
    loss = StampLoss(back, stamp, dropout=dropout, noise=noise)
    if steps < 0 or check_every < 1:
        raise TrainingError("number of steps out of range", got=f"steps={steps}, check_every={check_every}")
    measure = torch.compile(loss) if compiled else loss
    descent, curve = Descent(back.model, optimizer, lr), Curve()
    kept = None
    if checkpoint is not None:
        about: dict[str, object] = {"steps": steps, "target": target, "check every": check_every, "stamp loss": loss}
        parts: dict[str, Stateful] = {"descent": descent, "curve": curve}
        kept = Checkpoint(checkpoint, back.model, parts, [loss], about | {"optimizer": descent.task})
        kept.resume()

    def check() -> None:
        with torch.no_grad():
            images = back(loss.stamp.keys)
        curve.points.append((descent.batches, similarity(images, loss.stamp.secrets).mean().item()))
        if on_check is not None:
            on_check(descent.batches, images.cpu())

    def reached() -> bool:
        return target is not None and curve.points[-1][1] >= target

    if not curve.points:
        check()
    with tqdm(total=steps, initial=descent.batches, desc="hardening", disable=not progress, leave=False) as bar:
        while descent.batches < steps and not reached():
            descent.step(descent.task, descent.losses.keep("stamp loss", measure()))
            descent.batches += 1
            bar.update()
            if descent.batches % check_every == 0 or descent.batches == steps:
                check()
                bar.set_postfix(ssim=f"{curve.points[-1][1]:.3f}")
                if kept:
                    kept.save(descent.batches, unless_younger=PAUSE)
    if kept:
        kept.save(descent.batches)
    return Hardening(descent.batches, reached(), descent.losses.read("stamp loss"), curve.points)


PAUSE = 30.0
"""Seconds between two checkpoints of hardening."""


@dataclass
class Curve:
    """Steps, and the mean SSIM after each."""

    points: list[tuple[int, float]] = field(default_factory=list)

    def state_dict(self) -> dict[str, Any]:
        return {"points": self.points}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.points = state["points"]


@dataclass(frozen=True)
class Fit:
    """How training went: the main-task loss of every step, and the stamp loss of every stamp step."""

    losses: list[float] = field(repr=False)
    stamp_losses: list[float] = field(repr=False)


def fit(
    model: nn.Module,
    loader: Iterable[tuple[Tensor, Tensor]],
    *,
    epochs: int = 5,
    lr: float = 1e-4,
    stamp_loss: Callable[[], Tensor] | None = None,
    schedule: Schedule = RECOMMENDED.schedule,
    optimizer: MakeOptimizer = adam,
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    rate: Callable[[float], float] | None = None,
    after_step: Callable[[], None] | None = None,
    on_epoch: Callable[[int], None] | None = None,
    checkpoint: Path | str | None = None,
    progress: bool = True,
) -> Fit:
    """Train a classifier; with `stamp_loss`, step 2: constraint training.

    `loader` yields inputs ``[b, C, H, W]`` and labels ``[b]``; `loss`, of outputs and labels, is the task's. `schedule`
    says at which batches the stamp has its turn, and how: by default `Joint`, with one optimizer, or `Alternating`,
    with two, as in the paper. The book's chapter on runtime compares them; a training of a few hundred batches wants
    the stamp more often. `rate` gives what learning rates are multiplied by, from the share of the training that is
    done, 0 to 1; it needs a loader with a length. The model is in training mode meanwhile and gets its mode back.
    `after_step()` is called after each optimizer step, `on_epoch(epoch)` after each epoch, counted from 1. Under
    `torch.autocast` the task runs in the lower precision, the stamp does not.

    With the path of a `checkpoint`, the whole state is written there after every epoch, and a later call with the same
    arguments, on the weights that this one began with, goes on after the last whole epoch: it ends with the weights and
    the result of a training that was never interrupted, bit for bit where the machine repeats itself. Restored are the
    global generators of torch, numpy and Python, and all that are found in the attributes of the loader. What the
    loader draws from anywhere else, and images that changed meanwhile, it cannot know. Remove the file afterwards.

    Raises `TrainingError` if a loss is not finite: the weights are then those before the bad step. Raises
    `TrainingError` for a checkpoint of another run, and for a loader that cannot be gone through again.
    """
    descent = Descent(model, optimizer, lr, after_step)
    turns = schedule.begin(descent, stamp_loss) if stamp_loss else TaskAlone(descent)
    batches = len(loader) if isinstance(loader, Sized) else None
    if rate is not None and not batches:
        raise TrainingError("a learning rate that changes needs a loader with a length", got=type(loader).__name__)
    kept, done = None, 0
    if checkpoint is not None:
        check_repeatable(loader)
        about: dict[str, object] = {"epochs": epochs, "batches": batches, "schedule": schedule if stamp_loss else None}
        about |= {"loss": loss, "rate": rate, "stamp loss": stamp_loss}
        parts: dict[str, Stateful] = {"descent": descent, "turns": turns}
        kept = Checkpoint(checkpoint, model, parts, [loader, stamp_loss], about | {"optimizer": descent.task})
        done = kept.resume()
    was_training = model.training
    model.train()
    try:
        for epoch in range(done + 1, epochs + 1):
            for inputs, labels in tqdm(loader, desc=f"epoch {epoch}/{epochs}", disable=not progress, leave=False):
                if rate is not None and batches:
                    descent.rate(rate((descent.batches + 0.5) / (epochs * batches)))
                descent.batches += 1
                outputs = model(inputs.to(descent.device, non_blocking=True))
                outputs = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
                task = loss(outputs, labels.to(descent.device, non_blocking=True))
                turns.take(descent.losses.keep("task loss", task))
            if on_epoch is not None:
                on_epoch(epoch)
            if kept:
                kept.save(epoch)
    finally:
        model.train(was_training)
    return Fit(descent.losses.read("task loss"), descent.losses.read("stamp loss"))


def check_repeatable(loader: Iterable[Any]) -> None:
    """Raise `TrainingError` for a loader whose next epoch depends on what a checkpoint does not hold."""
    if isinstance(loader, Iterator):
        raise TrainingError("a loader that cannot be gone through again", got=type(loader).__name__)
    if getattr(loader, "persistent_workers", False):
        remedy = "make the loader with persistent_workers=False"
        raise TrainingError("the random numbers of persistent workers cannot be kept", remedy=remedy)


def embed(
    model: nn.Module,
    stamp: Stamp,
    loader: Iterable[tuple[Tensor, Tensor]],
    *,
    method: Method = RECOMMENDED,
    epochs: int = 5,
    lr: float = 1e-4,
    optimizer: MakeOptimizer = adam,
    checkpoint: Path | str | None = None,
    progress: bool = True,
) -> Transposed:
    """Steps 1 and 2 in one call: `harden`, then `fit` with a `StampLoss`, by `method`, as published with `PAPER`.

    Returns the transposed model, from which `read` reads the stamp. The path of a `checkpoint` is that of `fit`; that
    of `harden` is the same with ``.hardening`` at its end. Raises `TransposeError`, `StampError` and `TrainingError` as
    these functions do.
    """
    example = stamp.secrets[:1].to(next(model.parameters()).device)
    back = transpose(model, example, readout=method.readout, frozen=stamp.frozen)
    common: dict[str, Any] = {"lr": lr, "optimizer": optimizer, "progress": progress}
    of_hardening = None if checkpoint is None else f"{checkpoint}.hardening"
    about: dict[str, Any] = {"steps": method.steps, "target": method.target, "dropout": method.dropout}
    harden(back, stamp, checkpoint=of_hardening, **about, **common)
    common |= {"stamp_loss": StampLoss(back, stamp, dropout=method.dropout), "schedule": method.schedule}
    fit(model, loader, epochs=epochs, checkpoint=checkpoint, **common)
    return back


def accuracy(model: nn.Module, loader: Iterable[tuple[Tensor, Tensor]]) -> float:
    """The share of images that the model, in evaluation mode and full precision, classifies correctly: 0 to 1.

    Raises `TrainingError` if there is no image.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    right = total = 0
    try:
        with torch.inference_mode(), torch.autocast(device.type, enabled=False):
            for inputs, labels in loader:
                right += int((model(inputs.to(device)).argmax(1) == labels.to(device)).sum())
                total += len(labels)
    finally:
        model.train(was_training)
    if total == 0:
        raise TrainingError("no data on which to measure accuracy", expected="at least one batch")
    return right / total
