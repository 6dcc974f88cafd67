"""Which of torchvision's classifiers can be run backwards, and what hardening does to some of them."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import models

from clearstamp.errors import ClearStampError, RecordError, TransposeError
from clearstamp.reading import read
from clearstamp.reproduction.experiments import Experiment, Findings, Settings, device
from clearstamp.reproduction.records import BOTH_READOUTS, Stage
from clearstamp.stamp import Stamp
from clearstamp.training.loops import harden
from clearstamp.transpose import transpose
from clearstamp.transposed.graph import Graph, capture

OUTPUTS = 10
HANDFUL = (
    "densenet121",
    "efficientnet_b0",
    "mobilenet_v3_small",
    "resnet18",
    "shufflenet_v2_x0_5",
    "swin_v2_t",
    "vit_b_32",
)
"""One network from each family with layers of its own kind."""


def classifiers() -> list[str]:
    """The names of all classifiers of `torchvision.models`."""
    return sorted(models.list_models(module=models))


def smallest(name: str) -> int:
    """Height and width of a small image that the network accepts, a multiple of 4."""
    sizes = {"alexnet": 64, "inception_v3": 76, "maxvit_t": 224, "vit_h_14": 28}
    return sizes.get(name, 32)


def classifier(name: str, *, seed: int = 0) -> nn.Module:
    """The untrained network for ten classes. Weights that torchvision sets to a constant are drawn at random.

    A head of zeros lets no signal in; branches scaled by a millionth, like those of ConvNeXt, next to none.
    """
    extra: dict[str, Any] = {"num_classes": OUTPUTS}
    if name.startswith("vit"):
        extra["image_size"] = smallest(name)
    if name in ("googlenet", "inception_v3"):
        extra |= {"aux_logits": False, "init_weights": False}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: nn.Module = models.get_model(name, weights=None, **extra)
        for weight in model.parameters():
            if weight.dim() > 1 and bool((weight == weight.flatten()[0]).all()):
                nn.init.normal_(weight, std=weight.shape[-1] ** -0.5)
    return model.eval()


def cover(model: nn.Module, example: Tensor, *readouts: str) -> list[dict[str, Any]]:
    """What a transposed network does with one key, in each readout.

    ``reason``: why it cannot be run backwards, or None. ``finite``: whether the image is finite, in the input's shape.
    ``without gradient``: how many of the `weights` (of two axes or more) a loss on the image does not reach.
    """
    try:
        graph = capture(model, example)
    except TransposeError as error:
        return [{"reason": str(error)} for _ in readouts]
    return [covered(model, graph, readout) for readout in readouts]


def covered(model: nn.Module, graph: Graph, readout: str) -> dict[str, Any]:
    """`cover` for a captured network, in one readout."""
    try:
        back = transpose(model, graph, readout=readout)
    except TransposeError as error:
        return {"reason": str(error)}
    image = back(torch.linspace(-10, 10, prod(back.key_shape), dtype=back.dtype).reshape(1, *back.key_shape))
    image.square().mean().sqrt().backward()
    weights = [weight for weight in model.parameters() if weight.dim() > 1]
    reached = [weight for weight in weights if weight.grad is not None and bool(weight.grad.any())]
    model.zero_grad()
    return {
        "reason": None,
        "finite": bool(image.isfinite().all()) and image.shape[1:] == back.image_shape,
        "weights": len(weights),
        "without gradient": len(weights) - len(reached),
    }


@dataclass(frozen=True, kw_only=True)
class Networks(Experiment):
    """An experiment on classifiers of torchvision, which are not trained and need no data."""

    networks: tuple[str, ...]

    def check(self, settings: Settings) -> Iterator[ClearStampError]:
        for name in sorted(set(self.networks) - set(classifiers())):
            yield RecordError("unknown model", got=repr(name), expected="a classifier of torchvision")


@dataclass(frozen=True, kw_only=True)
class Coverage(Networks):
    """`cover` of some networks in both readouts, in float64."""

    def conduct(self, settings: Settings, seed: int) -> Findings:
        stages = []
        for name in self.networks:
            model = classifier(name, seed=seed).double()
            example = torch.zeros(1, 3, smallest(name), smallest(name), dtype=torch.float64)
            size = sum(weight.numel() for weight in model.parameters())
            for readout, found in zip(BOTH_READOUTS, cover(model, example, *BOTH_READOUTS), strict=True):
                scores = {"parameters": size} | found
                stages.append(Stage(label=f"{name}/{readout}", network=name, readout=readout, scores=scores))
        return stages, {}, {}


@dataclass(frozen=True, kw_only=True)
class Hardened(Networks):
    """SSIM of four keys before and after at most `steps` hardening steps (fewer below the profile ``paper``)."""

    readout: str = "adjoint"
    steps: int = 200
    lr: float = 1e-3

    def conduct(self, settings: Settings, seed: int) -> Findings:
        steps = self.steps if settings.profile == "paper" else settings.hardening_steps // 10
        networks = ((n, classifier(n, seed=seed), (3, smallest(n), smallest(n))) for n in self.networks)
        return hardened(networks, readout=self.readout, steps=steps, lr=self.lr, seed=seed)


def hardened(
    networks: Iterable[tuple[str, nn.Module, tuple[int, int, int]]], *, readout: str, steps: int, lr: float, seed: int
) -> Findings:
    """SSIM of four keys before and after at most `steps` hardening steps, for each name, network and image shape."""
    stages: list[Stage] = []
    arrays: dict[str, Tensor] = {}
    for name, model, shape in networks:
        stamp = Stamp.from_texts(["AB", "CD", "EF", "GH"], outputs=OUTPUTS, shape=shape, seed=seed)
        back = transpose(model.to(device()), torch.zeros(1, *shape, device=device()), readout=readout)
        before = read(back, stamp)
        done = harden(back, stamp, steps=steps, target=0.95, lr=lr, dropout=0.0, progress=False)
        after = read(back, stamp)
        scores = {"steps": done.steps, "ssim before": before.ssim.mean().item(), "ssim": after.ssim.mean().item()}
        stages.append(Stage(label=name, network=name, scores=scores))
        arrays[name] = after.images
    return stages, arrays, {}
