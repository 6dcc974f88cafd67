"""Stamps that hold bytes, through all stages, and how the book tells of them."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from clearstamp.attacks import Quantization
from clearstamp.coding.payload import decode
from clearstamp.errors import TrainingError
from clearstamp.reproduction import report
from clearstamp.reproduction.campaigns import campaigns
from clearstamp.reproduction.capacity import LICENCE, Capacity, judge
from clearstamp.reproduction.experiments import run_all
from clearstamp.reproduction.profiles import PROFILES
from clearstamp.reproduction.records import Stage
from clearstamp.reproduction.report.stages import in_words
from clearstamp.stamp import Stamp
from clearstamp.training.losses import StampLoss
from clearstamp.transpose import transpose
from clearstamp.zoo.networks import build
from tests import books
from tests.tables import compact

SHAPE = (1, 28, 28)
SMALL = {"model": "fc", "readout": "adjoint", "lr": 1e-3, "target": None}


@pytest.fixture(autouse=True)
def artifacts(tmp_path, monkeypatch):
    monkeypatch.setenv("CLEARSTAMP_ARTIFACTS", str(tmp_path))
    scale = {"train_images": 128, "test_images": 50, "hardening_steps": 25}
    monkeypatch.setitem(PROFILES, "tiny", replace(PROFILES["tiny"], **scale))


def test_the_licence_is_as_long_as_the_paper_s():
    assert 8 * len(LICENCE) == 8_544 and LICENCE.startswith(b"MIT License") and LICENCE.isascii()


@pytest.mark.parametrize("length", [1, 1068, 1069, 3000])
def test_a_message_of_any_length_is_the_licence_over_and_over(length):
    message = Capacity(name="one", length=length).message
    assert len(message) == length and (LICENCE * 3).startswith(message)


def test_a_payload_is_judged_after_every_stage():
    experiment = Capacity(name="one", length=9, code="none", **SMALL)
    (record,) = run_all([experiment], "tiny")
    assert list(record.results) == ["hardened", "trained", "finetuned"]
    secrets, images = record.arrays["secrets"], record.arrays["trained"]
    found = record.results["trained"]
    assert (found["keys"], found["code bits"]) == (2, 72) and secrets.shape == (2, 1, 28, 28)
    assert 0 <= found["bit errors"] < 0.35
    stamp = experiment.stamp(shape=SHAPE, outputs=10, seed=0)
    data = decode(images, stamp.payload).data
    assert found["message"] == data.decode("latin-1") and torch.equal(secrets, stamp.secrets)
    read = np.unpackbits(np.frombuffer(data, np.uint8))
    wrong = int((read != np.unpackbits(np.frombuffer(experiment.message, np.uint8))).sum())
    assert found["wrong bits"] == wrong and found["message errors"] == wrong / 72 and found["right"] == (wrong == 0)
    assert judge(experiment.message, secrets, stamp)["right"]
    assert judge(experiment.message, 1 - secrets, stamp) == {
        "keys": 2,
        "code bits": 72,
        "bit errors": 1.0,
        "bit errors at 0.53": 1.0,
        "wrong bits": 72,
        "message errors": 1.0,
        "right": False,
        "message": bytes(255 - byte for byte in LICENCE[:9]).decode("latin-1"),
    }


def test_tables_and_figures_tell_what_the_records_hold():
    experiment = Capacity(name="one", length=9, code="none", **SMALL)
    (record,) = run_all([experiment], "tiny")
    found = record.results["finetuned"]
    row = f"| {in_words(record)} | finetuned | 2 | 72 | {found['accuracy']:.3f} | {found['bit errors']:.2%} |"
    assert row in compact(report.capacity_table([record]).data)
    assert f"{int(found['right'])} of 1" in report.capacity_table([record]).data
    axis = report.errors_figure({"adjoint": [record]}, "keys").axes[0]
    assert axis.lines[0].get_xydata().tolist() == [[2, record.results["hardened"]["bit errors"]]]
    slider = report.patches_slider([record])
    assert "36 bits an image" in slider.labels[0] and len(slider.frames) == 1
    assert f"accuracy {record.results['hardened']['accuracy']:.3f}" in slider.labels[0]


@pytest.mark.parametrize(("errors", "start"), [((0, 0, 0.01), 1), ((0.01, 0, 0), 2), ((0.01, 0.02, 0.03), 0)])
def test_the_slider_of_patches_opens_at_the_most_bits_that_are_read_without_an_error(errors, start):
    found = {"ssim": 0.9, "accuracy": 0.1}
    records = [
        replace(
            books.record(f"patches-{patches}", ("hardened",)),
            parameters={"patches": patches},
            stages=[Stage(label="hardened", moment="hardened", scores=found | {"bit errors": share})],
        )
        for patches, share in zip((4, 7, 10), errors, strict=True)
    ]
    slider = report.patches_slider(records[::-1])
    assert slider.start == start and slider.rows == ("secret", "raw")
    assert "16 bits" in slider.labels[0]


def test_wrong_characters_are_marked_and_right_ones_are_not():
    experiment = Capacity(name="one", length=9, code="none", **SMALL)
    (record,) = run_all([experiment], "tiny")
    record.results["trained"]["message"] = "MIT Licen"
    whole = report.message_html(experiment, record, "trained").data
    assert "MIT Licen" in whole and "title=" not in whole
    record.results["trained"]["message"] = "MIT L<\0en"
    wrong = report.message_html(experiment, record, "trained").data
    assert wrong.count('title="wrong"') == 2 and "&lt;" in wrong and "\N{REPLACEMENT CHARACTER}" in wrong


def test_the_message_that_was_read_is_kept_and_the_first_pictures():
    (record,) = run_all([Capacity(name="one", length=60, code="none", **SMALL)], "tiny")
    found = record.results["trained"]
    assert len(found["message"]) == 60 and found["keys"] == 14
    wrong = np.unpackbits(np.frombuffer(found["message"].encode("latin-1"), np.uint8))
    assert (wrong != np.unpackbits(np.frombuffer(LICENCE[:60], np.uint8))).sum() == found["wrong bits"]
    assert record.arrays["trained"].shape == record.arrays["secrets"].shape == (11, 1, 28, 28)


def test_a_payload_is_judged_after_attacks():
    experiment = Capacity(name="one", length=18, code="hamming", **SMALL)
    (record,) = run_all(campaigns("payload", {"int8": Quantization(bits=8)}, [experiment]), "tiny", (0,))
    assert len(record.arrays["int8"]) == 7, "all, to read the message from"
    table = compact(report.payload_table(experiment, [record]).data)
    assert (
        "18 bytes, code hamming | before | 7 | 252 |" in table and "18 bytes, code hamming | int8 | 7 | 252 |" in table
    )


# ------------------------------------------------------------------------------------------------- some of the keys


def stamped(count: int) -> tuple:
    stamp = Stamp.from_secrets(torch.rand(count, 1, 12, 12), outputs=4, seed=0)
    return transpose(build("fc", (1, 12, 12), 4, seed=0), stamp.secrets[:1]), stamp


def test_a_sampled_loss_is_that_of_the_keys_it_draws():
    back, stamp = stamped(5)
    torch.manual_seed(1)
    loss = StampLoss(back, stamp, sample=2, dropout=0.0)()
    torch.manual_seed(1)
    chosen = torch.randperm(5)[:2]
    torch.testing.assert_close(loss, StampLoss(back, stamp.pick(chosen), dropout=0.0)())


def test_a_sampled_loss_draws_anew_and_all_keys_at_most():
    back, stamp = stamped(5)
    few, all_of_them = (StampLoss(back, stamp, sample=count, dropout=0.0) for count in (2, 9))
    assert len({few().item() for _ in range(6)}) > 1
    torch.testing.assert_close(all_of_them(), StampLoss(back, stamp, dropout=0.0)())
    with pytest.raises(TrainingError, match="number of keys out of range; got: at_once=None, sample=0"):
        StampLoss(back, stamp, sample=0)
