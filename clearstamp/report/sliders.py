"""Frame sliders: a picture, a range, and what it shows in words, in one HTML fragment."""

import base64
import hashlib
import html
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from clearstamp.errors import RecordError
from clearstamp.experiments import FEW
from clearstamp.records import Record
from clearstamp.report.exhibits import about
from clearstamp.report.stages import STAGES, stages_of
from clearstamp.scores import develop, montage, similarity

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
    records: Sequence[Record] = ()

    def __post_init__(self) -> None:
        if not self.frames or len(self.frames) != len(self.labels):
            raise RecordError("frames and labels do not pair", got=f"{len(self.frames)} and {len(self.labels)}")

    def _repr_mimebundle_(self, **_: Any) -> tuple[dict[str, str], dict[str, Any]]:
        start = len(self.frames) - 1
        uris = [f"data:image/webp;base64,{base64.b64encode(webp(pixels)).decode()}" for pixels in self.frames]
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
        metadata = about("Figure", self.alt, self.records)
        return {"text/html": fragment, "text/plain": f"{self.alt}: {'; '.join(self.labels)}"}, metadata


def webp(pixels: np.ndarray) -> bytes:
    """A small file of a picture in 64 levels a channel, more than the eye needs; no other loss."""
    buffer = io.BytesIO()
    levels = (np.round(pixels / 255 * 63) * 255 / 63).astype(np.uint8)
    Image.fromarray(levels).save(buffer, "WEBP", lossless=True, quality=100, method=6)
    return buffer.getvalue()


def frame(images: Tensor) -> np.ndarray:
    """The raw signal of the first keys above, the developed pictures below."""
    shown = images[:FEW]
    return montage(torch.cat([shown, develop(shown)]), columns=len(shown))


def hardening_slider(record: Record) -> Slider:
    """The stamp while it is hardened: raw signal above, developed pictures below, with the score of the keys shown.

    Accuracy, which nobody measures on the way, is told at the end.
    """
    secrets = record.arrays["secrets"][: record.arrays["hardening/frames"].shape[1]]
    frames, labels = [], []
    steps, signals = record.arrays["hardening/steps"].tolist(), record.arrays["hardening/frames"]
    for step, images in zip(steps, signals, strict=True):
        frames.append(frame(images))
        labels.append(f"step {step}, mean SSIM of these {len(images)} {similarity(images, secrets).mean():.3f}")
    labels[-1] += f", accuracy before any training {record.results['hardened']['accuracy']:.3f}"
    return Slider(frames, labels, "step", f"{record.experiment}, stamp during hardening", [record])


def attack_slider(record: Record, attack: str = "", *, name: str = "attack") -> Slider:
    """The stamp under a campaign's attacks: raw signal above, developed pictures below, with what is left of the model.

    Shows the stages that belong to `attack` (its steps on the way and its end), or, for none, the end of each attack.
    """
    stages = stages_of(record, attack)
    frames = [frame(record.arrays[stage]) for stage in stages]
    labels = [
        f"{stage.removeprefix(attack).lstrip(', ') or stage}: accuracy {found['accuracy']:.3f}, "
        f"mean SSIM {found['ssim']:.3f}, developed {found['developed_ssim']:.3f}"
        for stage, found in ((stage, record.results[stage]) for stage in stages)
    ]
    alt = f"{record.experiment}, stamp under {attack or 'every attack'}"
    return Slider(frames, labels, name, alt, [record])


def patches_slider(records: Sequence[Record], stage: str = "hardened") -> Slider:
    """The first images of experiments that differ in their patches: secrets above, what was read out below."""
    frames, labels = [], []
    for r in sorted(records, key=lambda r: r.parameters["patches"]):
        shown = [r.arrays[name][:FEW] for name in ("secrets", stage)]
        frames.append(montage(torch.cat(shown), columns=len(shown[0])))
        bits, found = r.parameters["patches"] ** 2, r.results[stage]
        scores = (
            f"bit errors {found['bit errors']:.2%}, mean SSIM {found['ssim']:.3f}, accuracy {found['accuracy']:.3f}"
        )
        labels.append(f"{bits} bits an image: {scores}")
    return Slider(frames, labels, "patches", f"dot codes, secrets and as read {STAGES[stage]}", records)
