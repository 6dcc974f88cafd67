"""Math as MathML, written when the book is built: every current browser shows it, so no page needs a script for it."""

import re
from html import escape
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.util import logging

logger = logging.getLogger(__name__)


def to_mathml(latex: str, node: nodes.Element, display: str) -> str:
    """The formula as MathML. What cannot be translated is a warning, and so fails a strict build."""
    latex = re.sub(r"\{(aligned|split)\}", "{align*}", latex)  # the only such environment that latex2mathml knows
    try:
        markup: str = convert(latex, display=display)
    except Exception as error:
        logger.warning("no MathML (%s) for: %s", type(error).__name__, latex, location=node)
        return f"<code>{escape(latex)}</code>"
    if unknown := re.findall(r">(\\[A-Za-z]+|&)<", markup):
        logger.warning("no MathML for %s in: %s", ", ".join(unknown), latex, location=node)
    return markup


def visit_math(translator: Any, node: nodes.math) -> None:
    """A formula within a line."""
    translator.body.append(to_mathml(node.astext(), node, "inline"))
    raise nodes.SkipNode


def visit_math_block(translator: Any, node: nodes.math_block) -> None:
    """A formula on a line of its own, with its number if it has a label."""
    latex = node.astext().strip()
    if r"\\" in latex and r"\begin" not in latex:
        latex = rf"\begin{{align*}}{latex}\end{{align*}}"
    translator.body.append(translator.starttag(node, "div", CLASS="math notranslate nohighlight"))
    if node["number"]:
        translator.body.append(f'<span class="eqno">({node["number"]})')
        translator.add_permalink_ref(node, "Link to this equation")
        translator.body.append("</span>")
    translator.body.append(to_mathml(latex, node, "block") + "</div>")
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the renderer; `html_math_renderer = "mathml"` selects it."""
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
