"""Trainings that were interrupted: they end with the weights of those that were not, bit for bit."""

import random
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from clearstamp.data import Data
from clearstamp.errors import TrainingError
from clearstamp.files import checksum
from clearstamp.stamp import Stamp
from clearstamp.training.checkpoint import randomness, tensors
from clearstamp.training.loops import Fit, embed, fit, harden
from clearstamp.training.losses import StampLoss
from clearstamp.training.method import RECOMMENDED
from clearstamp.training.schedules import ADMM, Alternating, AugmentedLagrangian, Joint, Schedule
from clearstamp.training.steps import MakeOptimizer, adam, sgd
from clearstamp.transpose import transpose

ROOT = Path(__file__).parents[2]
SHAPE = (1, 12, 12)
EPOCHS = 4


def images() -> Data:
    generator = torch.Generator().manual_seed(3)
    return Data(torch.rand(40, *SHAPE, generator=generator), torch.arange(40) % 4)


def fresh() -> nn.Sequential:
    """A model with all that a training changes beside weights: batch norm has buffers, dropout draws."""
    torch.manual_seed(1)
    block = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()
    return nn.Sequential(*block, nn.Dropout(0.2), nn.Linear(144, 4))


@dataclass
class Shaken:
    """Batches with noise from a generator of numpy's and from Python's, as augmentation may draw them."""

    batches: Iterable[tuple[Tensor, Tensor]]
    noise: np.random.Generator
    coin: random.Random

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for inputs, labels in self.batches:
            bright = self.noise.normal() + self.coin.random() + np.random.rand() + random.random()
            yield inputs + 0.01 * bright, labels

    def __len__(self) -> int:
        return 5


def shuffled(**about: Any) -> DataLoader:
    data = images()
    return DataLoader(TensorDataset(data.images, data.labels), 8, shuffle=True, **about)


LOADERS = {
    "of the library": lambda: images().loader(8, seed=5),
    "shuffled by the global generator": shuffled,
    "shuffled by a generator of its own": lambda: shuffled(generator=torch.Generator().manual_seed(6)),
    "a list": lambda: [(part[0], part[1]) for part in images().loader(8)],
    "augmented": lambda: Shaken(images().loader(8), np.random.default_rng(7), random.Random(8)),
}


class Stopped(Exception):  # noqa: N818
    """Stands for the end of a process."""


def trained(
    checkpoint: Path | None,
    schedule: Schedule = RECOMMENDED.schedule,
    optimizer: MakeOptimizer = adam,
    loader: str = "of the library",
    stop: int | None = None,
    **about: Any,
) -> tuple[str, Fit]:
    """The checksum of a model's weights and buffers after training, and how it went; it ends at batch `stop`."""
    model, batches = fresh(), iter(range(1, 1000))
    stamp = Stamp.from_texts(["A", "B"], outputs=4, shape=SHAPE, seed=0)
    loss = StampLoss(transpose(model, torch.zeros(1, *SHAPE)), stamp)
    torch.manual_seed(2)
    np.random.seed(2)
    random.seed(2)

    def count(*_: object) -> None:
        print("batch", flush=True)
        if next(batches) == stop:
            raise Stopped

    model.register_forward_hook(count)
    about = {"epochs": EPOCHS, "lr": 1e-2, "stamp_loss": loss, "progress": False} | about
    done = fit(model, LOADERS[loader](), schedule=schedule, optimizer=optimizer, checkpoint=checkpoint, **about)
    return checksum((), tensors(model)), done


def falling(done: float) -> float:
    return 1 - done


momentum = partial(sgd, momentum=0.9, nesterov=True, weight_decay=1e-3)
TRAININGS: dict[str, dict[str, Any]] = {
    **{f"loader {name}": {"loader": name} for name in LOADERS},
    "joint, momentum": {"optimizer": momentum, "lr": 1e-3},
    "joint, not fused": {"optimizer": torch.optim.Adam},
    "alternating": {"schedule": Alternating(every=2, lr=1e-3)},
    "alternating, momentum": {"schedule": Alternating(), "optimizer": momentum, "lr": 1e-3},
    "augmented Lagrangian": {"schedule": AugmentedLagrangian(period=3, limit=0.5)},
    "ADMM": {"schedule": ADMM(period=3)},
    "falling rate": {"rate": falling, "schedule": Alternating(every=3)},
    "no stamp": {"stamp_loss": None},
}


