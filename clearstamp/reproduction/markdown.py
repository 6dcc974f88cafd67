"""Tables in Markdown."""

from collections.abc import Iterable, Sequence

from tabulate import tabulate

SIDES = {"l": None, "r": "right"}  # left is where a page puts a cell that says nothing


def table(head: Sequence[str], rows: Iterable[Sequence[str]], align: str = "") -> str:
    """A Markdown table. `align` has an ``l`` or ``r`` for each column; the last stands for all that follow it too."""
    align = (align or "l").ljust(len(head), (align or "l")[-1])
    made: str = tabulate(rows, head, "pipe", colalign=[SIDES[side] for side in align], disable_numparse=True)
    return f"{made}\n"


def plain_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table of plain text."""
    return table(head, ([escape(cell) for cell in row] for row in rows))


def escape(text: str) -> str:
    """Plain text for Markdown."""
    return "".join(f"\\{c}" if c in r"\`*_{}[]<>#|$~^" else c for c in text)
