"""Hardening, constraint training and their limits, on models that train within a second."""

import copy
import math
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clearstamp.errors import StampError, TrainingError
from clearstamp.reading import read
from clearstamp.scores import structural_similarity
from clearstamp.stamp import Stamp
from clearstamp.training import steps
from clearstamp.training.loops import accuracy, embed, fit, harden
from clearstamp.training.losses import Stamped, StampLoss
from clearstamp.training.method import PAPER, RECOMMENDED
from clearstamp.training.schedules import Alternating, Joint
from clearstamp.training.steps import Losses, guarded_step, sgd
from clearstamp.transpose import freeze, transpose
from clearstamp.transposed.base import Transposed
from clearstamp.transposed.rules import READOUTS
from clearstamp.zoo.networks import build

SHAPE = (1, 12, 12)
steady = partial(StampLoss, dropout=0.0)
"""A stamp loss that is the same at every call."""
both_readouts = pytest.mark.parametrize("readout", READOUTS)


@pytest.fixture
def model() -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(144, 64), nn.ReLU(), nn.Dropout(0.0), nn.Linear(64, 4))


@pytest.fixture
def stamp() -> Stamp:
    return Stamp.from_texts(["A", "B"], outputs=4, shape=SHAPE, seed=0)


@pytest.fixture
def batches() -> list[tuple[Tensor, Tensor]]:
    """Four classes told apart by the brightness of a quarter of the image."""
    labels = torch.arange(4).repeat(16)
    images = torch.rand(64, *SHAPE) * 0.3
    for image, label in zip(images, labels.tolist(), strict=True):
        image[:, 3 * label : 3 * label + 3] += 0.7
    return list(zip(images.split(16), labels.split(16), strict=True))


def backwards(model: nn.Module, readout: str = "adjoint") -> Transposed:
    return transpose(model, torch.zeros(1, *SHAPE), readout=readout)


def weights(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def unchanged(model: nn.Module, before: list[Tensor]) -> bool:
    return all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))


# ------------------------------------------------------------------------------------------------------- stamp loss


@both_readouts
def test_a_stamp_loss_is_one_graph_for_a_compiler(readout):
    cnn = build("cnn", (1, 28, 28), 10, seed=0)
    keys = Stamp.from_texts(["A", "B"], outputs=10, shape=(1, 28, 28), seed=0)
    loss = steady(transpose(cnn, torch.zeros(1, 1, 28, 28), readout=readout), keys)
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(), loss())
    with torch.no_grad():
        cnn[0].weight.mul_(2)
    torch.testing.assert_close(compiled(), loss())


def test_dropout_stays_in_that_one_graph():
    cnn = build("cnn", (1, 28, 28), 10, seed=0)
    keys = Stamp.from_texts(["A", "B"], outputs=10, shape=(1, 28, 28), seed=0)
    loss = StampLoss(transpose(cnn, torch.zeros(1, 1, 28, 28)), keys, dropout=0.3)
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    assert compiled().isfinite() and compiled() != compiled(), "masks are drawn anew"
    torch.testing.assert_close(
        *(torch.stack([f() for _ in range(30)]).mean() for f in (compiled, loss)), rtol=0.02, atol=0
    )


