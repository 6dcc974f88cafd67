"""The command, verb by verb: what it writes and prints, the exit codes, and one sentence for whatever goes wrong."""

import json
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
import tomllib
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from clearstamp import checkpoints, suspects, zoo
from clearstamp.evidence import Seal, Signer, commands
from clearstamp.evidence import seal as sealing
from clearstamp.evidence.people import shuffled
from clearstamp.evidence.statements import tensor_digest
from tests.documents import ROOT
from tests.evidence.bundles import Authority, remembered, stamped
from tests.evidence.shell import Ran, address, clearstamp

VERBS = ("seal", "date", "deposit", "inspect", "examine", "verify", "blind", "grade")


def linear(outputs: int = 8) -> nn.Module:
    """An architecture of one's own."""
    return nn.Sequential(nn.Flatten(), nn.Linear(784, outputs))


class Sinh(nn.Module):
    """An architecture with a layer that cannot be run backwards."""

    def __init__(self) -> None:
        super().__init__()
        self.body = linear()

    def forward(self, images: Tensor) -> Tensor:
        return self.body(images.sinh())


class Leaving(nn.Sequential):
    """A model that ends the program when it runs."""

    def __init__(self) -> None:
        super().__init__(*linear())

    def forward(self, images: Tensor) -> Tensor:
        sys.exit(0)


OWN = f"{__name__}:linear"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """scrypt is run once for each seal, and checkpoints are read in this process, but for the story itself."""
    monkeypatch.setattr(sealing, "root", remembered)
    for module in (commands, suspects):
        monkeypatch.setattr(module, "parsed", checkpoints.read_parts)


def seal_into(folder: Path, *more: object) -> Ran:
    given = ("--outputs", 8, "--shape", "1,28,28", "--codes", 5, "--sign", folder / "owner.key")
    return clearstamp("seal", *given, "-o", folder / "acme.seal", *more)


def date(authority: Authority, path: Path) -> Ran:
    """By other means than a network."""
    assert clearstamp("date", path).code == 0
    answer = path.with_suffix(".answer")
    answer.write_bytes(authority.reply(Path(f"{path}.tsq").read_bytes()))
    return clearstamp("date", path, "--token", answer, "--root", authority.folder / "root.pem")


@dataclass(frozen=True)
class Desk:
    """An owner's folder at the end of the story, and what each command came to."""

    folder: Path
    root: Path
    ran: dict[str, Ran]

    def __truediv__(self, name: str) -> Path:
        return self.folder / name

    def examine(self, suspect: Path, out: Path, *more: object, arch: str = OWN) -> Ran:
        given = ("--seal", self / "acme.seal", "--arch", arch, "--sign", self / "owner.key", "-o", out)
        return clearstamp("examine", suspect, *given, *more)

    def verify(self, evidence: Path, *more: object) -> Ran:
        given = ("--root", self.root, "--owner", self / "owner.key.pub")
        return clearstamp("verify", evidence, *given, *more)

    def verify_all(self, evidence: Path, *more: object) -> Ran:
        return self.verify(evidence, "--suspect", self / "found.pth", "--arch", OWN, *more)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> Desk:
    """From the seal to the evidence, of a model that is not trained but solved for: a linear layer that shows all."""
    folder, ran = tmp_path_factory.mktemp("desk"), {}
    ran["seal"] = seal_into(folder, "--text", "ours")
    ran["date"] = date(authority, folder / "acme.commitment.json")
    model = stamped(Seal.load(folder / "acme.seal"))
    save_file(model.state_dict(), folder / "acme.safetensors")
    owned = ("--seal", folder / "acme.seal", "--arch", OWN, "--sign", folder / "owner.key")
    ran["deposit"] = clearstamp("deposit", folder / "acme.safetensors", *owned)
    ran["date deposit"] = date(authority, folder / "acme.deposit.json")
    wrapped = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": wrapped}, folder / "found.pth")
    ran["examine"] = clearstamp("examine", folder / "found.pth", *owned, "--source", "there", "-o", folder / "evidence")
    made = Desk(folder, authority.folder / "root.pem", ran)
    ran["verify"] = made.verify_all(folder / "evidence")
    return made


# ---------------------------------------------------------------------------------------------------------- the story


def test_the_whole_story_ends_with_a_match(desk: Desk):
    assert {verb: ran.code for verb, ran in desk.ran.items()} == dict.fromkeys(desk.ran, 0)
    lines = desk.ran["verify"].out.splitlines()
    marks = [line.split()[0] for line in lines[:10]]
    assert marks == ["PASS"] * 9 + ["STATED"]
    assert "letters 20 of 20 right" in desk.ran["verify"].out and "\nMATCH   p = 1.7e-24" in desk.ran["verify"].out
    assert "Not shown:" in lines


def test_what_the_owner_is_told_on_the_way(desk: Desk):
    lines = desk.ran["seal"].out.splitlines()
    commitment = Seal.load(desk / "acme.seal").commitment
    assert lines == [
        "test letters: 20 letters of 16   best p 1.7e-24   floor ok (bar 5.4e-20)",
        f"wrote {desk / 'acme.seal'} (SECRET: it reads and erases the stamp), {desk / 'acme.commitment.json'} "
        f"({commitment[:6]}...{commitment[-2:]})",
        f"NOT DATED YET: clearstamp date {desk / 'acme.commitment.json'} --tsa URL",
    ]
    assert f"made the key {desk / 'owner.key'} (SECRET" in desk.ran["seal"].err
    assert re.search(r"acme\.commitment\.json existed by \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC \(", desk.ran["date"].out)
    assert "MATCH" in desk.ran["deposit"].out and "NOT DATED YET: " in desk.ran["deposit"].out
    assert "100.0% of the model's numbers, from 'state_dict', the prefix 'module.' taken off" in desk.ran["examine"].out
    assert desk.ran["examine"].err == f"running {__name__}, code of your own, to build {OWN}\n"


