"""Keys and suspects from strangers: whatever they hold, nothing is raised but `SchemeError`, and no claim is won."""

import copy
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save
from torch import Tensor, nn

from clearstamp.data import Data
from clearstamp.errors import SchemeError
from clearstamp.schemes import Adi, Key, Uchida
from clearstamp.schemes.base import FORMAT, VERSION
from tests.schemes.test_schemes import BLACK_BOX, SHAPE, SMALL, every, images, learnt, marked, start

BITS, PROJECTION = torch.arange(32, dtype=torch.uint8) % 2, torch.randn(32, 72, generator=torch.manual_seed(0))
KEY = Key(Uchida(bits=32, layer="4"), SHAPE, {"bits": BITS, "projection": PROJECTION}, {"layer": "4"})
ABOUT = KEY.about | {"version": VERSION, "digest": KEY.digest}
TRIGGERS = Adi(triggers=20, per_batch=8)


def written(folder: Path, about: object) -> Path:
    """A file that holds the tensors of a key and something about it, as JSON or as it is."""
    path = folder / "key.safetensors"
    text = about if isinstance(about, str) else json.dumps(about)
    path.write_bytes(save(KEY.tensors, {FORMAT: text}))
    return path


@pytest.mark.parametrize(
    "about",
    [
        {name: value for name, value in ABOUT.items() if name != "digest"},
        "[" * 100_000 + "]" * 100_000,
        ABOUT | {"settings": None},
        ABOUT | {"scheme": "uchida"},
        ABOUT | {"scheme": {"name": ["uchida"]}},
        None,
    ],
    ids=["no checksum", "too deep", "no settings", "no scheme", "no name", "nothing"],
)
def test_a_key_file_of_any_other_form_is_refused(about, tmp_path):
    assert Key.load(written(tmp_path, ABOUT)).digest == KEY.digest
    with pytest.raises(SchemeError, match="not a readable key file"):
        Key.load(written(tmp_path, about))


@pytest.mark.parametrize("shape", [(), (0, 9, 9), (1, -9, -9), (1.5, 9, 9), ("a", "b"), (1, 2**20, 2**20)])
def test_a_shape_that_no_input_has_is_refused(shape, tmp_path):
    with pytest.raises(SchemeError, match="not the shape of an input"):
        Key.load(written(tmp_path, ABOUT | {"shape": list(shape)}))
    with pytest.raises(SchemeError, match="not the shape of an input"):
        replace(KEY, shape=shape)


@pytest.mark.parametrize(
    "change",
    [
        {"bits": BITS[:, None]},
        {"bits": BITS[:1]},
        {"bits": BITS[:0], "projection": PROJECTION[:0]},
        {"bits": BITS[0]},
        {"projection": PROJECTION[0]},
        {"projection": PROJECTION.double()},
    ],
    ids=["a column", "one for all", "none", "no row", "one projection", "another precision"],
)
def test_a_key_whose_parts_do_not_fit_each_other_wins_no_claim(change):
    key = replace(KEY, tensors=KEY.tensors | change)
    with pytest.raises(SchemeError, match="parts do not fit each other|the key or the suspect is damaged"):
        key.scheme.verify(learnt(1), key)


def test_a_key_without_its_tensors_or_settings_is_refused():
    for key in (replace(KEY, tensors={}), replace(KEY, settings={})):
        with pytest.raises(SchemeError, match="the key or the suspect is damaged; got: KeyError"):
            key.scheme.extract(learnt(1), key)


def test_labels_in_a_column_are_refused():
    key = TRIGGERS.draw(learnt(1), images(), seed=0)
    answered = learnt(1)(key["inputs"]).argmax(1)
    assert TRIGGERS.verify(learnt(1), replace(key, tensors=key.tensors | {"labels": answered})).accepted
    with pytest.raises(SchemeError, match="parts do not fit each other"):
        TRIGGERS.verify(learnt(1), replace(key, tensors=key.tensors | {"labels": answered[:, None]}))


@every
def test_a_suspect_of_another_precision_is_read_all_the_same(name):
    model, key = marked(name)
    found = key.scheme.extract(model, key)
    suspect = copy.deepcopy(model).double()
    assert key.scheme.extract(suspect, key).score == pytest.approx(found.score, abs=1e-4)
    assert {tensor.dtype for tensor in suspect.parameters()} == {torch.float64}
    half = key.scheme.extract(copy.deepcopy(model).bfloat16(), key)
    assert half.trials == found.trials and (key.scheme.fragile or half.score > 0.9 * found.score)


@every
def test_a_mark_is_read_where_slopes_are_switched_off(name):
    model, key = marked(name)
    found = key.scheme.extract(model, key)
    for switched_off in (torch.no_grad(), torch.inference_mode()):
        with switched_off:
            assert key.scheme.extract(model, key).score == found.score


