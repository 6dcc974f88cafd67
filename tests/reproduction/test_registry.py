"""The registry: every notebook has its experiments, each name means one, and every claim leads to one of them."""

import inspect
import re
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import nbformat
import pytest

from clearstamp.errors import RecordError
from clearstamp.reproduction import claims, registry
from clearstamp.reproduction.experiments import find, unmade
from clearstamp.reproduction.lifecycle import LifeCycle
from clearstamp.reproduction.profiles import PROFILES, load_sets
from clearstamp.reproduction.records import BOTH_READOUTS
from clearstamp.reproduction.registry import CHAPTERS, Chapter, Group, declared, resolved
from clearstamp.training.loops import fit, harden
from clearstamp.training.losses import StampLoss
from clearstamp.training.method import PAPER
from clearstamp.training.schedules import Joint
from clearstamp.zoo import datasets

ROOT = Path(__file__).parents[2]
NOTEBOOKS = {path.stem: path for path in (ROOT / "notebooks").glob("*.ipynb")}
every_profile = pytest.mark.parametrize("profile", PROFILES)


def test_every_notebook_is_a_chapter():
    assert CHAPTERS.keys() == NOTEBOOKS.keys()


@pytest.mark.parametrize("name", sorted(set(CHAPTERS) - {"00-your-own-model"}))
def test_a_notebook_runs_every_group_of_its_chapter_and_declares_nothing_itself(name):
    cells = [cell for cell in nbformat.read(NOTEBOOKS[name], as_version=4).cells if cell.cell_type == "code"]
    code = "\n".join(cell.source for cell in cells)
    chapter = Chapter(name, "quick")
    asked: list[str] = []
    words = {"report": Anything(), "display": lambda *_: None, "profile": "quick"}
    words["chapter"] = Asked(chapter, asked)
    lines = "\n".join(c.source for c in cells if "Chapter(" not in c.source and "profile =" not in c.source)
    exec(lines, words)
    assert set(asked) == set(chapter.groups)
    assert set(re.findall(r"from clearstamp\.(\S+) import|import clearstamp", code)) <= {
        "reproduction",
        "reproduction.registry",
    }


@every_profile
def test_a_record_answers_to_the_experiment_that_it_was_made_by(profile, monkeypatch, tmp_path):
    monkeypatch.setenv("CLEARSTAMP_ARTIFACTS", str(tmp_path / "artifacts"))
    monkeypatch.setenv("CLEARSTAMP_DATA", str(tmp_path))
    monkeypatch.setitem(PROFILES, profile, replace(PROFILES[profile], seeds=(0,)))
    lost = []
    for (name, seed), settings in resolved(profile).items():
        there = [images for images in settings.data if datasets.found(images.dataset)]
        record = unmade(settings, seed)
        record = replace(record, data={images.dataset: load_sets(images).about for images in there})
        record.save()
        if find(settings, seed) is None:
            lost.append(name)
    assert lost == []


class Anything:
    """Answers to every name and call with something that is empty."""

    def __getattr__(self, _):
        return lambda *args, **kwargs: Empty()


class Empty(list):
    """A list, and a mapping, of nothing."""

    def items(self) -> tuple:
        return ()


class Asked:
    """A chapter that runs nothing and notes what it was asked for."""

    def __init__(self, chapter: Chapter, asked: list[str]):
        self.chapter, self.asked = chapter, asked

    def run(self, *groups: str) -> list:
        self.asked += [group for group in groups if self.chapter[group]]
        return []

    def __getitem__(self, group: str) -> Group:
        return self.chapter[group]


@every_profile
def test_one_name_means_one_experiment(profile):
    assert all(experiment.name == name for (name, _), experiment in declared(profile).items())


def test_two_experiments_of_one_name_are_an_error(monkeypatch):
    twice = replace(registry.UNMARKED, lr=1.0)
    monkeypatch.setitem(CHAPTERS, "03-pruning", lambda profile: {"again": Group([twice])})
    with pytest.raises(RecordError, match="two different experiments of one name; got: unmarked; where: 03-pruning"):
        declared("tiny")