def test_the_commands_that_the_owner_is_told_are_commands(desk: Desk):
    """Each line that names a command is one that the parser takes."""
    told = re.findall(r"(?<=: clearstamp ).*", "\n".join(ran.out for ran in desk.ran.values()))
    assert len(told) >= 3
    for words in told:
        existing = words.replace("tsa.pem", str(desk.root))
        assert commands.parser().parse_args(shlex.split(existing)).verb in VERBS


def test_every_verb_that_has_json_prints_it(desk: Desk, tmp_path: Path):
    assert seal_into(tmp_path, "--json").code == 0
    seal = tmp_path / "acme.seal"
    save_file(stamped(Seal.load(seal)).state_dict(), tmp_path / "a.safetensors")
    owned = ("--seal", seal, "--arch", OWN, "--sign", tmp_path / "owner.key", "--json")
    deposit = json.loads(clearstamp("deposit", tmp_path / "a.safetensors", *owned).out)
    examined = json.loads(clearstamp("examine", tmp_path / "a.safetensors", *owned, "-o", tmp_path / "evidence").out)
    inspected = json.loads(clearstamp("inspect", tmp_path / "a.safetensors", "--json").out)
    verified = json.loads(desk.verify_all(desk / "evidence", "--json").out)
    assert deposit["reading"]["outcome"] == examined["verdict"]["outcome"] == "MATCH"
    assert deposit["model"] == inspected["parts"][0]["digest"]
    assert verified["exit_code"] == 0 and verified["verdict"]["right"] == 20
    assert {check["mark"] for check in verified["checks"]} == {"PASS", "STATED"}


JSON_FAILS: list[tuple[tuple[str, ...], int]] = [
    (("seal", "--outputs", "9", "--shape", "7", "--sign", "{key}", "-o", "{new}"), 2),
    (("date", "{key}", "--tsa", "ftp://somewhere"), 4),
    (("date", "{key}", "--token", "{empty}"), 2),
    (("deposit", "{empty}", "--seal", "{empty}", "--arch", "clearstamp:fc", "--sign", "{key}"), 4),
    (("inspect", "{empty}"), 4),
    (("examine", "{empty}", "--seal", "{empty}", "--arch", "clearstamp:fc", "--sign", "{key}", "-o", "{new}"), 4),
    (("verify", "{folder}"), 3),
    (("verify", "{folder}", "--owner", "{empty}"), 4),
    (("blind", "{folder}", "-o", "{new}"), 4),
    (("grade", "{folder}", "{empty}"), 4),
]


@pytest.mark.parametrize(("words", "code"), JSON_FAILS)
def test_a_failure_is_json_too_and_a_sentence_for_people(desk: Desk, tmp_path: Path, words: tuple[str, ...], code: int):
    (tmp_path / "empty").touch()
    (tmp_path / "folder").mkdir()
    given = {name: tmp_path / name for name in ("empty", "folder", "new")} | {"key": desk / "owner.key"}
    ran = clearstamp(*(word.format(**given) for word in words), "--json")
    told = json.loads(ran.out)
    assert ran.code == told["exit_code"] == code
    assert "checks" in told or ran.err == f"clearstamp {words[0]}: {told['error']}\n"


def test_every_verb_has_json_and_its_exit_code_in_it(desk: Desk, authority: Authority, tmp_path: Path):
    (tmp_path / "a.json").write_text("something")
    (tmp_path / "token").write_bytes(authority.token(b"something"))
    for words in (
        ("date", tmp_path / "a.json"),
        ("date", tmp_path / "a.json", "--token", tmp_path / "token", "--root", desk.root),
        ("blind", desk / "evidence", "-o", tmp_path / "sheet.html"),
        ("inspect", desk / "found.pth"),
    ):
        ran = clearstamp(*words, "--json")
        assert ran.code == json.loads(ran.out)["exit_code"] == 0 and ran.err == ""
    assert all("--json" in clearstamp(verb, "--help").out for verb in VERBS)


# ------------------------------------------------------------------------------------------------------------- sealing


def test_a_seal_is_for_its_owner_alone_and_its_reserves_draw_apart(tmp_path: Path):
    ran = seal_into(tmp_path, "--reserve", 2, "--json")
    told = json.loads(ran.out)
    assert (ran.code, told["test"], told["of"]) == (0, "letters", 20)
    names = ["acme.seal", "acme.reserve-1.seal", "acme.reserve-2.seal"]
    assert [Path(each["seal"]).name for each in told["seals"]] == names
    seals = [Seal.load(tmp_path / name) for name in names]
    assert [seal.commitment for seal in seals] == [each["commitment"] for each in told["seals"]]
    assert len({seal.seed for seal in seals}) == 3 and len({seal.written for seal in seals}) == 1
    assert all(stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600 for name in (*names, "owner.key"))
    for each in told["seals"]:
        assert json.loads(Path(each["statement"]).read_text())["commitment"] == each["commitment"]
        assert len(Path(each["statement"] + ".sig").read_bytes()) == 64


