"""People as readers: the sheet tells nothing, and what is counted is exact."""

import hashlib
import json
import re
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from html.parser import HTMLParser
from itertools import permutations
from math import comb
from pathlib import Path

import numpy as np
import pytest

from clearstamp.errors import EvidenceError, SealError
from clearstamp.evidence import Outcome, Seal
from clearstamp.evidence.people import Answers, blind, grade, read_answers, shuffled


def perfect(seal: Seal) -> dict[str, str]:
    """The answers of somebody who reads the seal's own pictures without a slip."""
    places, _ = shuffled(seal, seal.secrets())
    if seal.choices.test == "order":
        order = seal.draws.order(len(seal.pictures))
        return {str(n): str(order[place - seal.choices.codes] + 1) for n, place in enumerate(places, 1)}
    words = ["".join(seal.choices.alphabet[letter] for letter in row) for row in seal.letters]
    return {str(n): f"{words[place][:2]} {words[place][2:]}" for n, place in enumerate(places, 1)}


def answered(seal: Seal, read: dict[str, str], reader: str = "Ada", **other: object) -> Answers:
    form = json.loads(blind(seal, seal.secrets())[1])
    return read_answers(json.dumps(form | {"reader": reader, "read": read} | other).encode(), seal, seal.secrets())


def graded(seal: Seal, *answers: Answers, **given):
    return grade(seal, seal.secrets(), answers, **given)


def near(p: Decimal, exact: Fraction) -> bool:
    """Rounded up in the fortieth digit."""
    return exact <= Fraction(p) < exact * (1 + Fraction(1, 10**38))


def test_a_perfect_reader_of_letters_has_the_best_p(letters: Seal):
    found = graded(letters, answered(letters, perfect(letters)))
    assert (found.readers[0][:2], found.of, found.what) == (("Ada", 44), 44, "letters")
    assert found.outcome is Outcome.MATCH
    assert near(found.p, Fraction(1, 16**44))
    assert str(found).startswith("Ada: 44 of 44 letters right, p = 1.1e-53\nasked 1; 1 tries counted")
    assert str(found).endswith("not the probability that the model is innocent.")


def test_wrong_letters_and_such_as_are_none_are_not_right(letters: Seal):
    read = perfect(letters)
    read["1"] = "?" + read["1"][1:]
    read["2"] = ("4" if read["2"][0] != "4" else "5") + read["2"][1:]
    read["3"] = read["3"][:-1] + "O"
    read["4"] = read["4"].lower().replace(" ", "")
    (found,) = graded(letters, answered(letters, read)).readers
    share = Fraction(sum(comb(44, hits) * 15 ** (44 - hits) for hits in range(41, 45)), 16**44)
    assert found[1] == 41 and near(found[2], share)


def test_everybody_who_was_asked_and_every_try_counts(letters: Seal):
    good, none = answered(letters, perfect(letters)), answered(letters, dict.fromkeys(perfect(letters), "????"), "Bo")
    alone = graded(letters, good).p
    assert graded(letters, none).p == 1 and graded(letters, none).outcome is Outcome.NO_MATCH
    assert graded(letters, none, good).p == graded(letters, good, asked=2).p
    assert near(graded(letters, good, asked=2).p, 2 * Fraction(alone))
    assert near(graded(letters, good, asked=3, tries=4).p, 12 * Fraction(alone))
    with pytest.raises(EvidenceError, match="fewer people asked than answered; got: 1; expected: at least 2"):
        graded(letters, none, good, asked=1)
    with pytest.raises(EvidenceError, match="somebody answered twice; got: Ada, Ada"):
        graded(letters, good, good)
    with pytest.raises(EvidenceError, match="fewer people asked than answered"):
        graded(letters)


def test_the_bar_is_the_graders_and_a_graft_supports_at_most(letters: Seal):
    good = answered(letters, perfect(letters))
    assert graded(letters, good, alpha=Decimal("1e-60")).outcome is Outcome.WEAK
    assert graded(letters, good, grafted=True).outcome is Outcome.SUPPORTS


def test_pictures_are_assigned_and_p_counts_orders(ordered: Seal):
    """Against all 120 orders, for answers with repetitions and gaps too."""
    rng = np.random.default_rng(0)
    order = ordered.draws.order(5)
    places, _ = shuffled(ordered, ordered.secrets())
    assert near(graded(ordered, answered(ordered, perfect(ordered))).p, Fraction(1, 120))
    for _ in range(20):
        said = rng.integers(-1, 5, 5)
        found = graded(ordered, Answers("Ada", said[:, None]))
        by_key = said[np.argsort(places)]
        right = int((by_key == order).sum())
        assert found.readers[0][1] == right and found.what == "pictures"
        as_good = sum(int((by_key == np.array(each)).sum()) >= right for each in permutations(range(5)))
        assert near(found.p, Fraction(as_good, 120))


