"""Markdown tables, as the tests compare them."""

import re


def compact(table: str) -> str:
    """A table without the blanks and dashes that only keep its columns in line."""
    lines = re.sub(" *[|] *", " | ", re.sub("-{3,}", "-", table)).splitlines()
    return "\n".join(line.strip() for line in lines)
