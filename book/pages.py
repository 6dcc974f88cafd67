"""What concerns pages: the executed notebooks made ready to be shown, and all that the sources include."""

import json
import re
import shutil
import subprocess
from base64 import b64decode
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from html import escape
from pathlib import Path

import nbformat
import yaml
from nbformat.v4 import new_markdown_cell

from captions import GENERATED, Exhibit, download, evidence, number
from clearstamp.errors import RecordError
from clearstamp.reproduction import audit, claims, markdown, records, report
from clearstamp.reproduction.records import Record
from clearstamp.reproduction.registry import Chapter
from clearstamp.reproduction.report.tables import computed, listed, revision
from clearstamp.transposed.rules import READOUTS

HERE = Path(__file__).parent
FILES = "files"  # goes into the book as it is
SCHEMA = "schema.json"
FULL_SCALE = "paper"
CHOSEN = yaml.safe_load((HERE / "exhibits.yml").read_text(encoding="utf-8"))


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
        if path.stem != CHOSEN["tutorial"]:  # whose code is what there is to read
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
    if life := by_name.get(CHOSEN["life"]):
        report.life_figure(life).savefig(folder / "life.png", dpi=150, bbox_inches="tight")
        alt = "Four secrets, and what is read after hardening, constraint training and fine-tuning"
        caption = f"The life of a stamp in a network that reads digits; record {download(life.name, life.name)}."
        parts.append(f"```{{figure}} {GENERATED}/life.png\n:name: fig-life\n:alt: {alt}\n\n{caption}\n```\n")
    if pruned := by_name.get(CHOSEN["pruned"]):
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
    page, _, name = CHOSEN["walk"].partition("/")
    cells = (cell for path, notebook in notebooks.items() if path.stem == page for cell in notebook.cells)
    outputs = (output for cell in cells if cell.id == name for output in cell.outputs)
    pictures = [output["data"]["image/png"] for output in outputs if "image/png" in output.get("data", ())]
    if not pictures:
        return ""
    (folder / "walk.png").write_bytes(b64decode(pictures[0]))
    alt = "The signal below each layer, from the key at the network's end to the image at its beginning"
    caption = f"One key on its way through the default CNN, as in {{exhibit}}`{CHOSEN['walk']}`."
    return f"```{{figure}} {GENERATED}/walk.png\n:name: fig-walk\n:alt: {alt}\n\n{caption}\n```\n"


def falls(judged: Sequence[claims.Outcome], links: Mapping[str, str]) -> str:
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
    for place, notebook in enumerate(sorted({claim.notebook for claim in claims.load()}), start=1):
        checked = [claim.id for claim in claims.load() if claim.notebook == notebook]
        shown = dict.fromkeys(records.named(e.name, seed) for e, seed in Chapter(notebook, profile).declared())
        found = [by_name[name] for name in shown if name in by_name]
        rows.append(
            (
                f"E{place}",
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
    found = {rule: None for table in READOUTS.values() for rule in table.rules.values()}
    rows: dict[tuple[str, ...], list[str]] = {}
    for rule in found:
        readouts = [readout for readout, table in READOUTS.items() if rule in table.rules.values()]
        summary = (rule.apply.__doc__ or "").strip().split("\n")[0]
        summary = summary.replace(f"{rule.name} of the signal", "The same function of the signal")
        names = rows.setdefault((summary, ", ".join(readouts), rule.label, rule.source), [])
        names += [rule.name] if rule.name not in names else []
    lines = [(", ".join(names), *cells) for cells, names in rows.items()]
    return markdown.plain_table(("rule", "signal at the input", "readout", "label", "source"), lines)
