"""Build the book from notebooks that ran: python book/build.py --profile quick

Fills the git-ignored `_generated/` with the executed notebooks, the tables of claims and rules and the provenance, runs
jupyter-book with warnings as errors, and prints the claims. It executes nothing and needs no network.
"""

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import yaml

from clearstamp import claims, markdown, records
from clearstamp.errors import ClearStampError, RecordError
from clearstamp.records import Record
from clearstamp.rules import READOUTS

HERE = Path(__file__).parent
GENERATED = "_generated"
FULL_SCALE = "paper"


def build(profile: str, *, book: Path = HERE) -> Path:
    """Build the book whose sources lie in `book` from the artifacts of `profile`; the path of its front page.

    Raises `RecordError` if a notebook that the table of contents lists is missing, or if jupyter-book fails or
    warns.
    """
    notebooks = executed(profile, book)
    made = records.load_all(profile)
    generate(book / GENERATED, profile, notebooks, made)
    return render(book)


def executed(profile: str, book: Path) -> list[Path]:
    """The executed notebooks that the table of contents lists. Raises `RecordError` for those that are missing."""
    folder, remedy = records.artifacts() / profile, f"run `make reproduce PROFILE={profile}`"
    contents = yaml.safe_load((book / "_toc.yml").read_text(encoding="utf-8"))
    files = [Path(chapter["file"]) for part in contents["parts"] for chapter in part["chapters"]]
    notebooks = [folder / f"{file.name}.ipynb" for file in files if file.parent.name == GENERATED]
    if missing := [path.name for path in notebooks if not path.is_file()]:
        raise RecordError(
            "the book lacks executed notebooks", got=f"no {', '.join(missing)}", where=folder, remedy=remedy
        )
    return notebooks


def generate(folder: Path, profile: str, notebooks: Iterable[Path], made: Sequence[Record]) -> None:
    """Fill `folder`, emptied first, with all that the sources include."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for path in notebooks:
        shutil.copy(path, folder)
    line, banner = provenance(profile, made)
    admonition = f":::{{warning}}\n{banner}\n:::\n\n" if banner else ""
    judged = claims.judge(claims.load(), made)
    texts = {
        "claims.md": claims.table(judged, "markdown"),
        "falls.md": falls(judged),
        "experiments.md": experiments(profile, made),
        "tolerances.md": tolerances(profile),
        "rules.md": rules(),
        "provenance.md": f"{admonition}{markdown.escape(line)}\n",
        "provenance.json": json.dumps({"line": line, "banner": banner}),
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")


def provenance(profile: str, made: Sequence[Record]) -> tuple[str, str]:
    """Where the numbers come from, in one line, and a warning (empty at full scale)."""

    def listed(values: Iterable[object]) -> str:
        return ", ".join(sorted({str(value) for value in values})) or "none"

    def revision(about: dict[str, object]) -> str:
        commit = str(about.get("commit") or "unknown")[:12]
        return f"{commit} with uncommitted changes" if about.get("dirty") else commit

    line = (
        f"Profile {profile}; book built at commit {revision(records.provenance())}; {len(made)} records, "
        f"commits: {listed(revision(r.provenance) for r in made)}; "
        f"data: {listed(r.dataset.get('name') for r in made)}; "
        f"devices: {listed(r.provenance.get('device') for r in made)}."
    )
    if profile == FULL_SCALE:
        return line, ""
    return line, f"Not at the paper's scale: these numbers come from the reduced profile “{profile}”."


def falls(judged: Sequence[claims.Row]) -> str:
    """How many claims were run and hold, and the table of those that fall."""
    run = [row for row in judged if row.verdict]
    fallen = [row for row in run if row.verdict.startswith("FALLS")]
    line = (
        f"Of {len(judged)} numbers of the paper, {len(run)} were run in this profile: {len(run) - len(fallen)} hold, "
    )
    return f"{line}{len(fallen)} fall{':' if fallen else '.'}\n\n" + (claims.table(fallen) if fallen else "")


def experiments(profile: str, made: Sequence[Record]) -> str:
    """One line a chapter: its claims, the command that checks them, and the computing that they take."""
    rows = []
    for number, notebook in enumerate(dict.fromkeys(claim.notebook for claim in claims.load()), start=1):
        checked = [claim for claim in claims.load() if claim.notebook == notebook]
        names = {claim.experiment.format(readout=readout) for claim in checked for readout in claims.READOUTS}
        found = [record for record in made if record.experiment in names]
        expected = sum({claim.experiment: claim.minutes[profile] for claim in checked}.values())
        rows.append(
            (
                f"E{number}",
                f"{checked[0].id} to {checked[-1].id}",
                f"make {notebook} PROFILE={profile}",
                f"{expected:.0f}",
                f"{sum(record.wall_seconds for record in found) / 60:.0f}" if found else "",
            )
        )
    head = ("id", "claims", "command", "minutes expected", "minutes measured")
    return markdown.table(head, rows, "lllr")


def tolerances(profile: str) -> str:
    """How each claim is judged, why so, and what it costs."""
    meaning = {
        "least": "at least the paper's value, less",
        "most": "at most the paper's value, plus",
        "near": "the paper's value, within",
    }
    rows = [
        (c.id, c.notebook, f"{meaning[c.verdict]} {c.tolerance:g}", c.reason, f"{c.minutes[profile]:g}")
        for c in claims.load()
    ]
    return markdown.plain_table(("claim", "notebook", "holds if the result is", "why", "minutes"), rows)


def rules() -> str:
    """Every rule of both readouts: what it computes, its label, its source. Rules that do the same share a row."""
    found = {rule: None for registry in READOUTS.values() for rule in registry.values()}
    rows: dict[tuple[str, ...], list[str]] = {}
    for rule in found:
        readouts = [readout for readout, registry in READOUTS.items() if rule in registry.values()]
        summary = (rule.apply.__doc__ or "").strip().split("\n")[0]
        summary = summary.replace(f"{rule.name} of the signal", "The same function of the signal")
        names = rows.setdefault((summary, ", ".join(readouts), rule.label, rule.source), [])
        names += [rule.name] if rule.name not in names else []
    lines = [(", ".join(names), *cells) for cells, names in rows.items()]
    return markdown.plain_table(("rule", "signal at the input", "readout", "label", "source"), lines)


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
