"""Any checkpoint: what a stranger's file holds, put into a fresh copy of the owner's architecture, and a report."""

import copy
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from clearstamp.checkpoints import Part, parsed
from clearstamp.errors import SuspectError
from clearstamp.transposed.graph import still_twin, unwrapped

__all__ = ["Report", "Suspect", "load_suspect"]

WITHIN = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
"""What wrappers of layers put into the names of tensors, wherever such a layer stands."""
PREFIXES = ("module.", "model.", "backbone.", "base_model.", "_forward_module.", *WITHIN)
"""What wrappers put before the names of tensors, in any stack of up to `STACKED`."""
STACKED = 8

COUNTER = "num_batches_tracked"
"""How the name of what nothing reads ends."""

SCALES = ("scale", "scb", "absmax", "zero_point", "quant_state", "quant_map")
"""What the names of tensors tell by which quantised ones are to be multiplied."""


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
    try:
        model = copy.deepcopy(still_twin(unwrapped(into))).float().requires_grad_(False)
        state = {name: held for name, held in model.state_dict().items() if isinstance(held, Tensor)}
    except ValueError as error:  # of lazy layers
        raise SuspectError("the model is not complete", got=str(error), remedy="run it once before") from error
    wanted = {name: tuple(tensor.shape) for name, tensor in state.items()}
    fitting = fitting_parts(parts, wanted)
    held, prefix, tensors = chosen(str(path), parts, fitting, wanted, choose)
    check_read(parts[held].unread, prefix, wanted, str(path))
    matched = {name: tensor for name, tensor in tensors.items() if wanted.get(name) == tuple(tensor.shape)}
    misshapen = {
        name: (tuple(tensor.shape), wanted[name])
        for name, tensor in tensors.items()
        if name in wanted and name not in matched
    }
    tied = ties(state, matched, str(path))
    missing = tuple(name for name in wanted if name not in tensors and name not in tied and not name.endswith(COUNTER))
    check_numbers(matched, state, tensors, str(path))
    head, replaced = None, {}
    if head_from is not None and (missing or misshapen):
        head = single_layer((*missing, *misshapen))
        replaced = owned(unwrapped(head_from), (*missing, *misshapen), wanted)
    fill_with_noise(state)
    with torch.no_grad():
        for name, tensor in (matched | replaced).items():
            state[name].copy_(tensor)
    check_finite({name: state[name] for name in matched}, str(path))
    types = Counter(str(t.dtype).removeprefix("torch.") for n, t in matched.items() if t.dtype != state[n].dtype)
    report = Report(
        file=str(path),
        held=held,
        prefix=prefix,
        fitting=tuple(fitting),
        matched=tuple(matched),
        missing=missing,
        extra=(
            *(name for name in tensors if name not in wanted),
            *(name for name in parts[held].tensors if not name.startswith(prefix)),
        ),
        misshapen=misshapen,
        converted=dict(types),
        head=head,
        coverage=sum(state[name].numel() for name in {*matched, *tied}) / sum(t.numel() for t in state.values()),
    )
    if (missing or misshapen) and not partial and head is None:
        raise SuspectError(
            "the checkpoint does not cover the model",
            got=f"\n{report}\n",
            remedy="check the architecture; partial=True (examine --partial) reads what there is, "
            "head_from= (examine --head-from) puts back an owner's layer",
        )
    return Suspect(model, report)


# ------------------------------------------------------------------------------------------------ what fits the model


def fitting_parts(
    parts: Mapping[str, Part], wanted: Mapping[str, tuple[int, ...]]
) -> dict[str, dict[str, dict[str, Tensor]]]:
    """Every part of a file that fits, as its tensors for each prefix with which most of them do."""
    fitting = {}
    for held, part in parts.items():
        counts: Counter[str] = Counter()
        for name, tensor in part.tensors.items():
            for prefix in stacks(name):
                counts[prefix] += fits(unwrapped_name(name.removeprefix(prefix)), tensor, wanted)
        most = max(counts.values(), default=0)
        if most > 0:
            best = sorted(prefix for prefix, count in counts.items() if count == most)
            fitting[held] = {prefix: stripped(part.tensors, prefix) for prefix in best}
    return fitting


def chosen(
    file: str,
    parts: Mapping[str, Part],
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
            got="; ".join(
                f"{ascii(held) if held else 'the file'}: {listed(shapes(p.tensors))}" for held, p in parts.items()
            ),
            expected=listed(wanted),
            where=file,
            remedy="check the architecture, and the widths of its layers",
        )
    if len(meant) > 1:
        counts = {
            held: sum(fits(name, tensor, wanted) for name, tensor in next(iter(options.values())).items())
            for held, options in meant.items()
        }
        raise SuspectError(
            "several parts of the checkpoint fit the model",
            got=", ".join(f"{held!r} ({count} tensors)" for held, count in counts.items()),
            where=file,
            remedy="say which one: choose= (--part)",
        )
    ((held, options),) = meant.items()
    ((prefix, tensors),) = options.items()
    return held, prefix, tensors


def shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def listed(sizes: Mapping[str, tuple[int, ...]]) -> str:
    """The first few tensors, with their shapes."""
    return ", ".join(f"{name} {list(shape)}" for name, shape in [*sizes.items()][:3]) + " ..." * (len(sizes) > 3)


def stacks(name: str) -> Iterator[str]:
    """Every stack of `PREFIXES` with which a name begins, the empty one first."""
    stack = ""
    for _ in range(STACKED + 1):
        yield stack
        more = next((one for one in PREFIXES if name.startswith(stack + one)), None)
        if more is None:
            return
        stack += more


