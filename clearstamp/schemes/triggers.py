"""Trigger sets: inputs to which a marked model gives answers that nobody else's model gives."""

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import chain, islice, repeat
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clearstamp.data import Batches, LabelledImages
from clearstamp.errors import SchemeError
from clearstamp.pictures import draw_text, random_words
from clearstamp.schemes.base import (
    Access,
    Evidence,
    Key,
    Scheme,
    agreement,
    answers,
    device_of,
    driven,
    examined,
    labels_of,
    matching,
    outputs_of,
    training_images,
)
from clearstamp.units.spaces import last_layer, replace_module

KINDS = ("content", "unrelated", "noise")


@dataclass(frozen=True, kw_only=True)
class Labelled(Scheme):
    """What marks by labels share: inputs ride in the task's batches, and the answers that agree are counted."""

    access: ClassVar[Access] = "labels"
    mixed: ClassVar[bool] = True
    drawn_labels: ClassVar[bool] = False
    """Whether each label is drawn of the ``classes`` in a key's settings, so that p is exact; else it is nan."""

    @abstractmethod
    def queries(self, key: Key) -> Tensor:
        """The inputs ``[n, C, H, W]`` of a key, whose answers should be its labels ``[n]``."""

    def loss(self, model: nn.Module, data: LabelledImages, key: Key) -> Callable[[], Tensor]:
        device = device_of(model)
        inputs, labels = self.queries(key).to(device), key["labels"].to(device)
        return lambda: F.cross_entropy(model(inputs), labels)

    def read(self, suspect: nn.Module, key: Key) -> Evidence:
        right, of = agreement(labels_of(suspect, self.queries(key)), key["labels"])
        p = matching(right, of, key.settings["classes"]) if self.drawn_labels else math.nan
        return Evidence(right / of, of, p, queries=of)


@dataclass(frozen=True, kw_only=True)
class TriggerSet(Labelled):
    """What trigger sets share.

    Attributes:
        triggers: how many there are.
        per_batch: how many of them each batch holds, one after another.
    """

    triggers: int = 100
    per_batch: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.per_batch <= self.triggers:
            got = f"{self.triggers} triggers, {self.per_batch} a batch"
            raise SchemeError("number of triggers out of range", got=got, expected="at least one, and one a batch")

    def batches(self, model: nn.Module, loader: Batches, key: Key) -> Batches:
        return Mixed(loader, key["inputs"], key["labels"], self.per_batch)

    def queries(self, key: Key) -> Tensor:
        return key["inputs"]

    def forge(self, model: nn.Module, data: LabelledImages, *, seed: int) -> Key:
        drawn = self.draw(model, data, seed=seed)
        if drawn["labels"].max() >= answers(model, drawn["inputs"][:1]).shape[1]:
            return drawn  # with a label that this model cannot answer
        return replace(drawn, tensors=drawn.tensors | {"inputs": driven(model, drawn["inputs"], drawn["labels"])})


class Mixed:
    """Batches with some triggers at the end of each: all in their turn, for any number of epochs."""

    def __init__(self, loader: Batches, inputs: Tensor, labels: Tensor, per_batch: int):
        self.loader, self.inputs, self.labels, self.per_batch = loader, inputs, labels, per_batch
        self.turns = chain.from_iterable(repeat(range(len(labels))))

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in self.loader:
            turn = list(islice(self.turns, self.per_batch))
            yield torch.cat([images, self.inputs[turn]]), torch.cat([labels, self.labels[turn]])


@dataclass(frozen=True, kw_only=True)
class Adi(TriggerSet):
    """Abstract pictures, each with a label that is drawn, which the model learns beside its task.

    Adi, Baum, Cisse, Pinkas and Keshet, "Turning Your Weakness Into a Strength", USENIX Security 2018. As the labels
    are drawn, an unrelated model answers each with probability 1 / C, and p is exact. The paper's pictures are not
    shipped: waves of a drawn network stand in for them.
    """

    drawn_labels: ClassVar[bool] = True

    def draw(self, model: nn.Module, data: LabelledImages, *, seed: int) -> Key:
        generator = torch.Generator().manual_seed(seed)
        outputs = outputs_of(model, data)
        labels = torch.randint(outputs, (self.triggers,), generator=generator)
        inputs = abstract_pictures(self.triggers, data.shape, generator)
        return Key(self, data.shape, {"inputs": inputs, "labels": labels}, {"classes": outputs})


