"""What chapter 9 shows: every watermark by the same measures, under the same attacks."""

from collections.abc import Iterator, Mapping, Sequence
from statistics import mean
from typing import Any

import matplotlib.pyplot as plt
import torch
from IPython.display import Markdown
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from clearstamp.pictures import as_pictures
from clearstamp.reproduction.records import Record
from clearstamp.reproduction.registry import RIVALS, named
from clearstamp.reproduction.report.exhibits import NOT_RUN, finished
from clearstamp.reproduction.report.figures import images_figure
from clearstamp.reproduction.report.stages import by_experiment
from clearstamp.reproduction.report.tables import shown, spread
from clearstamp.reproduction.rivals import ALIGNED, DETECTORS
from clearstamp.schemes import SCHEMES

WORTH = 0.035
"""The accuracy that an attack may cost and still be one: 3.5 points."""


LI = {
    "accuracy without a mark": "0.9892 (Table 1)",
    "drop of accuracy, points": "up to 0.66 (6.1)",
    "key accuracy": "above 0.90 (6.2)",
    "key accuracy of models without a mark": "0.09 to 0.13 (6.2)",
    "key accuracy on other owners' models": "0.68 (Figure 9)",
    "AUC of a detector of queries": "0.5 (Figure 6)",
    "AUC of one by the model's features": "0.65, of ResNet-18 (Figure 7)",
    "SSIM of samples and covers": "",
    "samples of other covers answered as these": "",
}
"""What Li et al. (ACSAC 2019) report of LeNet-5 or, where they name no network, of all of theirs, and where."""


def titled(records: Sequence[Record]) -> dict[str, list[Record]]:
    """The records of each watermark by its title."""
    made = by_experiment(records)
    found = {}
    for title in RIVALS:
        for name in (f"rival-{named(title)}", f"rival-{named(title)}-cifar10"):
            if name in made:
                found[title] = made[name]
    return found


def column(records: Sequence[Record], stage: str, score: str, style: str = ".3f") -> str:
    """The mean of one score of a stage and its spread; a dash where it is no number."""
    found = [record.results.get(stage, {}).get(score) for record in records]
    return spread([value for value in found if value is not None], style) or "–"


def cost_in_points(records: Sequence[Record]) -> str:
    """Accuracy of the twin less that of the marked model, in points."""
    lost = [record.results["twin"]["accuracy"] - record.results["marked"]["accuracy"] for record in records]
    return spread([100 * each for each in lost], "+.2f")


def greatest(records: Sequence[Record], stage: str, score: str) -> str:
    """The greatest of all seeds, of p in powers of ten."""
    found = [record.results[stage][score] for record in records if record.results[stage].get(score) is not None]
    if not found:
        return "–"
    if score == "p":
        return f"{max(found):.0e}" if max(found) else "< 1e-300"  # too small for a number of 64 bits
    return f"{max(found):.2f}"


def told(record: Record) -> Any:
    """The class of a record's scheme."""
    return SCHEMES[record.parameters["scheme"]["name"]]


def rivals_table(records: Sequence[Record]) -> Markdown:
    """One line a watermark: what it costs, who can read it, and what its verdict is worth."""

    def row(made: Sequence[Record]) -> list[str]:
        scheme = told(made[0])
        return [
            cost_in_points(made),
            column(made, "marked", "score", ".2f"),
            greatest(made, "marked", "p"),
            column(made, "marked", "bits", ".0f"),
            scheme.access,
            "yes" if scheme.readable else "no",
            column(made, "marked", "queries", ",.0f"),
        ]

    head = ("watermark", "cost, points", "score", "p", "bits", "asks for", "readable", "queries")
    return shown(
        "Watermarks side by side", records, head, ((title, *row(made)) for title, made in titled(records).items())
    )


def pace_table(records: Sequence[Record]) -> Markdown:
    """One line a watermark: the time and the memory of a batch with it over those of one without."""
    rows = [
        (
            *(stage.label, f"{stage.scores['time']:.2f}"),
            *(f"{stage.scores['least']:.2f} to {stage.scores['most']:.2f}", f"{stage.scores['memory']:.2f}"),
        )
        for record in records
        for stage in record.stages
    ]
    head = ("watermark", "time of a batch", "range", "memory")
    return shown("What a watermark costs in training", records, head, rows)


