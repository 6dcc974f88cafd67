"""Take the roles off the bibliography that screen readers no longer know, and that contradict each other.

Needless from the docutils on that no longer writes them; its newest at the time of writing, 0.23, still does.
"""

from typing import Any

from sphinx.application import Sphinx

ROLES = (' role="doc-biblioentry"', ' role="doc-backlink"', ' role="list"')


def plain(app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: object) -> None:
    """Clean the body of a page that has citations."""
    if 'class="citation-list"' in context.get("body", ""):
        for role in ROLES:
            context["body"] = context["body"].replace(role, "")


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("html-page-context", plain)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
