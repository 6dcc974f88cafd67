"""NeuNAC: a fragile mark in the lowest bits of all weights, which shows whether, and where, a model was changed."""

import hashlib
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor, nn

from clearstamp.data import LabelledImages
from clearstamp.errors import SchemeError
from clearstamp.schemes.base import ALPHA, Access, Evidence, Judgement, Key, Scheme, UnfitError
from clearstamp.transposed.graph import unwrapped

UNIT = 16
"""Weights in a unit, and bytes of its hash."""
STEP = 1 / 16
"""How far apart two coefficients are that show different bits: the least change of a byte moves each by several."""
EXACT = 2.0**20
"""Entries of the basis are multiples of its inverse, so that coefficients are exact in float64, whatever the order."""


@dataclass(frozen=True, kw_only=True)
class NeuNAC(Scheme):
    """Bits in each unit of 16 weights, written into their lowest bytes, that any change of the unit is to scramble.

    Botta, Cavagnino and Esposito, "NeuNAC: A novel fragile watermarking algorithm for integrity protection of neural
    networks", Information Sciences 2021: the lowest bytes are part of the mark as they are, the others through a hash,
    and a linear transformation of both shows the bits. The paper itself was not at hand, so that units, the bits of
    each, and how they are read are chosen here: as parities of coefficients in a drawn orthonormal basis, after the
    hash BLAKE2s, with a key and the unit's place, instead of MD5. The smallest changes of lowest bytes are tried first.

    Units run through all float32 parameters and buffers, joined in the order of the key; what is left over goes into
    the hash of the last one. Other numbers, such as the counters of norms, are not covered. A unit that was changed
    passes for one in 2 ** `bits_per_unit` keys, as does one of an unrelated model, so that p is exact. The claim is
    that nothing was changed: it is accepted if all units are valid. No weight changes by more than 2 ** -15 of itself.

    Attributes:
        bits_per_unit: 1 to 16; embedding takes 2 ** `bits_per_unit` tries a unit.
    """

    access: ClassVar[Access] = "weights"
    fragile: ClassVar[bool] = True

    bits_per_unit: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.bits_per_unit <= 16:
            raise SchemeError("number of bits out of range", got=self.bits_per_unit, expected="1 to 16")

    @property
    def bits_each(self) -> int:  # type: ignore[override]
        """Those of a unit."""
        return self.bits_per_unit

    def draw(self, model: nn.Module, data: LabelledImages, *, seed: int) -> Key:
        """As `Scheme.draw`. The hash's key follows from the seed, so that an experiment can be repeated."""
        found = floats(model)
        units = sum(tensor.numel() for tensor in found.values()) // UNIT
        if units == 0:
            raise SchemeError("too few float32 weights", got=list(found), expected=f"at least {UNIT}")
        generator = torch.Generator().manual_seed(seed)
        basis, _ = torch.linalg.qr(torch.randn(2 * UNIT, 2 * UNIT, generator=generator, dtype=torch.float64))
        drawn = {
            "hash key": torch.randint(256, (32,), generator=generator, dtype=torch.uint8),
            "basis": (basis[:, : self.bits_per_unit] * EXACT).round() / EXACT,
            "bits": torch.randint(2, (units, self.bits_per_unit), generator=generator, dtype=torch.uint8),
        }
        return Key(self, data.shape, drawn, {"weights": [[name, list(each.shape)] for name, each in found.items()]})

    def finish(self, model: nn.Module, data: LabelledImages, key: Key) -> None:
        """As `Scheme.finish`. Raises `SchemeError` for weights that are not finite, and `UnfitError`."""
        weights = joined(model, key)
        if not np.isfinite(weights).all():
            raise SchemeError("weights that are no numbers", expected="finite ones")
        octets = as_bytes(weights)
        units = Units(octets, key)
        octets[: units.low.size, 0] = fitting(units).reshape(-1)
        state = unwrapped(model).state_dict()
        covered = [state[name] for name, _ in key.settings["weights"]]
        parts = torch.from_numpy(weights).split([tensor.numel() for tensor in covered])
        for tensor, part in zip(covered, parts, strict=True):
            tensor.copy_(part.view_as(tensor))

    def forge(self, model: nn.Module, data: LabelledImages, *, seed: int) -> Key:
        """The bits that the model has, of which none was ever written."""
        drawn = self.draw(model, data, seed=seed)
        shown = Units(as_bytes(joined(model, drawn)), drawn).bits()
        return replace(drawn, tensors=drawn.tensors | {"bits": torch.from_numpy(shown)})

    def read(self, suspect: nn.Module, key: Key) -> Evidence:
        """As `Scheme.read`; `Evidence.detail` is what `changed` returns."""
        shown = Units(as_bytes(joined(suspect, key)), key).bits()
        valid = (shown == key["bits"].numpy()).all(1)
        right, of = int(valid.sum()), len(valid)
        p = float(stats.binom.sf(right - 1, of, 2.0**-self.bits_per_unit))
        return Evidence(right / of, of, p, np.packbits(shown).tobytes(), detail=changed(~valid, key))

    def judge(self, evidence: Evidence, *, alpha: float = ALPHA, highest_null: float = math.nan) -> Judgement:
        """As `Scheme.judge`, of the claim that nothing was changed: a single unit refutes it."""
        found = super().judge(evidence, alpha=alpha, highest_null=highest_null)
        return replace(found, accepted=found.accepted and evidence.score == 1)


