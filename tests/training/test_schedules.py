"""Schedules on a problem whose optimum is known: two points, one of which the task wants and the other the stamp."""

import math

import pytest
import torch
from torch import Tensor, nn

from clearstamp.training.loops import fit
from clearstamp.training.schedules import ADMM, Alternating, AugmentedLagrangian, Joint, Schedule, Turns
from clearstamp.training.steps import Descent, sgd

TASK, STAMP = torch.tensor([3.0, 0.0, 1.0], dtype=torch.float64), torch.tensor([0.0, 4.0, 1.0], dtype=torch.float64)
APART = 5.0


class Point(nn.Module):
    """A model that is nothing but a point."""

    def __init__(self) -> None:
        super().__init__()
        self.at = nn.Parameter(torch.ones(3, dtype=torch.float64))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.at.expand(len(inputs), 3)


def half_square(point: Tensor, to: Tensor) -> Tensor:
    return (point - to).square().sum() / 2


def went(schedule: Schedule, batches: int, lr: float = 0.05) -> tuple[Tensor, Turns]:
    """Where a point ends that the task draws to one end and the stamp to the other, and the schedule's state."""
    model = Point()
    descent = Descent(model, sgd, lr)
    turns = schedule.begin(descent, lambda: half_square(model.at, STAMP))
    for _ in range(batches):
        descent.batches += 1
        turns.take(descent.losses.keep("task loss", half_square(model.at, TASK)))
    return model.at.detach(), turns


def between(share: float) -> Tensor:
    """The point at a share of the way from the task's to the stamp's."""
    return TASK.lerp(STAMP, share)


def near(point: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(point, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("weight", [0.01, 1.0, 10.0])
def test_a_weighted_sum_ends_between_both_by_its_weight(weight):
    near(went(Joint(every=1, weight=weight), 2000)[0], between(weight / (1 + weight)))


@pytest.mark.parametrize("limit", [0.5, 2.0])
def test_an_augmented_lagrangian_ends_at_its_limit_and_no_further(limit):
    """The nearest point to the task's whose stamp loss is `limit`; there, both gradients balance by the multiplier."""
    point, turns = went(AugmentedLagrangian(limit=limit, most=8.0), 4000)
    radius = math.sqrt(2 * limit)
    near(point, between(1 - radius / APART))
    assert half_square(point, STAMP).item() == pytest.approx(limit, abs=1e-6)
    assert turns.mu == pytest.approx((APART - radius) / radius, abs=1e-5)


def test_a_limit_that_the_task_s_optimum_keeps_is_no_constraint():
    point, turns = went(AugmentedLagrangian(limit=APART**2), 2000)
    near(point, TASK)
    assert turns.mu == 0


def test_the_penalty_doubles_unless_the_excess_has_halved_and_has_a_bound():
    turns = AugmentedLagrangian(rho=1.0, most=3.0).begin(Descent(Point(), sgd, 0.1), lambda: torch.zeros(()))
    told = []
    for mean in (1.0, 0.4, 0.3, 0.2, -5.0):
        turns.adapt(mean)
        told.append((turns.mu, turns.rho))
    assert told == [(1.0, 1.0), (1.4, 1.0), (pytest.approx(1.7), 2.0), (pytest.approx(2.1), 3.0), (0.0, 3.0)]


def test_a_period_s_excess_is_its_mean():
    schedule = AugmentedLagrangian(limit=1.0, period=2)
    losses = iter((3.0, 5.0, 2.0, 2.0))
    descent = Descent(Point(), sgd, 1e-9)
    turns = schedule.begin(descent, lambda: 0 * descent.weights[0].sum() + next(losses))
    for _ in range(4):
        descent.batches += 1
        turns.take(half_square(descent.weights[0], TASK))
    assert (turns.mu, turns.before) == (3.0 + 1.0, 1.0)


def test_both_weights_of_admm_meet_at_the_optimum_of_the_sum():
    point, turns = went(ADMM(rho=1.0), 3000)
    near(point, between(0.5))
    near(turns.other[0], point)
    near(turns.gap[0], TASK - point)


def test_admm_steps_on_task_and_stamp_for_periods_in_turn():
    """Two steps on the task, then two on the stamp, from the same start; by hand."""
    rho, lr = 0.5, 0.1
    point, turns = went(ADMM(rho=rho, period=2), 3, lr=lr)
    theta = z = torch.ones(3, dtype=torch.float64)
    u = torch.zeros(3, dtype=torch.float64)
    for _ in range(2):
        theta = theta - lr * ((theta - TASK) + rho * (theta - z + u))
    for _ in range(2):
        z = z - lr * ((z - STAMP) - rho * (theta - z + u))
    u = u + theta - z
    theta = theta - lr * ((theta - TASK) + rho * (theta - z + u))
    torch.testing.assert_close(point, theta)
    torch.testing.assert_close(turns.other[0], z)
    torch.testing.assert_close(turns.gap[0], u)


@pytest.mark.parametrize("schedule", [Joint(), Alternating(), AugmentedLagrangian(), ADMM()], ids=repr)
def test_a_rate_scales_every_optimizer_of_a_schedule(schedule):
    """At a rate of zero nothing moves."""
    model = Point()
    batches = [(torch.zeros(2), torch.zeros(2))] * 60
    asked: list[float] = []
    how = {"loss": lambda outputs, _: half_square(outputs[0], TASK), "rate": lambda done: asked.append(done) or 0.0}
    stamp = {"stamp_loss": lambda: half_square(model.at, STAMP), "schedule": schedule}
    fit(model, batches, epochs=2, lr=0.1, optimizer=sgd, progress=False, **how, **stamp)
    near(model.at.detach(), torch.ones(3, dtype=torch.float64))
    assert asked == [(batch + 0.5) / 120 for batch in range(120)]


def test_a_rate_is_a_factor_of_the_learning_rate():
    model, by_hand = Point(), torch.ones(3, dtype=torch.float64)
    fit(
        model,
        [(torch.zeros(1), torch.zeros(1))] * 4,
        epochs=1,
        lr=0.1,
        optimizer=sgd,
        loss=lambda outputs, _: half_square(outputs[0], TASK),
        rate=lambda done: 1 - done,
        progress=False,
    )
    for rate in (0.875, 0.625, 0.375, 0.125):
        by_hand = by_hand - 0.1 * rate * (by_hand - TASK)
    torch.testing.assert_close(model.at.detach(), by_hand)