def test_what_an_experiment_needs_is_declared_with_it():
    (erasure, seed) = ("erasure-paper", 2)
    found = declared("paper", ["05-adaptive-adversary"])
    assert {("11-keys-paper", seed), ("unmarked", seed)} <= found.keys() and (erasure, seed) in found


def test_unknown_chapters_groups_and_profiles_are_errors():
    with pytest.raises(RecordError, match="unknown chapter; got: '09-more'; expected: '00-your-own-model' or"):
        Chapter("09-more", "tiny")
    with pytest.raises(
        RecordError, match="unknown group; got: 'more'; expected: unmarked, one key, default, fingerprints; where: 01"
    ):
        Chapter("01-hardening", "tiny").run("more")
    with pytest.raises(RecordError, match="unknown profile"):
        Chapter("01-hardening", "huge")


def test_every_claim_is_about_an_experiment_of_its_chapter():
    for claim in claims.load():
        names = {experiment.name for experiment, _ in Chapter(claim.notebook, "paper").declared()}
        assert names & {claim.experiment.format(readout=name) for name in claims.EMBEDDINGS.values()}, claim.id


def test_a_chapter_runs_the_groups_that_are_asked_for(monkeypatch):
    ran = []
    monkeypatch.setattr(registry, "run_all", lambda experiments, profile, seeds: ran.append((profile, seeds)) or ["r"])
    chapter = Chapter("02-multi-key", "paper")
    assert chapter.run("open choices", "key ranges") == ["r", "r"]
    assert ran == [("paper", (0,)), ("paper", None)]


def test_the_default_scenario_is_embedded_as_the_library_does_when_told_nothing():
    def default(of: Callable, name: str) -> object:
        return inspect.signature(of).parameters[name].default

    dropout, target, schedule = default(StampLoss, "dropout"), default(harden, "target"), default(fit, "schedule")
    about = {"dropout": dropout, "target": target, "noise": default(StampLoss, "noise")}
    assert about | {"every": schedule.every, "joint": True} == registry.OURS
    assert isinstance(schedule, Joint)
    assert default(harden, "dropout") == dropout
    assert default(StampLoss, "noise") == default(harden, "noise") == 0.0


def test_published_is_the_paper_s_dropout_at_every_step_and_two_optimizers():
    """Whatever stands in the column *published*, attacked models among it."""
    asked = {claim.experiment.format(readout=r) for claim in claims.load() for r in BOTH_READOUTS} - {"unmarked"}
    found = {name: e for (name, _), e in declared("paper").items() if name in asked}
    assert len(found) > 40
    for experiment in found.values():
        on = getattr(experiment, "on", experiment)
        assert on.dropout == PAPER.dropout and on.noise == 0.0
        if isinstance(on, LifeCycle):
            assert on.target is None and (on.every, on.joint) == (1, False)
    assert found["cost-paper"].subject == "alternate" and found["cost-paper"].every == 1
    steps = {"1-key-paper": 7_000, "10-keys-adjoint": 10_000, "sgd-paper": 20_000, "mnist-fc-paper": 200}
    assert steps == {name: found[name].settings(PROFILES["paper"]).hardening_steps for name in steps}


def test_what_prose_says_of_the_default_is_so():
    words = {2: "second", 3: "third", 4: "fourth", 8: "eighth"}
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "README.md", ROOT / "book" / "index.md")]
    texts += [cell.source for cell in nbformat.read(NOTEBOOKS["07-runtime"], as_version=4).cells]
    told = " ".join(texts)
    assert set(re.findall(r"every (second|third|fourth|eighth) (?:batch|step)", told)) == {
        words[registry.OURS["every"]]
    }
    assert f"default is dropout at {registry.OURS['dropout']}" in " ".join(told.split())
    assert f"a mean SSIM of {registry.OURS['target']}" in " ".join(told.split())


def test_a_fingerprint_is_of_a_published_experiment_but_for_its_rate():
    made = {name: e for (name, _), e in declared("paper").items()}
    for name, of in registry.FINGERPRINTS.items():
        found, published = made[f"fingerprint-{name}-0.5"], made[f"{of}-paper"]
        ours, theirs = ({**asdict(e), "name": "", "until": "", "onto": ""} for e in (found, published))
        assert ours == theirs
        assert made[f"fingerprint-{name}-0.1"].dropout == 0.1
