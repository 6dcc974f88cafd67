"""Math as MathML, written when the book is built: every current browser shows it, so no page needs a script for it.

Needless from the Sphinx on that has such a renderer of its own, as its issue 6092 asks for; 9.0 has none.
"""

from html import escape
from typing import Any

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.util import logging

logger = logging.getLogger(__name__)


def to_mathml(latex: str, node: nodes.Element, as_block: bool) -> str:
    """The formula as MathML. What cannot be translated is a warning, and so fails a strict build."""
    try:
        return tex2mathml(latex, as_block=as_block)
    except (MathError, AttributeError) as error:  # the latter for an & outside of an environment
        logger.warning("no MathML (%s) for: %s", error, latex, location=node)
        return f"<code>{escape(latex)}</code>"


def visit_math(translator: Any, node: nodes.math) -> None:
    """A formula within a line."""
    translator.body.append(to_mathml(node.astext(), node, as_block=False))
    raise nodes.SkipNode


def visit_math_block(translator: Any, node: nodes.math_block) -> None:
    """A formula on a line of its own, with its number if it has a label."""
    translator.body.append(translator.starttag(node, "div", CLASS="math notranslate nohighlight"))
    if node["number"]:
        translator.body.append(f'<span class="eqno">({node["number"]})')
        translator.add_permalink_ref(node, "Link to this equation")
        translator.body.append("</span>")
    translator.body.append(to_mathml(node.astext(), node, as_block=True) + "</div>")
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the renderer; `html_math_renderer = "mathml"` selects it."""
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
