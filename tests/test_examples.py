"""The examples run as they stand, and end with a model that is trained and still shows its stamp."""

import os
import re
import subprocess
import sys

import pytest

from tests.documents import ROOT, blocks

EXAMPLES = ROOT / "examples"
(COMMANDS,) = blocks(ROOT / "book" / "how-to" / "several-gpus.md", "sh")


def run(*command: str) -> list[tuple[str, ...]]:
    """What an example printed at its end, a line a process."""
    done = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    return re.findall(r"accuracy ([\d.]+), SSIM ([\d.]+)(?:, bias (-?[\d.]+))?", done.stdout)


@pytest.mark.parametrize("name", ["plain", "lightning_module", "accelerate_loop", "suspect"])
def test_a_model_keeps_its_stamp(name: str):
    ((accuracy, ssim, _),) = run(str(EXAMPLES / f"{name}.py"))
    assert float(accuracy) > 0.7 and float(ssim) > 0.85


@pytest.mark.parametrize("command", COMMANDS.splitlines(), ids=["replicated", "sharded"])
def test_two_processes_keep_one_model_by_the_commands_of_the_how_to_page(command: str):
    program, *words = command.split()
    assert program == "torchrun"
    first, second = run("-m", "torch.distributed.run", *words)
    assert first == second and first[2]
    assert float(first[0]) > 0.7 and float(first[1]) > 0.85


def test_examples_are_short_and_all_tested():
    lines = {path.stem: len(path.read_text().splitlines()) for path in EXAMPLES.glob("*.py")}
    assert lines.keys() == {"plain", "lightning_module", "accelerate_loop", "distributed", "suspect", "seal"}
    assert max(lines.values()) < 40
