"""Figures, tables and sliders. Everything here reads records; nothing trains."""

import base64
import hashlib
import html
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import mean
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import HTML, Markdown
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from PIL import Image
from torch import Tensor

from clearstamp import claims
from clearstamp.capacity import Capacity
from clearstamp.errors import RecordError
from clearstamp.records import Record, load_all
from clearstamp.scores import develop, similarity

STAGES = {
    "hardened": "after hardening",
    "trained": "after constraint training",
    "finetuned": "after fine-tuning at LR/10",
}
SCORES = {
    "accuracy": "accuracy",
    "ssim": "SSIM",
    "ssim_min": "least SSIM",
    "developed_ssim": "developed SSIM",
    "correlation": "correlation",
}
READOUTS = {"paper": "tab:blue", "adjoint": "tab:orange"}


def montage(images: Tensor, columns: int = 11, gap: int = 2) -> np.ndarray:
    """Images ``[k, C, H, W]``, clamped to [0, 1], side by side on white: uint8 ``[h, w]`` or ``[h, w, 3]``."""
    pixels = (images.float().clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    count, height, width, channels = pixels.shape
    columns = min(columns, count)
    rows = -(-count // columns)
    sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, channels), 255, np.uint8)
    for place, image in enumerate(pixels):
        y, x = (place // columns) * (height + gap), (place % columns) * (width + gap)
        sheet[y : y + height, x : x + width] = image
    return sheet.squeeze(2) if channels == 1 else sheet


# ------------------------------------------------------------------------------------------------------- slider

STYLE = """
.cs-slider{max-width:44rem;margin:1rem 0;padding:.75rem;color:#111;background:#fff;border:1px solid #999;
border-radius:6px}
.cs-slider img{display:block;width:min(100%,var(--cs-width));image-rendering:pixelated;background:#fff;
filter:none!important;padding:0!important;margin:0!important;border-radius:0!important}
.cs-slider .cs-row{display:flex;gap:.6rem;align-items:center;margin:.6rem 0 .2rem}
.cs-slider label{color:#111}
.cs-slider input{flex:1 1 auto;min-width:6rem}
.cs-slider button{min-width:2.4rem;min-height:2.2rem;color:#111;background:#eee;border:1px solid #888;border-radius:4px}
.cs-slider output{display:block;color:#111;font-variant-numeric:tabular-nums}
"""

SCRIPT = """
(function () {
  const root = document.getElementById("%s");
  if (!root || root.dataset.ready) return;
  root.dataset.ready = "1";
  const data = JSON.parse(root.querySelector('script[type="application/json"]').textContent);
  const [image, range, text, button] = ["img", "input", "output", "button"].map(tag => root.querySelector(tag));
  let timer = null;
  function show(i) {
    range.value = i;
    image.src = data.frames[i];
    image.alt = data.alt + ", " + data.labels[i];
    text.textContent = data.labels[i];
    range.setAttribute("aria-valuetext", data.labels[i]);
  }
  function stop() {
    clearInterval(timer);
    timer = null;
    button.textContent = "\\u25b6";
    button.setAttribute("aria-label", "Play");
  }
  function play() {
    if (+range.value + 1 >= data.frames.length) show(0);
    button.textContent = "\\u275a\\u275a";
    button.setAttribute("aria-label", "Pause");
    timer = setInterval(() => +range.value + 1 < data.frames.length ? show(+range.value + 1) : stop(), 450);
  }
  range.addEventListener("input", () => { stop(); show(+range.value); });
  button.addEventListener("click", () => timer ? stop() : play());
  root.addEventListener("keydown", event => event.stopPropagation()); // JupyterLab takes the arrow keys otherwise
  show(data.start);
  range.disabled = button.disabled = false;
})();
"""


@dataclass(frozen=True)
class Slider:
    """A frame slider in one HTML fragment: no kernel, no widget manager, no network.

    `frames` are uint8 pictures, `labels` what each shows. The fragment is the same from run to run. Viewers that strip
    scripts show the last frame.
    """

    frames: Sequence[np.ndarray]
    labels: Sequence[str]
    name: str
    alt: str

    def __post_init__(self) -> None:
        if not self.frames or len(self.frames) != len(self.labels):
            raise RecordError("frames and labels do not pair", got=f"{len(self.frames)} and {len(self.labels)}")

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        start = len(self.frames) - 1
        uris = [f"data:image/png;base64,{base64.b64encode(png(frame)).decode()}" for frame in self.frames]
        data = json.dumps({"frames": uris, "labels": list(self.labels), "alt": self.alt, "start": start})
        data = data.replace("</", r"<\/")  # a label must not end the script element
        ident = "cs-" + hashlib.sha256((self.name + data).encode()).hexdigest()[:12]
        width = 5 * self.frames[0].shape[1]
        alt, name, label = (html.escape(text) for text in (self.alt, self.name, self.labels[start]))
        fragment = (
            f'<div class="cs-slider" role="group" aria-label="{alt}" id="{ident}" style="--cs-width:{width}px">'
            f"<style>{STYLE}</style>"
            f'<img class="dark-light" src="{uris[start]}" alt="{alt}, {label}">'
            f'<div class="cs-row"><button type="button" aria-label="Play" disabled>▶</button>'
            f'<label for="{ident}-range">{name}</label>'
            f'<input id="{ident}-range" type="range" min="0" max="{start}" step="1" value="{start}" disabled></div>'
            f'<output for="{ident}-range" aria-live="polite">{label}</output>'
            f'<script type="application/json">{data}</script><script>{SCRIPT % ident}</script></div>'
        )
        return {"text/html": fragment, "text/plain": f"{self.alt}: {'; '.join(self.labels)}"}


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def hardening_slider(record: Record) -> Slider:
    """The stamp while it is hardened: the raw signal above, the developed pictures below."""
    secrets = record.arrays["secrets"]
    frames, labels = [], []
    steps, signals = record.arrays["hardening/steps"].tolist(), record.arrays["hardening/frames"]
    for step, images in zip(steps, signals, strict=True):
        frames.append(montage(torch.cat([images, develop(images)]), columns=len(images)))
        labels.append(f"step {step}, mean SSIM {similarity(images, secrets).mean():.3f}")
    return Slider(frames, labels, "step", f"{record.experiment}, stamp during hardening")


# ------------------------------------------------------------------------------------------------------ figures


def stamp_figure(record: Record) -> Figure:
    """The secrets, then the raw signal and the developed pictures of every stage of a life cycle."""
    return stages_figure(record, {stage: title for stage, title in STAGES.items() if stage in record.arrays})


def stages_figure(record: Record, stages: Mapping[str, str]) -> Figure:
    """The secrets, then the raw signal and the developed pictures of the record's `stages`, under their titles."""
    rows = [("secret", record.arrays["secrets"])]
    for stage, title in stages.items():
        rows += [(f"{title}: raw", record.arrays[stage]), ("developed", develop(record.arrays[stage]))]
    sheets = [montage(images) for _, images in rows]
    width = 9.0
    figure, axes = plt.subplots(
        len(rows),
        1,
        figsize=(width, sum(s.shape[0] / max(s.shape[1], 160) * width + 0.3 for s in sheets)),
        squeeze=False,
    )
    for axis, (title, _), sheet in zip(axes[:, 0], rows, sheets, strict=True):
        axis.imshow(sheet, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axis.set_title(title, fontsize=9, loc="left")
        axis.axis("off")
    figure.tight_layout()
    plt.close(figure)
    return figure


def gallery_figure(records: Sequence[Record], stage: str = "finetuned") -> Figure:
    """One line of pictures a record: the raw signal at `stage`."""
    figure, axes = plt.subplots(len(records), 1, figsize=(8, 0.95 * len(records)), layout="constrained", squeeze=False)
    for axis, record in zip(axes[:, 0], records, strict=True):
        images = record.arrays[stage]
        sheet = montage(images, columns=len(images))
        axis.imshow(sheet, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        found = record.results[stage]
        axis.set_title(f"{record.experiment}, SSIM {found['ssim']:.3f}", fontsize=7, loc="left", pad=2)
        axis.axis("off")
    plt.close(figure)
    return figure


def attack_slider(record: Record, attack: str = "", *, name: str = "attack") -> Slider:
    """The stamp under a campaign's attacks: raw signal above, developed pictures below, with what is left of the model.

    Shows the stages that belong to `attack` (its steps on the way and its end), or, for none, the end of each attack.
    """
    stages = stages_of(record, attack)
    frames = [montage(torch.cat([i, develop(i)]), columns=len(i)) for i in (record.arrays[s] for s in stages)]
    labels = [
        f"{stage.removeprefix(attack).lstrip(', ') or stage}: accuracy {found['accuracy']:.3f}, "
        f"mean SSIM {found['ssim']:.3f}, developed {found['developed_ssim']:.3f}"
        for stage, found in ((stage, record.results[stage]) for stage in stages)
    ]
    alt = f"{record.experiment}, stamp under {attack or 'every attack'}"
    return Slider(frames, labels, name, alt)


def stages_of(record: Record, attack: str) -> list[str]:
    """``"before"`` and the stages of one attack of a campaign, or for none the ends of all of them."""
    found = [s for s in record.results if (s.startswith(f"{attack}, ") or s == attack if attack else is_end(record, s))]
    if not found:
        raise RecordError("the record has no such attack", got=repr(attack), expected=", ".join(record.results))
    return ["before", *found]


def is_end(record: Record, stage: str) -> bool:
    """Is a stage of a campaign the end of an attack, rather than a look on its way?"""
    return "steps" in record.results[stage]


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
    figure.legend(fontsize=8, loc="outside lower center", ncols=2)
    plt.close(figure)
    return figure


def hardening_figure(records: Iterable[Record]) -> Figure:
    """Stamp loss during hardening, then task and stamp loss during constraint training, one line a record."""
    figure, axes = plt.subplots(1, 3, figsize=(9, 2.8))
    names = ("hardening/losses", "training/losses", "training/stamp losses")
    titles = ("hardening: stamp loss", "constraint training: task loss", "constraint training: stamp loss")
    for record in records:
        for axis, name in zip(axes, names, strict=True):
            if name in record.arrays:
                losses = record.arrays[name]
                place = np.arange(len(losses)) if name == names[0] else np.linspace(0, 100, len(losses))
                readout = record.parameters["readout"]
                axis.plot(place, losses, color=READOUTS[readout], lw=1, label=readout)
    for axis, title in zip(axes, titles, strict=True):
        axis.set_title(title, fontsize=9)
        axis.set_yscale("log")
        axis.set_xlabel("step" if axis is axes[0] else "% of the training")
    handles = dict(zip(*reversed(axes[0].get_legend_handles_labels()), strict=True))
    axes[0].legend(handles.values(), handles.keys(), fontsize=8, title="readout", title_fontsize=8)
    figure.tight_layout()
    plt.close(figure)
    return figure


# ------------------------------------------------------------------------------------------------------- tables


def claims_table(notebook: str, profile: str) -> Markdown:
    """*Paper* beside *reproduced* for every claim that `notebook` checks."""
    rows = claims.judge([c for c in claims.load() if c.notebook == notebook], load_all(profile))
    return Markdown(claims.table(rows))


def score_table(records: Sequence[Record], stage: str) -> Markdown:
    """One line an experiment: the mean over its seeds of every score at `stage`."""
    columns = [s for s in SCORES if all(s in r.results[stage] for r in records)]
    names = list(dict.fromkeys(r.experiment for r in records))
    lines = [["experiment", "seeds", *(SCORES[c] for c in columns)], ["---", *["--:"] * (len(columns) + 1)]]
    for name in names:
        made = [r for r in records if r.experiment == name]
        lines.append([name, str(len(made)), *(f"{mean(r.results[stage][c] for r in made):.3f}" for c in columns)])
    return Markdown("\n".join("| " + " | ".join(line) + " |" for line in lines))


def attacks_table(records: Sequence[Record]) -> Markdown:
    """One line for every attack of the campaigns, at its end: the mean over the seeds of each score.

    *Known* is the SSIM of the keys that the attacker knew, *steps* what the attack took of the optimizer.
    """
    columns = {c: title for c, title in SCORES.items() if c != "ssim_min"} | {
        "ssim_attacked": "known",
        "steps": "steps",
    }
    lines = [["model", "attack", *columns.values()], ["---", "---", *["--:"] * len(columns)]]
    for name in dict.fromkeys(r.experiment for r in records):
        made = [r for r in records if r.experiment == name]
        model = made[0].parameters["on"]["name"].removeprefix("11-keys-")
        for stage in (s for s in made[0].results if s == "before" or is_end(made[0], s)):
            cells = []
            for column in columns:
                found = [r.results[stage][column] for r in made if column in r.results[stage]]
                cells.append(f"{mean(found):{'.0f' if column == 'steps' else '.3f'}}" if found else "")
            lines.append([model, stage, *cells])
    return Markdown("\n".join("| " + " | ".join(line) + " |" for line in lines))


def steps_table(records: Sequence[Record]) -> Markdown:
    """Hardening steps until the mean SSIM reached 0.90 and 0.95; empty where it did not."""
    lines = ["| experiment | seed | steps taken | to SSIM 0.90 | to SSIM 0.95 |", "| --- | --: | --: | --: | --: |"]
    for r in records:
        found = r.results["hardened"]
        goals = (found[f"steps to {goal}"] for goal in (0.9, 0.95))
        cells = [r.experiment, str(r.seed), str(found["steps"]), *("" if g is None else str(g) for g in goals)]
        lines.append("| " + " | ".join(cells) + " |")
    return Markdown("\n".join(lines))


def cost_table(marked: Sequence[Record], unmarked: Sequence[Record]) -> Markdown:
    """Accuracy of each marked model less that of its unmarked twin of the same seed, in points, after training."""
    twins = {r.seed: r.results["trained"]["accuracy"] for r in unmarked}
    lines = ["| experiment | seed | marked | unmarked twin | difference in points |", "| --- | --: | --: | --: | --: |"]
    for r in marked:
        own, twin = r.results["trained"]["accuracy"], twins[r.seed]
        lines.append(f"| {r.experiment} | {r.seed} | {own:.4f} | {twin:.4f} | {100 * (own - twin):+.2f} |")
    return Markdown("\n".join(lines))


def control_table(unmarked: Sequence[Record]) -> Markdown:
    """The owner's keys on trained models without a stamp: every score, for one key and for eleven."""
    lines = ["| keys, readout | seed | SSIM | developed SSIM | correlation |", "| --- | --: | --: | --: | --: |"]
    for r in unmarked:
        found = r.results["trained"]
        for keys in ("1 key", "11 keys"):
            for readout in READOUTS:
                cells = (f"{found[f'{s} ({keys}, {readout})']:.3f}" for s in ("ssim", "developed_ssim", "correlation"))
                lines.append(f"| {keys}, {readout} | {r.seed} | {' | '.join(cells)} |")
    return Markdown("\n".join(lines))


BITS = ("bit errors", "bit errors at 0.53", "wrong bits")


def capacity_table(records: Sequence[Record], stages: Sequence[str] = tuple(STAGES)) -> Markdown:
    """One line an experiment and a stage: keys, code bits, accuracy, and the mean over the seeds of each error.

    *Bit errors* are those before correction, read by the levels of each image and by the paper's threshold; *wrong
    bits* those of the message after it; *whole* counts the seeds whose message came back without one.
    """
    titles = ("experiment", "stage", "keys", "code bits", "accuracy", *BITS[:2], BITS[2], "whole")
    lines = [titles, ("---", "---", *["--:"] * (len(titles) - 2))]
    for name in dict.fromkeys(r.experiment for r in records):
        made = [r for r in records if r.experiment == name]
        for stage in (s for s in stages if s in made[0].results):
            found = [r.results[stage] for r in made]
            errors = (f"{mean(f[bits] for f in found):.2%}" for bits in BITS[:2])
            whole = f"{sum(f['right'] for f in found)} of {len(found)}"
            first = (name, stage, str(found[0]["keys"]), f"{found[0]['code bits']:,}")
            wrong = f"{mean(f['wrong bits'] for f in found):.0f}"
            lines.append((*first, f"{mean(f['accuracy'] for f in found):.3f}", *errors, wrong, whole))
    return Markdown("\n".join("| " + " | ".join(line) + " |" for line in lines))


def errors_figure(groups: Mapping[str, Sequence[Record]], along: str, stage: str = "hardened") -> Figure:
    """Bit errors before correction at `stage` against a result or a parameter of the experiments, one line a group."""
    figure, axis = plt.subplots(figsize=(6, 3.5), layout="constrained")
    for title, made in groups.items():
        points = sorted((({**r.parameters, **r.results[stage]})[along], r.results[stage]["bit errors"]) for r in made)
        axis.plot(*zip(*points, strict=True), marker="o", label=title)
    axis.set_xlabel(along)
    axis.set_ylabel("bit errors before correction")
    axis.yaxis.set_major_formatter(PercentFormatter(1.0))
    axis.legend(fontsize=8)
    plt.close(figure)
    return figure


def patches_slider(records: Sequence[Record], stage: str = "hardened", most: int = 11) -> Slider:
    """The first images of experiments that differ in their patches: secrets above, what was read out below."""
    frames, labels = [], []
    for r in sorted(records, key=lambda r: r.parameters["patches"]):
        shown = [r.arrays[name][:most] for name in ("secrets", stage)]
        frames.append(montage(torch.cat(shown), columns=len(shown[0])))
        bits, errors = r.parameters["patches"] ** 2, r.results[stage]["bit errors"]
        labels.append(f"{bits} bits an image, bit errors {errors:.2%}, mean SSIM {r.results[stage]['ssim']:.3f}")
    return Slider(frames, labels, "patches", f"dot codes, secrets and as read {STAGES[stage]}")


def message_html(experiment: Capacity, record: Record, stage: str) -> HTML:
    """The message as read back at a stage, wrong characters in red."""
    found = experiment.read(record.arrays[stage], record.seed).data.decode("latin-1")
    parts = []
    for read, meant in zip(found, experiment.message.decode("latin-1"), strict=True):
        shown = html.escape(read if read.isprintable() or read == "\n" else "\N{REPLACEMENT CHARACTER}")
        wrong = '<span style="color:#c00;font-weight:bold" title="wrong">'
        parts.append(shown if read == meant else f"{wrong}{shown}</span>")
    title = html.escape(f"{record.experiment}, {STAGES[stage]}")
    text = f'<pre style="white-space: pre-wrap">{"".join(parts)}</pre>'
    return HTML(f"<figure><figcaption>{title}</figcaption>{text}</figure>")


def payload_table(experiment: Capacity, records: Sequence[Record]) -> Markdown:
    """What is left of a message after each attack of a campaign, as `capacity_table` tells it."""
    judged = []
    for r in records:
        ends = [stage for stage in r.results if stage == "before" or is_end(r, stage)]
        found = {s: r.results[s] | experiment.judge(r.arrays[s], r.arrays["secrets"], r.seed) for s in ends}
        judged.append(replace(r, results=found))
    return capacity_table(judged, list(judged[0].results))


def coverage_table(records: Sequence[Record]) -> Markdown:
    """One line a network: its size, and for each readout how it is covered, or why it is not."""
    lines = ["| network | million parameters | `paper` | `adjoint` |", "| --- | --: | --- | --- |"]
    for name, found in (item for record in records for item in record.results.items()):
        cells = [covered({key: found.get(f"{key} ({readout})") for key in COVER}) for readout in READOUTS]
        lines.append(f"| {name} | {found['parameters'] / 1e6:.1f} | " + " | ".join(cells) + " |")
    return Markdown("\n".join(lines))


COVER = ("reason", "finite", "weights", "without gradient")


def covered(found: Mapping[str, Any]) -> str:
    """One readout of one network in words."""
    if found["reason"] is not None:
        return str(found["reason"]).replace("\n", " ").replace("|", "/")
    if not found["finite"]:
        return "the image is not finite"
    reached = found["weights"] - found["without gradient"]
    return f"yes, gradients in {reached} of {found['weights']} weights"


def hardened_table(records: Sequence[Record]) -> Markdown:
    """One line a network: mean SSIM before hardening and after it."""
    lines = ["| network | steps | SSIM before | SSIM after |", "| --- | --: | --: | --: |"]
    for name, found in (item for record in records for item in record.results.items()):
        lines.append(f"| {name} | {found['steps']} | {found['ssim before']:.3f} | {found['ssim']:.3f} |")
    return Markdown("\n".join(lines))


def amount(record: Record, part: str) -> str:
    """How many images of a split were used, and of how many."""
    used, official = (record.dataset[part].get(key) for key in ("images", "official"))
    return f"{used:,}{f' of {official:,}' if official not in (None, used) else ''} {part} images"


def provenance(records: Sequence[Record]) -> Markdown:
    """Where the numbers of a page come from."""
    if not records:
        raise RecordError("no record to tell the provenance of")
    r = records[0]
    sets = dict.fromkeys(f"{x.dataset['name']}, {amount(x, 'train')} and {amount(x, 'test')}" for x in records)
    commits = sorted({x.provenance["commit"][:10] + ("+changes" if x.provenance["dirty"] else "") for x in records})
    seeds = sorted({x.seed for x in records})
    versions = ", ".join(f"{k} {v}" for k, v in r.provenance["versions"].items())
    seconds = sum(x.wall_seconds for x in records)
    return Markdown(
        f"Profile `{r.profile}`: {'; '.join(sets)}; seeds {', '.join(map(str, seeds))}; "
        f"{len(records)} records, {seconds / 60:.0f} minutes of computing on {r.provenance['device']} with "
        f"{r.provenance['threads']} threads; {versions}; commit {', '.join(commits) or 'unknown'}."
    )
