"""Tables of records. Numbers over several seeds are means with their standard deviation."""

import html
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from statistics import mean, stdev
from typing import Any

from IPython.display import HTML, Markdown

from clearstamp.reproduction import claims, markdown
from clearstamp.reproduction.capacity import Capacity, judge
from clearstamp.reproduction.records import Provenance, Record, Stage, UsedSplit, load_all
from clearstamp.reproduction.registry import FINGERPRINTS
from clearstamp.reproduction.report.exhibits import NOT_RUN, about
from clearstamp.reproduction.report.stages import BY_RECIPE, SCORES, STAGES, by_experiment, ends, in_words
from clearstamp.reproduction.runtime import Cost


def shown(
    caption: str, records: Iterable[Record], head: Sequence[str], rows: Iterable[Sequence[str]], align: str = "lr"
) -> Markdown:
    """A table, or that there is none."""
    rows = list(rows)
    if not rows:
        return Markdown(NOT_RUN)
    return Markdown(markdown.table(head, rows, align), metadata=about("Table", caption, records))


def spread(values: Sequence[float], style: str = ".3f") -> str:
    """The mean and, of several values, their standard deviation; empty of none."""
    if not values:
        return ""
    return f"{mean(values):{style}}" + (f" ± {stdev(values):{style}}" if len(values) > 1 else "")


def claims_table(notebook: str, profile: str) -> Markdown:
    """The paper's number beside ours for every claim that `notebook` checks."""
    rows = claims.judge([c for c in claims.load() if c.notebook == notebook], load_all(profile))
    return Markdown(claims.table(rows), metadata=about("Table", "Paper beside reproduced", ()))


def paper_table(where: str, profile: str, notebook: str | None = None) -> Markdown:
    """A table of the paper, its rows in its order: *paper*, *published* and *default* side by side.

    With a `notebook`, only the rows that this one checks.
    """
    found: dict[str, dict[str, claims.Outcome]] = {}
    made = load_all(profile)
    chosen = (c for c in claims.load() if c.where == where and c.row and notebook in (None, c.notebook))
    for row in claims.judge(chosen, made):
        found.setdefault(str(row.claim.row), {})[row.claim.metric] = row
    shapes = {"accuracy": ".2%", "ssim": ".3f"}
    sides = ("published", "default")

    def cells(by_metric: Mapping[str, claims.Outcome]) -> Iterator[str]:
        for metric, style in shapes.items():
            row = by_metric.get(metric)
            yield f"{row.claim.paper:{style}}" if row else ""
            yield from (row.cell(side, style) if row else "" for side in sides)

    names = {
        row.claim.experiment.format(readout=claims.EMBEDDINGS[side])
        for by_metric in found.values()
        for row in by_metric.values()
        for side in sides
    }
    return shown(
        f"{where} of the paper",
        [record for record in made if record.experiment in names],
        ("", "accuracy: paper", *sides, "SSIM: paper", *sides),
        ((name, *cells(by_metric)) for name, by_metric in found.items()),
    )


def recipe_table(records: Sequence[Record]) -> Markdown:
    """One line a row of Table 4 trained by a recipe: its epochs, and accuracy and SSIM beside the paper's."""
    of_paper: dict[tuple[str, str | None, str], float] = {
        (claim.experiment.format(readout=name), claim.moment, claim.metric): claim.paper
        for claim in claims.load()
        for name in BY_RECIPE
    }
    columns = [(score, moment) for score in ("accuracy", "ssim") for moment in ("trained", "finetuned")]

    def cells(record: Record) -> Iterator[str]:
        yield str(record.parameters["epochs"])
        for score, moment in columns:
            paper = of_paper.get((record.experiment, moment, score))
            yield f"{record.results[moment][score]:.4f}" + ("" if paper is None else f" ({paper:g})")

    return shown(
        "Deep networks by a recipe for few epochs, and in brackets the paper's numbers",
        records,
        ("model", "epochs", *(f"{SCORES[score]}, {STAGES[moment]}" for score, moment in columns)),
        ((in_words(record), *cells(record)) for record in records),
    )


