"""Trains the verifier of `clearstamp.evidence.verifier` and writes its card: python -m clearstamp.reproduction.verifier

Networks of the zoo are stamped and attacked, and the verifier learns from what is then read out of them. It is measured
on other networks, on attacks that it never saw, and on characters and icons that it never saw. All of it follows from
seeds and from the digits of scikit-learn; the last bits also depend on processor and torch.
"""

import argparse
import hashlib
import platform
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save
from sklearn.metrics import roc_auc_score
from torch import Tensor
from tqdm import tqdm

from clearstamp.attacks import (
    Attack,
    Averaging,
    Erasure,
    FinePruning,
    FineTuning,
    Noise,
    Overwriting,
    Pruning,
    Quantization,
)
from clearstamp.data import Data
from clearstamp.evidence.verifier import SHA256, WEIGHTS, Verifier, resized, standardised
from clearstamp.files import write_atomically
from clearstamp.pictures import develop, draw_text
from clearstamp.reading import extract
from clearstamp.reproduction.markdown import table
from clearstamp.stamp import Stamp
from clearstamp.training.loops import fit, harden
from clearstamp.training.losses import StampLoss
from clearstamp.transpose import transpose
from clearstamp.zoo import build, load

TRAINED, CALIBRATED, HELD_OUT = range(24), range(24, 26), range(100, 106)
"""Seeds of the models from which the verifier learns, by which its threshold is chosen, and on which it is measured."""
STEPS = 2_000

LETTERS, UNSEEN_LETTERS = "45AFGJLMNQRVWXYZ", "BCDEHIKOPSTU2378"
ICONS, UNSEEN_ICONS = "★♞☂✈♫☃⚖♣", "☎♥⚓☀✂⚙☯♦"

Attacks = dict[str, Attack]
SEEN: Attacks = {
    "fine-tuning": FineTuning(epochs=4, lr=3e-3),
    **{f"pruning {amount:.0%}": Pruning(amount=amount) for amount in (0.7, 0.8, 0.9, 0.95)},
    **{f"noise {scale:g}": Noise(scale=scale) for scale in (0.5, 0.75, 1.0, 1.5)},
    "erasure, known keys": Erasure(count=None, steps=12, looks=4),
}
UNSEEN: Attacks = {
    **{f"quantization, {bits} bits": Quantization(bits=bits, per="tensor") for bits in (3, 2)},
    **{f"fine-pruning {amount:.0%}": FinePruning(amount=amount, lr=1e-3) for amount in (0.8, 0.9)},
    **{f"averaging {weight:.0%}": Averaging(weight=weight) for weight in (0.4, 0.5, 0.6)},
    "erasure, random keys": Erasure(keys="random", count=None, steps=12, looks=4),
    "overwriting": Overwriting(count=None, steps=12, looks=4),
}
BEFORE = "hardening"  # the first steps of it, when a stamp is still faint
NOTHING = "wrong keys", "unmarked"  # of the readings, those that show no secret

# ------------------------------------------------------------------------------------- what is read out of the models


@dataclass(frozen=True, eq=False)
class Reading:
    """The signals ``[k, H, W]`` of a model's keys, grey, by the attack and by how strong it was."""

    attack: str
    strength: str
    signals: Tensor


@dataclass(frozen=True, eq=False)
class Marked:
    """A marked model's secrets, and what was read of them.

    Attributes:
        seed: of the model, its stamp and its attacks.
        glyphs: ``[16, h, w]`` uint8, the letters of which the first secrets are made, two by two.
        letters: ``[t, 4]``, the places in `glyphs` of those secrets' letters.
        secrets: ``[k, 2 h, 2 w]`` uint8; those after the first t are a word, an icon and a digit.
        readings: of the model hardened in part, unattacked and attacked, with wrong keys, and of an unmarked one.
    """

    seed: int
    glyphs: Tensor
    letters: Tensor
    secrets: Tensor
    readings: list[Reading] = field(default_factory=list)


def choose(count: int, below: int) -> list[int]:
    """Numbers drawn from the global generator."""
    return torch.randint(below, (count,)).tolist()


