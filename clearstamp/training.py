"""Hardening, constraint training and plain training."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer
from tqdm import tqdm

from clearstamp.errors import TrainingError
from clearstamp.losses import StampLoss
from clearstamp.method import RECOMMENDED, Alternating, Joint, Method, Schedule
from clearstamp.scores import similarity
from clearstamp.stamp import Stamp
from clearstamp.transpose import transpose
from clearstamp.transposed import Transposed

MakeOptimizer = Callable[..., Optimizer]
adam: MakeOptimizer = partial(Adam, fused=True)
sgd: MakeOptimizer = partial(SGD, fused=True)
OPTIMIZERS = {"adam": adam, "sgd": sgd}


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
    progress: bool = True,
) -> Hardening:
    """Step 1: over-fit the transposed model to the stamp, and to nothing else.

    Stops as soon as the mean SSIM of the plain readout reaches `target`, or after `steps`; with ``target=None`` always
    after `steps`. The readout is checked before the first step and after every `check_every` steps, without `dropout`
    and `noise`, which act in the steps alone (see `StampLoss`); `on_check(step, images)` is called each time. A higher
    `lr` takes fewer steps but moves the weights farther, which may cost accuracy. `compiled` runs the loss through
    `torch.compile`, which takes half a minute or more; ``make bench`` shows whether that pays on a machine.

    Raises `StampError` if the stamp does not fit, `TrainingError` if the loss is not finite: the weights are then those
    before the bad step.
    """
    loss = StampLoss(back, stamp, dropout=dropout, noise=noise)
    if steps < 0 or check_every < 1:
        raise TrainingError("number of steps out of range", got=f"steps={steps}, check_every={check_every}")
    measure = torch.compile(loss) if compiled else loss
    descent = optimizer(back.model.parameters(), lr=lr)
    losses = Losses(back.device)
    curve: list[tuple[int, float]] = []

    def reaches_target(step: int) -> bool:
        with torch.no_grad():
            images = back(loss.stamp.keys)
        curve.append((step, similarity(images, loss.stamp.secrets).mean().item()))
        if on_check is not None:
            on_check(step, images.cpu())
        return target is not None and curve[-1][1] >= target

    reached = reaches_target(0)
    with tqdm(total=steps, desc="hardening", disable=not progress, leave=False) as bar:
        for step in range(1, steps + 1):
            if reached:
                break
            guarded_step(descent, losses.keep("stamp loss", measure()), losses)
            bar.update()
            if step % check_every == 0 or step == steps:
                reached = reaches_target(step)
                bar.set_postfix(ssim=f"{curve[-1][1]:.3f}")
    values = losses.read("stamp loss")
    return Hardening(len(values), reached, values, curve)


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
    after_step: Callable[[], None] | None = None,
    on_epoch: Callable[[int], None] | None = None,
    progress: bool = True,
) -> Fit:
    """Train a classifier; with `stamp_loss`, step 2: constraint training.

    `loader` yields inputs ``[b, C, H, W]`` and labels ``[b]``; the task loss is cross-entropy. `schedule` says at which
    batches the stamp has its turn, and how: by default `Joint`, with one optimizer, or `Alternating`, with two, as in
    the paper. The book's chapter on runtime compares them; a training of a few hundred batches wants the stamp more
    often. The model is in training mode meanwhile and gets its mode back. `after_step()` is called after each optimizer
    step, `on_epoch(epoch)` after each epoch, counted from 1. Under `torch.autocast` the task runs in the lower
    precision, the stamp does not.

    Raises `TrainingError` if a loss is not finite: the weights are then those before the bad step.
    """
    device = next(model.parameters()).device
    task = optimizer(model.parameters(), lr=lr)
    stamping = task if isinstance(schedule, Joint) else optimizer(model.parameters(), lr=schedule.lr or lr)
    losses, batch = Losses(device), 0
    was_training = model.training
    model.train()
    try:
        for epoch in range(1, epochs + 1):
            for inputs, labels in tqdm(loader, desc=f"epoch {epoch}/{epochs}", disable=not progress, leave=False):
                outputs = model(inputs.to(device, non_blocking=True))
                outputs = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
                loss = losses.keep("task loss", F.cross_entropy(outputs, labels.to(device, non_blocking=True)))
                batch += 1
                turn = stamp_loss if batch % schedule.every == 0 else None
                if turn and isinstance(schedule, Joint):
                    loss = loss + schedule.weight * losses.keep("stamp loss", turn())
                guarded_step(task, loss, losses)
                if after_step is not None:
                    after_step()
                if turn and isinstance(schedule, Alternating):
                    guarded_step(stamping, losses.keep("stamp loss", turn()), losses)
                    if after_step is not None:
                        after_step()
            if on_epoch is not None:
                on_epoch(epoch)
    finally:
        model.train(was_training)
    return Fit(losses.read("task loss"), losses.read("stamp loss"))


def embed(
    model: nn.Module,
    stamp: Stamp,
    loader: Iterable[tuple[Tensor, Tensor]],
    *,
    method: Method = RECOMMENDED,
    epochs: int = 5,
    lr: float = 1e-4,
    optimizer: MakeOptimizer = adam,
    progress: bool = True,
) -> Transposed:
    """Steps 1 and 2 in one call: `harden`, then `fit` with a `StampLoss`, by `method`, as published with `PAPER`.

    Returns the transposed model, from which `read` reads the stamp. Raises `TransposeError`, `StampError` and
    `TrainingError` as these functions do.
    """
    example = stamp.secrets[:1].to(next(model.parameters()).device)
    back = transpose(model, example, readout=method.readout, frozen=stamp.frozen)
    common: dict[str, Any] = {"lr": lr, "optimizer": optimizer, "progress": progress}
    harden(back, stamp, steps=method.steps, target=method.target, dropout=method.dropout, **common)
    stamp_loss = StampLoss(back, stamp, dropout=method.dropout, noise=method.noise)
    fit(model, loader, epochs=epochs, stamp_loss=stamp_loss, schedule=method.schedule, **common)
    return back


def guarded_step(optimizer: Optimizer, loss: Tensor, losses: "Losses") -> None:
    """One step down `loss`, unless one of `losses` was not finite: the weights then stay as they are.

    It relies on what `torch.amp.GradScaler` does to a fused optimizer (Adam, AdamW or SGD with ``fused=True``): while
    its attribute `found_inf`, a scalar on the weights' device, is 1, a step leaves weights and state alone. For any
    other optimizer the losses are read back first, which raises `TrainingError`.
    """
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    if optimizer.defaults.get("fused"):
        optimizer.found_inf = losses.bad  # type: ignore[attr-defined]
    else:
        losses.read_back()
    optimizer.step()
    torch.clear_autocast_cache()  # else a loop within one autocast goes on with the weights of its first step


class Losses:
    """The losses of a training by name, up to the first that is not finite.

    On a GPU they are read back `LATENCY` at a time, so that it never waits for the CPU. `bad` is on the device at once:
    1 from the first loss on that is not finite, else 0.
    """

    LATENCY = 50

    def __init__(self, device: torch.device):
        self.latency = 1 if device.type == "cpu" else self.LATENCY
        self.bad = torch.zeros((), device=device)
        self.unread: list[tuple[str, Tensor]] = []
        self.values: dict[str, list[float]] = {}

    def keep(self, name: str, loss: Tensor) -> Tensor:
        """Keep the value of a loss, and hand the loss on. Raises `TrainingError` as `read_back`."""
        self.unread.append((name, loss.detach()))
        self.bad = torch.maximum(self.bad, (~loss.detach().isfinite()).to(self.bad))
        if len(self.unread) >= self.latency:
            self.read_back()
        return loss

    def read_back(self) -> None:
        """Fetch what is still on the device. Raises `TrainingError` at the first loss that is not finite."""
        unread, self.unread = self.unread, []
        values = torch.stack([loss.float() for _, loss in unread]).tolist() if unread else []
        for (name, _), value in zip(unread, values, strict=True):
            if not math.isfinite(value):
                raise TrainingError(
                    f"the {name} is not finite",
                    got=value,
                    where="the weights are those before this step",
                    remedy="lower the learning rate; check inputs, secrets and normalisation layers for zeros",
                )
            self.values.setdefault(name, []).append(value)

    def read(self, name: str) -> list[float]:
        """Every value of one loss."""
        self.read_back()
        return self.values.get(name, [])


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
