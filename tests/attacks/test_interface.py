"""Attackers behind an interface: what they answer, and that they hide no weight."""

import copy

import pytest
import torch
from torch import Tensor, nn

from clearstamp.attacks import Attack, Pruning, QueryNoise, Sanitizer, Scene, ScorePerturbation, ScoreRounding
from clearstamp.data import Data
from clearstamp.errors import AttackError
from clearstamp.reading import extract
from clearstamp.scores import correlation
from clearstamp.stamp import Stamp
from clearstamp.transpose import transpose
from clearstamp.transposed.graph import unwrapped
from clearstamp.transposed.queries import read_by_queries
from clearstamp.wrapped import Wrapped
from clearstamp.zoo import networks

SHAPE = (1, 8, 8)
ATTACKS = [QueryNoise(scale=0.1), ScoreRounding(decimals=1), ScorePerturbation(), Sanitizer(epochs=1, width=4)]
every_attack = pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)


@pytest.fixture
def model() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(48, 12), nn.Dropout(0.5), nn.ReLU(), nn.Linear(12, 6)),
    ).eval()


@pytest.fixture
def stamp() -> Stamp:
    return Stamp.from_texts(["A", "B"], outputs=6, shape=SHAPE, seed=0)


@pytest.fixture
def data() -> Data:
    return Data(torch.rand(48, *SHAPE), torch.arange(48) % 6)


def behind(attack: Attack, model: nn.Module, data: Data, stamp: Stamp, seed: int = 0) -> nn.Module:
    """A copy of the model behind the interface of an attack."""
    scene = Scene(copy.deepcopy(model), data, stamp, seed=seed)
    attack.run(scene)
    return scene.model


