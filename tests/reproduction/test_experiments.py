from dataclasses import FrozenInstanceError, asdict, replace
from functools import partial

import pytest
import torch

from clearstamp.attacks import LogitShift
from clearstamp.errors import RecordError
from clearstamp.reading import read
from clearstamp.reproduction import experiments, lifecycle, records
from clearstamp.reproduction.campaigns import Campaign
from clearstamp.reproduction.capacity import Capacity
from clearstamp.reproduction.experiments import has_weights, run_all, weights_file
from clearstamp.reproduction.generalizability import CrossData, Row, move
from clearstamp.reproduction.lifecycle import Fingerprint, LifeCycle, Trial, text_stamp, trained
from clearstamp.reproduction.profiles import PROFILES, Images, load_sets
from clearstamp.stamp import PAPER_KEY, Stamp
from clearstamp.training.losses import StampLoss
from clearstamp.transpose import transpose
from clearstamp.zoo import datasets
from clearstamp.zoo.networks import build

SMALL = {"model": "fc", "keys": 2}
ABOUT = {"shape": (1, 28, 28), "outputs": 10, "seed": 0}


@pytest.fixture(autouse=True)
def tiny(tmp_path, monkeypatch):
    monkeypatch.setenv("CLEARSTAMP_ARTIFACTS", str(tmp_path))
    scale = replace(PROFILES["tiny"], train_images=128, test_images=50, hardening_steps=6)
    monkeypatch.setitem(PROFILES, "tiny", scale)


@pytest.mark.parametrize("readout", ["paper", "adjoint"])
def test_a_life_cycle_is_read_after_every_stage(readout):
    record = run_all([LifeCycle(name="one", readout=readout, lr=1e-3, **SMALL)], "tiny", (0,))[0]
    assert list(record.results) == ["hardened", "trained", "finetuned"]
    for stage, found in record.results.items():
        assert {"accuracy", "ssim", "ssim_min", "developed_ssim", "correlation"} <= set(found)
        assert record.arrays[stage].shape == (2, 1, 28, 28)
    assert record.data["digits"]["train"].images == 128
    assert record.results["hardened"]["ssim"] > 0.1


def test_the_trained_model_is_that_of_the_record():
    experiment = LifeCycle(name="one", lr=1e-3, dropout=0.3, **SMALL)
    (record,) = run_all([experiment], "tiny")
    stamp = text_stamp(2, **ABOUT)
    model = trained(experiment.settings(PROFILES["tiny"]), 0)
    found = read(transpose(model, stamp.secrets[:1], readout="paper"), stamp)
    assert found.summary()["ssim"] == pytest.approx(record.results["trained"]["ssim"], abs=1e-6)


def test_a_fingerprint_is_read_in_training_mode_too():
    plain, thinned = (Fingerprint(name=f"rate {rate}", dropout=rate, lr=1e-3, **SMALL) for rate in (0.0, 0.5))
    for experiment, alike in ((plain, True), (thinned, False)):
        (record,) = run_all([experiment], "tiny")
        (stage,) = record.stages
        assert stage.moment == "hardened" and not stage.scores["reached"]
        assert (stage.scores["ssim_training_mode"] == pytest.approx(stage.scores["ssim"], abs=1e-6)) is alike


def test_a_trial_sees_no_test_image():
    """Every third training image is held out and stands for the test images; the others are trained on."""
    settings = Trial(name="trial", **SMALL).settings(PROFILES["tiny"])
    sets, whole = load_sets(settings.images), datasets.load("digits", "train")
    assert (len(sets.train), len(sets.test), sets.test.split) == (85, 33, "test")
    pictures = {image.numpy().tobytes() for image in whole.images}
    own, held = ({image.numpy().tobytes() for image in part.images} for part in (sets.train, sets.test))
    assert own | held <= pictures and not own & held
    (record,) = run_all([Trial(name="trial", lr=1e-3, **SMALL)], "tiny")
    assert record.parameters["held_out"] is True
    most = len(whole) - len(whole) // 3
    for count, problems in ((most, 0), (most + 1, 1)):
        assert len(list(replace(settings.images, train=count).check())) == problems


