"""How alike two images are, and how a raw signal becomes a picture."""

import torch
from pytorch_msssim import SSIM, ssim
from pytorch_msssim.ssim import gaussian_filter
from torch import Tensor

from clearstamp.errors import StampError
from clearstamp.pictures import as_pictures


def paired(images: Tensor, secrets: Tensor) -> None:
    """Raise `StampError` unless both are non-empty batches of one shape."""
    if images.shape != secrets.shape or images.dim() < 2 or len(images) == 0:
        raise StampError(
            "images and secrets do not pair",
            got=f"{list(images.shape)} and {list(secrets.shape)}",
            expected="two batches [k, ...] of one shape, k >= 1",
        )


def structural_similarity(images: Tensor, secrets: Tensor) -> Tensor:
    """SSIM ``[k]`` of two batches ``[k, ...]``, seen `as_pictures`, unclamped and differentiable, data range 1.

    The Gaussian window is 11 pixels wide, or the largest odd width that the image holds. Never in a lower precision,
    also not under autocast.
    """
    paired(images, secrets)
    images, secrets = as_pictures(images), as_pictures(secrets)
    with torch.autocast(images.device.type, enabled=False):
        return ssim(images, secrets, data_range=1.0, size_average=False, win_size=window_size(images))


def window_size(images: Tensor) -> int:
    """Width of the Gaussian window of SSIM, odd, in pixels."""
    most = min(11, *images.shape[2:])
    return most - (most + 1) % 2


class SimilarityTo:
    """`structural_similarity` to secrets ``[k, ...]`` that stay: the same score and gradient in less time.

    What SSIM needs of the secrets alone is computed once, and what it needs of the images in two blurs, not in three.
    """

    def __init__(self, secrets: Tensor):
        paired(secrets, secrets)
        self.secrets = secrets
        secrets = as_pictures(secrets)
        self.window = SSIM(win_size=window_size(secrets), channel=secrets.shape[1]).win.to(secrets)
        with torch.autocast(secrets.device.type, enabled=False):
            self.mean = gaussian_filter(secrets, self.window)
            self.variance = gaussian_filter(secrets * secrets, self.window) - self.mean.pow(2)

    def __call__(self, images: Tensor) -> Tensor:
        """SSIM ``[k]`` of images of the shape of the secrets."""
        paired(images, self.secrets)
        images, secrets = as_pictures(images), as_pictures(self.secrets)
        with torch.autocast(images.device.type, enabled=False):
            images = images[:]  # a view, as `ssim` takes one, so that the gradient is the same sum to the last bit
            mean = gaussian_filter(images, self.window)
            products = torch.cat((images * images, images * secrets))
            square, product = gaussian_filter(products, self.window).chunk(2)
            means, both = mean.pow(2), mean * self.mean
            contrast = (2 * (product - both) + 0.03**2) / ((square - means) + self.variance + 0.03**2)
            level = (2 * both + 0.01**2) / (means + self.mean.pow(2) + 0.01**2)
            return (level * contrast).flatten(2).mean(2).mean(1)


def similarity(images: Tensor, secrets: Tensor) -> Tensor:
    """SSIM ``[k]`` in [-1, 1] of each image, clamped to [0, 1], with its secret: the paper's score.

    `images` is the raw signal ``[k, ...]``, `secrets` the same shape. Raises `StampError` for other shapes.
    """
    return structural_similarity(images.detach().clamp(0, 1), secrets)


def correlation(images: Tensor, secrets: Tensor) -> Tensor:
    """Normalised cross-correlation ``[k]`` in [-1, 1]: blind to level and contrast. A flat image scores 0."""
    paired(images, secrets)
    a, b = (v.detach().flatten(1) - v.flatten(1).mean(1, keepdim=True).detach() for v in (images, secrets))
    norm = a.norm(dim=1) * b.norm(dim=1)
    return torch.where(norm > 0, (a * b).sum(1) / norm.clamp_min(torch.finfo(a.dtype).tiny), 0.0)