@pytest.mark.parametrize("key", ["acme.seal", "acme.commitment.json", "acme.commitment.json.sig", "./acme.seal"])
def test_a_key_is_not_where_the_seal_goes(tmp_path: Path, key: str, monkeypatch: pytest.MonkeyPatch):
    """The seal would be written over the key."""
    monkeypatch.chdir(tmp_path)
    ran = clearstamp("seal", "--outputs", 8, "--shape", "1,28,28", "--codes", 5, "--sign", key, "-o", "acme.seal")
    assert ran.code == 2 and one_sentence(ran) and "the key would lie where the seal goes" in ran.err
    assert not list(tmp_path.iterdir())


def test_words_that_are_no_text_are_refused(tmp_path: Path):
    ran = seal_into(tmp_path, "--text", "\udcff")
    assert ran.code == 2 and one_sentence(ran) and "out of range" in ran.err


@pytest.mark.parametrize(
    "there",
    [
        *("acme.seal", "acme.commitment.json", "acme.commitment.json.sig", "acme.commitment.json.tsr"),
        *("acme.reserve-1.seal", "acme.reserve-1.commitment.json.ots", "owner.key.pub"),
    ],
)
def test_nothing_is_overwritten_and_then_nothing_is_written(tmp_path: Path, there: str):
    (tmp_path / there).write_text("mine")
    ran = seal_into(tmp_path, "--reserve", 1)
    assert ran.code == 2 and one_sentence(ran) and "there already" in ran.err or "something already" in ran.err
    assert [path.name for path in tmp_path.iterdir()] == [there] and (tmp_path / there).read_text() == "mine"


def test_a_key_that_is_there_signs(tmp_path: Path):
    Signer.make().save(tmp_path / "owner.key")
    before = (tmp_path / "owner.key").read_bytes()
    assert seal_into(tmp_path).err == "" and (tmp_path / "owner.key").read_bytes() == before


def test_a_seal_holds_pictures_text_bytes_and_a_tap(tmp_path: Path):
    Image.new("L", (40, 40), 200).save(tmp_path / "logo.png")
    (tmp_path / "licence.txt").write_bytes(b"licence 7")
    common = ("--shape", "1,28,28", "--sign", tmp_path / "owner.key", "-o")
    more = ("--images", tmp_path / "logo.png", tmp_path / "logo.png", "--tap", "layer4", "--text", "ours")
    assert clearstamp("seal", "--outputs", "4,4", *common, tmp_path / "a.seal", *more).code == 0
    choices = Seal.load(tmp_path / "a.seal").choices
    assert (choices.key, choices.tap, choices.text, len(choices.pictures)) == ((4, 4), "layer4", "ours", 2)
    ran = clearstamp(
        "seal", "--outputs", 4, *common, tmp_path / "b.seal", "--bytes", tmp_path / "licence.txt", "--test", "bits"
    )
    assert ran.code == 0 and re.match(r"test bits: \d+ bits   best p ", ran.out)
    assert Seal.load(tmp_path / "b.seal").data == b"licence 7"
    ran = clearstamp(
        "seal", "--outputs", 4, *common, tmp_path / "c.seal", "--codes", 0, "--images", tmp_path / "logo.png"
    )
    assert ran.code == 2 and one_sentence(ran) and "this seal could never show a match" in ran.err


# ------------------------------------------------------------------------------------------------------------- dating


def test_a_file_is_dated_over_a_network_once(tmp_path: Path, authority: Authority):
    (tmp_path / "a.json").write_text("something")
    with address(authority) as url:
        ran = clearstamp("date", tmp_path / "a.json", "--tsa", url, "--root", authority.folder / "root.pem")
        again = clearstamp("date", tmp_path / "a.json", "--tsa", url)
    assert ran.code == 0 and "existed by" in ran.out
    assert again.code == 2 and one_sentence(again) and "dated already" in again.err
    nobody = clearstamp("date", tmp_path / "root.pem" if (tmp_path / "root.pem").exists() else __file__, "--tsa", url)
    assert nobody.code == 4 and one_sentence(nobody) and "does not answer" in nobody.err


def test_a_token_is_taken_only_for_the_file_that_it_dates(tmp_path: Path, authority: Authority):
    (tmp_path / "a.json").write_text("something")
    for name, content in (("other", b"something else"), ("right", b"something")):
        (tmp_path / name).write_bytes(authority.token(content))
    ran = clearstamp("date", tmp_path / "a.json", "--token", tmp_path / "other")
    assert ran.code == 2 and one_sentence(ran) and "the token is one of another file" in ran.err
    assert clearstamp("date", tmp_path / "a.json").code == 0
    ran = clearstamp("date", tmp_path / "a.json", "--token", tmp_path / "a.json.tsq")
    assert ran.code == 2 and one_sentence(ran) and "not what an authority answered" in ran.err
    assert not (tmp_path / "a.json.tsr").exists()
    ran = clearstamp("date", tmp_path / "a.json", "--token", tmp_path / "right")
    assert ran.code == 0 and "NOT CHECKED: --root" in ran.out
    assert (tmp_path / "a.json.tsr").read_bytes() == (tmp_path / "right").read_bytes()


