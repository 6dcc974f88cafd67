"""What a result depends on: the code that ran for it, and nothing else."""

import importlib.util
import sys
from types import ModuleType

import pytest
import torch
from torch import nn

from clearstamp import dependencies
from clearstamp.dependencies import changed, noting, remembered, watch
from clearstamp.transpose import transpose

SOURCE = """
import functools
from clearstamp.two import BASE as START
LIMIT = 3
TABLE = {"limit": LIMIT}
OTHER = 4

@functools.cache
def used(x):
    return x + TABLE["limit"] + START

def unused(x):
    return x + OTHER

class Walk(object):
    size = 1
    other = 2
    def step(self):
        return self.size
    def unused(self):
        return self.other
    @property
    def place(self):
        return 1
    @place.setter
    def place(self, value):
        pass
"""

OTHER = "BASE = 1\nLIMIT = 'not that of one'\n"


@pytest.fixture
def library(tmp_path, monkeypatch):
    """A library of two modules; gives a function that writes its source and one that runs it under watch."""
    monkeypatch.setattr(dependencies, "PACKAGE", tmp_path)
    other = ModuleType("clearstamp.two")
    other.BASE = 1
    monkeypatch.setitem(sys.modules, "clearstamp.two", other)

    def clear():
        for cached in (dependencies.definitions, dependencies.constants, dependencies.digest):
            cached.cache_clear()

    def write(source, other=OTHER):
        (tmp_path / "one.py").write_text(source)
        (tmp_path / "two.py").write_text(other)
        clear()

    def run():
        spec = importlib.util.spec_from_file_location("one", tmp_path / "one.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        with watch() as uses:
            module.used(1)
            module.Walk().step()
            module.Walk().place = 3
        return uses

    write(SOURCE)
    yield write, run
    clear()


def test_what_ran_is_noted_and_what_did_not_is_not(library):
    assert set(library[1]()) == {"one:used", "one:Walk.step", "one:Walk.place"}


@pytest.mark.parametrize(
    ("old", "new", "names"),
    [
        ("x + TABLE", "x - TABLE", ["one:used"]),
        ("LIMIT = 3", "LIMIT = 5", ["one:used"]),
        ("size = 1", "size = 2", ["one:Walk.step"]),
        ("return self.size", "return -self.size", ["one:Walk.step"]),
        ("class Walk(object)", "class Walk(dict)", ["one:Walk.place", "one:Walk.step"]),
        ("        return 1", "        return 2", ["one:Walk.place"]),
        ("other = 2", "other = 3", []),
        ("return self.other", "return -self.other", []),
        ("def used", "def renamed", ["one:used"]),
        ("x + OTHER", "x - OTHER", []),
        ("OTHER = 4", "OTHER = 5", []),
        ("    return x + TABLE", '    """Adds."""\n    # a comment\n    return x + TABLE', []),
        ("import functools", "import functools\n\n\n", []),
    ],
)
def test_a_result_is_out_of_date_when_code_or_constants_of_it_changed(library, old, new, names):
    write, run = library
    uses = run()
    assert changed(uses) == []
    assert old in SOURCE
    write(SOURCE.replace(old, new))
    assert changed(uses) == names


def test_only_the_constants_that_a_module_imports_count(library):
    write, run = library
    uses = run()
    write(SOURCE, OTHER.replace("'not that", "'still not that"))
    assert changed(uses) == []
    write(SOURCE, OTHER.replace("BASE = 1", "BASE = 2"))
    assert changed(uses) == ["one:used"]


def test_a_walk_depends_on_the_rules_that_it_took_and_on_no_others():
    back = transpose(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), torch.zeros(1, 4), readout="adjoint")
    with watch() as uses:
        back(torch.zeros(1, 2))
    assert {"rules:linear", "transpose:Transposed.__call__"} <= set(uses)
    assert "rules:linear_paper" not in uses
    assert not any(name.startswith("dependencies") for name in uses)
    assert changed(uses) == []
    assert changed(uses | {"rules:linear": "another"}) == ["rules:linear"]
    assert changed({"gone:one": "x"}) == ["gone:one"]


def test_a_remembered_result_brings_the_code_that_made_it():
    calls: list[int] = []

    def inner(x: int) -> int:
        return x + 1

    @remembered
    def middle(x: int) -> int:
        calls.append(x)
        return inner(x)

    @remembered
    def outer(x: int) -> int:
        return middle(x)

    for _ in range(2):
        with noting() as ran:
            assert outer(1) == 2
        assert {"outer", "middle", "inner"} <= {code.co_name for code in ran}
    with noting() as ran:
        assert middle(1) == 2
    names = {code.co_name for code in ran}
    assert "inner" in names and "outer" not in names
    assert calls == [1]
    assert sys.getprofile() is None
