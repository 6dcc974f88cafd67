"""Say on every page where its numbers come from: in the footer and, below the paper's scale, in a banner."""

import json
from html import escape
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.config import Config


def announce(app: Sphinx, config: Config) -> None:
    """Hand `_generated/provenance.json`, which build.py wrote, to the theme."""
    about = json.loads((Path(app.srcdir) / "_generated" / "provenance.json").read_text(encoding="utf-8"))
    options = dict(config.html_theme_options)
    options["extra_footer"] = about["html"]
    if about["banner"]:
        options["announcement"] = escape(about["banner"])
    config.html_theme_options = options


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("config-inited", announce, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
