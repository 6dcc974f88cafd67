"""What every test shares: one thread, one seed, and models small enough to read by eye.

torch and the library are imported where they are used: of the processes of a parallel run, the one that only hands the
tests out stays small.
"""

import gc
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import torch
    from torch import nn

os.environ["OMP_NUM_THREADS"] = "1"  # before torch starts, here and in the kernels and programs that tests start


@pytest.hookimpl(tryfirst=True)  # before the items are dealt out by their groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The notebooks share records, and each starts a large kernel: one worker runs them, one after the other."""
    for item in items:
        if item.path.suffix == ".ipynb":
            item.add_marker(pytest.mark.xdist_group("notebooks"))


def pytest_collection_finish() -> None:
    """What was imported is never garbage: left out of the search for it, that is often, and models go soon."""
    gc.freeze()


def pytest_sessionfinish() -> None:
    gc.unfreeze()


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test starts from one seed, whatever ran before it."""
    import torch

    torch.manual_seed(0)


@pytest.fixture
def small_cnn() -> "Callable[..., nn.Sequential]":
    """Builds an untrained CNN from [k, 1, 8, 8] to 3 outputs."""
    import torch
    from torch import nn

    def build(dtype: "torch.dtype" = torch.float64) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(1, 2, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(32, 5),
            nn.ReLU(),
            nn.Linear(5, 3),
        ).to(dtype)

    return build


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the book's sources beside an empty folder of artifacts."""
    from tests import books

    root = tmp_path_factory.mktemp("book")
    books.copy_sources(root)
    return root


@pytest.fixture(scope="session")
def built(place: Path) -> Path:
    """The folder of the pages of a small book."""
    from tests import books

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLEARSTAMP_ARTIFACTS", str(place / "artifacts"))
        return books.build(place)
