"""The library's walls: what imports what, and what a model owner waits for."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import clearstamp
from tests.documents import run

PACKAGE = Path(clearstamp.__file__).parent
LATER = {"IPython", "ipywidgets", "matplotlib", "papermill", "pydantic", "scipy", "sklearn", "torchvision", "yaml"}
"""What is imported where it is used: the core takes long enough without."""


def test_arrows_point_down():
    command = [Path(sys.executable).parent / "lint-imports", "--no-cache"]
    done = subprocess.run(command, cwd=PACKAGE.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_core_stays_thin():
    assert sum(len(path.read_text("utf-8").splitlines()) for path in PACKAGE.glob("*.py")) < 2_500


def test_importing_the_library_imports_torch_and_little_else():
    code = f"import sys, clearstamp; print(*sorted({LATER} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


WITHOUT = """
import sys
from importlib.machinery import PathFinder


class Core(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name in {} else super().find_spec(name, path, target)


sys.meta_path[sys.meta_path.index(PathFinder)] = Core
"""
OWNER = """
import torch
from torch import nn

import clearstamp as cs
from clearstamp.attacks import Pruning

labels = torch.arange(64) % 4
data = cs.Data(torch.rand(64, 1, 16, 16), labels)
model = nn.Sequential(nn.Flatten(), nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, data.classes))
stamp = cs.Stamp.from_texts(["ME"], outputs=data.classes, shape=data.shape, seed=7)
back = cs.transpose(model, stamp.secrets)
cs.harden(back, stamp)
cs.fit(model, data.loader(16, seed=0), epochs=2, stamp_loss=cs.StampLoss(back, stamp))
found = Pruning(amount=0.3).apply(model, data, stamp).after
stamp.save("owner.safetensors")
assert cs.read(back, cs.Stamp.load("owner.safetensors")).ssim.min() > 0.9
assert cs.develop(found.reading.images).shape == (1, 1, 16, 16)
"""


def test_an_owner_needs_nothing_but_the_core(tmp_path: Path):
    """What only an extra installs cannot be imported, and a model is stamped, attacked and read all the same."""
    absent = LATER - {"matplotlib", "scipy"} | {"matplotlib.pyplot", "nbformat", "tabulate"}
    run(WITHOUT.format(absent) + OWNER, tmp_path)


def test_what_is_offered_is_there():
    assert all(getattr(clearstamp, name) is not None for name in clearstamp.__all__)


def test_the_version_is_that_of_the_project():
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert clearstamp.__version__ == project["version"]


def test_what_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'clearstamp' has no attribute 'stmap'"):
        clearstamp.stmap  # noqa: B018
