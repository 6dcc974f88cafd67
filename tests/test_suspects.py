"""Checkpoints as people find them: what is read, what is refused, and what the report says."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import clearstamp as cs
from clearstamp import suspects
from clearstamp.errors import SuspectError
from clearstamp.suspects import load_suspect


def plain(seed: int = 0, outputs: int = 10) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(2704, outputs))


def same(model: nn.Module, weights: dict[str, Tensor]) -> bool:
    return all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "checkpoint.pt"


@pytest.fixture(autouse=True)
def in_this_process(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads files here, which takes no process of its own, but where a test is about that."""
    if "child" not in request.keywords:
        monkeypatch.setattr(suspects, "parsed", suspects.read_parts)


def state(seed: int = 1) -> dict[str, Tensor]:
    return dict(plain(seed).state_dict())


def prefixed(prefix: str, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in weights.items()}


# ---------------------------------------------------------------------------------------------------- what is read


@pytest.mark.parametrize(
    ("wrap", "held", "prefix"),
    [
        (lambda w: w, "", ""),
        (
            lambda w: {"state_dict": w, "epoch": 3, "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}},
            "state_dict",
            "",
        ),
        (lambda w: {"model": prefixed("module._orig_mod.", w), "epoch": 3}, "model", "module._orig_mod."),
        (lambda w: {"module": {"model": prefixed("model.backbone.", w)}}, "module.model", "model.backbone."),
        (lambda w: {"state_dict": prefixed("model.", w) | {"loss.weight": torch.ones(10)}}, "state_dict", "model."),
        (lambda w: [0, {"weights": w}], "1.weights", ""),
    ],
)
@pytest.mark.parametrize("legacy", [False, True])
def test_weights_are_found_however_they_are_nested(file, wrap, held, prefix, legacy):
    owner, weights = plain(), state()
    before = {name: tensor.clone() for name, tensor in owner.state_dict().items()}
    torch.save(wrap(weights), file, _use_new_zipfile_serialization=not legacy)
    suspect = load_suspect(file, owner)
    assert same(suspect.model, weights) and same(owner, before)
    report = suspect.report
    assert (report.held, report.prefix, report.coverage, report.missing, report.head) == (held, prefix, 1.0, (), None)
    assert not suspect.model.training


def test_safetensors_and_shards(tmp_path):
    weights = state()
    save_file(weights, tmp_path / "whole.safetensors")
    names = list(weights)
    save_file({name: weights[name] for name in names[:3]}, tmp_path / "a.safetensors")
    save_file({name: weights[name] for name in names[3:]}, tmp_path / "b.safetensors")
    shards = {name: "a.safetensors" if name in names[:3] else "b.safetensors" for name in names}
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": shards}))
    for path in (tmp_path / "whole.safetensors", index):
        assert same(load_suspect(path, plain()).model, weights)
    for wrong in ({"x": "../whole.safetensors"}, {"x": "none.safetensors"}, {"x": "a.safetensors"}, [], {"x": 3}):
        index.write_text(json.dumps({"weight_map": wrong}))
        with pytest.raises(SuspectError, match="shard"):
            load_suspect(index, plain())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_read_in_float32_on_the_copy(file, dtype):
    weights = {n: t.to(dtype) if t.is_floating_point() else t for n, t in state().items()}
    torch.save(weights, file)
    suspect = load_suspect(file, plain())
    assert {t.dtype for t in suspect.model.parameters()} == {torch.float32}
    torch.testing.assert_close(suspect.model[0].weight, weights["0.weight"].float())
    assert suspect.report.converted == {str(dtype).removeprefix("torch."): 8}
    assert "8 tensors converted" in str(suspect.report)


@pytest.mark.child
def test_a_stolen_copy_shows_the_stamp_and_a_stranger_s_does_not(file):
    owner = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    stamp = cs.Stamp.from_texts(["A", "B"], outputs=10, shape=(1, 8, 8), seed=0)
    cs.harden(cs.transpose(owner, stamp.secrets[:1]), stamp, lr=1e-2, steps=300, dropout=0.0, progress=False)
    torch.save({"model": prefixed("module.", dict(owner.state_dict()))}, file)

    def seen() -> float:
        suspect = load_suspect(file, owner).model
        return cs.read(cs.transpose(suspect, stamp.secrets[:1]), stamp).ssim.mean().item()

    assert seen() > 0.9
    stranger = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    torch.save(stranger.state_dict(), file)
    assert seen() < 0.3


# --------------------------------------------------------------------------------------------- what does not fit


def test_a_checkpoint_of_which_nothing_matches_never_reads_as_marked(file):
    torch.save(prefixed("net.", state()), file)
    for partial in (False, True):
        with pytest.raises(SuspectError, match=r"no tensor of the checkpoint fits.*net\.0\.weight"):
            load_suspect(file, plain(), partial=partial)


def test_what_the_file_lacks_is_noise_and_never_the_owner_s(file):
    owner, weights = plain(), state()
    torch.save({name: tensor for name, tensor in weights.items() if not name.startswith("4.")}, file)
    with pytest.raises(SuspectError, match=r"(?s)does not cover the model.*4\.weight: not in the file.*partial=True"):
        load_suspect(file, owner)
    suspect = load_suspect(file, owner, partial=True)
    assert suspect.report.missing == ("4.weight", "4.bias") and 0 < suspect.report.coverage < 0.01
    likeness = torch.corrcoef(torch.stack([suspect.model[4].weight.flatten(), owner[4].weight.flatten()]))[0, 1]
    assert likeness.abs() < 0.1
    assert torch.equal(suspect.model[0].weight, weights["0.weight"])


def test_a_replaced_head_is_put_back_and_said(file):
    owner, other = plain(), plain(1, outputs=100)
    torch.save(other.state_dict(), file)
    with pytest.raises(
        SuspectError, match=r"(?s)4\.weight: \(100, 2704\) in the file, \(10, 2704\) in the model.*head_from"
    ):
        load_suspect(file, owner)
    suspect = load_suspect(file, owner, head_from=owner)
    assert torch.equal(suspect.model[4].weight, owner[4].weight)
    assert torch.equal(suspect.model[0].weight, other[0].weight)
    assert suspect.report.head == "4" and "weaker evidence" in str(suspect.report)
    torch.save({"0.weight": other[0].weight}, file)
    with pytest.raises(SuspectError, match="more than one layer"):
        load_suspect(file, owner, head_from=owner)


def test_of_several_parts_that_fit_none_is_guessed(file):
    online, average = state(1), state(2)
    torch.save({"model": online, "model_ema": average}, file)
    with pytest.raises(SuspectError, match=r"several parts.*'model' \(9 tensors\), 'model_ema' \(9 tensors\).*choose="):
        load_suspect(file, plain())
    chosen = load_suspect(file, plain(), choose="model_ema")
    assert same(chosen.model, average) and chosen.report.fitting == ("model", "model_ema")
    with pytest.raises(SuspectError, match="no such part.*'model', 'model_ema'"):
        load_suspect(file, plain(), choose="ema")


def test_of_several_prefixes_that_fit_none_is_guessed(file):
    torch.save(state(1) | prefixed("model.", state(2)), file)
    with pytest.raises(SuspectError, match="several prefixes make the names fit; got: '', 'model.'"):
        load_suspect(file, plain())


# -------------------------------------------------------------------------------------------------- what is refused


class Trap:
    """Whoever unpickles this creates a file."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return open, (str(self.trace), "w")


def written(kind: str, path: Path) -> Path:
    weights = state()
    if kind == "module":
        torch.save(plain(), path)
    elif kind == "trap":
        torch.save(weights | {"epoch": Trap(path.with_name("executed"))}, path)
    elif kind == "script":
        torch.jit.script(plain()).save(str(path))
    elif kind == "program":
        path = path.with_suffix(".pt2")
        torch.export.save(torch.export.export(plain().eval(), (torch.zeros(1, 1, 28, 28),)), path)
    elif kind == "poisoned":
        weights["0.bias"][1] = float("nan")
        torch.save(weights, path)
    elif kind == "sparse":
        torch.save(weights | {"4.weight": weights["4.weight"].to_sparse()}, path)
    elif kind == "huge":
        torch.save(weights | {"4.weight": torch.zeros(1).expand(10**6, 10**6)}, path)
    elif kind == "control":
        torch.save(weights | {"\x1b[2J": torch.ones(1)}, path)
    elif kind == "cut":
        torch.save(weights, path)
        path.write_bytes(path.read_bytes()[:1000])
    elif kind == "empty":
        path.touch()
    elif kind == "numbers":
        torch.save({"epoch": 3}, path)
    return path


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("module", "more than tensors.*nothing of it was executed"),
        ("trap", "more than tensors.*nothing of it was executed"),
        ("script", "TorchScript"),
        ("program", "exported program"),
        ("poisoned", r"not finite; got: 0\.bias"),
        ("sparse", r"sparse, quantised.*4\.weight"),
        ("huge", r"larger than what the file holds.*4\.weight"),
        ("control", r"control characters.*x1b"),
        ("cut", "not a whole checkpoint"),
        ("empty", "not a whole checkpoint"),
        ("numbers", "no tensors by name"),
    ],
)
def test_what_is_not_plain_tensors_is_refused_in_a_sentence(file, kind, message):
    path = written(kind, file)
    with pytest.raises(SuspectError, match=message) as caught:
        load_suspect(path, plain())
    assert "weights_only" not in str(caught.value) and "Traceback" not in str(caught.value)
    assert not file.with_name("executed").exists()


@pytest.mark.child
def test_what_is_refused_in_the_process_of_its_own_is_told_here(file):
    with pytest.raises(SuspectError, match="more than tensors") as caught:
        load_suspect(written("trap", file), plain())
    assert str(file) in str(caught.value) and not file.with_name("executed").exists()
    with pytest.raises(SuspectError, match="no such file"):
        load_suspect(file.with_name("none"), plain())


@pytest.mark.child
def test_reading_is_bounded_in_time(file, monkeypatch):
    torch.save(state(), file)
    monkeypatch.setattr(suspects, "CHILD", "import time; time.sleep(60)")
    monkeypatch.setattr(suspects, "SECONDS", 0.1)
    with pytest.raises(SuspectError, match="takes too long"):
        load_suspect(file, plain())


@pytest.mark.child
def test_reading_that_dies_is_told(file, monkeypatch):
    torch.save(state(), file)
    monkeypatch.setattr(suspects, "CHILD", "import os; os.abort()")
    with pytest.raises(SuspectError, match="reading the checkpoint failed; got: exit code -6"):
        load_suspect(file, plain())


def test_damaged_checkpoints_raise_nothing_else():
    script = Path(__file__).with_name("fuzz_suspects.py")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", script, "300", "7"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    files, memory = done.stdout.splitlines()[-1].split(", ")
    assert files == "300 files" and float(memory.removesuffix(" GiB")) < 1


@pytest.mark.parametrize("kind", ["bits8", "complex128", "float4_e2m1fn_x2"])
def test_types_of_numbers_that_are_not_read_are_named(file: Path, kind: str):
    kinds = {name: getattr(torch, name) for name in (kind,) if hasattr(torch, name)}
    for name, dtype in kinds.items():
        torch.save({"a": torch.zeros(32, dtype=torch.uint8).view(dtype)}, file)
        with pytest.raises(SuspectError, match=f"numbers of a type that is not read; got: a: torch.{name}"):
            suspects.read_parts(file)
