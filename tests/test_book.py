"""The book builds with warnings as errors, its pages ask for no outside resource, and their links lead somewhere."""

import json
import re
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from functools import reduce
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote, urlsplit

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

import clearstamp as cs
import clearstamp.attacks
from clearstamp import suspects, zoo
from clearstamp.errors import RecordError
from clearstamp.reproduction import claims
from clearstamp.reproduction.records import named
from clearstamp.reproduction.registry import declared
from tests.books import (
    SOURCES,
    archive,
    book_build,
    book_pages,
    captions,
    chapters,
    copy_sources,
    record,
    write_notebooks,
)
from tests.documents import blocks

NOTEBOOKS = SOURCES.parent / "notebooks"
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


@pytest.fixture
def bad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Sources and notebooks that a test may spoil."""
    monkeypatch.setenv("CLEARSTAMP_ARTIFACTS", str(tmp_path / "artifacts"))
    monkeypatch.setattr(book_build, "render", lambda book: pytest.fail("the build went on"))
    copy_sources(tmp_path)
    write_notebooks(tmp_path)
    return tmp_path


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def with_an_error(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[-1].outputs.append(new_output("error", ename="E", evalue="e"))
    nbformat.write(notebook, path)


def naming_a_claim(path: Path) -> None:
    path.write_text(path.read_text(encoding="utf-8") + "\nSee C99999.\n", encoding="utf-8")


@pytest.mark.parametrize(
    ("spoil", "file", "message"),
    [
        (half, "artifacts/tiny/records/11-keys-default-adjoint-seed0.json", "11-keys-default-adjoint-seed0.json"),
        (half, "artifacts/tiny/records/11-keys-default-adjoint-seed0.safetensors", "11-keys-default-adjoint-seed0"),
        (half, "artifacts/tiny/03-pruning.ipynb", "not a notebook.*03-pruning.ipynb"),
        (with_an_error, "artifacts/tiny/03-pruning.ipynb", "a cell of a notebook failed.*03-pruning.ipynb"),
        (Path.touch, "artifacts/tiny/03-pruning.failed.ipynb", "failed when it last ran.*03-pruning.failed.ipynb"),
        (naming_a_claim, "book/limits.md", "no such claim; got: C99999; where: .*limits.md"),
    ],
)
def test_bad_input_stops_the_build_in_one_line_that_names_the_file(bad, capsys, spoil, file, message):
    spoil(bad / file)
    assert book_build.main(["--profile", "tiny", "--book", str(bad / "book")]) == 1
    told = capsys.readouterr().err
    assert re.search(message, told) and len(told.strip().splitlines()) == 1


def test_every_exhibit_is_numbered_and_its_records_can_be_downloaded(built: Path) -> None:
    page = (built / "_generated" / "03-pruning.html").read_text(encoding="utf-8")
    assert '<div class="cs-caption" id="figure-3-1"><a href="#figure-3-1">Figure 3.1</a>. a stamp.' in page
    assert 'href="../records/pruning-default-adjoint-seed0.json" download' in page
    stored = json.loads((built / "records" / "pruning-default-adjoint-seed0.json").read_text(encoding="utf-8"))
    assert stored["experiment"] == "pruning-default-adjoint"


def test_the_front_page_has_a_stamp_s_life_and_a_stamp_under_pruning(built: Path) -> None:
    front = (built / "index.html").read_text(encoding="utf-8")
    assert "life.png" in front and front.count('class="cs-slider"') == 1
    assert {book_pages.CHOSEN["life"], book_pages.CHOSEN["pruned"]} <= {named(*key) for key in declared("paper")}


def test_prose_refers_to_an_exhibit_by_its_number_and_says_where_there_is_none(built: Path) -> None:
    limits = (built / "limits.html").read_text(encoding="utf-8")
    assert 'href="_generated/03-pruning.html#figure-3-1">Figure 3.1</a>' in limits
    assert "(not shown in this profile)" in limits, "merged units have no exhibit here"


BESIDE = (
    *("data.LabelledImages", "training.loops.Fit", "training.loops.Hardening"),
    *("transposed.gradient.Gradient", "transposed.gradient.drawn_probes", "transposed.queries.Queried"),
)
"""Public names that no `__all__` holds: what data have, how the exact readout reads, and what functions return."""


def test_the_reference_lists_every_public_name_once_and_nothing_else(built: Path) -> None:
    def found(name: str) -> int:
        return id(reduce(getattr, name.split("."), cs))

    page = (built / "api.html").read_text(encoding="utf-8")
    names = re.findall(r'<dt class="sig [^>]*id="clearstamp\.([\w.]+)"', page)
    listed = [name for name in names if name.rpartition(".")[0] not in names]
    modules = (cs.attacks, cs.errors, cs.evidence, cs.pictures, cs.schemes, suspects, zoo)
    within = [f"{module.__name__}.{name}".partition(".")[2] for module in modules for name in module.__all__]
    public = [*BESIDE, *cs.__all__, *within]
    assert len(listed) == len(set(map(found, listed)))
    assert {name for name in listed if found(name) not in map(found, public)} == set()
    assert {name for name in public if found(name) not in map(found, listed)} == set()


def test_code_is_folded_in_chapters_and_open_in_the_tutorial(built: Path) -> None:
    chapter, tutorial = ((built / "_generated" / f"{name}.html").read_text() for name in chapters()[1::-1])
    assert '<details class="admonition hide above-input">' in chapter
    assert "above-input" not in tutorial and 'class="cell_input' in tutorial


def test_exhibits_that_prose_refers_to_are_code_cells_of_the_notebooks() -> None:
    notebooks = {path.stem: nbformat.read(path, as_version=4) for path in NOTEBOOKS.glob("*.ipynb")}
    texts = [path.read_text(encoding="utf-8") for path in SOURCES.glob("*.md")]
    texts += [cell.source for n in notebooks.values() for cell in n.cells if cell.cell_type == "markdown"]
    named = {name for text in texts for name in re.findall(r"\{exhibit\}`([^`]+)`", text)}
    cells = {f"{stem}/{c.id}" for stem, n in notebooks.items() for c in n.cells if c.cell_type == "code"}
    assert named and named | {book_pages.CHOSEN["walk"]} <= cells


def test_a_claim_leads_to_its_exhibit_and_its_records():
    claim = next(claim for claim in claims.load() if claim.notebook == "03-pruning")
    made = [record(claim.experiment.format(readout="paper"), ("before",))]
    exhibit = captions.Exhibit("Table 3.2", "03-pruning", "cell", "scores", (made[0].name,))
    other = captions.Exhibit("Table 3.1", "03-pruning", "cell", "others", ("another-seed0",))
    elsewhere = captions.Exhibit("Table 2.1", "02-multi-key", "cell", "scores", (made[0].name,))
    figure = captions.Exhibit("Figure 3.1", "03-pruning", "cell", "film", (made[0].name,))
    told = captions.evidence(claim, [elsewhere, figure, other, exhibit], made)
    assert told == (
        '<a href="_generated/03-pruning.html#table-3-2">Table 3.2</a>; '
        f'published <a href="records/{made[0].name}.json" download>0</a>'
    )
    assert "Figure 3.1" in captions.evidence(claim, [figure, other], made)
    assert captions.evidence(claim, [other], []) == ""


def test_figures_and_tables_are_numbered_apart():
    outputs = [
        new_output("display_data", {"text/plain": ""}, metadata={"clearstamp": about})
        for about in map(
            dict,
            [{"kind": "Figure", "caption": "a", "records": []}] * 2
            + [{"kind": "Table", "caption": "b", "records": []}],
        )
    ]
    inner = new_output("display_data", {}, metadata={"text/markdown": outputs[2].metadata})
    notebook = new_notebook(cells=[new_code_cell("", outputs=outputs), new_code_cell("", outputs=[inner])])
    found = captions.number(notebook, "04-any")
    assert [e.title for e in found] == ["Figure 4.1", "Figure 4.2", "Table 4.1", "Table 4.2"]
    assert [len(cell.outputs) for cell in notebook.cells] == [6, 2]


def test_launch_links_are_those_of_a_repository_on_github():
    told = book_pages.launch("03-pruning.ipynb", "owner/name")
    assert "https://mybinder.org/v2/gh/owner/name/" in told and "labpath=notebooks/03-pruning.ipynb" in told
    assert "https://colab.research.google.com/github/owner/name/blob/" in told
    assert "http" not in book_pages.launch("03-pruning.ipynb", "")


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://github.com/owner/name.git", "owner/name"),
        ("git@github.com:owner/name.git", "owner/name"),
        ("https://github.com/owner/na.me", "owner/na.me"),
        ("https://example.org/owner/name", ""),
        ("", ""),
    ],
)
def test_the_repository_is_read_from_its_origin(monkeypatch, url, name):
    monkeypatch.setattr(book_pages.subprocess, "run", lambda *_, **__: SimpleNamespace(stdout=url + "\n"))
    assert book_pages.repository() == name


def test_a_zip_holds_every_page_and_is_the_same_every_time(built: Path, tmp_path: Path):
    one, two = (archive.zipped(built, tmp_path / folder / "book.zip") for folder in "ab")
    assert one.read_bytes() == two.read_bytes()
    with zipfile.ZipFile(one) as opened:
        names = set(opened.namelist())
    assert names == {f"book/{path.relative_to(built).as_posix()}" for path in built.rglob("*") if path.is_file()}


def test_no_archive_without_a_book(tmp_path: Path):
    for make in (archive.zipped, archive.pdf):
        with pytest.raises(RecordError, match="no built book.*make book"):
            make(tmp_path, tmp_path / "out")


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
        assert "<p>Profile tiny: 2 records; data: dots; seeds: 0.</p><details" in text
        assert re.search(r"<li>versions: [^<]*torch \d", text)
        assert "Not at the paper" in text
        assert "100%|" not in text  # progress bars


def test_the_front_page_s_slider_opens_where_accuracy_holds(tmp_path: Path):
    accuracies = {"before": 0.99, "10 %": 0.98, "80 %": 0.5, "channels 20 %": 0.99}
    pruned = record(book_pages.CHOSEN["pruned"].removesuffix("-seed0"), tuple(accuracies))
    for stage in pruned.stages:
        stage.scores["accuracy"] = accuracies[stage.label]
    shown = book_pages.front(tmp_path, [pruned])
    assert ">10 %: accuracy 0.980" in shown and "no more than 2 points of accuracy" in shown


def test_the_front_page_has_the_snippet_of_the_readme_which_fits_its_column(built: Path):
    (code,) = blocks(SOURCES.parent / "README.md", "python")
    assert max(map(len, code.splitlines())) <= 76
    shown = re.sub(r"<[^>]*>", "", (built / "index.html").read_text(encoding="utf-8"))
    assert code in unescape(shown)


def test_the_numbers_that_fall_are_counted_and_listed_and_what_the_default_makes_of_all():
    asked = (c for c in claims.load() if c.verdict == "least" and "{readout}" in c.experiment)
    claim = replace(next(asked), tried=None)

    def row(published: float | None, default: float | None = None) -> claims.Outcome:
        given = {"published": published, "adjoint readout": None, "default": default}
        return claims.Outcome(claim, {name: [] if off is None else [claim.paper + off] for name, off in given.items()})

    assert book_pages.falls([row(0), row(None)], {}) == (
        "Of 2 numbers of the paper, 1 were run in this profile, embedded and read as published: 1 hold, 0 fall.\n\n"
    )
    with pytest.raises(RecordError, match=f"nothing says what was tried to make a claim hold; got: {claim.id}"):
        book_pages.falls([row(-9)], {})
    price, erased = row(-9), row(0)
    price = replace(
        price, claim=replace(claim, verdict="least"), beside=replace(erased, claim=replace(claim, paper=-9))
    )
    assert "0 hold, 0 fall. 1 stay open" in book_pages.falls([price], {})
    claim = replace(claim, tried="another rate")
    told = book_pages.falls([row(0), row(-9, 0), row(None, -9)], {claim.id: "Table 2.1"})
    assert "| another rate | Table 2.1 |" in told
    assert "2 were run in this profile, embedded and read as published: 1 hold, 1 fall. With this" in told
    assert "2 were run: 1 hold.\n\n|" in told and told.count(claim.id) == 1
