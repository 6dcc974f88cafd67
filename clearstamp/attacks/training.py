"""Attacks that train further, on the same task or another, or that combine and cut what was trained."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clearstamp.attacks.base import Attack, Scene, check
from clearstamp.data import Batches
from clearstamp.errors import AttackError
from clearstamp.training.loops import fit
from clearstamp.training.steps import OPTIMIZERS, MakeOptimizer, adam
from clearstamp.transposed.graph import Graph
from clearstamp.units.spaces import last_layer, replace_module, replace_tensor


@dataclass(frozen=True, kw_only=True)
class FineTuning(Attack):
    """Train further with cross-entropy, as the owner did but without the stamp (paper, Table 3; LR/10 is its default).

    `layers` trains every layer or only the last; `reset_last` reinitialises the last layer. Reports after every epoch.
    """

    epochs: int = 4
    lr: float = 1e-5
    optimizer: Literal["adam", "sgd"] = "adam"
    weight_decay: float = 0.0
    layers: Literal["all", "last"] = "all"
    reset_last: bool = False

    def run(self, scene: Scene) -> None:
        check(self.optimizer in OPTIMIZERS, "unknown optimizer", self.optimizer, " or ".join(OPTIMIZERS))
        check(self.layers in ("all", "last"), "unknown choice of layers", self.layers, "all or last")
        last = last_layer(scene.model, scene.graph())
        if self.reset_last:
            last.reset_parameters()
        if self.layers == "last":
            scene.model.requires_grad_(False)
            last.requires_grad_(True)
        optimizer = partial(OPTIMIZERS[self.optimizer], weight_decay=self.weight_decay)
        train(scene, self.epochs, self.lr, optimizer)
        scene.model.requires_grad_(True)


@dataclass(frozen=True, kw_only=True)
class Transfer(Attack):
    """Train the model for another task: the label's remainder by `modulus` (2: odd or even), with a new last layer.

    The owner puts the original last layer back to read the stamp, as the paper does from CIFAR-100 to CIFAR-10.
    Accuracy is that of the new task. Raises `AttackError` if the last layer is not linear.
    """

    epochs: int = 4
    lr: float = 1e-4
    modulus: int = 2

    def run(self, scene: Scene) -> None:
        classes = scene.need_data().classes
        check(2 <= self.modulus < classes, "modulus out of range", self.modulus, f"a modulus from 2 to {classes - 1}")
        last = head(scene.model, scene.graph())
        original = copy.deepcopy(last)
        fresh = nn.Linear(original.in_features, self.modulus).to(original.weight.device)
        replace_module(scene.model, last, fresh)

        def evidence(suspect: nn.Module) -> nn.Module:
            restored = copy.deepcopy(suspect)
            replace_module(restored, last_layer(restored, scene.graph(restored)), original)
            return restored

        scene.evidence = evidence
        scene.relabel = partial(Remainders, modulus=self.modulus)
        train(scene, self.epochs, self.lr, adam)


def head(model: nn.Module, graph: Graph) -> nn.Linear:
    """The layer that gives the logits. Raises `AttackError` if it is not linear."""
    last = last_layer(model, graph)
    if not isinstance(last, nn.Linear):
        raise AttackError("the last layer is not linear", got=type(last).__name__, expected="nn.Linear")
    return last


@dataclass(frozen=True)
class Remainders:
    """Batches with each label's remainder in its place, for any number of epochs."""

    batches: Batches
    modulus: int

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return ((images, labels % self.modulus) for images, labels in self.batches)


@dataclass(frozen=True, kw_only=True)
class DropClass(Attack):
    """Cut the last `count` outputs off: the last layer loses their rows and biases, and nothing else changes.

    The owner puts the rows that are missing back behind those that are there, to read the stamp. Accuracy is that on
    images of the classes that are left: as in `Transfer` it is that of the attacker's task, which has no other classes.
    Raises `AttackError` if the last layer is not linear.
    """

    count: int = 1

    def run(self, scene: Scene) -> None:
        last = head(scene.model, scene.graph())
        original = copy.deepcopy(last)
        outputs = original.out_features
        kept = outputs - self.count
        check(1 <= kept < outputs, "number of classes out of range", self.count, f"1 to {outputs - 1}")
        for name, tensor in original.named_parameters():
            replace_tensor(last, name, tensor.detach()[:kept].clone())

        def evidence(suspect: nn.Module) -> nn.Module:
            restored = copy.deepcopy(suspect)
            own = head(restored, scene.graph(restored))
            for name, tensor in original.named_parameters():
                replace_tensor(own, name, torch.cat([getattr(own, name), tensor[kept:]]).detach())
            return restored

        if scene.mark.scheme.access == "weights":  # who only asks meets the model as it is
            scene.evidence = evidence
        scene.relabel = partial(Below, classes=kept)


@dataclass(frozen=True)
class Below:
    """Batches without the images whose label is not below the number of `classes`, for any number of epochs."""

    batches: Batches
    classes: int

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in self.batches:
            left = labels < self.classes
            if left.any():
                yield images[left], labels[left]


