"""Drop the scripts of sphinx-thebe: they are emitted twice, throw a SyntaxError, and point at outside hosts.

No release mends that: 0.3.1, in use here, is the last. Needless with jupyter-book 2, which does not bring sphinx-thebe.
"""

from typing import Any

from sphinx.application import Sphinx


def strip(app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: object) -> None:
    """Keep every script of the page but thebe's."""

    def is_thebe(script: Any) -> bool:
        body = getattr(script, "attributes", {}).get("body") or ""
        return "thebe" in str(getattr(script, "filename", "")) or "THEBE_JS_URL" in body

    context["script_files"] = [s for s in context.get("script_files", []) if not is_thebe(s)]


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("html-page-context", strip, priority=950)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
