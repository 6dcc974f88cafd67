"""Optimizer steps that a loss which is not finite cannot spoil."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

from clearstamp.errors import TrainingError

MakeOptimizer = Callable[..., Optimizer]
adam: MakeOptimizer = partial(Adam, fused=True)
sgd: MakeOptimizer = partial(SGD, fused=True)
OPTIMIZERS = {"adam": adam, "sgd": sgd}


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


class Descent:
    """One model's way down: its optimizers, the losses so far, and the number of batches.

    `task` is the optimizer of the main task, with the learning rate `lr`; `another` makes one more. `after_step` is
    called after each step of either.
    """

    def __init__(
        self, model: nn.Module, optimizer: MakeOptimizer, lr: float, after_step: Callable[[], None] | None = None
    ):
        self.weights, self.after_step = list(model.parameters()), after_step
        self.make, self.lr = optimizer, lr
        self.device = self.weights[0].device
        self.losses = Losses(self.device)
        self.batches = 0
        self.optimizers: list[Optimizer] = []
        self.task = self.another(lr)

    def another(self, lr: float | None = None) -> Optimizer:
        """An optimizer of the same weights with a state of its own, at the learning rate `lr` (None for the task's)."""
        made = self.make(self.weights, lr=self.lr if lr is None else lr)
        for group in made.param_groups:
            group["initial_lr"] = group["lr"]
        self.optimizers.append(made)
        return made

    def rate(self, factor: float) -> None:
        """Take the next steps at `factor` times the full learning rates."""
        for group in (group for optimizer in self.optimizers for group in optimizer.param_groups):
            group["lr"] = factor * group["initial_lr"]

    def step(self, optimizer: Optimizer, loss: Tensor) -> None:
        """One step of `optimizer` (see `guarded_step`)."""
        guarded_step(optimizer, loss, self.losses)
        if self.after_step is not None:
            self.after_step()

    def state_dict(self) -> dict[str, Any]:
        """All of it but the weights. Raises `TrainingError` if a loss is not finite."""
        self.losses.read_back()
        states = [optimizer.state_dict() for optimizer in self.optimizers]
        return {"batches": self.batches, "losses": self.losses.values, "optimizers": states}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self.batches, self.losses.values = state["batches"], state["losses"]
        for optimizer, own in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(own)