class Units:
    """What units of weights, as bytes ``[n, 4]`` from the lowest to the highest, show to the owner of a key."""

    def __init__(self, octets: NDArray[np.uint8], key: Key):
        count = len(key["bits"])
        whole = octets[: count * UNIT].reshape(count, UNIT, 4)
        self.low, basis = whole[:, :, 0], key["basis"].numpy()
        self.wanted = key["bits"].numpy()
        secret, rest = key["hash key"].numpy().tobytes(), octets[count * UNIT :].tobytes()
        high = [unit.tobytes() for unit in whole[:, :, 1:]]
        high[-1] += rest
        digests = b"".join(
            hashlib.blake2s(place.to_bytes(8, "little") + unit, key=secret, digest_size=UNIT).digest()
            for place, unit in enumerate(high)
        )
        hashes = np.frombuffer(digests, np.uint8).reshape(count, UNIT)
        self.basis, self.hashed = basis[:UNIT], hashes @ basis[UNIT:]

    def bits(self) -> NDArray[np.uint8]:
        """The bits ``[units, bits_per_unit]`` that are in the lowest bytes."""
        return parities(self.hashed + self.low @ self.basis)


def parities(coefficients: NDArray[np.float64]) -> NDArray[np.uint8]:
    """The bits that coefficients show."""
    return (np.floor(coefficients / STEP).astype(np.int64) & 1).astype(np.uint8)


def fitting(units: Units) -> NDArray[np.uint8]:
    """The lowest bytes ``[units, 16]``, changed as little as shows the wanted bits."""
    found, left = units.low.copy(), np.arange(len(units.low))
    for change in changes():
        tried = (units.low[left] + change).clip(0, 255)
        fits = (parities(units.hashed[left] + tried @ units.basis) == units.wanted[left]).all(1)
        found[left[fits]] = tried[fits]
        left = left[~fits]
        if not len(left):
            break
    return found


def changes() -> Iterator[NDArray[np.int64]]:
    """Changes of the bytes of a unit ``[16]``: none, then of one byte by 1, of two, and so on, then of all by more."""
    for count in range(4):
        for places in itertools.combinations(range(UNIT), count):
            for signs in itertools.product((1, -1), repeat=count):
                change = np.zeros(UNIT, np.int64)
                change[list(places)] = signs
                yield change
    random = np.random.default_rng(0)
    while True:
        yield random.integers(-255, 256, UNIT)


def floats(model: nn.Module) -> dict[str, Tensor]:
    """The float32 parameters and buffers that a model is saved with, by name, each once."""
    inner = unwrapped(model)
    found = itertools.chain(inner.named_parameters(), inner.named_buffers())
    saved = inner.state_dict().keys()
    return {name: tensor.detach() for name, tensor in found if name in saved and tensor.dtype == torch.float32}


def joined(model: nn.Module, key: Key) -> NDArray[np.float32]:
    """The numbers ``[n]`` that a key covers, as float32. Raises `UnfitError` if the model does not have them."""
    state, parts = unwrapped(model).state_dict(), []
    for name, shape in key.settings["weights"]:
        if name not in state or list(state[name].shape) != shape:
            raise UnfitError("weights of another shape", expected=shape, where=name)
        parts.append(state[name].detach().cpu().float().flatten())
    return torch.cat(parts).numpy()


def as_bytes(weights: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The bytes ``[n, 4]`` of weights ``[n]``, from the lowest to the highest, in the same memory."""
    octets = weights.view(np.uint8).reshape(-1, 4)
    return octets if np.little_endian else octets[:, ::-1]


def changed(invalid: NDArray[np.bool_], key: Key) -> dict[str, Tensor]:
    """The weights in units that are not valid, by the name of their tensor, as places in it, flat."""
    names, shapes = zip(*key.settings["weights"], strict=True)
    sizes = [math.prod(shape) for shape in shapes]
    units = (torch.arange(sum(sizes)) // UNIT).clamp(max=len(invalid) - 1)
    parts = torch.from_numpy(invalid)[units].split(sizes)
    return {name: part.nonzero().squeeze(1) for name, part in zip(names, parts, strict=True) if part.any()}
