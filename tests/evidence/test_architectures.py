"""Architectures by name: what is built, whose code runs, and the sentence for what is not there."""

import os
import re
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.models import resnet18

from clearstamp.errors import ClearStampError
from clearstamp.evidence.architectures import Architecture
from clearstamp.evidence.seal import Seal


def build(named: str, **given) -> nn.Module:
    return Architecture.parse(named).build(**given)


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("value", [10, -1, 0.5, 1e-30, True, None, "avg", "10", "a&b=c d", "(1, 28, 28)", (1, 28, 28)])
def test_a_name_with_its_arguments_is_read_as_it_is_written(value):
    meant = Architecture("torchvision", "resnet18", {"a": value, "b": 2})
    assert Architecture.parse(str(meant)) == meant


def test_values_are_those_of_python_and_booleans_also_those_of_a_shell():
    found = Architecture.parse("a.b:c?n=10&x=-1e-3&yes=true&no=False&none=None&word=max&shape=1,28,28").arguments
    assert found == {
        **{"n": 10, "x": -1e-3, "yes": True, "no": False, "none": None, "word": "max"},
        "shape": (1, 28, 28),
    }
    assert str(Architecture("clearstamp", "cnn", {"shape": (1, 28, 28)})) == "clearstamp:cnn?shape=1,28,28"


@pytest.mark.parametrize(
    "named",
    ["", "resnet18", ":cnn", "torchvision:", "a b:c", "a:b?c", "a:b?c=1&c=2", "../a:b", "a:b?c=\udcff", "a:\x1b[2J"],
)
def test_what_is_no_name_is_told_the_forms(named: str):
    with pytest.raises(ClearStampError, match=r"; got: .*; expected: torchvision:NAME, timm:NAME, .*"):
        Architecture.parse(named)


def test_torchvision_builds_without_weights_and_the_global_generator_stays():
    before = torch.random.get_rng_state()
    found = build("torchvision:resnet18?num_classes=10")
    assert torch.equal(torch.random.get_rng_state(), before)
    assert shapes(found) == shapes(resnet18(weights=None, num_classes=10))


def test_torchvision_fetches_no_weights_for_a_part(monkeypatch: pytest.MonkeyPatch):
    """Segmentation models ask for a backbone's weights unless told otherwise."""

    def fetch(*_: object, **__: object) -> None:
        raise AssertionError("weights were asked for")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fetch)
    assert len(shapes(build("torchvision:lraspp_mobilenet_v3_large?num_classes=2"))) > 100


def test_timm_builds_without_weights():
    found = build("timm:resnet10t.c3_in1k?num_classes=7&in_chans=1")
    assert shapes(found)["fc.weight"] == (7, 512) and shapes(found)["conv1.0.weight"][1] == 1


def test_an_architecture_of_this_library_takes_its_shapes_from_the_seal():
    choices = Seal.make(outputs=5, shape=(3, 28, 28), codes=11).choices
    fitted = Architecture.parse("clearstamp:fc").fitting(choices)
    assert str(fitted) == "clearstamp:fc?shape=3,28,28&outputs=5"
    found = shapes(fitted.build())
    assert found["1.weight"] == (1024, 3 * 28 * 28) and found["7.weight"] == (5, 1024)
    assert Architecture.parse("clearstamp:fc?outputs=7").fitting(choices).arguments["outputs"] == 7
    elsewhere = Architecture.parse("timm:resnet18")
    assert elsewhere.fitting(choices) == elsewhere


def test_keys_at_a_tap_say_nothing_of_the_outputs():
    choices = Seal.make(outputs=512, shape=(1, 28, 28), codes=11, tap="7").choices
    assert Architecture.parse("clearstamp:cnn").fitting(choices).arguments == {"shape": (1, 28, 28)}


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ("torchvision:resnet81", r"torchvision has no such architecture; got: 'resnet81'; expected: .*resnet18"),
        ("torchvision:zzz", r"expected: one of \d+, such as alexnet"),
        ("timm:resnet10tt", "timm has no such architecture; got: 'resnet10tt'; expected: resnet10t or "),
        ("timm:hf-hub:somebody/something", "timm has no such architecture"),
        ("timm:local-dir:somewhere", "timm has no such architecture"),
        ("clearstamp:cn", "clearstamp has no such architecture; got: 'cn'; expected: cnn"),
        ("clearstamp:cnn", "clearstamp:cnn cannot be built; got: TypeError: .*'shape' and 'outputs'"),
        ("torchvision:resnet18?classes=3", "cannot be built; got: TypeError: .*classes"),
        ("torchvision:resnet18?weights=DEFAULT", "an architecture is built without weights; got: weights"),
        ("torchvision:resnet18?pretrained=True", "an architecture is built without weights; got: pretrained"),
        ("timm:resnet18?checkpoint_path=a.pth", "an architecture is built without weights; got: checkpoint_path"),
        ("timm:resnet18?pretrained_cfg=x", "an architecture is built without weights; got: pretrained_cfg"),
        ("torchvisoin:resnet18", "no such module; got: 'torchvisoin'; expected: torchvision; what to do: install"),
        ("json:lods", "json has no such function; got: 'lods'; expected: loads"),
        ("builtins:dict?a=1", "builtins:dict.a=1 is not a model; got: dict; expected: torch.nn.Module"),
        ("torch.nn:Linear?in_features=-1", "cannot be built; got: "),
    ],
)
def test_what_cannot_be_built_is_told_in_a_sentence(named: str, message: str):
    with pytest.raises(ClearStampError, match=message) as raised:
        build(named)
    assert "\n" not in str(raised.value)


