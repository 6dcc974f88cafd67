"""What every test shares: one thread, one seed, and models small enough to read by eye.

torch and the library are imported where they are used: of the processes of a parallel run, the one that only hands the
tests out stays small.
"""

import ctypes
import gc
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import torch
    from torch import nn

os.environ["OMP_NUM_THREADS"] = "1"  # before torch starts, here and in the kernels and programs that tests start
TRIM = getattr(ctypes.CDLL(None), "malloc_trim", lambda _: None)  # of glibc

TOGETHER = (
    ("test_runner.py", "test_examples.py", "test_execute.py", ".ipynb"),
    ("test_coverage.py",),
    ("test_golden.py",),
    ("test_book.py", "test_browser.py"),
    ("test_documentation.py",),
    ("test_report.py",),
    ("test_campaigns.py",),
    ("test_explorer.py",),
)
"""Files whose tests go to one worker as a whole, since they share what takes long to make, or start processes of half a
gigabyte and more: two of the first group would not fit into 3 GiB.

In this order they are dealt out before all other tests, so that the workers end together. What starts most processes
comes first, while the other worker is still small, and long before the browser.
"""


PLACES = {name: (i, j) for i, group in enumerate(TOGETHER) for j, name in enumerate(group)}


def place_of(path: Path) -> tuple[int, int]:
    """The group of a file, and its place in there; behind all groups if it is in none."""
    return PLACES.get(path.name, PLACES.get(path.suffix, (len(TOGETHER), 0)))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: place_of(item.path))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Deal the tests out one by one, but for the groups."""
    from xdist.scheduler import LoadScopeScheduling

    class Together(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            group, _ = place_of(Path(nodeid.partition("::")[0]))
            return str(group) if group < len(TOGETHER) else nodeid

    return Together(config, log)


def pytest_collection_finish() -> None:
    """What was imported is never garbage: left out of the search for it, that is often, and models go soon."""
    gc.freeze()


def pytest_sessionfinish() -> None:
    gc.unfreeze()


@pytest.fixture(scope="module", autouse=True)
def collected() -> Iterator[None]:
    """A traced model is a cycle of references: it goes when garbage is looked for."""
    yield
    gc.collect()


@pytest.fixture(autouse=True)
def trimmed() -> Iterator[None]:
    """Memory that a test has used goes back to the system; what it was the first to import is never garbage either."""
    before = len(sys.modules)
    yield
    if len(sys.modules) > before:
        gc.collect()
        gc.freeze()
    TRIM(0)


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
