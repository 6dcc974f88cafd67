"""ClearStamp itself, behind the contract that it shares with the other watermarks."""

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clearstamp.coding.payload import Payload
from clearstamp.data import LabelledImages
from clearstamp.errors import ClearStampError, SchemeError
from clearstamp.evidence.seal import Seal
from clearstamp.evidence.verdict import best_reading
from clearstamp.pictures import random_words
from clearstamp.reading import read, scored, try_bytes
from clearstamp.schemes.base import LATER, Access, Evidence, Key, Scheme, UnfitError, device_of, matching, outputs_of
from clearstamp.scores import structural_similarity
from clearstamp.stamp import FROZEN, Stamp
from clearstamp.training.loops import harden
from clearstamp.training.losses import StampLoss
from clearstamp.training.method import EXACT, PAPER, RECOMMENDED, Method
from clearstamp.training.schedules import Schedule
from clearstamp.transpose import transpose
from clearstamp.transposed.base import Transposed
from clearstamp.transposed.graph import Graph, Output, Tap
from clearstamp.units.spaces import Graphs

METHODS = {"adjoint": RECOMMENDED, "paper": PAPER, "gradient": EXACT}
"""How a stamp is embedded for each readout."""


@dataclass(frozen=True, kw_only=True)
class ClearStamp(Scheme):
    """A picture that the model shows when a secret key is sent through it from its output to its input.

    Krauß, Stang and Dmitrienko, "ClearStamp", USENIX Security 2024. Sealed, letters are drawn for the pictures, and p
    is exact (see `clearstamp.Seal`); so is that of a stamp of bytes, if these were drawn. Any other has pictures and
    their SSIM, which the eye, other keys and models without a stamp have to judge.

    Attributes:
        readout: ``"adjoint"``, ``"paper"`` or ``"gradient"``; the method of embedding follows from it.
        sealed: whether `draw` draws a seal; its 32 secret bytes follow from the seed, so that an experiment can be
            repeated. An owner deposits a `Seal.make` of their own.
        pairs: how many keys and pictures `draw` draws.
        steps: of hardening, at most; None for those of the method.
        lr: its learning rate.
        tap: the layer behind which keys enter, so that a new head does no harm; None for the model's output.
    """

    access: ClassVar[Access] = "weights"
    readable: ClassVar[bool] = True
    threshold: ClassVar[float] = 0.5

    readout: str = "adjoint"
    sealed: bool = True
    pairs: int = 11
    steps: int | None = None
    lr: float = 1e-4
    tap: str | None = field(default=None, metadata=LATER)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.readout not in METHODS:
            raise SchemeError("unknown readout", got=repr(self.readout), expected=", ".join(METHODS))
        if self.tap == "":
            raise SchemeError("a layer without a name", where="tap of clear-stamp", expected="a name, or None")

    @property
    def bits_each(self) -> int:  # type: ignore[override]
        """Four for each drawn letter of a seal."""
        return 4 if self.sealed else 0

    @property
    def method(self) -> Method:
        """How it is embedded."""
        own = METHODS[self.readout]
        return own if self.steps is None else replace(own, steps=self.steps)

    @property
    def schedule(self) -> Schedule:
        return self.method.schedule

    @property
    def output(self) -> Output:
        """Where keys enter."""
        return None if self.tap is None else Tap(self.tap)

    def draw(self, model: nn.Module, data: LabelledImages, *, seed: int) -> Key:
        try:
            about: dict[str, Any] = {"outputs": self.outputs(model, data), "shape": data.shape}
            if self.sealed:
                return self.deposit(drawn_seal(seed, codes=self.pairs, readout=self.readout, tap=self.tap, **about))
            texts = random_words(self.pairs, data.shape, torch.Generator().manual_seed(seed))
            return self.deposit(Stamp.from_texts(texts, seed=seed, **about))
        except SchemeError:
            raise
        except ClearStampError as error:
            raise SchemeError("a stamp cannot be drawn", got=str(error)) from error

    def outputs(self, model: nn.Module, data: LabelledImages) -> int | tuple[int, ...]:
        """The shape of a key."""
        if self.tap is None:
            return outputs_of(model, data)
        example = torch.zeros(1, *data.shape, device=device_of(model))
        return transpose(model, example, readout=self.readout, output=self.output).key_shape

    def deposit(self, owned: Stamp | Seal) -> Key:
        """The key of a stamp, or of a seal, that its owner made otherwise."""
        if isinstance(owned, Seal):
            written = torch.frombuffer(bytearray(owned.whole()), dtype=torch.uint8)
            chosen = owned.choices
            scheme = replace(self, sealed=True, pairs=len(owned), readout=chosen.readout, tap=chosen.tap)
            return Key(scheme, chosen.input, {"seal": written})
        tensors = {"keys": owned.keys, "secrets": owned.secrets}
        tensors |= {FROZEN + name: value for name, value in owned.frozen.items()}
        settings: dict[str, Any] = {"labels": list(owned.labels)}
        if owned.payload is not None:
            settings["payload"] = asdict(owned.payload)
        held = {name: tensor.detach().cpu() for name, tensor in tensors.items()}
        return Key(replace(self, sealed=False, pairs=len(owned)), tuple(owned.secrets.shape[1:]), held, settings)

    def stamp(self, key: Key) -> Stamp:
        """The stamp that a key holds."""
        if self.sealed:
            return self.seal(key).stamp()
        frozen = {name.removeprefix(FROZEN): value for name, value in key.tensors.items() if name.startswith(FROZEN)}
        payload = Payload(**key.settings["payload"]) if "payload" in key.settings else None
        return Stamp(key["keys"], key["secrets"], tuple(key.settings["labels"]), frozen, payload)

    def seal(self, key: Key) -> Seal:
        """The seal that a key holds."""
        return Seal.of(key["seal"].numpy().tobytes())

    def prepare(self, model: nn.Module, data: LabelledImages, key: Key) -> None:
        stamp, by = self.stamp(key), self.method
        back = self.backwards(model, stamp)
        harden(back, stamp, steps=by.steps, target=by.target, lr=self.lr, dropout=by.dropout, progress=False)

    def loss(self, model: nn.Module, data: LabelledImages, key: Key) -> Callable[[], Tensor]:
        stamp, by = self.stamp(key), self.method
        return StampLoss(self.backwards(model, stamp), stamp, dropout=by.dropout, noise=by.noise)

    def forge(self, model: nn.Module, data: LabelledImages, *, seed: int) -> Key:
        """Keys at which the model shows the pictures best; a seal draws its keys, so that none can be chosen."""
        drawn = self.draw(model, data, seed=seed)
        if self.sealed:
            return drawn
        wanted = self.stamp(drawn)
        return self.deposit(optimised_keys(self.backwards(model, wanted), wanted))

    def backwards(self, model: nn.Module, stamp: Stamp) -> Transposed:
        """The model run backwards by the scheme's readout."""
        example = stamp.secrets[:1].to(next(model.parameters()))
        return transpose(model, example, readout=self.readout, output=self.output, frozen=stamp.frozen)

    def read(self, suspect: nn.Module, key: Key) -> Evidence:
        try:
            return self.reader(key, Graphs(torch.zeros(1, *key.shape, device=device_of(suspect))))(suspect)
        except ClearStampError as error:
            raise UnfitError("the suspect cannot be run backwards", got=str(error)) from error

    def reader(self, key: Key, graphs: Graphs) -> Callable[[nn.Module], Evidence]:
        """As `Scheme.reader`; raises `AttackError`, `TransposeError` or `StampError` for a model that does not fit."""
        return StampReader(self, key, self.graphs(graphs))

    def graphs(self, graphs: Graphs) -> Graphs:
        """Those of the same inputs that end where keys enter."""
        return graphs if self.tap is None else Graphs(graphs.example, output=self.output)


