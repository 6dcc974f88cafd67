"""Checkpoints as people find them: what is read, what is refused, and what the report says."""

import json
import random
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import clearstamp as cs
from clearstamp import checkpoints, suspects
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
        monkeypatch.setattr(suspects, "parsed", checkpoints.read_parts)


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
        (lambda w: prefixed("base_model.model.", w), "", "base_model.model."),
        (
            lambda w: {"_forward_module." + n.replace(".", "._fsdp_wrapped_module."): t for n, t in w.items()},
            "",
            "_forward_module.",
        ),
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
    with pytest.raises(SuspectError, match=r"several parts.*'model' \(8 tensors\), 'model_ema' \(8 tensors\).*choose="):
        load_suspect(file, plain())
    chosen = load_suspect(file, plain(), choose="model_ema")
    assert same(chosen.model, average) and chosen.report.fitting == ("model", "model_ema")
    with pytest.raises(SuspectError, match="no such part.*'model', 'model_ema'"):
        load_suspect(file, plain(), choose="ema")


def test_of_several_prefixes_that_fit_none_is_guessed(file):
    torch.save(state(1) | prefixed("model.", state(2)), file)
    with pytest.raises(SuspectError, match="several prefixes make the names fit; got: '', 'model.'"):
        load_suspect(file, plain())


class Ensemble(nn.Module):
    """Two names for one tensor, and numbers that are not real."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        self.b.weight = self.a.weight
        self.turn = nn.Parameter(torch.randn(4, dtype=torch.complex64))
        self.register_buffer("mask", torch.tensor([True, False]))
        self.register_buffer("table", torch.arange(1, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(torch.relu(self.a(x))))


def test_a_tensor_of_two_names_is_read_from_one_and_may_not_differ(file):
    weights = dict(Ensemble().state_dict())
    del weights["b.weight"]
    save_file(weights, file)
    owner = Ensemble()
    suspect = load_suspect(file, owner)
    assert suspect.report.coverage == 1 and not suspect.report.missing
    assert torch.equal(suspect.model.b.weight, weights["a.weight"])
    torch.save(weights | {"b.weight": weights["a.weight"] + 1}, file)
    with pytest.raises(SuspectError, match=r"different numbers where the model has one tensor.*a\.weight, b\.weight"):
        load_suspect(file, owner)


def test_nothing_that_the_file_lacks_is_the_owner_s_of_whatever_kind(file):
    owner = Ensemble()
    torch.save({"a.bias": torch.zeros(4)}, file)
    found = load_suspect(file, owner, partial=True)
    for name in ("turn", "mask", "table", "a.weight", "c.bias"):
        assert not torch.equal(found.model.state_dict()[name], owner.state_dict()[name]), name
    assert found.report.coverage == 4 / sum(tensor.numel() for tensor in owner.state_dict().values())


@pytest.mark.parametrize("name", ["weights.bin", "weights", "weights.pth", "weights.SAFETENSORS"])
def test_files_are_told_by_what_they_hold_whatever_they_are_called(tmp_path, name):
    save_file(state(), tmp_path / name)
    assert same(load_suspect(tmp_path / name, plain()).model, state())
    torch.save(state(), tmp_path / "a.safetensors")
    assert same(load_suspect(tmp_path / "a.safetensors", plain()).model, state())


@pytest.mark.child
def test_links_are_read_by_what_they_point_to(tmp_path):
    save_file(state(), tmp_path / "5f2c")
    (tmp_path / "model.safetensors").symlink_to(tmp_path / "5f2c")
    assert same(load_suspect(tmp_path / "model.safetensors", plain()).model, state())


def test_shards_may_be_of_torch_s_form_and_hold_what_their_index_says(tmp_path):
    weights = state()
    for number, names in enumerate((["0.weight", "0.bias"], [name for name in weights if name[0] != "0"])):
        torch.save({name: weights[name] for name in names}, tmp_path / f"{number}.bin")
    where = {name: f"{int(name[0] != '0')}.bin" for name in weights}
    index = tmp_path / "pytorch_model.bin.index.fp16.json"
    index.write_text(json.dumps({"weight_map": where}))
    assert same(load_suspect(index, plain()).model, weights)
    index.write_text(json.dumps({"weight_map": where | {"4.weight": "0.bin"}}))
    with pytest.raises(SuspectError, match="holds a tensor that the index has elsewhere.*1.bin: '4.weight'"):
        load_suspect(index, plain())
    index.write_text(json.dumps({"hidden_size": 768}))
    with pytest.raises(SuspectError, match="not the index"):
        load_suspect(index, plain())


def test_what_lies_beside_the_weights_refuses_nothing_and_is_told(file):
    deep = [3]
    for _ in range(12):
        deep = [deep]
    sparse = {"exp_avg": torch.eye(3).to_sparse(), "step": torch.ones(1)}
    torch.save({"model": state(), "config": deep, "optimizer": sparse, "mean": torch.ones(1).expand(5)}, file)
    assert same(load_suspect(file, plain()).model, state())
    assert "sparse" in checkpoints.read_parts(file)["optimizer"].unread["exp_avg"]
    torch.save(prefixed("module.", state()) | prefixed("ema.", state(2)), file)
    report = load_suspect(file, plain()).report
    assert report.prefix == "module." and set(report.extra) == set(prefixed("ema.", state(2)))


def test_a_layer_under_a_parametrisation_is_put_back(file):
    def normed(seed: int) -> nn.Module:
        model = plain(seed)
        nn.utils.parametrizations.weight_norm(model[4])
        return model

    owner, other = normed(0), normed(1)
    torch.save({name: tensor for name, tensor in other.state_dict().items() if name[0] != "4"}, file)
    suspect = load_suspect(file, owner, head_from=owner)
    assert suspect.report.head == "4" and torch.equal(suspect.model[4].weight, owner[4].weight)


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
        ("poisoned", r"not finite in float32; got: 0\.bias"),
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


def quantised(weights: dict[str, Tensor], kind: str) -> dict[str, Tensor]:
    """The last layer's weights as other libraries store them."""
    scale = weights["4.weight"].abs().amax(1, keepdim=True) / 127
    whole = (weights["4.weight"] / scale).round()
    if kind == "int8":
        return weights | {"4.weight": whole.to(torch.int8), "4.SCB": scale * 127}
    if kind == "alone":
        return weights | {"4.weight": whole.to(torch.int8)}
    return weights | {"4.weight": whole.to(torch.float8_e4m3fn), "4.weight_scale": scale}


