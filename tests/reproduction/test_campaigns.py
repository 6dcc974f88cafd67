from dataclasses import replace

import pytest
import torch

from clearstamp.attacks import Averaging, Erasure, FineTuning, Noise, Permutation, SplitUnits
from clearstamp.errors import RecordError
from clearstamp.reproduction import campaigns, experiments, report
from clearstamp.reproduction.campaigns import Campaign, halves
from clearstamp.reproduction.experiments import run_all
from clearstamp.reproduction.lifecycle import LifeCycle
from clearstamp.reproduction.profiles import PROFILES
from clearstamp.reproduction.report.stages import in_words
from clearstamp.zoo.datasets import load
from tests.tables import compact

ON = LifeCycle(name="2-keys-adjoint", readout="adjoint", model="fc", keys=2, lr=1e-3)
TWIN = LifeCycle(name="unmarked", model="fc", keys=0)
ATTACKS = {
    "tuned": FineTuning(epochs=2),
    "erased": Erasure(count=1, steps=4, looks=2),
    "averaged": Averaging(weight=0.5),
    "permuted": Permutation(),
}


@pytest.fixture(scope="module", autouse=True)
def tiny(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLEARSTAMP_ARTIFACTS", str(tmp_path_factory.mktemp("artifacts")))
        scale = replace(PROFILES["tiny"], train_images=128, test_images=60, hardening_steps=40)
        patch.setitem(PROFILES, "tiny", scale)
        yield


@pytest.fixture(scope="module")
def record(tiny):
    return run_all([Campaign(name="all-adjoint", on=ON, attacks=ATTACKS, unmarked=TWIN)], "tiny")[0]


def test_every_attack_and_its_way_are_in_the_record(record):
    assert list(record.results) == [
        *("before", "tuned, epoch 1", "tuned", "erased, step 2", "erased", "averaged", "permuted"),
    ]
    for stage in record.results:
        assert record.arrays[stage].shape == (2, 1, 28, 28)
    erased = record.results["erased"]
    assert erased["steps"] == 4
    assert erased["ssim_attacked"] < record.results["before"]["ssim"]
    assert "ssim_attacked" not in record.results["tuned"]
    assert record.results["permuted"]["ssim"] == pytest.approx(record.results["before"]["ssim"], abs=1e-5)


def test_a_campaign_starts_from_the_trained_model(record):
    (life,) = run_all([ON], "tiny")
    trained = {k: v for k, v in life.results["trained"].items() if k in record.results["before"]}
    before = {k: v for k, v in record.results["before"].items() if k in trained}
    assert before == pytest.approx(trained, abs=1e-6)
    assert record.weights.keys() == {ON.name, "unmarked"} and record.weights[ON.name] == life.weights[ON.name]


def test_a_campaign_is_run_again_only_if_its_attacks_or_its_model_changed(record, monkeypatch):
    def fresh(**changes):
        about = {"name": "all-adjoint", "on": ON, "attacks": ATTACKS, "unmarked": TWIN} | changes
        with monkeypatch.context() as patch:
            patch.setattr(experiments, "perform", lambda settings, _: settings.experiment.name)
            return run_all([Campaign(**about)], "tiny")[0]

    assert fresh() == record
    assert fresh(attacks=ATTACKS | {"tuned": FineTuning(epochs=3)}) == "all-adjoint"
    assert fresh(attacks=ATTACKS | {"permuted": Noise(scale=0.0)}) == "all-adjoint"
    assert fresh(unseen=True) == "all-adjoint"
    assert fresh(merge=True) == "all-adjoint"
    assert fresh(on=replace(ON, lr=2e-3)) == "all-adjoint"
    assert fresh(unmarked=replace(TWIN, lr=2e-3)) == "all-adjoint"
    monkeypatch.setattr(LifeCycle, "version", 2)
    assert fresh() == "all-adjoint", "the code that trains its models is another"


def test_the_twin_is_needed_only_by_attacks_that_take_it():
    assert Campaign(name="one", on=ON, attacks={"one": Noise(scale=0.1)}, unmarked=TWIN).needs() == (ON,)
    for attack in (Averaging(), Erasure(target="unmarked")):
        assert Campaign(name="one", on=ON, attacks={"one": attack}, unmarked=TWIN).needs() == (ON, TWIN)


def test_a_model_is_trained_at_its_own_scale_whatever_the_campaign_s(monkeypatch):
    """A campaign on a model of few images must not take its twin's record for out of date, and write over it."""
    (twin,) = run_all([TWIN], "tiny")
    few = Few(name="few-keys", readout="adjoint", model="fc", keys=2, lr=1e-3)
    (made,) = run_all([Campaign(name="few", on=few, attacks={"one": Averaging()}, unmarked=TWIN)], "tiny")
    assert made.data["digits"]["train"].images == 64
    assert run_all([TWIN], "tiny") == [twin]


class Few(LifeCycle):
    """A model that sees few images."""

    def settings(self, profile):
        return super().settings(replace(profile, train_images=64))


def test_unseen_images_are_not_those_of_the_measurement():
    first, second = halves(load("digits", "test"))
    assert len(first) + len(second) == len(load("digits", "test"))
    assert torch.equal(torch.cat([first.labels, second.labels]), load("digits", "test").labels)
    (record,) = run_all([Campaign(name="unseen", on=ON, attacks={"one": FineTuning(epochs=1)}, unseen=True)], "tiny")
    assert record.results["one"]["steps"] == 1, "thirty images are one batch"


def test_an_attack_slider_shows_the_ways_and_the_ends(record):
    assert [label.split(":")[0] for label in report.attack_slider(record, "tuned").labels] == [
        *("before", "epoch 1", "tuned"),
    ]
    ends = report.attack_slider(record)
    assert [label.split(":")[0] for label in ends.labels] == ["before", "tuned", "erased", "averaged", "permuted"]
    assert f"accuracy {record.results['erased']['accuracy']:.3f}" in ends.labels[2]
    with pytest.raises(RecordError, match="no such attack.*'drowned'.*tuned"):
        report.attack_slider(record, "drowned")


def test_the_table_of_attacks_holds_the_ends_with_the_known_keys_score(record):
    lines = compact(report.attacks_table([record]).data).splitlines()
    assert [line.split(" | ")[1] for line in lines[2:]] == ["before", "tuned", "erased", "averaged", "permuted"]
    assert all(line.startswith(f"| {in_words(record)} |") for line in lines[2:])
    named = replace(record, experiment="fine-tuning-2-keys-adjoint")
    assert report.attacks_table([named]).metadata["clearstamp"]["caption"] == "Scores after each attack: fine tuning"
    assert f"{record.results['erased']['ssim_attacked']:.3f} | 4 |" in lines[4]
    assert lines[3].endswith("|  | 4 |"), "nobody knew a key, and two epochs took four steps"


def test_the_plane_has_a_front_for_each_group(record):
    (axis,) = report.plane_figure({"these": [record], "none": []}).axes
    (line,) = axis.get_lines()
    scores = [found["developed_ssim"] for found in record.results.values()]
    assert line.get_ydata()[0] == pytest.approx(min(scores))
    assert all(a <= b for a, b in zip(line.get_ydata(), line.get_ydata()[1:], strict=False))


def test_the_same_attacks_meet_every_model():
    models = [ON, replace(ON, name="11-keys-paper", readout="paper")]
    made = run_all(campaigns.campaigns("noise", {"0.1 sigma": Noise(scale=0.1)}, models), "tiny")
    assert [r.experiment for r in made] == ["noise-2-keys-adjoint", "noise-paper"]
    assert [r.parameters["on"]["readout"] for r in made] == ["adjoint", "paper"]


def test_an_owner_who_merges_equal_units_reads_what_cancelling_units_hid():
    attacks = {"split": SplitUnits(part=3.0)}
    (hidden,), (merged,) = (
        run_all(campaigns.campaigns(f"split-{merge}", attacks, [ON], merge=merge), "tiny") for merge in (False, True)
    )
    whole = merged.results["before"]["ssim"]
    assert whole == pytest.approx(hidden.results["before"]["ssim"], abs=1e-4)
    assert merged.results["split"]["ssim"] == pytest.approx(whole, abs=1e-3)
    assert hidden.results["split"]["ssim"] < whole - 0.05
