"""What concerns exhibits: their numbers, the lines below them, and the way to them and to their records."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from html import escape

import nbformat
from nbformat.v4 import new_output

from clearstamp.reproduction import claims
from clearstamp.reproduction.records import Record
from clearstamp.reproduction.report.exhibits import KEY

GENERATED = "_generated"  # the folder, among the book's sources, of all that is made for it


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