@dataclass(frozen=True, kw_only=True)
class AdversarialTuning(Attack):
    """Train further on adversarial images: each at most `epsilon` per number from one of the attacker's, within [0, 1].

    They are made anew for the model as it is. One step is the fast gradient sign method (Goodfellow et al., 2015).
    Several are projected gradient descent (Madry et al., 2018), begun at the image itself, with steps of 2.5 `epsilon`
    over their number. Reports after every epoch. Raises `AttackError` for images that are not within [0, 1].
    """

    epochs: int = 4
    lr: float = 1e-4
    epsilon: float = 0.1
    steps: int = 1

    def run(self, scene: Scene) -> None:
        check(0 < self.epsilon <= 1, "epsilon out of range", self.epsilon, "above 0, at most 1")
        check(self.steps >= 1, "number of steps out of range", self.steps, "at least 1")
        batches = scene.need_data().loader(seed=scene.seed)
        train(scene, self.epochs, self.lr, adam, Adversarial(scene.model, batches, self.epsilon, self.steps))


@dataclass(frozen=True)
class Adversarial:
    """Batches with adversarial images in the place of the own, for any number of epochs."""

    model: nn.Module
    batches: Batches
    epsilon: float
    steps: int

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        device = next(self.model.parameters()).device
        for images, labels in self.batches:
            inside = bool(((images >= 0) & (images <= 1)).all())
            check(inside, "images out of range", f"{images.min():.3g} to {images.max():.3g}", "0 to 1")
            yield self.adversarial(images.to(device), labels.to(device)), labels

    def adversarial(self, images: Tensor, labels: Tensor) -> Tensor:
        """What the model, in evaluation mode, takes for something else than `images`, as far as the steps get."""
        was_training, found = self.model.training, images
        self.model.eval()
        for _ in range(self.steps):
            found = found.detach().requires_grad_()
            (slope,) = torch.autograd.grad(F.cross_entropy(self.model(found), labels), found)
            found = found + 2.5 * self.epsilon / self.steps * slope.sign()
            found = found.clamp(images - self.epsilon, images + self.epsilon).clamp(0, 1)
        self.model.train(was_training)
        return found.detach()


@dataclass(frozen=True, kw_only=True)
class Distillation(Attack):
    """Train a fresh model of the same architecture on the marked model's answers to the attacker's images."""

    epochs: int = 5
    lr: float = 1e-3

    def run(self, scene: Scene) -> None:
        teacher = scene.model.eval()
        scene.model = reinitialised(teacher)
        train(scene, self.epochs, self.lr, adam, Answers(teacher, scene))


def reinitialised(model: nn.Module) -> nn.Module:
    """A copy with weights drawn anew; those of a layer that cannot draw its own change places among themselves."""
    fresh = copy.deepcopy(model)
    for layer in fresh.modules():
        if hasattr(layer, "reset_parameters"):
            layer.reset_parameters()  # type: ignore[operator]
            continue
        for weight in layer.parameters(recurse=False):
            order = torch.randperm(weight.numel()).to(weight.device)
            weight.data.copy_(weight.detach().flatten()[order].reshape_as(weight))
    return fresh


@dataclass(frozen=True)
class Answers:
    """The attacker's images with the teacher's probabilities in place of the labels, for any number of epochs."""

    teacher: nn.Module
    scene: Scene

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for images, _ in self.scene.need_data().loader(seed=self.scene.seed):
            with torch.no_grad():
                answers = self.teacher(images.to(self.scene.device)).softmax(1)
            yield images, answers


@dataclass(frozen=True, kw_only=True)
class Averaging(Attack):
    """The weighted mean of the marked model's weights and an unmarked model's; `weight` is that of the unmarked.

    Raises `AttackError` for an unmarked model of another form.
    """

    weight: float = 0.5

    @property
    def needs_unmarked(self) -> bool:
        return True

    def run(self, scene: Scene) -> None:
        check(0 <= self.weight <= 1, "weight out of range", self.weight, "0 to 1")
        ours, others = scene.model.state_dict(), scene.need_unmarked().state_dict()
        forms = [{(name, tensor.shape) for name, tensor in each.items()} for each in (ours, others)]
        if differing := sorted({name for name, _ in forms[0] ^ forms[1]}):
            raise AttackError("the unmarked model has another form", got=", ".join(differing))
        with torch.no_grad():
            for name, own in ours.items():
                if own.is_floating_point():
                    own.lerp_(others[name].to(own), self.weight)


def train(scene: Scene, epochs: int, lr: float, optimizer: MakeOptimizer, batches: Batches | None = None) -> None:
    """Train for some epochs on the attacker's images, or on other `batches`, and report after each."""
    check(epochs >= 1, "number of epochs out of range", epochs, "at least 1")
    if batches is None:
        batches = scene.relabel(scene.need_data().loader(seed=scene.seed))

    def report(epoch: int) -> None:
        scene.report(f"epoch {epoch}", epoch)

    done = fit(scene.model, batches, epochs=epochs, lr=lr, optimizer=optimizer, on_epoch=report, progress=False)
    scene.steps += len(done.losses)