def draw_secrets(seed: int, side: int, digit: Tensor, *, unseen: bool) -> Marked:
    """Eight secrets of four letters each, a word, an icon and `digit` ``[side, side]``, drawn from the generator."""
    dark, alphabet, icons = seed // 3 % 2 == 1, *((UNSEEN_LETTERS, UNSEEN_ICONS) if unseen else (LETTERS, ICONS))
    glyphs = torch.stack([draw_text(letter, (side // 2, side // 2), dark=dark) for letter in alphabet])
    letters = torch.tensor(choose(4 * 8, len(alphabet))).reshape(8, 4)
    word = "".join(alphabet[place] for place in choose(3 + seed % 7, len(alphabet)))
    drawn = [draw_text(text, (side, side), dark=dark) for text in (word, icons[choose(1, len(icons))[0]])]
    secrets = torch.cat([two_by_two(glyphs[letters]), torch.stack([*drawn, digit])])
    return Marked(seed, to_levels(glyphs), letters, to_levels(secrets))


def two_by_two(cells: Tensor) -> Tensor:
    """Cells ``[k, 4, h, w]``, row by row, as pictures ``[k, 2 h, 2 w]``."""
    count, _, height, width = cells.shape
    return cells.reshape(count, 2, 2, height, width).transpose(2, 3).reshape(count, 2 * height, 2 * width)


def cut(pictures: Tensor) -> Tensor:
    """Pictures ``[k, H, W]`` to their cells ``[4 k, H / 2, W / 2]``."""
    count, height, width = pictures.shape
    cells = pictures.reshape(count, 2, height // 2, 2, width // 2).transpose(2, 3)
    return cells.reshape(4 * count, height // 2, width // 2)


def to_levels(pictures: Tensor) -> Tensor:
    """Pictures in [0, 1] in grey levels, uint8."""
    return (pictures * 255).round().byte()


DEVELOPED: dict[str, Callable[[Tensor], Tensor]] = {
    "as read": develop,
    "mean taken off": lambda signals: develop(signals - signals.mean(0)),
    "clamped": lambda signals: signals.clamp(0, 1),
}
"""How signals ``[k, H, W]`` become pictures. Readers of letters may take the mean over the keys off first."""


def images(split: str, side: int) -> Data:
    """Digits of 28 x 28, or with a margin and three channels of 32 x 32."""
    digits = load("digits", "train" if split == "train" else "test")
    if side == digits.shape[1]:
        return digits
    margin = (side - digits.shape[1]) // 2
    return Data(F.pad(digits.images, [margin] * 4).expand(-1, 3, -1, -1).contiguous(), digits.labels, digits.classes)


def read_marked(seed: int, attacks: Attacks, *, unseen: bool = False, steps: int = 300, digits: int = 800) -> Marked:
    """A stamped model, attacked, and read each time. Its seed says what kind of model and of stamp it is.

    With `unseen` its secrets are of characters and icons that are in no other's. Hardening takes at most `steps`, and
    so many `digits` are what it is trained on.
    """
    network, side = ("cnn", "fc", "cnn-bn")[seed % 3], 32 if seed % 4 == 3 else 28
    readout = "paper" if seed % 5 == 4 else "adjoint"
    train, test = images("train", side).take(digits), images("test", side)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        source = test if unseen else train
        digit = source.images[choose(1, len(source))[0], 0] / 255
        found = draw_secrets(seed, side, digit, unseen=unseen)
        inputs = (found.secrets / 255).unsqueeze(1).expand(-1, train.shape[0], -1, -1)
        stamp = Stamp.from_secrets(inputs, outputs=train.classes, seed=seed)
        others = Stamp.from_secrets(inputs, outputs=train.classes, seed=seed + 1_000)
        model, unmarked = (build(network, train.shape, train.classes, seed=s) for s in (seed, seed + 1_000))
        back, blank = (transpose(m, stamp.secrets[:1], readout=readout) for m in (model, unmarked))

        def keep(attack: str, strength: str, signals: Tensor) -> None:
            found.readings.append(Reading(attack, strength, signals.mean(1)))

        def watch(step: int, signals: Tensor) -> None:
            if 0 < step <= 40:
                keep(BEFORE, f"{step} steps", signals)

        harden(back, stamp, steps=steps, lr=1e-3, on_check=watch, progress=False)
        fit(model, train.loader(seed=seed), epochs=3, lr=1e-3, stamp_loss=StampLoss(back, stamp), progress=False)
        fit(unmarked, train.loader(seed=seed), epochs=3, lr=1e-3, progress=False)
        keep("none", "", extract(back, stamp))
        keep("wrong keys", "", extract(back, others))
        keep("unmarked", "", extract(blank, stamp))
    few = test.take(10)  # the accuracy is of no interest here
    for label, attack in attacks.items():
        told = attack.apply(model, train, stamp, test=few, unmarked=unmarked, readout=readout, seed=seed)
        for look in told.trace:
            keep(label, "" if look.step is None else look.label, look.reading.images)
    return found


# -------------------------------------------------------------------------------------------------------- training


@dataclass(frozen=True, eq=False)
class Lesson:
    """What one reading teaches: pictures ``[n, 28, 28]`` and secrets ``[m, 28, 28]``, uint8.

    `right` ``[n]`` says which secret each picture shows; it is None where they show none.
    """

    pictures: Tensor
    secrets: Tensor
    right: Tensor | None


def lessons(marked: Marked, reading: Reading, way: str) -> tuple[Lesson, Lesson]:
    """Letters, cell by cell, among the 16, and whole pictures among all secrets and two near misses of each."""
    pictures = to_levels(DEVELOPED[way](reading.signals))
    shown = reading.attack not in NOTHING
    letters, cells = marked.letters.flatten(), cut(pictures[: len(marked.letters)])
    drawn = torch.randint(60, (len(marked.letters), 2))
    missed = near_misses(marked)[torch.arange(len(drawn)).unsqueeze(1), drawn].flatten(0, 1)
    return (
        Lesson(seen(cells), seen(marked.glyphs), letters if shown else None),
        Lesson(
            seen(pictures),
            seen(torch.cat([marked.secrets, missed])),
            torch.arange(len(pictures)) if shown else None,
        ),
    )


def seen(pictures: Tensor) -> Tensor:
    """`resized`, in an eighth of the memory."""
    return resized(pictures).byte()


def near_misses(marked: Marked) -> Tensor:
    """Each secret of four letters with one of them exchanged: ``[t, 60, H, W]``."""
    made = []
    for letters in marked.letters:
        others = letters.repeat(4, 16, 1)
        for place in range(4):
            others[place, :, place] = torch.arange(16)
        made.append(two_by_two(marked.glyphs[others[(others != letters).any(2)]]))
    return torch.stack(made)


def spoiled(pictures: Tensor) -> Tensor:
    """Half of the pictures ``[n, 28, 28]``: mixed with another, paler or darker, blotched, noisy, or partly covered."""
    count, side, _ = pictures.shape

    def some(most: float, share: float) -> Tensor:
        """A number up to `most` for that share of the pictures, 0 for the rest."""
        return torch.rand(count, 1, 1) * most * (torch.rand(count, 1, 1) < share)

    mixed = pictures.lerp(pictures[torch.randperm(count)], some(0.45, 0.4))
    levels = (mixed - 128) * (1 - some(0.7, 1.0)) + 128 * (1 + some(0.5, 0.5) - some(0.5, 0.5))
    blotches = F.interpolate(torch.randn(count, 1, 7, 7), (side, side), mode="bilinear").squeeze(1)
    noisy = levels + 255 * (some(0.4, 0.4) * blotches + some(0.3, 0.3) * torch.randn_like(pictures))
    rows, columns = ((torch.arange(side) - torch.rand(count, 1) * side).abs() for _ in range(2))
    covered = (rows.unsqueeze(2) < some(side / 4, 0.4)) & (columns.unsqueeze(1) < side / 4 * torch.rand(count, 1, 1))
    made = torch.where(covered, 255 * torch.rand(count, 1, 1), noisy).clamp(0, 255).round()
    return torch.where(torch.rand(count, 1, 1) < 0.5, made, pictures)


def lesson_loss(verifier: Verifier, lesson: Lesson) -> Tensor:
    """Cross-entropy of each pair, shown or not, and of the right secret among all."""
    logits = verifier(spoiled(lesson.pictures.float()), lesson.secrets.float())
    truth = torch.zeros_like(logits)
    if lesson.right is not None:
        truth[torch.arange(len(truth)), lesson.right] = 1
    pairs = F.binary_cross_entropy_with_logits(logits, truth, reduction="sum") / len(logits)
    return pairs if lesson.right is None else pairs + F.cross_entropy(logits, lesson.right)


def train(models: Sequence[Marked], *, steps: int, lr: float = 3e-3, seed: int = 0, progress: bool = True) -> Verifier:
    """A verifier, by Adam with one cycle of its learning rate; each step learns from four readings."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        pairs = [(marked, reading) for marked in models for reading in marked.readings]
        ways = list(DEVELOPED)
        taught = [lessons(*pair, way) for pair in pairs for way in ways]
        verifier = Verifier()
        optimizer = torch.optim.Adam(verifier.parameters(), lr)
        cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
        for _ in tqdm(range(steps), desc="training", disable=not progress, leave=False):
            chosen = [lesson for place in choose(4, len(taught)) for lesson in taught[place]]
            optimizer.zero_grad()
            torch.stack([lesson_loss(verifier, lesson) for lesson in chosen]).sum().backward()
            optimizer.step()
            cycle.step()
    return verifier.eval().requires_grad_(False)


# ------------------------------------------------------------------------------------------------------- measurement

Reader = Callable[[Tensor, Tensor], Tensor]
"""Scores ``[n, m]`` of pictures ``[n, 28, 28]`` and secrets ``[m, 28, 28]`` in grey levels."""

LETTER, SECRET = "letters", "pictures"
TRUE, OTHER, NEAR = "true", "other secrets", "near misses"
MARGIN = "margins"  # how far a true pair scores above each near miss of the same picture


def template(pictures: Tensor, secrets: Tensor) -> Tensor:
    """The correlation of each picture with each secret, with which the verifier is compared."""
    first, second = (standardised(each.unsqueeze(1)).flatten(1) for each in (pictures, secrets))
    return first @ second.T


@dataclass
class Pairs:
    """Scores of pairs of picture and secret, by what is read (`LETTER`, `SECRET`) and by what kind of pair it is."""

    scores: dict[tuple[str, str], list[Tensor]] = field(default_factory=lambda: defaultdict(list))

    def add(self, kind: str, scores: Tensor, truth: Tensor, near: Tensor, nothing: str | None) -> None:
        """Scores ``[n]`` of pairs, which are true and which near misses, or those of a reading of `nothing`."""
        if nothing is not None:
            self.scores[kind, nothing].append(scores[~near])
        else:
            self.scores[kind, TRUE].append(scores[truth])
            self.scores[kind, OTHER].append(scores[~truth & ~near])
            self.scores[kind, NEAR].append(scores[near])

    def of(self, kind: str, pair: str) -> Tensor:
        return torch.cat(self.scores[kind, pair])

    def area(self, kind: str, against: str) -> float:
        """Area under the ROC curve of true pairs against others: how often a true one scores higher."""
        true, false = self.of(kind, TRUE), self.of(kind, against)
        truth = torch.cat([torch.ones(len(true)), torch.zeros(len(false))])
        return float(roc_auc_score(truth, torch.cat([true, false])))

    def above(self, kind: str, pair: str, threshold: float) -> float:
        """The share of pairs that score above a threshold."""
        return float((self.of(kind, pair) > threshold).double().mean())


def read_all(reader: Reader, marked: Marked, readings: Sequence[Reading], way: str, secrets: Tensor) -> list[Tensor]:
    """Scores of the letters ``[4 t, 16]`` and of the pictures ``[k, m]`` of each reading, one after the other."""
    pictures = [to_levels(DEVELOPED[way](reading.signals)) for reading in readings]
    cells = torch.cat([cut(each[: len(marked.letters)]) for each in pictures])
    letters = reader(resized(cells), resized(marked.glyphs)).split(marked.letters.numel())
    whole = reader(resized(torch.cat(pictures)), resized(secrets)).split(len(marked.secrets))
    return [scores for both in zip(letters, whole, strict=True) for scores in both]


def pairs(reader: Reader, models: Iterable[Marked], shown: Callable[[Reading], bool]) -> Pairs:
    """Every pair of picture and secret of the readings that are `shown`, and of those that show nothing."""
    made = Pairs()
    for marked in models:
        count, missed = len(marked.secrets), near_misses(marked)
        secrets = torch.cat([marked.secrets, missed.flatten(0, 1)])
        glyphs, letters = resized(marked.glyphs), marked.letters.flatten()
        alike = template(glyphs, glyphs).fill_diagonal_(-1).argmax(1)
        truths = F.one_hot(letters, len(glyphs)).bool(), torch.eye(count, len(secrets)).bool()
        owner = torch.cat([torch.full((count,), -1), torch.arange(len(missed)).repeat_interleave(missed.shape[1])])
        nears = F.one_hot(alike[letters], len(glyphs)).bool(), owner == torch.arange(count).unsqueeze(1)
        meant = torch.ones_like(truths[0]), nears[1] | (owner == -1)  # a near miss of one is none of another
        readings = [reading for reading in marked.readings if reading.attack in NOTHING or shown(reading)]
        scores = iter(read_all(reader, marked, readings, "as read", secrets))
        for reading in readings:
            nothing = reading.attack if reading.attack in NOTHING else None
            for kind, truth, near, these in zip((LETTER, SECRET), truths, nears, meant, strict=True):
                found = next(scores)
                made.add(kind, found[these], truth[these], near[these], nothing)
                if nothing is None:
                    rows = near.any(1)
                    margins = found[rows][truth[rows]].unsqueeze(1) - found[near].reshape(int(rows.sum()), -1)
                    made.scores[kind, MARGIN].append(margins.flatten())
    return made


# -------------------------------------------------------------------------------------------------------- the card


@dataclass(frozen=True)
class Budget:
    """Which models there are, by their seeds, how each is trained and attacked, and how long the verifier trains."""

    trained: Sequence[int] = TRAINED
    calibrated: Sequence[int] = CALIBRATED
    held_out: Sequence[int] = HELD_OUT
    seen: Attacks = field(default_factory=lambda: SEEN)
    unseen: Attacks = field(default_factory=lambda: UNSEEN)
    hardening: int = 300
    digits: int = 800
    steps: int = STEPS

    def models(self, seeds: Sequence[int], *, held_out: bool = False) -> list[Marked]:
        """The models of some seeds; with `held_out` all attacks, and unseen characters for every odd seed."""
        attacks = self.seen | self.unseen if held_out else self.seen
        return [
            read_marked(seed, attacks, unseen=held_out and seed % 2 == 1, steps=self.hardening, digits=self.digits)
            for seed in tqdm(seeds, desc="models", leave=False)
        ]


def make(folder: Path, budget: Budget) -> str:
    """Train, write weights and card into `folder`, and return the SHA-256 of the weights."""
    taught = budget.models(budget.trained)
    verifier = train(taught, steps=budget.steps)
    content = save({name: tensor.contiguous() for name, tensor in verifier.state_dict().items()})
    sha256 = hashlib.sha256(content).hexdigest()
    write_atomically(folder / WEIGHTS.name, content)
    size = sum(weight.numel() for weight in verifier.parameters())
    verifier = verifier.double()
    calibrated, held_out = budget.models(budget.calibrated), budget.models(budget.held_out, held_out=True)
    about = {
        "sha256": sha256,
        "parameters": f"{size:,}",
        "bytes": f"{len(content):,}",
        "made_with": f"torch {torch.__version__.partition('+')[0]}, {platform.machine()}",
        "steps": f"{budget.steps:,}",
        "trained": spans(budget.trained),
        "calibrated": spans(budget.calibrated),
        "held_out": spans(budget.held_out),
        "seen": "; ".join(budget.seen),
        "unseen": "; ".join(budget.unseen),
    }
    tables = {
        "separation": separation(verifier, calibrated, held_out, taught, budget.seen).strip(),
        "legibility": legibility(verifier, held_out).strip(),
    }
    card = Path(__file__).with_name("verifier.md").read_text(encoding="utf-8").format(**about, **tables)
    write_atomically((folder / WEIGHTS.name).with_suffix(".md"), card.encode())
    return sha256


def spans(seeds: Sequence[int]) -> str:
    """Seeds in a row, by the first and the last."""
    return f"{min(seeds)} to {max(seeds)}"


def separation(
    verifier: Verifier, calibrated: list[Marked], held_out: list[Marked], taught: list[Marked], seen: Attacks
) -> str:
    """ROC AUC of both readers, and what passes the verifier's threshold, by what was held out."""
    even, odd = ([marked for marked in held_out if marked.seed % 2 == part] for part in (0, 1))

    def familiar(reading: Reading) -> bool:
        return reading.attack in {BEFORE, "none", *seen}

    def new(reading: Reading) -> bool:
        return not familiar(reading)

    groups = {
        "nothing": (taught, familiar),
        "models": (even, familiar),
        "models, attacks": (even, new),
        "models, texts": (odd, familiar),
        "models, attacks, texts": (odd, new),
    }
    measured = {name: [pairs(reader, *group) for reader in (verifier, template)] for name, group in groups.items()}
    limits, rows = pairs(verifier, calibrated, familiar), []
    for kind in (LETTER, SECRET):
        threshold = float(np.quantile(limits.of(kind, OTHER), 0.99))
        for group, (own, rival) in measured.items():
            areas = [f"{each.area(kind, against):.4f}" for against in (OTHER, NEAR) for each in (own, rival)]
            areas += [f"{each.above(kind, MARGIN, 0):.1%}" for each in (own, rival)]
            shares = [f"{own.above(kind, pair, threshold):.1%}" for pair in (TRUE, OTHER, NEAR, *NOTHING)]
            rows.append([f"{kind}, logit over {threshold:.2f}", group, *areas, *shares])
    head = ["what is read", "held out", "AUC", "template's", "AUC, near", "template's", "told apart", "template's"]
    return table([*head, TRUE, OTHER, NEAR, *NOTHING], rows, "llr")


def legibility(verifier: Verifier, models: list[Marked]) -> str:
    """The share of letters, and of pictures, that both readers read right, by attack and strength."""
    readers: tuple[Reader, Reader] = template, verifier
    found: dict[tuple[str, str], list[list[Tensor]]] = defaultdict(lambda: [[] for _ in range(6)])
    for marked in models:
        for place, (way, reader) in enumerate(product(("as read", "mean taken off"), readers)):
            scores = iter(read_all(reader, marked, marked.readings, way, marked.secrets))
            for reading in marked.readings:
                letters = next(scores).argmax(1) == marked.letters.flatten()
                pictures = next(scores).argmax(1) == torch.arange(len(marked.secrets))
                rows = [found[reading.attack, reading.strength]]
                if reading.attack not in {BEFORE, "none", *NOTHING}:
                    rows.append(found["all attacks", ""])
                for row in rows:
                    row[place].append(letters)
                    if place < 2:
                        row[4 + place].append(pictures)
    found["all attacks", ""] = found.pop(("all attacks", ""))  # comes last
    shares = {name: [f"{torch.cat(column).double().mean():.1%}" for column in row] for name, row in found.items()}
    head = ["attack", "strength", "letters: template", "verifier", "mean taken off: template", "verifier"]
    return table([*head, "pictures: template", "verifier"], [[*name, *row] for name, row in shares.items()], "llr")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, default=WEIGHTS.parent, help="where weights and card go")
    folder = parser.parse_args(arguments).folder
    torch.set_num_threads(1)  # sums in another order have other last bits
    sha256 = make(folder, Budget())
    print(f"{folder / WEIGHTS.name}: SHA-256 {sha256}")
    if sha256 != SHA256:
        print("The code names other weights: to use these, put this sum into clearstamp/evidence/verifier.py")
    return 0


if __name__ == "__main__":
    sys.exit(main())
