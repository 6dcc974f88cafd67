"""What a checkpoint holds: plain tensors by name, in whatever form a stranger's file has them, read safely.

A file is parsed in a process of its own, with limits on memory and time, and nothing in it is ever executed.
"""

import json
import pickle
import subprocess
import sys
import tempfile
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from clearstamp.errors import SuspectError

DEEPEST, LONGEST = 8, 400
"""Levels of nesting, and characters of a name, that are still read."""

NUMBERS = frozenset(
    "bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 bfloat16 float32 float64 complex64 "
    "float8_e4m3fn float8_e4m3fnuz float8_e5m2 float8_e5m2fnuz float8_e8m0fnu".split()
)
"""Types of numbers that are read."""

SECONDS, SPARE, INDEX = 120, 2**29, 2**26
"""What reading may take: time, memory in bytes beyond six times the file, and the bytes of an index of shards."""

CHILD = "import sys; from clearstamp.checkpoints import main; main(*sys.argv[1:])"

CONVERT = "convert it to a state dict of the model in PyTorch, saved as safetensors"
FOREIGN = {
    b"version https://git-lfs": ("this is a pointer of Git LFS, not the file that it stands for", "git lfs pull"),
    b"<": ("this is a web page, or XML", "download the file itself"),
    b"\x89HDF": ("this is HDF5, as Keras writes it", CONVERT),
    b"GGUF": ("this is GGUF, whose numbers are quantised", CONVERT),
    b"\x93NUMPY": ("this is an array of NumPy's", CONVERT),
    b"\x08": ("this looks like ONNX, or another protocol buffer", CONVERT),
    b"\x1f\x8b": ("this is compressed by gzip", "unpack it first"),
    b"BZh": ("this is compressed by bzip2", "unpack it first"),
    b"\xfd7zXZ": ("this is compressed by xz", "unpack it first"),
    b"\x28\xb5\x2f\xfd": ("this is compressed by zstd", "unpack it first"),
    b"7z\xbc\xaf": ("this is an archive of 7z", "unpack it first"),
}
"""What is not a checkpoint of PyTorch's, by how it begins, and what to do about it."""


@dataclass(frozen=True)
class Part:
    """What lies at one place of a file.

    Attributes:
        tensors: those that are read, by name.
        unread: why the others are not.
    """

    tensors: dict[str, Tensor] = field(repr=False)
    unread: dict[str, str]


def parsed(path: Path) -> dict[str, Part]:
    """Every part of a file that has tensors under names, by the way to it, read by a process of its own."""
    if not path.is_file():
        raise SuspectError("no such file", got=path)
    with tempfile.TemporaryDirectory() as folder:
        try:
            done = subprocess.run(
                [sys.executable, "-P", "-c", CHILD, path.absolute(), folder],
                capture_output=True,
                text=True,
                timeout=SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise SuspectError("reading the checkpoint takes too long", got=f"over {SECONDS} s", where=path) from error
        answer = Path(folder, "answer.json")
        if not answer.is_file():
            raise SuspectError("reading the checkpoint failed", got=f"exit code {done.returncode}", where=path)
        told = json.loads(answer.read_text())
        if "refused" in told:
            raise SuspectError(told["refused"], where=path)
        with safe_open(Path(folder, "tensors.safetensors"), "pt") as held:
            read = {name: held.get_tensor(name).clone() for name in held.keys()}  # noqa: SIM118
    return {
        way: Part({name: read[f"{place}/{name}"] for name in names}, unread)
        for place, (way, names, unread) in enumerate(told["parts"])
    }


def main(file: str, folder: str) -> None:
    """Read a file under limits, and leave its tensors, or why it is refused, in a folder."""
    path = Path(file)
    try:
        limit(path)
        parts = read_parts(path)
        named = {f"{i}/{n}": t for i, part in enumerate(parts.values()) for n, t in part.tensors.items()}
        plain = {name: tensor.detach().contiguous().clone() for name, tensor in named.items()}
        save_file(plain, Path(folder, "tensors.safetensors"))
        told: dict[str, Any] = {"parts": [[way, list(part.tensors), part.unread] for way, part in parts.items()]}
    except SuspectError as error:
        told = {"refused": str(error)}
    except (MemoryError, RuntimeError) as error:  # torch raises the latter
        if isinstance(error, RuntimeError) and "alloc" not in str(error):
            raise
        told = {"refused": "reading the checkpoint takes too much memory"}
    Path(folder, "answer.json").write_text(json.dumps(told))


def limit(path: Path, seconds: int = SECONDS) -> None:
    """Bound what this process may take: memory by the size of the file, and time."""
    try:
        import resource
    except ImportError:  # not on every system
        return

    def bound(kind: int, most: int) -> None:
        _, hard = resource.getrlimit(kind)
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (most, most))

    bound(resource.RLIMIT_CPU, seconds)
    taken = Path("/proc/self/statm")
    if taken.is_file():
        now = int(taken.read_text().split()[0]) * resource.getpagesize()
        bound(resource.RLIMIT_AS, now + SPARE + 6 * sum(file.stat().st_size for file in [path, *shards(path)]))


