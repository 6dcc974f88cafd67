"""The code in pages of prose, so that tests run it as a reader would."""

import os
import re
import subprocess
import sys
from doctest import ELLIPSIS, OutputChecker
from pathlib import Path

ROOT = Path(__file__).parent.parent


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a language in a Markdown file, in their order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def sessions(page: Path) -> list[tuple[str, str]]:
    """Each command of the fenced blocks ``console``, in their order, and what the page shows that it prints."""
    lines = "".join(blocks(page, "console"))
    return [(command, shown) for command, shown in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", lines, re.MULTILINE)]


def shows(shown: str, printed: str) -> bool:
    """Whether a page shows what is printed, where ``...`` stands for anything."""
    return OutputChecker().check_output(shown, printed, ELLIPSIS)


def included(page: Path) -> list[Path]:
    """The files that a Markdown file shows as a whole."""
    found = re.findall(r"^```{literalinclude} (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return [(page.parent / name).resolve() for name in found]


def run(script: str, folder: Path, **variables: str) -> str:
    """What a Python script prints when it is run in `folder`, with warnings as errors."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)} | variables
    command = [sys.executable, "-W", "error", "-c", script]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