def score_table(records: Sequence[Record], stage: str) -> Markdown:
    """One line an experiment: every score at `stage`."""
    columns = [s for s in SCORES if all(s in r.results[stage] for r in records)]
    return shown(
        f"Scores {STAGES.get(stage, f'in the stage {stage}')}",
        records,
        ("model", "seeds", *(SCORES[column] for column in columns)),
        (
            (in_words(made[0]), str(len(made)), *(spread([r.results[stage][c] for r in made]) for c in columns))
            for made in by_experiment(records).values()
        ),
    )


def attacks_table(records: Sequence[Record]) -> Markdown:
    """One line for every attack of the campaigns, at its end: every score.

    *Known* is the SSIM of the keys that the attacker knew, where there were any, *steps* what the attack took of the
    optimizer.
    """
    found = {score for r in records for stage in r.results.values() for score in stage} - {"ssim_min"}
    scores = {s: title for s, title in (SCORES | {"ssim_attacked": "known"}).items() if s in found}

    def cells(made: Sequence[Record], stage: str) -> list[str]:
        def values(column: str) -> list[float]:
            return [r.results[stage][column] for r in made if column in r.results[stage]]

        return [*(spread(values(score)) for score in scores), "".join(f"{steps}" for steps in values("steps")[:1])]

    families = dict.fromkeys(map(family, records))
    return shown(
        f"Scores after each attack: {', '.join(families)}",
        records,
        ("model", "attack", "seeds", *scores.values(), "steps"),
        (
            (in_words(made[0]), stage, str(len(made)), *cells(made, stage))
            for made in by_experiment(records).values()
            for stage in ends(made[0])
        ),
        "llr",
    )


def lasting_tables(
    lives: Sequence[Record], attacked: Sequence[Record], score: str, costs: Sequence[Record] = ()
) -> list[Markdown]:
    """One line a setting: `score` after training and each attack, in one table, and after any erasures, in another.

    `lives` are the life cycles, `attacked` the campaigns on their models, `costs` what training each of them costs.
    """
    by_name = {r.parameters["on"]["name"]: r for r in attacked}
    attacks = {label: about["attack"] for r in attacked for label, about in r.parameters["attacks"].items()}
    erasures = [label for label, attack in attacks.items() if attack == "erasure"]
    others = [label for label in attacks if label not in erasures]
    times = {r.experiment.removeprefix("cost-"): r.results["cost"]["time"] for r in costs}

    def after(life: Record, labels: Sequence[str]) -> Iterator[str]:
        left = by_name[life.experiment].results if life.experiment in by_name else {}
        yield from (f"{left[label][score]:.3f}" if label in left else "" for label in labels)

    def cells(life: Record) -> Iterator[str]:
        yield f"{life.results['trained']['accuracy']:.4f}"
        yield from (f"{life.results[stage][score]:.3f}" for stage in ("trained", "finetuned"))
        yield from after(life, others)
        if costs:
            yield f"{times[life.experiment]:.2f}" if life.experiment in times else ""

    tables = [
        shown(
            f"{SCORES[score]} that is left after training on, pruning and compression",
            (*lives, *attacked, *costs),
            ("model", "accuracy", "trained", "fine-tuned, LR/10", *others, *(["time"] if costs else [])),
            ((in_words(life), *cells(life)) for life in lives),
        ),
        shown(
            f"{SCORES[score]} that is left after erasure by an attacker with data",
            (*lives, *attacked),
            ("model", "trained", *erasures),
            ((in_words(r), f"{r.results['trained'][score]:.3f}", *after(r, erasures)) for r in lives),
        ),
    ]
    return tables if erasures or not attacked else tables[:1]


def prices_table(records: Sequence[Record], attacks: Sequence[str]) -> Markdown:
    """One line a step: accuracy and SSIM of the keys that the attacker knew, for each of some attacks as published."""
    published = [record for record in records if in_words(record) == "published"]
    found: dict[str, dict[int, list[tuple[float, float]]]] = {attack: {} for attack in attacks}
    for stage in (stage for record in published for stage in record.stages if stage.attack in found):
        step = stage.scores["steps"] if stage.step is None else stage.step
        pair = stage.scores["accuracy"], stage.scores["ssim_attacked"]
        found[str(stage.attack)].setdefault(int(step), []).append(pair)
    steps = sorted({step for by_step in found.values() for step in by_step})

    def cells(step: int) -> Iterator[str]:
        for by_step in found.values():
            pairs = by_step.get(step, [])
            yield " / ".join(f"{mean(values):.3f}" for values in zip(*pairs, strict=True))

    return shown(
        "Accuracy / SSIM of the known key, by the steps of the attack",
        published,
        ("step", *attacks),
        ((str(step), *cells(step)) for step in steps),
    )


