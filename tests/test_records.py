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
        "profile": "tiny",
        "parameters": {"keys": 1},
        "seed": 3,
        "code": {},
        "results": {"trained": {"ssim": 0.5}},
        "paper": {"trained": {"ssim": {"value": 0.9, "where": "Table 2"}}},
        "dataset": {"name": "digits"},
        "wall_seconds": 1.5,
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


def test_a_record_is_found_only_with_its_parameters_and_its_code():
    made = record()
    made.save()
    assert records.find("tiny", made.name, {"keys": 1}) == made
    assert records.find("tiny", made.name, {"keys": 2}) is None
    assert records.find("tiny", "two-seed3", {"keys": 1}) is None
    assert records.find("tiny", made.name, {"keys": 1, "later": 0.5}, {"later": 0.5}) == made
    assert records.find("tiny", made.name, {"keys": 1, "later": 0.5}, {"later": 0.0}) is None
    assert records.find("tiny", made.name, {"keys": 1, "on": {"a": 1}}, {"on": {"a": 1}}) == made
    record(code={"rules:linear": "another"}).save()
    assert records.find("tiny", made.name, {"keys": 1}) is None


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
    path = Record("one", "tiny", {}, 0, {}, {}, {}, {}, 1.0, arrays=arrays).save()
    assert load_file(path.with_suffix(".safetensors"))["images"].dtype == torch.float16
    found = records.load(path).arrays
    torch.testing.assert_close(found["images"], arrays["images"], rtol=1e-3, atol=1e-3)
    assert found["large"].tolist() == [torch.finfo(torch.float16).max]
    assert torch.equal(found["steps"], arrays["steps"])


def test_a_parameter_that_came_later_is_filled_in_also_within():
    given, later = {"on": {"a": 1}, "b": 2}, {"on": {"a": 5, "c": 3}, "d": {"e": 4}}
    assert records.filled(given, later) == {"on": {"a": 1, "c": 3}, "b": 2, "d": {"e": 4}}
