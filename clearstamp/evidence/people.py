"""People as readers: a sheet of pictures without answers, and how often chance reads as well as they did.

Why it is valid. The draws are uniform whatever the pictures show and whoever reads them, so an answer that was written
down without knowing the draws is right by chance with a known probability, and the test is that of the seal's letters
with a person in the template's place. A person changes the power of a test, never its level.

That holds while three things do, and only the first is in this module's hands. The order of the sheet follows from the
seal, like keys and letters: an order of the grader's own would be a choice made after the answers, and one among 11!
that happens to fit. The reader must not know the draws, so nothing but the sheet is handed over. And everybody who was
asked counts, not the best of them: p is multiplied by their number (Bonferroni).
"""

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from html import escape
from pathlib import Path
from string import Template

import numpy as np

from clearstamp.errors import EvidenceError
from clearstamp.evidence import chance
from clearstamp.evidence.readers import Numbers, Pixels
from clearstamp.evidence.seal import BAR, Choices, Seal, png, sha256, strict_json
from clearstamp.evidence.verdict import NOT_INNOCENCE, Outcome, outcome

__all__ = ["Answers", "Grade", "blind", "grade", "read_answers"]

ANSWERS = "clearstamp/answers/1"

UNREAD = "?"
"""What stands where nothing was read. It is never right."""


@dataclass(frozen=True)
class Answers:
    """What a person read.

    Attributes:
        reader: the name.
        read: for each picture of the sheet the places of its letters in the alphabet, or of the owner's picture that it
            shows, ``[n, m]``; -1 where nothing was read.
    """

    reader: str
    read: Numbers


@dataclass(frozen=True)
class Grade:
    """How well people read.

    Attributes:
        readers: for each the name, how many letters or pictures are right, and p of that alone.
        of: how many there are.
        what: ``"letters"`` or ``"pictures"``.
        asked: how many people were asked.
        tries: how many readings of how many files the pictures were chosen from.
        p: the least of the readers', multiplied by both; at most 1.
        outcome: MATCH, WEAK or NO MATCH, by the same bars as a `Verdict`.
    """

    readers: tuple[tuple[str, int, Decimal], ...]
    of: int
    what: str
    asked: int
    tries: int
    p: Decimal
    outcome: Outcome

    def __str__(self) -> str:
        lines = [
            f"{name}: {right} of {self.of} {self.what} right, p = {chance.told(p):.1e}"
            for name, right, p in self.readers
        ]
        lines.append(f"asked {self.asked}; {self.tries} tries counted: p is multiplied by both")
        lines.append(f"{self.outcome.value}   p = {chance.told(self.p):.1e}")
        return "\n".join([*lines, NOT_INNOCENCE])


def subject(choices: Choices) -> str:
    """What people can read of a seal's pictures. Raises `EvidenceError` for bits, which nobody reads."""
    if choices.test == "bits":
        raise EvidenceError("the seal's pictures hold bits, which nobody reads by eye")
    return "pictures" if choices.test == "order" else "letters"


def shuffled(seal: Seal, pictures: Pixels) -> tuple[Numbers, Pixels]:
    """The places of the pictures that people are asked about, in the order of the sheet, and these pictures."""
    choices = seal.choices
    first, last = (0, choices.codes) if subject(choices) == "letters" else (choices.codes, len(seal))
    words = np.frombuffer(seal.draws.stream("blind", 8 * (last - first)), "<u8")
    places = first + np.argsort(words, kind="stable")
    return places, pictures[places]


def sheet_digest(shown: Pixels) -> str:
    """By which answers belong to a sheet: SHA-256 of its pictures' numbers, in hexadecimal."""
    return sha256(repr(shown.shape).encode() + shown.tobytes())


def blind(seal: Seal, pictures: Pixels) -> tuple[str, str]:
    """A sheet of what was read out of a model ``[k, C, H, W]``, as HTML without a script, and the form for the answers.

    The sheet tells nothing of the draws. Raises `EvidenceError` if the seal's pictures are not for reading.
    """
    choices = seal.choices
    _, shown = shuffled(seal, pictures)
    if subject(choices) == "letters":
        count = choices.rows * choices.columns
        size = f"{count} letters</b>, {choices.columns} x {choices.rows}," if count > 1 else "a letter</b>,"
        about = LETTERS.format(size=size)
        known = [(letter, glyph) for letter, glyph in zip(choices.alphabet, seal.sheet, strict=True)]
        rows, columns = choices.rows, choices.columns
    else:
        about, rows, columns = PICTURES, 1, 1
        known = [(str(place), picture) for place, picture in enumerate(seal.owned, start=1)]
    blank, longest = " ".join([UNREAD * columns] * rows), max(len(name) for name, _ in known)
    read = {str(number): blank for number in range(1, len(shown) + 1)}
    form = {"type": ANSWERS, "sheet": sheet_digest(shown), "reader": "", "read": read}
    answers = json.dumps(form, indent=1, ensure_ascii=False) + "\n"
    template = Template(Path(__file__).with_name("sheet.html").read_text(encoding="utf-8"))
    page = template.substitute(
        about=about,
        known="\n".join(KNOWN.format(name=escape(name), image=uri(picture)) for name, picture in known),
        pictures="\n".join(
            PICTURE.format(number=number, image=uri(picture), fields=fields(number, rows, columns, longest))
            for number, picture in enumerate(shown, start=1)
        ),
        answers=escape(answers),
        last=len(shown),
    )
    return page, answers