def family(record: Record) -> str:
    """What the attacks of a campaign have in common, as its name has it before that of the model."""
    on = str(record.parameters["on"]["name"]).removeprefix("11-keys-")
    return record.experiment.removesuffix(f"-{on}").replace("-", " ")


def steps_table(records: Sequence[Record]) -> Markdown:
    """Hardening steps until the mean SSIM reached 0.90, 0.95, and the target; empty where it did not."""

    def cells(record: Record) -> list[str]:
        found, target = record.results["hardened"], record.parameters["target"]
        counts = [found["steps to 0.9"], found["steps to 0.95"], found["steps"] if found["reached"] else None]
        return [*("" if count is None else str(count) for count in counts), "" if target is None else f"{target:g}"]

    return shown(
        "Steps of hardening",
        records,
        ("model", "seed", "steps taken", "to SSIM 0.90", "to SSIM 0.95", "to the target", "target"),
        ((in_words(r), str(r.seed), str(r.results["hardened"]["steps"]), *cells(r)) for r in records),
    )


def fingerprint_table(records: Sequence[Record]) -> Markdown:
    """Each rate of dropout a line: SSIM after hardening, in evaluation mode and in training mode, beside the paper's.

    The last two columns have the mean distance to the paper over the default network's cells in that line.
    """
    wanted = {
        name: claims.ssim_after_hardening()[f"{experiment}-{{readout}}"] for name, experiment in FINGERPRINTS.items()
    }
    found: dict[float, dict[str, tuple[float, float]]] = {}
    default = set()
    for record in records:
        name = record.experiment.removeprefix("fingerprint-").rpartition("-")[0]
        scores = record.results["hardened"]
        read = scores["ssim"], scores["ssim_training_mode"]
        found.setdefault(record.parameters["dropout"], {})[name] = read
        if record.parameters["model"] == "cnn":
            default.add(name)
    networks = [name for name in wanted if any(name in by_network for by_network in found.values())]

    def cells(by_network: Mapping[str, tuple[float, float]]) -> Iterator[str]:
        for name in networks:
            yield " / ".join(f"{value:.3f}" for value in by_network[name]) if name in by_network else ""
        for mode in range(2):
            off = [abs(read[mode] - wanted[name].paper) for name, read in by_network.items() if name in default]
            yield f"{mean(off):.3f}" if off else ""

    head = [claims.network(wanted[name]) for name in networks]
    paper = [f"{wanted[name].paper:.2f}" for name in networks]
    return shown(
        "SSIM after hardening by the rate of dropout, in evaluation mode / in training mode",
        records,
        ("dropout", *head, "CNN off, evaluation", "CNN off, training"),
        [("the paper", *paper, "", ""), *((f"{rate:g}", *cells(found[rate])) for rate in sorted(found))]
        if found
        else [],
    )


def cost_table(marked: Sequence[Record], unmarked: Sequence[Record]) -> Markdown:
    """Accuracy of each marked model less that of its unmarked twin of the same seed, in points, after training."""
    twins = {r.seed: r.results["trained"]["accuracy"] for r in unmarked}
    pairs = [(r, r.results["trained"]["accuracy"], twins[r.seed]) for r in marked if r.seed in twins]
    return shown(
        "Accuracy of marked models beside that of their unmarked twins",
        (*marked, *unmarked),
        ("model", "seed", "marked", "unmarked twin", "difference in points"),
        (
            (in_words(r), str(r.seed), f"{own:.4f}", f"{twin:.4f}", f"{100 * (own - twin):+.2f}")
            for r, own, twin in pairs
        ),
    )