def read_parts(path: Path) -> dict[str, Part]:
    """Every part of a file that has tensors under names, by the way to it. Raises `SuspectError` for what is unsafe."""
    found = [("", read_shards(path))] if is_index(path) else read_file(path)
    twice = [way for way, count in Counter(way for way, _ in found).items() if count > 1]
    if twice:
        raise SuspectError("two parts of the checkpoint have one name", got=repr(twice[0]))
    parts = {}
    for way, tensors in found:
        check_names(tensors)
        unread = {name: reason for name, tensor in tensors.items() if (reason := unreadable(tensor))}
        parts[way] = Part({name: tensor for name, tensor in tensors.items() if name not in unread}, unread)
    if not parts or not any(tensors for _, tensors in found):
        raise SuspectError("the checkpoint holds no tensors by name")
    if not any(part.tensors for part in parts.values()):
        name, reason = next((name, why) for part in parts.values() for name, why in part.unread.items())
        raise SuspectError(reason, got=name)
    return parts


def read_file(path: Path) -> list[tuple[str, dict[str, Tensor]]]:
    """Every part of one file; its content says of what form it is, whatever its name is."""
    with path.open("rb") as file:
        beginning = file.read(512)
    if beginning[8:9] == b"{":
        return [("", read_safetensors(path))]
    for begin, (what, remedy) in FOREIGN.items():
        if beginning.startswith(begin):
            raise SuspectError(what, remedy=remedy)
    if beginning[257:262] == b"ustar":
        raise SuspectError("this is a tar archive", remedy="unpack it first")
    if path.suffix == ".safetensors" and not beginning.startswith((b"PK", b"\x80")):
        return [("", read_safetensors(path))]
    return list(state_dicts(read_torch(path)))


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of one file of safetensors."""
    try:
        with safe_open(path, "pt") as held:
            return {name: held.get_tensor(name) for name in held.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise SuspectError("not a whole safetensors file", got=type(error).__name__) from error


def is_index(path: Path) -> bool:
    """Whether a file is the index of a checkpoint in several files, or other JSON."""
    with path.open("rb") as file:
        return file.read(64).lstrip().startswith(b"{")


def read_shards(index: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint in several files, which lie beside its index."""
    files = weight_map(index)
    found: dict[str, Tensor] = {}
    for shard in shards(index):
        parts = read_file(shard)
        if len(parts) != 1 or parts[0][0]:
            raise SuspectError("a shard holds more than one state dict", got=repr(shard.name))
        ((_, tensors),) = parts
        if astray := next((name for name in tensors if files.get(name) != shard.name), None):
            raise SuspectError("a shard holds a tensor that the index has elsewhere", got=f"{shard.name}: {astray!r}")
        found |= tensors
    if found.keys() != files.keys():
        got = f"{len(found)} tensors"
        raise SuspectError("the shards do not hold what their index says", got=got, expected=len(files))
    return found


def shards(index: Path) -> list[Path]:
    """The files beside an index that it names; none if it is no index. Raises `SuspectError` for any that are not."""
    if not is_index(index):
        return []
    names = sorted(set(weight_map(index).values()))
    for name in names:
        if Path(name).name != name or not (index.parent / name).is_file():
            raise SuspectError("a shard is not beside its index", got=repr(name))
    return [index.parent / name for name in names]


