"""What is shown of records carries a caption and their names: by these the book numbers it and links the records."""

from collections.abc import Iterable
from typing import Any, Literal

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from clearstamp.reproduction.records import Record

KEY = "clearstamp"
NOT_RUN = "*Not run in this profile.*"


def about(kind: Literal["Figure", "Table"], caption: str, records: Iterable[Record]) -> dict[str, Any]:
    """The metadata of a notebook's output."""
    return {KEY: {"kind": kind, "caption": caption, "records": [record.name for record in records]}}


def finished(made: Figure, caption: str, records: Iterable[Record]) -> Figure:
    """A finished figure, which IPython shows as it shows any other, and with its metadata."""
    plt.close(made)
    metadata = about("Figure", caption, records)
    made._repr_mimebundle_ = lambda **_: ({}, metadata)  # type: ignore[attr-defined]
    return made
