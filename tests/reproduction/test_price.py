"""The price of removal: when attackers and fresh models are looked at, and what their tables make of it."""

from dataclasses import replace

import pytest
import torch

from clearstamp.reproduction import report
from clearstamp.reproduction.experiments import perform
from clearstamp.reproduction.price import Price, moments
from clearstamp.reproduction.profiles import profile
from clearstamp.reproduction.records import Record, Stage
from clearstamp.reproduction.registry import prices


@pytest.fixture(scope="module")
def price() -> Price:
    (made,) = prices(profile("tiny"))
    return made


@pytest.fixture(scope="module")
def record(price: Price, tmp_path_factory: pytest.TempPathFactory) -> Record:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLEARSTAMP_ARTIFACTS", str(tmp_path_factory.mktemp("price")))
        return perform(price.settings(profile("tiny")), 0)


def test_looks_are_dense_at_the_beginning_and_end_at_the_last_batch():
    assert list(moments(1)) == [1]
    assert list(moments(20)) == [1, 2, 3, 4, 6, 8, 12, 16, 20]
    assert list(moments(24)) == [1, 2, 3, 4, 6, 8, 12, 16, 24]


def test_every_attacker_and_every_way_anew_has_a_stage(price: Price, record: Record):
    assert [stage.label for stage in record.stages] == [
        "before",
        "100%, anew, LR 0.001",
        "100%, trains on, LR 0.01",
        "100%, all keys, LR 0.01",
    ]
    assert record.results["before"]["letters"] == 44


def test_who_removed_the_stamp_kept_the_accuracy_and_was_counted_whole(price: Price, record: Record):
    before = record.results["before"]["accuracy"]
    for label, found in record.results.items():
        if found.get("steps") is not None:
            assert found["accuracy"] >= before - price.loss
            if "verdict" in found:
                assert found["verdict"] != "MATCH" and not found["legible"]
        if "all keys" in label and found["steps"] is not None:
            assert found["steps"] % 2 == 0, "each step on the keys comes with one on the task"


def made_up(record: Record, steps: dict[str, int | None]) -> Record:
    """The record with other numbers of steps."""
    stages = [Stage(label=label, scores={"steps": count, "accuracy": 0.9}) for label, count in steps.items()]
    parameters = record.parameters | {"shares": [1.0], "attackers": ["trains on", "all keys"]}
    return replace(record, stages=stages, parameters=parameters)


def test_the_table_takes_the_cheapest_rate_of_each_and_divides(record: Record):
    steps = {"100%, anew, LR 0.001": 400, "100%, anew, LR 0.0001": 800, "100%, trains on, LR 0.01": None}
    steps |= {"100%, all keys, LR 0.01": 100, "100%, all keys, LR 0.001": 60}
    table = report.price_table([made_up(record, steps)]).data
    assert "400" in table and "never" in table and "60 (0.15)" in table


def test_without_a_training_to_compare_with_there_is_no_ratio(record: Record):
    steps = {"100%, anew, LR 0.001": None, "100%, trains on, LR 0.01": 30, "100%, all keys, LR 0.01": 100}
    cells = report.price_table([made_up(record, steps)]).data.splitlines()[-1]
    assert "never" in cells and "30 |" in cells and "(" not in cells
    assert report.price_figure([made_up(record, steps)]).axes


def test_shares_and_networks_of_several_records_stand_beside_each_other(record: Record):
    few = made_up(record, {"1%, anew, LR 0.001": 40, "1%, trains on, LR 0.01": 10})
    few = replace(few, parameters=few.parameters | {"shares": [0.01]})
    all_of_it = made_up(record, {"100%, anew, LR 0.001": 400, "100%, trains on, LR 0.01": 300})
    other = replace(all_of_it, parameters=record.parameters | {"on": record.parameters["on"] | {"model": "resnet18"}})
    lines = report.price_table([all_of_it, few, other]).data.splitlines()
    assert [[word.strip() for word in line.split("|")[3:6]] for line in lines if "(" in line] == [
        ["1%", "40", "10 (0.25)"],
        ["100%", "400", "300 (0.75)"],
        ["100%", "400", "300 (0.75)"],
    ]
    titles = [axis.get_title() for axis in report.price_figure([all_of_it, few, other]).axes]
    assert [title.partition("\n")[2] for title in titles] == ["1% of the images", "100% of the images"] * 2
    assert "default CNN" in titles[0] and "ResNet-18" in titles[2]


def test_nothing_to_show_is_said():
    assert "Not run" in report.price_figure([]).data and "Not run" in report.price_table([]).data
    assert torch.is_grad_enabled()