def test_a_token_of_an_authority_that_one_does_not_trust_is_not_taken(tmp_path: Path, authority: Authority):
    (tmp_path / "elsewhere").mkdir()
    stranger = Authority(tmp_path / "elsewhere")
    (tmp_path / "a.json").write_text("something")
    (tmp_path / "token").write_bytes(stranger.token(b"something"))
    root = ("--root", authority.folder / "root.pem")
    ran = clearstamp("date", tmp_path / "a.json", "--token", tmp_path / "token", *root)
    assert ran.code == 4 and one_sentence(ran) and not (tmp_path / "a.json.tsr").exists()


# ----------------------------------------------------------------------------------------------------- models and files


def test_a_model_without_the_stamp_is_deposited_and_told_of(desk: Desk, tmp_path: Path):
    seal_into(tmp_path)
    save_file(linear().state_dict(), tmp_path / "plain.safetensors")
    given = ("--seal", tmp_path / "acme.seal", "--arch", OWN, "--sign", tmp_path / "owner.key")
    ran = clearstamp("deposit", tmp_path / "plain.safetensors", *given)
    assert ran.code == 1 and "NO MATCH" in ran.out and (tmp_path / "acme.deposit.json").is_file()
    ran = clearstamp("deposit", tmp_path / "plain.safetensors", *given)
    assert ran.code == 2 and one_sentence(ran) and "there is something already" in ran.err


def test_a_deposit_is_signed_by_whoever_signed_the_commitment(desk: Desk, tmp_path: Path):
    """Else it would be dated, and of no use when it is needed."""
    seal_into(tmp_path)
    save_file(linear().state_dict(), tmp_path / "plain.safetensors")
    given = ("--seal", tmp_path / "acme.seal", "--arch", OWN, "--sign", desk / "owner.key")
    ran = clearstamp("deposit", tmp_path / "plain.safetensors", *given)
    assert ran.code == 4 and one_sentence(ran) and "the commitment is another seal's, or another owner's" in ran.err
    assert not (tmp_path / "acme.deposit.json").exists()


def test_of_several_parts_one_is_deposited_and_a_head_put_back_from_one(desk: Desk, tmp_path: Path):
    assert seal_into(tmp_path).code == 0
    marked = dict(stamped(Seal.load(tmp_path / "acme.seal")).state_dict())
    torch.save({"model": marked, "ema": linear().state_dict()}, tmp_path / "owned.pth")
    given = ("--seal", tmp_path / "acme.seal", "--arch", OWN, "--sign", tmp_path / "owner.key")
    ran = clearstamp("deposit", tmp_path / "owned.pth", *given)
    assert ran.code == 4 and "several parts" in ran.err and "--part" in ran.err
    ran = clearstamp("deposit", tmp_path / "owned.pth", *given, "--part", "model")
    assert ran.code == 0 and "MATCH" in ran.out
    save_file({"1.bias": marked["1.bias"]}, tmp_path / "headless.safetensors")
    again = ("examine", tmp_path / "headless.safetensors", *given, "--head-from", tmp_path / "owned.pth")
    ran = clearstamp(*again, "-o", tmp_path / "none")
    assert ran.code == 4 and "several parts" in ran.err
    right = {
        name: json.loads(clearstamp(*again, "-o", tmp_path / name, "--head-part", name, "--json").out)["verdict"][
            "right"
        ]
        for name in ("model", "ema")
    }
    assert right["model"] == 20 > 10 > right["ema"]


def test_a_seal_of_shapes_that_no_picture_has_is_refused_before_it_is_drawn(tmp_path: Path):
    given = ("--outputs", "10", "--shape", "3,100000,100000", "--sign", tmp_path / "owner.key")
    ran = clearstamp("seal", *given, "-o", tmp_path / "acme.seal")
    assert ran.code == 2 and one_sentence(ran) and "choices out of range" in ran.err


def test_inspect_lists_every_part_and_tensor(tmp_path: Path):
    weights = {"module.a.weight": torch.zeros(2, 3).half(), "module.n": torch.tensor(7)}
    torch.save({"model": weights, "ema": {"a.weight": torch.tensor([1.0, float("nan")])}}, tmp_path / "a.pth")
    told = json.loads(clearstamp("inspect", tmp_path / "a.pth", "--json").out)
    first, second = told["parts"]
    (listed,) = told["files"]
    assert listed["size"] == (tmp_path / "a.pth").stat().st_size and len(listed["sha256"]) == 64
    assert (first["part"], first["numbers"], first["prefixes"]) == ("model", 7, ["module."])
    assert first["tensors"][0] == {"name": "module.a.weight", "type": "float16", "shape": [2, 3], "finite": True}
    assert [each["finite"] for each in second["tensors"]] == [False]
    lines = clearstamp("inspect", tmp_path / "a.pth").out.splitlines()
    assert "  module.a.weight  float16  [2, 3]" in lines and "  a.weight  float32  [2]   NOT FINITE" in lines
    assert "'ema': 1 tensors, 2 numbers" in lines and "  prefixes on names: 'module.'" in lines


def test_inspect_names_a_model_by_the_digest_of_a_deposit(tmp_path: Path):
    """In any precision that holds the same numbers, and with or without the counters of batch norms."""
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    state = {
        name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in model.state_dict().items()
    }
    model.load_state_dict(state)
    save_file(state, tmp_path / "a.safetensors")
    (part,) = json.loads(clearstamp("inspect", tmp_path / "a.safetensors", "--json").out)["parts"]
    assert part["digest"] == tensor_digest(model)


