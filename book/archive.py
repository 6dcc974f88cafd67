"""The built book in one file: python book/archive.py zip, or pdf, --profile quick

The PDF is printed by Chromium from a one-page edition, in which each slider is one picture.
"""

import argparse
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

from playwright.sync_api import Browser, Playwright, sync_playwright

from clearstamp.errors import ClearStampError, RecordError

HERE = Path(__file__).parent
OUT = HERE.parent / "dist"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = ("background-networking", "component-update", "sync", "gpu", "quic")
ON_PAPER = HERE / "paper.js"


def zipped(pages: Path, target: Path) -> Path:
    """All pages in a zip file, the same bytes for the same pages. Raises `RecordError` if there is no built book."""
    if not (pages / "index.html").is_file():
        raise RecordError("no built book", where=pages, remedy="run `make book`")
    target.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(p for p in pages.rglob("*") if p.is_file()):
            name = Path(target.stem) / path.relative_to(pages)
            archive.writestr(zipfile.ZipInfo(name.as_posix()), path.read_bytes(), zipfile.ZIP_DEFLATED)
    return target


def launch(playwright: Playwright) -> Browser:
    """Chromium without a window. Raises `RecordError` where there is none."""
    if CHROMIUM is None:
        raise RecordError("no Chromium on this machine", remedy="install it, for Debian: apt install chromium")
    flags = ["--no-sandbox", "--no-first-run", *(f"--disable-{what}" for what in QUIET)]
    return playwright.chromium.launch(executable_path=CHROMIUM, args=flags)


def one_page(book: Path) -> Path:
    """The book whose sources lie in `book`, filled by a build before, on one page. Raises `RecordError` if it fails."""
    if not (book / "_generated").is_dir():
        raise RecordError("no built book", where=book, remedy="run `make book`")
    run = "from jupyter_book.cli.main import main; main()"
    arguments = ["build", str(book), "--builder", "custom", "--custom-builder", "singlehtml", "--quiet"]
    done = subprocess.run([sys.executable, "-c", run, *arguments], capture_output=True, text=True, check=False)
    page = book / "_build" / "singlehtml" / "index.html"
    if done.returncode != 0 or not page.is_file():
        print(done.stdout, done.stderr, file=sys.stderr)
        raise RecordError("the one-page edition does not build", got=f"jupyter-book exited {done.returncode}")
    return page


def printed(page: Path, target: Path, browser: Browser) -> Path:
    """A page as a PDF."""
    target.parent.mkdir(parents=True, exist_ok=True)
    opened = browser.new_page()
    opened.goto(page.as_uri())
    opened.evaluate(ON_PAPER.read_text(encoding="utf-8"))
    opened.pdf(path=target, format="A4", print_background=True, outline=True, tagged=True)
    opened.close()
    return target


def pdf(book: Path, target: Path) -> Path:
    """The book as a PDF. Raises `RecordError` if there is no built book, or no Chromium."""
    page = one_page(book)
    with sync_playwright() as playwright:
        return printed(page, target, launch(playwright))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line: 0, or 1 after one line that says what is wrong."""
    parser = argparse.ArgumentParser(description="Put the built book into one file.")
    parser.add_argument("kind", choices=("zip", "pdf"))
    parser.add_argument("--profile", default="quick", help="whose book was built, for the file's name")
    given = parser.parse_args(arguments)
    target = OUT / f"clearstamp-{given.profile}.{given.kind}"
    try:
        made = zipped(HERE / "_build" / "html", target) if given.kind == "zip" else pdf(HERE, target)
    except ClearStampError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{made}  {made.stat().st_size / 2**20:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
