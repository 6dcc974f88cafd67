"""A book of minimal executed notebooks, for the tests that look at its pages."""

import importlib.util
import shutil
from pathlib import Path

import nbformat
import numpy as np
import yaml
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from clearstamp.report import Slider

SOURCES = Path(__file__).parent.parent / "book"

spec = importlib.util.spec_from_file_location("book_build", SOURCES / "build.py")
assert spec is not None and spec.loader is not None
book_build = importlib.util.module_from_spec(spec)
spec.loader.exec_module(book_build)


def sources() -> list[str]:
    """The files that the table of contents lists."""
    contents = yaml.safe_load((SOURCES / "_toc.yml").read_text(encoding="utf-8"))
    return [contents["root"], *(chapter["file"] for part in contents["parts"] for chapter in part["chapters"])]


def chapters() -> list[str]:
    """The names of the notebooks among them."""
    return [Path(file).name for file in sources() if file.startswith("_generated/")]


def copy_sources(root: Path) -> None:
    """The book's sources in `root`, beside an empty folder of artifacts."""
    shutil.copytree(SOURCES, root / "book", ignore=shutil.ignore_patterns("_build", "_generated", "__pycache__"))
    (root / "artifacts" / "tiny").mkdir(parents=True)


def build(root: Path) -> Path:
    """The pages of a book made from minimal executed notebooks, each with a slider."""
    colours = ((200, 30, 30), (30, 160, 30), (30, 30, 200))
    frames = [np.full((20, 60, 3), colour, np.uint8) for colour in colours]
    slider = Slider(frames, ["step 0", "step 10", "step 20"], "step", "a stamp")
    for name in chapters():
        shown = new_output("display_data", slider._repr_mimebundle_())
        progress = new_output("stream", name="stderr", text="100%|####|")
        formula = new_markdown_cell(r"With $W^\top$ and $$\begin{aligned} a &= b \\ c &= d \end{aligned}$$")
        cells = [new_markdown_cell(f"# {name}"), formula, new_code_cell("1", outputs=[shown, progress])]
        about = {"language_info": {"name": "python", "pygments_lexer": "ipython3"}}
        nbformat.write(new_notebook(cells=cells, metadata=about), root / "artifacts" / "tiny" / f"{name}.ipynb")
    assert book_build.main(["--profile", "tiny", "--book", str(root / "book")]) == 0
    return root / "book" / "_build" / "html"