class Bomb:
    """Leaves a trace where it is unpickled."""

    def __reduce__(self):
        return os.mkdir, (os.environ["TRACE"],)


def test_inspect_executes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TRACE", str(tmp_path / "trace"))
    torch.save({"a": torch.zeros(1), "b": Bomb()}, tmp_path / "a.pth")
    ran = clearstamp("inspect", tmp_path / "a.pth")
    assert ran.code == 4 and one_sentence(ran) and "nothing of it was executed" in ran.err
    assert not (tmp_path / "trace").exists()


# ------------------------------------------------------------------------------------------------- examine and verify


def test_a_strangers_model_is_no_match(desk: Desk, tmp_path: Path):
    save_file(linear().state_dict(), tmp_path / "plain.safetensors")
    ran = desk.examine(tmp_path / "plain.safetensors", tmp_path / "evidence")
    assert ran.code == 1 and "NO MATCH" in ran.out
    ran = desk.verify(tmp_path / "evidence", "--suspect", tmp_path / "plain.safetensors", "--arch", OWN)
    assert ran.code == 1 and "NO MATCH" in ran.out and "does not clear the model" in ran.out


def test_files_that_were_searched_before_count(desk: Desk, tmp_path: Path):
    ran = desk.examine(desk / "found.pth", tmp_path / "evidence", "--searched", 1000, "--json")
    assert ran.code == 0 and json.loads(ran.out)["verdict"]["tries"] == 2000


def test_a_replaced_head_supports_at_most(desk: Desk, tmp_path: Path):
    other = linear(8).state_dict() | {"1.weight": torch.zeros(3, 784), "1.bias": torch.zeros(3)}
    torch.save(other | {"extra": torch.zeros(1)}, tmp_path / "head.pth")
    ran = desk.examine(tmp_path / "head.pth", tmp_path / "none")
    assert ran.code == 4 and "no tensor of the checkpoint fits" in ran.err
    torch.save({"1.bias": torch.zeros(8)}, tmp_path / "head.pth")
    ran = desk.examine(tmp_path / "head.pth", tmp_path / "evidence", "--head-from", desk / "acme.safetensors")
    assert ran.code == 1 and "SUPPORTS" in ran.out and "the owner's own layer '1' put back" in ran.out


def test_evidence_of_two_parts_waits_for_a_choice(desk: Desk, tmp_path: Path):
    model = load_file(desk / "acme.safetensors")
    torch.save({"model": model, "ema": model}, tmp_path / "two.pth")
    ran = desk.examine(tmp_path / "two.pth", tmp_path / "evidence")
    assert ran.code == 4 and one_sentence(ran, more=1) and "several parts of the checkpoint fit" in ran.err
    ran = desk.examine(tmp_path / "two.pth", tmp_path / "evidence", "--part", "ema", "--json")
    assert ran.code == 0 and json.loads(ran.out)["verdict"]["tries"] == 4


def test_the_word_for_forgery_is_kept_for_what_was_changed(desk: Desk, tmp_path: Path):
    ran = desk.verify(desk / "evidence", "--arch", OWN)
    assert ran.code == 4 and "FAILED" not in ran.out and re.search("UNCHECKED +pictures", ran.out)
    ran = clearstamp("verify", desk / "evidence", "--suspect", desk / "found.pth", "--arch", OWN)
    assert ran.code == 4 and re.search("UNCHECKED +signature", ran.out) and re.search("UNCHECKED +date", ran.out)
    copy = tmp_path / "copy"
    for path in (desk / "evidence").rglob("*.*"):
        (copy / path.relative_to(desk / "evidence")).parent.mkdir(parents=True, exist_ok=True)
        (copy / path.relative_to(desk / "evidence")).write_bytes(path.read_bytes())
    (copy / "owner.pub").write_bytes((desk / "evidence" / "owner.pub").read_bytes())
    (copy / "SHA256SUMS").write_bytes((desk / "evidence" / "SHA256SUMS").read_bytes())
    assert desk.verify_all(copy).code == 0
    (copy / "suspect.json").write_text((copy / "suspect.json").read_text().replace("there", "where"))
    ran = desk.verify_all(copy)
    assert ran.code == 3 and re.search("FAILED +files", ran.out)


def test_a_zip_is_evidence_too_and_the_judges_bar_counts(desk: Desk, tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "evidence.zip", "w") as archive:
        for path in (desk / "evidence").rglob("*"):
            if path.is_file():
                archive.write(path, path.relative_to(desk / "evidence"))
    assert desk.verify_all(tmp_path / "evidence.zip").code == 0
    ran = desk.verify_all(tmp_path / "evidence.zip", "--alpha", "1e-30")
    assert ran.code == 1 and "WEAK" in ran.out


def test_what_lies_in_the_evidence_proves_nothing(desk: Desk, monkeypatch: pytest.MonkeyPatch):
    """Whoever made the folder put a key into it."""
    monkeypatch.chdir(desk / "evidence")
    for where, name in (("--owner", "owner.pub"), ("--root", "seal/commitment.json.tsr")):
        for evidence, path in ((".", name), (desk / "evidence", desk / "evidence" / name)):
            ran = clearstamp("verify", evidence, where, path)
            assert ran.code == 2 and one_sentence(ran) and "what lies in the evidence proves nothing" in ran.err


