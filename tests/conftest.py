"""What every test shares: one thread, no progress bars to read, and models small enough to read by eye."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from tests import books

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test starts from one seed, whatever ran before it."""
    torch.manual_seed(0)


@pytest.fixture
def small_cnn() -> Callable[..., nn.Sequential]:
    """Builds an untrained CNN from [k, 1, 8, 8] to 3 outputs."""

    def build(dtype: torch.dtype = torch.float64) -> nn.Sequential:
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
    root = tmp_path_factory.mktemp("book")
    books.copy_sources(root)
    return root


@pytest.fixture(scope="session")
def built(place: Path) -> Path:
    """The folder of the pages of a small book."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLEARSTAMP_ARTIFACTS", str(place / "artifacts"))
        return books.build(place)
