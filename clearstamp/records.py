"""One frozen record per result: a JSON file, with its pictures beside it in a safetensors file."""

import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from clearstamp.errors import RecordError
from clearstamp.stamp import write_atomically

PACKAGE = Path(__file__).parent
LIBRARIES = ("torch", "torchvision", "pytorch-msssim", "numpy")


def here() -> dict[str, Any]:
    """Commit, versions and hardware of this run."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "commit": git("rev-parse", "HEAD"),
        "dirty": bool(git("status", "--porcelain", "--", "clearstamp", "notebooks")),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in LIBRARIES},
        "device": gpu or f"CPU ({platform.machine()}, {os.cpu_count()} cores)",
        "threads": torch.get_num_threads(),
    }


@cache
def git(*arguments: str) -> str:
    """Output of a git command on this repository; empty outside of one."""
    done = subprocess.run(["git", "-C", str(PACKAGE), *arguments], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


@dataclass(frozen=True)
class Record:
    """One result, what decides it, and where it comes from.

    The key, which decides whether a record answers to an experiment, is `experiment`, `kind`, `version`, `parameters`,
    `bases`, `seed` and the checksums in `data`. All else is result or provenance, and provenance decides nothing.

    Attributes:
        experiment: its name.
        kind: its class.
        version: of the code of that class; a change in behaviour raises it.
        profile: name of the scale.
        parameters: the experiment's fields, and those of the scale.
        seed: of everything that is drawn.
        results: a stage of the experiment to its numbers.
        data: a data set's name to its splits, each with the number of images used, the official one, and their sha256.
        bases: the versions of the experiments whose trained models were taken.
        weights: a trained model to its checksum: the one trained here, or those that were taken.
        provenance: commit, library versions, hardware and wall time of the run.
        arrays: pictures and curves, stored beside the JSON file, floating-point numbers in half precision.
    """

    experiment: str
    kind: str
    version: int
    profile: str
    parameters: dict[str, Any]
    seed: int
    results: dict[str, dict[str, Any]]
    data: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    bases: dict[str, int] = field(default_factory=dict)
    weights: dict[str, str] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=here)
    arrays: dict[str, Tensor] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "arrays", {name: long(tensor) for name, tensor in self.arrays.items()})

    @property
    def name(self) -> str:
        """The file name without its ending."""
        return f"{self.experiment}-seed{self.seed}"

    @property
    def digest(self) -> str:
        """sha256 of the key."""
        key = [self.experiment, self.kind, self.version, self.parameters, self.bases, self.seed, self.data]
        return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()

    @property
    def seconds(self) -> float:
        """Wall time of the run."""
        return float(self.provenance.get("seconds", 0.0))

    def save(self) -> Path:
        """Write the record; a crash leaves the old one or the new one."""
        path = folder(self.profile) / f"{self.name}.json"
        about = {key: value for key, value in asdict(self).items() if key != "arrays"}
        tensors = {name: short(tensor.detach().cpu().contiguous()) for name, tensor in self.arrays.items()}
        write_atomically(path.with_suffix(".safetensors"), save(tensors))
        write_atomically(path, (json.dumps(about, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode())
        return path


def short(values: Tensor) -> Tensor:
    """Floating-point numbers in half precision and its range, enough for pictures and curves; others as they are."""
    most = torch.finfo(torch.float16).max
    return values.clamp(-most, most).half() if values.is_floating_point() else values


def long(values: Tensor) -> Tensor:
    """Floating-point numbers in single precision, others as they are."""
    return values.float() if values.is_floating_point() else values


def artifacts() -> Path:
    """Where executed notebooks and records go: `$CLEARSTAMP_ARTIFACTS`, else ``artifacts/`` beside the library."""
    return Path(os.environ.get("CLEARSTAMP_ARTIFACTS") or PACKAGE.parent / "artifacts")


def folder(profile: str) -> Path:
    """The records of a profile."""
    return artifacts() / profile / "records"


def load(path: Path) -> Record:
    """Read one record with its arrays. Raises `RecordError` naming a file that is missing or damaged."""
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        return Record(**about, arrays=load_file(path.with_suffix(".safetensors")))
    except (OSError, json.JSONDecodeError, TypeError, SafetensorError) as error:
        raise RecordError(
            "not a whole record",
            got=f"{type(error).__name__}: {error}",
            where=path,
            remedy="remove the file and run its notebook again",
        ) from error


def load_all(profile: str) -> list[Record]:
    """Every record of a profile, by name."""
    return [load(path) for path in sorted(folder(profile).glob("*.json"))]


def find(profile: str, name: str) -> Record | None:
    """The record `name` of a profile, None if there is none."""
    path = folder(profile) / f"{name}.json"
    return load(path) if path.is_file() else None


def plain(values: Mapping[str, Any]) -> Any:
    """As it is read back from JSON."""
    return json.loads(json.dumps(values))


def filled(given: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """`given` with what it lacks from `defaults`, also in mappings within."""
    within = {
        name: filled(given[name], inner)
        for name, inner in defaults.items()
        if isinstance(inner, dict) and isinstance(given.get(name), dict)
    }
    return {**defaults, **given, **within}
