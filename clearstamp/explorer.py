"""Live exploration: sliders that manipulate a real model and show at once what is left of its stamp."""

import copy
import io
import time
from dataclasses import dataclass, replace

import ipywidgets as widgets
import torch
from PIL import Image
from torch import Tensor, nn

from clearstamp.attacks import Erasure, Look, Noise, Rescaling, Scene
from clearstamp.data import Data, LabelledImages
from clearstamp.errors import AttackError
from clearstamp.method import RECOMMENDED
from clearstamp.pictures import develop, montage
from clearstamp.stamp import Stamp
from clearstamp.units import layers

ERASURE_STEPS = 16
FEW = 6


@dataclass(frozen=True)
class Manipulation:
    """What is done to a copy of the model, in this order, and to the keys.

    Attributes:
        erasure: optimizer steps of an attacker who teaches noise to random keys, at most `ERASURE_STEPS`.
        noise: normal error on every weight, in standard deviations of its tensor.
        rescaling: hidden ReLU units are rescaled by random powers of two, up to this one.
        pruning: share of the weights that is set to zero.
        keys: normal error on the owner's keys, as a share of their range.
    """

    erasure: int = 0
    noise: float = 0.0
    rescaling: int = 0
    pruning: float = 0.0
    keys: float = 0.0


class Explorer:
    """A marked model that can be manipulated again and again; it stays as it is.

    It keeps the weights after each step of erasure: `ERASURE_STEPS` times the model's memory. Raises `StampError` if
    the stamp does not fit, `AttackError` if the test images do not.
    """

    def __init__(self, model: nn.Module, stamp: Stamp, test: Data | None, readout: str, seed: int):
        if test is not None and test.shape != tuple(stamp.secrets.shape[1:]):
            raise AttackError("the test images do not fit the model", got=test.shape, expected=stamp.secrets.shape[1:])
        self.measured = test is not None
        self.test = test or Data(stamp.secrets.cpu(), torch.zeros(len(stamp), dtype=torch.int64))  # to have some
        self.model, self.stamp, self.readout, self.seed = model, stamp, readout, seed
        scene = self.scene(stamp)
        generator = torch.Generator().manual_seed(seed)
        self.error = torch.randn(stamp.keys.shape, generator=generator).to(stamp.keys) * stamp.keys.abs().max()
        self.erased = [weights(scene.model)]
        with torch.random.fork_rng(devices=[scene.device] if scene.device.type == "cuda" else []):
            torch.manual_seed(seed)
            scene.look = lambda *_: self.erased.append(weights(scene.model))  # type: ignore[assignment]
            Erasure(keys="random", count=None, steps=ERASURE_STEPS, looks=ERASURE_STEPS).run(scene)

    def scene(self, stamp: Stamp) -> Scene:
        """A copy of the model, and a judge who reads `stamp` from it."""
        return Scene(copy.deepcopy(self.model), self.test, self.test, stamp, None, self.readout, False, self.seed)

    def __call__(self, manipulation: Manipulation) -> Look:
        """What is left after a manipulation. Raises `AttackError` if the model has no unit to rescale."""
        m = manipulation
        scene = self.scene(replace(self.stamp, keys=self.stamp.keys + m.keys * self.error))
        scene.model.load_state_dict(self.erased[m.erasure])
        attacks = {
            Noise(scale=m.noise): m.noise,
            Rescaling(octaves=max(m.rescaling, 1)): m.rescaling,
        }
        with torch.random.fork_rng(devices=[scene.device] if scene.device.type == "cuda" else []):
            for attack, amount in attacks.items():
                if amount:
                    torch.manual_seed(self.seed)
                    attack.run(scene)
        prune(scene, m.pruning)
        return scene.look("explored")


def explore(
    model: nn.Module,
    stamp: Stamp,
    test: LabelledImages | None = None,
    *,
    readout: str = RECOMMENDED.readout,
    seed: int = 0,
) -> widgets.VBox:
    """Sliders over pruning, noise, rescaling, key errors and erasure, for a notebook with a kernel.

    Every move manipulates a copy of `model` and reads `stamp` out of it: the raw signal of the first keys above, the
    developed pictures below, with mean SSIM and, on at most 200 of the `test` images, accuracy. Raises `StampError` if
    the stamp does not fit the model.
    """
    explorer = Explorer(model, stamp, None if test is None else some(test, seed), readout, seed)
    about: dict[str, widgets.Widget] = {
        "pruning": widgets.FloatSlider(max=0.95, step=0.05, readout_format=".0%", description="pruning"),
        "noise": widgets.FloatSlider(max=1.0, step=0.05, description="noise"),
        "rescaling": widgets.IntSlider(max=10, description="rescaling, octaves"),
        "keys": widgets.FloatSlider(max=1.0, step=0.05, readout_format=".0%", description="error of the keys"),
        "erasure": widgets.IntSlider(max=ERASURE_STEPS, description="erasure, steps"),
    }
    picture, text = widgets.Image(format="png"), widgets.HTML()
    picture.layout.width = "min(100%, 44rem)"
    picture.add_class("cs-stamp")
    for slider in about.values():
        slider.style.description_width, slider.layout.width = "10rem", "min(100%, 44rem)"

    def show(_: object = None) -> None:
        began = time.perf_counter()
        try:
            found = explorer(Manipulation(**{name: slider.value for name, slider in about.items()}))
        except AttackError as error:
            text.value = str(error)
            return
        images = found.reading.images[:FEW]
        picture.value = png(torch.cat([images, develop(images)]))
        scores = f"mean SSIM {found.reading.ssim.mean():.3f}, developed {found.reading.developed_ssim.mean():.3f}"
        accuracy = f"accuracy {found.accuracy:.3f} on {len(explorer.test)} images, " * explorer.measured
        text.value = f"{accuracy}{scores} ({1000 * (time.perf_counter() - began):.0f} ms)"

    for slider in about.values():
        slider.observe(show, names="value")
    show()
    return widgets.VBox([picture, text, *about.values()])


def prune(scene: Scene, amount: float) -> None:
    """What `Pruning` does, by one threshold: `torch.nn.utils.prune` takes longer than all the rest."""
    pruned = [layer.weight for layer in layers(scene.model, scene.example)]
    count = round(amount * sum(weight.numel() for weight in pruned))
    if count:
        threshold = torch.cat([weight.detach().abs().flatten() for weight in pruned]).kthvalue(count).values
        with torch.no_grad():
            for weight in pruned:
                weight.mul_(weight.abs() > threshold)


def some(images: LabelledImages, seed: int) -> Data:
    """At most 200 of the images, drawn from `seed`."""
    return Data(*next(iter(images.loader(200, seed=seed))), images.classes)


def weights(model: nn.Module) -> dict[str, Tensor]:
    """A copy of its weights and buffers."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def png(images: Tensor) -> bytes:
    """Images ``[2 k, C, H, W]`` in two rows, five pixels a pixel."""
    sheet = Image.fromarray(montage(images, columns=len(images) // 2))
    buffer = io.BytesIO()
    sheet.resize((5 * sheet.width, 5 * sheet.height), Image.Resampling.NEAREST).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