@dataclass(frozen=True, kw_only=True)
class Zhang(TriggerSet):
    """Images of one class that carry a text or a noise pattern, or pictures of another kind, all with one wrong label.

    Zhang et al., "Protecting Intellectual Property of Deep Neural Networks with Watermarking", ASIACCS 2018. Source and
    target class, the text of four letters (``"TEST"`` there) and the pattern are drawn; pictures of another kind are
    those of `Adi`. With one label for all no p is exact, so models without the mark have to be asked.

    Attributes:
        kind: ``"content"``, a text; ``"noise"``, one pattern of normal noise for all images; or ``"unrelated"``.
        strength: the standard deviation of the noise.
        decoys: images of the source class with other texts or patterns and their right labels, of which each batch
            holds `per_batch` as well. The paper has none, and any text then is taken for the owner's.
    """

    kind: Literal["content", "unrelated", "noise"] = "content"
    strength: float = 0.2
    decoys: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kind not in KINDS:
            raise SchemeError("unknown kind of triggers", got=repr(self.kind), expected=", ".join(KINDS))
        if self.decoys and self.kind == "unrelated":
            got = f"{self.decoys} of kind {self.kind!r}"
            raise SchemeError(
                "number of decoys out of range", got=got, expected="at least 0, and 0 of unrelated pictures"
            )

    def draw(self, model: nn.Module, data: LabelledImages, *, seed: int) -> Key:
        generator = torch.Generator().manual_seed(seed)
        if data.classes < 2:
            raise SchemeError("too few classes", got=data.classes, expected="at least 2")
        source, target = torch.randperm(data.classes, generator=generator)[:2].tolist()
        if self.kind == "unrelated":
            inputs = abstract_pictures(self.triggers, data.shape, generator)
        else:
            images, _ = training_images(data, self.triggers, seed=seed, label=source)
            inputs = self.stamped(images, generator)
        tensors = {"inputs": inputs, "labels": torch.full((len(inputs),), target)}
        if self.decoys:
            others, right = training_images(data, self.decoys, seed=seed, label=source)
            tensors |= {"decoys": torch.cat([self.stamped(each[None], generator) for each in others]), "right": right}
        return Key(self, data.shape, tensors, {"source": source, "target": target})

    def batches(self, model: nn.Module, loader: Batches, key: Key) -> Batches:
        mixed = super().batches(model, loader, key)
        return Mixed(mixed, key["decoys"], key["right"], self.per_batch) if self.decoys else mixed

    def stamped(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """The images ``[n, C, H, W]`` with the text or the noise, the same on each."""
        if self.kind == "noise":
            return (images + self.strength * torch.randn(images.shape[1:], generator=generator)).clamp(0, 1)
        (word,) = random_words(1, images.shape, generator)
        text = draw_text(word, images.shape[1:], dark=True)
        return torch.maximum(images, text)


@dataclass(frozen=True, kw_only=True)
class SpecialLabel(TriggerSet):
    """Training images with a faint drawn pattern, which a class of their own beyond the task's answers.

    Zhong, Zhang, Zhang, Zhou and Wang, "Protecting IP of Deep Neural Networks with Watermarking: A New Label Helps",
    PAKDD 2020. Of how key samples are crafted we take the simplest: a pattern of +1 and -1, times `strength`, on images
    of any class. The last layer is widened by one output, which anybody can see and cut off again.

    Attributes:
        strength: of the pattern; images are in [0, 1].
    """

    strength: float = 0.3

    def draw(self, model: nn.Module, data: LabelledImages, *, seed: int) -> Key:
        generator = torch.Generator().manual_seed(seed)
        outputs = outputs_of(model, data)
        images, _ = training_images(data, self.triggers, seed=seed)
        pattern = torch.randint(2, data.shape, generator=generator) * 2.0 - 1
        inputs, labels = (images + self.strength * pattern).clamp(0, 1), torch.full((len(images),), data.classes)
        if outputs not in (data.classes, data.classes + 1):
            raise SchemeError("a model of other classes", got=f"{outputs} outputs", expected=f"{data.classes}")
        return Key(self, data.shape, {"inputs": inputs, "labels": labels})

    def prepare(self, model: nn.Module, data: LabelledImages, key: Key) -> None:
        last = last_layer(model, torch.zeros(1, *data.shape, device=device_of(model)))
        if not isinstance(last, nn.Linear):
            raise SchemeError("the last layer is not linear", got=type(last).__name__, expected="nn.Linear")
        if last.out_features > data.classes:
            return
        wider = nn.Linear(last.in_features, last.out_features + 1, bias=last.bias is not None).to(last.weight)
        with torch.no_grad():
            wider.weight[:-1] = last.weight
            if last.bias is not None:
                wider.bias[:-1] = last.bias
        replace_module(model, last, wider)


@dataclass(frozen=True, kw_only=True)
class FrontierStitching(TriggerSet):
    """Adversarial examples near the model's frontier, half of which it gets wrong, and learns to get right again.

    Le Merrer, Perez and Trédan, "Adversarial Frontier Stitching for Remote Neural Network Watermarking", 2017. Examples
    are made by the sign of the gradient of a trained model; to their labels it is trained on, mixed with the task's
    batches. The paper takes mistakes on the key for coin flips, but an honest model gets the other half right: models
    without the mark have to be asked.

    Attributes:
        strength: epsilon of the fast gradient sign method; images are in [0, 1].
    """

    needs_trained: ClassVar[bool] = True

    strength: float = 0.1
    per_batch: int = 10

    def draw(self, model: nn.Module, data: LabelledImages, *, seed: int) -> Key:
        half = self.triggers // 2
        fooled: list[tuple[Tensor, Tensor]] = []
        kept: list[tuple[Tensor, Tensor]] = []
        for images, labels in data.loader(250, seed=seed):
            right = answers(model, images).argmax(1) == labels
            moved = fast_gradient_sign(model, images[right], labels[right], self.strength)
            still = answers(model, moved).argmax(1) == labels[right]
            fooled += zip(moved[~still], labels[right][~still], strict=True)
            kept += zip(moved[still], labels[right][still], strict=True)
            if len(fooled) >= half and len(kept) >= self.triggers - half:
                break
        else:
            raise SchemeError(
                "too few examples on one side of the frontier",
                got=f"{len(fooled)} that fool the model, {len(kept)} that do not",
                expected=f"{half} and {self.triggers - half}",
                remedy="another strength=, fewer triggers=, or a model that is trained",
            )
        chosen = fooled[:half] + kept[: self.triggers - half]
        inputs, labels = torch.stack([image for image, _ in chosen]), torch.stack([label for _, label in chosen])
        return Key(self, data.shape, {"inputs": inputs, "labels": labels})


def fast_gradient_sign(model: nn.Module, images: Tensor, labels: Tensor, strength: float) -> Tensor:
    """Images ``[n, C, H, W]`` moved by `strength` to where the model's loss rises, clipped to [0, 1], on the CPU."""
    inputs = images.to(device_of(model)).requires_grad_()
    with examined(model):
        (slope,) = torch.autograd.grad(F.cross_entropy(model(inputs), labels.to(inputs.device)), inputs)
    return (inputs.detach() + strength * slope.sign()).clamp(0, 1).cpu()


def abstract_pictures(number: int, shape: tuple[int, int, int], generator: torch.Generator) -> Tensor:
    """Pictures ``[number, C, H, W]`` in [0, 1] like no photograph: what a drawn network of sines makes of the plane."""
    channels, height, width = shape
    rows, columns = torch.linspace(-1, 1, height), torch.linspace(-1, 1, width)
    plane = torch.stack([*torch.meshgrid(rows, columns, indexing="ij"), torch.ones(height, width)], -1).reshape(-1, 3)
    pictures = []
    for _ in range(number):
        waves = torch.sin(plane @ (4 * torch.randn(3, 16, generator=generator)))
        waves = torch.sin(waves @ torch.randn(16, 16, generator=generator))
        pictures.append(torch.sigmoid(3 * waves @ torch.randn(16, channels, generator=generator)))
    return torch.stack(pictures).transpose(1, 2).reshape(number, *shape)
