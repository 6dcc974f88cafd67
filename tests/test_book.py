"""The book builds with warnings as errors, its pages ask for no outside resource, and their links lead somewhere."""

import importlib.util
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import pytest
import yaml
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from clearstamp import claims

SOURCES = Path(__file__).parent.parent / "book"
PICTURE = "data:image/gif;base64,R0lGODlhAQABAAAAACwAAAAAAQABAAA="
OUTSIDE = re.compile(r"\s*(https?:|//)", re.IGNORECASE)

spec = importlib.util.spec_from_file_location("book_build", SOURCES / "build.py")
assert spec is not None and spec.loader is not None
book_build = importlib.util.module_from_spec(spec)
spec.loader.exec_module(book_build)


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


def chapters() -> list[str]:
    contents = yaml.safe_load((SOURCES / "_toc.yml").read_text(encoding="utf-8"))
    files = [chapter["file"] for part in contents["parts"] for chapter in part["chapters"]]
    return [Path(file).name for file in files if file.startswith("_generated/")]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A copy of the book's sources beside an empty folder of artifacts, which the library is told to use."""
    root = tmp_path_factory.mktemp("book")
    shutil.copytree(SOURCES, root / "book", ignore=shutil.ignore_patterns("_build", "_generated", "__pycache__"))
    (root / "artifacts" / "tiny").mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLEARSTAMP_ARTIFACTS", str(root / "artifacts"))
        yield root


@pytest.fixture(scope="module")
def pages(place: Path) -> dict[Path, Page]:
    """Every page of a book made from minimal executed notebooks."""
    slider = f'<div class="cs-slider"><img src="{PICTURE}"><input type="range"><script>1</script></div>'
    for name in chapters():
        shown = new_output("display_data", {"text/html": slider, "text/plain": "slider"})
        progress = new_output("stream", name="stderr", text="100%|####|")
        formula = new_markdown_cell(r"With $W^\top$ and $$\begin{aligned} a &= b \\ c &= d \end{aligned}$$")
        cells = [new_markdown_cell(f"# {name}"), formula, new_code_cell("1", outputs=[shown, progress])]
        about = {"language_info": {"name": "python", "pygments_lexer": "ipython3"}}
        nbformat.write(new_notebook(cells=cells, metadata=about), place / "artifacts" / "tiny" / f"{name}.ipynb")
    assert book_build.main(["--profile", "tiny", "--book", str(place / "book")]) == 0
    html = place / "book" / "_build" / "html"
    return {path: Page(path) for path in html.rglob("*.html") if "_static" not in path.relative_to(html).parts}


def test_missing_notebooks_are_one_clear_error(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
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


def test_style_sheets_ask_for_no_outside_resource(place: Path, pages: dict[Path, Page]) -> None:
    sheets = list((place / "book" / "_build" / "html").rglob("*.css"))
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
