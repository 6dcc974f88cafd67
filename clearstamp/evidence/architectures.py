"""Architectures by name, without weights, for a command line: ``torchvision:resnet18?num_classes=10``."""

import ast
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qsl, urlencode

import torch
from torch import nn

from clearstamp.errors import ClearStampError
from clearstamp.evidence.seal import Choices

__all__ = ["Architecture"]

PROVIDERS = {"torchvision": "torchvision.models", "timm": "timm", "clearstamp": "clearstamp.zoo.networks"}
"""Collections of architectures by their modules, which are imported when one is asked for. Nothing else is built
without asking whose code it is."""

WEIGHTS = ("weights", "pretrained", "checkpoint", "cache")
"""How the arguments begin by which a collection would fetch or load weights."""

FORMS = "torchvision:NAME, timm:NAME, clearstamp:NAME or your.module:function, with ?argument=value&... after it"


@dataclass(frozen=True)
class Architecture:
    """An architecture by its name.

    Attributes:
        provider: one of `PROVIDERS`, or a module of the caller's own.
        name: of the architecture there, or of a function that returns it.
        arguments: what it is called with.
    """

    provider: str
    name: str
    arguments: dict[str, Any]

    @classmethod
    def parse(cls, named: str) -> Self:
        """From ``provider:name?argument=value&...``, values as Python writes numbers, booleans, texts and tuples.

        Raises `ClearStampError` for anything else.
        """
        start, _, query = named.partition("?")
        provider, _, name = start.partition(":")
        try:
            pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=True) if query else []
        except ValueError as error:
            raise ClearStampError("arguments that cannot be read", got=repr(query), expected=FORMS) from error
        proper = all(part.isidentifier() for part in provider.split("."))
        if not proper or not name or not named.isprintable() or len(dict(pairs)) < len(pairs):
            raise ClearStampError("not the name of an architecture", got=repr(named), expected=FORMS)
        return cls(provider, name, {argument: literal(value) for argument, value in pairs})

    def __str__(self) -> str:
        query = urlencode({name: written(value) for name, value in self.arguments.items()}, safe=",")
        return f"{self.provider}:{self.name}" + (f"?{query}" if query else "")

    @property
    def own_code(self) -> bool:
        """Whether building it runs code that no known collection holds."""
        return self.provider not in PROVIDERS

    def fitting(self, choices: Choices) -> Self:
        """With the shapes that a seal says, where the architecture is this library's and does not say its own."""
        if self.provider != "clearstamp":
            return self
        known: dict[str, Any] = {"shape": choices.shape}
        if choices.tap is None and len(choices.key) == 1:
            known["outputs"] = choices.key[0]
        return replace(self, arguments=known | self.arguments)

    def build(self, *, away_from: Sequence[Path] = ()) -> nn.Module:
        """The model, with weights of no meaning. Nothing is fetched, and no file of weights is read.

        A function of the caller's own is imported neither from the current folder, unless PYTHONPATH names it, nor
        from the folders `away_from`: a stranger's file may lie beside code.

        Raises `ClearStampError` if there is no such architecture, or if it cannot be made with these arguments.
        """
        if banned := [name for name in self.arguments if name.startswith(WEIGHTS) and not self.own_code]:
            raise ClearStampError("an architecture is built without weights", got=", ".join(banned))
        with torch.random.fork_rng(devices=[]), importing_elsewhere(away_from):
            torch.manual_seed(0)
            make = MAKERS.get(self.provider, own)(self)
            try:
                model = make(**self.arguments)
            except (Exception, SystemExit) as error:  # whatever a caller's code raises: an exit would be the command's
                raise ClearStampError(
                    f"{self} cannot be built", got=f"{type(error).__name__}: {error}".partition("\n")[0]
                ) from error
        if not isinstance(model, nn.Module):
            raise ClearStampError(f"{self} is not a model", got=type(model).__name__, expected="torch.nn.Module")
        return model


