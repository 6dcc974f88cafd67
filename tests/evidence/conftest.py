"""Seals that are made once, as each costs half a second of scrypt; an owner; an authority that dates."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clearstamp import checkpoints, suspects
from clearstamp.evidence import Evidence, Seal, Signer
from clearstamp.evidence import seal as sealing
from tests.evidence.bundles import Authority, Case, made, remembered


def fixed(**choices: Any) -> Seal:
    """A seal with a seed that everybody knows, so that every run draws the same."""
    return replace(Seal.make(**choices), seed=bytes(range(32)))


@pytest.fixture(scope="session")
def letters() -> Seal:
    """Eleven pictures of 28 x 28 with four letters each, for ten outputs."""
    return fixed(outputs=10, shape=(1, 28, 28), text="ours")


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Five files that show noise."""
    numbers, folder = np.random.default_rng(0), tmp_path_factory.mktemp("photographs")
    paths = [folder / f"{place}.png" for place in range(5)]
    for path in paths:
        Image.fromarray(numbers.integers(0, 256, (40, 40), np.uint8)).save(path)
    return paths


@pytest.fixture(scope="session")
def ordered(photographs: list[Path]) -> Seal:
    """Five of the owner's pictures and nothing drawn but keys and order, for which the bar is lowered."""
    return fixed(outputs=10, shape=(1, 16, 16), codes=0, images=photographs, bar=4)


@pytest.fixture(scope="session")
def coded() -> Seal:
    """A licence as masked bits in colour."""
    return fixed(outputs=4, shape=(3, 16, 16), data=b"licence 7", patches=8, per_channel=True)


@pytest.fixture(scope="session")
def signer() -> Signer:
    """The owner."""
    return Signer.make()


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """A time-stamp authority."""
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="session")
def small() -> Seal:
    """Five pictures of 28 x 28 with four letters each, for eight outputs: one linear layer can show all of them."""
    return fixed(outputs=8, shape=(1, 28, 28), codes=5, text="<script>ours</script>")


@pytest.fixture(scope="session")
def case(small: Seal, signer: Signer, authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Evidence on a stamped model, in which everything is as it should be, and what a verifier has from elsewhere."""
    return made(small, signer, authority, tmp_path_factory.mktemp("case"))


@pytest.fixture
def quick(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """scrypt is run once for each seal, and checkpoints are read in this process but where a test is about that."""
    monkeypatch.setattr(sealing, "root", remembered)
    if "child" not in request.keywords:
        monkeypatch.setattr(suspects, "parsed", checkpoints.read_parts)


@pytest.fixture
def evidence(case: Case) -> Evidence:
    """The evidence of the case."""
    return case.evidence
