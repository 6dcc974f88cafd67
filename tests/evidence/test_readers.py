"""Readers: integers out of pictures, blind to levels, and the same on every machine."""

import numpy as np
import pytest

from clearstamp.evidence.readers import READERS, UNIT, best, cells, centred, template
from clearstamp.evidence.seal import sheet


def noise(count: int, side: int = 14, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, side, side))


def test_template_is_the_correlation_in_millionths():
    pictures, shown = noise(5), noise(3, seed=1)
    expected = np.corrcoef(pictures.reshape(5, -1), shown.reshape(3, -1))[:5, 5:] * UNIT
    assert np.abs(template(pictures, shown) - expected).max() <= 1


def test_template_is_blind_to_level_and_contrast():
    pictures, shown = noise(5), noise(3, seed=1)
    assert (template(7 * pictures + 100, shown) == template(pictures, shown)).all()
    assert (template(-pictures, shown) == -template(pictures, shown)).all()


def test_template_knows_a_picture_by_itself():
    assert (np.diagonal(template(noise(5), noise(5))) == UNIT).all()


def test_a_flat_picture_scores_nothing():
    assert (template(np.full((2, 14, 14), 255), noise(3)) == 0).all()


def test_large_pictures_do_not_overflow():
    large = noise(2, side=224) * 3 * 40
    assert np.diagonal(template(large, large)).tolist() == [UNIT, UNIT]


def test_cells_lie_row_by_row():
    picture = np.zeros((2, 5, 7), np.int64)
    picture[1, 2:4, 3:6] = 1  # the second row's second column
    found = cells(picture, rows=2, columns=2)
    assert found.shape == (8, 2, 3)
    assert found.sum((1, 2)).tolist() == [0] * 7 + [6]


def test_what_all_pictures_share_is_taken_off():
    pictures, shared = noise(4), noise(1, seed=1)
    assert (centred(pictures + shared) == centred(pictures)).all()


@pytest.mark.parametrize("count", [1, 3])
def test_a_few_pictures_keep_their_mean(count: int):
    assert (centred(noise(count)) == noise(count)).all()


def test_ties_are_no_answer():
    assert best(np.array([[1, 3, 2], [3, 3, 1], [0, 0, 0]])).tolist() == [1, -1, -1]


@pytest.mark.parametrize("reader", READERS)
def test_every_reader_knows_letters_through_noise_and_level(reader: str):
    glyphs = sheet(14, 14)[:, 0].astype(np.int64)
    pictures = 11 * glyphs + np.random.default_rng(0).integers(0, 1500, glyphs.shape)
    scores = READERS[reader](pictures, glyphs)
    assert scores.shape == (16, 16) and scores.dtype == np.int64
    assert (best(scores) == np.arange(16)).all()


@pytest.mark.parametrize("reader", READERS)
def test_no_reader_reads_letters_in_a_flat_picture(reader: str):
    glyphs = sheet(14, 14)[:, 0].astype(np.int64)
    assert (best(READERS[reader](np.full((3, 14, 14), 7), glyphs)) == -1).all()
