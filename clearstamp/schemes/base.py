"""The contract of every watermark: key material is drawn, embedded, extracted from a suspect, and judged."""

import copy
import hashlib
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from types import UnionType
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from clearstamp.data import Batches, LabelledImages
from clearstamp.errors import SchemeError
from clearstamp.evidence import chance
from clearstamp.files import checksum, write_atomically
from clearstamp.registered import register
from clearstamp.training.loops import fit
from clearstamp.training.schedules import Joint, Schedule
from clearstamp.training.steps import MakeOptimizer, adam
from clearstamp.transposed.graph import Graph
from clearstamp.units.spaces import Graphs

FORMAT, VERSION = "clearstamp-key", 1
LARGEST = 2**26
"""The most numbers in an input, so that no key file can ask for all memory."""
ALPHA = 1e-6
"""A claim that an unrelated model supports less often than this counts, if not said otherwise."""

LATER = {"later": True}
"""The metadata of a setting, by default None, that a scheme did not always have: the digests of older keys hold."""

Access = Literal["labels", "scores", "weights"]
"""What of a suspect its owner must have: the classes that it answers, its logits, or its weights."""


@dataclass(frozen=True, eq=False)
class Evidence:
    """What a judge reads out of one suspect.

    Attributes:
        score: the share of bits, labels or units that match; or SSIM, or a correlation.
        trials: how many of them there are; 0 where no model could be read.
        p: how often an unrelated model scores as high, by the drawing of the key; nan where only models can tell.
        payload: the message that was read, the first bit the highest of its byte; None where there is none.
        pictures: what a person may look at ``[k, C, H, W]``; None where there is nothing to see.
        queries: the inputs that the suspect had to answer.
        detail: what a scheme has beyond this: the `Reading` of a stamp, the units that were changed.
    """

    score: float
    trials: int
    p: float
    payload: bytes | None = None
    pictures: Tensor | None = None
    queries: int = 0
    detail: Any = None


NOTHING = Evidence(0.0, 0, 1.0)
"""What is read out of a suspect that does not fit the key."""


@dataclass(frozen=True, eq=False)
class Judgement:
    """What a claim of ownership comes to.

    Attributes:
        evidence: what was read.
        accepted: whether it supports the claim.
        alpha: the greatest p of an accepted claim.
        threshold: the least score of one, where p is nan.
        highest_null: the highest score that the same key has on a model without a mark; nan if none was given.
    """

    evidence: Evidence
    accepted: bool
    alpha: float
    threshold: float
    highest_null: float


