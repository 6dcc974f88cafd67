"""Section 5.5 of the paper: how many bits a stamp carries, and how many come back."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np
from torch import Tensor

from clearstamp.coding.payload import decode, read_bits
from clearstamp.reproduction.experiments import Findings
from clearstamp.reproduction.generalizability import Row
from clearstamp.reproduction.lifecycle import LifeCycle, LifeSettings
from clearstamp.reproduction.profiles import Profile
from clearstamp.reproduction.records import Score
from clearstamp.stamp import Stamp

LICENCE = Path(__file__).with_name("licence.txt").read_bytes()
"""The MIT licence's text: 8,544 bits, as in the paper."""


@dataclass(frozen=True, kw_only=True)
class Capacity(LifeCycle):
    """A stamp that holds `length` bytes (the licence's text, over and over) on its way through the stages.

    It has as many keys as the bytes need, whatever `keys` says. A stamp step takes at most `sample` of them.
    """

    attacked_pictures: ClassVar[int] = 10_000  # a message is read back from all of them
    quick: ClassVar[dict[str, int]] = Row.quick

    length: int = len(LICENCE)
    code: str = "ldpc"
    patches: int = 6
    per_channel: bool = False
    sample: int = 32
    target: float | None = 0.95

    @property
    def message(self) -> bytes:
        """What the stamp holds."""
        return (LICENCE * (self.length // len(LICENCE) + 1))[: self.length]

    @property
    def stamp(self) -> Callable[..., Stamp]:
        """Makes the stamp that holds the message, from `outputs`, `shape` and `seed`."""
        layout = {name: getattr(self, name) for name in ("code", "patches", "per_channel", "key_range")}
        return partial(Stamp.from_bytes, self.message, **layout)

    def settings(self, profile: Profile) -> LifeSettings:
        settings = super().settings(profile)
        loss = partial(settings.loss, sample=self.sample)
        return replace(settings, stamp=self.stamp, loss=loss, judge=partial(judge, self.message))

    def conduct(self, settings: LifeSettings, seed: int) -> Findings:
        stages, arrays, weights = super().conduct(settings, seed)
        kept = ("secrets", *(stage.label for stage in stages))
        return stages, {name: arrays[name] for name in kept}, weights


def judge(message: bytes, images: Tensor, stamp: Stamp) -> dict[str, Score]:
    """How many bits of raw signals ``[k, C, H, W]`` of a stamp that holds a message are wrong.

    ``bit errors`` is the share of wrong code bits as decoded, ``bit errors at 0.53`` by the paper's threshold; ``wrong
    bits`` and their share, ``message errors``, are of the message after correction. ``right``: whether its checksum is
    right. ``message`` is what was read, one character a byte.
    """
    assert (payload := stamp.payload) is not None, "made by from_bytes"
    found = decode(images, payload)
    fixed, meant = (read_bits(i, payload.patches, per_channel=payload.per_channel) for i in (images, stamp.secrets))
    wrong = np.unpackbits(np.frombuffer(found.data, np.uint8) ^ np.frombuffer(message, np.uint8))
    return {
        "keys": len(images),
        "code bits": int(meant.size),
        "bit errors": float((found.bits != meant).mean()),
        "bit errors at 0.53": float((fixed != meant).mean()),
        "wrong bits": int(wrong.sum()),
        "message errors": float(wrong.mean()),
        "right": found.right,
        "message": found.data.decode("latin-1"),
    }
