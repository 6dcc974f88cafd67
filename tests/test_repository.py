"""What the repository promises as a whole: notebooks without outputs, a help for every target, a complete lock."""

import ast
import os
import re
import subprocess
import tomllib
from pathlib import Path

import nbformat
import pytest

from clearstamp.zoo import datasets

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def cells(path: Path) -> list[nbformat.NotebookNode]:
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def test_there_are_notebooks():
    assert {"01-hardening", "02-multi-key"} <= {path.stem for path in NOTEBOOKS}


@every_notebook
def test_notebook_is_kept_without_outputs(path: Path):
    left = [cell.id for cell in cells(path) if cell.outputs or cell.execution_count is not None]
    assert not left, "run `.venv/bin/nbstripout --keep-id` on it"


@every_notebook
def test_notebook_has_one_parameters_cell_with_the_tiny_profile(path: Path):
    tagged = [cell.source for cell in cells(path) if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == 1
    values = {}
    exec(tagged[0], values)
    assert values["profile"] == "tiny"


@every_notebook
def test_notebook_names_the_kernel_that_papermill_and_nbmake_need(path: Path):
    kernel = nbformat.read(path, as_version=4).metadata.kernelspec
    assert (kernel.name, kernel.language) == ("python3", "python")


@every_notebook
def test_notebook_holds_no_logic(path: Path):
    """A function longer than six lines belongs into the library."""
    trees = [ast.parse(re.sub(r"(?m)^\s*[%!].*$", "", cell.source)) for cell in cells(path)]
    functions = [n for tree in trees for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    assert [f.name for f in functions if f.end_lineno - f.lineno + 1 > 6] == []
    assert not any(isinstance(n, ast.ClassDef) for tree in trees for n in ast.walk(tree))


def test_help_lists_every_target():
    makefile = (ROOT / "Makefile").read_text()
    (phony,) = re.findall(r"^\.PHONY: (.*)$", makefile, re.M)
    targets = phony.replace("$(NOTEBOOKS)", " ".join(path.stem for path in NOTEBOOKS)).split()
    assert {"setup", "reproduce", "test", "book", "bench", "lint", "clean"} <= set(targets)
    clean = {name: text for name, text in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    shown = subprocess.run(["make", "help"], cwd=ROOT, env=clean, capture_output=True, text=True, check=True).stdout
    listed = [line.split()[1] for line in shown.splitlines()]
    assert sorted(listed) == sorted(targets)
    assert all(len(line.split()) > 3 for line in shown.splitlines()), "a target without a word about it"


def test_every_make_target_that_runs_python_sets_up_first():
    makefile = (ROOT / "Makefile").read_text()
    rules = re.findall(r"^([\w$(). /-]+):([^=\n]*)\n((?:\t.*\n?)+)", makefile, re.M)
    assert len(rules) > 8
    for name, needs, recipe in rules:
        if "$(BIN)" in recipe and name != "$(READY)":
            assert "$(READY)" in needs or "$(NOTEBOOKS)" in needs, name


def test_make_data_asks_for_both_splits_of_every_set(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    (program,) = re.findall(r'^data: .*\n\t\$\(BIN\)/python -c "(.*)"$', (ROOT / "Makefile").read_text(), re.MULTILINE)
    monkeypatch.setattr(datasets, "load", lambda name, split: [name, split])
    exec(program, {})
    asked = [line.split(":")[0].split(", ") for line in capsys.readouterr().out.splitlines()]
    assert sorted(asked) == sorted([name, split] for name in datasets.LOADERS for split in ("test", "train"))


def pins() -> dict[str, int]:
    """Name and number of hashes of every pin in the lock."""
    lock = (ROOT / "requirements.lock").read_text()
    entries = re.split(r"\n(?=[\w.-]+==)", lock)
    return {canonical(entry.split("==")[0]): entry.count("--hash=sha256:") for entry in entries}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name.strip().lower())


def test_lock_pins_every_direct_dependency_with_hashes():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    direct = project["dependencies"] + [name for extra in project["optional-dependencies"].values() for name in extra]
    locked = pins()
    assert {canonical(re.match(r"[\w.-]+", name).group()) for name in direct} <= set(locked)
    assert [name for name, hashes in locked.items() if not hashes] == []


def test_every_bound_of_a_version_has_its_reason_beside_it():
    lines = (ROOT / "pyproject.toml").read_text().splitlines()
    bounds = [line for line in lines if re.search(r'"[\w-]*[=<>~]=\d[\w.]*"', line)]
    assert len(bounds) > 8
    assert [line for line in bounds if not re.search(r"# \w+", line)] == []


def test_the_changelog_tells_of_this_version_and_of_what_is_to_come():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    first, *_ = told = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert version in told and first in (version, "Unreleased")


def test_lock_names_no_index():
    assert not re.search(r"https?://|file:|--(extra-)?index|--find-links", (ROOT / "requirements.lock").read_text())


def repository_files() -> list[Path]:
    """Files that git tracks or would track."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_no_file_contains_a_path_of_one_machine():
    machine = re.compile(rb"(?<![\w.}$)~-])/(?:home|Users|root|work|opt|tmp|mnt|private/var)/\w")
    minified = {".js", ".woff", ".woff2", ".png", ".svg"}
    hits = [
        f"{path.relative_to(ROOT)}: {match.group()!r}"
        for path in repository_files()
        if path.suffix not in minified
        for match in machine.finditer(path.read_bytes())
    ]
    assert hits == []