def test_hardening_compiled_and_not(model, stamp, monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    twin = copy.deepcopy(model)
    about = {"steps": 5, "target": None, "dropout": 0.0, "progress": False}
    plain = harden(backwards(twin), stamp, **about)
    done = harden(backwards(model), stamp, compiled=True, **about)
    assert done.losses == pytest.approx(plain.losses, rel=1e-4)


@both_readouts
def test_stamp_loss_is_its_formula(model, stamp, readout):
    back = backwards(model, readout)
    images = back(stamp.keys)
    expected = 1 - structural_similarity(images, stamp.secrets).mean() + (images - stamp.secrets).square().mean()
    torch.testing.assert_close(steady(back, stamp)(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("settings", [{"dropout": 0.0}, {"dropout": 0.0, "noise": 0.1}, {"dropout": 0.5}], ids=str)
def test_a_loss_of_a_few_keys_at_once_is_that_of_all_and_walks_no_more_of_them_together(settings):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(144, 16), nn.ReLU(), nn.Linear(16, 4))
    stamp = Stamp.from_texts(list("ABCDE"), outputs=4, shape=SHAPE, seed=0)
    back = backwards(model)
    walked: list[int] = []

    def gradients(**how) -> list[Tensor]:
        torch.manual_seed(1)
        loss = StampLoss(back, stamp, **settings, **how)
        walk = loss.walk
        loss.walk = lambda keys, weights: walked.append(len(keys)) or walk(keys, weights)
        model.zero_grad()
        loss().backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    whole, parts = gradients(), gradients(at_once=2)
    assert walked == [5, 2, 2, 1, 1, 2, 2], "once forward, once more backward"
    if not settings["dropout"]:  # masks are drawn for each part by itself
        for one, other in zip(whole, parts, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)
    assert all(bool(gradient.any()) for gradient in parts)


def test_a_joint_step_descends_the_sum_of_both_losses_with_one_optimizer(model, stamp, batches):
    twin = copy.deepcopy(model)
    done = fit(
        model,
        batches,
        epochs=1,
        lr=0.1,
        stamp_loss=steady(backwards(model), stamp),
        schedule=Joint(every=2),
        optimizer=sgd,
    )
    loss = steady(backwards(twin), stamp)
    terms: list[list[float]] = [[], []]
    for step, (inputs, labels) in enumerate(batches, start=1):
        task = F.cross_entropy(twin(inputs), labels)
        terms[0].append(task.item())
        if step % 2 == 0:
            extra = loss()
            terms[1].append(extra.item())
            task = task + extra
        twin.zero_grad()
        task.backward()
        with torch.no_grad():
            for p in twin.parameters():
                p -= 0.1 * p.grad
    for fitted, expected in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(fitted, expected, rtol=1e-4, atol=1e-6)
    assert [done.losses, done.stamp_losses] == [pytest.approx(t, rel=1e-4) for t in terms]


def test_a_model_and_its_loss_in_one_call(model, stamp):
    loss = steady(backwards(model), stamp)
    inputs = torch.rand(3, *SHAPE)
    outputs, stamp_loss = Stamped(model, loss)(inputs)
    assert torch.equal(outputs, model(inputs)) and torch.equal(stamp_loss, loss())
    assert [id(p) for p in Stamped(model, loss).parameters()] == [id(p) for p in model.parameters()]
    with pytest.raises(TrainingError, match="another model"):
        Stamped(copy.deepcopy(model), loss)


def test_a_loss_follows_its_model_to_another_device(model, stamp, monkeypatch):
    loss = steady(backwards(model), stamp)
    asked: list[torch.device] = []
    monkeypatch.setattr(Stamp, "to", lambda self, device: asked.append(device) or self)
    monkeypatch.setattr(Transposed, "device", "the model's device")
    loss()
    assert asked == ["the model's device"]
    monkeypatch.undo()
    assert stamp.to("cpu") is stamp


def test_stamp_loss_in_a_loop_written_by_hand_is_what_fit_does(model, stamp, batches):
    twin = copy.deepcopy(model)
    about = {"stamp_loss": steady(backwards(model, "paper"), stamp), "schedule": Alternating(lr=0.01)}
    fit(model, batches, epochs=2, lr=0.1, optimizer=sgd, **about)
    loss = steady(backwards(twin, "paper"), stamp)
    for inputs, labels in batches * 2:
        for lr, term in ((0.1, lambda x=inputs, y=labels: F.cross_entropy(twin(x), y)), (0.01, loss)):
            twin.zero_grad()
            term().backward()
            with torch.no_grad():
                for p in twin.parameters():
                    p -= lr * p.grad
    for fitted, expected in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(fitted, expected, rtol=1e-4, atol=1e-6)


def test_stamp_loss_drops_at_its_rate(model, stamp):
    torch.manual_seed(1)
    loss = StampLoss(backwards(model), stamp, dropout=0.5)()
    torch.manual_seed(1)
    images = backwards(model)(stamp.keys, dropout=0.5)
    expected = 1 - structural_similarity(images, stamp.secrets).mean() + F.mse_loss(images, stamp.secrets)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("relative", [False, True])
def test_noise_reads_the_stamp_from_weights_nearby_and_leaves_the_weights_alone(model, stamp, relative):
    before, back = weights(model), backwards(model)
    torch.manual_seed(1)
    loss = steady(back, stamp, noise=0.1, relative=relative)()
    loss.backward()
    assert unchanged(model, before)
    moved = copy.deepcopy(model)
    torch.manual_seed(1)
    with torch.no_grad():
        for p in moved.parameters():
            p += 0.1 * (p.std(correction=0) if relative else 1) * torch.randn_like(p)
    expected = steady(backwards(moved), stamp)()
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    for p, other in zip(model.parameters(), moved.parameters(), strict=True):
        torch.testing.assert_close(p.grad, other.grad, rtol=1e-4, atol=1e-7)


def test_noise_is_drawn_anew_at_every_call(model, stamp):
    loss = steady(backwards(model), stamp, noise=0.1)
    assert loss().item() != loss().item()


# -------------------------------------------------------------------------------------------------------- hardening


@both_readouts
def test_hardening_reaches_its_target_and_stops(model, stamp, readout):
    back = backwards(model, readout)
    seen = []
    outcome = harden(
        back,
        stamp,
        steps=2000,
        target=0.9,
        lr=3e-3,
        dropout=0.0,
        check_every=7,
        on_check=lambda step, images: seen.append((step, tuple(images.shape))),
        progress=False,
    )
    assert outcome.reached and outcome.steps < 2000 and outcome.steps % 7 == 0
    assert len(outcome.losses) == outcome.steps and outcome.losses[-1] < outcome.losses[0]
    assert [step for step, _ in outcome.ssim] == list(range(0, outcome.steps + 1, 7))
    assert seen == [(step, (2, *SHAPE)) for step, _ in outcome.ssim]
    assert all(score < 0.9 for _, score in outcome.ssim[:-1]) and outcome.ssim[-1][1] >= 0.9
    assert read(back, stamp).summary()["ssim"] == pytest.approx(outcome.ssim[-1][1], abs=1e-6)
    assert harden(back, stamp, target=0.9, progress=False).steps == 0, "nothing is left to do"


@pytest.mark.parametrize(("steps", "looks"), [(0, [0]), (10, [0, 4, 8, 10]), (8, [0, 4, 8])])
def test_hardening_without_a_target_takes_every_step(model, stamp, steps, looks):
    outcome = harden(backwards(model), stamp, steps=steps, target=None, check_every=4, progress=False)
    assert (outcome.steps, outcome.reached, [step for step, _ in outcome.ssim]) == (steps, False, looks)


@pytest.mark.parametrize("given", [{"steps": -1}, {"check_every": 0}])
def test_hardening_refuses_numbers_of_steps(model, stamp, given):
    with pytest.raises(TrainingError, match="number of steps out of range"):
        harden(backwards(model), stamp, **given, progress=False)


# ------------------------------------------------------------------------------------------------------------- fit


def test_marked_training_lowers_both_losses(model, stamp, batches):
    back, epochs = backwards(model), []
    outcome = fit(
        model, batches, epochs=30, lr=3e-3, stamp_loss=steady(back, stamp), on_epoch=epochs.append, progress=False
    )
    assert epochs == list(range(1, 31))
    assert (len(outcome.losses), len(outcome.stamp_losses)) == (120, 40), "a joint step at every third batch"
    assert outcome.losses[-1] < 0.5 * outcome.losses[0]
    assert outcome.stamp_losses[-1] < 0.5 * outcome.stamp_losses[0]
    assert accuracy(model, batches) == 1


def test_plain_training_has_no_stamp_losses(model, batches):
    outcome = fit(model, batches, epochs=1, lr=3e-3, progress=False)
    assert len(outcome.losses) == 4 and outcome.stamp_losses == []


@pytest.mark.parametrize("training", [True, False])
def test_training_and_measuring_give_the_mode_back(model, batches, training):
    model.train(training)
    modes = []
    model.register_forward_hook(lambda m, *_: modes.append(m.training))
    fit(model, batches, epochs=1, progress=False)
    accuracy(model, batches)
    assert modes == [True] * 4 + [False] * 4
    assert model.training is training
    with pytest.raises(ZeroDivisionError):
        fit(model, batches, epochs=1, on_epoch=lambda _: 1 / 0, progress=False)
    assert model.training is training


# ------------------------------------------------------------------------------------------------------------ embed


@pytest.mark.parametrize("method", [RECOMMENDED, PAPER], ids=["recommended", "paper"])
def test_embedding_is_hardening_and_training_by_a_method(model, stamp, batches, method):
    method, twin = replace(method, steps=20), copy.deepcopy(model)
    common = {"lr": 1e-3, "progress": False}
    torch.manual_seed(1)
    back = embed(model, stamp, batches, method=method, epochs=2, **common)
    torch.manual_seed(1)
    expected = backwards(twin, method.readout)
    harden(expected, stamp, steps=20, target=method.target, dropout=method.dropout, **common)
    loss = StampLoss(expected, stamp, dropout=method.dropout)
    fit(twin, batches, epochs=2, stamp_loss=loss, schedule=method.schedule, **common)
    assert back.model is model and back.readout == method.readout
    assert unchanged(model, weights(twin))


def test_embedding_reads_with_what_the_stamp_has_frozen(stamp, batches):
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.other, self.last = nn.Linear(144, 8), nn.Linear(144, 8), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = x.flatten(1)
            return self.last(self.one(x) + self.other(x))

    model, other = Sum(), Sum()
    frozen = freeze(other, torch.zeros(1, *SHAPE))
    method = replace(PAPER, steps=0)
    back = embed(model, replace(stamp, frozen=frozen), batches[:1], method=method, epochs=1, progress=False)
    expected = transpose(model, torch.zeros(1, *SHAPE), readout="paper", frozen=frozen)
    assert torch.equal(back(stamp.keys), expected(stamp.keys))


# --------------------------------------------------------------------------------------------------------- accuracy


def test_accuracy_is_the_share_of_right_answers(batches):
    always_two = nn.Sequential(nn.Flatten(), nn.Linear(144, 4))
    with torch.no_grad():
        always_two[1].weight.zero_()
        always_two[1].bias.copy_(torch.tensor([0.0, 0.0, 1.0, 0.0]))
    assert accuracy(always_two, batches) == 0.25
    assert accuracy(always_two, [(torch.zeros(3, *SHAPE), torch.tensor([2, 2, 1]))]) == pytest.approx(2 / 3)


def test_accuracy_of_nothing(model):
    with pytest.raises(TrainingError, match="no data"):
        accuracy(model, [])


# ----------------------------------------------------------------------------------------------------------- errors


def test_hardening_stops_before_a_loss_that_is_not_finite(model, stamp):
    back = backwards(model)
    with torch.no_grad():
        model[1].weight[0, 0] = math.nan
    before = weights(model)
    with pytest.raises(TrainingError, match="stamp loss is not finite; got: nan.*lower the learning rate"):
        harden(back, stamp, steps=3, target=None, progress=False)
    torch.testing.assert_close(weights(model), before, rtol=0, atol=0, equal_nan=True)


def test_training_stops_before_a_loss_that_is_not_finite(model, batches):
    before = weights(model)
    with pytest.raises(TrainingError, match="task loss is not finite"):
        fit(model, [(torch.full((2, *SHAPE), math.nan), torch.tensor([0, 1]))], progress=False)
    assert unchanged(model, before) and model.training
    with pytest.raises(TrainingError, match="stamp loss is not finite; got: inf"):
        endless = {"stamp_loss": lambda: model[1].weight.sum() * math.inf, "schedule": Alternating(lr=1.0)}
        fit(model, batches, lr=0.0, progress=False, **endless)
    assert unchanged(model, before)


@pytest.fixture
def lagging(monkeypatch) -> Losses:
    """Losses on the CPU, yet read back as seldom as on a GPU would be 7 at a time."""
    monkeypatch.setattr(Losses, "LATENCY", 7)
    losses = Losses(torch.device("meta"))
    losses.bad = torch.zeros(())
    return losses


@pytest.mark.parametrize("optimizer", [steps.adam, sgd, torch.optim.Adam])
def test_no_weight_moves_from_a_loss_that_is_not_finite_until_it_is_read(model, batches, optimizer, lagging):
    descent = optimizer(model.parameters(), lr=1e-2)

    def step(factor: float) -> None:
        loss = F.cross_entropy(model(batches[0][0]), batches[0][1]) * factor
        guarded_step(descent, lagging.keep("task loss", loss), lagging)

    for _ in range(3):
        step(1.0)
    before = weights(model)
    with pytest.raises(TrainingError, match="task loss is not finite; got: inf"):
        for factor in (math.inf, 1.0, 1.0, 1.0):
            step(factor)
    assert unchanged(model, before)
    assert len(lagging.read("task loss")) == 3


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD])
@pytest.mark.parametrize("found", [0.0, 1.0])
def test_a_fused_optimizer_of_torch_rests_while_found_inf_is_set(model, kind, found):
    optimizer = kind(model.parameters(), lr=1.0, fused=True)
    assert optimizer.defaults["fused"]
    before = weights(model)
    for weight in model.parameters():
        weight.grad = torch.full_like(weight, math.nan if found else 1.0)
    optimizer.found_inf = torch.tensor(found)
    optimizer.step()
    assert unchanged(model, before) == bool(found)


