"""The role ``{exhibit}`03-pruning/pruned-table` ``: a link, by its number, to the first figure or table of a cell."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.parsers.rst.states import Inliner
from sphinx.application import Sphinx

NOWHERE = "not shown in this profile"


def exhibit(
    name: str,
    rawtext: str,
    text: str,
    lineno: int,
    inliner: Inliner,
    options: dict[str, Any] | None = None,
    content: Sequence[str] = (),
) -> tuple[list[nodes.Node], list[nodes.system_message]]:
    """The link, or words in its place if the cell shows nothing: what was not run has no exhibit."""
    env = inliner.document.settings.env
    exhibits = json.loads((Path(env.srcdir) / "_generated" / "exhibits.json").read_text(encoding="utf-8"))
    if text not in exhibits:
        return [nodes.Text(NOWHERE)], []
    title, anchor = exhibits[text]
    page = env.app.builder.get_relative_uri(env.docname, f"_generated/{text.partition('/')[0]}")
    return [nodes.reference(rawtext, title, internal=True, refuri=f"{page}#{anchor}")], []


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_role("exhibit", exhibit)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
