"""Any checkpoint, safely: what a file holds, put into a fresh copy of the owner's architecture, and a report.

A file from a stranger is parsed in a process of its own, with limits on memory and time, and nothing in it is ever
executed. What comes back is plain tensors.
"""

import copy
import json
import pickle
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from clearstamp.errors import SuspectError
from clearstamp.transposed.graph import still_twin, unwrapped

__all__ = ["Report", "Suspect", "load_suspect"]

PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.")
"""What wrappers put before the names of tensors, in any stack."""

INDEX = ".index.json"
"""How the name of the list of a checkpoint's shards ends."""

DEEPEST, LONGEST = 8, 400
"""Levels of nesting, and characters of a name, that are still read."""

NUMBERS = frozenset(
    "bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 bfloat16 float32 float64 complex64 "
    "float8_e4m3fn float8_e4m3fnuz float8_e5m2 float8_e5m2fnuz float8_e8m0fnu".split()
)
"""Types of numbers that are read."""

SECONDS, SPARE = 120, 2**29
"""What reading may take: time, and memory in bytes beyond six times the file."""

CHILD = "import sys; from clearstamp.suspects import main; main(*sys.argv[1:])"


@dataclass(frozen=True)
class Report:
    """What was found in a file and what became of it.

    Attributes:
        file: its path.
        held: in what part of it the weights lay: a way such as ``"state_dict"``, or "" for the file itself.
        prefix: what was taken off the names.
        fitting: every part of the file whose names and shapes fit, such as averaged weights beside plain ones.
        matched: names of the tensors that the copy got.
        missing: names of the model's tensors that the file lacks.
        extra: names of the file's tensors that the model lacks.
        misshapen: for each tensor of another shape, that in the file and that in the model.
        converted: for each type of number that was converted, how many tensors had it.
        head: name of the layer that was put back from the owner's model, or None.
        coverage: share of the model's numbers that came from the file, in [0, 1].
    """

    file: str
    held: str
    prefix: str
    fitting: tuple[str, ...]
    matched: tuple[str, ...] = field(repr=False)
    missing: tuple[str, ...]
    extra: tuple[str, ...]
    misshapen: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
    converted: dict[str, int]
    head: str | None
    coverage: float

    def __str__(self) -> str:
        lines = [
            f"{self.file}: {len(self.matched)} tensors, {self.coverage:.1%} of the model's numbers"
            + (f", from {self.held!r}" if self.held else "")
            + (f", the prefix {self.prefix!r} taken off" if self.prefix else "")
        ]
        lines += [f"  {count} tensors converted from {kind}" for kind, count in self.converted.items()]
        lines += [f"  {name}: {got} in the file, {want} in the model" for name, (got, want) in self.misshapen.items()]
        lines += [f"  {name}: not in the file" for name in self.missing]
        lines += [f"  {name}: not in the model" for name in self.extra]
        if self.head is not None:
            lines.append(f"  {self.head}: the owner's own layer was put back, so a reading is weaker evidence")
        return "\n".join(lines)


@dataclass(frozen=True)
class Suspect:
    """A copy of the owner's architecture with a stranger's weights, in evaluation mode, and where these came from."""

    model: nn.Module = field(repr=False)
    report: Report


