"""Schedules, and the methods that belong to a name."""

import inspect
import math

import pytest

import clearstamp as cs
from clearstamp.attacks import Attack
from clearstamp.errors import TrainingError


@pytest.mark.parametrize(
    ("schedule", "about"),
    [
        (cs.Joint, {"every": 0}),
        (cs.Joint, {"weight": 0.0}),
        (cs.Joint, {"weight": math.nan}),
        (cs.Joint, {"weight": math.inf}),
        (cs.Alternating, {"every": 0}),
        (cs.Alternating, {"lr": 0.0}),
        (cs.Alternating, {"lr": math.inf}),
        (cs.AugmentedLagrangian, {"limit": 0.0}),
        (cs.AugmentedLagrangian, {"rho": 0.0}),
        (cs.AugmentedLagrangian, {"most": 0.5}),
        (cs.AugmentedLagrangian, {"period": 0}),
        (cs.ADMM, {"rho": 0.0}),
        (cs.ADMM, {"period": 0}),
    ],
)
def test_a_schedule_out_of_range(schedule, about):
    ((name, value),) = about.items()
    with pytest.raises(TrainingError, match=rf"out of range; got: {schedule.__name__}\(.*{name}={value}.*expected"):
        schedule(**about)


def test_the_recommended_method_is_what_is_done_when_nothing_is_told():
    defaults = {
        "readout": (cs.transpose, Attack.apply, cs.explore),
        "dropout": (cs.harden, cs.StampLoss),
        "steps": (cs.harden,),
        "target": (cs.harden,),
        "schedule": (cs.fit,),
    }
    for name, functions in defaults.items():
        for function in functions:
            assert inspect.signature(function).parameters[name].default == getattr(cs.RECOMMENDED, name), function


def test_the_paper_s_method_is_the_published_one():
    assert cs.Method("paper", 0.5, 10_000, None, cs.Alternating(every=1, lr=None)) == cs.PAPER
