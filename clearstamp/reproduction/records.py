"""One frozen record per result: a JSON file with a schema, and its pictures beside it in a safetensors file."""

import hashlib
import json
import os
import platform
import subprocess
import time
from contextlib import suppress
from dataclasses import field
from functools import cache
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from pydantic import (
    ConfigDict,
    FiniteFloat,
    NonNegativeInt,
    StrictBool,
    StrictInt,
    StrictStr,
    TypeAdapter,
    ValidationError,
)
from pydantic.dataclasses import dataclass
from pydantic.json_schema import SkipJsonSchema
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from clearstamp.errors import RecordError
from clearstamp.files import write_atomically

PACKAGE = Path(__file__).parents[1]
LIBRARIES = ("torch", "torchvision", "pytorch-msssim", "numpy")
Readout = Literal["paper", "adjoint", "gradient"]
BOTH_READOUTS: tuple[Readout, ...] = ("paper", "adjoint")
Moment = Literal["untrained", "hardened", "trained", "finetuned", "control"]
STRICT = ConfigDict(extra="forbid", arbitrary_types_allowed=True)
if TYPE_CHECKING:
    Score = Any  # which one it is, a reader of records knows by its name
else:
    Score = StrictBool | StrictInt | FiniteFloat | StrictStr | None
Sha256 = Annotated[str, "64 hexadecimal digits"]