def innocents_table(records: Sequence[Record]) -> Markdown:
    """One line a watermark: how high the owner's key, fresh keys and one made up score on models without a mark."""
    kinds = ("owner's key", "fresh keys", "made-up key")

    def row(made: Sequence[Record]) -> Iterator[str]:
        for kind in kinds:
            stage = f"innocent, {kind}"
            yield greatest(made, stage, "score")
            results = [record.results[stage] for record in made]
            accused = sum(int(found.get("accused", found.get("accepted", 0))) for found in results)
            yield f"{accused} of {sum(int(found.get('of', 1)) for found in results)}"

    head = ("watermark", *(name for kind in kinds for name in (f"{kind}: highest score", "accused")))
    return shown("Innocent models", records, head, ((title, *row(made)) for title, made in titled(records).items()))


def holds(record: Record, scores: Mapping[str, Any]) -> bool:
    """Whether the owner's claim is accepted after an attack; of a fragile mark, whether the change is seen."""
    return bool(scores["score"] < 1 if told(record).fragile else scores["accepted"])


def cheap(record: Record, label: str) -> bool:
    """Whether an attack was made and cost little. A new task has an accuracy of its own."""
    scores = record.results[label]
    if "accuracy" not in scores:
        return False
    return label.startswith("head") or scores["accuracy"] >= record.results["marked"]["accuracy"] - WORTH


KEPT, LOST = "accepted, or its change detected", "lost, at little cost"
BOUGHT = f"lost, at the cost of more than {100 * WORTH:g} points"
NEITHER = "does not apply, or nothing was there to lose"
FATES = {KEPT: "#cfe3f5", LOST: "#f4b183", BOUGHT: "#e0e0e0", NEITHER: "#ffffff"}
"""The colours of what comes of a mark."""
WORST_FIRST = (LOST, BOUGHT, NEITHER, KEPT)


def fate(record: Record, label: str) -> str:
    """What comes of a mark by one attack."""
    unseen = told(record).fragile and label.startswith((ALIGNED, "interface"))  # undone by the owner, or no change
    if unseen or "failed" in record.results[label] or not record.results["marked"]["accepted"]:
        return NEITHER
    return KEPT if holds(record, record.results[label]) else LOST if cheap(record, label) else BOUGHT


def spared(record: Record, label: str) -> bool:
    """Whether a mark was left by an attack that cost little."""
    return label in record.results and fate(record, label) == KEPT and cheap(record, label)


def survival_table(records: Sequence[Record]) -> Markdown:
    """One line a watermark: how many attacks it withstood of those that cost little, and the others by name.

    Of several seeds an attack counts as lost if the mark was lost once; behind it stands how often.
    """

    def row(made: Sequence[Record]) -> tuple[str, str]:
        labels = list(dict.fromkeys(stage.label for record in made for stage in record.stages if stage.attack))
        if not any(record.results["marked"]["accepted"] for record in made):
            return "–", "not embedded"
        counts = {label: sum(label in r.results and fate(r, label) == LOST for r in made) for label in labels}
        survived = [label for label, n in counts.items() if not n and any(spared(record, label) for record in made)]
        names = [f"{label} ({n} of {len(made)})" if n < len(made) else label for label, n in counts.items() if n]
        return f"{len(survived)} of {len(survived) + len(names)}", ", ".join(names)

    rows = ((title, *row(made)) for title, made in titled(records).items())
    return shown("Which attacks a watermark survives", records, ("watermark", "survives", "lost to"), rows, "lrl")


def survival_figure(records: Sequence[Record]) -> Figure | Markdown:
    """One row an attack, one column a watermark: the score that is left, and what comes of the mark.

    Of several seeds the mean score, and the worst that came of any.
    """
    made = titled(records)
    if not made:
        return Markdown(NOT_RUN)
    labels = list(dict.fromkeys(stage.label for record in records for stage in record.stages if stage.attack))
    figure, axis = plt.subplots(figsize=(1.9 + 0.34 * len(made), 0.9 + 0.2 * len(labels)), layout="constrained")
    for across, of in enumerate(made.values()):
        for down, label in enumerate(labels):
            fates = {fate(record, label) for record in of if label in record.results}
            colour = FATES[min(fates, key=WORST_FIRST.index, default=NEITHER)]
            axis.add_patch(Rectangle((across, down), 1, 1, facecolor=colour, edgecolor="white"))
            left = [record.results[label]["score"] for record in of if "score" in record.results.get(label, {})]
            axis.text(
                across + 0.5, down + 0.55, f"{mean(left):.2f}" if left else "", fontsize=6, ha="center", va="center"
            )
    axis.set(xlim=(0, len(made)), ylim=(len(labels), 0))
    axis.set_xticks([place + 0.5 for place in range(len(made))], list(made), rotation=90, fontsize=8)
    axis.set_yticks([place + 0.5 for place in range(len(labels))], labels, fontsize=7)
    axis.tick_params(length=0, labeltop=True, labelbottom=False)
    axis.spines[:].set_visible(False)
    patches = [
        Rectangle((0, 0), 1, 1, facecolor=colour, edgecolor="grey", label=name) for name, colour in FATES.items()
    ]
    figure.legend(handles=patches, loc="outside lower left", ncols=2, fontsize=7, frameon=False)
    return finished(figure, "What every attack leaves of each watermark", records)