def control_table(unmarked: Sequence[Record]) -> Markdown:
    """The owner's keys on trained models without a stamp: every score, for one key and for eleven."""
    scores = ("ssim", "developed_ssim", "correlation")
    return shown(
        "Keys on models that have no stamp",
        unmarked,
        ("keys, readout", "seed", *(SCORES[score] for score in scores)),
        (
            (f"{s.keys}, {s.readout}", str(r.seed), *(f"{s.scores[score]:.3f}" for score in scores))
            for r in unmarked
            for s in r.stages
            if s.moment == "trained" and s.keys
        ),
    )


def capacity_table(records: Sequence[Record], stages: Sequence[str] = tuple(STAGES)) -> Markdown:
    """One line an experiment and a stage: keys, code bits, accuracy, and each error.

    *Bit errors* are those before correction, read by the levels of each image and by the paper's threshold; *wrong
    bits* those of the message after it; *whole* counts the seeds whose message came back without one.
    """

    def cells(found: Sequence[Mapping[str, Any]]) -> list[str]:
        def over(score: str, style: str) -> str:
            return spread([float(f[score]) for f in found], style)

        errors = (over(score, ".2%") for score in ("bit errors", "bit errors at 0.53"))
        whole = f"{sum(f['right'] for f in found)} of {len(found)}"
        keys, bits = str(found[0]["keys"]), f"{found[0]['code bits']:,}"
        return [keys, bits, over("accuracy", ".3f"), *errors, over("wrong bits", ".0f"), whole]

    head = ("keys", "code bits", "accuracy", "bit errors", "bit errors at 0.53", "wrong bits", "whole")
    return shown(
        "Bit errors before and after correction",
        records,
        ("model", "stage", *head),
        (
            (in_words(made[0]), stage, *cells([r.results[stage] for r in made]))
            for made in by_experiment(records).values()
            for stage in stages
            if stage in made[0].results
        ),
        "llr",
    )


def payload_table(experiment: Capacity, records: Sequence[Record]) -> Markdown:
    """What is left of a message after each attack of a campaign, as `capacity_table` tells it."""
    judged = []
    for r in records:
        stamp = experiment.stamp(shape=r.arrays["secrets"].shape[1:], outputs=1, seed=r.seed)
        found = [
            replace(s, scores=s.scores | judge(experiment.message, r.arrays[s.label], stamp))
            for s in r.stages
            if s.label in ends(r)
        ]
        judged.append(replace(r, stages=found))
    return capacity_table(judged, list(dict.fromkeys(stage for r in judged for stage in r.results)))


def message_html(experiment: Capacity, record: Record, stage: str) -> HTML:
    """The message as read back at a stage, wrong characters in red."""
    parts = []
    for read, meant in zip(record.results[stage]["message"], experiment.message.decode("latin-1"), strict=True):
        character = html.escape(read if read.isprintable() or read == "\n" else "\N{REPLACEMENT CHARACTER}")
        wrong = '<span style="color:#c00;font-weight:bold" title="wrong">'
        parts.append(character if read == meant else f"{wrong}{character}</span>")
    title = html.escape(f"{in_words(record)}, {STAGES[stage]}")
    text = f'<pre style="white-space: pre-wrap">{"".join(parts)}</pre>'
    caption = f"The message as it is read back {STAGES[stage]}, wrong characters in red"
    return HTML(f"<figure><figcaption>{title}</figcaption>{text}</figure>", metadata=about("Figure", caption, [record]))


def coverage_table(records: Sequence[Record]) -> Markdown:
    """One line a network: its size, and for each readout how it is covered, or why it is not."""
    readouts = dict.fromkeys(f"`{stage.readout}`" for record in records for stage in record.stages)
    return networks(
        "How the readouts cover each network",
        records,
        ("million parameters", *readouts),
        lambda found: (millions(found[0]), *map(covered, found)),
        "lrl",
    )


def millions(stage: Stage) -> str:
    """A network's parameters in millions, to three decimals below one."""
    count = float(stage.scores["parameters"] or 0) / 1e6
    return f"{count:.1f}" if count >= 1 else f"{count:.3f}"