def literal(text: str) -> Any:
    """A number, a boolean, None, a text in quotes or a tuple of these as Python writes them; else the text itself."""
    if text in ("true", "false"):
        return text == "true"
    try:
        return ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return text


def written(value: Any) -> str:
    """What `literal` reads as this value."""
    if isinstance(value, str) and literal(value) == value:
        return value
    if isinstance(value, tuple) and len(value) > 1:
        return ",".join(map(repr, value))
    return repr(value)


def module_of(provider: str) -> Any:
    """The module of a collection. Raises `ClearStampError` if it is not installed."""
    try:
        return importlib.import_module(PROVIDERS[provider])
    except ImportError as error:
        missing = error.name or provider
        raise ClearStampError(f"{provider}: needs a package", got=missing, remedy=f"pip install {missing}") from error


def known(name: str, names: Iterable[str], provider: str) -> str:
    """The name, if it is among these. Raises `ClearStampError` with what is near it."""
    names = list(names)
    if name not in names:
        near = get_close_matches(name, names, n=3)
        raise ClearStampError(
            f"{provider} has no such architecture",
            got=repr(name),
            expected=(" or ".join(near) if near else f"one of {len(names)}, such as {', '.join(sorted(names)[:3])}"),
        )
    return name


def from_torchvision(wanted: Architecture) -> Callable[..., Any]:
    models = module_of("torchvision")
    builder = models.get_model_builder(known(wanted.name, models.list_models(), "torchvision"))
    without = dict.fromkeys({"weights", "weights_backbone"} & set(inspect.signature(builder).parameters))
    return lambda **arguments: builder(**without, **arguments)


def from_timm(wanted: Architecture) -> Callable[..., Any]:
    timm = module_of("timm")
    if not timm.is_model(wanted.name):  # which knows names with a tag of weights, too
        known(wanted.name, timm.list_models(), "timm")
    return lambda **arguments: timm.create_model(wanted.name, pretrained=False, **arguments)


def from_clearstamp(wanted: Architecture) -> Callable[..., Any]:
    models = module_of("clearstamp").MODELS
    made: Callable[..., Any] = models[known(wanted.name, models, "clearstamp")]
    return made


MAKERS = {"torchvision": from_torchvision, "timm": from_timm, "clearstamp": from_clearstamp}


def own(wanted: Architecture) -> Callable[..., Any]:
    """A function of the caller's own. Its module is imported, so its code runs."""
    module, name = wanted.provider, wanted.name
    try:
        held = importlib.import_module(module)
    except ModuleNotFoundError as error:
        root = module.partition(".")[0]
        near = get_close_matches(module, PROVIDERS, n=1)
        raise ClearStampError(
            "no such module",
            got=repr(error.name or module),
            expected=near[0] if near else None,
            remedy=f"install the package {root}, or name its folder in PYTHONPATH; that of the suspect is never used",
        ) from error
    except (Exception, SystemExit) as error:  # whatever the module does: its exit would be the command's
        raise ClearStampError(f"importing {module} failed", got=f"{type(error).__name__}: {error}") from error
    made: Callable[..., Any] | None = getattr(held, name, None)
    if made is None or not callable(made):
        near = get_close_matches(name, [each for each in dir(held) if callable(getattr(held, each))], n=3)
        raise ClearStampError(f"{module} has no such function", got=repr(name), expected=" or ".join(near) or None)
    return made


@contextmanager
def importing_elsewhere(folders: Sequence[Path]) -> Iterator[None]:
    """Modules are found neither in these folders, nor in the current one unless PYTHONPATH names it."""
    named = {Path(entry).resolve() for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry}
    shut = {folder.resolve() for folder in folders} | ({Path.cwd()} - named)
    before = sys.path[:]
    sys.path[:] = [entry for entry in before if Path(entry).resolve() not in shut]
    try:
        yield
    finally:
        sys.path[:] = before
