"""Figures of records."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from IPython.display import Markdown
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, PercentFormatter
from torch import Tensor

from clearstamp.pictures import develop, montage
from clearstamp.reproduction.records import Record
from clearstamp.reproduction.report.exhibits import NOT_RUN, finished
from clearstamp.reproduction.report.stages import SCORES, STAGES, by_model, in_words
from clearstamp.transposed.walk import Walked


def stamp_figure(record: Record) -> Figure:
    """The secrets, then the raw signal and the developed pictures of every stage of a life cycle."""
    return stages_figure(record, {stage: title for stage, title in STAGES.items() if stage in record.arrays})


def stages_figure(record: Record, stages: Mapping[str, str]) -> Figure:
    """The secrets, then the raw signal and the developed pictures of the record's `stages`, under their titles."""
    rows = {"secret": record.arrays["secrets"]}
    for stage, title in stages.items():
        rows |= {f"{title}: raw": record.arrays[stage], f"{title}: developed": develop(record.arrays[stage])}
    return images_figure(rows, f"The secrets and what is read: {in_words(record)}", [record])


def life_figure(record: Record, count: int = 4) -> Figure:
    """The four steps of a stamp's life from left to right: the first secrets as they are read after each."""
    titles = {
        "hardened": "1. hardening",
        "trained": "2. constraint\ntraining",
        "finetuned": "3. fine-tuning,\n4. extraction",
    }
    pictures = {"the secrets": record.arrays["secrets"]} | {t: record.arrays[stage] for stage, t in titles.items()}
    figure, axes = plt.subplots(1, len(pictures), figsize=(9, 2.8), gridspec_kw={"wspace": 0.45})
    for axis, (title, images) in zip(axes, pictures.items(), strict=True):
        axis.imshow(montage(images[:count], columns=2), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axis.set_title(title, fontsize=10)
        axis.set(xticks=[], yticks=[])
    for axis, stage in zip(axes[1:], titles, strict=False):
        found = record.results[stage]
        axis.set_xlabel(f"accuracy {found['accuracy']:.1%}\nmean SSIM {found['ssim']:.2f}", fontsize=9)
    for axis in axes[:-1]:
        arrow = {"arrowstyle": "->", "lw": 1.5}
        axis.annotate("", (1.4, 0.5), (1.05, 0.5), xycoords="axes fraction", arrowprops=arrow, annotation_clip=False)
    return finished(figure, f"The life of a stamp: {in_words(record)}", [record])


def gallery_figure(records: Sequence[Record], stage: str = "finetuned") -> Figure:
    """One line of pictures a record: the raw signal at `stage`."""
    rows = {f"{in_words(r)}, SSIM {r.results[stage]['ssim']:.3f}": r.arrays[stage] for r in records}
    return images_figure(rows, f"The raw signal {STAGES[stage]}", records)


def images_figure(rows: Mapping[str, Tensor], caption: str = "", records: Iterable[Record] = ()) -> Figure:
    """A line of images ``[k, C, H, W]`` under each title; without a `caption`, the titles are it."""
    sheets = {title: montage(images, columns=len(images)) for title, images in rows.items()}
    width = 9.0
    heights = [sheet.shape[0] / max(sheet.shape[1], 160) * width + 0.3 for sheet in sheets.values()]
    figure, axes = plt.subplots(len(rows), 1, figsize=(width, sum(heights)), layout="constrained", squeeze=False)
    for axis, (title, sheet) in zip(axes[:, 0], sheets.items(), strict=True):
        axis.imshow(sheet, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axis.set_title(title, fontsize=9, loc="left")
        axis.axis("off")
    return finished(figure, caption or "; ".join(rows), records)


def plane_figure(groups: Mapping[str, Sequence[Record]], *, metric: str = "developed_ssim") -> Figure:
    """Every stage of every record on one plane: accuracy left, and legibility left.

    One colour a group. The line of each group is its attackers' front: the least legibility that was reached at that
    accuracy or more.
    """
    figure, axis = plt.subplots(figsize=(8, 5.5), layout="constrained")
    for colour, (title, made) in zip(plt.rcParams["axes.prop_cycle"].by_key()["color"], groups.items(), strict=False):
        points = sorted((found["accuracy"], found[metric]) for r in made for found in r.results.values())
        if not points:
            continue
        accuracies, scores = np.array(points).T
        axis.scatter(accuracies, scores, s=14, color=colour, alpha=0.5, linewidths=0)
        front = np.minimum.accumulate(scores[::-1])[::-1]
        axis.plot(accuracies, front, color=colour, drawstyle="steps-pre", lw=1.5, label=title)
    axis.set_xlabel("accuracy left")
    axis.set_ylabel(f"legibility left ({SCORES[metric]})")
    if axis.lines:
        figure.legend(fontsize=8, loc="outside lower center", ncols=2)
    caption = "Accuracy left and legibility left after every attack"
    return finished(figure, caption, chain.from_iterable(groups.values()))


def hardening_figure(records: Sequence[Record]) -> Figure | Markdown:
    """Stamp loss during hardening, then task and stamp loss during constraint training, one line a record."""
    if not records:
        return Markdown(NOT_RUN)
    figure, axes = plt.subplots(1, 3, figsize=(9, 2.8))
    names = ("hardening/losses", "training/losses", "training/stamp losses")
    titles = ("hardening: stamp loss", "constraint training: task loss", "constraint training: stamp loss")
    colours = {words: f"C{place}" for place, words in enumerate(by_model(records))}
    for record in records:
        for axis, name in zip(axes, names, strict=True):
            if name in record.arrays:
                losses = record.arrays[name]
                place = np.arange(len(losses)) if name == names[0] else np.linspace(0, 100, len(losses))
                words = in_words(record)
                axis.plot(place, losses, color=colours[words], lw=1, label=words)
    for axis, title in zip(axes, titles, strict=True):
        axis.set_title(title, fontsize=9)
        axis.set_yscale("log")
        axis.set_xlabel("step" if axis is axes[0] else "% of the training")
    handles = dict(zip(*reversed(axes[0].get_legend_handles_labels()), strict=True))
    axes[0].legend(handles.values(), handles.keys(), fontsize=7)
    figure.tight_layout()
    return finished(figure, "Losses of hardening and of constraint training", records)


def errors_figure(groups: Mapping[str, Sequence[Record]], along: str, stage: str = "hardened") -> Figure:
    """Bit errors before correction at `stage` against a result or a parameter of the experiments, one line a group."""
    figure, axis = plt.subplots(figsize=(6, 3.5), layout="constrained")
    for title, made in groups.items():
        points = sorted((({**r.parameters, **r.results[stage]})[along], r.results[stage]["bit errors"]) for r in made)
        axis.plot(*zip(*points, strict=True), marker="o", label=title)
    axis.set_xlabel(along)
    axis.set_ylabel("bit errors before correction")
    axis.yaxis.set_major_formatter(PercentFormatter(1.0))
    if axis.lines:
        axis.legend(fontsize=8)
    return finished(figure, f"Bit errors against {along}", chain.from_iterable(groups.values()))


def scaling_figure(groups: Mapping[str, Sequence[Record]]) -> Figure:
    """Cost against a parameter or a result of the experiments, a panel a group named by it, with its floor.

    Time, its quartiles as bars, beside counted operations; both axes logarithmic, where linear cost is a straight line
    of slope one.
    """
    figure, axes = plt.subplots(
        1, len(groups), figsize=(3 * len(groups), 3), layout="constrained", squeeze=False, sharey=True
    )
    for axis, (along, made) in zip(axes[0], groups.items(), strict=True):
        found = sorted((r.parameters | r.results["cost"] for r in made), key=lambda f: f[along])
        places, times = ([f[name] for f in found] for name in (along, "time"))
        spread = [[abs(f["time"] - f[f"quartile {n}"]) for f in found] for n in (1, 3)]
        axis.errorbar(places, times, spread, marker="o", ms=4, capsize=2, label="time")
        axis.plot(places, [f["operations"] for f in found], marker=".", ls="--", label="operations")
        if made:  # nothing at all cannot be on a logarithmic scale
            axis.set(xscale="log", yscale="log")
            axis.set_xticks(places, map(EngFormatter(places=0, sep=""), places), fontsize=8)
            axis.set_xticks([], minor=True)
        axis.set_xlabel(along)
    axes[0, 0].set_ylabel("stamp step / task step")
    axes[0, 0].legend(fontsize=8)
    return finished(figure, "Cost of a stamp step at scale", chain.from_iterable(groups.values()))


def parts_figure(records: Sequence[Record]) -> Figure:
    """Where a stamp step's time goes: its parts one after the other, in task steps.

    The records are those of the steps ``walk``, ``measure``, ``stamp`` and ``update`` of a `Workbench`, each over a
    task step. Each holds all that comes before it, but the last, which is part of ``stamp``.
    """
    times = {record.parameters["subject"]: record.results["cost"]["time"] for record in records}
    figure, axis = plt.subplots(figsize=(8, 1.8), layout="constrained")
    if times:
        walk, measure, stamp, update = (times[step] for step in ("walk", "measure", "stamp", "update"))
        parts = {
            "walk": walk,
            "SSIM and MSE": measure - walk,
            "backward": stamp - measure - update,
            "optimizer": update,
        }
        left = 0.0
        for name, width in parts.items():
            width = max(width, 0.0)  # medians of noisy times may not add up
            axis.barh(0, width, left=left, label=f"{name} {width:.2f}")
            left += width
        axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.5), ncols=len(parts))
    axis.set(yticks=[], xlabel="time of a task step")
    return finished(figure, "Where the time of a stamp step goes", records)