def covered(stage: Stage) -> str:
    """One readout of one network in words."""
    found: Mapping[str, Any] = stage.scores
    if found["reason"] is not None:
        return str(found["reason"]).replace("\n", " ").replace("|", "/")
    if not found["finite"]:
        return "the image is not finite"
    weights, without = found["weights"], found["without gradient"]
    return f"yes, gradients in {weights - without} of {weights} weights"


def hardened_table(records: Sequence[Record]) -> Markdown:
    """One line a network: mean SSIM before hardening and after it."""
    return networks(
        "Hardening of each network",
        records,
        ("steps", "SSIM before", "SSIM after"),
        lambda found: (str(found[0].scores["steps"]), *(f"{found[0].scores[s]:.3f}" for s in ("ssim before", "ssim"))),
    )


def networks(
    caption: str,
    records: Sequence[Record],
    head: Sequence[str],
    cells: Callable[[Sequence[Stage]], Sequence[str]],
    align: str = "lr",
) -> Markdown:
    """One line for every network of the records."""
    found: dict[str, list[Stage]] = {}
    for stage in (stage for record in records for stage in record.stages):
        found.setdefault(str(stage.network), []).append(stage)
    return shown(
        caption, records, ("network", *head), ((name, *cells(stages)) for name, stages in found.items()), align
    )


def runtime_table(records: Sequence[Record], caption: str) -> Markdown:
    """One line a ratio of two steps: time with its quartiles, counted operations, memory.

    *Pixels* is the images' height and width, *every* how many task steps there are to a stamp step.
    """
    columns = {"network": "model", "pixels": "size"} | {
        name: name for name in ("keys", "every", "dropout", "noise", "precision")
    }
    defaults = {f.name: f.default for f in fields(Cost)}  # what a record does not have yet

    def cells(record: Record) -> list[str]:
        found, given = record.results["cost"], defaults | record.parameters
        time = f"{found['time']:.2f} ({found['quartile 1']:.2f} to {found['quartile 3']:.2f})"
        about = (str(given[name]) for name in columns.values())
        floors = (f"{found[name]:.2f}" for name in ("operations", "memory"))
        return [f"{given['subject']} / {given['twin']}", *about, time, *floors]

    return shown(caption, records, ("ratio", *columns, "time", "operations", "memory"), map(cells, records), "llr")


def amount(split: UsedSplit) -> str:
    """How many images of a split were used, and of how many."""
    return f"{split.images:,}" + (f" of {split.official:,}" if split.official not in (None, split.images) else "")


def listed(values: Iterable[object]) -> str:
    """Each value once, in order, in words."""
    return ", ".join(sorted({str(value) for value in values})) or "none"


def revision(provenance: Provenance) -> str:
    """The commit that something was made at."""
    commit = (provenance.commit or "unknown")[:12]
    return f"{commit} with uncommitted changes" if provenance.dirty else commit


def computed(records: Sequence[Record], *more: str) -> str:
    """How records were computed, and what `more` says, as HTML behind a toggle."""
    made = [record.provenance for record in records]
    parts = (
        *more,
        f"commits of the records: {listed(map(revision, made))}",
        f"devices: {listed(about.device for about in made)}",
        f"threads: {listed(about.threads for about in made)}",
        f"versions: {listed(f'{name} {v}' for about in made for name, v in about.versions.items())}",
        f"{sum(r.seconds for r in records) / 60:.0f} minutes of computing",
    )
    items = "".join(f"<li>{html.escape(part)}</li>" for part in parts)
    return f'<details class="cs-computed"><summary>How they were computed</summary><ul>{items}</ul></details>'


def provenance(records: Sequence[Record]) -> Markdown:
    """Where the numbers of a page come from, in a line; how they were computed, behind a toggle."""
    if not records:
        return Markdown(NOT_RUN)
    sets = dict.fromkeys(
        f"{name}, {amount(used['train'])} train images and {amount(used['test'])} test images"
        for r in records
        for name, used in r.data.items()
    )
    line = (
        f"Profile `{records[0].profile}`: {len(records)} records; data: {'; '.join(sets) or 'none'}; "
        f"seeds: {listed(r.seed for r in records)}."
    )
    return Markdown(f"{line}\n\n{computed(records)}\n")
