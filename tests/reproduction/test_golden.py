"""Goldens: what the twins of the experiments give, kept for each version of an experiment's code.

A change in behaviour turns one of these tests red. If it is meant, raise `version` of the experiment's class: then its
records are out of date, and this test writes the new golden, to be looked at and committed. A golden that is there is
never changed: that would let old records pass for results of the new code.

Where torch and the processor are those of a golden, every number and pixel has to be the same, else nearly so.
"""

import json
import platform
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from clearstamp.attacks import ATTACKS, Rescaling
from clearstamp.pictures import montage
from clearstamp.reproduction import capacity, experiments, lifecycle
from clearstamp.reproduction.court import UNIT
from clearstamp.reproduction.profiles import PROFILES, load_sets
from clearstamp.training.losses import StampLoss
from clearstamp.transposed import rules
from clearstamp.zoo import datasets as data
from tests.reproduction.twins import SCALE, SIZES, TWINS, Twin, images, write_sets

GOLDEN = Path(__file__).parents[1] / "golden"
SCORE, ACCURACY, LEVEL = 0.03, 0.07, 8
"""On another processor: by how much a score may differ, an accuracy (of three images), and the mean of 255 levels."""
UNSURE = {"message", "message errors", "reached", "right", "steps", "steps to 0.9", "steps to 0.95", "wrong bits"}
UNSURE |= {"attempt", "legible", "letters right", "matched", "p", "read", "verdict"}
"""Scores that jump where others hardly differ, as what a decoder makes of almost too many errors: on another processor
they are not compared."""
CLOCK = {"seconds"}
"""Scores that are never the same."""


@pytest.fixture(scope="module", autouse=True)
def world(tmp_path_factory):
    """Small sets in the real formats, and a folder of artifacts, so that twins that share a model train it once."""
    root = tmp_path_factory.mktemp("golden")
    write_sets(root / "data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLEARSTAMP_DATA", str(root / "data"))
        patch.setenv("CLEARSTAMP_ARTIFACTS", str(root / "artifacts"))
        patch.setitem(PROFILES, SCALE.name, SCALE)
        patch.setattr(data, "MNIST_SIZES", SIZES)
        patch.setattr(data, "MNIST_SHA256", {split: images(split).checksum for split in SIZES})
        yield
    load_sets.cache_clear()


def measured(twin: Twin) -> tuple[dict, np.ndarray]:
    """What a twin gives: the scores of its stages, and a sheet of the first pictures of each."""
    record, _ = experiments.conduct(twin.experiment.settings(SCALE), 0)
    stages = {
        stage.label: {
            name: value
            for name, value in stage.scores.items()
            if name not in CLOCK and (twin.scores is None or name in twin.scores)
        }
        for stage in record.stages
    }
    if twin.means:
        stages["means"] = {name: mean(record.arrays[name]) for name in twin.means}
    pictures = [array[:3] for name, array in sorted(record.arrays.items()) if array.dim() == 4 and len(array)]
    sheets = [montage(images.clamp(0, 1).expand(-1, 3, -1, -1), columns=3) for images in pictures]
    width = max((sheet.shape[1] for sheet in sheets), default=1)
    padded = [np.pad(sheet, ((0, 0), (0, width - sheet.shape[1]), (0, 0))) for sheet in sheets]
    return stages, np.concatenate(padded) if padded else np.zeros((1, 1, 3), np.uint8)


def mean(numbers: torch.Tensor) -> float:
    """The mean of an array of a record; of p, which are whole numbers, in parts of 1."""
    return numbers.double().mean().item() / (1 if numbers.is_floating_point() else UNIT)


