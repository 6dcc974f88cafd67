"""Files that are whole or not there, and checksums of what is in them."""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor


def write_atomically(path: Path, content: bytes, *, mode: int = 0o666) -> None:
    """Write under a temporary name beside `path`, then rename: neither crash nor loss of power leaves half a file.

    `mode` are the permissions of a new file, from which the process's mask takes its own.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def checksum(labels: Sequence[str], tensors: dict[str, Tensor]) -> str:
    """sha256 over the labels and over names, shapes, types and values, in the order of the names."""
    digest = hashlib.sha256(json.dumps(list(labels)).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
