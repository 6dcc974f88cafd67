"""The life cycle of a stamp as one experiment, run once and kept as a record.

Every notebook of the book runs this: build a model, harden it, train it, fine-tune it, and read the stamp after each.
A record made by the same code from the same parameters is taken instead of running again, so an interrupted notebook
goes on where it stopped.
"""

import time
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn
from tqdm import tqdm

from clearstamp import claims, data, records
from clearstamp.dependencies import watch
from clearstamp.errors import RecordError
from clearstamp.models import build
from clearstamp.records import Record
from clearstamp.stamp import PAPER_KEY, Stamp, checksum, write_atomically
from clearstamp.training import Fit, StampLoss, accuracy, adam, fit, harden, sgd
from clearstamp.transpose import transpose
from clearstamp.verification import read

FOUR_LETTERS = tuple("".join(chr(65 + (4 * i + j * (1 + 2 * (i // 13))) % 26) for j in range(4)) for i in range(20))
ONE_LETTER = tuple("ABCDEFGHIJKLMNOPQRST")
ICONS = tuple("★☎♞♥☂⚓✈☀♫✂☃")
SECRETS = {"four letters": FOUR_LETTERS, "one letter": ONE_LETTER, "icons": ICONS}
"""The paper's three kinds of secrets."""

OPTIMIZERS = {"adam": adam, "sgd": sgd}


@dataclass(frozen=True, kw_only=True)
class Profile:
    """The scale of a run. `train_images` and `test_images` of None mean the whole split."""

    dataset: str
    train_images: int | None
    test_images: int | None
    hardening_steps: int
    epochs: int
    finetune_epochs: int
    seeds: tuple[int, ...]


PROFILES = {
    "tiny": Profile(
        dataset="digits",
        train_images=512,
        test_images=200,
        hardening_steps=20,
        epochs=1,
        finetune_epochs=1,
        seeds=(0,),
    ),
    "quick": Profile(
        dataset="mnist" if data.available("mnist") else "digits",
        train_images=12_000 if data.available("mnist") else None,
        test_images=2_000 if data.available("mnist") else None,
        hardening_steps=1_000,
        epochs=3,
        finetune_epochs=2,
        seeds=(0,),
    ),
    "paper": Profile(
        dataset="mnist",
        train_images=None,
        test_images=None,
        hardening_steps=10_000,
        epochs=5,
        finetune_epochs=4,
        seeds=(0, 1, 2),
    ),
}
"""``tiny`` for tests, ``quick`` for a laptop (MNIST if its files are found, else the embedded digits), ``paper``."""


def profile(name: str) -> Profile:
    """The profile `name`. Raises `RecordError` if there is none."""
    if name not in PROFILES:
        raise RecordError("unknown profile", got=repr(name), expected=" or ".join(map(repr, PROFILES)))
    return PROFILES[name]


@dataclass(frozen=True, kw_only=True)
class LifeCycle:
    """One experiment: everything that decides its result but the profile's scale and the seed.

    `keys` counts the stamp's pairs, 0 for a model without a stamp; `paper_key` takes the paper's single key. `until` is
    the last stage that is run. `lr` is that of training, as in the paper's default scenario (Tables 2 and 3 have 1e-3);
    fine-tuning takes a tenth of it, hardening `hardening_lr`. `dropout` acts in hardening and constraint training,
    `noise` (see `StampLoss`; the paper has none) in constraint training alone.
    """

    name: str
    readout: Literal["paper", "adjoint"] = "paper"
    model: str = "cnn"
    keys: int = 11
    paper_key: bool = False
    secrets: str = "four letters"
    key_range: float = 10.0
    target: float = 0.99
    optimizer: str = "adam"
    lr: float = 1e-4
    hardening_lr: float = 1e-3
    dropout: float = 0.0
    noise: float = 0.0
    batch_size: int = 64
    until: Literal["hardened", "finetuned"] = "finetuned"

    def stamp(self, shape: tuple[int, int, int], outputs: int, seed: int) -> Stamp:
        """The stamp, its keys drawn from `seed`."""
        texts = SECRETS[self.secrets][: self.keys]
        if len(texts) < self.keys:
            raise RecordError("not that many secrets", got=self.keys, expected=f"at most {len(texts)} {self.secrets}")
        drawn = Stamp.from_texts(texts, outputs=outputs, shape=shape, seed=seed, key_range=self.key_range)
        return replace(drawn, keys=torch.tensor([PAPER_KEY])) if self.paper_key else drawn


@dataclass(frozen=True)
class Sets:
    """The training and the test images of a profile."""

    train: data.Data
    test: data.Data

    def about(self) -> dict[str, Any]:
        """For the record: name, sizes and checksums."""
        return {"name": self.train.name} | {
            part.split: {"images": len(part), "sha256": part.checksum} for part in (self.train, self.test)
        }


@cache
def load_sets(scale: Profile) -> Sets:
    return Sets(
        data.load(scale.dataset, "train").take(scale.train_images),
        data.load(scale.dataset, "test").take(scale.test_images),
    )


def run_all(experiments: list[LifeCycle], profile_name: str, seeds: tuple[int, ...] | None = None) -> list[Record]:
    """The records of every experiment for every seed (the profile's own for None), with a progress bar."""
    todo = [(e, seed) for seed in seeds or profile(profile_name).seeds for e in experiments]
    return [run(e, profile_name, seed) for e, seed in tqdm(todo, desc="experiments")]


def run(experiment: LifeCycle, profile_name: str, seed: int) -> Record:
    """The record of one experiment: found if it was made by this code from these parameters, else run and saved."""
    found = records.find(profile_name, f"{experiment.name}-seed{seed}", parameters(experiment, profile_name))
    return found or perform(experiment, profile_name, seed)


def parameters(experiment: LifeCycle, profile_name: str) -> dict[str, Any]:
    """All that decides the result but seed and code."""
    scale = profile(profile_name)
    return asdict(experiment) | {f.name: getattr(scale, f.name) for f in fields(scale) if f.name != "seeds"}


def perform(experiment: LifeCycle, profile_name: str, seed: int) -> Record:
    """Run one experiment; save its record and the weights of the trained model."""
    scale = profile(profile_name)
    sets = load_sets(scale)
    began = time.perf_counter()
    with watch() as code:
        results, arrays, weights = (plain if experiment.keys == 0 else marked)(experiment, scale, sets, seed)
    seconds = time.perf_counter() - began
    if weights:
        write_atomically(weights_file(experiment, profile_name, seed), save(weights))
    record = Record(
        experiment=experiment.name,
        profile=profile_name,
        parameters=parameters(experiment, profile_name),
        seed=seed,
        code=code,
        results=results,
        paper=claims.paper_values(experiment.name),
        dataset=sets.about(),
        wall_seconds=round(seconds, 1),
        weights=checksum((), weights) if weights else None,
        arrays=arrays,
    )
    record.save()
    return record


def trained(experiment: LifeCycle, profile_name: str, seed: int) -> tuple[nn.Module, Stamp]:
    """The model as it was after training, not yet fine-tuned, and its stamp. Trained anew if its weights are lost."""
    record, path = run(experiment, profile_name, seed), weights_file(experiment, profile_name, seed)
    weights = load_file(path) if path.is_file() else {}
    if checksum((), weights) != record.weights:
        perform(experiment, profile_name, seed)
        weights = load_file(path)
    sets = load_sets(profile(profile_name))
    model = fresh_model(experiment, sets, seed)
    model.load_state_dict(weights)
    return model, experiment.stamp(sets.train.shape, sets.train.classes, seed)


def weights_file(experiment: LifeCycle, profile_name: str, seed: int) -> Path:
    """Where the trained weights lie. They are not kept in the repository: records are."""
    return records.artifacts() / profile_name / "weights" / f"{experiment.name}-seed{seed}.safetensors"


Outcome = tuple[dict[str, dict[str, Any]], dict[str, Tensor], dict[str, Tensor]]
"""Results, arrays, and the trained model's weights (none if there was no training)."""


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def fresh_model(experiment: LifeCycle, sets: Sets, seed: int) -> nn.Module:
    model = build(experiment.model, sets.train.shape, sets.train.classes, seed=seed)
    return model.to(device(), memory_format=torch.channels_last)  # type: ignore[call-overload]


def train(
    experiment: LifeCycle, scale: Profile, sets: Sets, seed: int, model: nn.Module, loss: StampLoss | None
) -> Fit:
    """The profile's epochs, over the same images in the same order with and without a stamp."""
    loader = sets.train.loader(experiment.batch_size, seed=seed)
    return fit(
        model,
        loader,
        epochs=scale.epochs,
        lr=experiment.lr,
        stamp_loss=loss,
        optimizer=OPTIMIZERS[experiment.optimizer],
    )


def plain(experiment: LifeCycle, scale: Profile, sets: Sets, seed: int) -> Outcome:
    """The unmarked twin: same initial weights, same batches; read with the keys that the marked models get."""
    model, test = fresh_model(experiment, sets, seed), sets.test.loader(1000)
    stamps = {
        "1 key": replace(experiment, keys=1, paper_key=True).stamp(sets.train.shape, sets.train.classes, seed),
        "11 keys": replace(experiment, keys=11).stamp(sets.train.shape, sets.train.classes, seed),
    }
    results: dict[str, dict[str, Any]] = {}
    arrays: dict[str, Tensor] = {}

    def look(stage: str) -> None:
        results[stage] = {"accuracy": accuracy(model, test)}
        for keys, stamp in stamps.items():
            for readout in ("paper", "adjoint"):
                reading = read(transpose(model, stamp.secrets[:1].to(device()), readout=readout), stamp)
                results[stage] |= {f"{k} ({keys}, {readout})": v for k, v in reading.summary().items()}
                arrays[f"{stage}/{keys}/{readout}"] = reading.images

    torch.manual_seed(seed)
    look("untrained")
    train(experiment, scale, sets, seed, model, None)
    look("trained")
    return results, arrays, snapshot(model)


def marked(experiment: LifeCycle, scale: Profile, sets: Sets, seed: int) -> Outcome:
    """Hardening, constraint training and fine-tuning at a tenth of the learning rate, read after each."""
    model, test = fresh_model(experiment, sets, seed), sets.test.loader(1000)
    stamp = experiment.stamp(sets.train.shape, sets.train.classes, seed)
    back = transpose(model, stamp.secrets[:1].to(device()), readout=experiment.readout)
    results: dict[str, dict[str, Any]] = {}
    frames: dict[int, Tensor] = {}
    arrays: dict[str, Tensor] = {"secrets": stamp.secrets}

    def look(stage: str) -> None:
        reading = read(back, stamp)
        results[stage] = {"accuracy": accuracy(model, test)} | reading.summary()
        arrays[stage] = reading.images

    torch.manual_seed(seed)
    hardening = harden(
        back,
        stamp,
        steps=scale.hardening_steps,
        target=experiment.target,
        lr=experiment.hardening_lr,
        dropout=experiment.dropout,
        optimizer=OPTIMIZERS[experiment.optimizer],
        on_check=frames.__setitem__,
    )
    look("hardened")
    results["hardened"] |= {"steps": hardening.steps, "reached": hardening.reached} | {
        f"steps to {goal}": next((step for step, ssim in hardening.ssim if ssim >= goal), None) for goal in (0.9, 0.95)
    }
    shown = slider_steps(sorted(frames))
    arrays["hardening/steps"] = torch.tensor(shown)
    arrays["hardening/frames"] = torch.stack([frames[step] for step in shown]).half()
    arrays["hardening/losses"] = torch.tensor(hardening.losses)
    weights: dict[str, Tensor] = {}
    if experiment.until == "finetuned":
        loss = StampLoss(back, stamp, dropout=experiment.dropout, noise=experiment.noise)
        training = train(experiment, scale, sets, seed, model, loss)
        look("trained")
        weights = snapshot(model)
        arrays["training/losses"] = smooth(training.losses)
        arrays["training/stamp losses"] = smooth(training.stamp_losses)
        tuning = sets.train.loader(experiment.batch_size, seed=seed + 1000)
        fit(
            model,
            tuning,
            epochs=scale.finetune_epochs,
            lr=experiment.lr / 10,
            optimizer=OPTIMIZERS[experiment.optimizer],
        )
        look("finetuned")
    return results, arrays, weights


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the model's weights and buffers on the CPU."""
    return {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in model.state_dict().items()
    }


def slider_steps(steps: list[int], most: int = 16) -> list[int]:
    """At most `most` of the steps: the first, the last, and denser at the beginning, where the image appears."""
    if len(steps) <= most:
        return steps
    places = (torch.linspace(0, 1, most) ** 2 * (len(steps) - 1)).round().int().tolist()
    return [steps[i] for i in dict.fromkeys(places)]


def smooth(losses: list[float], points: int = 200) -> Tensor:
    """The mean of each of at most `points` equal stretches of a loss curve."""
    curve = torch.tensor(losses)
    return torch.stack([part.mean() for part in curve.tensor_split(min(points, len(curve)))])