def test_only_the_pictures_that_the_test_counts_are_shown(photographs: list[Path]):
    seal = Seal.make(outputs=10, shape=(1, 28, 28), images=photographs)
    places, shown = shuffled(seal, seal.secrets())
    assert sorted(places) == list(range(11)) and np.array_equal(shown, seal.secrets()[places])


def test_the_order_of_the_sheet_is_the_seals(letters: Seal):
    """A stream of the root of its own: nobody chooses it, and it says nothing of the letters."""
    places, _ = shuffled(letters, letters.secrets())
    assert sorted(places) == list(range(11)) and list(places) != list(range(11))
    assert np.array_equal(places, shuffled(letters, np.zeros_like(letters.secrets()))[0])
    assert not np.array_equal(places, shuffled(replace(letters, seed=bytes(32)), letters.secrets())[0])
    stream = hashlib.shake_256(letters.draws.root + b"\0blind").digest(88)
    ranks = [int.from_bytes(stream[start : start + 8], "little") for start in range(0, 88, 8)]
    assert [ranks[place] for place in places] == sorted(ranks)


def test_nobody_reads_bits(coded: Seal):
    with pytest.raises(EvidenceError, match="bits, which nobody reads by eye"):
        blind(coded, coded.secrets())


class Page(HTMLParser):
    """What a page holds: its tags with their attributes, and its text."""

    def __init__(self, page: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_sheet_is_one_page_without_a_script_that_tells_nothing(letters: Seal):
    """A flat reading makes a page that does not depend on the letters, and every page carries all that it needs."""
    secrets = letters.secrets()
    grey = np.full_like(secrets, 128)
    page, form = blind(letters, grey)
    drawn_otherwise = replace(letters, seed=bytes(32))
    assert (page, form) == blind(drawn_otherwise, grey)
    held = Page(blind(letters, secrets)[0])
    names = [name for name, _ in held.tags]
    assert names.count("script") == 0 and names.count("img") == 16 + 11 and names.count("input") == 44
    sources = [attributes[each] for _, attributes in held.tags for each in ("src", "href") if each in attributes]
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert not any(each.startswith("on") for _, attributes in held.tags for each in attributes)
    assert letters.commitment not in held.text and letters.seed.hex() not in held.text
    labels = [attributes["aria-label"] for name, attributes in held.tags if name == "input"]
    assert labels[:2] == ["picture 1, row 1, place 1", "picture 1, row 1, place 2"] and len(set(labels)) == 44


def test_the_sheet_of_pictures_shows_the_owners_in_their_own_order(ordered: Seal):
    held = Page(blind(ordered, ordered.secrets())[0])
    images = [attributes["src"] for name, attributes in held.tags if name == "img"]
    given, asked = images[:5], images[5:]
    answers = [int(perfect(ordered)[str(number)]) for number in range(1, 6)]
    assert [given[answer - 1] for answer in answers] == asked and len(set(given)) == 5
    assert [attributes["maxlength"] for name, attributes in held.tags if name == "input"] == ["1"] * 5


def test_the_form_as_it_comes_is_an_answer_in_which_nothing_is_right(letters: Seal):
    form = blind(letters, letters.secrets())[1]
    with pytest.raises(EvidenceError, match='do not say who read; where: "reader"'):
        read_answers(form.encode(), letters, letters.secrets())
    named = read_answers(form.replace('"reader": ""', '"reader": " Ada "').encode(), letters, letters.secrets())
    assert named.reader == "Ada" and (named.read == -1).all() and named.read.shape == (11, 4)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda form: form | {"sheet": "0" * 64}, "the answers belong to another sheet"),
        (lambda form: form | {"more": 1}, "not the form for answers; got: .*more"),
        (lambda form: form | {"read": []}, "not the form for answers"),
        (lambda form: form | {"reader": 7}, "do not say who read"),
        (lambda form: form | {"reader": "\x1b[2J"}, "do not say who read"),
        (lambda form: form | {"read": form["read"] | {"12": "AAAA"}}, "not one answer for each picture"),
        (lambda form: form | {"read": form["read"] | {"3": "AAAAA"}}, "picture 3 holds 4 letters; got: 'AAAAA'"),
        (lambda form: form | {"read": form["read"] | {"3": ["A"]}}, "picture 3 holds 4 letters"),
        (lambda form: form | {"type": "clearstamp/seal/1"}, "not of the expected type"),
    ],
)
def test_answers_that_cannot_be_graded(letters: Seal, spoil, message):
    form = json.loads(blind(letters, letters.secrets())[1]) | {"reader": "Ada"}
    written = json.dumps(spoil(form)).encode()
    with pytest.raises((EvidenceError, SealError), match=message):
        read_answers(written, letters, letters.secrets())


def test_answers_are_read_strictly(letters: Seal):
    form = blind(letters, letters.secrets())[1]
    twice = re.sub(r'"reader": ""', '"reader": "Ada", "reader": "Bo"', form)
    with pytest.raises(SealError, match="a field occurs twice; got: .*reader"):
        read_answers(twice.encode(), letters, letters.secrets())
