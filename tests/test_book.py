"""The book builds with warnings as errors, its pages ask for no outside resource, and their links lead somewhere."""

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from clearstamp import claims
from tests.books import book_build, chapters

OUTSIDE = re.compile(r"\s*(https?:|//)", re.IGNORECASE)


class Page(HTMLParser):
    """What a page loads, links to, and can be linked at; and how many elements of each kind it has."""

    def __init__(self, path: Path):
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.counts: dict[str, int] = {}
        self.styles: list[str] = []
        self._in_style = False
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.counts[tag] = self.counts.get(tag, 0) + 1
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        self.styles.append(given.get("style", ""))
        self._in_style = tag == "style"
        if tag == "a":
            self.links.append(given.get("href", ""))
        elif not (tag == "link" and given.get("rel") in ("canonical", "next", "prev", "search", "index", "author")):
            self.loads += [given[name] for name in ("src", "href", "data", "poster") if name in given]
            self.loads += [part.split()[0] for part in given.get("srcset", "").split(",") if part.split()]

    def handle_data(self, data: str) -> None:
        if self._in_style:
            self.styles.append(data)
            self._in_style = False


def fetched(css: str) -> Iterator[str]:
    """What a style sheet asks for."""
    yield from re.findall(r"url\(\s*['\"]?([^'\")]+)", css)
    yield from re.findall(r"@import\s+['\"]([^'\"]+)", css)


@pytest.fixture(scope="module")
def pages(built: Path) -> dict[Path, Page]:
    """Every page of the built book."""
    return {path: Page(path) for path in built.rglob("*.html") if "_static" not in path.relative_to(built).parts}


def test_missing_notebooks_are_one_clear_error(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLEARSTAMP_ARTIFACTS", str(place / "artifacts"))
    (place / "artifacts" / "none").mkdir()
    assert book_build.main(["--profile", "none", "--book", str(place / "book")]) == 1
    message = capsys.readouterr().err
    assert all(f"{name}.ipynb" in message for name in chapters())
    assert "make reproduce PROFILE=none" in message
    assert len(message.strip().splitlines()) == 1


def test_every_source_became_a_page(pages: dict[Path, Page]) -> None:
    assert {path.stem for path in pages} >= {"index", "transposition", "limits", "references", *chapters()}


def test_pages_ask_for_no_outside_resource(pages: dict[Path, Page]) -> None:
    loads = {path: [*page.loads, *(url for css in page.styles for url in fetched(css))] for path, page in pages.items()}
    assert all(loads.values())
    assert [(path.name, url) for path, urls in loads.items() for url in urls if OUTSIDE.match(url)] == []


def test_style_sheets_ask_for_no_outside_resource(built: Path) -> None:
    sheets = list(built.rglob("*.css"))
    assert "custom.css" in {path.name for path in sheets}
    urls = [(path.name, url) for path in sheets for url in fetched(path.read_text(encoding="utf-8"))]
    assert [found for found in urls if OUTSIDE.match(found[1])] == []


def test_internal_links_resolve(pages: dict[Path, Page]) -> None:
    broken = []
    for path, page in pages.items():
        for link in [*page.links, *page.loads]:
            url = urlsplit(link)
            if url.scheme or url.netloc:
                continue
            target = (path.parent / unquote(url.path)).resolve() if url.path else path
            known = pages[target].anchors | {""} if target in pages else None
            if not target.is_file() or (known is not None and unquote(url.fragment) not in known):
                broken.append((path.name, link))
    assert broken == []


def test_math_is_mathml(pages: dict[Path, Page]) -> None:
    shown = {path.stem: page for path, page in pages.items()}
    for name in ("transposition", "limits", *chapters()):
        assert shown[name].counts.get("math", 0) > 0, name
    assert [url for page in pages.values() for url in page.loads if "mathjax" in url.lower()] == []


def test_pages_say_where_their_numbers_come_from(pages: dict[Path, Page]) -> None:
    for path in pages:
        text = path.read_text(encoding="utf-8")
        assert "Profile tiny" in text
        assert "Not at the paper" in text
        assert "100%|" not in text  # progress bars


def test_the_numbers_that_fall_are_counted_and_listed():
    claim = next(claim for claim in claims.load() if claim.verdict == "least")
    right, wrong = (claims.Row(claim, {"paper": [value], "adjoint": []}) for value in (claim.paper, claim.paper - 9))
    empty = claims.Row(claim, {"paper": [], "adjoint": []})
    assert (
        book_build.falls([right, empty]) == "Of 2 numbers of the paper, 1 were run in this profile: 1 hold, 0 fall.\n\n"
    )
    told = book_build.falls([right, wrong, empty])
    assert "2 were run in this profile: 1 hold, 1 fall:\n\n|" in told and told.count(claim.id) == 1
