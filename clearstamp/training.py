"""Hardening, constraint training and plain training."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer
from tqdm import tqdm

from clearstamp.errors import TrainingError
from clearstamp.losses import StampLoss
from clearstamp.method import RECOMMENDED, Joint, Schedule
from clearstamp.scores import similarity
from clearstamp.stamp import Stamp
from clearstamp.transpose import Transposed

MakeOptimizer = Callable[..., Optimizer]
adam: MakeOptimizer = partial(Adam, fused=True)
sgd: MakeOptimizer = partial(SGD, fused=True)
OPTIMIZERS = {"adam": adam, "sgd": sgd}


@dataclass(frozen=True)
class Hardening:
    """How hardening went: optimizer steps taken, whether the target was reached, loss and mean SSIM on the way."""

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

    Stops as soon as the mean SSIM of the plain readout reaches `target` (looked at every `check_every` steps), or after
    `steps`; with ``target=None`` always after `steps`. `dropout` and `noise` act in the steps, as in `StampLoss`, and
    never in a look. `on_check(step, images)` is called at every look, beginning with step 0. A higher `lr` takes fewer
    steps, but moves the weights farther, which the main task may suffer from. `compiled` runs the loss through
    `torch.compile`, which takes half a minute or more of compiling; ``make bench`` shows whether it pays on a machine.

    Raises `StampError` if the stamp does not fit, `TrainingError` if the loss is not finite: the weights are then those
    before the bad step.
    """
    loss = StampLoss(back, stamp, dropout=dropout, noise=noise)
    if steps < 0 or check_every < 1:
        raise TrainingError("no such number of steps", got=f"steps={steps}, check_every={check_every}")
    measure = torch.compile(loss) if compiled else loss
    trainer = optimizer(back.model.parameters(), lr=lr)
    descent = Descent(back.device)
    curve: list[tuple[int, float]] = []

    def look(step: int) -> float:
        with torch.no_grad():
            images = back(loss.stamp.keys)
        curve.append((step, similarity(images, loss.stamp.secrets).mean().item()))
        if on_check is not None:
            on_check(step, images.cpu())
        return curve[-1][1]

    goal = math.inf if target is None else target
    reached = look(0) >= goal
    with tqdm(total=steps, desc="hardening", disable=not progress, leave=False) as bar:
        for step in range(1, steps + 1):
            if reached:
                break
            descent.step(trainer, {"stamp loss": measure()})
            bar.update()
            if step % check_every == 0 or step == steps:
                reached = look(step) >= goal
                bar.set_postfix(ssim=f"{curve[-1][1]:.3f}")
    losses = descent.losses("stamp loss")
    return Hardening(len(losses), reached, losses, curve)


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
    on_epoch: Callable[[int], None] | None = None,
    progress: bool = True,
) -> Fit:
    """Train a classifier; with `stamp_loss`, step 2: constraint training.

    `loader` yields inputs ``[b, C, H, W]`` and labels ``[b]``; the task loss is cross-entropy. `schedule` says at which
    batches the stamp has its turn, and how: by default `Joint`, with one optimizer, or `Alternating`, with two, as in
    the paper. The book's chapter on runtime compares them; a training of a few hundred batches wants the stamp more
    often. The model is in training mode meanwhile and gets its mode back. `on_epoch(epoch)` is called after each epoch,
    counted from 1. Under `torch.autocast` the task runs in the lower precision, the stamp does not.

    Raises `TrainingError` if a loss is not finite: the weights are then those before the bad step.
    """
    device = next(model.parameters()).device
    task = optimizer(model.parameters(), lr=lr)
    stamping = task if isinstance(schedule, Joint) else optimizer(model.parameters(), lr=schedule.lr or lr)
    descent, batch = Descent(device), 0
    was_training = model.training
    model.train()
    try:
        for epoch in range(1, epochs + 1):
            for inputs, labels in tqdm(loader, desc=f"epoch {epoch}/{epochs}", disable=not progress, leave=False):
                outputs = model(inputs.to(device, non_blocking=True))
                outputs = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
                task_loss = F.cross_entropy(outputs, labels.to(device, non_blocking=True))
                batch += 1
                turn = stamp_loss if batch % schedule.every == 0 else None
                if turn and isinstance(schedule, Joint):
                    descent.step(task, {"task loss": task_loss, "stamp loss": turn()}, schedule.weight)
                    continue
                descent.step(task, {"task loss": task_loss})
                if turn:
                    descent.step(stamping, {"stamp loss": turn()})
            if on_epoch is not None:
                on_epoch(epoch)
    finally:
        model.train(was_training)
    return Fit(descent.losses("task loss"), descent.losses("stamp loss"))


class Descent:
    """Optimizer steps down named losses, which end before the first one that is not finite.

    On a GPU, losses are read back every `LATENCY` steps only, so that it never waits for the CPU. From the first bad
    loss on, fused optimizers are told on the device itself to leave the weights alone, as by a gradient scaler; others
    have to be asked about at every step.
    """

    LATENCY = 50

    def __init__(self, device: torch.device):
        self.latency = 1 if device.type == "cpu" else self.LATENCY
        self.stopped = torch.zeros((), device=device)
        self.read: dict[str, list[float]] = {}
        self.unread: list[tuple[str, Tensor]] = []

    def step(self, optimizer: Optimizer, losses: dict[str, Tensor], weight: float = 1.0) -> None:
        """One step down the first loss, a scalar, and `weight` times each other one."""
        first, *others = losses.values()
        optimizer.zero_grad(set_to_none=True)
        sum((weight * other for other in others), first).backward()
        for name, loss in losses.items():
            self.unread.append((name, loss.detach()))
            self.stopped = torch.maximum(self.stopped, (~loss.detach().isfinite()).to(self.stopped))
        fused = getattr(optimizer, "_step_supports_amp_scaling", False)
        if not fused or len(self.unread) >= self.latency:
            self.look()
        if fused:
            optimizer.found_inf = self.stopped  # type: ignore[attr-defined]
        optimizer.step()
        torch.clear_autocast_cache()  # else a loop within one autocast goes on with the weights of its first step

    def look(self) -> None:
        """Read the losses back. Raises `TrainingError` at one that is not finite."""
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
            self.read.setdefault(name, []).append(value)

    def losses(self, name: str) -> list[float]:
        """The value of every step of one loss."""
        self.look()
        return self.read.get(name, [])


def accuracy(model: nn.Module, loader: Iterable[tuple[Tensor, Tensor]]) -> float:
    """The share of images in [0, 1] that the model, in evaluation mode and full precision, puts in their class."""
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
        raise TrainingError("no data to measure accuracy on", expected="at least one batch")
    return right / total
