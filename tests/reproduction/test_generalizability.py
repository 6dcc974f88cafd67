"""The rows of Table 4: what is frozen, what moves to another data set, and what every profile makes of a row."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from clearstamp.reproduction import lifecycle
from clearstamp.reproduction.experiments import LENGTHS, run_all
from clearstamp.reproduction.generalizability import CrossData, Row
from clearstamp.reproduction.lifecycle import Life, LifeCycle
from clearstamp.reproduction.profiles import PROFILES, Images, load_sets
from clearstamp.reproduction.registry import PAPER, Chapter, table4
from clearstamp.transpose import freeze
from clearstamp.transposed.base import public_probe
from clearstamp.zoo import datasets
from clearstamp.zoo.networks import MODELS

TINY = PROFILES["tiny"]
SKIPS = {"model": "resnet18", "small": "resnet18-narrow", "keys": 2}


@pytest.fixture(autouse=True)
def artifacts(tmp_path, monkeypatch):
    monkeypatch.setenv("CLEARSTAMP_ARTIFACTS", str(tmp_path))


def test_table_4_has_ten_rows_of_known_networks():
    rows = table4("{name}-adjoint", "adjoint", **PAPER)
    assert len({row.name for row in rows}) == 10
    assert {row.model for row in rows} | {row.small for row in rows if row.small} <= set(MODELS)
    assert all(row.readout == "adjoint" and row.name.endswith("-adjoint") for row in rows)
    others = table4("{name}-paper", "paper", **PAPER)
    assert {row.name.replace("adjoint", "paper") for row in rows} == {row.name for row in others}


def test_a_row_is_whole_in_the_paper_s_profile_and_small_in_the_others(monkeypatch):
    row = next(row for row in table4("{name}-paper", "paper", **PAPER) if row.name == "cifar100-vit-paper")
    monkeypatch.setattr(datasets, "found", lambda _: True)
    paper = row.settings(PROFILES["paper"])
    assert (paper.images, paper.epochs, paper.hardening_steps) == (Images("cifar100", None, None), 200, 1_000)
    quick = row.settings(PROFILES["quick"])
    assert (quick.images, quick.hardening_steps) == (Images("cifar100", 300, 300), 40)
    assert quick.epochs == PROFILES["quick"].epochs
    tiny = row.settings(TINY)
    assert tiny.images == TINY.images() == Images("digits", 512, 200), "a profile of the embedded digits keeps to them"
    plain = LifeCycle(name="one").settings(PROFILES["paper"])
    assert all(getattr(plain, name) == getattr(PROFILES["paper"], name) for name in LENGTHS)


def test_a_row_by_a_recipe_fine_tunes_for_as_many_epochs_and_normalises_in_the_model(monkeypatch):
    (row,) = Chapter("04-generalizability", "tiny")["recipe"].experiments
    assert row.name == "cifar10-resnet18-recipe-adjoint"
    settings = row.settings(PROFILES["paper"])
    assert (settings.epochs, settings.finetune_epochs) == (3, 3)
    tuned = lifecycle.tuning(settings)
    assert tuned.recipe.lr == pytest.approx(settings.recipe.lr / 10)
    assert settings.parameters["recipe"]["lr"] == 3e-3 and settings.parameters["epochs"] == 3
    asked: list[dict] = []
    fit = lifecycle.fit
    monkeypatch.setattr(lifecycle, "fit", lambda *a, **b: asked.append(b) or fit(*a, **b))
    (record,) = run_all([replace(row, small="cnn-bn", keys=2)], "tiny")
    assert [about["lr"] for about in asked] == [3e-3, pytest.approx(3e-4)]
    train = load_sets(TINY.images()).train
    model = lifecycle.fresh_model(replace(row, small="cnn-bn").settings(TINY), 0)
    inputs, _ = train[:100]
    assert model[0](inputs).mean().abs() < 0.2 and set(record.results) == {"hardened", "trained", "finetuned"}


def test_the_deep_rows_by_a_recipe_are_those_of_table_4():
    rows = Chapter("04-generalizability", "paper")["recipe"].experiments
    named = [row.name for row in table4("{name}-recipe-adjoint", "adjoint", **PAPER)[4:]]
    assert [row.name for row in rows] == [*named, "cifar10-resnet18-recipe-paper"]
    assert {row.name: row.recipe.flip for row in rows if row.dataset == "gtsrb"} == {
        "gtsrb-resnet18-recipe-adjoint": False
    }
    assert all(0 < row.dropout <= 0.1 and row.joint and row.every == 3 for row in rows)


def test_the_small_network_stands_in_below_the_paper_s_profile(monkeypatch):
    built, sets = [], load_sets(TINY.images())
    monkeypatch.setattr(lifecycle, "build", lambda name, *_, **__: built.append(name) or nn.Linear(1, 1))
    monkeypatch.setattr(lifecycle, "load_sets", lambda images: sets)
    (resnet18,) = Chapter("04-generalizability", "quick")["ResNet-18"].experiments
    for name in ("tiny", "quick", "paper"):
        lifecycle.fresh_model(resnet18.settings(PROFILES[name]), 0)
    assert built == ["resnet18-narrow", "resnet18-narrow", "resnet18"]


@pytest.mark.parametrize("readout", ["paper", "adjoint"])
def test_skips_are_frozen_at_another_model_s_values_in_the_published_readout_alone(readout, monkeypatch):
    trained = []
    original = lifecycle.train

    def note(settings, seed, model, loss=None):
        trained.append((settings.epochs, seed, loss))
        return original(settings, seed, model, loss)

    monkeypatch.setattr(lifecycle, "train", note)
    life = Life(LifeCycle(name="one", readout=readout, **SKIPS).settings(TINY), 3)
    if readout == "adjoint":
        assert life.stamp.frozen == {} and trained == []
        return
    assert trained == [(1, 503, None)]
    assert len(life.stamp.frozen) == 8, "one for each block"
    own = freeze(life.model, life.graph)
    assert all(not torch.equal(life.stamp.frozen[place], own[place]) for place in own)
    plain = Life(LifeCycle(name="one", readout=readout).settings(TINY), 3)
    assert plain.stamp.frozen == {} and len(trained) == 1, "the CNN has nothing to freeze"


def test_a_model_that_moves_to_other_data_gets_its_last_layer_back(monkeypatch):
    seen = []
    original = lifecycle.fit

    def note(model, *args, **kwargs):
        seen.append((model.get_submodule("11").weight.detach().clone(), kwargs["lr"], kwargs["epochs"]))
        return original(model, *args, **kwargs)

    monkeypatch.setattr(lifecycle, "fit", note)
    experiment = CrossData(name="cross", readout="adjoint", keys=2, onto="cifar10", lr=1e-3)
    (record,) = run_all([experiment], "tiny")
    assert list(record.results) == ["hardened", "trained", "finetuned", "control"]
    marked = lifecycle.trained(experiment.settings(TINY), 0)
    last, lr, epochs = seen[1]
    assert (lr, epochs) == (pytest.approx(1e-4), TINY.finetune_epochs)
    assert last.shape == (10, 256) and not torch.equal(last, marked.get_submodule("11").weight), "a fresh last layer"
    assert record.results["trained"]["ssim"] > record.results["control"]["ssim"]
    assert record.results["finetuned"]["ssim"] > record.results["control"]["ssim"]
    assert "accuracy" not in record.results["control"] and record.arrays["control"].shape == (2, 1, 28, 28)


def test_a_row_of_another_architecture_runs_through_all_stages():
    (record,) = run_all([Row(name="row", readout="paper", **SKIPS)], "tiny")
    assert list(record.results) == ["hardened", "trained", "finetuned"]
    losses = record.arrays["hardening/losses"]
    assert losses[-1] < losses[0] - 0.02


def test_the_probe_is_published_and_the_same_for_everyone():
    first, again = public_probe((3, 4, 4)), public_probe((3, 4, 4))
    assert torch.equal(first, again)
    assert first.min() >= 0 and first.max() <= 1 and first.std() > 0.2
