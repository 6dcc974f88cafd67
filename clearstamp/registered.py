"""Classes that are found by their names."""

import re
from typing import Any


def register(cls: type, classes: dict[str, Any]) -> None:
    """Enter a new class by its name in small letters and hyphens (``water-mas``), unless something of it is abstract.

    To be called by ``__init_subclass__``, before `abc` has noted what is abstract.
    """
    inherited = {name for base in cls.__bases__ for name in getattr(base, "__abstractmethods__", ())}
    if not any(getattr(getattr(cls, name), "__isabstractmethod__", False) for name in inherited | vars(cls).keys()):
        cls.name = re.sub(r"(?<=[a-z])(?=[A-Z])", "-", cls.__name__).lower()  # type: ignore[attr-defined]
        classes[cls.name] = cls  # type: ignore[attr-defined]