@pytest.mark.parametrize("about", TRAININGS.values(), ids=TRAININGS)
def test_an_interrupted_training_ends_as_if_it_had_never_stopped(about, tmp_path):
    expected = trained(None, **about)
    path = tmp_path / "training"
    for stop in (8, 3, 9):  # within the second epoch, again within it, and within the third
        with pytest.raises(Stopped):
            trained(path, stop=stop, **about)
    again = trained(path, **about)
    assert again == expected
    assert trained(path, stop=1, **about) == expected, "nothing is left to do"


def test_a_killed_training_ends_as_if_it_had_never_stopped(tmp_path):
    """A real process, killed at a moment that nobody chose."""
    code = "from tests.training.test_checkpoint import trained; print(trained(__import__('sys').argv[1])[0])"
    command = [sys.executable, "-c", code, str(tmp_path / "training")]

    def run(batches: int | None) -> str:
        """What it prints last, or nothing if it is killed after so many batches."""
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            if batches is None:
                return process.stdout.read().split()[-1]
            for _ in range(batches):
                assert process.stdout.readline() == "batch\n"
            process.kill()
        assert process.returncode == -signal.SIGKILL
        return ""

    expected, _ = trained(None)
    run(random.SystemRandom().randint(1, 18))
    assert run(None) == expected


def test_what_comes_after_an_epoch_is_told_again_if_its_checkpoint_was_not_written(tmp_path):
    told: list[int] = []

    def note(epoch: int) -> None:
        told.append(epoch)
        if told == [1, 2]:
            raise Stopped

    with pytest.raises(Stopped):
        trained(tmp_path / "training", on_epoch=note)
    trained(tmp_path / "training", on_epoch=note)
    assert told == [1, 2, 2, 3, 4]


