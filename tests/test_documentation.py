"""What the documentation shows runs as it stands."""

import doctest
import importlib
import re
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

import clearstamp as cs
from tests.documents import ROOT, blocks, run

WITH_EXAMPLES = sorted(path for path in (ROOT / "clearstamp").rglob("*.py") if ">>> " in path.read_text())


def test_the_snippet_of_the_front_page_runs(tmp_path: Path):
    (snippet,) = blocks(ROOT / "README.md", "python")
    assert len(snippet.splitlines()) < 30
    ((accuracy, ssim),) = re.findall(r"^accuracy ([\d.]+), SSIM ([\d.]+)$", run(snippet, tmp_path), re.MULTILINE)
    assert float(accuracy) > 0.8 and float(ssim) > 0.7
    assert (tmp_path / "owner.safetensors").is_file()
    with Image.open(tmp_path / "found.png") as sheet:
        assert sheet.size == (58, 28)


@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=lambda path: path.stem)
def test_examples_in_docstrings_run(path: Path):
    module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    stamp = cs.Stamp.from_texts(["AB"], outputs=10, shape=(1, 28, 28), seed=0)
    back = cs.transpose(model, stamp.secrets, readout="adjoint")
    given = {"model": model, "stamp": stamp, "back": back, "inputs": stamp.secrets, "labels": torch.tensor([3])}
    assert "+SKIP" not in path.read_text()
    assert doctest.testmod(module, extraglobs=given).failed == 0