def test_losses_are_read_back_several_at_a_time(lagging):
    for value in range(8):
        lagging.keep("task loss", torch.tensor(float(value)))
    assert (len(lagging.values["task loss"]), len(lagging.unread)) == (7, 1)
    assert lagging.read("task loss") == list(range(8)) and lagging.read("stamp loss") == []


@pytest.mark.parametrize(
    "other",
    [
        Stamp.from_texts(["A"], outputs=5, shape=SHAPE, seed=0),
        Stamp.from_texts(["A"], outputs=4, shape=(1, 12, 11), seed=0),
    ],
)
def test_a_stamp_that_does_not_fit(model, other):
    for use in (StampLoss, harden, read):
        with pytest.raises(StampError, match=r"does not fit the model.*expected: keys \(4,\).*outputs= and shape="):
            use(backwards(model), other)


@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_dropout_out_of_range(model, stamp, rate):
    with pytest.raises(TrainingError, match="dropout rate out of range"):
        StampLoss(backwards(model), stamp, dropout=rate)


def test_training_within_autocast_sees_the_weights_of_every_step(model, batches):
    twin = copy.deepcopy(model)
    plain = fit(twin, batches, epochs=3, lr=1e-2, progress=False)
    with torch.autocast("cpu", torch.bfloat16):
        half = fit(model, batches, epochs=3, lr=1e-2, progress=False)
    assert half.losses == pytest.approx(plain.losses, rel=0.05, abs=0.02)
    assert half.losses != plain.losses, "the task runs in the lower precision"
    assert all(weight.dtype == torch.float32 for weight in model.parameters())


