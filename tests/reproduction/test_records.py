import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from clearstamp.errors import RecordError
from clearstamp.reproduction import records
from clearstamp.reproduction.experiments import filled
from clearstamp.reproduction.records import Record, Stage


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
        "stages": [Stage(label="trained", moment="trained", scores={"ssim": 0.5})],
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
    assert found.provenance.threads and found.provenance.versions["torch"] == torch.__version__.partition("+")[0]
    assert records.load_all("tiny") == [made]
    assert sorted(p.name for p in path.parent.iterdir()) == ["one-seed3.json", "one-seed3.safetensors"]


def test_a_record_is_found_by_its_name():
    made = record()
    made.save()
    assert records.find("tiny", made.name) == made
    assert records.find("tiny", "two-seed3") is None and records.find("quick", made.name) is None


def test_the_digest_is_that_of_the_key_alone():
    same = {
        "stages": [],
        "weights": {"one": "0"},
        "provenance": replace(records.here(), commit="another"),
        "arrays": {},
        "profile": "quick",
    }
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


def test_a_stage_is_found_by_its_fields():
    about = [
        {"label": "a", "moment": "trained", "scores": {"accuracy": 0.5}},
        {"label": "b", "moment": "trained", "keys": 1, "readout": "paper", "scores": {"ssim": 0.1}},
        {"label": "c", "moment": "trained", "keys": 1, "readout": "adjoint", "scores": {"ssim": 0.2}},
        {"label": "d", "attack": "tuned", "step": 2, "scores": {"ssim": 0.3}},
        {"label": "e", "attack": "tuned", "scores": {"ssim": 0.4}},
    ]
    made = record(stages=[Stage(**each) for each in about])
    assert made.find("accuracy", moment="trained", readout="paper").label == "a", "of both readouts"
    assert made.find("ssim", moment="trained", keys=1, readout="adjoint").label == "c"
    assert made.find("ssim", attack="tuned", step=2).label == "d"
    assert made.find("ssim", attack="tuned", step=None).label == "e"
    assert made.find("ssim", moment="hardened") is None and made.find("colour", moment="trained") is None
    assert [stage.ends for stage in made.stages] == [False, False, False, False, True]


def test_a_number_that_is_not_finite_is_not_taken():
    with pytest.raises(ValueError, match="finite number"):
        Stage(label="trained", scores={"ssim": float("nan")})


WHOLE = json.loads("""{
    "experiment": "one", "kind": "LifeCycle", "version": 1, "profile": "tiny", "parameters": {}, "seed": 3,
    "stages": [{"label": "trained", "scores": {"ssim": 0.5}}],
    "data": {"digits": {"train": {"images": 5, "official": null, "sha256": "0"}}}
}""")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (json.dumps(WHOLE)[:100], "JSONDecodeError"),
        ("[]", "not an object"),
        (json.dumps(WHOLE | {"colour": 1}), "colour: unexpected keyword argument"),
        (json.dumps({name: value for name, value in WHOLE.items() if name != "seed"}), "seed: field required"),
        (json.dumps(WHOLE | {"seed": "three"}), "seed: input should be a valid integer"),
        (
            json.dumps(WHOLE | {"stages": [{"label": "x", "scores": {"ssim": float("nan")}}]}),
            r"stages\.0\.scores\.ssim\..*finite",
        ),
        (
            json.dumps(WHOLE | {"stages": [{"label": "x", "moment": "later", "scores": {}}]}),
            r"stages\.0\.moment: .*'hardened'",
        ),
        (json.dumps(WHOLE | {"data": {"digits": {"train": {"images": -1}}}}), r"data\.digits\.train\.images: "),
    ],
)
def test_a_record_that_does_not_fit_its_schema_is_one_error_with_file_and_field(text, problem):
    path = record().save()
    assert records.ADAPTER.validate_python(WHOLE).experiment == "one"
    path.write_text(text)
    with pytest.raises(RecordError, match=f"not a whole record; got: .*{problem}.*; where: .*one-seed3.json"):
        records.load_all("tiny")


def test_pictures_that_are_lost_or_damaged_are_an_error_that_names_the_record():
    path = record().save()
    pictures = path.with_suffix(".safetensors")
    pictures.write_bytes(pictures.read_bytes()[:50])
    with pytest.raises(RecordError, match="not a whole record.*one-seed3.json"):
        records.load(path)
    pictures.unlink()
    with pytest.raises(RecordError, match="not a whole record.*one-seed3.json"):
        records.load(path)


def test_the_schema_describes_every_field_but_the_pictures():
    told = records.schema()
    fields = {"experiment", "kind", "version", "profile", "parameters", "seed", "stages"}
    assert set(told["required"]) == fields and "arrays" not in told["properties"]
    assert told["additionalProperties"] is False
    assert json.loads(record().save().read_text()).keys() == told["properties"].keys()


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
    assert filled(given, later) == {"on": {"a": 1, "c": 3}, "b": 2, "d": {"e": 4}}