def weight_map(index: Path) -> dict[str, str]:
    """Which file holds which tensor, as an index says."""
    if (size := index.stat().st_size) > INDEX:
        raise SuspectError("not the index of a checkpoint's shards", got=f"{size:,} bytes")
    try:
        return {name: str(shard) for name, shard in json.loads(index.read_text())["weight_map"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise SuspectError("not the index of a checkpoint's shards", got=type(error).__name__) from error


def read_torch(path: Path) -> Any:
    """What `torch.save` wrote, with nothing but tensors and plain containers in it."""
    check_archive(path)
    try:
        with warnings.catch_warnings(), path.open("rb") as file:  # of a path torch believes the ending
            warnings.simplefilter("ignore")
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "unsupported operand" in str(error).lower():
            raise SuspectError(
                "torch reads what is pickled in this way only by executing it, and nothing of it was executed",
                remedy="ask for one that torch.save wrote with its own protocol, or for safetensors",
            ) from error
        named = "global" in str(error).lower() or "unsupported" in str(error).lower()
        raise SuspectError(
            "the checkpoint holds more than tensors, such as a pickled module; nothing of it was executed"
            if named
            else "not a whole checkpoint",
            remedy="ask for its state dict, saved as safetensors",
        ) from error
    except (MemoryError, RecursionError) as error:
        raise SuspectError("reading the checkpoint takes too much", got=type(error).__name__) from error
    except Exception as error:  # of damaged files torch raises whatever its parsers meet
        expected = "safetensors, or what torch.save wrote"
        raise SuspectError("not a whole checkpoint", got=type(error).__name__, expected=expected) from error


def check_archive(path: Path) -> None:
    """Raise `SuspectError` for programs, other archives, and such as unpack to far more than they are."""
    try:
        if not zipfile.is_zipfile(path):  # the older form, one stream
            return
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError) as error:
        raise SuspectError("not a whole checkpoint", got=type(error).__name__) from error
    names = {entry.filename.partition("/")[2] for entry in entries}
    if "constants.pkl" in names or any(name.startswith("code/") for name in names):
        raise SuspectError(
            "this is TorchScript, a program", remedy="torch.jit.load(path).state_dict() on a machine that may run it"
        )
    if "archive_format" in names or any(name.startswith("models/") for name in names):
        raise SuspectError("this is an exported program", remedy="ask for its state dict, saved as safetensors")
    if "data.pkl" not in names:
        if entries and all(entry.filename.endswith(".npy") for entry in entries):
            raise SuspectError("this is an archive of NumPy's", remedy=CONVERT)
        raise SuspectError("this is a zip archive, and no checkpoint", remedy="unpack it first")
    if sum(entry.file_size for entry in entries) > 2 * path.stat().st_size + 2**16:
        raise SuspectError("the checkpoint unpacks to far more than it is", remedy="ask for one that is not compressed")


def state_dicts(held: Any, way: tuple[str, ...] = ()) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Every mapping within what a file holds that has tensors under names, by the way to it.

    Raises `SuspectError` if there are tensors deeper than `DEEPEST` levels.
    """
    pairs = held.items() if isinstance(held, Mapping) else enumerate(held) if isinstance(held, list | tuple) else ()
    inner = [*pairs]
    if len(way) > DEEPEST:
        if any(isinstance(value, Tensor) for _, value in inner):
            raise SuspectError("the checkpoint is nested too deep", got=f"over {DEEPEST} levels")
        return
    own = {name: value for name, value in inner if isinstance(name, str) and isinstance(value, Tensor)}
    if own:
        yield ".".join(way), own
    for name, value in inner:
        yield from state_dicts(value, (*way, str(name)))


def check_names(names: Iterable[str]) -> None:
    """Raise `SuspectError` for a tensor's name that no plain checkpoint has."""
    for name in names:
        if not name.isprintable() or len(name) > LONGEST:
            raise SuspectError("a tensor's name holds control characters or is too long", got=ascii(name[:60]))


def unreadable(tensor: Tensor) -> str:
    """Why a tensor is none that a plain checkpoint has; empty if it is."""
    strided = tensor.layout == torch.strided and not tensor.is_quantized and not tensor.is_meta
    if type(tensor) not in (Tensor, nn.Parameter) or not strided:
        return "a tensor is sparse, quantised or without values"
    if str(tensor.dtype).removeprefix("torch.") not in NUMBERS:
        return f"numbers of a type that is not read ({tensor.dtype})"
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        return f"a tensor is larger than what the file holds for it ({list(tensor.shape)})"
    return ""
