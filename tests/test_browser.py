"""The book in a real browser, opened from the disk: skipped where there is no Chromium."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, sync_playwright

from tests.books import archive, chapters, sources

WCAG = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]
CHAPTER = f"_generated/{chapters()[0]}"

pytestmark = pytest.mark.skipif(archive.CHROMIUM is None, reason="no Chromium on this machine")
every_page = pytest.mark.parametrize("name", sources())


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        started = archive.launch(playwright)
        yield started
        started.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    opened = browser.new_page(viewport={"width": 1280, "height": 900})
    yield opened
    opened.close()


def open_page(page: Page, built: Path, name: str) -> None:
    page.goto((built / f"{name}.html").as_uri())


@every_page
def test_a_page_loads_without_outside_request_or_script_error(page: Page, built: Path, name: str):
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    page.on("request", lambda r: wrong.append(r.url) if not r.url.startswith(("file:", "data:", "blob:")) else None)
    open_page(page, built, name)
    page.wait_for_load_state("networkidle")
    assert wrong == []
    assert page.locator(".bd-article h1").first.is_visible()


@every_page
def test_a_page_fits_a_phone(page: Page, built: Path, name: str):
    page.set_viewport_size({"width": 390, "height": 800})
    open_page(page, built, name)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


@every_page
@pytest.mark.parametrize("width", [1280, 390])
def test_no_line_of_code_is_cut(page: Page, built: Path, name: str, width: int):
    page.set_viewport_size({"width": width, "height": 800})
    open_page(page, built, name)
    page.evaluate("for (const folded of document.querySelectorAll('details')) folded.open = true")
    widths = page.locator(".bd-article pre").evaluate_all("all => all.map(pre => [pre.scrollWidth, pre.clientWidth])")
    assert [found for found in widths if found[0] > found[1]] == []
    assert widths or name not in ("index", "api", CHAPTER)


@every_page
def test_the_footer_is_short_and_unfolds_by_keyboard(page: Page, built: Path, name: str):
    open_page(page, built, name)
    footer = page.locator("footer .cs-provenance")
    assert "\n" not in footer.locator("p").inner_text()
    commits = footer.get_by_text("commits of the records")
    assert not commits.is_visible()
    footer.locator("summary").focus()
    page.keyboard.press("Enter")
    assert commits.is_visible()


@every_page
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_page_passes_axe(page: Page, built: Path, name: str, theme: str):
    page.add_init_script(f"localStorage.setItem('mode', '{theme}'); localStorage.setItem('theme', '{theme}')")
    open_page(page, built, name)
    assert page.evaluate("document.documentElement.dataset.theme") == theme
    found = Axe().run(page, options={"runOnly": WCAG})
    assert found.violations_count == 0, found.generate_report()


def test_the_first_page_is_readable_within_a_second(page: Page, built: Path):
    open_page(page, built, "index")
    assert page.locator(".cs-slider img").is_visible()
    painted = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    assert 0 < painted < 1000, "milliseconds"


def test_the_book_is_printed(browser: Browser, built: Path, tmp_path: Path):
    printed = archive.printed(archive.one_page(built.parent.parent), tmp_path / "book.pdf", browser).read_bytes()
    assert printed.startswith(b"%PDF") and len(printed) > 100_000
    assert b"file:" not in printed, "no link to where the book was built"


def test_the_one_page_edition_is_unfolded_and_links_within_itself(page: Page, built: Path):
    page.goto(archive.one_page(built.parent.parent).as_uri())
    page.evaluate(archive.ON_PAPER.read_text(encoding="utf-8"))
    assert page.locator("details.hide[open]").count() > 0 == page.locator("details.hide:not([open])").count()
    assert page.get_by_text("commits of the records").first.is_visible()
    exhibit = page.locator("a", has_text="Figure 3.1").first
    assert page.locator(exhibit.get_attribute("href")).count() == 1


def picture(page: Page) -> bytes:
    return page.locator(".cs-slider img").screenshot()


def test_a_slider_moves_by_keyboard_by_mouse_and_by_itself(page: Page, built: Path):
    open_page(page, built, CHAPTER)
    slider, text = page.locator(".cs-slider input"), page.locator(".cs-slider output")
    middle = picture(page)
    assert text.inner_text() == "step 10", "where it opens"
    slider.focus()
    page.keyboard.press("ArrowRight")
    last = picture(page)
    assert text.inner_text() == "step 20" and middle != last
    slider.click(position={"x": 2, "y": 5})
    assert text.inner_text() == "step 0" and picture(page) not in (middle, last)
    page.locator(".cs-slider button").click()
    page.wait_for_function("document.querySelector('.cs-slider output').textContent === 'step 20'")
    assert picture(page) == last
    assert slider.get_attribute("aria-valuetext") == "step 20"


def test_a_slider_shows_its_start_without_scripts(page: Page, browser: Browser, built: Path):
    open_page(page, built, CHAPTER)
    still = browser.new_page(viewport=page.viewport_size, java_script_enabled=False)
    open_page(still, built, CHAPTER)
    assert picture(still) == picture(page)
    assert still.locator(".cs-slider output").inner_text() == "step 10"
    still.close()


def test_the_rows_of_a_slider_are_named_where_they_are(page: Page, built: Path):
    for width in (1280, 390):
        page.set_viewport_size({"width": width, "height": 800})
        open_page(page, built, "index")
        image = page.locator(".cs-slider img").bounding_box()
        names = page.locator(".cs-slider .cs-names div")
        assert names.all_inner_texts() == ["secret", "raw", "developed"]
        for place, name in enumerate(names.all()):
            box = name.bounding_box()
            middle = (box["y"] + box["height"] / 2 - image["y"]) / image["height"]
            assert abs(middle - (place + 0.5) / 3) < 0.02
            assert box["x"] + box["width"] <= image["x"]


def test_a_dark_page_keeps_the_colours_of_a_stamp(page: Page, built: Path):
    open_page(page, built, CHAPTER)
    light = picture(page)
    page.evaluate("document.documentElement.dataset.theme = 'dark'")
    assert picture(page) == light


def test_the_search_finds_pruning(page: Page, built: Path):
    page.goto((built / "search.html").as_uri() + "?q=pruning")
    found = page.locator('#search-results a[href*="limits"]').first
    found.wait_for()  # results come in one by one
    assert "What breaks a stamp" in found.inner_text()