def load_suspect(
    path: str | Path,
    into: nn.Module,
    *,
    choose: str | None = None,
    partial: bool = False,
    head_from: nn.Module | None = None,
) -> Suspect:
    """What a checkpoint holds, in a fresh copy of the architecture of `into`, which itself stays as it is.

    The file is safetensors (one file, or the index of its shards), or what `torch.save` wrote of state dicts, however
    they are nested. Of several parts that fit `choose` names one; none is guessed. Prefixes that wrappers leave are
    taken off if exactly one choice makes names and shapes fit. Lower precision is read in float32.

    The copy starts from noise, so that a tensor that the file lacks can never be the owner's. Anything below full
    coverage is an error unless `partial` is set; where a single layer is missing or of another shape, such as a
    replaced head, `head_from` puts that layer of the owner's model in its place.

    Raises `SuspectError` for a file that is not plain tensors, for numbers that are not finite, and if nothing fits.
    """
    parts = parsed(Path(path))
    model = copy.deepcopy(still_twin(unwrapped(into))).float().requires_grad_(False)
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    fitting = fitting_parts(parts, wanted)
    held, prefix, tensors = chosen(str(path), parts, fitting, wanted, choose)
    matched = {name: tensor for name, tensor in tensors.items() if wanted.get(name) == tuple(tensor.shape)}
    misshapen = {
        name: (tuple(tensor.shape), wanted[name])
        for name, tensor in tensors.items()
        if name in wanted and name not in matched
    }
    missing = tuple(name for name in wanted if name not in tensors and not name.endswith("num_batches_tracked"))
    check_finite(matched, str(path))
    head = None
    if head_from is not None and (missing or misshapen):
        head = single_layer((*missing, *misshapen))
        owned = unwrapped(head_from).state_dict()
        replaced = {name: owned[name] for name in (*missing, *misshapen)}
    else:
        replaced = {}
    fill_with_noise(model)
    state = model.state_dict()
    with torch.no_grad():
        for name, tensor in (matched | replaced).items():
            state[name].copy_(tensor)
    types = [str(tensor.dtype).removeprefix("torch.") for tensor in matched.values() if tensor.is_floating_point()]
    report = Report(
        file=str(path),
        held=held,
        prefix=prefix,
        fitting=tuple(fitting),
        matched=tuple(matched),
        missing=missing,
        extra=tuple(name for name in tensors if name not in wanted),
        misshapen=misshapen,
        converted={kind: types.count(kind) for kind in dict.fromkeys(types) if kind != "float32"},
        head=head,
        coverage=sum(tensor.numel() for tensor in matched.values()) / sum(tensor.numel() for tensor in state.values()),
    )
    if (missing or misshapen) and not partial and head is None:
        raise SuspectError(
            "the checkpoint does not cover the model",
            got=f"\n{report}\n",
            remedy="check the architecture; partial=True (--partial) reads what there is, "
            "head_from= (--head-from) puts back an owner's layer",
        )
    return Suspect(model, report)


# ------------------------------------------------------------------------------------------------ what fits the model


def fitting_parts(
    parts: dict[str, dict[str, Tensor]], wanted: Mapping[str, tuple[int, ...]]
) -> dict[str, dict[str, dict[str, Tensor]]]:
    """Every part of a file that fits, as its tensors for each prefix with which most of them do."""
    fitting = {}
    for held, tensors in parts.items():
        options = {prefix: stripped(tensors, prefix) for prefix in prefixes(tensors)}
        fits = {prefix: fit(found, wanted) for prefix, found in options.items()}
        if best := [prefix for prefix, count in fits.items() if count == max(fits.values()) > 0]:
            fitting[held] = {prefix: options[prefix] for prefix in best}
    return fitting


def chosen(
    file: str,
    parts: dict[str, dict[str, Tensor]],
    fitting: dict[str, dict[str, dict[str, Tensor]]],
    wanted: Mapping[str, tuple[int, ...]],
    choose: str | None,
) -> tuple[str, str, dict[str, Tensor]]:
    """The part of a file that fits, the prefix taken off its names, and its tensors."""
    if choose is not None and choose not in parts:
        raise SuspectError("no such part in the checkpoint", got=repr(choose), expected=", ".join(map(repr, parts)))
    meant = {held: options for held, options in fitting.items() if choose in (None, held)}
    if several := next((options for options in meant.values() if len(options) > 1), None):
        raise SuspectError("several prefixes make the names fit", got=", ".join(map(repr, several)), where=file)
    if not meant:
        raise SuspectError(
            "no tensor of the checkpoint fits the model by name and shape",
            got="; ".join(f"{held or 'the file'}: {', '.join(list(names)[:3])} ..." for held, names in parts.items()),
            expected=f"{', '.join(list(wanted)[:3])} ...",
            where=file,
        )
    if len(meant) > 1:
        counts = {held: fit(next(iter(options.values())), wanted) for held, options in meant.items()}
        raise SuspectError(
            "several parts of the checkpoint fit the model",
            got=", ".join(f"{held!r} ({count} tensors)" for held, count in counts.items()),
            where=file,
            remedy="say which one: choose= (--part)",
        )
    ((held, options),) = meant.items()
    ((prefix, tensors),) = options.items()
    return held, prefix, tensors


