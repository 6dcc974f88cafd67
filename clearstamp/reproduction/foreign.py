"""Networks that nobody here wrote, run backwards: one of each family of timm, and image classifiers of transformers.

They are built from their libraries (the extra ``models``), small, and not trained.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from clearstamp.errors import ClearStampError, RecordError
from clearstamp.reproduction.coverage import OUTPUTS, cover, hardened
from clearstamp.reproduction.experiments import Experiment, Findings, Settings
from clearstamp.reproduction.records import PACKAGE, Stage

WIDE: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
PATCHED = WIDE | {"image_size": 32, "patch_size": 8}
STAGES: dict[str, Any] = {"hidden_sizes": [8, 16, 16, 32], "depths": [1, 1, 1, 1]}
CLASSIFIERS: dict[str, tuple[dict[str, Any], int]] = {
    "Beit": (PATCHED, 32),
    "ConvNext": ({"hidden_sizes": [16, 32, 32, 32], "depths": [1, 1, 1, 1]}, 64),
    "DeiT": (PATCHED, 32),
    "Dinov2": (WIDE | {"image_size": 32, "patch_size": 8}, 32),
    "MobileNetV2": ({"image_size": 64}, 64),
    "PoolFormer": (STAGES, 64),
    "RegNet": ({"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 1], "groups_width": 8}, 32),
    "ResNet": ({"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 1]}, 32),
    "Segformer": (STAGES | {"num_attention_heads": [1, 2, 2, 4], "decoder_hidden_size": 16}, 64),
    "Swin": ({"image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2]}, 32),
    "ViT": (PATCHED, 32),
}
"""Image classifiers of transformers: what makes each small, and height and width of its images."""


@cache
def families() -> tuple[str, ...]:
    """The smallest network of each family of timm, by the name that timm gives it, after ``"timm/"``."""
    names = (PACKAGE / "reproduction" / "families.txt").read_text().split()
    return tuple(f"timm/{name}" for name in names)


def classifiers() -> tuple[str, ...]:
    """The image classifiers of transformers, after ``"transformers/"``."""
    return tuple(f"transformers/{name}" for name in CLASSIFIERS)


def network(name: str, *, seed: int = 0) -> tuple[nn.Module, tuple[int, int, int]]:
    """The network of ten classes, not trained, and the shape of its images. Weights of one constant are drawn.

    A scale of nothing or of a millionth, with which many begin, lets no signal through.
    """
    library, _, own = name.partition("/")
    model: Any
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if library == "timm":
            import timm

            model = timm.create_model(own, num_classes=OUTPUTS)
            shape = tuple(model.pretrained_cfg["input_size"])
        else:
            import transformers

            settings, side = CLASSIFIERS[own]
            configuration = getattr(transformers, f"{own}Config")(num_labels=OUTPUTS, **settings)
            model = getattr(transformers, f"{own}ForImageClassification")(configuration)
            shape = (3, side, side)
        with torch.no_grad():
            for place, weight in model.named_parameters():
                constant = bool((weight == weight.flatten()[0]).all())
                if constant and weight.dim() > 1:
                    weight.normal_(std=weight.shape[-1] ** -0.5)
                elif constant and weight.abs().max() < 0.1 and not place.endswith("bias"):
                    weight.normal_(1, 0.1)
    return model.eval(), shape


@dataclass(frozen=True, kw_only=True)
class Foreign(Experiment):
    """What the `adjoint` readout makes of some networks of other libraries, which need no data: see `cover`."""

    networks: tuple[str, ...]

    def check(self, settings: Settings) -> Iterator[ClearStampError]:
        for name in sorted(set(self.networks) - {*families(), *classifiers()}):
            yield RecordError("unknown model", got=repr(name), expected="one of timm's families or of transformers")
        for library in sorted({name.partition("/")[0] for name in self.networks}):
            if find_spec(library) is None:
                yield RecordError("a library is missing", got=library, remedy="pip install 'clearstamp[models]'")

    def conduct(self, settings: Settings, seed: int) -> Findings:
        stages = []
        for name in self.networks:
            model, shape = network(name, seed=seed)
            size = sum(weight.numel() for weight in model.parameters())
            (found,) = cover(model, torch.zeros(1, *shape), "adjoint")
            scores = {"parameters": size} | found
            stages.append(Stage(label=name, network=name, readout="adjoint", scores=scores))
        return stages, {}, {}


@dataclass(frozen=True, kw_only=True)
class ForeignHardened(Foreign):
    """SSIM of four keys before and after at most `steps` hardening steps (fewer below the profile ``paper``)."""

    steps: int = 200
    lr: float = 1e-2

    def conduct(self, settings: Settings, seed: int) -> Findings:
        steps = self.steps if settings.profile == "paper" else settings.hardening_steps // 10
        networks = ((name, *network(name, seed=seed)) for name in self.networks)
        return hardened(networks, readout="adjoint", steps=steps, lr=self.lr, seed=seed)
