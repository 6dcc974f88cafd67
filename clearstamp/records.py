"""One frozen record per result: a JSON file, with its pictures beside it in a safetensors file."""

import json
import os
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from clearstamp.dependencies import PACKAGE, changed
from clearstamp.errors import RecordError
from clearstamp.stamp import write_atomically

LIBRARIES = ("torch", "torchvision", "pytorch-msssim", "numpy")


@dataclass(frozen=True)
class Record:
    """One result and all that is needed to make it again.

    `results` maps a stage of the experiment to its numbers, `paper` the same stages to the paper's. `code` names what
    of the library ran, with digests; `weights` is the checksum of the trained model. `arrays` holds pictures and
    curves; it is stored beside the JSON file and not in it, floating-point numbers in half precision.
    """

    experiment: str
    profile: str
    parameters: dict[str, Any]
    seed: int
    code: dict[str, str]
    results: dict[str, dict[str, Any]]
    paper: dict[str, Any]
    dataset: dict[str, Any]
    wall_seconds: float
    weights: str | None = None
    provenance: dict[str, Any] = field(default_factory=lambda: provenance())
    arrays: dict[str, Tensor] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "arrays", {name: long(tensor) for name, tensor in self.arrays.items()})

    @property
    def name(self) -> str:
        """The file name without its ending."""
        return f"{self.experiment}-seed{self.seed}"

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


def find(
    profile: str, name: str, parameters: Mapping[str, Any], defaults: Mapping[str, Any] | None = None
) -> Record | None:
    """The record `name` if it has these parameters and the code that made it is what it was, else None.

    A parameter that the record does not have yet, also one of an experiment within it, counts as its default.
    """
    path = folder(profile) / f"{name}.json"
    if not path.is_file():
        return None
    record = load(path)
    same = filled(record.parameters, plain(defaults or {})) == plain(parameters)
    return record if same and not changed(record.code) else None


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


def provenance() -> dict[str, Any]:
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


def git(*arguments: str) -> str:
    """Output of a git command on this repository; empty outside of one."""
    done = subprocess.run(["git", "-C", str(PACKAGE), *arguments], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""