@dataclass(frozen=True, eq=False)
class Key:
    """Key material: everything that an owner deposits. No more is needed to verify, and whoever has it can forge.

    Attributes:
        scheme: by which it was drawn, with its settings.
        shape: of one input of the marked model, (C, H, W).
        tensors: triggers, labels, matrices, positions, bits, whatever the scheme draws, on the CPU.
        settings: what is not a tensor, such as a layer's name, as JSON holds it.

    Raises `SchemeError` for a shape that no input has.
    """

    scheme: "Scheme"
    shape: tuple[int, ...]
    tensors: dict[str, Tensor]
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        sizes = self.shape and all(type(size) is int and size > 0 for size in self.shape)
        if not sizes or math.prod(self.shape) > LARGEST:
            expected = f"whole numbers above 0, and a product of at most {LARGEST}"
            raise SchemeError("not the shape of an input", got=self.shape, expected=expected)

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    @property
    def about(self) -> dict[str, Any]:
        """All that is not a tensor."""
        return {"scheme": self.scheme.about, "shape": list(self.shape), "settings": self.settings}

    def commitment(self, nonce: bytes) -> str:
        """The SHA-256 in hexadecimal to publish before training; whoever later shows key and nonce had them then."""
        return hashlib.sha256(nonce + self.digest.encode()).hexdigest()

    @property
    def digest(self) -> str:
        """The SHA-256 of everything in it, in hexadecimal."""
        return checksum([json.dumps(self.about, sort_keys=True)], self.tensors)

    def save(self, path: str | Path) -> None:
        """Write one ``.safetensors`` file, readable by its owner alone."""
        tensors = {name: tensor.contiguous() for name, tensor in self.tensors.items()}
        about = self.about | {"version": VERSION, "digest": self.digest}
        write_atomically(Path(path), save(tensors, {FORMAT: json.dumps(about)}), mode=0o600)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what `save` wrote. Nothing is unpickled. Raises `SchemeError` for anything else."""
        try:
            with safe_open(path, framework="pt") as file:
                about = json.loads((file.metadata() or {})[FORMAT])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            if about["version"] != VERSION:
                raise SchemeError("unknown version of the key format", got=about["version"], expected=VERSION)
            key = cls(scheme(**about["scheme"]), tuple(about["shape"]), tensors, dict(about["settings"]))
            if key.digest != about["digest"]:
                raise SchemeError("the key was changed or damaged after it was written: wrong checksum", where=path)
        except SchemeError:
            raise
        except Exception as error:  # a stranger's file may bring about any
            got = f"{type(error).__name__}: {error}"
            raise SchemeError("not a readable key file", got=got, where=path, expected="what Key.save wrote") from error
        return key


@dataclass(frozen=True, kw_only=True)
class Scheme(ABC):
    """One way to mark a model. Its fields are its hyper-parameters, by default the published ones.

    A subclass implements `draw` and `read`, and whatever it needs of `prepare`, `batches`, `loss`, `after_step` and
    `finish`; it is found in `SCHEMES` by its name.
    """

    name: ClassVar[str]
    access: ClassVar[Access]
    readable: ClassVar[bool] = False
    """Whether a person can recognise what comes out of the model."""
    fragile: ClassVar[bool] = False
    """Whether any change is to break the mark, which then proves integrity in the place of ownership."""
    needs_trained: ClassVar[bool] = False
    """Whether key material is drawn from a model that has learnt its task."""
    mixed: ClassVar[bool] = False
    """Whether key samples ride in the task's own batches, so that `loss` takes no steps of its own."""
    bits_each: ClassVar[int] = 0
    """How many bits of a message each trial reads; 0 where none can be read back."""
    threshold: ClassVar[float] = 0.9
    """The least score of an accepted claim where p is nan."""

    def __init_subclass__(cls) -> None:
        register(cls, SCHEMES)

    def __post_init__(self) -> None:
        """Raise `SchemeError` for a setting of another type than its field's, or a number that is negative or none."""
        for each in fields(self):
            value, where = getattr(self, each.name), f"{each.name} of {self.name}"
            kind = each.type if isinstance(each.type, type | UnionType) else type(each.default)
            kind = kind | int if kind is float else kind
            if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
                raise SchemeError("settings of another type", got=type(value).__name__, expected=kind, where=where)
            if isinstance(value, int | float) and not 0 <= value < math.inf:
                raise SchemeError("settings out of range", got=value, expected="finite, at least 0", where=where)

    @property
    def about(self) -> dict[str, Any]:
        """Name and settings, as `scheme` takes them, without those that are `LATER` and as if they did not exist."""
        later = {each.name for each in fields(self) if each.metadata == LATER and getattr(self, each.name) is None}
        return {"name": self.name} | {name: value for name, value in asdict(self).items() if name not in later}

    @property
    def schedule(self) -> Schedule:
        """When training steps on `loss`."""
        return Joint(every=1)

    @abstractmethod
    def draw(self, model: nn.Module, data: LabelledImages, *, seed: int) -> Key:
        """Key material for a model and its training images: the same from the same seed. The model stays as it is.

        Raises `SchemeError` for a model or data that the scheme cannot mark.
        """

    def prepare(self, model: nn.Module, data: LabelledImages, key: Key) -> None:  # noqa: B027 (a hook)
        """What comes before training: hardening, setting weights that are then locked, widening the head."""

    def batches(self, model: nn.Module, loader: Batches, key: Key) -> Batches:
        """The batches to train on in the place of the loader's."""
        return loader

    def loss(self, model: nn.Module, data: LabelledImages, key: Key) -> Callable[[], Tensor] | None:
        """The loss of the mark, a scalar for any training loop; None if the scheme has none."""
        return None

    def after_step(self, model: nn.Module, key: Key) -> None:  # noqa: B027 (a hook)
        """What comes after each optimizer step, such as putting locked weights back."""

    def finish(self, model: nn.Module, data: LabelledImages, key: Key) -> None:  # noqa: B027 (a hook)
        """What comes after training."""

    def completed(self, key: Key, batches: Batches) -> Key:
        """The key to deposit after training on what `batches` gave: the same one, unless that brought more of it."""
        return key

    def embed(
        self,
        model: nn.Module,
        data: LabelledImages,
        key: Key,
        *,
        epochs: int = 5,
        lr: float = 1e-4,
        batch_size: int = 64,
        optimizer: MakeOptimizer = adam,
        seed: int = 0,
        progress: bool = True,
    ) -> Key:
        """Train the model on its task from here, and mark it.

        Returns the key to deposit (see `completed`). Raises `TrainingError` as `fit` does, and `SchemeError` for images
        of another shape than the key's.
        """
        self.check(key, data)
        self.prepare(model, data, key)
        loss = None if self.mixed else self.loss(model, data, key)
        batches = self.batches(model, data.loader(batch_size, seed=seed), key)
        fit(
            model,
            batches,
            epochs=epochs,
            lr=lr,
            optimizer=optimizer,
            stamp_loss=loss and in_full_precision(loss, device_of(model)),
            schedule=self.schedule,
            after_step=lambda: self.after_step(model, key),
            progress=progress,
        )
        self.finish(model, data, key)
        return self.completed(key, batches)

    def forge(self, model: nn.Module, data: LabelledImages, *, seed: int) -> Key:
        """Key material that fits a model without a mark as well as an accuser can make it, once the model is at hand.

        A commitment dated before the model was published rules it out. By default, and where nothing better is known,
        what `draw` draws. Raises `SchemeError` as `draw` does.
        """
        return self.draw(model, data, seed=seed)

    @abstractmethod
    def read(self, suspect: nn.Module, key: Key) -> Evidence:
        """What `extract` returns, of a suspect in evaluation mode. Raises `UnfitError` for one that does not fit."""

    def extract(self, suspect: nn.Module, key: Key) -> Evidence:
        """What the key reads out of a suspect, which stays as it is, to its modes and the random generators.

        A suspect that does not fit the key, not even in float32, scores 0 at p = 1. Raises `SchemeError` for the key of
        another scheme, or one that lacks what this scheme draws, and for a suspect that is no module.
        """
        self.check(key)
        if not isinstance(suspect, nn.Module):
            remedy = "put an interface into a module that answers logits"
            raise SchemeError("a suspect that is no module", got=type(suspect).__name__, remedy=remedy)
        for model in precisions(suspect):
            try:
                with examined(model):
                    return self.read(model, key)
            except UnfitError:
                continue
            except (SchemeError, torch.OutOfMemoryError, MemoryError):
                raise
            except Exception as error:  # of a stranger's key
                got = f"{type(error).__name__}: {error}"
                raise SchemeError("nothing can be read: the key or the suspect is damaged", got=got) from error
        return NOTHING

    def reader(self, key: Key, graphs: Graphs) -> Callable[[nn.Module], Evidence]:
        """`extract` for many models, of which `graphs` has the captures."""
        return lambda suspect: self.extract(suspect, key)

    def verify(
        self, suspect: nn.Module, key: Key, *, alpha: float = ALPHA, null: Sequence[nn.Module] = ()
    ) -> Judgement:
        """Judge the claim that a suspect holds the mark of this key.

        It is accepted for a p of at most `alpha`. Where p is nan the score decides, which is a convention: it has to
        reach `threshold`, and to lie nearer to 1 than to the best of the models in `null`, which have no mark. Where
        all labels of a key are the same, a suspect that always answers that one reaches it too, so that its accuracy
        has to be looked at as well. Raises `SchemeError` as `extract` and `judge` do.
        """
        if isinstance(null, nn.Module):
            raise SchemeError("one model in the place of several", got=type(null).__name__, remedy="null=[model]")
        highest = max((self.extract(model, key).score for model in null), default=math.nan)
        return self.judge(self.extract(suspect, key), alpha=alpha, highest_null=highest)

    def judge(self, evidence: Evidence, *, alpha: float = ALPHA, highest_null: float = math.nan) -> Judgement:
        """The verdict of `verify` on what was read, with the highest score on a model without a mark, nan for none.

        Raises `SchemeError` for an `alpha` that is not between 0 and 1.
        """
        if not 0 < alpha < 1:
            raise SchemeError("alpha out of range", got=alpha, expected="above 0, below 1")
        accepted = evidence.p <= alpha
        if math.isnan(evidence.p):
            accepted = evidence.score >= self.threshold and not evidence.score <= (1 + highest_null) / 2
        return Judgement(evidence, accepted, alpha, self.threshold, highest_null)

    def queries(self, key: Key) -> Tensor | None:
        """The inputs ``[n, C, H, W]`` that the owner asks a suspect; None where the weights are read."""
        return None

    def check(self, key: Key, data: LabelledImages | None = None) -> None:
        """Raise `SchemeError` unless the key was drawn by this scheme, with these settings, and for such images."""
        if (got := getattr(key, "scheme", key)) != self:
            raise SchemeError("a key of another scheme", got=got, expected=self, remedy="use key.scheme")
        if data is not None and tuple(data.shape) != key.shape:
            raise SchemeError("images of another shape", got=data.shape, expected=key.shape)