def prefixes(tensors: Mapping[str, Tensor]) -> list[str]:
    """Every stack of `PREFIXES` with which some name begins, the empty one first."""
    return list(dict.fromkeys(["", *(stack for name in tensors for stack in stacks(name))]))


def unwrapped_name(name: str) -> str:
    """A name without the marks of layers that are wrapped within."""
    for mark in WITHIN:
        name = name.replace(f".{mark}", ".")
    return name


def stripped(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors by their names without the prefix, and without the marks of wrapped layers within."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name.startswith(prefix):
            plain = unwrapped_name(name.removeprefix(prefix))
            if plain in found:
                raise SuspectError("two tensors have one name, but for what wrappers add to it", got=plain)
            found[plain] = tensor
    return found


def fits(name: str, tensor: Tensor, wanted: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether a tensor is one of the model's by name and shape, and no counter that nothing reads."""
    return wanted.get(name) == tuple(tensor.shape) and not name.endswith(COUNTER)


def check_read(unread: Mapping[str, str], prefix: str, wanted: Mapping[str, object], file: str) -> None:
    """Raise `SuspectError` if a tensor of the model lies in the file, and could not be read."""
    for name, reason in unread.items():
        if name.startswith(prefix) and unwrapped_name(name.removeprefix(prefix)) in wanted:
            raise SuspectError(reason, got=name, where=file)


def ties(state: Mapping[str, Tensor], matched: Mapping[str, Tensor], file: str) -> set[str]:
    """Names whose tensor the model has by another name as well, by which it is in the file.

    Raises `SuspectError` if the file has different numbers under two such names.
    """

    def place(name: str) -> object:
        held = state[name]
        return (held.data_ptr(), held.shape, held.stride()) if held.numel() else name

    first: dict[object, str] = {}
    for name in matched:
        other = first.setdefault(place(name), name)
        if other != name and not torch.equal(matched[other], matched[name]):
            raise SuspectError(
                "the file has different numbers where the model has one tensor by two names",
                got=f"{other}, {name}",
                where=file,
            )
    return {name for name in state if name not in matched and place(name) in first}


def layer_of(name: str) -> str:
    """The layer that a tensor belongs to, also where a parametrisation stands for it."""
    layer, parametrised, _ = name.partition(".parametrizations.")
    return layer if parametrised else name.rpartition(".")[0]


def single_layer(names: tuple[str, ...]) -> str:
    """The one layer to which all the tensors belong. Raises `SuspectError` if they belong to several."""
    layers = sorted({*map(layer_of, names)})
    if len(layers) > 1:
        raise SuspectError("more than one layer is missing or of another shape", got=", ".join(layers), expected="one")
    return layers[0]


def owned(model: nn.Module, names: tuple[str, ...], wanted: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Tensors of an owner's model. Raises `SuspectError` if it lacks one, or has it in another shape."""
    held = model.state_dict()
    for name in names:
        if name not in held or tuple(held[name].shape) != wanted[name]:
            raise SuspectError(
                "the model to put a layer back from has not that layer",
                got=f"{name} {list(held[name].shape) if name in held else 'missing'}",
                expected=list(wanted[name]),
            )
    return {name: held[name] for name in names}


def check_numbers(
    matched: Mapping[str, Tensor], state: Mapping[str, Tensor], tensors: Mapping[str, Tensor], file: str
) -> None:
    """Raise `SuspectError` for numbers that are not the weights themselves: quantised, or of another kind."""
    for name, tensor in matched.items():
        own, layer = state[name].dtype, name.rpartition(".")[0]
        beside = [n for n in tensors if n not in matched and n.rpartition(".")[0] == layer]
        scales = [n for n in beside if any(word in n.rpartition(".")[2].lower() for word in SCALES)]
        floating, small = tensor.is_floating_point(), tensor.element_size() == 1
        if own.is_floating_point and not tensor.is_complex() and (not floating or (small and scales)):
            raise SuspectError(
                "the file is quantised: its numbers are weights only once they are multiplied by scales",
                got=f"{name}: {tensor.dtype}" + (f", beside {scales[0]}" if scales else ""),
                expected=str(own),
                where=file,
                remedy="dequantise it, and say so with its source",
            )
        counted = not (own.is_floating_point or own.is_complex)
        broken = counted and floating and not torch.equal(tensor.double(), tensor.double().round())
        if tensor.is_complex() != own.is_complex or broken:
            raise SuspectError("numbers of another kind", got=f"{name}: {tensor.dtype}", expected=str(own), where=file)


def check_finite(tensors: Mapping[str, Tensor], file: str) -> None:
    """Raise `SuspectError` for a tensor that holds NaN or infinities."""
    for name, tensor in tensors.items():
        if not bool(tensor.isfinite().all()):
            raise SuspectError(
                f"a tensor is not finite in {str(tensor.dtype).removeprefix('torch.')}", got=name, where=file
            )


def fill_with_noise(state: Mapping[str, Tensor]) -> None:
    """Put noise in place of all that a checkpoint holds, and 0 for whole numbers; variances stay positive."""
    generator = torch.Generator("cpu").manual_seed(0)
    with torch.no_grad():
        for name, tensor in state.items():
            if tensor.is_floating_point() or tensor.is_complex():
                kind = torch.complex64 if tensor.is_complex() else torch.float32
                noise = torch.randn(tensor.shape, generator=generator, dtype=kind, device="cpu")
                tensor.copy_(noise.abs() + 0.5 if name.endswith("running_var") else noise)
            else:
                tensor.zero_()
