import json

import pytest
import torch
from safetensors.torch import load_file

from clearstamp import records
from clearstamp.errors import RecordError
from clearstamp.records import Record


@pytest.fixture(autouse=True)
def artifacts(tmp_path, monkeypatch):
    monkeypatch.setenv("CLEARSTAMP_ARTIFACTS", str(tmp_path))


def record(**changes) -> Record:
    about = {
        "experiment": "one",
        "kind": "LifeCycle",
        "version": 1,
        "profile": "tiny",
        "parameters": {"keys": 1},
        "seed": 3,
        "results": {"trained": {"ssim": 0.5}},
        "data": {"digits": {"train": {"images": 5, "official": None, "sha256": "0"}}},
        "arrays": {"trained": torch.ones(1, 1, 2, 2)},
    }
    return Record(**(about | changes))


def test_a_saved_record_is_loaded_whole():
    made = record()
    path = made.save()
    found = records.load(path)
    assert found == made
    assert torch.equal(found.arrays["trained"], made.arrays["trained"])
    assert {"commit", "dirty", "python", "versions", "device", "threads"} <= set(found.provenance)
    assert records.load_all("tiny") == [made]
    assert sorted(p.name for p in path.parent.iterdir()) == ["one-seed3.json", "one-seed3.safetensors"]


def test_a_record_is_found_by_its_name():
    made = record()
    made.save()
    assert records.find("tiny", made.name) == made
    assert records.find("tiny", "two-seed3") is None and records.find("quick", made.name) is None


def test_the_digest_is_that_of_the_key_alone():
    same = {"results": {}, "weights": {"one": "0"}, "provenance": {}, "arrays": {}, "profile": "quick"}
    assert record(**same).digest == record().digest
    other = {
        "experiment": "two",
        "kind": "Cost",
        "version": 2,
        "parameters": {},
        "seed": 4,
        "data": {},
        "bases": {"x": 1},
    }
    assert len({record(**{name: value}).digest for name, value in other.items()} | {record().digest}) == 1 + len(other)


def test_a_number_that_is_not_finite_is_not_written():
    with pytest.raises(ValueError, match="not JSON compliant"):
        record(results={"trained": {"ssim": float("nan")}}).save()
    assert records.load_all("tiny") == []


@pytest.mark.parametrize("damage", ["half", "unknown field", "no arrays"])
def test_a_damaged_record_is_named(damage):
    path = record().save()
    if damage == "half":
        path.write_text(path.read_text()[:100])
    elif damage == "unknown field":
        path.write_text(json.dumps(json.loads(path.read_text()) | {"colour": 1}))
    else:
        path.with_suffix(".safetensors").unlink()
    with pytest.raises(RecordError, match="not a whole record.*one-seed3"):
        records.load_all("tiny")


def test_arrays_are_stored_in_half_precision_and_read_in_single():
    arrays = {"images": torch.rand(3, 4), "steps": torch.tensor([7, 70_000]), "large": torch.tensor([1e6])}
    path = record(arrays=arrays).save()
    assert load_file(path.with_suffix(".safetensors"))["images"].dtype == torch.float16
    found = records.load(path).arrays
    torch.testing.assert_close(found["images"], arrays["images"], rtol=1e-3, atol=1e-3)
    assert found["large"].tolist() == [torch.finfo(torch.float16).max]
    assert torch.equal(found["steps"], arrays["steps"])


def test_a_parameter_that_came_later_is_filled_in_also_within():
    given, later = {"on": {"a": 1}, "b": 2}, {"on": {"a": 5, "c": 3}, "d": {"e": 4}}
    assert records.filled(given, later) == {"on": {"a": 1, "c": 3}, "b": 2, "d": {"e": 4}}
