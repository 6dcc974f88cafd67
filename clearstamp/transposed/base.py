"""What every readout makes of a model: keys in, images out."""

from abc import ABC, abstractmethod
from itertools import chain

import torch
from torch import Tensor, nn

from clearstamp.errors import TransposeError

PROBE_SEED = 2024


def public_probe(shape: tuple[int, ...]) -> Tensor:
    """The input ``[1, *shape]`` on which everything frozen is evaluated: uniform in [0, 1], from a published seed.

    Nothing frozen is the owner's choice: with as many free numbers as an image has pixels, any image could be painted
    on any model.
    """
    generator = torch.Generator("cpu").manual_seed(PROBE_SEED)
    return torch.rand(1, *shape, generator=generator, dtype=torch.float32, device="cpu")


class Transposed(ABC):
    """A model run backwards. It holds no weights of its own and never changes the model.

    Attributes:
        model: the forward model, whose weights every call reads.
        readout: the name of the readout.
        key_shape: the shape of one key, that of the model's output for one image.
        image_shape: the shape of one image that comes out, that of the model's input.
        dtype: the type of keys and images.
    """

    readout: str
    key_shape: tuple[int, ...]
    image_shape: tuple[int, ...]
    dtype: torch.dtype

    def __init__(self, model: nn.Module):
        self.model = model

    def __repr__(self) -> str:
        keys, images = (", ".join(map(str, ("k", *shape))) for shape in (self.key_shape, self.image_shape))
        return f"Transposed({type(self.model).__name__}, readout={self.readout!r}: keys [{keys}] -> images [{images}])"

    def __call__(self, keys: Tensor, *, dropout: float | None = None) -> Tensor:
        """Keys ``[k, *output]`` to images ``[k, *input]``, raw and unclamped, with gradients.

        Without `dropout` this is the deterministic readout, whatever mode the model is in. With a rate in ``[0, 1)`` it
        is a training walk. Neither is ever taken in a lower precision, also not under autocast. Raises
        `TransposeError` for keys of another shape or type.
        """
        if keys.shape[1:] != self.key_shape or keys.dim() == 0:
            expected = ", ".join(map(str, ("k", *self.key_shape)))
            raise TransposeError("keys do not fit the model's output", got=list(keys.shape), expected=f"[{expected}]")
        if dropout is not None and not 0 <= dropout < 1:
            raise TransposeError("dropout rate out of range", got=dropout, expected="0 <= rate < 1")
        if keys.dtype != self.dtype:
            raise TransposeError(
                "keys are not of the model's type", got=keys.dtype, expected=self.dtype, remedy=f"keys.to({self.dtype})"
            )
        with torch.autocast(keys.device.type, enabled=False):
            return self.images(keys, dropout)

    @abstractmethod
    def images(self, keys: Tensor, dropout: float | None) -> Tensor:
        """What a call gives for keys that fit."""

    @property
    def frozen(self) -> list[str]:
        """What is frozen, as a person finds it in the model."""
        return []

    @property
    def on_public_probe(self) -> bool:
        """Whether everything that is frozen is evaluated on the public probe, and nothing is the owner's choice."""
        return True

    @property
    def device(self) -> torch.device:
        """The device of the forward model."""
        first = next(chain(self.model.parameters(), self.model.buffers()), None)
        return torch.device("cpu") if first is None else first.device
