"""Watermarks side by side: what an experiment measures, and what its tables make of it."""

from dataclasses import replace

import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from torch import nn

from clearstamp.reproduction import report, rivals
from clearstamp.reproduction.experiments import perform
from clearstamp.reproduction.profiles import load_sets, profile
from clearstamp.reproduction.records import Record, Stage
from clearstamp.reproduction.registry import RIVALS, Chapter, named
from clearstamp.reproduction.report.rivals import FATES
from clearstamp.reproduction.rivals import Pace, Rival, told_apart
from clearstamp.zoo.datasets import DataSet
from tests.tables import compact


@pytest.fixture(scope="module")
def rival() -> Rival:
    (made,) = Chapter("09-side-by-side", "tiny")["MNIST"].experiments
    return made


@pytest.fixture(scope="module")
def record(rival: Rival, tmp_path_factory: pytest.TempPathFactory) -> Record:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLEARSTAMP_ARTIFACTS", str(tmp_path_factory.mktemp("rivals")))
        return perform(rival.settings(profile("tiny")), 0)


def test_every_measure_has_a_stage(rival: Rival, record: Record):
    innocent = [f"innocent, {who}" for who in ("owner's key", "fresh keys", "made-up key")]
    assert [stage.label for stage in record.stages] == ["twin", "marked", *innocent, *rival.attacks]
    assert record.results["innocent, fresh keys"]["of"] == rival.fresh * rival.nulls // 2
    assert record.results["innocent, fresh keys"]["accused"] == 0
    assert record.results["innocent, made-up key"]["score"] == 1.0
    assert record.parameters["scheme"]["name"] == rival.scheme.name


def test_on_its_own_terms_a_mark_is_told_beside_the_twin_that_went_on_as_long(tmp_path, monkeypatch):
    monkeypatch.setenv("CLEARSTAMP_ARTIFACTS", str(tmp_path))
    (made,) = Chapter("09-side-by-side", "tiny")["own terms"].experiments
    made = replace(made, schemes=dict(list(made.schemes.items())[:2]))
    record = perform(made.settings(profile("tiny")), 0)
    assert [stage.label for stage in record.stages] == ["twin", "DeepSigns, 4 bits", "DeepSigns, 16 bits"]
    (twin, _, long) = record.stages
    assert long.scores["trials"] == 16 and long.scores["score"] > 0.9 > long.scores["score of the twin"]
    assert abs(long.scores["accuracy"] - twin.scores["accuracy"]) < 0.1
    table = compact(report.own_terms_table([record]).data)
    cost = 100 * (twin.scores["accuracy"] - long.scores["accuracy"])
    assert f"| DeepSigns, 16 bits | – | {cost:+.2f} | 16 of 16 |" in table


def test_what_gradsigns_cost_its_authors_stands_beside_messages_of_that_length(record: Record):
    scores = {"accuracy": 0.5, "score": 0.5, "trials": 64, "p": 0.5, "score of the twin": 0.5, "queries": 19_250}
    stage = Stage(label="GradSigns, 64 bits, by queries", scores=scores)
    found = replace(record, stages=[Stage(label="twin", scores={"accuracy": 0.51}), stage])
    table = compact(report.own_terms_table([found]).data)
    assert "| GradSigns, 64 bits, by queries | 0.7 | +1.00 | 32 of 64 | 5e-01 | 0.50 | 19,250 |" in table
    stage.scores["p"] = 0.0
    assert "| 32 of 64 | < 1e-300 |" in compact(report.own_terms_table([found]).data)


def test_titles_name_experiments_of_their_own():
    assert len({named(title) for title in RIVALS}) == len(RIVALS)
    assert len({tuple(vars(scheme).items()) + (scheme.name,) for scheme in RIVALS.values()}) == len(RIVALS)


def attacked(record: Record, **points: tuple[float, bool]) -> Record:
    """The record with other attacks, each with the accuracy that it left and whether the mark was accepted."""
    marked = Stage(label="marked", scores={"accuracy": 0.9, "accepted": True, "score": 1.0})
    stages = [
        Stage(label=label, attack=label, scores={"accuracy": left, "accepted": accepted, "score": 0.6, "p": None})
        for label, (left, accepted) in points.items()
    ]
    return replace(record, stages=[marked, *stages])