def test_evidence_that_nobody_would_write_is_no_fault_of_the_program(desk: Desk, tmp_path: Path):
    """Choices that are none, with an architecture that would take its shapes from them."""
    shutil.copytree(desk / "evidence", tmp_path / "evidence")
    choices = json.loads((tmp_path / "evidence" / "seal" / "choices.json").read_text())
    for spoilt in ({"payload": 5}, {"input": 7}, {"pictures": [5]}, {"attempts": 3}):
        (tmp_path / "evidence" / "seal" / "choices.json").write_text(json.dumps(choices | spoilt))
        ran = desk.verify(tmp_path / "evidence", "--arch", "clearstamp:fc")
        assert ran.code == 3 and "Traceback" not in ran.err
        for verb, *more in (("blind", "-o", tmp_path / "sheet.html"), ("grade", desk / "owner.key")):
            ran = clearstamp(verb, tmp_path / "evidence", *more)
            assert ran.code == 4 and one_sentence(ran)


def test_code_that_the_evidence_names_does_not_run(desk: Desk, monkeypatch: pytest.MonkeyPatch):
    ran = desk.verify(desk / "evidence", "--suspect", desk / "found.pth")
    assert ran.code == 4 and re.search("UNCHECKED +pictures .*names code as its architecture", ran.out)


def test_a_judge_who_names_the_architecture_need_not_say_its_shapes(desk: Desk, tmp_path: Path):
    torch.manual_seed(0)
    save_file(zoo.build("fc", (1, 28, 28), 8, seed=0).state_dict(), tmp_path / "fc.safetensors")
    assert desk.examine(tmp_path / "fc.safetensors", tmp_path / "evidence", arch="clearstamp:fc").code == 1
    for arch in ((), ("--arch", "clearstamp:fc")):
        ran = desk.verify(tmp_path / "evidence", "--suspect", tmp_path / "fc.safetensors", *arch)
        assert ran.code == 1 and re.search("PASS +pictures", ran.out) and ran.err == ""


def test_names_that_others_gave_do_nothing_to_a_terminal(desk: Desk, tmp_path: Path):
    torch.save({"\x1b[2Jmodel": {"a": torch.zeros(1)}}, tmp_path / "a\x1b[2J.pth")
    ran = clearstamp("inspect", tmp_path / "a\x1b[2J.pth")
    assert ran.code == 0 and "\x1b" not in ran.out and r"a\x1b[2J.pth" in ran.out
    ran = clearstamp("inspect", f"{tmp_path}/nothing\x1b[2J")
    assert ran.code == 2 and "\x1b" not in ran.err


def test_a_layer_without_a_rule_is_no_verdict(desk: Desk, tmp_path: Path):
    save_file({f"body.{n}": t for n, t in linear().state_dict().items()}, tmp_path / "sinh.safetensors")
    ran = desk.examine(tmp_path / "sinh.safetensors", tmp_path / "evidence", arch=f"{__name__}:Sinh")
    assert ran.code == 4 and "cannot be run backwards" in ran.err and "Traceback" not in ran.err


def test_a_seal_that_is_not_the_owners_examines_nothing(desk: Desk, tmp_path: Path):
    seal_into(tmp_path)
    given = ("--arch", OWN, "-o", tmp_path / "evidence")
    ran = clearstamp(
        "examine", desk / "found.pth", "--seal", tmp_path / "acme.seal", "--sign", desk / "owner.key", *given
    )
    assert ran.code == 4 and one_sentence(ran, more=1) and "another owner's" in ran.err
    assert not (tmp_path / "evidence").exists()


# ------------------------------------------------------------------------------------------------------------- people


def test_people_read_and_are_graded(desk: Desk, tmp_path: Path):
    ran = clearstamp("blind", desk / "evidence", "-o", tmp_path / "for" / "sheet.html")
    assert ran.code == 0 and (tmp_path / "for" / "sheet.html").read_text().startswith("<!DOCTYPE html>")
    form = json.loads((tmp_path / "for" / "answers.json").read_text())
    seal = Seal.load(desk / "acme.seal")
    places, _ = shuffled(seal, seal.secrets())
    letters = ["".join(seal.choices.alphabet[letter] for letter in seal.letters[place]) for place in places]
    right = {str(number): word for number, word in enumerate(letters, 1)}
    for name, read in (("Ada", right), ("Bo", dict.fromkeys(right, "????"))):
        (tmp_path / f"{name}.json").write_text(json.dumps(form | {"reader": name, "read": read}))
    both = (tmp_path / "Ada.json", tmp_path / "Bo.json")
    ran = clearstamp("grade", desk / "evidence", *both)
    assert ran.code == 0 and "Ada: 20 of 20 letters right" in ran.out and "Bo: 0 of 20 letters right" in ran.out
    told = json.loads(clearstamp("grade", desk / "evidence", *both, "--asked", 3, "--json").out)
    assert (told["asked"], told["tries"], told["outcome"]) == (3, 2, "MATCH")
    assert float(told["p"]) == pytest.approx(6 * 16.0**-20, rel=1e-4)
    assert clearstamp("grade", desk / "evidence", tmp_path / "Bo.json").code == 1
    ran = clearstamp("grade", desk / "evidence", *both, "--asked", 1)
    assert ran.code == 4 and one_sentence(ran) and "fewer people asked than answered" in ran.err


