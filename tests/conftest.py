"""What every test shares: one thread, one seed, and models small enough to read by eye.

torch and the library are imported where they are used: of the processes of a parallel run, the one that only hands the
tests out stays small.
"""

import gc
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import torch
    from torch import nn

os.environ["OMP_NUM_THREADS"] = "1"  # before torch starts, here and in the kernels and programs that tests start


TOGETHER = {
    "test_book.py": "book",
    "test_browser.py": "book",
    "test_documentation.py": "large",
    "test_examples.py": "large",
    "test_execute.py": "large",
    "test_runner.py": "large",
} | {name: name for name in ("test_campaigns.py", "test_coverage.py", "test_explorer.py", "test_report.py")}
"""Files whose tests share what takes long to make, or are large: each group goes to one worker as a whole."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Deal the tests out one by one, but for the groups; and to one worker what starts processes of a gigabyte.

    Those are the notebooks, which share records too, the examples and the runner: two would not fit into 3 GiB.
    """
    from xdist.scheduler import LoadScopeScheduling

    class Together(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            path = Path(nodeid.partition("::")[0])
            return "large" if path.suffix == ".ipynb" else TOGETHER.get(path.name, nodeid)

    return Together(config, log)


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
