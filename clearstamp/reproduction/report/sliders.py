"""Frame sliders: a picture, a range, and what it shows in words, in one HTML fragment."""

import base64
import hashlib
import html
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from clearstamp.errors import RecordError
from clearstamp.pictures import develop, montage
from clearstamp.reproduction.experiments import FEW
from clearstamp.reproduction.records import Record
from clearstamp.reproduction.report.exhibits import about
from clearstamp.reproduction.report.stages import STAGES, in_words, stages_of
from clearstamp.scores import similarity

HOLDS = 0.02
"""How far under that of the first position an accuracy may lie and still hold: two points."""


@dataclass(frozen=True)
class Slider:
    """A frame slider in one HTML fragment: no kernel, no widget manager, no network.

    `frames` are uint8 pictures, `labels` what each shows, `rows` the names of a frame's rows, which are equally high.
    It opens at `start`, which is also what viewers that strip scripts show. The fragment is the same from run to run.
    """

    frames: Sequence[np.ndarray]
    labels: Sequence[str]
    name: str
    alt: str
    records: Sequence[Record] = ()
    rows: Sequence[str] = ()
    start: int = 0

    def __post_init__(self) -> None:
        if not self.frames or len(self.frames) != len(self.labels):
            raise RecordError("frames and labels do not pair", got=f"{len(self.frames)} and {len(self.labels)}")
        if self.start not in range(len(self.frames)):
            raise RecordError("no such position", got=self.start, expected=f"0 to {len(self.frames) - 1}")

    def _repr_mimebundle_(self, **_: Any) -> tuple[dict[str, str], dict[str, Any]]:
        uris = [f"data:image/webp;base64,{base64.b64encode(webp(pixels)).decode()}" for pixels in self.frames]
        data = json.dumps({"frames": uris, "labels": list(self.labels), "alt": self.alt, "start": self.start})
        data = data.replace("</", r"<\/")  # a label must not end the script element
        ident = "cs-" + hashlib.sha256((self.name + data).encode()).hexdigest()[:12]
        width = 5 * self.frames[0].shape[1]
        alt, name, label = (html.escape(text) for text in (self.alt, self.name, self.labels[self.start]))
        rows = "".join(f"<div>{html.escape(row)}</div>" for row in self.rows)
        style, script = beside("slider.css"), beside("slider.js").replace("SLIDER", ident)
        fragment = (
            f'<div class="cs-slider" role="group" aria-label="{alt}" id="{ident}" style="--cs-width:{width}px">'
            f"<style>\n{style}</style>"
            f'<div class="cs-frame"><div class="cs-names">{rows}</div>'
            f'<img class="dark-light" src="{uris[self.start]}" alt="{alt}, {label}"></div>'
            f'<div class="cs-row"><button type="button" aria-label="Play" disabled>▶</button>'
            f'<label for="{ident}-range">{name}</label>'
            f'<input id="{ident}-range" type="range" min="0" max="{len(uris) - 1}" step="1" value="{self.start}" '
            f"disabled></div>"
            f'<output for="{ident}-range" aria-live="polite">{label}</output>'
            f'<script type="application/json">{data}</script><script>\n{script}</script></div>'
        )
        metadata = about("Figure", self.alt, self.records)
        return {"text/html": fragment, "text/plain": f"{self.alt}: {'; '.join(self.labels)}"}, metadata


def beside(name: str) -> str:
    """The text of a file beside this one."""
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def webp(pixels: np.ndarray) -> bytes:
    """A small file of a picture in 64 levels a channel, more than the eye needs; no other loss.

    With the most effort it would be a tenth smaller, and take a hundred times as long.
    """
    buffer = io.BytesIO()
    levels = (np.round(pixels / 255 * 63) * 255 / 63).astype(np.uint8)
    Image.fromarray(levels).save(buffer, "WEBP", lossless=True)
    return buffer.getvalue()


STAMP_ROWS = ("secret", "raw", "developed")


def frame(secrets: Tensor, images: Tensor) -> np.ndarray:
    """Of the first keys, in the rows `STAMP_ROWS`: the secrets, the raw signal, the developed pictures."""
    shown = images[:FEW]
    return montage(torch.cat([secrets[: len(shown)], shown, develop(shown)]), columns=len(shown))


def still_accurate(accuracies: Sequence[float]) -> int:
    """The last position whose accuracy lies no more than `HOLDS` under that of the first."""
    return max(place for place, accuracy in enumerate(accuracies) if accuracy >= accuracies[0] - HOLDS)


def hardening_slider(record: Record) -> Slider:
    """The stamp while it is hardened, opened at the end, where it is there; with the score of the keys shown.

    Accuracy, which nobody measures on the way, is told at the end.
    """
    secrets = record.arrays["secrets"][: record.arrays["hardening/frames"].shape[1]]
    frames, labels = [], []
    steps, signals = record.arrays["hardening/steps"].tolist(), record.arrays["hardening/frames"]
    for step, images in zip(steps, signals, strict=True):
        frames.append(frame(secrets, images))
        labels.append(f"step {step}, mean SSIM of these {len(images)} {similarity(images, secrets).mean():.3f}")
    labels[-1] += f", accuracy before any training {record.results['hardened']['accuracy']:.3f}"
    alt = f"{in_words(record)}: the stamp during hardening"
    return Slider(frames, labels, "step", alt, [record], STAMP_ROWS, start=len(frames) - 1)


def attack_slider(record: Record, attack: str = "", *, name: str = "attack") -> Slider:
    """The stamp under a campaign's attacks, with what is left of the model.

    Shows the stages that belong to `attack` (its steps on the way and its end), or, for none, the end of each attack.
    """
    stages = stages_of(record, attack)
    frames = [frame(record.arrays["secrets"], record.arrays[stage]) for stage in stages]
    labels = [
        f"{stage.removeprefix(attack).lstrip(', ') or stage}: accuracy {found['accuracy']:.3f}, "
        f"mean SSIM {found['ssim']:.3f}, developed {found['developed_ssim']:.3f}"
        for stage, found in ((stage, record.results[stage]) for stage in stages)
    ]
    alt = f"{in_words(record)}: the stamp under {attack or 'every attack'}"
    # Of growing strengths this is the strongest that leaves a model worth having. Attacks side by side have no order:
    # any that spares the model would do there, so the rule is the same.
    start = still_accurate([record.results[stage]["accuracy"] for stage in stages])
    return Slider(frames, labels, name, alt, [record], STAMP_ROWS, start)


def patches_slider(records: Sequence[Record], stage: str = "hardened") -> Slider:
    """The first images of experiments that differ in their patches: secrets above, what was read out below.

    Opened at the most bits that are read without an error: accuracy says nothing about a stage before any training.
    """
    frames, labels, start = [], [], 0
    for place, r in enumerate(sorted(records, key=lambda r: r.parameters["patches"])):
        shown = [r.arrays[name][:FEW] for name in ("secrets", stage)]
        frames.append(montage(torch.cat(shown), columns=len(shown[0])))
        bits, found = r.parameters["patches"] ** 2, r.results[stage]
        scores = (
            f"bit errors {found['bit errors']:.2%}, mean SSIM {found['ssim']:.3f}, accuracy {found['accuracy']:.3f}"
        )
        labels.append(f"{bits} bits an image: {scores}")
        if not found["bit errors"]:
            start = place
    alt = f"dot codes, secrets and as read {STAGES[stage]}"
    return Slider(frames, labels, "patches", alt, records, ("secret", "raw"), start)