@cache
def git(*arguments: str) -> str:
    """Output of a git command on this repository; empty outside of one."""
    done = subprocess.run(["git", "-C", str(PACKAGE), *arguments], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Stage:
    """What was measured at one moment of an experiment.

    Attributes:
        label: its name in this record, also that of its pictures; all that it says is in the other fields too.
        moment: of a model's life: ``"untrained"``, ``"hardened"``, ``"trained"``, ``"finetuned"`` or ``"control"``.
        attack: the attack of a campaign after which, or during which, it was measured.
        step: the epochs or optimizer steps of the attack so far; None at its end.
        keys: how many keys were read, where an experiment reads several stamps.
        readout: how they were read, where an experiment uses both readouts.
        network: the network, where an experiment takes several.
        scores: numbers by name.
    """

    label: str
    moment: Moment | None = None
    attack: str | None = None
    step: NonNegativeInt | None = None
    keys: NonNegativeInt | None = None
    readout: Readout | None = None
    network: str | None = None
    scores: dict[str, Score]

    @property
    def ends(self) -> bool:
        """Whether it is the end of an attack."""
        return self.attack is not None and self.step is None


@dataclass(frozen=True, kw_only=True, config=STRICT)
class UsedSplit:
    """The images used of one split of a data set, and the split's official size, if it has one."""

    images: NonNegativeInt
    official: NonNegativeInt | None
    sha256: Sha256


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Provenance:
    """Where a record comes from. No part of its key."""

    commit: str
    dirty: bool
    python: str
    versions: dict[str, str]
    device: str
    threads: NonNegativeInt
    seconds: FiniteFloat = 0.0


def here() -> Provenance:
    """Commit, versions and hardware of this run."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return Provenance(
        commit=git("rev-parse", "HEAD"),
        dirty=bool(git("status", "--porcelain", "--", "clearstamp", "notebooks")),
        python=platform.python_version(),
        versions={name: version(name) for name in LIBRARIES},
        device=gpu or f"CPU ({platform.machine()}, {os.cpu_count()} cores)",
        threads=torch.get_num_threads(),
    )


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Record:
    """One result, what decides it, and where it comes from.

    The key, which decides whether a record answers to an experiment, is `experiment`, `kind`, `version`, `parameters`,
    `bases`, `seed` and the checksums in `data`. All else is result or provenance, and provenance decides nothing.

    Attributes:
        experiment: its name.
        kind: its class.
        version: of the code of that class; a change in behaviour raises it.
        profile: its name.
        parameters: the experiment's fields, and what they and the profile were resolved to.
        seed: of everything that is drawn.
        stages: what was measured.
        data: a data set's name to what was used of each split.
        bases: the versions of the experiments whose trained models were taken.
        weights: a trained model to its checksum: the one trained here, or those that were taken.
        provenance: commit, library versions, hardware and wall time of the run.
        arrays: pictures and curves, stored beside the JSON file, floating-point numbers in half precision.
    """

    experiment: str
    kind: str
    version: NonNegativeInt
    profile: str
    parameters: dict[str, Any]
    seed: int
    stages: list[Stage]
    data: dict[str, dict[Literal["train", "test"], UsedSplit]] = field(default_factory=dict)
    bases: dict[str, NonNegativeInt] = field(default_factory=dict)
    weights: dict[str, Sha256] = field(default_factory=dict)
    provenance: Provenance = field(default_factory=here)
    arrays: SkipJsonSchema[dict[str, Tensor]] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "arrays", {name: long(tensor) for name, tensor in self.arrays.items()})

    @property
    def name(self) -> str:
        """The file name without its ending."""
        return named(self.experiment, self.seed)

    @property
    def results(self) -> dict[str, dict[str, Any]]:
        """The scores of each stage by its label."""
        return {stage.label: stage.scores for stage in self.stages}

    def find(self, score: str, *, readout: str | None = None, **fields: object) -> Stage | None:
        """The stage with this score, these fields, and this readout or none of its own; None if there is none."""
        for stage in self.stages:
            fits = all(getattr(stage, name) == value for name, value in fields.items())
            if fits and stage.readout in (None, readout) and score in stage.scores:
                return stage
        return None

    @property
    def digest(self) -> str:
        """sha256 of the key."""
        whole = ADAPTER.dump_python(self, mode="json", exclude={"arrays"})
        key = [whole[name] for name in ("experiment", "kind", "version", "parameters", "bases", "seed", "data")]
        return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()

    @property
    def seconds(self) -> float:
        """Wall time of the run."""
        return self.provenance.seconds

    def save(self) -> Path:
        """Write the record; a crash leaves the old one or the new one."""
        path = folder(self.profile) / f"{self.name}.json"
        about = ADAPTER.dump_python(self, mode="json", exclude={"arrays"}, exclude_none=False)
        for stage in about["stages"]:
            for name in [name for name, value in stage.items() if value is None]:
                del stage[name]
        tensors = {name: short(tensor.detach().cpu().contiguous()) for name, tensor in self.arrays.items()}
        write_atomically(path.with_suffix(".safetensors"), save(tensors))
        write_atomically(path, (json.dumps(about, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode())
        return path


ADAPTER = TypeAdapter(Record)


def schema() -> dict[str, Any]:
    """The JSON schema of a record's file."""
    return ADAPTER.json_schema()


def named(experiment: str, seed: int) -> str:
    """The name of the record of an experiment and a seed."""
    return f"{experiment}-seed{seed}"


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
    """Read one record with its arrays. Raises `RecordError` naming the file and the fields that do not fit."""
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(about, dict) or "arrays" in about:
            raise ValueError("not an object with a record's fields")
        return ADAPTER.validate_python(about | {"arrays": load_file(path.with_suffix(".safetensors"))})
    except ValidationError as error:
        got = told(error)
    except (OSError, ValueError, SafetensorError) as error:
        got = f"{type(error).__name__}: {error}"
    remedy = "remove the file and run its notebook again"
    raise RecordError("not a whole record", got=got, where=path, remedy=remedy)


def told(error: ValidationError) -> str:
    """Each field that does not fit its schema, and why."""
    return ", ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg'].lower()}" for e in error.errors())


def prepare(profile: str, *, age: float = 600.0) -> None:
    """Make the folder of a profile's records, and remove what killed processes left half-written in it.

    These are temporary files older than `age` seconds. Raises `RecordError` if nothing can be written there.
    """
    try:
        folder(profile).mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder(profile)):
            pass
    except OSError as error:
        raise RecordError("results cannot be written", got=error, where=folder(profile)) from error
    for path in (artifacts() / profile).rglob(".*"):
        with suppress(FileNotFoundError):  # another run sweeps too
            if path.suffix[1:].isdigit() and time.time() - path.stat().st_mtime > age:
                path.unlink()


def load_all(profile: str) -> list[Record]:
    """Every record of a profile, by name."""
    return [load(path) for path in sorted(folder(profile).glob("*.json"))]


def find(profile: str, name: str) -> Record | None:
    """The record `name` of a profile, None if there is none."""
    path = folder(profile) / f"{name}.json"
    return load(path) if path.is_file() else None