SCHEMES: dict[str, type[Scheme]] = {}
"""Every scheme by its name."""


def scheme(name: str, **settings: Any) -> Scheme:
    """The scheme of this name, with settings as JSON holds them. Raises `SchemeError` for unknown ones."""
    if name not in SCHEMES:
        raise SchemeError("unknown scheme", got=repr(name), expected=", ".join(SCHEMES))
    known = {f.name: f.default for f in fields(SCHEMES[name])}
    if unknown := set(settings) - set(known):
        raise SchemeError("unknown settings", got=", ".join(sorted(unknown)), expected=", ".join(known), where=name)
    tuples = {name: tuple(value) for name, value in settings.items() if isinstance(known[name], tuple)}
    return SCHEMES[name](**settings | tuples)


@dataclass(frozen=True, eq=False)
class Mark:
    """A mark as attacks meet it: its key, and what its owner makes of a suspect before reading.

    Attributes:
        key: the owner's.
        owner: from a suspect and its graph makes the model that is read, such as `clearstamp.units.canonical.merged`.
    """

    key: Key
    owner: Callable[[nn.Module, Graph], nn.Module] | None = None

    @property
    def scheme(self) -> Scheme:
        """By which the model was marked."""
        return self.key.scheme


class UnfitError(SchemeError):
    """A suspect that the key cannot be read out of: another shape, other layers, answers of another kind."""


