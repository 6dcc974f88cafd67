"""python tests/fuzz_suspects.py COUNT [SEED]: damaged checkpoints, of which none may do more than raise SuspectError.

Files are cut, flipped, renamed, reshaped and swapped at random, and read under the limits of `load_suspect`, all in
this one process; at the end it prints what was raised how often and the most memory that it took beyond the start.
"""

import random
import resource
import sys
import tempfile
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from clearstamp import checkpoints, suspects
from clearstamp.errors import SuspectError


def model() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 10))


class Executed:
    """Whoever unpickles this creates a file."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self) -> Any:
        return open, (str(self.trace), "w")


def mutated(weights: dict[str, Tensor], trace: Path, draw: random.Random) -> Any:
    """The weights with one thing wrong, or nothing."""
    names = list(weights)
    one, other = draw.sample(names, 2)
    changed: dict[Any, Any] = dict(weights)
    kind = draw.randrange(12)
    if kind == 0:
        changed[one], changed[other] = changed[other], changed[one]
    elif kind == 1:
        changed[draw.choice(["module.", "model.", "x.", "\x1b[31m", "a" * 500]) + one] = changed.pop(one)
    elif kind == 2:
        changed[one] = changed[one].reshape(-1, 1) if draw.random() < 0.5 else changed[one].flatten()[:0]
    elif kind == 3:
        changed[one] = torch.full_like(changed[one], float("nan"), dtype=torch.float32)
    elif kind == 4:
        changed[one] = torch.zeros(1).expand(10**6, 10**6)
    elif kind == 5:
        changed[one] = draw.choice([changed[one].to_sparse(), torch.empty(3, device="meta"), None, 3, "text", [1], {}])
    elif kind == 6:
        changed[one] = Executed(trace)
    elif kind == 7:
        changed = {draw.choice(["model", "ema", "state_dict", 7]): changed, "model": dict(weights)}
    elif kind == 8:
        for _ in range(draw.choice([3, 12, 300])):
            changed = {"deep": changed}
    elif kind == 9:
        changed[one] = changed[one].to(draw.choice([torch.float16, torch.bfloat16, torch.complex64, torch.bool]))
    elif kind == 10:
        changed.pop(one)
    return changed


def damaged(content: bytes, draw: random.Random) -> bytes:
    """The file as it is, cut, with bytes flipped, or with a stretch moved."""
    kind = draw.randrange(4)
    if kind == 0 or len(content) < 8:
        return content
    place = draw.randrange(len(content))
    if kind == 1:
        return content[:place]
    if kind == 2:
        flipped = bytearray(content)
        for _ in range(draw.choice([1, 5, 100])):
            flipped[draw.randrange(len(flipped))] ^= 1 << draw.randrange(8)
        return bytes(flipped)
    return content[place:] + content[:place]


def write(path: Path, held: Any) -> None:
    if path.suffix == ".safetensors":
        tensors = {n: t for n, t in held.items() if isinstance(n, str) and isinstance(t, Tensor) and not t.is_sparse}
        save_file({n: t.contiguous() for n, t in tensors.items() if not t.is_meta and t.numel() < 10**6}, path)
    else:
        torch.save(held, path, _use_new_zipfile_serialization=path.suffix == ".pt")
        if path.suffix == ".pt" and len(str(held)) % 7 == 0:  # the same archive, compressed
            with zipfile.ZipFile(path) as archive:
                entries = {entry.filename: archive.read(entry) for entry in archive.infolist()}
            with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
                for name, content in entries.items():
                    archive.writestr(name, content)


def main(count: int, seed: int = 0) -> None:
    draw, found, owner = random.Random(seed), Counter(), model()
    torch.manual_seed(seed)
    wanted = {name: tuple(tensor.shape) for name, tensor in owner.state_dict().items()}
    begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tempfile.TemporaryDirectory() as folder:
        trace, limited = Path(folder, "executed"), False
        for _ in range(count):
            path = Path(folder, draw.choice(["a.safetensors", "a.pt", "a.pth"]))
            write(path, mutated(model().state_dict(), trace, draw))
            path.write_bytes(damaged(path.read_bytes(), draw))
            try:
                if not limited:
                    checkpoints.limit(path, seconds=count)
                    limited = True
                parts = checkpoints.read_parts(path)
                fitting = suspects.fitting_parts(parts, wanted)
                _, _, tensors = suspects.chosen(str(path), parts, fitting, wanted, None)
                suspects.check_finite(tensors, str(path))
                found["read"] += 1
            except SuspectError as error:
                assert "weights_only" not in str(error), error
                found[str(error).partition(";")[0]] += 1
            assert not trace.exists(), "something was executed"
    taken = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - begun
    for what, times in found.most_common():
        print(f"{times:6}  {what}")
    print(f"{sum(found.values())} files, {taken / 2**20:.2f} GiB")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
