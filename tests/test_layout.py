"""The library's walls: what imports what, and what a model owner waits for."""

import subprocess
import sys
from pathlib import Path

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