def points_tables(records: Sequence[Record]) -> list[Markdown]:
    """For each watermark one line an attack: accuracy, score, p, and the verdict."""

    def row(made: Sequence[Record], label: str) -> list[str]:
        failed = [str(record.results[label]["failed"]) for record in made if "failed" in record.results[label]]
        if failed:
            return ["–", "–", "–", failed[0].split(";")[0]]
        accepted = sum(bool(record.results[label]["accepted"]) for record in made)
        numbers = (column(made, label, "accuracy"), column(made, label, "score"), greatest(made, label, "p"))
        return [*numbers, f"{accepted} of {len(made)}"]

    tables = []
    for title, made in titled(records).items():
        labels = [stage.label for stage in made[0].stages if stage.attack]
        head = ("attack", "accuracy", "score", "greatest p", "accepted")
        tables.append(shown(f"Every attack on {title}", made, head, ((label, *row(made, label)) for label in labels)))
    return tables


def rivals_gallery(records: Sequence[Record]) -> Figure | Markdown:
    """What a person sees of each watermark: pictures that come out of the model, or the owner's queries."""
    pictures: dict[str, torch.Tensor] = {}
    for title, made in titled(records).items():
        for record in made:
            if "seen" in record.arrays:
                kind = "read out of the model" if told(record).readable else "asked by the owner"
                pictures.setdefault(f"{title}: {kind}", as_pictures(record.arrays["seen"].clamp(0, 1)))
    if not pictures:
        return Markdown(NOT_RUN)
    return images_figure(pictures, "What a person sees of each watermark", records)


POSTER = {"GradSigns, 32": "0.8", "GradSigns, 64": "0.7"}
"""Points of accuracy that GradSigns cost its authors on CIFAR-10 (poster at MLSys 2021)."""


def own_terms_table(records: Sequence[Record]) -> Markdown:
    """One line a message: what it costs on the network of its scheme's source, and what is read."""

    def row(title: str, made: Sequence[Record]) -> list[str]:
        lost = [100 * (each.results["twin"]["accuracy"] - each.results[title]["accuracy"]) for each in made]
        published = next((points for beginning, points in POSTER.items() if title.startswith(beginning)), "–")
        stages = [each.results[title] for each in made]
        right = ", ".join(f"{round(s['score'] * s['trials'])} of {s['trials']}" for s in stages)
        return [
            *(published, spread(lost, "+.2f"), right, greatest(made, title, "p")),
            *(
                column(made, title, score, style)
                for score, style in (("score of the twin", ".2f"), ("queries", ",.0f"))
            ),
        ]

    rows = [
        (stage.label, *row(stage.label, made))
        for made in by_experiment(records).values()
        for stage in made[0].stages
        if stage.label != "twin"
    ]
    head = ("mark", "cost, paper", "cost, points", "bits right", "p", "share right without a mark", "queries")
    return shown("Messages by the measures of their sources", records, head, rows)


def blind_table(records: Sequence[Record]) -> Markdown:
    """Li et al.'s numbers beside ours."""

    def values(results: Mapping[str, Any]) -> list[float]:
        twin, marked, transfer = results["twin"], results["marked"], results["transfer"]
        lost = 100 * (twin["accuracy"] - marked["accuracy"])
        detectors = [results[f"detector of {seen}"]["AUC"] for seen in DETECTORS]
        scores = [twin["accuracy"], lost, marked["score"], twin["score"], transfer["others"], *detectors]
        return [*scores, marked["ssim"], marked["other covers as before"]]

    made = by_experiment(records)
    found = {name: [values(record.results) for record in of] for name, of in made.items()}
    titles = {"blind-published": "weights of the paper", "blind-code": "weights of the code"}
    rows = [
        (row, number, *(spread([each[place] for each in found[name]], ".4f") for name in found))
        for place, (row, number) in enumerate(LI.items())
        if made
    ]
    head = ("LeNet-5", "paper", *(titles[name] for name in found))
    return shown("Li et al., the paper beside reproduced", records, head, rows)
