"""The two ways in: a model run backwards by a readout, and what the paper freezes of one."""

from collections.abc import Mapping

from torch import Tensor, nn

from clearstamp.errors import TransposeError
from clearstamp.transposed.base import Transposed
from clearstamp.transposed.gradient import Gradient
from clearstamp.transposed.graph import Graph, Output, capture, unwrapped
from clearstamp.transposed.rules import READOUTS, Readout
from clearstamp.transposed.walk import Walked

NAMES = (*READOUTS, Gradient.readout)
"""The name of every readout."""


def transpose(
    model: nn.Module,
    example: Tensor | Graph,
    *,
    readout: str | Readout = "adjoint",
    output: Output = None,
    frozen: Mapping[str, Tensor] | None = None,
) -> Transposed:
    """The model run backwards: a callable from keys ``[k, *output]`` to images ``[k, *input]``.

    `example` is any input batch ``[n, *input]`` that the model accepts; only its shape, type and device matter. Or it
    is what `clearstamp.transposed.graph.capture` made of one, which serves every readout and every model of an
    architecture. The model is captured once with `torch.export` and never changed; weights are read at every call, so
    gradients reach the forward model. `readout` is ``"adjoint"``, as this library recommends, ``"paper"``, as
    published, or ``"gradient"``, which needs neither capture nor rules (see `clearstamp.transposed.gradient`). Wrappers
    for data parallelism, averaging and compilation are seen through. A model that ends in a softmax is read from its
    logits on.

    Of several outputs the first one of a tuple, or what is called ``logits``, is meant, or what `output` says: a name,
    a position, or a function of what the model returns. A `Tap` names a layer at whose output keys enter instead, so
    that a stolen model with another head can be read.

    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    >>> back = transpose(model, torch.zeros(1, 1, 28, 28))
    >>> back(torch.ones(3, 10)).shape
    torch.Size([3, 1, 28, 28])

    Where two values that depend on the input are multiplied, and in the ``paper`` readout where they are added, one of
    them is frozen: at what the current weights give on the `public_probe`, or in the ``paper`` readout at the values
    `frozen` that another model had there (see `freeze`), as published.

    Raises `TransposeError` if the readout is unknown, if the model cannot be captured, if `frozen` does not fit, or,
    naming **all** of them at once, if the model holds operations without a rule.
    """
    model = unwrapped(model)
    if readout == Gradient.readout:
        if frozen:
            raise TransposeError("the 'gradient' readout freezes nothing", got=sorted(frozen))
        return Gradient(model, example, output)
    rules = readout if isinstance(readout, Readout) else READOUTS.get(readout)
    if rules is None:
        raise TransposeError("unknown readout", got=repr(readout), expected=" or ".join(map(repr, NAMES)))
    graph = example if isinstance(example, Graph) else capture(model, example, output)
    return Walked(model, graph, rules, frozen)


def freeze(model: nn.Module, example: Tensor | Graph, *, output: Output = None) -> dict[str, Tensor]:
    """The values of `model` on the public probe wherever the ``paper`` readout freezes one, by their place.

    The paper takes them from a model that was trained a few epochs without a stamp; a `Stamp` keeps them as a part of
    the key. A model without additions and products has none. Raises `TransposeError` as `transpose` does.
    """
    graph = example if isinstance(example, Graph) else capture(model, example, output)
    return Walked(unwrapped(model), graph, READOUTS["paper"]).frozen_values()