def test_a_collection_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ClearStampError, match="timm: needs a package; .* what to do: pip install timm"):
        build("timm:resnet18")


def test_code_of_ones_own_runs_and_is_known_as_such():
    own = Architecture.parse("torch.nn:Linear?in_features=3&out_features=2")
    assert own.own_code and shapes(own.build()) == {"weight": (2, 3), "bias": (2,)}
    assert not any(Architecture(name, "x", {}).own_code for name in ("torchvision", "timm", "clearstamp"))


def module(folder: Path, name: str, *, imports: str = "") -> None:
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.py").write_text(
        f"from pathlib import Path\n\nfrom torch import nn\n\nPath(__file__).with_suffix('.ran').touch()\n\n\n"
        f"def make(n=2):\n    {imports or 'pass'}\n    return nn.Linear(n, n)\n"
    )


@pytest.fixture
def importable(monkeypatch: pytest.MonkeyPatch):
    """Puts a folder where modules are found; what a test imported is forgotten afterwards."""
    before = set(sys.modules)

    def add(folder: Path, *, named: bool = False) -> None:
        monkeypatch.syspath_prepend(folder)
        if named:
            monkeypatch.setenv("PYTHONPATH", str(folder) + os.pathsep + os.environ.get("PYTHONPATH", ""))

    yield add
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_nothing_beside_the_suspect_is_imported(tmp_path: Path, importable):
    module(tmp_path / "found", "their_model")
    module(tmp_path / "own", "own_model", imports="import their_model")
    for folder in ("found", "own"):
        importable(tmp_path / folder, named=True)
    with pytest.raises(
        ClearStampError, match="no such module; got: 'their_model'; .* that of the suspect is never used"
    ):
        build("their_model:make", away_from=[tmp_path / "found"])
    with pytest.raises(ClearStampError, match="cannot be built; got: ModuleNotFoundError: .*their_model"):
        build("own_model:make", away_from=[tmp_path / "found"])
    assert [path.name for path in tmp_path.rglob("*.ran")] == ["own_model.ran"]
    assert str(tmp_path / "found") in sys.path
    assert shapes(build("own_model:make?n=3"))["weight"] == (3, 3)


@pytest.mark.parametrize("entry", ["", ".", "folder"])
def test_the_current_folder_is_left_out_unless_it_is_named(tmp_path: Path, importable, monkeypatch, entry: str):
    module(tmp_path, "here_model")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path) if entry == "folder" else entry, *sys.path])
    with pytest.raises(ClearStampError, match="no such module; got: 'here_model'"):
        build("here_model:make")
    assert not (tmp_path / "here_model.ran").exists()
    importable(tmp_path, named=True)
    assert isinstance(build("here_model:make"), nn.Linear)


def test_a_module_that_fails_is_told_in_a_sentence(tmp_path: Path, importable):
    (tmp_path / "failing_model.py").write_text("raise RuntimeError('no luck')\n")
    importable(tmp_path, named=True)
    with pytest.raises(ClearStampError, match=re.escape("importing failing_model failed; got: RuntimeError: no luck")):
        build("failing_model:make")


def leave() -> nn.Module:
    """As a script does whose last line was meant for a shell."""
    sys.exit(0)


def test_an_exit_of_the_callers_code_is_not_the_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """An exit code of 0 would say that there is a match."""
    with pytest.raises(ClearStampError, match="cannot be built; got: SystemExit: 0"):
        build(f"{__name__}:leave")
    (tmp_path / "leaves_at_once.py").write_text("import sys; sys.exit(0)")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ClearStampError, match="importing leaves_at_once failed; got: SystemExit: 0"):
        build("leaves_at_once:model")