def test_a_sheet_goes_neither_into_the_evidence_nor_over_another(desk: Desk, tmp_path: Path):
    ran = clearstamp("blind", desk / "evidence", "-o", desk / "evidence" / "sheet.html")
    assert ran.code == 2 and one_sentence(ran) and "nothing is added to evidence" in ran.err
    ran = clearstamp("blind", desk / "evidence", "-o", tmp_path / "answers.json")
    assert ran.code == 2 and one_sentence(ran) and not (tmp_path / "answers.json").exists()
    (tmp_path / "answers.json").write_text("mine")
    ran = clearstamp("blind", desk / "evidence", "-o", tmp_path / "sheet.html")
    assert ran.code == 2 and one_sentence(ran) and (tmp_path / "answers.json").read_text() == "mine"


# ---------------------------------------------------------------------------------------------------------- bad input


def one_sentence(ran: Ran, *, more: int = 0) -> bool:
    """Nothing but one line on stderr, and `more` that tell whose code runs."""
    lines = ran.err.splitlines()
    return ran.out == "" and len(lines) == 1 + more and lines[-1].startswith("clearstamp")


OPENED = ("--seal", "{seal}", "--arch", "clearstamp:fc", "--sign", "{key}")


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ((), 2, "required: VERB"),
        (("sael",), 2, "invalid choice: 'sael'"),
        (("inspect",), 2, "required: FILE"),
        (("inspect", "{nothing}"), 2, "no such file: "),
        (("inspect", "{folder}"), 2, " is a folder"),
        (("inspect", "{empty}"), 4, "not a whole checkpoint"),
        (("inspect", "a" * 5000), 2, "no such file: "),
        (("verify", "a" * 5000), 2, "no such file: "),
        (("inspect", "{key}", "--jsno"), 2, "unrecognized arguments: --jsno"),
        (("seal", "--outputs", "0", "--shape", "1,28,28", "--sign", "{key}", "-o", "{new}"), 2, "0 is no length"),
        (("seal", "--outputs", "9", "--shape", "28x28", "--sign", "{key}", "-o", "{new}"), 2, "no shape such as"),
        (("seal", "--outputs", "9", "--shape", "7", "--sign", "{key}", "-o", "{new}"), 2, "nothing can be seen"),
        (
            ("seal", "--outputs", "9", "--shape", "1,28,28", "--codes", "3", "--sign", "{key}", "-o", "{new}"),
            2,
            "codes=",
        ),
        (("seal", "--outputs", "9", "--shape", "1,28,28", "--test", "luck", "--sign", "a", "-o", "{new}"), 2, "luck"),
        (("seal", "--outputs", "9", "--shape", "1,28,28", "--sign", "{empty}", "-o", "{new}"), 2, "not a private key"),
        (
            ("seal", "--outputs", "9", "--shape", "1,28,28", "--images", "{empty}", "--sign", "{key}", "-o", "{new}"),
            *(2, "not a readable image file"),
        ),
        (("seal", "--outputs", "9", "--shape", "1,28,28", "--sign", "{key}", "-o", "{seal}"), 2, "is there already"),
        (("date", "{key}", "--tsa", "ftp://somewhere"), 4, "not the address of a time-stamp authority"),
        (("date", "{key}", "--tsa", "a", "--token", "{key}"), 2, "not allowed with argument"),
        (("date", "{key}", "--token", "{empty}"), 2, "the token is one of another file"),
        (("date", "{empty}"), 4, "nothing to be dated"),
        (("deposit", "{empty}", "--seal", "{copy}", *OPENED[2:]), 4, "not a whole checkpoint"),
        (("examine", "{empty}", *OPENED, "-o", "{new}"), 4, "not a whole checkpoint"),
        (("examine", "{model}", *OPENED, "-o", "{new}"), 4, "no tensor of the checkpoint fits the model"),
        (("examine", "{model}", *OPENED, "-o", "{folder}"), 2, "nothing is overwritten"),
        (("examine", "{model}", *OPENED, "-o", "{new}", "--searched", "0"), 2, "0 is no number of at least 1"),
        (("examine", "{model}", "--seal", "{empty}", *OPENED[2:], "-o", "{new}"), 4, "not a whole seal"),
        (("examine", "{model}", "--seal", "{key}", *OPENED[2:], "-o", "{new}"), 4, "not a whole seal"),
        (("examine", "{model}", *OPENED[:3], "clearstamp:f", *OPENED[4:], "-o", "{new}"), 2, "expected: fc"),
        (("examine", "{model}", *OPENED[:3], "resnet18", *OPENED[4:], "-o", "{new}"), 2, "torchvision:NAME"),
        (("examine", "{model}", *OPENED[:5], "{empty}", "-o", "{new}"), 4, "not a private key"),
        (("examine", "{model}", *OPENED[:5], "{nothing}", "-o", "{new}"), 4, "no private key there"),
        (("verify", "{nothing}"), 2, "no such file"),
        (("verify", "{folder}", "--owner", "{empty}"), 4, "not a public key"),
        (("verify", "{folder}", "--root", "{empty}"), 4, "not certificates"),
        (("verify", "{folder}", "--alpha", "0"), 2, "0 is no probability such as 2^-64"),
        (("verify", "{folder}", "--alpha", "much"), 2, "much is no probability"),
        (("verify", "{folder}", "--alpha", "nan"), 2, "nan is no probability"),
        (("blind", "{folder}", "-o", "{new}"), 4, "a file is missing"),
        (("blind", "{empty}", "-o", "{new}"), 4, "neither a folder nor a whole zip"),
        (("grade", "{folder}", "{empty}"), 4, "a file is missing"),
        (("grade", "{evidence}", "{empty}"), 4, "not readable JSON"),
        (("grade", "{evidence}", "{seal}"), 4, "not of the expected type"),
    ],
)
def test_bad_input_is_told_in_a_sentence_with_its_exit_code(desk: Desk, tmp_path: Path, words, code: int, said: str):
    (tmp_path / "empty").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "README.txt").touch()
    given = {name: tmp_path / name for name in ("empty", "folder", "nothing", "new")}
    given |= {"seal": desk / "acme.seal", "key": desk / "owner.key", "evidence": desk / "evidence"}
    given |= {"model": desk / "acme.safetensors", "copy": tmp_path / "copy.seal"}
    given["copy"].write_bytes(given["seal"].read_bytes())
    ran = clearstamp(*(str(word).format(**given) for word in words))
    assert (ran.code, said in ran.err, one_sentence(ran)) == (code, True, True), ran.err
    assert not (tmp_path / "new").exists()


