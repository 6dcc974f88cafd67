"""Where the time of a training step goes, and what makes it less: what is measured is what is named."""

import pytest
import torch
from torch import nn

from clearstamp.errors import RecordError
from clearstamp.reproduction import layers, report
from clearstamp.reproduction.experiments import run_all
from clearstamp.reproduction.layers import Gains, Layers, Manner, Training, described, timed
from clearstamp.reproduction.profiles import PROFILES
from clearstamp.reproduction.records import Record, Stage
from tests.tables import compact

NARROW = {"model": "resnet18-narrow", "rounds": 2}


@pytest.fixture(autouse=True)
def artifacts(tmp_path, monkeypatch):
    monkeypatch.setenv("CLEARSTAMP_ARTIFACTS", str(tmp_path))


class Clock:
    """Time that passes only where it is told to."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr("clearstamp.reproduction.runtime.time.perf_counter", lambda: self.now)

    def passes(self, seconds: float):
        def work() -> None:
            self.now += seconds

        return work


def test_every_piece_of_work_is_timed_once_a_round_after_one_run(monkeypatch):
    clock = Clock(monkeypatch)
    work = {"short": clock.passes(1.0), "long": clock.passes(3.0)}
    assert list(timed(work, rounds=2)) == [{"short": 1.0, "long": 3.0}] * 2
    assert clock.now == 3 * 4.0


def network() -> nn.Module:
    inner = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.Identity())
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), inner, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))


def test_layers_of_one_kind_and_shape_count_together():
    found = layers.layers(Training(network(), Manner(batch=2)))
    assert {kind: len(uses) for kind, uses in found.items()} == {
        "Conv2d to 4 channels, 3 x 3, stride 1 x 1, of [3, 32, 32]": 1,
        "Conv2d to 4 channels, 3 x 3, stride 1 x 1, of [4, 32, 32]": 2,
        "ReLU, of [4, 32, 32]": 1,
        "AdaptiveAvgPool2d, of [4, 32, 32]": 1,
        "Flatten, of [4, 1, 1]": 1,
        "Linear to 10, of [4]": 1,
    }
    images, signal = (uses[0][1] for uses in list(found.values())[:2])
    assert not images.requires_grad and signal.requires_grad, "no way back leads to the images"


def test_a_layer_by_itself_does_all_of_its_arithmetic():
    layer, inputs = nn.Conv2d(4, 6, 3, padding=1), torch.rand(2, 4, 8, 8, requires_grad=True)
    forwards = 2 * 2 * 8 * 8 * 6 * 4 * 3 * 3
    assert layers.operations(lambda: layers.once(layer, inputs)) == 3 * forwards
    assert layers.operations(lambda: layers.once(layer, inputs.detach())) == 2 * forwards
    assert inputs.grad is not None and layer.weight.grad is not None


def test_shares_are_of_the_step_and_the_floor_is_a_product_of_as_many_operations(monkeypatch):
    experiment, clock = Layers(name="layers", batch=2, side=8, rounds=2), Clock(monkeypatch)
    monkeypatch.setattr(Layers, "network", lambda self, seed: network())
    monkeypatch.setattr(layers, "once", lambda layer, inputs: clock.passes(2.0)())
    monkeypatch.setattr(Training, "step", passing(Training.step, clock.passes(40.0)))
    monkeypatch.setattr(torch, "mm", lambda *_: clock.passes(0.5)())
    monkeypatch.setattr(layers, "operations", lambda work: 2 * 8**3 * 3)
    stages, _, _ = experiment.conduct(None, 0)
    found = {stage.label: stage.scores for stage in stages}
    pair = found[described(network()[1][0], torch.zeros(2, 4, 32, 32))]
    assert pair == {"count": 2, "time": 2 * 2 / 40, "operations": 2 * 2 * 8**3 * 3, "over": 2 / (3 * 0.5)}


def passing(step, work):
    def both(self) -> None:
        step(self)
        work()

    return both


def test_a_gain_is_of_the_time_of_one_image(monkeypatch):
    clock = Clock(monkeypatch)
    base = Manner(batch=2)
    changes = {"twice the batch": Manner(batch=4), "fused": Manner(batch=2, fused=True)}
    experiment = Gains(name="gains", rounds=3, base=base, changes=changes)
    monkeypatch.setattr(Gains, "network", lambda self, seed: network())

    def step(self) -> None:
        clock.passes(9.0 if self.manner.batch == 4 else 3.0 if self.manner.fused else 6.0)()

    monkeypatch.setattr(Training, "step", step)
    stages, _, _ = experiment.conduct(None, 0)
    assert {stage.label: stage.scores["time"] for stage in stages} == {"twice the batch": 0.75, "fused": 0.5}


@pytest.mark.parametrize("threads", [1, None])
def test_a_step_has_the_threads_that_it_asks_for_and_leaves_them_as_they_were(monkeypatch, threads):
    before, seen = torch.get_num_threads(), []
    monkeypatch.setattr(Training, "step", lambda self: seen.append(torch.get_num_threads()))
    torch.set_num_threads(2)
    try:
        layers.threaded(Training(network(), Manner(batch=2, threads=threads)))
        assert seen == [threads or 2] and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("manner", [Manner(batch=4), Manner(batch=4, channels_last=True), Manner(batch=4, fused=True)])
def test_layout_and_optimizer_change_no_result(manner):
    torch.manual_seed(0)
    model = network()
    plain, other = Training(model, Manner(batch=4)), Training(model, manner)
    plain.step()
    other.step()
    for one, two in zip(plain.model.parameters(), other.model.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)


def test_what_is_no_layer_is_not_counted_as_one(record_of_layers):
    rows = [row.split("|")[1:-1] for row in compact(report.layers_table([record_of_layers]).data).splitlines()[2:]]
    counts = {row[0].strip(): row[1].strip() for row in rows}
    assert counts[layers.STEP] == counts[layers.OPTIMIZER] == "" and counts["all other layers"] == "3"


@pytest.fixture
def record_of_layers() -> Record:
    """Of a step with an optimizer and some layers that take next to no time."""
    about = {layers.STEP: (1, 1.0), layers.OPTIMIZER: (1, 0.001), "Linear": (2, 0.9), "ReLU": (3, 0.002)}
    stages = [
        Stage(label=label, scores={"count": count, "time": share, "operations": 10})
        for label, (count, share) in about.items()
    ]
    return Record(experiment="one", kind="Layers", version=1, profile="tiny", parameters={}, seed=0, stages=stages)


@pytest.mark.parametrize("experiment", [Layers(name="one", rounds=1), Gains(name="two", rounds=0)])
def test_too_few_rounds_for_quartiles_are_told_before_a_run(experiment):
    (error,) = experiment.check(experiment.settings(PROFILES["tiny"]))
    assert isinstance(error, RecordError) and "number of rounds" in str(error)


def test_the_tables_have_the_longest_first_and_what_is_between_the_layers():
    about = {"batch": 2, "side": 64}
    made = run_all([Layers(name="layers", **about, **NARROW)], "tiny", (0,))
    rows = compact(report.layers_table(made).data).splitlines()[2:]
    times = [float(row.split("|")[3].strip().rstrip("%")) for row in rows]
    assert times[0] == 100 and times[1:-2] == sorted(times[1:-2], reverse=True)
    assert sum(times[1:]) == pytest.approx(100, abs=0.1 * len(times))
    made = run_all(
        [Gains(name="gains", base=Manner(batch=2), changes={"fused": Manner(batch=2, fused=True)}, **NARROW)],
        "tiny",
        (0,),
    )
    assert "fused" in compact(report.gains_table(made).data)
