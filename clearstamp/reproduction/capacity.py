"""Section 5.5 of the paper: how many bits a stamp carries, and how many come back."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from clearstamp.coding import Found, decode, read_bits
from clearstamp.losses import StampLoss
from clearstamp.reproduction.experiments import Findings, Profile
from clearstamp.reproduction.generalizability import Row
from clearstamp.stamp import Stamp
from clearstamp.transpose import Transposed

LICENCE = Path(__file__).with_name("licence.txt").read_bytes()
"""The MIT licence's text: 8,544 bits, as in the paper."""


@dataclass(frozen=True, kw_only=True)
class Capacity(Row):
    """A stamp that holds `length` bytes (the licence's text, over and over) on its way through the stages.

    It has as many keys as the bytes need, whatever `keys` says. A stamp step takes at most `sample` of them. To what is
    measured at each stage come ``bit errors``: the share of wrong code bits as decoded; ``bit errors at 0.53``: by the
    paper's threshold; ``wrong bits`` and their share, ``message errors``: of the message after correction; and
    ``right``: is it the message? ``message`` is what was read, one character a byte.
    """

    looks: ClassVar[int] = 10_000  # a message is read back from all of them

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

    def texts(self) -> tuple[str, ...]:
        return ()  # the secrets hold bytes

    def stamp(self, shape: tuple[int, int, int], outputs: int, seed: int) -> Stamp:
        return Stamp.from_bytes(
            self.message,
            outputs=outputs,
            shape=shape,
            seed=seed,
            code=self.code,
            patches=self.patches,
            per_channel=self.per_channel,
            key_range=self.key_range,
        )

    def loss(self, back: Transposed, stamp: Stamp) -> StampLoss:
        return StampLoss(back, stamp, sample=self.sample, noise=self.noise, dropout=self.dropout)

    def conduct(self, scale: Profile, seed: int) -> Findings:
        stages, arrays, weights = super().conduct(scale, seed)
        for stage in stages:
            stage.scores.update(self.judge(arrays[stage.label], arrays["secrets"], seed))
        kept = ("secrets", *(stage.label for stage in stages))
        return stages, {name: arrays[name] for name in kept}, weights

    def judge(self, images: Tensor, secrets: Tensor, seed: int) -> dict[str, Any]:
        """How many bits of raw signals ``[k, C, H, W]`` are wrong."""
        found = self.read(images, seed)
        fixed, meant = (read_bits(i, self.patches, per_channel=self.per_channel) for i in (images, secrets))
        wrong = np.unpackbits(np.frombuffer(found.data, np.uint8) ^ np.frombuffer(self.message, np.uint8))
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

    def read(self, images: Tensor, seed: int) -> Found:
        """The message of raw signals, right or not."""
        channels, height, width = images.shape[1:]
        payload = self.stamp((channels, height, width), 1, seed).payload
        assert payload is not None, "made by from_bytes"
        return decode(images, payload)
