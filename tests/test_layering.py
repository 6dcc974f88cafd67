"""The modules of the library stand in one order, and import only what stands above them."""

import ast
from pathlib import Path

import pytest

import clearstamp

ORDER = (
    *(
        "errors",
        "rules",
        "attention",
        "transpose",
        "scores",
        "coding",
        "stamp",
        "packs",
        "data",
        "models",
        "training",
        "verification",
        "units",
    ),
    *("attacks.base", "attacks.training", "attacks.weights", "attacks.preserving", "attacks.adaptive"),
    *("attacks", "explore"),
    *(
        "records",
        "markdown",
        "claims",
        "experiments",
        "lifecycle",
        "campaigns",
        "generalizability",
        "capacity",
        "coverage",
        "runtime",
        "registry",
        "plan",
        "worker",
        "runner",
        "audit",
    ),
    *("report.stages", "report.exhibits", "report.sliders", "report.figures", "report.tables", "report"),
)
FOLDER = Path(clearstamp.__file__).parent
FILES = {
    ".".join(path.relative_to(FOLDER).with_suffix("").parts).removesuffix(".__init__"): path
    for path in FOLDER.rglob("*.py")
}


def imported(source: str) -> set[str]:
    """Modules of clearstamp that the source imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide what is imported"
            names |= {node.module} if node.module != "clearstamp" else {f"clearstamp.{a.name}" for a in node.names}
    ours = {name for name in names if name.split(".")[0] == "clearstamp"}
    return {name.partition(".")[2] or "__init__" for name in ours}


def test_imports_are_found_wherever_they_stand():
    source = "import clearstamp.data\nfrom clearstamp import stamp\ndef f():\n    from clearstamp.rules import rule\n"
    assert imported(source) == {"data", "stamp", "rules"}
    assert imported("from clearstamp.attacks.base import Attack\nfrom clearstamp.attacks import ATTACKS\n") == {
        "attacks.base",
        "attacks",
    }
    assert imported("import clearstamp, torch\nfrom torch import nn") == {"__init__"}


def test_every_module_has_its_place():
    assert set(FILES) - {"__init__"} <= set(ORDER)


@pytest.mark.parametrize("name", sorted(set(FILES) - {"__init__"}))
def test_a_module_imports_only_modules_above_it(name):
    assert imported(FILES[name].read_text()) <= set(ORDER[: ORDER.index(name)])