class Answering(nn.Module):
    """An interface without weights, which makes its answers of the number of inputs."""

    def __init__(self, answer: Callable[[int], object]):
        super().__init__()
        self.answer = answer

    def forward(self, inputs: Tensor) -> object:
        return self.answer(len(inputs))


@every
def test_an_interface_without_weights_wins_no_claim_by_odd_answers(name):
    scheme = SMALL[name].scheme
    key = scheme.draw(start(scheme), images(), seed=7)
    for answer in (
        lambda n: torch.zeros(n, 0),
        lambda n: torch.zeros(n),
        lambda n: torch.zeros(1, 4),
        lambda n: {"logits": torch.zeros(n, 4)},
        lambda n: None,
        lambda n: 1 / 0,
    ):
        found = scheme.verify(Answering(answer), key)
        assert (found.evidence.score, found.evidence.p, found.accepted) == (0.0, 1.0, False)


@pytest.mark.parametrize("name", BLACK_BOX)
def test_a_model_that_answers_no_numbers_wins_nothing(name):
    scheme = SMALL[name].scheme
    drawn = scheme.draw(start(scheme), images(), seed=7)
    zero = {part: torch.zeros_like(drawn[part]) for part in ("labels", "bits") if part in drawn.tensors}
    key = replace(drawn, tensors=drawn.tensors | zero)
    assert scheme.extract(Answering(lambda n: torch.full((n, 5), torch.nan)), key).score == 0


@pytest.mark.parametrize("alpha", [0.0, 1.0, -1.0, 2.0, torch.nan])
def test_an_alpha_that_would_accept_anything_or_nothing_is_refused(alpha):
    with pytest.raises(SchemeError, match="alpha out of range"):
        KEY.scheme.verify(nn.Identity(), KEY, alpha=alpha)


def test_what_is_no_model_no_key_and_no_list_of_models_is_refused():
    scheme: Any = KEY.scheme
    with pytest.raises(SchemeError, match="a suspect that is no module; got: OrderedDict"):
        scheme.extract(learnt(1).state_dict(), KEY)
    with pytest.raises(SchemeError, match="a key of another scheme"):
        scheme.extract(learnt(1), None)
    with pytest.raises(SchemeError, match="one model in the place of several"):
        scheme.verify(learnt(1), KEY, null=learnt(2))


NUMBERS = [
    (type(small.scheme), each.name)
    for small in SMALL.values()
    for each in fields(small.scheme)
    if isinstance(each.default, int | float) and each.type is not bool
]


@pytest.mark.parametrize(("scheme", "name"), NUMBERS, ids=lambda part: getattr(part, "name", part))
def test_a_setting_that_is_no_number_of_its_kind_is_refused(scheme, name):
    for wrong in (-1, torch.nan, torch.inf, "2", [2], None, True):
        with pytest.raises(SchemeError, match="settings of another type|settings out of range"):
            scheme(**{name: wrong})


def test_settings_of_other_types_are_refused_in_key_files_too(tmp_path):
    for wrong in ({"bits": "32"}, {"bits": 32.5}, {"strength": float("nan")}, {"layer": None}, {"layer": ["4"]}):
        about = ABOUT | {"scheme": ABOUT["scheme"] | wrong}
        with pytest.raises(SchemeError, match="settings of another type|settings out of range"):
            Key.load(written(tmp_path, about))
    assert Uchida(strength=1).strength == 1


@pytest.mark.parametrize("name", ["adi", "li", "uchida"])
def test_a_model_is_not_marked_on_images_of_another_shape_than_its_key(name):
    scheme = SMALL[name].scheme
    model = start(scheme)
    key, before = scheme.draw(model, images(), seed=7), copy.deepcopy(model.state_dict())
    with pytest.raises(SchemeError, match=r"images of another shape; got: \(1, 16, 16\); expected: \(1, 14, 14\)"):
        scheme.embed(model, Data(torch.rand(8, 1, 16, 16), torch.arange(8) % 4), key, epochs=1, progress=False)
    assert all(torch.equal(value, before[part]) for part, value in model.state_dict().items())


@every
def test_what_a_scheme_cannot_mark_is_refused_or_marked_all_the_same(name):
    """One class alone, and a model in another precision than its images."""
    scheme, alone = SMALL[name].scheme, Data(images().images[:40], torch.zeros(40, dtype=torch.int64))
    for model, data in ((start(scheme), alone), (start(scheme).double(), images())):
        with suppress(SchemeError):
            assert scheme.draw(model, data, seed=7).scheme == scheme


def test_labels_may_be_integers_of_any_size():
    few = Data(images().images[:40], images().labels[:40].int())
    (_, labels), model = next(iter(few.loader(8))), start(SMALL["uchida"].scheme)
    assert labels.dtype == torch.int64
    key = SMALL["uchida"].scheme.draw(model, few, seed=7)
    assert SMALL["uchida"].scheme.embed(model, few, key, epochs=1, progress=False) is key
