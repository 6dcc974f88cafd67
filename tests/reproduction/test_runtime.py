"""What a stamp costs: the ratios are of what they say, and the counts are right."""

from functools import partial

import pytest
import torch
from torch import nn

from clearstamp.reproduction import report, runtime
from clearstamp.reproduction.experiments import run_all
from clearstamp.reproduction.runtime import Cost, Workbench, memory, operations, plain_walk, ratios
from tests.tables import compact

SMALL = {"model": "fc", "keys": 2, "batch": 4, "rounds": 3, "repeats": 1}


@pytest.fixture(autouse=True)
def artifacts(tmp_path, monkeypatch):
    monkeypatch.setenv("CLEARSTAMP_ARTIFACTS", str(tmp_path))


def test_the_plain_loop_computes_what_the_library_computes():
    by_hand, ours = bench(model="cnn"), bench(model="cnn")
    expected = ours.back(ours.loss.stamp.keys)
    torch.testing.assert_close(plain_walk(by_hand.model, by_hand.loss.stamp.keys), expected, rtol=1e-4, atol=1e-6)
    by_hand.plain()
    ours.stamp()
    for one, two in zip(by_hand.model.parameters(), ours.model.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)


def test_a_ratio_is_of_the_subject_to_the_twin_interleaved_after_one_run_of_each(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(runtime.time, "perf_counter", lambda: clock[0])
    ran: list[str] = []

    def step(name: str, takes: float):
        def run() -> None:
            ran.append(name)
            clock[0] += takes

        return run

    assert ratios(step("subject", 3.0), step("twin", 2.0), rounds=2, repeats=2) == [1.5, 1.5]
    assert ran == ["subject", "twin", *["subject"] * 2, *["twin"] * 2, *["subject"] * 2, *["twin"] * 2]


def test_operations_are_those_of_matrix_products():
    left, right = torch.ones(3, 5), torch.ones(5, 7)
    assert operations(lambda: left @ right) == 2 * 3 * 5 * 7


def bench(**about) -> Workbench:
    return Workbench(Cost(name="one", subject="task", twin="task", **SMALL | about))


def test_memory_is_weights_gradients_states_and_what_backward_keeps():
    weights = 4 * sum(p.numel() for p in bench().model.parameters())
    kept = memory(bench(), "task") - 4 * weights  # weights, gradients, Adam's two states
    least = 4 * 4 * (784 + 10)  # the batch's pixels and its outputs
    assert least < kept < 8 * least
    assert memory(bench(every=3), "task") == pytest.approx(4 * weights + kept, rel=1e-3), (
        "no more than one step at a time"
    )


def test_a_joint_step_needs_no_second_optimizers_memory():
    weights = 4 * sum(p.numel() for p in bench().model.parameters())
    assert memory(bench(), "alternate") - memory(bench(), "task") > 1.9 * weights
    assert memory(bench(), "joint") - memory(bench(), "task") < 0.1 * weights


@pytest.mark.parametrize("subject", ["alternate", "joint", "stamp", "extract"])
def test_a_cost_is_recorded_with_its_spread_and_its_floor(subject):
    twin = "forward" if subject == "extract" else "task"
    (record,) = run_all([Cost(name="one", subject=subject, twin=twin, every=2, **SMALL)], "tiny")
    found = record.results["cost"]
    assert 0 < found["quartile 1"] <= found["time"] <= found["quartile 3"]
    assert found["operations"] > 0 and found["memory"] > 0
    assert found["parameters"] == sum(
        p.numel() for p in Workbench(Cost(name="one", subject="task", twin="task", **SMALL)).model.parameters()
    )


def test_steps_leave_the_number_of_task_steps_to_one_stamp_step(monkeypatch):
    steps: list[tuple[str, list[str]]] = []
    made = bench(every=3)
    monkeypatch.setattr(made, "step", lambda optimizer, loss: steps.append((optimizer, loss)))
    monkeypatch.setattr(made, "task_loss", lambda: ["task"])
    monkeypatch.setattr(made, "stamp_loss", lambda: ["stamp"])
    made.alternate()
    made.joint()
    task = ("task", ["task"])
    assert steps == [task, task, task, ("stamp", ["stamp"]), task, task, ("task", ["task", "stamp"])]


def test_a_network_of_torchvision_can_be_measured():
    model, shape, outputs = Cost(name="one", subject="stamp", twin="task", model="squeezenet1_1", size=32).network()
    assert isinstance(model, nn.Module) and (shape, outputs) == ((3, 32, 32), 10)


def test_ratios_are_told_with_their_quartiles_and_floors():
    records = run_all(
        [Cost(name=f"cost-{k}", subject="stamp", twin="task", **SMALL | {"keys": k}) for k in (2, 4)], "tiny"
    )
    found = [record.results["cost"] for record in records]
    time, low = found[0]["time"], found[0]["quartile 1"]
    first = f"| stamp / task | fc | 28 | 2 | 1 | 0.0 | 0.0 | float32 | {time:.2f} ({low:.2f} to"
    assert first in compact(report.runtime_table(records, "Costs").data)
    (axis,) = report.scaling_figure({"keys": records}).axes
    assert axis.lines[0].get_xydata().tolist() == [[2, found[0]["time"]], [4, found[1]["time"]]]
    records[1].parameters["keys"] = 11_000_000
    (axis,) = report.scaling_figure({"keys": records}).axes
    assert [label.get_text() for label in axis.get_xticklabels()] == ["2", "11M"]


def test_the_parts_of_a_stamp_step_add_up_to_it():
    parts = ("walk", "measure", "stamp", "update")
    records = run_all([Cost(name=f"part-{p}", subject=p, twin="task", **SMALL) for p in parts], "tiny")
    times = dict(zip(parts, (0.2, 0.3, 1.0, 0.1), strict=True))
    for record in records:
        record.results["cost"]["time"] = times[record.parameters["subject"]]
    (axis,) = report.parts_figure(records).axes
    assert [round(bar.get_width(), 3) for bar in axis.patches] == [0.2, 0.1, 0.6, 0.1]
    assert len(report.parts_figure([]).axes[0].patches) == 0


def test_a_compiled_step_moves_the_weights_as_the_plain_one(monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    one, two = bench(), bench()
    one.compiled()
    two.stamp()
    for a, b in zip(one.model.parameters(), two.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
