"""Tables in Markdown."""

from collections.abc import Iterable, Sequence

RULES = {"l": "---", "r": "--:"}


def table(head: Sequence[str], rows: Iterable[Sequence[str]], align: str = "") -> str:
    """A Markdown table. `align` has an ``l`` or ``r`` for each column; the last stands for all that follow it too."""
    align = (align or "l").ljust(len(head), (align or "l")[-1])
    lines = [head, [RULES[side] for side in align], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def plain_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table of plain text."""
    return table(head, ([escape(cell) for cell in row] for row in rows))


def escape(text: str) -> str:
    """Plain text for Markdown."""
    return "".join(f"\\{c}" if c in r"\`*_{}[]<>#|$~^" else c for c in text)