@pytest.mark.parametrize(
    ("other", "told"),
    [
        ({"epochs": 5}, "got: epochs 4; expected: epochs 5"),
        ({"lr": 2e-2}, "got: optimizer Adam .*lr: 0.01 .*expected: optimizer Adam .*lr: 0.02 "),
        ({"optimizer": sgd}, "got: optimizer Adam .*expected: optimizer SGD"),
        ({"schedule": Joint(every=2)}, r"got: schedule Joint\(every=3.*expected: schedule Joint\(every=2"),
        ({"stamp_loss": None}, ".*stamp loss StampLoss.adjoint, stamp [0-9a-f]{64}, dropout=0.3.*stamp loss None"),
        ({"rate": falling}, "got: rate None; expected: rate <function falling>"),
        (
            {"loss": F.multi_margin_loss},
            "got: loss <function cross_entropy>; expected: loss <function multi_margin_loss>",
        ),
        ({"loader": "shuffled by the global generator"}, "got: generators 1; expected: generators 0"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_checkpoint_of_another_training_is_refused(other, told, tmp_path):
    path = tmp_path / "training"
    with pytest.raises(Stopped):
        trained(path, stop=7)
    before = path.read_bytes()
    with pytest.raises(TrainingError, match=f"the checkpoint of another run; {told}.*remove the file to begin anew"):
        trained(path, **other)
    assert path.read_bytes() == before


def test_a_checkpoint_of_a_model_that_began_elsewhere_is_refused(tmp_path):
    path, model = tmp_path / "training", fresh()
    batches = LOADERS["a list"]()
    fit(model, batches, epochs=1, checkpoint=path, progress=False)
    with pytest.raises(TrainingError, match="first weights"):
        fit(model, batches, epochs=1, checkpoint=path, progress=False)
    with pytest.raises(TrainingError, match="first weights"):
        fit(nn.Sequential(nn.Flatten(), nn.Linear(144, 4)), batches, epochs=1, checkpoint=path, progress=False)


@pytest.mark.parametrize("content", [b"", b"half a file", None])
def test_what_is_not_a_whole_checkpoint_is_refused(content, tmp_path):
    path = tmp_path / "training"
    if content is None:
        torch.save([1, 2], path)
    else:
        path.write_bytes(content)
    with pytest.raises(TrainingError, match=f"not a whole checkpoint; got: .*; where: {path}; what to do: remove"):
        trained(path)


def test_a_checkpoint_that_would_execute_something_is_not_read(tmp_path):
    path = tmp_path / "training"
    torch.save({"run": {}, "state": Shaken}, path)
    with pytest.raises(TrainingError, match="not a whole checkpoint; got: UnpicklingError"):
        trained(path)


def test_loaders_that_cannot_be_repeated_are_refused_with_a_checkpoint_alone(tmp_path):
    batches = LOADERS["a list"]()
    fit(fresh(), iter(batches), epochs=1, progress=False)
    with pytest.raises(TrainingError, match="a loader that cannot be gone through again; got: list_iterator"):
        fit(fresh(), iter(batches), epochs=1, checkpoint=tmp_path / "training", progress=False)
    lasting = shuffled(num_workers=1, persistent_workers=True)
    with pytest.raises(TrainingError, match="persistent workers cannot be kept.*persistent_workers=False"):
        fit(fresh(), lasting, epochs=1, checkpoint=tmp_path / "training", progress=False)


def test_generators_are_found_wherever_a_loader_holds_them():
    one, two, three = torch.Generator(), np.random.default_rng(), random.Random()
    loader = shuffled(generator=one)
    loader.dataset.more = [{"a": (two,)}, loader, three, "text", torch.zeros(2)]
    assert {id(found) for found in randomness([loader, None])} == {id(one), id(two), id(three)}


# -------------------------------------------------------------------------------------------- hardening, and both steps


def test_interrupted_hardening_ends_as_if_it_had_never_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr("clearstamp.training.loops.PAUSE", 0.0)
    stamp = Stamp.from_texts(["A", "B"], outputs=4, shape=SHAPE, seed=0)

    def hardened(checkpoint: Path | None, stop: int | None = None, **about: Any) -> tuple[str, object, list[int]]:
        model, seen = fresh(), []
        torch.manual_seed(2)

        def on_check(step: int, _: Tensor) -> None:
            seen.append(step)
            if step == stop:
                raise Stopped

        about = {"steps": 20, "target": None, "check_every": 4, "progress": False} | about
        done = harden(
            transpose(model, torch.zeros(1, *SHAPE)), stamp, on_check=on_check, checkpoint=checkpoint, **about
        )
        return checksum((), tensors(model)), done, seen

    expected = hardened(None)
    with pytest.raises(Stopped):
        hardened(tmp_path / "hardening", stop=12)
    again = hardened(tmp_path / "hardening")
    assert again[:2] == expected[:2] and (expected[2], again[2]) == ([0, 4, 8, 12, 16, 20], [12, 16, 20])
    assert hardened(tmp_path / "hardening") == (*expected[:2], []), "nothing is left to do"
    with pytest.raises(TrainingError, match="another run; got: .*noise=0.0.*expected: .*noise=0.1"):
        hardened(tmp_path / "hardening", noise=0.1)


def test_hardening_is_kept_twice_a_minute_and_at_its_end(tmp_path, monkeypatch):
    clock = iter(range(0, 1000, 4))
    monkeypatch.setattr("clearstamp.training.checkpoint.time.monotonic", lambda: next(clock))
    written: list[Path] = []
    monkeypatch.setattr("clearstamp.training.checkpoint.write_atomically", lambda path, _: written.append(path))
    stamp = Stamp.from_texts(["A", "B"], outputs=4, shape=SHAPE, seed=0)
    about = {"target": None, "check_every": 1, "progress": False, "checkpoint": tmp_path / "hardening"}
    harden(transpose(fresh(), torch.zeros(1, *SHAPE)), stamp, steps=16, **about)
    assert len(written) == 3, "at the eighth and the sixteenth of seconds 4 apart, and at the end"


def test_an_interrupted_embedding_ends_as_if_it_had_never_stopped(tmp_path):
    stamp = Stamp.from_texts(["A", "B"], outputs=4, shape=SHAPE, seed=0)

    def embedded(checkpoint: Path | None, stop: int | None = None) -> str:
        model, calls = fresh(), iter(range(1, 100))
        torch.manual_seed(2)

        def count(module: nn.Module, *_: object) -> None:
            if module.training and next(calls) == stop:
                raise Stopped

        model.register_forward_hook(count)
        about = {"method": replace(RECOMMENDED, steps=20), "epochs": 2, "lr": 1e-2, "progress": False}
        embed(model, stamp, images().loader(8, seed=5), checkpoint=checkpoint, **about)
        return checksum((), tensors(model))

    expected = embedded(None)
    for stop in (2, 7):
        with pytest.raises(Stopped):
            embedded(tmp_path / "run", stop=stop)
    assert embedded(tmp_path / "run") == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "run.hardening"]