def precisions(suspect: nn.Module) -> Iterator[nn.Module]:
    """The suspect, then a copy in float32 if it is of another precision, in which it may not take a key's inputs."""
    yield suspect
    tensors = (*suspect.parameters(), *suspect.buffers())
    if any(tensor.is_floating_point() and tensor.dtype != torch.float32 for tensor in tensors):
        yield copy.deepcopy(suspect).float()


@contextmanager
def examined(suspect: nn.Module) -> Iterator[None]:
    """A context with the suspect in evaluation mode and full precision, after which everything is as it was."""
    modes = {module: module.training for module in suspect.modules()}
    device = device_of(suspect)
    suspect.eval()
    try:
        with (
            torch.random.fork_rng([device] if device.type == "cuda" else []),
            torch.autocast(device.type, enabled=False),
            torch.inference_mode(False),  # in which there are no slopes
        ):
            yield
    finally:
        for module, training in modes.items():
            module.training = training


def in_full_precision(loss: Callable[[], Tensor], device: torch.device) -> Callable[[], Tensor]:
    """A loss that autocast leaves alone."""

    def measured() -> Tensor:
        with torch.autocast(device.type, enabled=False):
            return loss()

    return measured


def device_of(model: nn.Module) -> torch.device:
    """Where a model is; the CPU for one without tensors."""
    return next((tensor.device for tensor in (*model.parameters(), *model.buffers())), torch.device("cpu"))


def answers(suspect: nn.Module, inputs: Tensor, *, at_once: int = 250) -> Tensor:
    """What a suspect answers in evaluation mode to inputs ``[n, C, H, W]``: ``[n, outputs]`` in float32 on the CPU.

    Raises `UnfitError` if it does not take them, or answers in another form.
    """
    device = device_of(suspect)
    with strangers(), examined(suspect), torch.no_grad():
        found = torch.cat([suspect(part.to(device)).float().cpu() for part in inputs.split(at_once)])
    if found.dim() != 2 or len(found) != len(inputs) or found.shape[1] == 0:
        raise UnfitError("answers of another form", got=list(found.shape), expected=f"[{len(inputs)}, outputs]")
    return found


def outputs_of(model: nn.Module, data: LabelledImages) -> int:
    """How many outputs a model has for such images. Raises `UnfitError` as `answers` does."""
    return answers(model, torch.zeros(1, *data.shape)).shape[1]


def labels_of(suspect: nn.Module, inputs: Tensor) -> Tensor:
    """The class ``[n]`` that a suspect answers to each input, as by `answers`; -1 for an answer that holds a NaN."""
    found = answers(suspect, inputs)
    return found.argmax(1).masked_fill(found.isnan().any(1), -1)


