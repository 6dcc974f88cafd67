"""What chapter 10 shows: pictures seen through an interface, and networks that no rule knows."""

from collections.abc import Sequence

import torch
from IPython.display import Markdown

from clearstamp.pictures import as_pictures, develop, montage
from clearstamp.reproduction.records import Record, Stage
from clearstamp.reproduction.report.sliders import STAMP_ROWS, Slider
from clearstamp.reproduction.report.stages import SCORES
from clearstamp.reproduction.report.tables import shown, spread


def interviews(record: Record) -> list[Stage]:
    """The stages of an interface that was asked."""
    return [stage for stage in record.stages if "queries" in stage.scores]


def queries_table(records: Sequence[Record]) -> Markdown:
    """One line an interface and share of the coefficients: queries a key, and how good the pictures are."""
    labels = dict.fromkeys(stage.label for record in records for stage in interviews(record))

    def cells(label: str) -> list[str]:
        found = [record.results[label] for record in records if label in record.results]
        styles = {"queries": ",.0f", "exact correlation": ".3f", "ssim": ".3f"}
        return [spread([scores[name] for scores in found], style) for name, style in styles.items()]

    return shown(
        "Pictures read by queries alone",
        records,
        ("what is told, share of the coefficients", "queries a key", "correlation with the exact picture", "SSIM"),
        ((label, *cells(label)) for label in labels),
    )


def queries_slider(record: Record, *, along: bool = True) -> Slider:
    """The pictures as an interface shows them: along the queries of the first, or at the end of each interface."""
    stages, whole = interviews(record), len(record.parameters["shares"])
    first = stages[0].label.rpartition(", ")[0]
    chosen = stages[:whole] if along else stages[whole - 1 :]
    secrets = record.arrays["secrets"]
    frames = [
        montage(torch.cat([secrets, record.arrays[s.label], develop(record.arrays[s.label])]), columns=len(secrets))
        for s in chosen
    ]
    labels = [
        f"{s.label}: {s.scores['queries']:,.0f} queries a key, "
        f"correlation with the exact picture {s.scores['exact correlation']:.3f}"
        for s in chosen
    ]
    name = "queries" if along else "interface"
    alt = "The stamp read by queries alone, " + (f"from {first}" if along else "whatever is told")
    return Slider(frames, labels, name, alt, [record], STAMP_ROWS, start=len(frames) - 1 if along else 0)


def networks_table(records: Sequence[Record]) -> Markdown:
    """One line a network and moment: accuracy on its task, and every score of its pictures."""
    labels = dict.fromkeys(stage.label for record in records for stage in record.stages)
    columns = [score for score in SCORES if any(score in found for r in records for found in r.results.values())]
    return shown(
        "Networks without a rule",
        records,
        ("network", "seeds", *(SCORES[column] for column in columns)),
        (
            (label, str(len(records)), *(spread([r.results[label][column] for r in records]) for column in columns))
            for label in labels
        ),
    )


def networks_slider(record: Record) -> Slider:
    """The pictures of each network after hardening and after training."""
    frames, labels = [], []
    for stage in record.stages:
        images = as_pictures(record.arrays[stage.label])
        secrets = as_pictures(record.arrays[f"{stage.network}, secrets"])
        frames.append(montage(torch.cat([secrets, images, develop(images)]), columns=len(secrets)))
        labels.append(f"{stage.label}: developed SSIM {stage.scores['developed_ssim']:.3f}")
    return Slider(frames, labels, "network", "Stamps in networks without a rule", [record], STAMP_ROWS)