def test_a_mark_survives_the_attacks_that_cost_little_and_left_it_to_every_seed(record: Record):
    one = attacked(
        record, **{"a: 1": (0.9, True), "a: 2": (0.87, False), "a: 3": (0.86, False), "head: 4": (0.2, True)}
    )
    assert "| Uchida | 2 of 3 | a: 2 |" in compact(report.survival_table([one]).data)
    failed = Stage(label="a: 5", attack="a: 5", scores={"failed": "no head"})
    one = replace(one, stages=[*one.stages, failed])
    assert "| Uchida | 2 of 3 | a: 2 |" in compact(report.survival_table([one]).data), "it does not apply"
    other = attacked(
        record, **{"a: 1": (0.9, False), "a: 2": (0.9, False), "a: 3": (0.5, True), "head: 4": (0.2, True)}
    )
    assert "| Uchida | 1 of 3 | a: 1 (1 of 2), a: 2 |" in compact(report.survival_table([one, other]).data)
    dear = attacked(record, **{"a: 1": (0.9, True), "a: 2": (0.5, True)})
    assert "| Uchida | 1 of 1 |" in compact(report.survival_table([dear]).data), "what costs much is not counted"
    unmarked = Stage(label="marked", scores={"accuracy": 0.9, "accepted": False, "score": 0.5})
    one = replace(one, stages=[unmarked, *one.stages[1:]])
    assert "| Uchida | – | not embedded |" in compact(report.survival_table([one]).data)


def test_the_worst_that_came_of_a_mark_has_its_colour(record: Record):
    one = attacked(record, **{"a: 1": (0.9, True), "a: 2": (0.87, False), "a: 3": (0.5, False), "a: 4": (0.9, True)})
    other = attacked(record, **{"a: 1": (0.9, True), "a: 2": (0.87, True), "a: 3": (0.9, False), "a: 4": (0.5, False)})
    kept, lost, bought, none = FATES.values()
    assert colours(report.survival_figure([one])) == [kept, lost, bought, kept]
    assert colours(report.survival_figure([one, other])) == [kept, lost, lost, bought]
    unmarked = Stage(label="marked", scores={"accuracy": 0.9, "accepted": False, "score": 0.5})
    assert colours(report.survival_figure([replace(one, stages=[unmarked, *one.stages[1:]])])) == [none] * 4
    assert report.survival_figure([]).data == "*Not run in this profile.*"


def test_a_fragile_mark_is_asked_only_about_what_changes_the_weights(record: Record):
    one = attacked(
        record, **{"rewriting: 1": (0.9, False), "rewriting, aligned: 1": (0.9, True), "interface: 1": (0.9, True)}
    )
    scheme = record.parameters["scheme"] | {"name": "neu-nac"}
    fragile = replace(one, experiment="rival-neunac", parameters=record.parameters | {"scheme": scheme})
    kept, lost, _, none = FATES.values()
    assert colours(report.survival_figure([one])) == [lost, kept, kept]
    assert colours(report.survival_figure([fragile])) == [kept, none, none]


def colours(figure: Figure) -> list[str]:
    return [to_hex(patch.get_facecolor()) for patch in figure.axes[0].patches]


def test_the_tables_hold_every_watermark_and_every_attack(rival: Rival, record: Record):
    assert "| Uchida |" in compact(report.rivals_table([record]).data)
    assert "| Uchida |" in compact(report.innocents_table([record]).data)
    assert "| Uchida |" in compact(report.survival_table([record]).data)
    (points,) = report.points_tables([record])
    assert all(f"| {label} |" in compact(points.data) for label in rival.attacks)
    assert report.rivals_table([]).data == report.rivals_gallery([]).data == "*Not run in this profile.*"


def test_the_time_of_a_mark_is_that_of_more_batches_over_that_of_as_many_without(monkeypatch):
    """By a clock that the work itself moves: 3 a batch with the mark, 1 without, and 50 before the first."""
    now = [0.0]
    monkeypatch.setattr(rivals.time, "perf_counter", lambda: now[0])
    pace = Pace(name="pace", schemes={}, short=2, long=6)
    data = load_sets(profile("tiny").images()).train

    def work(seconds: float) -> float:
        def step(model: nn.Module, part: DataSet) -> None:
            now[0] += 50 + seconds * len(part) / 64

        return pace.difference(nn.Identity(), data, step)

    assert work(3.0) / work(1.0) == 3.0


def test_the_pace_of_every_watermark_is_measured_and_shown(monkeypatch, tmp_path):
    monkeypatch.setenv("CLEARSTAMP_ARTIFACTS", str(tmp_path))
    (pace,) = Chapter("09-side-by-side", "tiny")["time"].experiments
    made = perform(pace.settings(profile("tiny")), 0)
    assert [stage.label for stage in made.stages] == list(pace.schemes)
    assert all(stage.scores["memory"] >= 1 for stage in made.stages)
    assert "| Uchida |" in compact(report.pace_table([made]).data)


def test_a_detector_that_answers_the_queries_higher_has_an_area_of_one():
    low, high = torch.rand(20, 1, 2, 2), 2 + torch.rand(20, 1, 2, 2)
    detector = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
    with torch.no_grad():
        detector[1].weight[0], detector[1].weight[1] = 0.0, 1.0
    assert told_apart(detector, high, low) == 1.0
    assert told_apart(detector, low, high) == 0.0