def walk_figure(back: Walked, key: Tensor, most: int = 16) -> Figure:
    """One key ``[outputs]`` on its way to an image: the signal below each layer, at most `most` channels of it.

    A vector is laid out in rows. Each picture's levels are stretched by themselves.
    """
    signals = {"the key": key[None]} | back.signals(key[None].to(back.device))
    columns = 4
    rows = -(-len(signals) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(9, 2.3 * rows), layout="constrained", squeeze=False)
    for axis, (name, signal) in zip(axes.flat, signals.items(), strict=False):
        shape = " x ".join(map(str, signal.shape[1:]))
        axis.set_title(f"{name}\n{shape}", fontsize=8)
        axis.imshow(sheet(signal[0].cpu(), most).numpy(), cmap="gray", interpolation="nearest")
    for axis in axes.flat:
        axis.axis("off")
    return finished(figure, "One key on its way through the transposed network", ())


def sheet(signal: Tensor, most: int) -> Tensor:
    """A vector in rows of a power of two, or channels ``[C, H, W]`` side by side, as one picture ``[h, w]``."""
    if signal.dim() == 1:
        width = 2 ** -(-int(len(signal)).bit_length() // 2)
        return F.pad(signal, (0, -len(signal) % width), value=float("nan")).reshape(-1, width)
    chosen = F.pad(signal[:most], (0, 1, 0, 1), value=float("nan"))
    across = -(-len(chosen) // max(1, round(len(chosen) ** 0.5)))
    blank = chosen.new_full((-len(chosen) % across, *chosen.shape[1:]), float("nan"))
    grid = torch.cat([chosen, blank]).unflatten(0, (-1, across))
    return grid.permute(0, 2, 1, 3).flatten(2).flatten(0, 1)
