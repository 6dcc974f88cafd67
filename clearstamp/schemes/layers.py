"""Layers of a model by name: which there are, what they take in and what they give."""

from typing import Literal

import torch
from torch import Tensor, nn

from clearstamp.data import LabelledImages
from clearstamp.errors import SchemeError
from clearstamp.schemes.base import UnfitError, device_of
from clearstamp.transposed.graph import unwrapped
from clearstamp.units.channels import Layer
from clearstamp.units.spaces import layers

Side = Literal["input", "output"]
"""Which numbers of a layer are meant: those that it takes in, behind the ReLU before it, or those that it gives."""


def layer_named(model: nn.Module, name: str) -> Layer:
    """The linear or convolutional layer of this name. Raises `UnfitError` if there is none."""
    try:
        layer = unwrapped(model).get_submodule(name)
    except AttributeError as error:
        raise UnfitError("no layer of that name", got=name) from error
    if not isinstance(layer, Layer):
        raise UnfitError("a layer of another kind", got=type(layer).__name__, where=name)
    return layer


def name_at(model: nn.Module, data: LabelledImages, place: int) -> str:
    """The name of the linear or convolutional layer that runs at a place, from 0 on, or from -1 back.

    Raises `SchemeError` for a model with too few.
    """
    found = layers(model, torch.zeros(1, *data.shape, device=device_of(model)))
    if not -len(found) <= place < len(found):
        got = f"{len(found)} linear or convolutional layers"
        raise SchemeError("too few layers", got=got, where=f"place {place}", remedy="name one by layer=")
    return next(name for name, module in unwrapped(model).named_modules() if module is found[place])


def signals(model: nn.Module, name: str, images: Tensor, side: Side, *, at_once: int = 250) -> Tensor:
    """The numbers on one side of a layer, flat ``[n, numbers]``, for images ``[n, C, H, W]``, in the model's mode.

    Raises `UnfitError` if there is no such layer, or if it does not run once for a batch.
    """
    found: list[Tensor] = []

    def keep(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        found.append((inputs[0] if side == "input" else output).flatten(1).clone())  # a ReLU may overwrite it

    parts = images.to(device_of(model)).split(at_once)
    with layer_named(model, name).register_forward_hook(keep):
        for part in parts:
            unwrapped(model)(part)
    if [len(each) for each in found] != [len(part) for part in parts]:
        raise UnfitError("the layer does not run once for a batch", got=f"{len(found)} times", where=name)
    return torch.cat(found)
