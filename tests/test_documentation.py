"""What the documentation shows runs as it stands."""

import doctest
import importlib
import inspect
import json
import re
import shlex
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

import clearstamp as cs
import clearstamp.attacks
from clearstamp import suspects, zoo
from clearstamp.evidence.draws import Draws, commitment, root
from clearstamp.evidence.people import shuffled
from clearstamp.evidence.seal import ALPHABET
from clearstamp.reproduction.experiments import run_all
from clearstamp.reproduction.registry import declared
from tests.documents import ROOT, blocks, included, run, sessions, shows
from tests.evidence.bundles import Authority
from tests.evidence.shell import address, clearstamp

WITH_EXAMPLES = sorted(path for path in (ROOT / "clearstamp").rglob("*.py") if ">>> " in path.read_text())

PRINTED = {
    "own-data": r"0\.\d+ tensor\(\[0\.[89]\d*\]\)",
    "rule": r"(?s).* operations cannot be run backwards .*sin.*\nHardening\(.*reached=True\)",
    "attack": r"kept 0.5: SSIM 0\.9\d*\nkept 0.1: SSIM 0\.[0-8]\d*",
    "scheme": r"(uchida|adi|bias-signs), pruning: score 1.00, accepted True\n(.*\n)*"
    r"bias-signs, permutation: score 0\.\d+, accepted False",
    "queries": r"3136 queries; correlation with the exact picture tensor\(\[(0\.99\d+|1\.0+), (0\.99\d+|1\.0+)\]\)",
    "record": r"11-keys-default-adjoint 0 60000\nhardened: accuracy .*\ntrained: .*\nfinetuned: .*\n\w{40} .* [\d.]+",
    "audit": r"accuracy of the CNN .*: paper 0.8988, here [\d.]+: .*\nunmarked-seed0 agrees \{'accuracy': .*\}",
}
"""What the code of each how-to page prints, but for those that show an example, which is tested by itself."""


def test_the_snippet_of_the_front_page_runs(tmp_path: Path):
    (snippet,) = blocks(ROOT / "README.md", "python")
    assert len(snippet.splitlines()) < 30
    ((accuracy, ssim),) = re.findall(r"^accuracy ([\d.]+), SSIM ([\d.]+)$", run(snippet, tmp_path), re.MULTILINE)
    assert float(accuracy) > 0.8 and float(ssim) > 0.7
    assert (tmp_path / "owner.safetensors").is_file()
    with Image.open(tmp_path / "found.png") as sheet:
        assert sheet.size == (58, 28)


@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=lambda path: path.stem)
def test_examples_in_docstrings_run(path: Path):
    module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    stamp = cs.Stamp.from_texts(["AB"], outputs=10, shape=(1, 28, 28), seed=0)
    back = cs.transpose(model, stamp.secrets)
    given = {"torch": torch, "model": model, "stamp": stamp, "back": back}
    given |= {"inputs": stamp.secrets, "labels": torch.tensor([3])}
    assert "+SKIP" not in path.read_text()
    assert doctest.testmod(module, extraglobs=given).failed == 0


def functions(offered: object) -> list[Callable]:
    """A function itself, or a class's public methods and what its making runs."""
    members = vars(offered).items() if inspect.isclass(offered) else [("", offered)]
    held = [getattr(m, "__func__", m) for name, m in members if name == "__post_init__" or not name.startswith("_")]
    return [member for member in held if inspect.isfunction(member)]


def test_public_docstrings_say_what_is_raised():
    modules = (cs, cs.attacks, cs.evidence, cs.pictures, suspects, zoo)
    offered = {getattr(module, name) for module in modules for name in module.__all__ if name[-1].islower()}
    silent = [
        f"{function.__qualname__}: {error}"
        for each in offered
        for function in functions(each)
        for error in set(re.findall(r"raise (\w+)\(", inspect.getsource(function)))
        if error not in f"{each.__doc__} {function.__doc__}"
    ]
    assert len(offered) > 50 and silent == []


def test_what_is_said_of_the_paper_names_code_that_there_is():
    """In the second column of the page's tables: names, `module.name`, files, and keywords in brackets."""
    known = defaultdict(set)
    for path in (ROOT / "clearstamp").rglob("*.py"):
        known[path.stem] |= set(re.findall(r"\w+", path.read_text()))
    everywhere = {*known, *set().union(*known.values())}
    rows = re.findall(r"^\|[^|]*\|([^|]*)\|", (ROOT / "book" / "sentences.md").read_text(), re.MULTILINE)
    named = [name for row in rows for name in re.findall(r"`([^`]+)`", row)]
    assert len(named) > 30
    for name in named:
        if name.endswith(".py"):
            assert (ROOT / "clearstamp" / name).exists(), name
            continue
        first, *rest = words = re.findall(r"\w+", re.sub(r'"[^"]*"', "", name))
        assert set(words) <= everywhere, name
        assert "." not in name or set(rest) <= known.get(first, everywhere), name


