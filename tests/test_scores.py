"""Similarity, correlation and development of images."""

import pytest
import torch
from torch import Tensor

from clearstamp import scores
from clearstamp.errors import StampError
from clearstamp.pictures import develop
from clearstamp.scores import SimilarityTo, correlation, similarity, structural_similarity


def images(count: int = 3, channels: int = 1, size: int = 16) -> Tensor:
    return torch.rand(count, channels, size, size)


def ssim_by_hand(a: Tensor, b: Tensor) -> float:
    """SSIM of two grey images as wide as the Gaussian window of 11 pixels: one window, no averaging."""
    weights = torch.exp(-((torch.arange(11.0) - 5) ** 2) / (2 * 1.5**2))
    window = torch.outer(weights, weights) / weights.sum() ** 2

    def mean(v: Tensor) -> Tensor:
        return (window * v).sum()

    covariance = mean(a * b) - mean(a) * mean(b)
    variances = mean(a * a) - mean(a) ** 2 + mean(b * b) - mean(b) ** 2
    level = (2 * mean(a) * mean(b) + 0.01**2) / (mean(a) ** 2 + mean(b) ** 2 + 0.01**2)
    return (level * (2 * covariance + 0.03**2) / (variances + 0.03**2)).item()


# ------------------------------------------------------------------------------------------------------------ ssim


@pytest.mark.parametrize(("channels", "size"), [(1, 16), (3, 16), (1, 8), (1, 3)])
def test_ssim_of_identical_images_is_one(channels, size):
    x = images(channels=channels, size=size)
    torch.testing.assert_close(similarity(x, x), torch.ones(3), rtol=0, atol=1e-5)


def test_ssim_equals_its_formula():
    a, b = images(1, size=11), images(1, size=11)
    assert similarity(a, b).item() == pytest.approx(ssim_by_hand(a[0, 0], b[0, 0]), abs=1e-5)


def test_ssim_is_one_number_an_image_within_bounds():
    a, b = images(5), images(5)
    scores = similarity(torch.cat([a, 1 - b]), torch.cat([b, b]))
    assert scores.shape == (10,)
    assert ((scores >= -1) & (scores <= 1)).all()
    assert (scores[5:] < 0).all(), "a negative image scores below zero"


def test_only_the_score_clamps():
    secret = (images() > 0.5).float()
    loud = secret * 5 - 2
    torch.testing.assert_close(similarity(loud, secret), torch.ones(3), rtol=0, atol=1e-5)
    assert (structural_similarity(loud, secret) < 0.9).all()


@pytest.mark.parametrize("shape", [(3, 1, 16, 16), (2, 3, 16, 12), (2, 1, 8, 8), (2, 1, 3, 5)])
def test_ssim_to_secrets_that_stay_is_ssim_and_so_is_its_gradient(shape):
    secrets, start = torch.rand(shape).double(), torch.rand(shape).double()
    to_secrets = SimilarityTo(secrets)

    def score_and_slope(score) -> tuple[Tensor, Tensor]:
        images = start.clone().requires_grad_()
        scores = score(images)
        return scores.detach(), torch.autograd.grad(scores.square().sum(), images)[0]

    expected = score_and_slope(lambda images: structural_similarity(images, secrets))
    for _ in range(2):
        torch.testing.assert_close(score_and_slope(to_secrets), expected, rtol=1e-10, atol=1e-12)


def test_ssim_to_secrets_that_stay_blurs_only_what_changes(monkeypatch):
    blurs: list[int] = []
    to_secrets, blur = SimilarityTo(images()), scores.gaussian_filter
    monkeypatch.setattr(scores, "gaussian_filter", lambda *given: blurs.append(len(given[0])) or blur(*given))
    to_secrets(images())
    assert blurs == [3, 6], "three images, then their squares and products"


def test_ssim_to_secrets_that_stay_is_in_full_precision_under_autocast():
    a, b = images(), images()
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(SimilarityTo(b)(a), structural_similarity(a, b), rtol=1e-6, atol=1e-7)


def test_only_the_loss_has_gradients():
    x = images().requires_grad_()
    assert structural_similarity(x, images()).requires_grad
    assert not similarity(x, images()).requires_grad
    assert not correlation(x, images()).requires_grad


# ----------------------------------------------------------------------------------------------------- correlation


def test_correlation_is_blind_to_level_and_contrast_but_not_to_sign():
    x = images()
    torch.testing.assert_close(correlation(x * 30 - 7, x), torch.ones(3), rtol=0, atol=1e-5)
    torch.testing.assert_close(correlation(-x, x), -torch.ones(3), rtol=0, atol=1e-5)


def test_correlation_of_unrelated_images_is_small():
    assert correlation(images(20, size=64), images(20, size=64)).abs().max() < 5 / 64  # five standard deviations


@pytest.mark.parametrize("level", [0.0, 0.1, 0.5, 1 / 3, -1234.567])
def test_a_flat_image_correlates_with_nothing(level):
    flat = torch.full((3, 1, 28, 28), level)
    torch.testing.assert_close(correlation(flat, images(size=28)), torch.zeros(3), rtol=0, atol=1e-5)


# --------------------------------------------------------------------------------------------------------- develop


@pytest.mark.parametrize("channels", [1, 3])
def test_developed_pictures_fill_the_range(channels):
    pictures = develop(torch.randn(3, channels, 16, 16) * 100)
    assert pictures.shape == (3, channels, 16, 16) and pictures.dtype == torch.float32
    assert pictures.min() == 0 and pictures.max() == 1


def test_development_is_blind_to_level_and_contrast():
    x = images()
    torch.testing.assert_close(develop(x * 30 - 7), develop(x), rtol=0, atol=1e-4)


def test_development_stretches_between_its_quantiles():
    ramp = torch.linspace(-3, 7, 101).reshape(1, 1, 1, 101)
    expected = torch.linspace(-0.125, 1.125, 101).clamp(0, 1).reshape(1, 1, 1, 101)
    torch.testing.assert_close(develop(ramp, low=0.1, high=0.9), expected, rtol=0, atol=1e-5)


def test_every_image_is_developed_by_itself():
    x = torch.cat([images(1), images(1) * 1000])
    torch.testing.assert_close(develop(x)[:1], develop(x[:1]), rtol=0, atol=0)


@pytest.mark.parametrize("level", [0.0, 0.1, -1234.567])
def test_a_flat_image_becomes_grey(level):
    assert (develop(torch.full((2, 1, 8, 8), level)) == 0.5).all()


# ---------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("score", [similarity, structural_similarity, correlation, lambda a, b: SimilarityTo(b)(a)])
@pytest.mark.parametrize(
    ("a", "b"), [((2, 1, 8, 8), (3, 1, 8, 8)), ((2, 1, 8, 8), (2, 1, 8, 9)), ((8,), (8,)), ((0, 1, 8, 8),) * 2]
)
def test_images_and_secrets_that_do_not_pair(score, a, b):
    with pytest.raises(StampError, match="do not pair.*expected: two batches"):
        score(torch.zeros(a), torch.zeros(b))


@pytest.mark.parametrize(("low", "high"), [(0.5, 0.5), (-0.1, 0.9), (0.1, 1.1), (0.9, 0.1)])
def test_quantiles_out_of_order(low, high):
    with pytest.raises(StampError, match="quantiles out of order"):
        develop(images(), low=low, high=high)
