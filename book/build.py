"""Build the book from notebooks that ran: python book/build.py --profile quick

Fills the git-ignored `_generated/` with the executed notebooks, the tables of claims and rules and the provenance, runs
jupyter-book with warnings as errors, and prints the claims. It executes nothing and needs no network.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
from base64 import b64decode
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from html import escape
from pathlib import Path

import nbformat
import yaml
from nbformat.v4 import new_markdown_cell, new_output

from clearstamp.errors import ClearStampError, RecordError
from clearstamp.reproduction import audit, claims, markdown, records, report
from clearstamp.reproduction.records import Record
from clearstamp.reproduction.registry import Chapter
from clearstamp.reproduction.report.exhibits import KEY
from clearstamp.reproduction.report.tables import computed, listed, revision
from clearstamp.rules import READOUTS

HERE = Path(__file__).parent
GENERATED = "_generated"
FILES = "files"  # goes into the book as it is
SCHEMA = "schema.json"
FULL_SCALE = "paper"
TUTORIAL, WALK = "00-your-own-model", "walk-1"
LIFE, PRUNED = "11-keys-default-adjoint-seed0", "pruning-default-adjoint-seed0"


def build(profile: str, *, book: Path = HERE) -> Path:
    """Build the book whose sources lie in `book` from the artifacts of `profile`; the path of its front page.

    Raises `RecordError`, naming the file, if a notebook that the table of contents lists is missing or failed, if a
    record is damaged, or if a text names a claim that there is not; and if jupyter-book fails or warns.
    """
    notebooks = executed(profile, book)
    check_claims(book, notebooks)
    made = records.load_all(profile)
    generate(book / GENERATED, profile, notebooks, made)
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
    texts = {path: path.read_text(encoding="utf-8") for path in book.glob("*.md")}
    for path, notebook in notebooks.items():
        texts[path] = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    for path, text in texts.items():
        if unknown := sorted(set(re.findall(r"\bC\d+\b", text)) - known):
            raise RecordError("no such claim", got=", ".join(unknown), where=path)


def generate(
    folder: Path, profile: str, notebooks: Mapping[Path, nbformat.NotebookNode], made: Sequence[Record]
) -> None:
    """Fill `folder`, emptied first, with all that the sources include."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    exhibits: list[Exhibit] = []
    origin = repository()
    checked = audit.latest(profile)
    verified = {name: f" (verified {each.date[:10]})" for name, each in checked.items() if each.agrees}
    for path, notebook in notebooks.items():
        exhibits += number(notebook, path.stem, verified)
        if path.stem != TUTORIAL:  # whose code is what there is to read
            fold(notebook)
        notebook.cells.insert(1, new_markdown_cell(launch(path.name, origin)))
        nbformat.write(notebook, folder / path.name)
    (folder / FILES / "records").mkdir(parents=True)
    for record in made:
        shutil.copy(records.folder(profile) / f"{record.name}.json", folder / FILES / "records")
    schema = json.dumps(records.schema(), indent=1)
    (folder / FILES / "records" / SCHEMA).write_text(schema + "\n", encoding="utf-8")
    source, banner = provenance(profile, made)
    admonition = f":::{{warning}}\n{banner}\n:::\n\n" if banner else ""
    judged = claims.judge(claims.load(), made)
    links = {row.claim.id: evidence(row.claim, exhibits, made) for row in judged}
    texts = {
        "claims.md": claims.table(judged, "markdown", links),
        "falls.md": falls(judged, links),
        "front.md": front(folder, made),
        "walk.md": walk(folder, notebooks),
        "experiments.md": experiments(profile, made),
        "tolerances.md": tolerances(),
        "audits.md": audits(checked.values()),
        "rules.md": rules(),
        "provenance.md": f"{admonition}{source}\n",
        "provenance.json": json.dumps({"html": source, "banner": banner}),
        "exhibits.json": json.dumps({f"{e.page}/{e.cell}": (e.title, e.anchor) for e in reversed(exhibits)}),
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")


@dataclass(frozen=True)
class Exhibit:
    """A numbered figure or table that a cell of a chapter shows, with its records, and when they were verified."""

    title: str
    page: str
    cell: str
    caption: str
    records: tuple[str, ...]
    verified: Mapping[str, str] = field(default_factory=dict)

    @property
    def anchor(self) -> str:
        return self.title.lower().replace(" ", "-").replace(".", "-")

    def html(self) -> str:
        """The line below it: its number, which links to itself, its caption, and its records to download."""
        text = f'<a href="#{self.anchor}">{self.title}</a>. {escape(self.caption)}.'
        if self.records:
            each = ", ".join(download(name, name + self.verified.get(name, ""), "../") for name in self.records)
            count = f"{len(self.records)} record{'s' * (len(self.records) > 1)}"
            text += f" <details><summary>{count}</summary>{each}</details>"
        return f'<div class="cs-caption" id="{self.anchor}">{text}</div>'


def download(record: str, text: str, root: str = "") -> str:
    """A link to a record's file from a page whose way to the front page is `root`."""
    return f'<a href="{root}records/{record}.json" download>{escape(text)}</a>'


def number(notebook: nbformat.NotebookNode, page: str, verified: Mapping[str, str] | None = None) -> list[Exhibit]:
    """Number what a notebook shows, figures and tables apart, and put a line with caption and records below each."""
    chapter, counts, found = int(page.partition("-")[0]), Counter[str](), []
    for cell in notebook.cells:
        outputs = []
        for output in cell.get("outputs", ()):
            outputs.append(output)
            metadata = output.get("metadata", {})
            if about := metadata.get(KEY) or next((m[KEY] for m in metadata.values() if KEY in m), None):
                counts[about["kind"]] += 1
                title = f"{about['kind']} {chapter}.{counts[about['kind']]}"
                shown = tuple(about["records"])
                found.append(Exhibit(title, page, cell.id, about["caption"], shown, verified or {}))
                outputs.append(new_output("display_data", {"text/html": found[-1].html()}))
        if outputs:
            cell.outputs = outputs
    return found


def fold(notebook: nbformat.NotebookNode) -> None:
    """Fold the code of a chapter away, to be unfolded by who wants to read it."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.metadata["tags"] = [*cell.metadata.get("tags", ()), "hide-input"]


def repository() -> str:
    """Owner and name on GitHub of the repository that this one was cloned from; empty if it is not there."""
    command = ["git", "-C", str(HERE), "remote", "get-url", "origin"]
    found = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    match = re.fullmatch(r"(?:https://|git@|ssh://git@)github\.com[:/]([\w.-]+/[\w.-]+?)(?:\.git)?/?", found)
    return match[1] if match else ""


def launch(notebook: str, repository: str) -> str:
    """Where a notebook can be run: links for a repository on GitHub, and the command for everybody."""
    commit = records.here().commit or "HEAD"
    links = f"Run it yourself: `make {notebook.removesuffix('.ipynb')}`"
    if repository:
        binder = f"https://mybinder.org/v2/gh/{repository}/{commit}?labpath=notebooks/{notebook}"
        colab = f"https://colab.research.google.com/github/{repository}/blob/{commit}/notebooks/{notebook}"
        install = f"`%pip install git+https://github.com/{repository}@{commit}`"
        links += f", in [Binder]({binder}), or in [Colab]({colab}) after {install}"
    return f"{links}. The notebook as it ran can be downloaded at the top of this page."


def evidence(claim: claims.Claim, exhibits: Iterable[Exhibit], made: Iterable[Record]) -> str:
    """The first table with a claim's numbers, or else figure, and its records, a link a seed: for the front page."""
    names = {title: claim.experiment.format(readout=name) for title, name in claims.EMBEDDINGS.items()}
    files = {
        title: [download(r.name, str(r.seed)) for r in made if r.experiment == experiment]
        for title, experiment in names.items()
    }
    every = {r.name for r in made if r.experiment in names.values()}
    shown = [e for e in exhibits if e.page == claim.notebook and not every.isdisjoint(e.records)]
    shown.sort(key=lambda e: not e.title.startswith("Table"))
    places = [f'<a href="{GENERATED}/{e.page}.html#{e.anchor}">{e.title}</a>' for e in shown[:1]]
    return "; ".join([*places, *(f"{title} {' '.join(links)}" for title, links in files.items() if links)])


def provenance(profile: str, made: Sequence[Record]) -> tuple[str, str]:
    """Where the numbers come from, as HTML, in a line and a toggle, and a warning (empty at full scale)."""
    line = (
        f"Profile {profile}: {len(made)} records; data: {listed(name for r in made for name in r.data)}; "
        f"seeds: {listed(r.seed for r in made)}."
    )
    built = f"book built at commit {revision(records.here())}"
    text = f'<div class="cs-provenance"><p>{escape(line)}</p>{computed(made, built)}</div>'
    if profile == FULL_SCALE:
        return text, ""
    return text, f"Not at the paper's scale: these numbers come from the reduced profile “{profile}”."


def front(folder: Path, made: Sequence[Record]) -> str:
    """The front page's pictures: a stamp's life and a stamp under pruning; what was not run is left out."""
    by_name = {record.name: record for record in made}
    parts = []
    if life := by_name.get(LIFE):
        report.life_figure(life).savefig(folder / "life.png", dpi=150, bbox_inches="tight")
        alt = "Four secrets, and what is read after hardening, constraint training and fine-tuning"
        caption = f"The life of a stamp in a network that reads digits; record {download(life.name, life.name)}."
        parts.append(f"```{{figure}} {GENERATED}/life.png\n:name: fig-life\n:alt: {alt}\n\n{caption}\n```\n")
    if pruned := by_name.get(PRUNED):
        attacks = pruned.parameters["attacks"]
        whole = [
            label for label, attack in attacks.items() if attack["attack"] == "pruning" and attack["scope"] == "global"
        ]
        stages = [stage for stage in pruned.stages if stage.attack in (None, *whole)]
        bundle, _ = report.attack_slider(replace(pruned, stages=stages), name="weights pruned")._repr_mimebundle_()
        about = (
            "A stamp embedded with this library's defaults, after pruning; it opens at the most that costs "
            f"no more than {100 * report.sliders.HOLDS:g} points of accuracy"
        )
        below = f'<div class="cs-caption">{about}; record {download(pruned.name, pruned.name)}.</div>'
        parts.append(f"```{{raw}} html\n{bundle['text/html']}\n{below}\n```\n")
    return "\n".join(parts)


def walk(folder: Path, notebooks: Mapping[Path, nbformat.NotebookNode]) -> str:
    """The tutorial's picture of a key on its way, for the page on transposition; empty if it has none."""
    cells = (cell for path, notebook in notebooks.items() if path.stem == TUTORIAL for cell in notebook.cells)
    outputs = (output for cell in cells if cell.id == WALK for output in cell.outputs)
    pictures = [output["data"]["image/png"] for output in outputs if "image/png" in output.get("data", ())]
    if not pictures:
        return ""
    (folder / "walk.png").write_bytes(b64decode(pictures[0]))
    alt = "The signal below each layer, from the key at the network's end to the image at its beginning"
    caption = f"One key on its way through the default CNN, as in {{exhibit}}`{TUTORIAL}/{WALK}`."
    return f"```{{figure}} {GENERATED}/walk.png\n:name: fig-walk\n:alt: {alt}\n\n{caption}\n```\n"


def falls(judged: Sequence[claims.Row], links: Mapping[str, str]) -> str:
    """How many claims were run and hold, what the library's default makes of them, and the table of those that fall."""
    run = [row for row in judged if row.verdict]
    fallen = [row for row in run if row.holds("published") is False]
    open_ = [row for row in run if row.holds("published") is None]
    text = (
        f"Of {len(judged)} numbers of the paper, {len(run)} were run in this profile, embedded and read as published: "
        f"{len(run) - len(fallen) - len(open_)} hold, {len(fallen)} fall."
    )
    if open_:
        text += f" {len(open_)} stay open: prices of erasing more than the attack had erased by that step."
    asked = (row for row in judged if "{readout}" in row.claim.experiment)
    held = [held for row in asked if (held := row.holds("default")) is not None]
    if held:
        text += f" With this library's defaults {len(held)} were run: {sum(held)} hold."
    untold = [row.claim.id for row in fallen if not row.reduced and not row.claim.tried]
    if untold:
        raise RecordError("nothing says what was tried to make a claim hold", got=", ".join(untold), where=claims.FILE)
    head = ("id", "claim", "paper", "published", "default", "what was tried to make it hold", "shown in; records")
    rows = (
        (
            *row.told,
            row.cell("published"),
            row.cell("default"),
            row.claim.tried or "",
            links.get(row.claim.id, ""),
        )
        for row in fallen
    )
    return f"{text}\n\n" + (markdown.table(head, rows, "llrrrll") if fallen else "")


def experiments(profile: str, made: Sequence[Record]) -> str:
    """One line a chapter: its claims, the command that checks them, and the computing that all of it takes."""
    rows, by_name = [], {record.name: record for record in made}
    for number, notebook in enumerate(sorted({claim.notebook for claim in claims.load()}), start=1):
        checked = [claim.id for claim in claims.load() if claim.notebook == notebook]
        shown = dict.fromkeys(records.named(e.name, seed) for e, seed in Chapter(notebook, profile).declared())
        found = [by_name[name] for name in shown if name in by_name]
        rows.append(
            (
                f"E{number}",
                " to ".join(dict.fromkeys((checked[0], checked[-1]))),
                f"make {notebook} PROFILE={profile}",
                f"{len(found)} of {len(shown)}",
                f"{sum(record.seconds for record in found) / 60:.0f}" if found else "",
            )
        )
    head = ("id", "claims", "command", "experiments run", "their minutes")
    return markdown.table(head, rows, "lllrr")


def tolerances() -> str:
    """How each claim is judged, and why so."""
    meaning = {
        "least": "at least the paper's value, less",
        "most": "at most the paper's value, plus",
        "near": "the paper's value, within",
    }
    rows = [(c.id, c.notebook, f"{meaning[c.verdict]} {c.tolerance:g}", c.reason) for c in claims.load()]
    return markdown.plain_table(("claim", "notebook", "holds if the result is", "why"), rows)


def audits(made: Iterable[audit.Audit]) -> str:
    """The last audit of each record that was audited."""

    def apart(one: audit.Audit) -> str:
        return ", ".join(f"{name} {most:.4f}" for name, most in one.differences.items())

    rows = [
        (one.record, one.date[:10], revision(one.provenance), "agrees" if one.agrees else "DIFFERS", apart(one))
        for one in sorted(made, key=lambda one: one.date, reverse=True)
    ]
    if not rows:
        return "None of the records of this profile was audited yet.\n"
    return markdown.plain_table(
        ("record", "verified", "at commit", "outcome", "greatest difference of each score"), rows
    )


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