def test_learning_rates_are_those_of_the_paper(monkeypatch):
    rates: list[tuple[str, float]] = []
    for name in ("harden", "fit"):
        original = getattr(lifecycle, name)

        def note(*args, name=name, original=original, **kwargs):
            rates.append((name, kwargs["lr"]))
            return original(*args, **kwargs)

        monkeypatch.setattr(lifecycle, name, note)
    run_all([LifeCycle(name="one", **SMALL)], "tiny", (0,))[0]
    assert rates == [("harden", 1e-4), ("fit", 1e-4), ("fit", pytest.approx(1e-5))]


def test_a_finished_record_is_not_made_again_and_a_changed_one_is(monkeypatch):
    first = run_all([LifeCycle(name="one", until="hardened", **SMALL)], "tiny", (0,))[0]
    made: list[str] = []
    monkeypatch.setattr(records.Record, "save", lambda self: made.append(self.name))
    assert run_all([LifeCycle(name="one", until="hardened", **SMALL)], "tiny", (0,))[0] == first
    assert made == []
    run_all([LifeCycle(name="one", until="hardened", lr=2e-3, **SMALL)], "tiny", (0,))[0]
    assert made == ["one-seed0"]


def test_the_same_seed_gives_the_same_result():
    first = run_all([LifeCycle(name="one", **SMALL)], "tiny", (0,))[0]
    second = run_all([LifeCycle(name="two", **SMALL)], "tiny", (0,))[0]
    assert first.results == second.results
    assert torch.equal(first.arrays["finetuned"], second.arrays["finetuned"])


def test_the_trained_model_is_kept_and_trained_again_if_it_is_lost(monkeypatch):
    experiment = LifeCycle(name="one", **SMALL)
    record = run_all([experiment], "tiny", (0,))[0]
    with monkeypatch.context() as patch:
        patch.setattr(lifecycle, "marked", lambda *_: pytest.fail("trained a second time"))
        model = trained(experiment.settings(PROFILES["tiny"]), 0)
    stamp = text_stamp(2, **ABOUT)
    found = read(transpose(model, stamp.secrets[:1], readout="paper"), stamp)
    assert found.summary()["ssim"] == pytest.approx(record.results["trained"]["ssim"], abs=1e-6)
    assert torch.equal(stamp.secrets, record.arrays["secrets"])
    weights_file(record).unlink()
    monkeypatch.setattr(records.Record, "save", lambda _: pytest.fail("a record was written over"))
    again = trained(experiment.settings(PROFILES["tiny"]), 0)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_a_model_trained_again_that_differs_from_its_record_is_an_error_and_leaves_the_record():
    experiment = LifeCycle(name="one", **SMALL)
    (record,) = run_all([experiment], "tiny", (0,))
    record.results["trained"]["ssim"] += 0.06
    path = record.save()
    weights_file(record).unlink()
    before = path.read_bytes()
    with pytest.raises(RecordError, match="not that of the record; got: ssim 0.060 apart; where: one-seed0 of commit"):
        trained(experiment.settings(PROFILES["tiny"]), 0)
    assert path.read_bytes() == before and not weights_file(record).exists()


def test_weights_of_another_record_are_not_taken_nor_half_of_a_file():
    experiment = LifeCycle(name="one", **SMALL)
    (record,) = run_all([experiment], "tiny", (0,))
    assert has_weights(record)
    assert not has_weights(replace(record, seed=1)) and not has_weights(replace(record, parameters={}))
    path = weights_file(record)
    path.write_bytes(path.read_bytes()[:1000])
    assert not has_weights(record)


@pytest.mark.parametrize(
    "changes", [{"version": 2}, {"kind": "Cost"}, {"bases": {"x": 1}}, {"data": {}}, {"parameters": {}}, {"seed": 1}]
)
def test_a_record_with_another_key_is_not_taken(changes, monkeypatch):
    experiment = LifeCycle(name="one", until="hardened", **SMALL)
    (record,) = run_all([experiment], "tiny", (0,))
    assert experiments.find(experiment.settings(PROFILES["tiny"]), 0) == record
    if changes != {"seed": 1}:
        replace(record, **changes).save()
    assert experiments.find(experiment.settings(PROFILES["tiny"]), changes.get("seed", 0)) is None