@contextmanager
def strangers() -> Iterator[None]:
    """A context in which whatever a stranger's model raises is an `UnfitError`, but for a lack of memory."""
    try:
        yield
    except (UnfitError, torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:
        raise UnfitError("the suspect does not answer such inputs", got=f"{type(error).__name__}: {error}") from error


def images_of(data: LabelledImages, label: int) -> Tensor:
    """All images of one class ``[n, C, H, W]``, as the model takes them. Raises `SchemeError` if there is none."""
    found = torch.cat([images[labels == label] for images, labels in data.loader(250)])
    if len(found) == 0:
        raise SchemeError("no image of that class", got=label, expected=f"0 to {data.classes - 1}")
    return found


def matching(right: int, of: int, one_in: int) -> float:
    """The chance that at least so many of independent draws match, each with probability 1 / `one_in`."""
    return float(chance.binomial(right, of, one_in))


def agreement(found: Tensor, wanted: Tensor) -> tuple[int, int]:
    """How many of the bits or labels ``[n]`` that were found a key wants, and n.

    Raises `SchemeError` for a key that wants none, or another number of them.
    """
    if found.dim() != 1 or found.shape != wanted.shape or len(found) == 0:
        got = f"{list(found.shape)} to read, {list(wanted.shape)} wanted"
        raise SchemeError("a key whose parts do not fit each other", got=got, expected="[n] and [n], n >= 1")
    return int((found == wanted).sum()), len(wanted)


def drawn_bits(count: int, generator: torch.Generator) -> Tensor:
    """A message of so many bits ``[count]``, uint8. Raises `SchemeError` for none."""
    if count < 1:
        raise SchemeError("number of bits out of range", got=count, expected="at least 1")
    return torch.randint(2, (count,), generator=generator, dtype=torch.uint8)


def read_message(signals: Tensor, bits: Tensor, **about: Any) -> Evidence:
    """The evidence of a drawn message ``[bits]``, of which each bit is read as the sign of a signal ``[bits]``."""
    found = (signals > 0).to(torch.uint8)
    right, of = agreement(found.masked_fill(signals.isnan(), 2), bits)  # a NaN shows neither bit
    return Evidence(right / of, of, matching(right, of, 2), np.packbits(found.numpy()).tobytes(), **about)


def message_loss(key: Key, numbers: Tensor, *, reduction: str = "sum") -> Tensor:
    """The cross-entropy of a key's bits, given the projections of `numbers` ``[m]`` as logits."""
    bits = key["bits"].to(numbers)
    return F.binary_cross_entropy_with_logits(key["projection"].to(numbers) @ numbers, bits, reduction=reduction)


def read_projections(key: Key, numbers: Tensor, **about: Any) -> Evidence:
    """As `read_message`, each signal a projection of `numbers` ``[m]``. Raises `UnfitError` if there are not m."""
    if len(numbers) != key["projection"].shape[1]:
        raise UnfitError("a layer of another size", got=len(numbers), expected=key["projection"].shape[1])
    return read_message(key["projection"] @ numbers, key["bits"], **about)


def turned(key: Key, numbers: Tensor) -> Key:
    """The key with every row of its projection turned about that reads `numbers` as the wrong bit.

    Drawn symmetrically about 0, a turned row looks like any other: how a forger makes bits fit a model.
    """
    wrong = (key["projection"] @ numbers > 0) != key["bits"].bool()
    projection = torch.where(wrong[:, None], -key["projection"], key["projection"])
    return replace(key, tensors=key.tensors | {"projection": projection})


def size_of(data: LabelledImages) -> int:
    """How many images there are."""
    return sum(len(labels) for _, labels in data.loader(250))


def training_images(data: LabelledImages, count: int, *, seed: int, label: int | None = None) -> tuple[Tensor, Tensor]:
    """The first `count` images ``[n, C, H, W]`` and labels of a shuffled set, of one class if `label` says which.

    Raises `SchemeError` if there are fewer.
    """
    images, labels, found = [], [], 0
    for some, of in data.loader(250, seed=seed):
        chosen = slice(None) if label is None else of == label
        images.append(some[chosen])
        labels.append(of[chosen])
        found += len(labels[-1])
        if found >= count:
            return torch.cat(images)[:count], torch.cat(labels)[:count]
    of_class = "" if label is None else f" of class {label}"
    raise SchemeError(f"too few images{of_class}", got=found, expected=count)


def driven(model: nn.Module, images: Tensor, labels: Tensor, *, steps: int = 50, lr: float = 0.02) -> Tensor:
    """Images ``[n, C, H, W]`` changed until a model answers them with `labels`, as far as it does, in [0, 1]."""
    device = device_of(model)
    inputs, labels = images.to(device).clone(), labels.to(device)
    with examined(model):
        for _ in range(steps):
            inputs.requires_grad_()
            (slope,) = torch.autograd.grad(F.cross_entropy(model(inputs), labels), inputs)
            inputs = (inputs.detach() - lr * slope.sign()).clamp(0, 1)
    return inputs.cpu()