@pytest.mark.parametrize("kind", ["int8", "alone", "float8"])
def test_quantised_weights_are_not_taken_for_the_weights(file, kind):
    torch.save(quantised(state(), kind), file)
    with pytest.raises(SuspectError, match=r"quantised.*4\.weight: torch\.(int8|float8).*dequantise"):
        load_suspect(file, plain())


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"4.weight": torch.ones(10, 2704, dtype=torch.complex64)}, "another kind.*complex64"),
        ({"1.num_batches_tracked": torch.tensor(0.5)}, "another kind.*float32; expected: torch.int64"),
        ({"4.bias": torch.full((10,), 1e300, dtype=torch.float64)}, r"not finite in float32; got: 4\.bias"),
    ],
)
def test_numbers_that_the_model_cannot_hold_are_refused(file, change, problem):
    torch.save(state() | change, file)
    with pytest.raises(SuspectError, match=problem):
        load_suspect(file, plain())


@pytest.mark.parametrize(
    ("decoys", "problem"),
    [
        (
            lambda w, d: {"net": {"best": w}, "net.best": d},
            "two parts .* have one name; got: 'net.best'",
        ),
        (lambda w, d: w | {"4._orig_mod.weight": d["4.weight"]}, r"two tensors have one name.*4\.weight"),
        (
            lambda w, d: {n: t for n, t in w.items() if "num" not in n} | prefixed("module.", d),
            "several prefixes make the names fit",
        ),
    ],
)
def test_no_decoy_stands_in_for_the_weights(file, decoys, problem):
    torch.save(decoys(state(1), state(2)), file)
    with pytest.raises(SuspectError, match=problem):
        load_suspect(file, plain())


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS.*git lfs pull"),
        (b"<!DOCTYPE html>", "web page"),
        (b"\x89HDF\r\n", "HDF5"),
        (b"GGUF\x03", "GGUF"),
        (b"\x08\x07\x12\x07pytorch", "ONNX"),
        (b"\x1f\x8b\x08", "gzip.*unpack"),
        (b"\x85\xa5params", "not a whole checkpoint.*safetensors, or what torch.save wrote"),
    ],
)
def test_other_formats_are_told_by_their_names(file, content, problem):
    for path in (file, file.with_suffix(".safetensors")) if content[0] < 0x80 else (file,):
        path.write_bytes(content)
        with pytest.raises(SuspectError, match=problem):
            load_suspect(path, plain())


def test_archives_and_pickles_that_are_none_of_torch_s_are_told(file):
    np.savez(file.with_suffix(".npz"), **{name: tensor.numpy() for name, tensor in state().items()})
    with pytest.raises(SuspectError, match="archive of NumPy's"):
        load_suspect(file.with_suffix(".npz"), plain())
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("inner/model.pth", b"0")
    with pytest.raises(SuspectError, match="zip archive.*unpack"):
        load_suspect(file, plain())
    torch.save(state(), file, pickle_protocol=4)
    with pytest.raises(SuspectError, match="only by executing it.*torch.save"):
        load_suspect(file, plain())


def test_a_model_of_other_widths_or_layers_is_told_with_its_shapes(file):
    torch.save({"0.weight": torch.ones(4, 4)}, file)
    with pytest.raises(SuspectError, match=r"0\.weight \[4, 4\]; expected: 0\.weight \[4, 1, 3, 3\].*widths"):
        load_suspect(file, plain())
    torch.save(plain(1, outputs=100).state_dict(), file)
    for wrong in (plain(outputs=1), nn.Linear(3, 3)):
        with pytest.raises(SuspectError, match=r"has not that layer; got: 4\.weight"):
            load_suspect(file, plain(), head_from=wrong)
    with pytest.raises(SuspectError, match="not complete"):
        load_suspect(file, nn.Sequential(nn.LazyLinear(3)))


def test_prefixes_are_stacked_so_high_and_no_higher(file):
    draw = random.Random(0)
    names = {"".join(draw.choices(suspects.PREFIXES, k=12)) + str(number) for number in range(3_000)}
    torch.save(dict.fromkeys(names, torch.ones(1)), file)
    parts = checkpoints.read_parts(file)
    assert suspects.fitting_parts(parts, {"0": (1,)}) == {}
    assert max(prefix.count(".") for prefix in suspects.prefixes(parts[""].tensors)) == suspects.STACKED


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
    monkeypatch.setattr(checkpoints, "CHILD", "import time; time.sleep(60)")
    monkeypatch.setattr(checkpoints, "SECONDS", 0.1)
    with pytest.raises(SuspectError, match="takes too long"):
        load_suspect(file, plain())


@pytest.mark.child
def test_reading_that_dies_is_told(file, monkeypatch):
    torch.save(state(), file)
    monkeypatch.setattr(checkpoints, "CHILD", "import os; os.abort()")
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
        with pytest.raises(SuspectError, match=rf"numbers of a type that is not read \(torch.{name}\); got: a"):
            checkpoints.read_parts(file)