def test_data_that_are_not_here_are_not_compared(monkeypatch):
    experiment = LifeCycle(name="one", until="hardened", **SMALL)
    (record,) = run_all([experiment], "tiny", (0,))
    monkeypatch.setattr(datasets, "found", lambda _: False)
    monkeypatch.setattr(experiments, "load_sets", lambda _: pytest.fail("nothing is there to load"))
    assert experiments.find(experiment.settings(PROFILES["tiny"]), 0) == record


def test_a_set_that_is_missing_is_replaced_in_quick_alone(monkeypatch):
    monkeypatch.setattr(datasets, "found", lambda name: name == "digits")
    row = LifeCycle(name="one", dataset="cifar10")
    quick, paper = (row.settings(PROFILES[name]) for name in ("quick", "paper"))
    assert quick.images == Images("digits", 800, 300) and paper.images.dataset == "cifar10"
    greedy = replace(PROFILES["quick"], train_images=2_000, test_images=None)
    assert row.settings(greedy).images == Images("digits", 1437, 360), "no more than it has"
    assert [str(error) for error in row.check(quick)] == []
    assert [str(error) for error in row.check(paper)] == ["missing data set; got: cifar10"]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"model": "colossus"}, "unknown model; got: 'colossus'"),
        ({"keys": 21}, "not that many secrets; got: 21"),
        ({"secrets": "runes"}, "not that many secrets"),
    ],
)
def test_what_cannot_work_is_found_without_running(changes, problem):
    experiment = LifeCycle(name="one", **changes)
    found = list(experiment.check(experiment.settings(PROFILES["tiny"])))
    assert len(found) == 1 and problem in str(found[0])


def test_too_few_images_are_found_without_running():
    experiment, scale = LifeCycle(name="one"), replace(PROFILES["tiny"], train_images=2_000, test_images=0)
    found = [str(error) for error in experiment.check(experiment.settings(scale))]
    assert found[0].startswith("not that many images; got: 2000; expected: 1 to 1,437") and "got: 0" in found[1]


def test_the_unmarked_twin_is_read_with_the_owners_keys_under_both_readouts():
    record = run_all([LifeCycle(name="unmarked", model="fc", keys=0)], "tiny", (0,))[0]
    assert {stage.moment for stage in record.stages} == {"untrained", "trained"}
    for keys in (1, 11):
        for readout in ("paper", "adjoint"):
            stage = record.find("ssim", moment="trained", keys=keys, readout=readout)
            assert abs(stage.scores["ssim"]) < 0.2 and record.arrays[stage.label].shape == (keys, 1, 28, 28)


def test_the_papers_key_is_the_stamps_key():
    stamp = text_stamp(1, paper_key=True, **ABOUT)
    assert torch.equal(stamp.keys, torch.tensor([PAPER_KEY]))


def test_every_kind_of_secret_can_be_drawn_and_no_two_are_the_same():
    for kind, texts in lifecycle.SECRETS.items():
        stamp = text_stamp(len(texts), kind=kind, **ABOUT)
        assert len(stamp.secrets.flatten(1).unique(dim=0)) == len(texts)


def test_unknown_profiles_and_too_many_keys_are_errors():
    with pytest.raises(RecordError, match="unknown profile.*'huge'.*'quick'"):
        run_all([LifeCycle(name="one")], "huge", (0,))[0]
    with pytest.raises(RecordError, match="not that many secrets.*12"):
        text_stamp(12, kind="icons", **ABOUT)


def test_slider_steps_keep_the_first_and_the_last():
    chosen = lifecycle.slider_steps(list(range(0, 1000, 10)))
    assert len(chosen) <= 16
    assert (chosen[0], chosen[-1]) == (0, 990)
    assert chosen == sorted(set(chosen))


def test_pictures_are_kept_for_the_first_seed_and_curves_for_all():
    first, second = run_all([LifeCycle(name="one", **SMALL)], "tiny", (0, 1))
    assert {"secrets", "trained", "training/losses"} <= first.arrays.keys()
    assert second.arrays.keys() == {"hardening/steps", "hardening/losses", "training/losses", "training/stamp losses"}


