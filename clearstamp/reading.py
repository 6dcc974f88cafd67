"""Reading a stamp out of a model."""

from dataclasses import dataclass

import torch
from torch import Tensor

from clearstamp.coding.payload import Found, decode, read_bits
from clearstamp.errors import CodingError
from clearstamp.pictures import develop
from clearstamp.scores import correlation, similarity
from clearstamp.stamp import Stamp
from clearstamp.training.losses import check_fit
from clearstamp.transposed.base import Transposed


def extract(back: Transposed, stamp: Stamp) -> Tensor:
    """Step 4: feed the keys; the raw signal ``[k, C, H, W]`` on the CPU, neither clamped nor developed.

    Raises `StampError` if the stamp does not fit the model.
    """
    check_fit(back, stamp)
    with torch.no_grad():
        return back(stamp.keys.to(back.device)).cpu()


@dataclass(frozen=True)
class Reading:
    """A stamp as read out of a model.

    Attributes:
        images: the raw signal ``[k, C, H, W]``.
        ssim: SSIM ``[k]`` of the clamped signal, the paper's score.
        developed_ssim: SSIM ``[k]`` of the developed pictures.
        correlation: normalised cross-correlation ``[k]``, blind to level and contrast.
    """

    images: Tensor
    ssim: Tensor
    developed_ssim: Tensor
    correlation: Tensor

    def summary(self) -> dict[str, float]:
        """Mean over the keys of each score, and the minimum of SSIM."""
        return {
            "ssim": self.ssim.mean().item(),
            "ssim_min": self.ssim.min().item(),
            "developed_ssim": self.developed_ssim.mean().item(),
            "correlation": self.correlation.mean().item(),
        }


def read(back: Transposed, stamp: Stamp) -> Reading:
    """Extract a stamp and score it in three ways. Marked, unmarked and wrong-key readings all go through here."""
    return scored(extract(back, stamp), stamp)


def scored(images: Tensor, stamp: Stamp) -> Reading:
    """What was read out of a model ``[k, C, H, W]``, with its scores."""
    secrets = stamp.secrets.cpu()
    return Reading(
        images, similarity(images, secrets), similarity(develop(images), secrets), correlation(images, secrets)
    )


LOST = 0.25
"""The share of wrong bits from which an image counts as lost."""


@dataclass(frozen=True)
class Recovered:
    """A payload as read back from a model.

    Attributes:
        data: the bytes; right, by their checksum.
        corrected: code bits that error correction changed.
        errors: bit-error rate of each image before correction ``[k]``, by the stamp's own secrets.
    """

    data: bytes
    corrected: int
    errors: Tensor


def try_bytes(back: Transposed, stamp: Stamp) -> tuple[Found, Tensor]:
    """What decoding finds, right or not, and the bit-error rate of each image before correction ``[k]``.

    Raises `CodingError` if the stamp holds no payload, `StampError` if it does not fit the model.
    """
    if stamp.payload is None:
        raise CodingError("the stamp holds no payload", expected="a stamp made by Stamp.from_bytes")
    found = decode(extract(back, stamp), stamp.payload)
    meant = read_bits(stamp.secrets.cpu(), stamp.payload.patches, per_channel=stamp.payload.per_channel)
    return found, torch.from_numpy((found.bits != meant).mean(1))


def read_bytes(back: Transposed, stamp: Stamp) -> Recovered:
    """Step 4 for a stamp made by `Stamp.from_bytes`: feed the keys, read the bits, correct them, check them.

    Raises `CodingError` if the bytes are not those that the stamp was made of, with the bit-error rate before
    correction and how many images are lost.
    """
    found, errors = try_bytes(back, stamp)
    if not found.right:
        raise CodingError(
            "the payload cannot be read back",
            got=f"{errors.mean():.2%} wrong bits before correction, "
            f"{int((errors > LOST).sum())} of {len(errors)} images lost",
            remedy="a stronger code, larger patches, or more training of the stamp",
        )
    return Recovered(found.data, found.corrected, errors)