def prefixes(tensors: Mapping[str, Tensor]) -> list[str]:
    """Every stack of `PREFIXES` with which some name begins, the empty one first."""
    found = [""]
    for stack in found:  # which grows meanwhile
        longer = (stack + one for one in PREFIXES if len(stack) < LONGEST // 4)
        found += [each for each in longer if any(name.startswith(each) for name in tensors)]
    return found


def stripped(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors by their names without the prefix, and without the mark of compiled layers within."""
    cut = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    return {name.replace("._orig_mod.", "."): tensor for name, tensor in cut.items()}


def fit(tensors: Mapping[str, Tensor], wanted: Mapping[str, tuple[int, ...]]) -> int:
    """How many tensors fit by name and shape."""
    return sum(wanted.get(name) == tuple(tensor.shape) for name, tensor in tensors.items())


def single_layer(names: tuple[str, ...]) -> str:
    """The one layer to which all the tensors belong. Raises `SuspectError` if they belong to several."""
    layers = sorted({name.rpartition(".")[0] for name in names})
    if len(layers) > 1:
        raise SuspectError("more than one layer is missing or of another shape", got=", ".join(layers), expected="one")
    return layers[0]


def check_finite(tensors: Mapping[str, Tensor], file: str) -> None:
    """Raise `SuspectError` for a tensor that holds NaN or infinities."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise SuspectError("a tensor is not finite", got=name, where=file)


def fill_with_noise(model: nn.Module) -> None:
    """Put noise in place of all that a checkpoint holds; variances stay positive."""
    generator = torch.Generator("cpu").manual_seed(0)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float32, device="cpu")
                tensor.copy_(noise.abs() + 0.5 if name.endswith("running_var") else noise)


# -------------------------------------------------------------------------------------------------- what a file holds


def parsed(path: Path) -> dict[str, dict[str, Tensor]]:
    """The tensors of every part of a file, read by a process of its own."""
    if not path.is_file():
        raise SuspectError("no such file", got=path)
    with tempfile.TemporaryDirectory() as folder:
        try:
            done = subprocess.run(
                [sys.executable, "-P", "-c", CHILD, path.resolve(), folder],
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
        part: {name: read[f"{place}/{name}"] for name in names} for place, (part, names) in enumerate(told["parts"])
    }


def main(file: str, folder: str) -> None:
    """Read a file under limits, and leave its tensors, or why it is refused, in a folder."""
    path = Path(file)
    limit(path)
    try:
        parts = read_parts(path)
        named = {f"{i}/{n}": t for i, tensors in enumerate(parts.values()) for n, t in tensors.items()}
        plain = {name: tensor.detach().contiguous().clone() for name, tensor in named.items()}
        save_file(plain, Path(folder, "tensors.safetensors"))
        told: dict[str, Any] = {"parts": [[part, list(tensors)] for part, tensors in parts.items()]}
    except SuspectError as error:
        told = {"refused": str(error)}
    except MemoryError:
        told = {"refused": "reading the checkpoint takes too much memory"}
    Path(folder, "answer.json").write_text(json.dumps(told))


def limit(path: Path, seconds: int = SECONDS) -> None:
    """Bound what this process may take: memory by the size of the file, and time."""
    try:
        import resource
    except ImportError:  # not on every system
        return
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    taken = Path("/proc/self/statm")
    if taken.is_file():
        most = int(taken.read_text().split()[0]) * resource.getpagesize() + SPARE + 6 * size_of(path)
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


def size_of(path: Path) -> int:
    """Bytes of a file, or of all shards beside an index."""
    if path.name.endswith(INDEX):
        return sum(each.stat().st_size for each in path.parent.iterdir() if each.suffix == ".safetensors")
    return path.stat().st_size


def read_parts(path: Path) -> dict[str, dict[str, Tensor]]:
    """Every part of a file that holds tensors by name, by the way to it. Raises `SuspectError` for anything unsafe."""
    if path.name.endswith(INDEX):
        parts = {"": read_shards(path)}
    elif path.suffix == ".safetensors":
        parts = {"": read_safetensors(path)}
    else:
        parts = dict(state_dicts(read_torch(path)))
    if not any(parts.values()):
        raise SuspectError("the checkpoint holds no tensors by name")
    for tensors in parts.values():
        for name, tensor in tensors.items():
            check_tensor(name, tensor)
    return parts


def read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, "pt") as held:
            return {name: held.get_tensor(name) for name in held.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise SuspectError("not a whole safetensors file", got=type(error).__name__) from error


def read_shards(index: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint in several files, which lie beside its index."""
    files = weight_map(index)
    found: dict[str, Tensor] = {}
    for shard in shards(index):
        found |= read_safetensors(shard)
    if found.keys() != files.keys():
        got = f"{len(found)} tensors"
        raise SuspectError("the shards do not hold what their index says", got=got, expected=len(files))
    return found


def shards(index: Path) -> list[Path]:
    """The files beside an index that it names; none if it is no index. Raises `SuspectError` for any that are not."""
    if not index.name.endswith(INDEX):
        return []
    names = sorted(set(weight_map(index).values()))
    for name in names:
        if Path(name).name != name or not (index.parent / name).is_file():
            raise SuspectError("a shard is not beside its index", got=repr(name))
    return [index.parent / name for name in names]


def weight_map(index: Path) -> dict[str, str]:
    """Which file holds which tensor, as an index says."""
    try:
        return {name: str(shard) for name, shard in json.loads(index.read_text())["weight_map"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise SuspectError("not the index of a checkpoint's shards", got=type(error).__name__) from error


def read_torch(path: Path) -> Any:
    """What `torch.save` wrote, with nothing but tensors and plain containers in it."""
    check_archive(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
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
        raise SuspectError("not a whole checkpoint", got=type(error).__name__) from error


def check_archive(path: Path) -> None:
    """Raise `SuspectError` for TorchScript, exported programs, and archives that unpack to far more than they are."""
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
    if path.suffix == ".pt2" or "archive_format" in names or any(name.startswith("models/") for name in names):
        raise SuspectError("this is an exported program", remedy="ask for its state dict, saved as safetensors")
    if sum(entry.file_size for entry in entries) > 2 * path.stat().st_size + 2**16:
        raise SuspectError("the checkpoint unpacks to far more than it is", remedy="ask for one that is not compressed")


def state_dicts(held: Any, way: tuple[str, ...] = ()) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Every mapping within what a file holds that has tensors under names, by the way to it."""
    if len(way) > DEEPEST:
        raise SuspectError("the checkpoint is nested too deep", got=f"over {DEEPEST} levels")
    if isinstance(held, Mapping):
        own = {name: value for name, value in held.items() if isinstance(name, str) and isinstance(value, Tensor)}
        if own:
            yield ".".join(way), own
    inner = held.items() if isinstance(held, Mapping) else enumerate(held) if isinstance(held, list | tuple) else ()
    for name, value in inner:
        yield from state_dicts(value, (*way, str(name)))


def check_tensor(name: str, tensor: Tensor) -> None:
    """Raise `SuspectError` for a name or a tensor that no plain checkpoint has."""
    if not name.isprintable() or len(name) > LONGEST:
        raise SuspectError("a tensor's name holds control characters or is too long", got=ascii(name[:60]))
    strided = tensor.layout == torch.strided and not tensor.is_quantized and not tensor.is_meta
    if type(tensor) not in (Tensor, nn.Parameter) or not strided:
        raise SuspectError("a tensor is sparse, quantised or without values", got=name)
    if str(tensor.dtype).removeprefix("torch.") not in NUMBERS:
        raise SuspectError("numbers of a type that is not read", got=f"{name}: {tensor.dtype}")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise SuspectError("a tensor is larger than what the file holds for it", got=f"{name}: {list(tensor.shape)}")