@pytest.mark.parametrize("schedule", [Joint, Alternating])
@pytest.mark.parametrize(("every", "count"), [(1, 8), (2, 4), (3, 2), (9, 0)])
def test_the_stamp_has_its_turn_at_every_so_many_batches_of_all_epochs(model, stamp, batches, every, count, schedule):
    loss = steady(backwards(model), stamp)
    done = fit(model, batches[:4], epochs=2, stamp_loss=loss, schedule=schedule(every=every), progress=False)
    assert (len(done.losses), len(done.stamp_losses)) == (8, count)


def test_an_alternating_schedule_has_the_learning_rate_of_the_task_unless_it_has_its_own(model, batches):
    def moved(schedule: Alternating) -> float:
        twin = copy.deepcopy(model)
        fit(twin, batches[:1], lr=0.1, epochs=1, stamp_loss=lambda: twin[1].bias.sum(), schedule=schedule, **quietly)
        return (alone[1].bias - twin[1].bias).mean().item()

    quietly = {"optimizer": sgd, "progress": False}
    alone = copy.deepcopy(model)
    fit(alone, batches[:1], lr=0.1, epochs=1, **quietly)
    assert moved(Alternating()) == pytest.approx(0.1, abs=1e-6)
    assert moved(Alternating(lr=0.5)) == pytest.approx(0.5, abs=1e-6)


def test_a_joint_step_is_down_the_weighted_sum_of_both_losses(model, stamp, batches):
    twin, loss = copy.deepcopy(model), steady(backwards(model), stamp)
    done = fit(model, batches[:1], epochs=1, lr=0.1, stamp_loss=loss, schedule=Joint(1, 3.0), optimizer=sgd)
    by_hand = steady(backwards(twin), stamp)()
    (F.cross_entropy(twin(batches[0][0]), batches[0][1]) + 3 * by_hand).backward()
    for moved, weight in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(moved, weight - 0.1 * weight.grad)
    assert done.stamp_losses == [pytest.approx(by_hand.item())], "told without its weight"


def test_a_rate_needs_a_loader_with_a_length(model, batches):
    with pytest.raises(TrainingError, match="a loader with a length; got: list_iterator"):
        fit(model, iter(batches), rate=lambda done: 1.0, progress=False)


def test_a_stamp_loss_is_the_same_under_autocast(model, stamp):
    loss = steady(backwards(model), stamp)
    expected = loss()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(loss(), expected)