def test_when_only_records_are_asked_for_nothing_runs(monkeypatch):
    done, missing = (LifeCycle(name=name, until="hardened", **SMALL) for name in ("done", "missing"))
    (record,) = run_all([done], "tiny")
    monkeypatch.setenv("CLEARSTAMP_RECORDED", "1")
    monkeypatch.setattr(lifecycle, "marked", lambda *_: pytest.fail("something was run"))
    campaign = Campaign(name="attack", on=missing, attacks={"none": LogitShift()})
    assert run_all([missing, done, campaign], "tiny") == [record]


def test_a_record_made_before_a_setting_existed_counts_as_made_with_its_default(monkeypatch):
    on = LifeCycle(name="one", readout="adjoint", **SMALL)
    campaign = Campaign(name="attack", on=on, attacks={"none": LogitShift()})
    (record,) = run_all([campaign], "tiny")
    for settings in (record.parameters, record.parameters["on"]):
        settings.pop("merge", settings.pop("every", None))
    record.save()
    monkeypatch.setenv("CLEARSTAMP_RECORDED", "1")
    assert run_all([campaign], "tiny") == [record]
    assert run_all([replace(campaign, on=replace(on, every=2))], "tiny") == []


def test_few_pictures_are_kept_of_many_keys(monkeypatch):
    life = LifeCycle(name="one", model="fc", keys=13)
    campaign = Campaign(name="attack", on=life, attacks={"none": LogitShift()})
    (marked,), (attacked,) = run_all([life], "tiny"), run_all([campaign], "tiny")
    assert marked.arrays["secrets"].shape == marked.arrays["trained"].shape == (11, 1, 28, 28)
    assert marked.arrays["hardening/frames"].shape[1:] == (6, 1, 28, 28)
    assert attacked.arrays["secrets"].shape == attacked.arrays["none"].shape == (6, 1, 28, 28)
    assert len(marked.arrays["hardening/losses"]) == 6


@pytest.mark.parametrize("precision", ["float32", "bfloat16", None])
def test_the_main_task_is_trained_in_the_precision_that_is_asked_for(monkeypatch, precision):
    seen: list[bool] = []
    monkeypatch.setattr(
        LifeCycle, "conduct", lambda *_: (seen.append(torch.is_autocast_enabled("cpu")), ([], {}, {}))[1]
    )
    monkeypatch.setitem(PROFILES, "tiny", replace(PROFILES["tiny"], precision="bfloat16"))
    run_all([LifeCycle(name="one", model="fc", precision=precision)], "tiny")
    assert seen == [precision != "float32"]


def parts(experiment: LifeCycle, profile: str = "tiny") -> tuple:
    """The objects that a run is composed of."""
    settings = experiment.settings(PROFILES[profile])
    return settings.stamp.func, settings.loss.func, getattr(settings.tune, "func", settings.tune)


def test_stamp_loss_and_tuning_are_parts_of_the_settings():
    assert parts(LifeCycle(name="one")) == parts(Row(name="one")) == (text_stamp, StampLoss, lifecycle.finetune)
    assert parts(Capacity(name="one")) == (Stamp.from_bytes, StampLoss, lifecycle.finetune)
    assert Capacity(name="one", sample=3).settings(PROFILES["tiny"]).loss.keywords["sample"] == 3
    assert parts(CrossData(name="one", onto="cifar10")) == (text_stamp, StampLoss, move)


def test_a_run_takes_what_its_settings_say_and_not_what_was_declared():
    settings = LifeCycle(name="one", **SMALL).settings(PROFILES["tiny"])
    others = replace(
        settings,
        network="cnn",
        stamp=partial(text_stamp, 1, paper_key=True),
        judge=lambda images, stamp: {"most": len(stamp) * images.max().item()},
        hardening_steps=2,
        tune=lambda life: life.measure("control"),
    )
    stages, arrays, weights = lifecycle.marked(others, 0)
    assert [stage.moment for stage in stages] == ["hardened", "trained", "control"]
    assert all(stage.scores["most"] == arrays[stage.label].max() for stage in stages)
    assert stages[0].scores["steps"] == 2 and arrays["trained"].shape == (1, 1, 28, 28)
    assert weights.keys() == build("cnn", (1, 28, 28), 10, seed=0).state_dict().keys()


