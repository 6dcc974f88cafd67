"""Checkpoints of a training: everything that decides how it goes on, so that it ends as if it had never stopped."""

import io
import pickle
import random
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FunctionType, MethodType, ModuleType
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from clearstamp.errors import TrainingError
from clearstamp.files import checksum, write_atomically

Randomness = torch.Generator | np.random.Generator | random.Random
OPAQUE = (str, bytes, int, float, type, FunctionType, MethodType, ModuleType, Tensor, np.ndarray)
"""In these no generator is looked for."""


class Stateful(Protocol):
    """Whatever has a state of tensors and plain values."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Checkpoint:
    """The state of one run in a file, written whole or not at all, and read without executing anything.

    It holds the weights and buffers of `model`, the states of `parts`, and the global generators of random numbers with
    those that `sources` have. `about` says what decides the run, beside the weights that it begins with: a checkpoint
    with other values is another run's.
    """

    def __init__(
        self,
        path: Path | str,
        model: nn.Module,
        parts: Mapping[str, Stateful],
        sources: Sequence[object],
        about: Mapping[str, object],
    ):
        self.path, self.model, self.parts = Path(path), model, parts
        self.generators = randomness(sources)
        self.run = {name: described(value) for name, value in about.items()}
        self.run |= {"first weights": checksum((), tensors(model)), "generators": str(len(self.generators))}
        self.saved = time.monotonic()

    def resume(self) -> int:
        """Take up what was saved; the step, 0 if there is no file.

        Raises `TrainingError` if the file is damaged, or another run's.
        """
        if not self.path.exists():
            return 0
        weights = tensors(self.model)
        try:
            kept = torch.load(self.path, map_location=next(iter(weights.values())).device, weights_only=True)
            run, state = kept["run"], kept["state"]
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, KeyError, TypeError) as error:
            remedy = "remove the file to begin anew"
            raise TrainingError(
                "not a whole checkpoint", got=type(error).__name__, where=self.path, remedy=remedy
            ) from error
        other = [name for name in sorted(run.keys() | self.run.keys()) if run.get(name) != self.run.get(name)]
        if other:
            raise TrainingError(
                "the checkpoint of another run",
                got=", ".join(f"{name} {run.get(name)}" for name in other),
                expected=", ".join(f"{name} {self.run.get(name)}" for name in other),
                where=self.path,
                remedy="call with the same arguments on the same weights, or remove the file to begin anew",
            )
        with torch.no_grad():
            for name, tensor in weights.items():
                tensor.copy_(state["model"][name])
        for name, part in self.parts.items():
            part.load_state_dict(state[name])
        set_state(self.generators, state["generators"])
        return state["step"]

    def save(self, step: int, *, unless_younger: float = 0.0) -> None:
        """Put the state after this step in the place of the one before, unless that is younger than so many seconds."""
        if time.monotonic() - self.saved < unless_younger:
            return
        state: dict[str, Any] = {name: part.state_dict() for name, part in self.parts.items()}
        state |= {"step": step, "model": tensors(self.model), "generators": get_state(self.generators)}
        content = io.BytesIO()
        torch.save({"run": self.run, "state": state}, content)
        write_atomically(self.path, content.getvalue())
        self.saved = time.monotonic()


def described(value: object) -> str:
    """An argument in words that are the same in every process: no address."""
    return " ".join(re.sub(r" at 0x[0-9a-f]+", "", repr(value)).split())


def tensors(model: nn.Module) -> dict[str, Tensor]:
    """The weights and all buffers of a model by name, not copied."""
    return {name: tensor.detach() for name, tensor in (*model.named_parameters(), *model.named_buffers())}


def randomness(source: object) -> list[Randomness]:
    """Every generator of torch, numpy or Python in what something holds, and so on; always in the same order."""
    found: list[Randomness] = []
    seen: dict[int, object] = {}
    todo = [source]
    while todo:
        thing = todo.pop()
        if id(thing) in seen or isinstance(thing, OPAQUE):
            continue
        seen[id(thing)] = thing  # kept alive, so that no other object gets its id
        if isinstance(thing, Randomness):
            found.append(thing)
        else:
            todo += within(thing)
    return found


def within(thing: object) -> Iterator[object]:
    """What a container or an object holds."""
    if isinstance(thing, Mapping):
        yield from thing.values()
    elif isinstance(thing, (list, tuple)):
        yield from thing
    else:
        yield from getattr(thing, "__dict__", {}).values()


def get_state(generators: list[Randomness]) -> dict[str, Any]:
    """The states of these generators, and of the global ones of torch, numpy and Python."""
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": plain(np.random.get_state(legacy=False)),
        "python": random.getstate(),
        "own": [state_of(generator) for generator in generators],
    }


def set_state(generators: list[Randomness], state: Mapping[str, Any]) -> None:
    """Put these generators and the global ones back to where they were."""
    torch.set_rng_state(state["torch"].cpu())
    if torch.cuda.is_available():
        torch.cuda.set_rng_state_all([own.cpu() for own in state["cuda"]])
    np.random.set_state(state["numpy"])
    random.setstate(state["python"])
    for generator, own in zip(generators, state["own"], strict=True):
        if isinstance(generator, torch.Generator):
            generator.set_state(own.cpu())
        elif isinstance(generator, random.Random):
            generator.setstate(own)
        else:
            generator.bit_generator.state = own


def state_of(generator: Randomness) -> Any:
    """The state of one generator, of tensors and plain numbers."""
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    return generator.getstate() if isinstance(generator, random.Random) else plain(generator.bit_generator.state)


def plain(state: Any) -> Any:
    """A state of numpy's with lists in the place of arrays, which numpy takes as well."""
    if isinstance(state, dict):
        return {name: plain(value) for name, value in state.items()}
    return state.tolist() if isinstance(state, np.ndarray) else state
