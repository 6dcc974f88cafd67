"""Section 5.6 of the paper: what a stamp costs, as a ratio to a twin whose runs alternate with its own."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import quantiles
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.optim import Adam, Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.flop_counter import FlopCounterMode

from clearstamp.errors import ClearStampError, RecordError
from clearstamp.reproduction.coverage import OUTPUTS, classifier, classifiers
from clearstamp.reproduction.experiments import Experiment, Findings, Settings, device
from clearstamp.reproduction.profiles import Profile
from clearstamp.reproduction.records import Score, Stage
from clearstamp.scores import structural_similarity
from clearstamp.stamp import Stamp
from clearstamp.training.losses import StampLoss
from clearstamp.training.steps import Losses, adam, guarded_step
from clearstamp.transpose import transpose
from clearstamp.zoo.networks import MODELS, build


class Workbench:
    """One network with a stamp, and the steps whose costs are compared: each a method without arguments."""

    def __init__(self, cost: "Cost"):
        model, shape, outputs = cost.network()
        self.model = model.to(device(), memory_format=torch.channels_last)  # type: ignore[call-overload]
        generator = torch.Generator().manual_seed(0)
        secrets = torch.rand(cost.keys, *shape, generator=generator)
        stamp = Stamp.from_secrets(secrets, outputs=outputs, seed=0)
        self.images = torch.rand(cost.batch, *shape, generator=generator).to(device())
        self.labels = torch.randint(outputs, (cost.batch,), generator=generator).to(device())
        self.inputs = torch.rand(cost.keys, *shape, generator=generator).to(device())
        self.back = transpose(self.model, self.images[:1], readout=cost.readout)
        self.loss = StampLoss(self.back, stamp, dropout=cost.dropout, noise=cost.noise, at_once=cost.at_once)
        self.compiled_loss: Callable[[], Tensor] | None = None
        self.losses = Losses(device())
        self.every = cost.every
        self.optimizers: dict[str, Optimizer] = {}

    def optimizer(self, name: str, make: Callable[..., Optimizer] = adam) -> Optimizer:
        """The optimizer of this name, made when it is first asked for."""
        if name not in self.optimizers:
            self.optimizers[name] = make(self.model.parameters(), lr=1e-4)
        return self.optimizers[name]

    def step(self, name: str, loss: Tensor) -> None:
        """A step of the optimizer of that name."""
        guarded_step(self.optimizer(name), loss, self.losses)

    def task_loss(self) -> Tensor:
        return self.losses.keep("task loss", F.cross_entropy(self.model(self.images), self.labels))

    def stamp_loss(self) -> Tensor:
        return self.losses.keep("stamp loss", self.loss())

    def task(self) -> None:
        """The steps of unmarked training that go with one stamp step."""
        for _ in range(self.every):
            self.step("task", self.task_loss())

    def stamp(self) -> None:
        """One stamp step, in hardening as in constraint training."""
        self.step("stamp", self.stamp_loss())

    def walk(self) -> None:
        """From keys to images, as in training."""
        self.loss.images()

    def measure(self) -> None:
        """The walk, and the loss of its images."""
        self.loss()

    def update(self) -> None:
        """The optimizer's part of a stamp step."""
        optimizer = self.optimizer("stamp")
        if not optimizer.state:
            self.stamp()
        optimizer.step()

    def compiled(self) -> None:
        """A stamp step whose loss went through `torch.compile`, at the first call."""
        if self.compiled_loss is None:
            self.compiled_loss = torch.compile(self.loss)
        self.step("stamp", self.losses.keep("stamp loss", self.compiled_loss()))

    def alternate(self) -> None:
        """Constraint training as published: the task's steps, then a stamp step."""
        self.task()
        self.stamp()

    def joint(self) -> None:
        """Constraint training with one optimizer: the stamp loss is added to the last of the task's losses."""
        for _ in range(self.every - 1):
            self.step("task", self.task_loss())
        self.step("task", self.task_loss() + self.stamp_loss())

    def plain(self) -> None:
        """The stamp step as one would write it by hand for this network, without this library."""
        images = plain_walk(self.model, self.loss.stamp.keys)
        loss = (1 - structural_similarity(images, self.loss.stamp.secrets)).mean()
        loss = loss + F.mse_loss(images, self.loss.stamp.secrets)
        optimizer = self.optimizer("plain", Adam)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def extract(self) -> None:
        """The readout of all keys."""
        with torch.no_grad():
            self.back(self.loss.stamp.keys)

    def forward(self) -> None:
        """One forward pass of as many images as there are keys."""
        with torch.no_grad():
            self.model(self.inputs)


def plain_walk(model: nn.Module, keys: Tensor) -> Tensor:
    """The `adjoint` readout of this library's default CNN, written for it alone."""
    signal = keys
    for layer in reversed(list(model.children())):
        match layer:
            case nn.Linear():
                signal = signal @ layer.weight
            case nn.ReLU():
                signal = F.relu(signal)
            case nn.Flatten():
                signal = signal.reshape(len(signal), -1, 7, 7)
            case nn.MaxPool2d():
                signal = F.interpolate(signal, scale_factor=2)
            case nn.Conv2d():
                signal = F.conv_transpose2d(signal, layer.weight, padding=2)
    return signal