class StampReader:
    """Reads one stamp out of many models, each run backwards once for as long as it keeps its form."""

    def __init__(self, scheme: ClearStamp, key: Key, graphs: Graphs):
        self.scheme, self.graphs, self.stamp = scheme, graphs, scheme.stamp(key)
        self.seal = scheme.seal(key) if scheme.sealed else None
        self.back: Transposed | None = None
        self.graph: Graph | None = None

    def __call__(self, suspect: nn.Module) -> Evidence:
        about: dict[str, Any]
        graph = self.graphs(suspect)
        if self.back is None or self.back.model is not suspect or self.graph is not graph:
            self.graph = graph
            self.back = transpose(suspect, graph, readout=self.scheme.readout, frozen=self.stamp.frozen)
        if self.seal is not None:
            verdict, signals = best_reading(self.back, self.seal, searched=1, grafted=False)
            about = {"pictures": signals, "detail": scored(signals, self.stamp)}
            return Evidence(verdict.right / verdict.of, verdict.of, float(verdict.p), verdict.data, **about)
        reading = read(self.back, self.stamp)
        about = {"pictures": reading.images, "detail": reading}
        if self.stamp.payload is not None:
            found, wrong = try_bytes(self.back, self.stamp)
            bits = found.bits.size
            right = bits - round(float(wrong.mean()) * bits)
            payload = found.data if found.right else None
            return Evidence(right / bits, bits, matching(right, bits, 2), payload, **about)
        return Evidence(reading.ssim.mean().item(), len(self.stamp), torch.nan, **about)


def drawn_seal(seed: int, *, outputs: int, shape: Any, **choices: Any) -> Seal:
    """A seal whose 32 secret bytes follow from the seed of a run, so that an experiment can be repeated.

    They are no secret: an owner's seal has its seed from the system, by `Seal.make` alone.
    """
    made = Seal.make(outputs=outputs, shape=shape, **choices)
    return replace(made, seed=hashlib.sha256(f"clearstamp/experiment/{seed}".encode()).digest())


def optimised_keys(
    back: Transposed, wanted: Stamp, *, steps: int = 200, lr: float = 1e-2, key_range: float = 10.0
) -> Stamp:
    """A stamp with the pictures of another, and keys at which a model shows them best.

    They start at those of the other stamp and stay in plus and minus `key_range`; `lr` is in parts of it.
    """
    secrets, keys = wanted.secrets.to(back.device), wanted.keys.to(back.device).requires_grad_()
    descent = torch.optim.Adam([keys], lr=lr * key_range)
    for _ in range(steps):
        images = back(keys)
        loss = (1 - structural_similarity(images, secrets)).mean() + F.mse_loss(images, secrets)
        (keys.grad,) = torch.autograd.grad(loss, keys)  # of the keys alone, not of the model's weights
        descent.step()
        keys.data.clamp_(-key_range, key_range)
    return replace(wanted, keys=keys.detach().cpu())
