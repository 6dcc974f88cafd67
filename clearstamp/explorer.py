"""Live exploration: sliders that manipulate a copy of a model and show at once what is left of its stamp."""

import copy
import io
import time
from dataclasses import dataclass, replace

import ipywidgets as widgets
import torch
from PIL import Image
from torch import Tensor, nn

from clearstamp.attacks import Attack, Erasure, Noise, Pruning, Rescaling, Scene
from clearstamp.data import Data, LabelledImages
from clearstamp.errors import AttackError
from clearstamp.pictures import develop, montage
from clearstamp.reading import Reading, read
from clearstamp.stamp import Stamp
from clearstamp.training.loops import accuracy
from clearstamp.training.method import RECOMMENDED
from clearstamp.transpose import transpose

ERASURE_STEPS = 16
SHOWN = 6  # keys


@dataclass(frozen=True)
class Manipulation:
    """What is done to a copy of the model, in this order, and to the keys.

    Attributes:
        erasure: steps, at most `ERASURE_STEPS`, of an attacker who teaches noise to random keys.
        noise: normal error on every weight, in standard deviations of its tensor.
        rescaling: hidden ReLU units are rescaled by random powers of two with exponents up to this one.
        pruning: share of the weights that is set to zero.
        keys: normal error on the owner's keys, as a share of their range.
    """

    erasure: int = 0
    noise: float = 0.0
    rescaling: int = 0
    pruning: float = 0.0
    keys: float = 0.0


class Explorer:
    """A copy of a marked model that can be manipulated again and again.

    It keeps the weights after each step of erasure: `ERASURE_STEPS` times the model's memory. Raises `StampError` if
    the stamp does not fit, `AttackError` if the test images do not.
    """

    def __init__(self, model: nn.Module, stamp: Stamp, test: LabelledImages | None, readout: str, seed: int):
        if test is not None and test.shape != tuple(stamp.secrets.shape[1:]):
            raise AttackError("the test images do not fit the model", got=test.shape, expected=stamp.secrets.shape[1:])
        self.stamp, self.test, self.seed = stamp, test, seed
        generator = torch.Generator().manual_seed(seed)
        self.error = torch.randn(stamp.keys.shape, generator=generator).to(stamp.keys) * stamp.keys.abs().max()
        self.erased = [weights(model)]
        self.scene = Scene(
            copy.deepcopy(model),
            None,
            stamp,
            readout=readout,
            seed=seed,
            observer=lambda scene, *_: self.erased.append(weights(scene.model)),
        )
        self.back = transpose(self.scene.model, self.scene.graph(), readout=readout, frozen=stamp.frozen)
        with self.scene.fork_rng():
            torch.manual_seed(seed)
            Erasure(keys="random", count=None, steps=ERASURE_STEPS, looks=ERASURE_STEPS).run(self.scene)

    def __call__(self, manipulation: Manipulation) -> tuple[Reading, float | None]:
        """The stamp and the accuracy, None without test images. Raises `AttackError` if no unit can be rescaled."""
        m, scene = manipulation, self.scene
        scene.model.load_state_dict(self.erased[m.erasure])
        attacks: dict[Attack, float] = {
            Noise(scale=m.noise): m.noise,
            Rescaling(octaves=max(m.rescaling, 1)): m.rescaling,
            Pruning(amount=m.pruning): m.pruning,
        }
        with scene.fork_rng():
            for attack, amount in attacks.items():
                if amount:
                    torch.manual_seed(self.seed)
                    attack.run(scene)
            reached = None if self.test is None else accuracy(scene.model, self.test.loader(250))
        return read(self.back, replace(self.stamp, keys=self.stamp.keys + m.keys * self.error)), reached


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
    developed pictures below, with mean SSIM and the accuracy on at most 200 of the `test` images, drawn from `seed`.
    Raises `StampError` if the stamp does not fit the model, `AttackError` if the test images do not.
    """
    few = None if test is None else Data(*next(iter(test.loader(200, seed=seed))), test.classes)
    explorer = Explorer(model, stamp, few, readout, seed)
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
            reading, reached = explorer(Manipulation(**{name: slider.value for name, slider in about.items()}))
        except AttackError as error:
            text.value = str(error)
            return
        images = reading.images[:SHOWN]
        picture.value = png(torch.cat([images, develop(images)]))
        told = [] if few is None else [f"accuracy {reached:.3f} on {len(few)} images"]
        told += [f"mean SSIM {reading.ssim.mean():.3f}", f"developed {reading.developed_ssim.mean():.3f}"]
        text.value = f"{', '.join(told)} ({1000 * (time.perf_counter() - began):.0f} ms)"

    for slider in about.values():
        slider.observe(show, names="value")
    show()
    return widgets.VBox([picture, text, *about.values()])


def weights(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the model's weights and buffers."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def png(images: Tensor) -> bytes:
    """Images ``[2 k, C, H, W]`` in two rows, enlarged five times."""
    sheet = Image.fromarray(montage(images, columns=len(images) // 2))
    buffer = io.BytesIO()
    sheet.resize((5 * sheet.width, 5 * sheet.height), Image.Resampling.NEAREST).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