def test_every_how_to_page_is_under_a_screen_and_runs():
    pages = {page.stem: page for page in (ROOT / "book" / "how-to").glob("*.md")}
    assert all(len(page.read_text().splitlines()) < 50 for page in pages.values())
    shown = {name: included(page) for name, page in pages.items() if included(page)}
    assert shown.keys() | PRINTED.keys() == pages.keys()
    assert {path.parent for paths in shown.values() for path in paths} == {ROOT / "examples"}
    assert [name for name in shown if blocks(pages[name], "python")] == []


def leak() -> None:
    """Somebody publishes a copy of the owner's model, in half precision and in a wrapper's names."""
    weights = load_file("acme.safetensors")
    torch.save(
        {"epoch": 2, "state_dict": {f"module.{name}": value.half() for name, value in weights.items()}}, "found.pth"
    )


def answer() -> None:
    """A reader of the sheet fills in the form, as somebody who sees all letters but one."""
    form, seal = json.loads(Path("reader/answers.json").read_text()), cs.Seal.load("acme.seal")
    places, _ = shuffled(seal, seal.secrets())
    words = ["".join(ALPHABET[letter] for letter in seal.letters[place]) for place in places]
    read = {str(number): word for number, word in enumerate(words, 1)} | {"1": f"?{words[0][1:]}"}
    Path("reader/answers.json").write_text(json.dumps(form | {"reader": "Ada", "read": read}))


def test_the_how_to_page_on_disputes_runs_from_the_seal_to_the_verdict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Command by command, and each prints what the page shows; only the authority is one of the tests' own."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "authority").mkdir()
    authority = Authority(tmp_path / "authority")
    (tmp_path / "tsa.pem").write_bytes(authority.root)
    page = ROOT / "book" / "how-to" / "evidence.md"
    before, verbs = {"inspect": leak, "grade": answer}, []
    with address(authority) as url:
        for command, shown in sessions(page):
            program, *words = shlex.split(command.replace("https://freetsa.org/tsr", url))
            if program == "python":
                assert words == ["seal.py"] and included(page) == [ROOT / "examples" / "seal.py"]
                printed = run((ROOT / "examples" / "seal.py").read_text(), tmp_path)
                ((accuracy, ssim),) = re.findall(r"^accuracy ([\d.]+), SSIM ([\d.]+)$", printed, re.MULTILINE)
                assert float(accuracy) > 0.8 and float(ssim) > 0.8 and "\nMATCH " in printed  # of a seal drawn anew
                continue
            assert program == "clearstamp"
            verbs.append(words[0])
            before.get(words[0], lambda: None)()
            ran = clearstamp(*words)
            assert ran.code == 0, (command, ran)
            assert not shown or shows(shown, ran.out), (command, ran.out)
    assert verbs == ["seal", "date", "deposit", "date", "inspect", "examine", "verify", "blind", "grade"]


def test_known_answers_on_the_page_are_those_of_the_code():
    page = (ROOT / "book" / "evidence.md").read_text()
    table = page.split("## Known answers")[1].split("\n## ")[0]
    said = dict(re.findall(r"^\| (.*?) \| `(.*)` \|$", table, re.MULTILINE))
    seed, choices = bytes(range(32)), b'{"type": "an example"}\n'
    drawn = Draws(root(seed, choices))
    assert said == {
        "commitment": commitment(seed, choices),
        "root": drawn.root.hex(),
        "the first key's first values": " ".join(map(str, drawn.keys(1, (10,), 10.0)[0, :4].tolist())),
        "letters": "".join(ALPHABET[letter] for letter in drawn.letters(16)),
        "order of 11": " ".join(map(str, drawn.order(11))),
        "order of 24": " ".join(map(str, drawn.order(24))),
        "mask": "".join(map(str, drawn.mask(32))),
    }
    assert len(choices) == 23 and f"`{ALPHABET}`" in page


def test_the_front_page_shows_commands():
    (told,) = blocks(ROOT / "README.md", "sh")
    on_the_page = [command for command, _ in sessions(ROOT / "book" / "how-to" / "evidence.md")]
    for line in told.splitlines():
        words = shlex.split(line, comments=True)
        near = [command for command in on_the_page if command.startswith(" ".join(words[:2]))]
        assert words[0] == "clearstamp" and set(words) - {"URL"} <= set(" ".join(near).split()), line


@pytest.mark.parametrize("name", sorted(PRINTED.keys() - {"audit"}))
def test_a_how_to_page_runs_as_it_stands(name: str, tmp_path: Path):
    (code,) = blocks(ROOT / "book" / "how-to" / f"{name}.md", "python")
    there = {"CLEARSTAMP_ARTIFACTS": str(ROOT / "artifacts")}  # of a reader, who has the records
    assert re.fullmatch(PRINTED[name], run(code, tmp_path, **there).strip())


def test_the_how_to_page_on_audits_runs_in_the_smallest_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CLEARSTAMP_ARTIFACTS", str(tmp_path))
    run_all([declared("tiny")["unmarked", 0]], "tiny")
    (code,) = blocks(ROOT / "book" / "how-to" / "audit.md", "python")
    assert code.count('"paper"  #') == 1
    printed = run(code.replace('"paper"  #', '"tiny"  #'), tmp_path)
    assert re.fullmatch(PRINTED["audit"], printed.strip())
    assert (tmp_path / "tiny" / "audits.jsonl").is_file()
