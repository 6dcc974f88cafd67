"""Where the time of training a deep network goes, layer by layer beside its arithmetic, and what makes it less."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Adam
from torch.utils.hooks import RemovableHandle

from clearstamp.errors import ClearStampError, RecordError
from clearstamp.reproduction.experiments import Experiment, Findings, Settings, device, unknown
from clearstamp.reproduction.records import Score, Stage
from clearstamp.reproduction.runtime import operations, quartiles, timed
from clearstamp.zoo.networks import build

SHAPE, OUTPUTS = (3, 32, 32), 10
"""Of an image of CIFAR-10, and of a network for it."""


@dataclass(frozen=True, kw_only=True)
class Manner:
    """How the steps of a training are run. Batch size and precision change what is learnt, the others its time alone.

    Attributes:
        batch: images a step.
        precision: of convolutions and products.
        channels_last: whether the channels of a pixel lie side by side in memory.
        fused: whether the optimizer changes all weights in one pass.
        threads: of the CPU; None for as many as it has cores for this run.
    """

    batch: int = 64
    precision: Literal["float32", "bfloat16"] = "float32"
    channels_last: bool = False
    fused: bool = False
    threads: int | None = 1


class Training:
    """One network and random images, trained in one manner."""

    def __init__(self, model: nn.Module, manner: Manner):
        self.manner = manner
        layout = torch.channels_last if manner.channels_last else torch.contiguous_format
        self.model = copy.deepcopy(model).to(device(), memory_format=layout)  # type: ignore[call-overload]
        generator = torch.Generator().manual_seed(0)
        images = torch.rand(manner.batch, *SHAPE, generator=generator)
        self.images = images.to(device(), memory_format=layout)
        self.labels = torch.randint(OUTPUTS, (manner.batch,), generator=generator).to(device())
        self.optimizer = Adam(self.model.parameters(), lr=1e-4, fused=manner.fused)

    def step(self) -> None:
        """One step of the optimizer on one batch."""
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device().type, torch.bfloat16, enabled=self.manner.precision == "bfloat16"):
            loss = F.cross_entropy(self.model(self.images), self.labels)
        loss.backward()
        self.optimizer.step()


@dataclass(frozen=True, kw_only=True)
class OnNetwork(Experiment):
    """An experiment on the steps of one network of this library's, for images of CIFAR-10's size.

    Times are ratios within a round; of these the median over `rounds`, two or more.
    """

    alone: ClassVar[bool] = True

    model: str = "resnet18"
    rounds: int = 7

    def check(self, settings: Settings) -> Iterator[ClearStampError]:
        yield from super().check(settings)
        yield from unknown(self.model)
        if self.rounds < 2:
            yield RecordError("number of rounds out of range", got=self.rounds, expected="at least 2")

    def network(self, seed: int) -> nn.Module:
        """The network, in training mode."""
        return build(self.model, SHAPE, OUTPUTS, seed=seed)


# ---------------------------------------------------------------------------------------------------- layer by layer


@dataclass(frozen=True, kw_only=True)
class Layers(OnNetwork):
    """The share of a training step's time that each kind of layer has, and that time over what its arithmetic takes.

    Layers of one kind on inputs of one shape count together: one of them is run forwards and backwards by itself, on
    inputs as they reach it, times as many as there are. Arithmetic takes as long as a product of square matrices
    `side` wide takes for as many operations, measured in the same round: layers cannot be faster for long. What the
    step does beside its layers and the optimizer (additions of streams, the loss) is the rest of its time, which is
    negative where layers are slower by themselves.
    """

    batch: int = 64
    side: int = 2_048

    def conduct(self, settings: Settings, seed: int) -> Findings:
        training = Training(self.network(seed), Manner(batch=self.batch, channels_last=True, fused=True, threads=None))
        for module in training.model.modules():
            if getattr(module, "inplace", False):
                module.inplace = False  # a layer by itself must not overwrite its input
        kinds = layers(training)
        square = torch.rand(self.side, self.side, device=device())
        parts: dict[str, Callable[[], object]] = {STEP: training.step, OPTIMIZER: training.optimizer.step}
        parts |= {kind: partial(once, *uses[0]) for kind, uses in kinds.items()}
        counted = {kind: operations(part) for kind, part in parts.items()}
        rounds = list(timed(parts | {"product": partial(torch.mm, square, square)}, self.rounds))
        stages = []
        for kind, part in counted.items():
            count = len(kinds.get(kind, [None]))
            shares = [count * times[kind] / times[STEP] for times in rounds]
            scores: dict[str, Score] = {"count": count, "time": median(shares), "operations": count * part}
            if part:
                products = part / (2 * self.side**3)
                scores["over"] = median(times[kind] / (products * times["product"]) for times in rounds)
            stages.append(Stage(label=kind, scores=scores))
        return stages, {}, {}


STEP, OPTIMIZER = "the whole step", "the optimizer"
"""What is timed beside the layers."""

Use = tuple[nn.Module, Tensor]
"""A layer, and an input as it reaches it."""


def layers(training: Training) -> dict[str, list[Use]]:
    """The layers that one step runs, by kind and shape of the input, those that run first before the others."""
    found: dict[str, list[Use]] = {}

    def note(module: nn.Module, inputs: tuple[Tensor]) -> None:
        kind = described(module, inputs[0])
        found.setdefault(kind, []).append((module, inputs[0].detach().requires_grad_(inputs[0].requires_grad)))

    with hooked(training.model, note):
        training.step()
    return found


def described(layer: nn.Module, inputs: Tensor) -> str:
    """A kind of layer, and the shape of its input without the batch."""
    match layer:
        case nn.Conv2d():
            size, stride = (" x ".join(map(str, each)) for each in (layer.kernel_size, layer.stride))
            kind = f"Conv2d to {layer.out_channels} channels, {size}, stride {stride}"
        case nn.Linear():
            kind = f"Linear to {layer.out_features}"
        case _:
            kind = type(layer).__name__
    return f"{kind}, of [{', '.join(map(str, inputs.shape[1:]))}]"


@contextmanager
def hooked(model: nn.Module, note: Callable[[nn.Module, tuple[Tensor]], None]) -> Iterator[None]:
    """A context in which `note` is called before each module without parts runs, but for those that do nothing."""
    leaves = [m for m in model.modules() if next(m.children(), None) is None and not isinstance(m, nn.Identity)]
    handles: list[RemovableHandle] = [leaf.register_forward_pre_hook(note) for leaf in leaves]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def once(layer: nn.Module, inputs: Tensor) -> None:
    """A layer by itself, forwards and backwards."""
    inputs.grad = None
    layer.zero_grad(set_to_none=True)
    found = layer(inputs)
    if found.requires_grad:
        found.backward(torch.ones_like(found))


# ----------------------------------------------------------------------------------------------------- what helps


@dataclass(frozen=True, kw_only=True)
class Gains(OnNetwork):
    """The time of an image in training run in each of the `changes` of manner, over that of an image in the `base`."""

    base: Manner = field(default=Manner())
    changes: dict[str, Manner] = field(hash=False, default_factory=dict)

    def conduct(self, settings: Settings, seed: int) -> Findings:
        model = self.network(seed)
        manners = {"": self.base} | self.changes
        trainings = {label: Training(model, manner) for label, manner in manners.items()}
        rounds = list(timed({label: partial(threaded, each) for label, each in trainings.items()}, self.rounds))
        stages = []
        for label, manner in self.changes.items():
            fewer = self.base.batch / manner.batch  # times as long for as many images
            ratios = [fewer * times[label] / times[""] for times in rounds]
            stages.append(Stage(label=label, scores=quartiles(ratios)))
        return stages, {}, {}


def threaded(training: Training) -> None:
    """A step of a training on as many threads as it asks for."""
    before = torch.get_num_threads()
    torch.set_num_threads(training.manner.threads or before)
    try:
        training.step()
    finally:
        torch.set_num_threads(before)
