"""check.py, which redoes p of a folder without the library."""

import ast
import io
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from clearstamp.evidence import Evidence, Seal, Signer, commit, judge
from clearstamp.evidence.examination import CHECK, examine
from clearstamp.evidence.readers import READERS
from tests.evidence.bundles import edited, fresh, repainted, resigned, stamped

pytestmark = pytest.mark.usefixtures("quick")


def run(evidence: Evidence, folder: Path) -> tuple[int, str]:
    """What check.py says in a folder where nothing else can be imported than what it needs."""
    evidence.write(folder)
    blocked = (
        "import sys; sys.modules['clearstamp'] = sys.modules['torch'] = None; import runpy; sys.argv = ['check.py']"
    )
    command = [sys.executable, "-c", f"{blocked}; runpy.run_path('check.py', run_name='__main__')"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def noisy(seal: Seal, signer: Signer, folder: Path, noise: float) -> Evidence:
    """Evidence on a model that shows a stamp half."""
    model = stamped(seal)
    with torch.no_grad():
        model[1].weight += noise * torch.randn_like(model[1].weight)
    save_file(model.state_dict(), folder / "found.safetensors")
    file = folder / "found.safetensors"
    return examine(file, seal, fresh(seal), signer=signer, commitment=commit(seal, signer), searched=3)


@pytest.fixture(scope="module")
def drawings(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Fourteen files, which make two blocks."""
    numbers, folder = np.random.default_rng(1), tmp_path_factory.mktemp("drawings")
    paths = [folder / f"{place}.png" for place in range(14)]
    for path in paths:
        Image.fromarray(numbers.integers(0, 256, (8, 8, 3), np.uint8)).save(path)
    return paths


SEALS: dict[str, dict[str, Any]] = {
    "letters": {"outputs": 8, "shape": (1, 28, 28), "codes": 5, "bar": 40},
    "letters in colour, few": {"outputs": 8, "shape": (3, 30, 29), "codes": 3, "bar": 30, "attempts": ("as is",)},
    "letters-soft": {"outputs": 8, "shape": (2, 28, 28), "codes": 5, "test": "letters-soft", "bar": 40},
    "bits": {"outputs": 8, "shape": (1, 28, 28), "data": b"licence", "patches": 9},
    "bits in colour": {"outputs": 8, "shape": (3, 9, 11), "data": b"ours", "patches": 7, "per_channel": True},
    "order": {"outputs": 16, "shape": (1, 8, 8), "codes": 0, "bar": 15},
    "order in colour": {"outputs": 16, "shape": (3, 8, 9), "codes": 0, "bar": 15},
    "order beside letters": {"outputs": 16, "shape": (1, 28, 28), "codes": 1, "test": "order", "bar": 15},
}


NOISE = (0.2, 0.3, 0.2, 0.05, 0.05, 0.05, 0.05, 0.25)
"""By how much the weights of each model are off, so that some is read wrong and some is not."""


@pytest.mark.parametrize(("kind", "noise"), [("letters", 0.0), *zip(SEALS, NOISE, strict=True)])
def test_it_finds_the_same_p_without_the_library(kind, noise, signer, drawings, tmp_path):
    images = drawings if "order" in kind else []
    seal = replace(Seal.make(**SEALS[kind], images=images), seed=bytes(range(32)))
    evidence = noisy(seal, signer, tmp_path, noise)
    code, said = run(evidence, tmp_path / "evidence")
    assert (code, said) == (0, f"p = {evidence.manifest['p']}\n")
    assert (evidence.verdict.right == evidence.verdict.of) == (noise == 0) and evidence.verdict.right > 0


def test_it_says_so_if_anything_is_another(evidence: Evidence, signer: Signer, tmp_path: Path):
    shuffled = evidence.signals[torch.tensor([1, 0, 2, 3, 4])]
    changed = [
        (resigned(evidence, signer, p="1E-90"), "p = 1.65437E-24\nNOT as the manifest says"),
        (resigned(repainted(evidence, signer, shuffled), signer, p="1.65437E-24"), "NOT as the manifest says"),
        (resigned(evidence, signer, {"seal/seed.bin": bytes(32)}), "NOT the seed, choices"),
        (resigned(evidence, signer, edited(evidence, "seal/choices.json", bar=1)), "NOT the seed, choices"),
        (resigned(evidence, signer, {"secrets/glyphs.png": b""}), "NOT the seed, choices"),
        (resigned(evidence, signer, edited(evidence, "suspect.json", searched=2)), "NOT as the manifest says"),
    ]
    for number, (forged, sentence) in enumerate(changed):
        code, said = run(forged, tmp_path / str(number))
        assert code == 1 and sentence in said


def test_what_cannot_be_checked_is_one_sentence(evidence: Evidence, tmp_path: Path):
    for number, name in enumerate(("manifest.json", "pictures/key-01.png", "seal/seed.bin")):
        spoilt = Evidence({each: content for each, content in evidence.members.items() if each != name})
        code, said = run(spoilt, tmp_path / str(number))
        assert code == 1 and said.startswith("NOT to be checked: FileNotFoundError: ") and said.count("\n") == 1


def test_a_palette_is_read_as_an_eye_reads_it(evidence: Evidence, tmp_path: Path):
    """Levels that a page shows the other way round than they are numbered."""
    with Image.open(io.BytesIO(evidence.members["pictures/key-01.png"])) as image:
        turned = Image.fromarray(255 - np.asarray(image)).convert("P")
    turned.putpalette([level for place in range(256) for level in [255 - place] * 3])
    written = io.BytesIO()
    turned.save(written, "PNG")
    seen = Evidence(evidence.members | {"pictures/key-01.png": written.getvalue()})
    assert run(seen, tmp_path / "same") == (0, f"p = {evidence.manifest['p']}\n")


def test_it_takes_another_readers_scores_and_says_so(small, signer, tmp_path, monkeypatch):
    monkeypatch.setitem(READERS, "always Q", lambda cells, sheet: np.tile(np.arange(16) == 9, (len(cells), 1)) * 1)
    choices = replace(small.choices, reader="always Q")
    seal = replace(small, written=choices.written())
    evidence = noisy(seal, signer, tmp_path, 0.0)
    assert judge(seal, evidence.pictures).right < 20
    code, said = run(evidence, tmp_path / "evidence")
    assert (code, said) == (0, f"p = {evidence.manifest['p']}, by the scores of reading.json\n")


def test_it_is_short_and_imports_no_more_than_it_says():
    source = CHECK.decode()
    assert len(source.splitlines()) < 100
    names = {a.name for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Import) for a in node.names}
    names |= {node.module or "" for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)}
    assert {name for name in names if name.partition(".")[0] not in sys.stdlib_module_names} == {"numpy", "PIL"}
