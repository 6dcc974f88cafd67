"""Reading a stamp out of a model."""

from dataclasses import dataclass

import torch
from torch import Tensor

from clearstamp.scores import correlation, develop, similarity
from clearstamp.stamp import Stamp
from clearstamp.training import check_fit
from clearstamp.transpose import Transposed


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
    images, secrets = extract(back, stamp), stamp.secrets.cpu()
    return Reading(
        images, similarity(images, secrets), similarity(develop(images), secrets), correlation(images, secrets)
    )
