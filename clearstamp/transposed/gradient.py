"""The exact readout: the picture of a key is the gradient of the model's answer to a probe that the key draws."""

import hashlib
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from clearstamp.errors import TransposeError
from clearstamp.transposed.base import Transposed, public_probe
from clearstamp.transposed.graph import Graph, Output, Selected, first_sentence, still_twin

ACTIVATIONS = frozenset(
    f"{name}{mark}"
    for name in ("relu", "relu6", "leaky_relu", "prelu", "elu", "selu", "celu", "gelu", "silu", "mish", "softplus")
    + ("tanh", "sigmoid", "hardtanh", "hardswish", "hardsigmoid")
    for mark in ("", "_")
)
"""The functions after which a training walk puts its dropout, by their names in torch."""


DARK, BRIGHT = -0.5, 1.5
"""The levels of a probe's blocks, about what normalisation makes of black and of white."""
GRAIN = 0.1
"""How much the numbers within a block differ, so that no two that are compared, as by max pooling, are equal."""
SHARE = 0.2
"""How likely a block of a probe is bright."""


def drawn_probes(keys: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The probe ``[k, *shape]`` of every key ``[k, *output]``: bright blocks in the dark, drawn from the key's hash.

    A key so is a pair of output vector and input, of which its owner chooses neither where the first is drawn (see
    `Seal`). Hashed by SHA-256 are its numbers as little-endian float32, so that a probe is the same on every machine.

    Pictures of keys whose probes excite the same units are linear in the output vectors, and then no more can be told
    apart than there are outputs. Few bright blocks excite other units each; noise in every pixel, which looks the same
    to a network whatever its seed, does not. Nor do levels near 0, at which a unit's bias decides whether it is silent.
    """
    about: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}
    blocks = block_counts(shape)
    probes = []
    for key in keys.detach().cpu().float():
        digest = hashlib.sha256(key.numpy().astype("<f4").tobytes()).digest()
        generator = torch.Generator("cpu").manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        bright = torch.rand(blocks, generator=generator, **about) < SHARE
        grain = GRAIN * torch.rand(shape, generator=generator, **about)
        for axis, (count, size) in enumerate(zip(blocks, shape, strict=True)):
            bright = bright.index_select(axis, torch.arange(size, device="cpu") * count // size)
        probes.append(torch.where(bright, BRIGHT - grain, DARK + grain))
    return torch.stack(probes)


def block_counts(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Into how many blocks each axis of a probe falls: 4 by 4 of a picture, 16 of a series, each channel by itself."""
    *outer, inner = shape
    if outer and outer[-1] >= 8:
        return (*outer[:-1], 4, min(inner, 4))
    return (*outer, min(inner, 16))


def centred(keys: Tensor) -> Tensor:
    """Keys ``[k, classes, ...]`` less their mean over the classes; those of a single class as they are.

    What is added to all logits alike, which no softmax lets through, then changes no picture.
    """
    return keys if keys.dim() < 2 or keys.shape[1] == 1 else keys - keys.mean(1, keepdim=True)


class Gradient(Transposed):
    """A model run backwards by calculus: the image of key u is J(x)ᵀu, with the Jacobian J at the key's probe x.

    It needs no rule and no capture, so that every differentiable model has it, recurrent ones too; and whatever leaves
    the function of a model as it is leaves its images. Keys are taken `centred`, and of a model that ends in a softmax
    the logarithm, so that its probabilities show what its logits do. In a training walk there is dropout of the given
    rate after every activation.

    Raises `TransposeError` if the model cannot be called, if it mixes the images of a batch, or if its answer does not
    change with its input. The first call that is to be trained raises it, with the operation's name, if the model
    cannot be differentiated twice, or if no weight changes its images.
    """

    readout = "gradient"

    def __init__(self, model: nn.Module, example: Tensor | Graph, output: Output = None):
        super().__init__(model)
        if isinstance(example, Graph):
            output, image = example.selected, example.input.meta["val"]
        else:
            image = example
        self.image_shape = tuple(image.shape[1:])
        self._type: torch.dtype = image.dtype
        self._still = Selected(still_twin(model), output)
        self._probabilities = False
        self._trainable = False
        self._drawn: tuple[Tensor, int, Tensor] | None = None
        with torch.autocast(self.device.type, enabled=False):
            self._try_out()

    def images(self, keys: Tensor, dropout: float | None) -> Tensor:
        if not self._trainable and torch.is_grad_enabled() and self._weights():
            self._try_training(keys[:1])
        return self._pictures(self.probes(keys), keys, dropout, torch.is_grad_enabled())

    def probes(self, keys: Tensor) -> Tensor:
        """The probe of every key ``[k, *input]``, as the model takes it; kept for the keys of the last call."""
        if self._drawn is None or self._drawn[0] is not keys or self._drawn[1] != keys._version:
            probes = drawn_probes(keys, self.image_shape).to(self.device, self._type)
            self._drawn = keys, keys._version, probes
        return self._drawn[2]

    def _pictures(
        self,
        probes: Tensor,
        keys: Tensor,
        dropout: float | None,
        differentiable: bool,
        weights: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        thinned: AbstractContextManager[Any] = Thinned(dropout) if dropout else nullcontext()
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH), thinned:  # the others have no second derivative
            probes = probes.detach().requires_grad_()
            answers = self._answers(probes, weights)
            return torch.autograd.grad(answers, probes, centred(keys), create_graph=differentiable)[0]

    def _answers(self, images: Tensor, weights: Mapping[str, Tensor] | None = None) -> Tensor:
        """What the model answers in evaluation mode, by its own weights or by others: logits if it has any."""
        named = dict(self.model.named_buffers()) | dict(self.model.named_parameters()) | dict(weights or {})
        answers: Tensor = functional_call(self._still, {f"model.{n}": value for n, value in named.items()}, (images,))
        return answers.log() if self._probabilities else answers

    def _weights(self) -> dict[str, nn.Parameter]:
        """The weights that training may change, by name."""
        return {name: weight for name, weight in self.model.named_parameters() if weight.requires_grad}

    def _try_out(self) -> None:
        """See what the model answers to two probes, and whether they can be told apart."""
        probe = public_probe(self.image_shape).to(self.device, self._type)
        probes = torch.cat([probe, 1 - probe])
        try:
            with torch.no_grad():
                answers = self._answers(probes)
        except TransposeError:
            raise
        except Exception as error:
            raise TransposeError(
                "the model cannot be called",
                got=f"an input {list(probes.shape)}: {type(error).__name__}: {first_sentence(error)}",
                where=type(self.model).__name__,
                remedy="give an example of the shape, type and device that the model takes",
            ) from error
        if answers.shape[:1] != (2,) or not answers.is_floating_point():
            raise TransposeError("the model's output has not one row of numbers per image", got=list(answers.shape))
        self.key_shape, self.dtype = tuple(answers.shape[1:]), answers.dtype
        self._probabilities = sums_to_one(answers)
        keys = varied(answers)
        try:
            both = self._pictures(probes, keys, None, False)
            alone = self._pictures(probes[:1], keys[:1], None, False)
        except RuntimeError as error:
            raise TransposeError(
                "the model's output does not follow from its input by operations that have a derivative",
                got=first_sentence(error),
                where=type(self.model).__name__,
            ) from error
        if not both.isfinite().all():
            raise TransposeError("the model's gradient is not finite", where=type(self.model).__name__)
        if (both[:1] - alone).abs().max() > 1e-3 * both.abs().max():
            raise TransposeError("the model mixes the images of a batch", where=type(self.model).__name__)

    def _try_training(self, keys: Tensor) -> None:
        """Differentiate one picture by copies of the weights; all of it, since a part may fail that others hide."""
        copies = {name: weight.detach().clone().requires_grad_() for name, weight in self._weights().items()}
        keys = keys.detach().clone()
        picture = self._pictures(self.probes(keys), keys.requires_grad_(), None, True, copies)
        try:
            if picture.requires_grad:
                (picture * varied(picture)).sum().backward()
        except RuntimeError as error:
            raise TransposeError(
                "the model cannot be differentiated twice",
                got=first_sentence(error),
                where=type(self.model).__name__,
                remedy="read its stamp under torch.no_grad(); train it with this operation written in others",
            ) from error
        if not any(copy.grad is not None and bool(copy.grad.any()) for copy in copies.values()):
            raise TransposeError(
                "no weight changes the pictures: the model's second derivatives vanish",
                where=type(self.model).__name__,
            )
        self._trainable = True


class Thinned(TorchFunctionMode):
    """While it is entered, dropout follows every activation."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        value = func(*args, **(kwargs or {}))
        return F.dropout(value, self.rate) if getattr(func, "__name__", "") in ACTIVATIONS else value


def varied(like: Tensor) -> Tensor:
    """Numbers from -1 to 2, no two of them equal."""
    return torch.linspace(-1, 2, like.numel()).reshape(like.shape).to(like)


def sums_to_one(answers: Tensor) -> bool:
    """Whether answers ``[n, classes, ...]`` are probabilities."""
    if answers.dim() < 2 or answers.shape[1] == 1:
        return False
    return bool((answers >= 0).all()) and bool(((answers.sum(1) - 1).abs() < 1e-3).all())