class Spoken(nn.Module):
    """A model that answers with its inputs."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, images: Tensor) -> Tensor:
        return self.weight * images.flatten(1)


def answers(attack: Attack, logits: Tensor, seed: int = 0) -> Tensor:
    """The probabilities that an interface answers for these logits."""
    stamp = Stamp.from_secrets(torch.rand(1, 1, 1, 6), outputs=6, seed=0)
    return behind(attack, Spoken(), None, stamp, seed)(logits.reshape(-1, 1, 1, 6)).detach().exp()


@every_attack
def test_an_interface_hides_no_weight(attack, model, stamp, data):
    found = attack.apply(model, data, stamp)
    assert isinstance(found.model, Wrapped) and not isinstance(unwrapped(found.model), Wrapped)
    assert not any(part.training for part in found.model.modules())
    inner = unwrapped(found.model).state_dict()
    assert all(torch.equal(inner[name], tensor) for name, tensor in model.state_dict().items())
    assert torch.equal(found.after.reading.images, found.before.reading.images)
    seen = extract(transpose(found.model, torch.zeros(1, *SHAPE)), stamp)
    assert torch.equal(seen, found.before.reading.images)


@every_attack
def test_accuracy_is_that_of_what_the_interface_answers(attack, model, stamp, data):
    found = attack.apply(model, data, stamp, seed=4)
    fresh = behind(attack, model, data, stamp, seed=4) if attack.name != "sanitizer" else found.model
    right = torch.cat([fresh(images).argmax(1) == labels for images, labels in data.loader(250)])
    assert found.after.accuracy == right.double().mean().item()


@every_attack
def test_answers_are_of_single_precision_and_drawn_from_the_scenes_seed_alone(attack, model, stamp, data):
    images, doubles = torch.rand(5, *SHAPE), torch.rand(5, *SHAPE, dtype=torch.float64)
    torch.manual_seed(1)
    first = behind(attack, model, data, stamp, seed=1)
    torch.manual_seed(1)
    again, other = behind(attack, model, data, stamp, seed=1), behind(attack, model, data, stamp, seed=2)
    state = torch.get_rng_state()
    answer = first(images)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(answer, again(images))
    assert answer.shape == (5, 6) and answer.isfinite().all()
    assert torch.equal(answer, other(images)) == (attack.name == "score-rounding")
    assert first.double()(doubles).dtype == torch.float32


@every_attack
@pytest.mark.parametrize("name", [name for name in networks.MODELS if f"{name}-narrow" not in networks.MODELS])
def test_every_network_of_the_zoo_answers_behind_every_interface(name, attack):
    shape = (1, 8, 8) if name.startswith(("cnn", "fc", "vit")) else (3, 16, 16)
    model = networks.build(name, shape, 6, seed=0).eval()
    stamp = Stamp.from_texts(["A"], outputs=6, shape=shape, seed=0)
    wrapped = behind(attack, model, Data(torch.rand(8, *shape), torch.arange(8) % 6), stamp)
    images = torch.rand(4, *shape)
    with torch.no_grad():
        plain, answer = model(images), wrapped(images)
        wrapped.train()(images)
    assert answer.shape == plain.shape and answer.dtype == torch.float32 and answer.isfinite().all()
    assert not torch.equal(answer, plain)
    assert attack.name != "score-perturbation" or torch.equal(answer.argmax(1), plain.argmax(1))
    assert all(part.training for part in wrapped.modules()) and not model.training


def test_query_noise_is_of_the_spread_that_was_asked_for_and_new_at_every_query():
    blank = torch.zeros(500, 6)
    noisy = behind(QueryNoise(scale=0.3), Spoken(), None, Stamp.from_secrets(torch.rand(1, 1, 1, 6), outputs=6, seed=0))
    first, second = (noisy(blank).detach() for _ in range(2))
    for answer in (first, second):
        assert answer.std().item() == pytest.approx(0.3, rel=0.05) and abs(answer.mean().item()) < 0.02
    assert abs(torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1]) < 0.1
    assert torch.equal(answers(QueryNoise(scale=0.0), blank), blank.exp())


def test_rounded_scores_are_probabilities_of_so_many_decimals():
    logits = 3 * torch.randn(50, 6, dtype=torch.float64)
    for decimals in (1, 3):
        scores, expected = answers(ScoreRounding(decimals=decimals), logits).double(), logits.softmax(1)
        steps = scores * 10**decimals
        torch.testing.assert_close(steps, steps.round(), rtol=0, atol=1e-3)
        assert (scores - expected).abs().max() <= 0.5 * 10**-decimals + 1e-6
    assert 0 < answers(ScoreRounding(decimals=1), logits).min() < 1e-30, "a probability that was rounded to 0"


@pytest.mark.parametrize("kept", [2, 3, 5])
def test_perturbed_scores_keep_the_order_of_the_first_classes(kept):
    logits = 2 * torch.randn(400, 6, dtype=torch.float64)
    scores, plain = answers(ScorePerturbation(kept=kept), logits).double(), logits.softmax(1)
    torch.testing.assert_close(scores.sum(1), torch.ones(400).double(), rtol=1e-6, atol=1e-6)
    assert torch.equal(scores.argsort(1, descending=True)[:, :kept], plain.argsort(1, descending=True)[:, :kept])
    change = (scores - plain).abs() > 1e-6
    assert (change.sum(1) <= 2).all() and change.any(1).sum() > 350
    assert (scores.amax(1) <= plain.amax(1) + 1e-6).all()
    ranked = plain.sort(descending=True).values
    most = torch.minimum(ranked[:, 0] - ranked[:, 1], ranked[:, kept - 1] - ranked[:, -1])
    shares = (ranked[:, 0] - scores.amax(1)) / most
    assert shares.mean().item() == pytest.approx(0.5, abs=0.05), "uniform"
    assert shares.max() > 0.95


def test_scores_are_perturbed_anew_at_every_query(model, stamp, data):
    wrapped, images = behind(ScorePerturbation(), model, data, stamp), torch.rand(3, *SHAPE)
    assert not torch.equal(wrapped(images), wrapped(images))


def test_a_sanitizer_learns_what_images_have_in_common_and_no_more(model, stamp):
    """A place and a brightness come through; noise does not."""
    centres = torch.randint(2, 6, (256, 2))
    grid = torch.stack(torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij"))
    images = torch.exp(-((grid - centres[:, :, None, None]) ** 2).sum(1, keepdim=True) / 4)
    found = Sanitizer(epochs=30, lr=1e-2, width=8).apply(model, Data(images, torch.arange(256) % 6), stamp)
    assert found.steps == 120
    with torch.no_grad():
        asked, noisy = (found.model.asked(x) for x in (images, images + 0.2 * torch.randn(images.shape)))
    assert (asked - images).square().mean() < 0.1 * images.var(0).mean()
    assert (noisy - images).square().mean() < 0.5 * 0.2**2


def test_noise_and_rounding_hit_an_owner_who_has_to_ask(model, stamp, data):
    model = model.double()
    exact = transpose(model, torch.zeros(1, *SHAPE, dtype=torch.float64), readout="gradient")(stamp.keys.double())

    def seen(attack: Attack) -> float:
        ask = behind(attack, model, data, stamp)
        scores = isinstance(attack, ScoreRounding)

        def asked(images: Tensor) -> Tensor:
            with torch.no_grad():
                answer = ask(images.double())
            return answer.exp() if scores else answer

        found = read_by_queries(asked, stamp.keys, SHAPE, step=0.01, probabilities=scores).images
        return correlation(found.float(), exact.detach().float()).min().item()

    assert seen(QueryNoise(scale=0.0)) > 0.95
    assert seen(QueryNoise(scale=0.5)) < 0.5 and seen(ScoreRounding(decimals=2)) < 0.5


def test_an_attack_on_weights_goes_through_an_interface(model, stamp, data):
    wrapped = QueryNoise().apply(model, data, stamp).model
    found, plain = (Pruning(amount=0.5).apply(each, data, stamp) for each in (wrapped, model))
    assert torch.equal(unwrapped(found.model)[5].weight, plain.model[5].weight)
    assert torch.equal(found.after.reading.images, plain.after.reading.images)


@pytest.mark.parametrize(
    ("attack", "problem"),
    [
        (QueryNoise(scale=-1.0), "noise out of range.*-1.0"),
        (ScoreRounding(decimals=0), "number of decimals out of range.*0.*1 to 7"),
        (ScorePerturbation(kept=1), "number of classes out of range"),
        (Sanitizer(epochs=0), "number of epochs out of range"),
        (Sanitizer(width=0), "width out of range"),
    ],
    ids=repr,
)
def test_what_cannot_be_done_is_one_clear_error(attack, problem, model, stamp, data):
    with pytest.raises(AttackError, match=problem):
        attack.apply(model, data, stamp)


def test_a_sanitizer_needs_images(model, stamp):
    with pytest.raises(AttackError, match="this attack needs images"):
        Sanitizer().run(Scene(model, None, stamp))
