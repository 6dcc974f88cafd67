"""The page that people read: nothing in it acts, and everything that counts is on it."""

from dataclasses import replace
from decimal import Decimal
from html.parser import HTMLParser

import pytest
import torch

from clearstamp.evidence import Evidence, Outcome
from clearstamp.evidence.report import COMMANDS, NOT_SHOWN, meaning, plain, power, render
from tests.evidence.bundles import Case, edited, repainted


class Page(HTMLParser):
    """Elements, their attributes, and the text of a page."""

    def __init__(self, content: bytes):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(content.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


HOSTILE = "\"'><script>alert(1)</script><img src=x onerror=alert(2)>\x1b[31m\u202e"


def test_whatever_others_wrote_is_shown_and_does_nothing(evidence: Evidence):
    """Every text of suspect.json at once; the owner's words in the seal have a script too."""
    names = ("architecture", "held", "prefix", "head", "source", "obtained")
    files = [{"name": HOSTILE, "size": 1, "sha256": HOSTILE}]
    said = edited(evidence, "suspect.json", files=files, **dict.fromkeys(names, HOSTILE))
    page = Page(render(Evidence(evidence.members | said)))
    text = "h1 h2 section strong p span sup b em code pre ins del"
    known = f"html meta title style {text} ol ul li dl dt dd div figure img figcaption"
    assert {tag for tag, _ in page.elements} <= set(known.split())
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    sources = [attributes["src"] for tag, attributes in page.elements if tag == "img"]
    assert len(sources) == 10 and all(source.startswith("data:image/png;base64,") for source in sources)
    shown = "\"'><script>alert(1)</script><img src=x onerror=alert(2)>\\x1b[31m\\u202e"
    assert page.text.count(shown) > len(names) and "\x1b" not in page.text and "\u202e" not in page.text
    assert "<script>ours</script>" in page.text


def test_the_page_asks_for_nothing_and_may_do_nothing(evidence: Evidence):
    page = Page(evidence.members["report.html"])
    assert not {"link", "script", "iframe", "form", "a", "base"} & {tag for tag, _ in page.elements}
    (policy,) = [each["content"] for tag, each in page.elements if tag == "meta" and "http-equiv" in each]
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert "url(" not in page.text and "@import" not in page.text


def test_what_counts_is_on_the_page(evidence: Evidence, case: Case):
    text = Page(evidence.members["report.html"]).text
    assert text.index("MATCH") < text.index("p = 1.7 × 10−24") < text.index("is not the probability")
    assert "once in 6 × 1023 seals" in text and "Of 20 letters 20 are right" in text
    assert evidence.suspect["files"][0]["sha256"] in text and case.seal.commitment in text
    assert "found at, as stated" in text and "https://somewhere.example" in text
    for line in (*NOT_SHOWN, *(command for _, command in COMMANDS)):
        assert line in text
    assert all(command in evidence.members["README.txt"].decode() for _, command in COMMANDS)


def test_wrong_letters_are_marked(evidence: Evidence, case: Case):
    shuffled = repainted(evidence, case.signer, evidence.signals[torch.tensor([1, 0, 2, 3, 4])])
    page = Page(shuffled.members["report.html"])
    right, wrong = (sum(tag == kind for tag, _ in page.elements) for kind in ("ins", "del"))
    assert (right, wrong) == (shuffled.verdict.right, 20 - shuffled.verdict.right) and wrong > 0
    assert f"Of 20 letters {right} are right" in page.text


def test_the_same_members_give_the_same_bytes(evidence: Evidence):
    assert render(Evidence(dict(evidence.members))) == evidence.members["report.html"]


def test_p_is_rounded_up_and_the_seeds_it_costs_down(evidence: Evidence):
    assert [power(Decimal(p)) for p in ("1", "0.0501", "1.61e-24")] == ["1", "0.051", "1.7 × 10<sup>−24</sup>"]
    said = {
        p: meaning(replace(evidence.verdict, p=Decimal(p), outcome=outcome))
        for p, outcome in {"0.3": Outcome.NO_MATCH, "2.9e-3": Outcome.NO_MATCH, "1.9e-30": Outcome.MATCH}.items()
    }
    assert said["0.3"] == "A model made without this seal often reads as well."
    assert "once in 300 seals" in said["2.9e-3"] and "once in 5 × 10<sup>29</sup> seals" in said["1.9e-30"]
    assert "no test" in meaning(replace(evidence.verdict, outcome=Outcome.SUPPORTS))


def test_every_python_writes_the_same_report():
    """Letters of a younger Unicode than a Python's are letters to it as well."""
    assert plain("a\U0003ffff b") == "a\U0003ffff b"
    assert plain("a\u00a0b\u2028c\ue000\ud800") == "a\\xa0b\\u2028c\\ue000\\ud800"


def test_a_terminal_is_told_the_same_p_as_the_page(evidence: Evidence):
    for p, seen, page, often in (("1.61e-24", "1.7e-24", "1.7 ×", "6e+23"), ("1.01e-30", "1.1e-30", "1.1 ×", "9e+29")):
        verdict = replace(evidence.verdict, p=Decimal(p))
        assert f"p = {seen}: a model made without this seal reads as well once in {often} seals." in str(verdict)
        assert power(verdict.p).startswith(page)


@pytest.mark.parametrize(("text", "shown"), [("plain ü", "plain ü"), ("\x1b[2J", "\\x1b[2J"), ("a\nb", "a\\nb")])
def test_a_terminal_shows_text_and_does_nothing_else(text: str, shown: str):
    assert plain(text) == shown
