"""The library's walls: what imports what, and what a model owner waits for."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import clearstamp

PACKAGE = Path(clearstamp.__file__).parent
LATER = {"IPython", "ipywidgets", "matplotlib", "papermill", "pydantic", "sklearn", "torchvision", "yaml"}
"""What is imported where it is used: the core takes long enough without."""


def test_arrows_point_down():
    command = [Path(sys.executable).parent / "lint-imports", "--no-cache"]
    done = subprocess.run(command, cwd=PACKAGE.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_importing_the_library_imports_torch_and_little_else():
    code = f"import sys, clearstamp; print(*sorted({LATER} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_what_is_offered_is_there():
    assert all(getattr(clearstamp, name) is not None for name in clearstamp.__all__)


def test_the_version_is_that_of_the_project():
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert clearstamp.__version__ == project["version"]


def test_what_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'clearstamp' has no attribute 'stmap'"):
        clearstamp.stmap  # noqa: B018