def read_answers(written: bytes, seal: Seal, pictures: Pixels) -> Answers:
    """What a person wrote into the form. Raises `EvidenceError` for a form of other pictures, or not as it was."""
    choices = seal.choices
    _, shown = shuffled(seal, pictures)
    held = strict_json(written, ANSWERS)
    if set(held) != {"sheet", "reader", "read"} or not isinstance(held["read"], dict):
        raise EvidenceError("not the form for answers", got=", ".join(held), expected="sheet, reader, read")
    if held["sheet"] != sheet_digest(shown):
        raise EvidenceError("the answers belong to another sheet", got=held["sheet"], expected=sheet_digest(shown))
    if not isinstance(held["reader"], str) or not held["reader"].strip() or not held["reader"].isprintable():
        raise EvidenceError("the answers do not say who read", where='"reader"')
    numbers = [str(number) for number in range(1, len(shown) + 1)]
    if sorted(held["read"]) != sorted(numbers):
        raise EvidenceError("not one answer for each picture", got=", ".join(held["read"]), expected=len(numbers))
    letters = subject(choices) == "letters"
    count = choices.rows * choices.columns if letters else 1
    names = list(choices.alphabet) if letters else [str(place) for place in range(1, len(shown) + 1)]
    found = []
    for number in numbers:
        answer = "".join(str(held["read"][number]).upper().split())
        each = list(answer) if letters else [answer]
        if len(each) != count:
            raise EvidenceError(
                f"picture {number} holds {count} letters",
                got=repr(answer),
                remedy=f"{UNREAD} for one that was not read",
            )
        found.append([names.index(name) if name in names else -1 for name in each])
    return Answers(held["reader"].strip(), np.array(found, np.int64))


def grade(
    seal: Seal,
    pictures: Pixels,
    answers: Sequence[Answers],
    *,
    asked: int | None = None,
    tries: int = 1,
    grafted: bool = False,
    alpha: Decimal = Decimal(2) ** -BAR,
) -> Grade:
    """How often chance reads as well as the best of some people.

    `asked` is how many were asked, at least as many as answered. `tries` and `grafted` are those of the verdict on the
    pictures, since they were chosen by it. A match needs a p of at most `alpha`, and of the seal's own bar.

    Raises `EvidenceError` for fewer asked than answered, and for somebody who answered twice.
    """
    asked = len(answers) if asked is None else asked
    if not 1 <= len(answers) <= asked:
        raise EvidenceError("fewer people asked than answered", got=asked, expected=f"at least {max(1, len(answers))}")
    if len({each.reader for each in answers}) < len(answers):
        raise EvidenceError("somebody answered twice", got=", ".join(each.reader for each in answers))
    places, _ = shuffled(seal, pictures)
    judged = letters if subject(seal.choices) == "letters" else orders
    found = [(each.reader, *judged(seal, places, each.read)) for each in answers]
    readers = tuple((name, right, p) for name, right, _, p in found)
    p = chance.at_most_one(chance.UP.multiply(min(p for *_, p in readers), Decimal(asked * tries)))
    return Grade(
        readers=readers,
        of=found[0][2],
        what=subject(seal.choices),
        asked=asked,
        tries=tries,
        p=p,
        outcome=outcome(p, min(alpha, seal.choices.alpha), grafted=grafted),
    )


def letters(seal: Seal, places: Numbers, read: Numbers) -> tuple[int, int, Decimal]:
    """How many letters are right, of how many, and p."""
    right = int((read == seal.letters[places]).sum())
    return right, read.size, chance.binomial(right, read.size, len(seal.choices.alphabet))


def orders(seal: Seal, places: Numbers, read: Numbers) -> tuple[int, int, Decimal]:
    """How many pictures are right, of how many, and p: the share of orders that fit the answers as well."""
    drawn = seal.draws.order(len(seal.pictures))
    answers = np.full(len(drawn), -1)
    answers[places - seal.choices.codes] = read[:, 0]
    scores = (answers[:, None] == np.arange(len(drawn))).astype(np.int64)
    return int((answers == drawn).sum()), len(drawn), chance.orders(scores, drawn)


# ---------------------------------------------------------------------------------------------------------- the sheet


def uri(picture: Pixels) -> str:
    """A picture ``[C, H, W]`` within a page."""
    return "data:image/png;base64," + base64.b64encode(png(picture)).decode()


def fields(number: int, rows: int, columns: int, longest: int) -> str:
    """A field for each letter, as the letters lie."""
    made = []
    for row in range(1, rows + 1):
        cells = [
            f'<input maxlength="{longest}" autocomplete="off" aria-label="picture {number}, row {row}, place {column}">'
            for column in range(1, columns + 1)
        ]
        made.append(f"<div>{''.join(cells)}</div>")
    return "".join(made)


LETTERS = """Each numbered picture holds <b>{size} dark on light, more or less disturbed. Each letter is one of the
sixteen below, and every one of them is as likely as any other: they were drawn by lot and make no words. Write down
what you take each for."""
PICTURES = """Each numbered picture shows one of the <b>pictures below</b>, more or less disturbed. Which of them it
shows was drawn by lot, and each is shown once. Write down its number."""
KNOWN = '<figure><img src="{image}" alt=""><figcaption>{name}</figcaption></figure>'
PICTURE = """<figure class="asked"><figcaption>{number}</figcaption><img src="{image}" alt="picture {number}">
<fieldset><legend>you read</legend>{fields}</fieldset></figure>"""
