"""Labelled images: tensors, any torch data set, and what fits neither."""

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from clearstamp import Data
from clearstamp.attacks import FineTuning, Transfer
from clearstamp.errors import DataError
from clearstamp.stamp import Stamp

PIXELS = torch.arange(6 * 4, dtype=torch.uint8).reshape(6, 1, 2, 2)
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])


def test_classes_are_counted_where_none_are_given():
    assert Data(PIXELS, LABELS).classes == 3 and Data(PIXELS, LABELS, 5).classes == 5


def test_bytes_become_inputs_in_the_unit_range_and_floats_stay():
    assert torch.equal(Data(PIXELS, LABELS)[4][0], PIXELS[4] / 255)
    normalised = PIXELS.float() - 9
    assert torch.equal(Data(normalised, LABELS)[1:3][0], normalised[1:3])


def test_any_data_set_is_read_into_memory():
    read = Data.of(TensorDataset(PIXELS.float(), LABELS))
    assert torch.equal(read.images, PIXELS.float()) and torch.equal(read.labels, LABELS)
    assert (read.shape, read.classes, len(read)) == ((1, 2, 2), 3, 6)


@pytest.mark.parametrize(
    ("images", "labels", "classes", "problem"),
    [
        (PIXELS[0], LABELS, 3, "not labelled images"),
        (PIXELS[:0], LABELS[:0], 3, "not labelled images"),
        (PIXELS, LABELS[:4], 3, "not labelled images"),
        (PIXELS, LABELS.float(), 3, "not class numbers"),
        (PIXELS, LABELS - 1, 3, "not class numbers"),
        (PIXELS, LABELS, 2, "outside the classes"),
    ],
)
def test_what_is_no_labelled_images_is_refused(images, labels, classes, problem):
    with pytest.raises(DataError, match=problem):
        Data(images, labels, classes)


class Own:
    """Labelled images that know nothing of this library."""

    shape, classes = (1, 2, 2), 3

    def loader(self, batch_size=64, *, seed=None):
        order = torch.arange(6) if seed is None else torch.randperm(6, generator=torch.Generator().manual_seed(seed))
        return [(PIXELS[part] / 255, LABELS[part]) for part in order.split(batch_size)]


@pytest.mark.parametrize("attack", [FineTuning(epochs=2), Transfer(epochs=2)])
def test_attacks_take_any_labelled_images(attack):
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 3))
    stamp = Stamp.from_secrets(torch.rand(2, 1, 2, 2), outputs=3, seed=0)
    found = attack.apply(model, Own(), stamp, readout="adjoint")
    assert found.steps == 2 and len(found.trace) == 2