def test_a_folder_that_is_no_evidence_fails_its_check(tmp_path: Path):
    ran = clearstamp("verify", tmp_path)
    assert ran.code == 3 and re.search("FAILED +files +not evidence, or not whole", ran.out) and "NO VERDICT" in ran.out


def test_a_fault_of_the_program_is_not_no_match(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(_: object) -> None:
        raise RuntimeError("a fault")

    monkeypatch.setattr(commands, "parsed", fail)
    ran = clearstamp("inspect", __file__)
    assert ran.code == 4 and "RuntimeError: a fault" in ran.err


def test_an_exit_within_a_model_is_not_the_commands(desk: Desk, tmp_path: Path):
    """0 would say that there is a match."""
    ran = desk.examine(desk / "acme.safetensors", tmp_path / "evidence", arch=f"{__name__}:Leaving")
    assert ran.code == 4 and "SystemExit" in ran.err and not (tmp_path / "evidence").exists()


def test_letters_that_a_terminal_does_not_have_are_told_by_number(tmp_path: Path):
    save_file(linear().state_dict(), tmp_path / "\u0142.safetensors")
    script = "import sys; from clearstamp.evidence.commands import main; sys.exit(main(sys.argv[1:]))"
    ran = run(sys.executable, "-c", script, "inspect", "\u0142.safetensors", cwd=tmp_path, PYTHONIOENCODING="ascii")
    assert (ran.code, ran.err) == (0, "") and ran.out.startswith("\\u0142.safetensors ")


def test_a_folder_that_cannot_be_written_is_told_in_a_sentence(tmp_path: Path):
    (tmp_path / "file").touch()
    ran = seal_into(tmp_path / "file")
    assert ran.code == 2 and "Traceback" not in ran.err and len(ran.err.splitlines()) <= 2


# --------------------------------------------------------------------------------------------------------------- help


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_of_a_verb_has_an_example_that_is_a_command_and_the_exit_codes(verb: str, tmp_path: Path, monkeypatch):
    ran = clearstamp(verb, "--help")
    assert ran.code == 0 and commands.CODES in ran.out and max(map(len, ran.out.splitlines())) <= 100
    example = ran.out.split("example:\n")[1].split("\n\n")[0].replace("\\\n", " ")
    program, *words = shlex.split(example)
    assert (program, words[0]) == ("clearstamp", verb)
    monkeypatch.chdir(tmp_path)
    for word in words[1:]:
        if (
            word.endswith((".json", ".safetensors", ".pth", ".pem", ".pub", ".key"))
            or "--seal" in words
            and word == "acme.seal"
        ):
            Path(word).touch()
    Path("evidence").mkdir()
    assert commands.parser().parse_args(words).verb == verb


def test_the_release_is_told_that_evidence_names(desk: Desk):
    manifest = json.loads((desk / "evidence" / "manifest.json").read_text())
    assert clearstamp("--version") == Ran(0, f"clearstamp {manifest['clearstamp']}\n", "")


def test_the_help_names_every_verb_in_order():
    ran = clearstamp("--help")
    listed = re.findall(r"^    (\w+)  ", ran.out, re.MULTILINE)
    assert ran.code == 0 and tuple(listed) == VERBS and commands.CODES in ran.out


def run(*command: str, cwd: Path, **more: str) -> Ran:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | more
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    return Ran(done.returncode, done.stdout, done.stderr)


def test_the_installed_command_is_the_same(tmp_path: Path):
    """What `pip` writes of the entry point, and the module that does the same."""
    (tmp_path / "empty.pth").touch()
    entry = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]["clearstamp"]
    module, _, function = entry.partition(":")
    script = f"import sys; from {module} import {function}; sys.argv[0] = 'clearstamp'; sys.exit({function}())"
    ran = run(sys.executable, "-W", "error", "-P", "-c", script, "inspect", "empty.pth", cwd=tmp_path)
    assert (ran.code, ran.out, len(ran.err.splitlines())) == (4, "", 1)
    assert ran.err.startswith("clearstamp inspect: not a whole checkpoint; ")
    ran = run(sys.executable, "-W", "error", "-m", "clearstamp.evidence", "--help", cwd=tmp_path)
    assert (ran.code, ran.err) == (0, "") and ran.out.startswith("usage: clearstamp ")
