"""A book of minimal executed notebooks, for the tests that look at its pages."""

import importlib
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import nbformat
import numpy as np
import torch
import yaml
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from clearstamp.reproduction.records import Record, Stage
from clearstamp.reproduction.report import Slider

SOURCES = Path(__file__).parent.parent / "book"

sys.path.insert(0, str(SOURCES))  # as when one of the programs there is run
archive, book_build, book_pages, captions = map(importlib.import_module, ("archive", "build", "pages", "captions"))


def sources() -> list[str]:
    """The files that the table of contents lists."""
    contents = yaml.safe_load((SOURCES / "_toc.yml").read_text(encoding="utf-8"))
    return [contents["root"], *(chapter["file"] for part in contents["parts"] for chapter in part["chapters"])]


def chapters() -> list[str]:
    """The names of the notebooks among them."""
    return [Path(file).name for file in sources() if file.startswith("_generated/")]


def copy_sources(root: Path) -> None:
    """The book's sources in `root`, with what they show of the repository, beside an empty folder of artifacts."""
    shutil.copy(SOURCES.parent / "README.md", root)
    shutil.copytree(SOURCES.parent / "examples", root / "examples")
    shutil.copytree(SOURCES, root / "book", ignore=shutil.ignore_patterns("_build", "_generated", "__pycache__"))
    (root / "artifacts" / "tiny").mkdir(parents=True)


def record(name: str, stages: Sequence[str]) -> Record:
    """A record of seed 0 with one picture a stage."""
    found = {"accuracy": 0.5, "ssim": 0.5, "developed_ssim": 0.5, "steps": 0}
    about = {"experiment": name, "kind": "LifeCycle", "version": 1, "profile": "tiny", "parameters": {}, "seed": 0}
    arrays = {stage: torch.rand(4, 1, 9, 9) for stage in (*stages, "secrets")}
    about["parameters"] = {
        "attacks": {
            label: {"attack": "pruning", "scope": "global" if label[0].isdigit() else "other"}
            for label in stages
            if "%" in label
        }
    }
    moments = {"hardened", "trained", "finetuned"}
    seen = [
        Stage(label=label, moment=label, scores=dict(found))
        if label in moments
        else Stage(label=label, attack=None if label == "before" else label, scores=dict(found))
        for label in stages
    ]
    return Record(**about, stages=seen, data={"dots": {}}, arrays=arrays)


def write_notebooks(root: Path) -> list[Record]:
    """Minimal executed notebooks for every chapter, each with a slider, and the records that they show."""
    made = [
        record("11-keys-default-adjoint", ("hardened", "trained", "finetuned")),
        record("pruning-default-adjoint", ("before", "60 %", "80 %", "90 %", "channels 20 %", "fine-pruning 40 %")),
    ]
    for each in made:
        each.save()
    colours = ((200, 30, 30), (30, 160, 30), (30, 30, 200))
    frames = [np.full((20, 60, 3), colour, np.uint8) for colour in colours]
    slider = Slider(frames, ["step 0", "step 10", "step 20"], "step", "a stamp", made, rows=("secret",), start=1)
    for name in chapters():
        data, metadata = slider._repr_mimebundle_()
        shown = new_output("display_data", data, metadata=metadata)
        progress = new_output("stream", name="stderr", text="100%|####|")
        formula = new_markdown_cell(r"With $W^\top$ and $$\begin{aligned} a &= b \\ c &= d \end{aligned}$$")
        pictured = new_code_cell(
            f"1  # {'a line longer than any page is wide, ' * 5}", id="tuned-table", outputs=[shown, progress]
        )
        cells = [new_markdown_cell(f"# {name}"), formula, pictured]
        about = {"language_info": {"name": "python", "pygments_lexer": "ipython3"}}
        nbformat.write(new_notebook(cells=cells, metadata=about), root / "artifacts" / "tiny" / f"{name}.ipynb")
    return made


def build(root: Path) -> Path:
    """The pages of a book made from minimal executed notebooks."""
    write_notebooks(root)
    assert book_build.main(["--profile", "tiny", "--book", str(root / "book")]) == 0
    return root / "book" / "_build" / "html"