def machine() -> dict[str, str]:
    """What decides the last bits: torch, and the processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {"torch": torch.__version__, "processor": names[0] if names else platform.processor()}


def differences(
    golden: dict, sheet: np.ndarray, found: dict, pictures: np.ndarray, exact: bool, slack: float = 1.0
) -> list[str]:
    """In which scores and pictures what was found is not what is kept."""
    off = [f"stages {list(found)}, not {list(golden)}"] if golden.keys() != found.keys() else []
    for label in golden.keys() & found.keys():
        for name in golden[label].keys() | found[label].keys():
            was, now = (scores.get(name, "nothing") for scores in (golden[label], found[label]))
            if not same(name, was, now, exact, slack):
                off.append(f"{label}, {name}: {now}, not {was}")
    if sheet.shape != pictures.shape:
        return [*off, f"pictures {pictures.shape}, not {sheet.shape}"]
    mean = np.abs(sheet.astype(float) - pictures).mean()
    return [*off, f"pictures, {mean:.2f} levels in the mean"] if mean > (0 if exact else slack * LEVEL) else off


def same(name: str, was: object, now: object, exact: bool, slack: float) -> bool:
    """Is a score the same, or for floating-point numbers on another processor nearly so?"""
    if name in UNSURE and not exact:
        return True
    if exact or not (isinstance(was, float) and isinstance(now, float)):
        return was == now
    return abs(was - now) <= slack * (ACCURACY if name == "accuracy" else SCORE)


def kept(twin: Twin) -> tuple[dict, np.ndarray]:
    """A golden: its numbers and where they were made, and its pictures."""
    about = json.loads((GOLDEN / f"{twin.name}.json").read_text(encoding="utf-8"))
    return about, np.asarray(Image.open(GOLDEN / f"{twin.name}.png"))


@pytest.mark.parametrize("twin", TWINS, ids=lambda twin: twin.name)
def test_a_twin_gives_what_its_golden_holds(twin):
    stages, pictures = measured(twin)
    if not (GOLDEN / f"{twin.name}.json").is_file():
        text = json.dumps({"machine": machine(), "stages": stages}, indent=1, ensure_ascii=False)
        (GOLDEN / f"{twin.name}.json").write_text(text + "\n", encoding="utf-8")
        Image.fromarray(pictures).save(GOLDEN / f"{twin.name}.png")
        pytest.fail("there was no golden of this version; it is written now: look at it, then commit it")
    golden, sheet = kept(twin)
    found = json.loads(json.dumps(stages))
    exact = twin.exact and golden["machine"] == machine()
    off = differences(golden["stages"], sheet, found, pictures, exact=exact, slack=twin.slack)
    assert not off, "behaviour changed; if that is meant, raise the version of the experiment's class"


def test_every_class_of_experiments_and_every_attack_has_a_twin():
    def below(kind: type) -> set[type]:
        return {kind}.union(*map(below, kind.__subclasses__()))

    ours = {kind for kind in below(experiments.Experiment) if kind.__module__.startswith("clearstamp.")}
    kinds = {type(twin.experiment) for twin in TWINS}
    assert {kind for kind in ours if not kind.__abstractmethods__} <= kinds
    used = {attack.name for twin in TWINS for attack in getattr(twin.experiment, "attacks", {}).values()}
    assert used == set(ATTACKS)


def test_no_golden_was_ever_changed():
    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(GOLDEN), *arguments], capture_output=True, text=True, check=False)
        return done.stdout if done.returncode == 0 else pytest.skip("not a git checkout")

    if git("rev-parse", "--is-shallow-repository").strip() == "true":
        pytest.skip("a clone without history")
    assert git("log", "--diff-filter=M", "--format=", "--name-only", "--", ".") == ""
    assert git("diff", "--diff-filter=M", "--name-only", "HEAD", "--", ".") == ""
    added = git("log", "--diff-filter=A", "--format=", "--name-only", "--", ".").split()
    assert len(added) == len(set(added)), "one was removed, and another put in its place"


def test_every_golden_belongs_to_a_twin():
    names = {twin.name for twin in TWINS}
    assert {path.stem.rpartition("-v")[0] for path in GOLDEN.iterdir()} == {name.rpartition("-v")[0] for name in names}


# ------------------------------------------------------------------------------------- edits that goldens have to see


def changed_rule(patch: pytest.MonkeyPatch, readout: str, apply: Callable[..., Any]) -> None:
    table = rules.READOUTS[readout].rules
    patch.setitem(table, "aten::linear", replace(table["aten::linear"], apply=apply))


def paper_readout_without_bias(patch: pytest.MonkeyPatch) -> None:
    changed_rule(patch, "paper", rules.linear)


def adjoint_rule_doubled(patch: pytest.MonkeyPatch) -> None:
    changed_rule(patch, "adjoint", lambda y, x, weight, bias=None: 2 * y @ weight)


def rescaling_that_leaves_the_weights_alone(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Rescaling, "scale", lambda self, *_: None)


def another_loss_for_every_row(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(lifecycle, "StampLoss", lambda back, stamp, **_: StampLoss(back, stamp, dropout=0.9))


def another_licence(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(capacity, "LICENCE", capacity.LICENCE[::-1])


def mnist_inverted(patch: pytest.MonkeyPatch) -> None:
    load = data.load_mnist
    patch.setitem(data.LOADERS, "mnist", lambda split: replace(load(split), images=255 - load(split).images))
    load_sets.cache_clear()


def packs_inverted(patch: pytest.MonkeyPatch) -> None:
    read = data.read_pack
    patch.setattr(data, "read_pack", lambda path: (255 - read(path)[0], read(path)[1]))
    load_sets.cache_clear()


EDITS: list[tuple[Callable[[pytest.MonkeyPatch], None], str]] = [
    (paper_readout_without_bias, "life-fc-paper"),
    (adjoint_rule_doubled, "life-fc-adjoint"),
    (rescaling_that_leaves_the_weights_alone, "campaign-paper"),
    (another_loss_for_every_row, "row-cifar10-resnet18"),
    (another_licence, "capacity-none"),
    (mnist_inverted, "unmarked-fc"),
    (packs_inverted, "cross-data"),
]


@pytest.mark.parametrize(("edit", "name"), EDITS, ids=lambda value: getattr(value, "__name__", value))
def test_an_edit_that_changes_behaviour_is_seen_on_every_machine(edit, name, monkeypatch):
    (twin,) = (twin for twin in TWINS if twin.experiment.name == name)
    golden, sheet = kept(twin)
    with monkeypatch.context() as patch:
        edit(patch)
        stages, pictures = measured(twin)
    load_sets.cache_clear()
    found = json.loads(json.dumps(stages))
    assert differences(golden["stages"], sheet, found, pictures, exact=False, slack=twin.slack)


def test_an_edit_that_changes_nothing_is_not_seen(monkeypatch):
    """Of a pooling layer the rule takes the recorded shape alone."""
    (twin,) = (twin for twin in TWINS if twin.experiment.name == "life-cnn-paper")
    golden, sheet = kept(twin)
    table = rules.READOUTS["paper"].rules
    pooling = replace(table["aten::max_pool2d"], apply=lambda y, x, *geometry: rules.pooling(y, x))
    monkeypatch.setitem(table, "aten::max_pool2d", pooling)
    stages, pictures = measured(twin)
    same_machine = golden["machine"] == machine()
    assert not differences(golden["stages"], sheet, json.loads(json.dumps(stages)), pictures, exact=same_machine)