def test_settings_are_resolved_once_and_cannot_be_changed(monkeypatch):
    settings = LifeCycle(name="one", dataset="cifar10").settings(PROFILES["quick"])
    before = settings.images
    monkeypatch.setitem(PROFILES, "quick", replace(PROFILES["quick"], epochs=9, train_images=9))
    monkeypatch.setattr(datasets, "found", lambda name: name != before.dataset)
    assert settings.images == before and settings.parameters["train_images"] == before.train
    with pytest.raises(FrozenInstanceError):
        settings.epochs = 9


def test_a_record_keeps_the_declaration_and_what_it_was_resolved_to():
    experiment = LifeCycle(name="one", dataset="cifar10", epochs=200, precision="bfloat16", small="fc")
    tiny, paper = (experiment.settings(PROFILES[name]).parameters for name in ("tiny", "paper"))
    resolved = {"dataset", "epochs", "precision", "hardening_steps", "train_images", "test_images", "finetune_epochs"}
    assert {name: tiny[name] for name in tiny.keys() - resolved} == {
        name: value for name, value in asdict(experiment).items() if name not in resolved
    }
    assert (tiny["dataset"], tiny["epochs"], tiny["precision"]) == ("digits", PROFILES["tiny"].epochs, "bfloat16")
    assert (paper["dataset"], paper["epochs"], paper["hardening_steps"]) == ("cifar10", 200, 10_000)
    assert "held_out" not in tiny and Trial(name="one").settings(PROFILES["tiny"]).parameters["held_out"] is True


def test_a_run_that_is_cut_off_goes_on_at_its_last_epoch_and_gives_the_same_record(monkeypatch):
    longer = replace(PROFILES["tiny"], epochs=3, finetune_epochs=2, checkpoints=True)
    monkeypatch.setitem(PROFILES, "tiny", longer)
    experiment = LifeCycle(name="one", readout="adjoint", dropout=0.3, joint=True, **SMALL)
    (expected,) = run_all([replace(experiment, name="other")], "tiny")
    fit, asked = lifecycle.fit, []

    def cut_off(at_call: int, at_epoch: int) -> None:
        calls = iter(range(9))

        def on_epoch(call: int, epoch: int) -> None:
            asked.append((call, epoch))
            if (call, epoch) == (at_call, at_epoch):
                raise KeyboardInterrupt

        patch.setattr(lifecycle, "fit", lambda *a, **b: fit(*a, **b, on_epoch=partial(on_epoch, next(calls))))
        run_all([experiment], "tiny")

    folder = records.artifacts() / "tiny" / "checkpoints" / "one-seed0"
    with monkeypatch.context() as patch:
        for moment in ((0, 2), (1, 2)):
            with pytest.raises(KeyboardInterrupt):
                cut_off(*moment)
            assert len(list(folder.iterdir())) == moment[0] + 1
        cut_off(9, 9)
    assert asked == [(0, 1), (0, 2), (0, 2), (0, 3), (1, 1), (1, 2), (1, 2)], "no epoch twice but those cut off"
    (found,) = run_all([experiment], "tiny")
    assert found.results == expected.results
    assert found.weights["one"] == expected.weights["other"]
    assert not folder.exists()


def test_a_checkpoint_of_other_settings_is_never_taken(monkeypatch, tmp_path):
    settings = replace(LifeCycle(name="one", **SMALL).settings(PROFILES["tiny"]), checkpoints=tmp_path)
    model = build("fc", (1, 28, 28), 10, seed=0)
    others = [replace(settings, lr=1.0), replace(settings, epochs=9), replace(settings, images=Images("digits", 9, 9))]
    others += [LifeCycle(name="one", dropout=0.1, **SMALL).settings(PROFILES["tiny"])]
    files = {lifecycle.checkpoint(replace(other, checkpoints=tmp_path), 0, model) for other in [settings, *others]}
    files |= {lifecycle.checkpoint(settings, 1, model)}
    files |= {lifecycle.checkpoint(settings, 0, build("fc", (1, 28, 28), 10, seed=1))}
    assert len(files) == len(others) + 3 and {file.parent for file in files} == {tmp_path}
    assert lifecycle.checkpoint(replace(settings, checkpoints=None), 0, model) is None