@dataclass(frozen=True, kw_only=True)
class Cost(Experiment):
    """The cost of `subject` as a multiple of that of `twin`, both steps of a `Workbench`.

    Time: the median, and the quartiles, over `rounds` in which each runs `repeats` times, one right after the other.
    ``operations``: multiplications and additions as counted, below which time cannot fall. ``memory``: weights,
    gradients, the optimizers' states, and the most that one backward pass keeps. `model` is one of this library's, or
    of torchvision's classifiers; `size` is the images' height and width. `precision` is that of the task's steps,
    whatever the profile says: the stamp's are always in full precision.
    """

    alone: ClassVar[bool] = True

    subject: str
    twin: str
    model: str = "cnn"
    size: int = 28
    channels: int = 1
    keys: int = 11
    batch: int = 64
    readout: str = "adjoint"
    every: int = 1
    dropout: float = 0.0
    noise: float = 0.0
    at_once: int | None = None
    rounds: int = 7
    repeats: int = 2
    precision: Literal["float32", "bfloat16"] = "float32"

    def settings(self, profile: Profile) -> Settings:
        return super().settings(replace(profile, precision=self.precision))

    def check(self, settings: Settings) -> Iterator[ClearStampError]:
        if self.model not in (*MODELS, *classifiers()):
            yield RecordError("unknown model", got=repr(self.model), expected="one of ours or of torchvision")

    def network(self) -> tuple[nn.Module, tuple[int, int, int], int]:
        """The model, the shape of its images and the number of its outputs."""
        if self.model in MODELS:
            shape = (self.channels, self.size, self.size)
            return build(self.model, shape, OUTPUTS, seed=0), shape, OUTPUTS
        return classifier(self.model), (3, self.size, self.size), OUTPUTS

    def conduct(self, settings: Settings, seed: int) -> Findings:
        torch.manual_seed(seed)
        bench = Workbench(self)
        subject, twin = (getattr(bench, name) for name in (self.subject, self.twin))
        found = quartiles(ratios(subject, twin, self.rounds, self.repeats)) | {
            "operations": operations(subject) / operations(twin),
            "memory": memory(Workbench(self), self.subject) / memory(Workbench(self), self.twin),
            "parameters": sum(p.numel() for p in bench.model.parameters()),
        }
        return [Stage(label="cost", scores=found)], {}, {}


def ratios(subject: Callable[[], None], twin: Callable[[], None], rounds: int, repeats: int) -> list[float]:
    """Time of `subject` over time of `twin`, one ratio per round. Each runs once before, to allocate memory."""
    return [times["subject"] / times["twin"] for times in timed({"subject": subject, "twin": twin}, rounds, repeats)]


def timed(work: Mapping[str, Callable[[], object]], rounds: int, repeats: int = 1) -> Iterator[dict[str, float]]:
    """The seconds of each piece of work, one after the other in each round; all of it runs once before."""
    for piece in work.values():
        piece()
    for _ in range(rounds):
        yield {name: seconds(piece, repeats) for name, piece in work.items()}


def quartiles(ratios: Sequence[float]) -> dict[str, Score]:
    """The median of times, and their quartiles, as records keep them."""
    low, middle, high = quantiles(ratios, n=4)
    return {"time": middle, "quartile 1": low, "quartile 3": high}


def seconds(step: Callable[[], object], repeats: int) -> float:
    """Seconds that some steps take."""
    began = time.perf_counter()
    for _ in range(repeats):
        step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


def operations(step: Callable[[], object]) -> int:
    """Floating-point operations of a step's matrix products and convolutions."""
    with FlopCounterMode(display=False) as counter:
        step()
    return int(counter.get_total_flops())


def memory(bench: Workbench, name: str) -> int:
    """Bytes that a step of a fresh bench holds: weights, gradients, optimizer states, and what a backward pass keeps.

    The last of these is the peak over all stretches from one optimizer step to the next.
    """
    step = getattr(bench, name)
    step()  # allocates gradients and states
    weights = list(bench.model.parameters())
    kept = kept_for_backward(bench.model, step)
    states = [s for o in bench.optimizers.values() for state in o.state.values() for s in state.values()]
    return kept + sum(t.nbytes for t in (*weights, *(w.grad for w in weights if w.grad is not None), *states))


def kept_for_backward(model: nn.Module, training: Callable[[], object]) -> int:
    """The most bytes beside a model's weights that are kept for backward passes from one optimizer step to the next."""
    own = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    kept: dict[int, int] = {}
    peak = 0

    def keep(tensor: Tensor) -> Tensor:
        nonlocal peak
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
            peak = max(peak, sum(kept.values()))
        return tensor

    ended = register_optimizer_step_post_hook(lambda *_: kept.clear())
    try:
        with saved_tensors_hooks(keep, lambda tensor: tensor):
            training()
    finally:
        ended.remove()
    return peak
