"""Build the book from notebooks that ran: python book/build.py --profile quick

Fills the git-ignored `_generated/` with the executed notebooks, the tables of claims and rules and the provenance, runs
jupyter-book with warnings as errors, and prints the claims. It executes nothing and needs no network.
"""

import argparse
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import nbformat
import yaml

import pages
from captions import GENERATED
from clearstamp.errors import ClearStampError, RecordError
from clearstamp.reproduction import claims, records

HERE = Path(__file__).parent


def build(profile: str, *, book: Path = HERE) -> Path:
    """Build the book whose sources lie in `book` from the artifacts of `profile`; the path of its front page.

    Raises `RecordError`, naming the file, if a notebook that the table of contents lists is missing or failed, if a
    record is damaged, or if a text names a claim that there is not; and if jupyter-book fails or warns.
    """
    notebooks = executed(profile, book)
    check_claims(book, notebooks)
    made = records.load_all(profile)
    pages.generate(book / GENERATED, profile, notebooks, made)
    return render(book)


def executed(profile: str, book: Path) -> dict[Path, nbformat.NotebookNode]:
    """The executed notebooks that the table of contents lists. Raises `RecordError` for a missing or failed one."""
    folder, remedy = records.artifacts() / profile, f"run `make reproduce PROFILE={profile}`"
    contents = yaml.safe_load((book / "_toc.yml").read_text(encoding="utf-8"))
    files = [Path(chapter["file"]) for part in contents["parts"] for chapter in part["chapters"]]
    paths = [folder / f"{file.name}.ipynb" for file in files if file.parent.name == GENERATED]
    if missing := [path.name for path in paths if not path.is_file()]:
        raise RecordError(
            "the book lacks executed notebooks", got=f"no {', '.join(missing)}", where=folder, remedy=remedy
        )
    notebooks = {path: readable(path) for path in paths}
    for path, notebook in notebooks.items():
        failed = path.with_suffix(".failed.ipynb")
        if failed.is_file():
            raise RecordError("a notebook failed when it last ran", where=failed, remedy=remedy)
        for cell in notebook.cells:
            if any(output.output_type == "error" for output in cell.get("outputs", ())):
                raise RecordError("a cell of a notebook failed", got=cell.source[:80], where=path, remedy=remedy)
    return notebooks


def readable(path: Path) -> nbformat.NotebookNode:
    """A notebook. Raises `RecordError` for a file that is none, or only half of one."""
    try:
        return nbformat.read(path, as_version=4)
    except (ValueError, KeyError, nbformat.ValidationError) as error:
        raise RecordError("not a notebook", got=f"{type(error).__name__}: {error}", where=path) from error


def check_claims(book: Path, notebooks: Mapping[Path, nbformat.NotebookNode]) -> None:
    """Raise `RecordError` for a file whose text names a claim (C1, C2, ...) that is not in `claims.yml`."""
    known = {claim.id for claim in claims.load()}
    texts = {path: path.read_text(encoding="utf-8") for path in (*book.glob("*.md"), *book.glob("how-to/*.md"))}
    for path, notebook in notebooks.items():
        texts[path] = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    for path, text in texts.items():
        if unknown := sorted(set(re.findall(r"\bC\d+\b", text)) - known):
            raise RecordError("no such claim", got=", ".join(unknown), where=path)


def render(book: Path) -> Path:
    """Run jupyter-book, from scratch; the front page. A page that is up to date would not repeat its warnings."""
    shutil.rmtree(book / "_build", ignore_errors=True)
    page = book / "_build" / "html" / "index.html"
    run = "from jupyter_book.cli.main import main; main()"  # this interpreter's: its scripts need not be on the PATH
    command = [sys.executable, "-c", run, "build", str(book), "-W", "-n", "--keep-going", "--quiet"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode != 0 or not page.is_file():
        print(done.stdout, file=sys.stderr)
        raise RecordError("the book does not build without warnings", got=f"jupyter-book exited {done.returncode}")
    return page


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line: 0, or 1 after one line that says what is wrong."""
    parser = argparse.ArgumentParser(description="Build the book from the notebooks that ran.")
    parser.add_argument("--profile", default="quick", help="whose artifacts to show")
    parser.add_argument("--book", type=Path, default=HERE, help="folder of the book's sources")
    given = parser.parse_args(arguments)
    try:
        page = build(given.profile, book=given.book)
        rows = claims.judge(claims.load(), records.load_all(given.profile))
    except ClearStampError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(claims.table(rows, "plain"))
    print(f"\nbook: {page}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
