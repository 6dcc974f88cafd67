"""Every classifier of torchvision, run backwards in both readouts."""

import gc
from collections.abc import Iterable, Iterator

import pytest
import torch
from torch import nn
from torchvision import models
from torchvision.models import (
    convnext,
    densenet,
    efficientnet,
    maxvit,
    resnet,
    swin_transformer,
    vgg,
    vision_transformer,
)
from torchvision.models.regnet import BlockParams

from clearstamp.reproduction.coverage import (
    HANDFUL,
    OUTPUTS,
    Coverage,
    Hardened,
    classifier,
    classifiers,
    cover,
    smallest,
)
from clearstamp.reproduction.experiments import run_all
from clearstamp.reproduction.report import coverage_table, hardened_table
from tests.tables import compact

LARGE = 5e7  # parameters that no shortened network has: in float64 and with gradients they take 1 GB


@pytest.fixture(autouse=True)
def artifacts(tmp_path, monkeypatch):
    monkeypatch.setenv("CLEARSTAMP_ARTIFACTS", str(tmp_path))


def test_classifiers_are_all_of_torchvision_s():
    assert set(classifiers()) == set(models.list_models(module=models)) and len(classifiers()) >= 80


def size(model: nn.Module) -> int:
    return sum(weight.numel() for weight in model.parameters())


def kind(block: nn.Module) -> str:
    """All that decides what a block computes but the values of its weights: layers, settings, shapes."""
    settings = (bool, int, float, str, tuple, list)
    return repr(
        [
            (path, type(part), {k: v for k, v in vars(part).items() if isinstance(v, settings) and k != "p"})
            for path, part in block.named_modules()
        ]
        + [(path, weight.shape) for path, weight in block.state_dict().items()]
    )


def shorten(model: nn.Module) -> nn.Module:
    """Leave out of a stage's blocks those of the kind of an earlier one: every kind of layer stays, in every setting.

    Of a setting only `p` may differ between blocks of a kind, the rate of a dropout, which does nothing here.
    """
    for stage in [part for part in model.modules() if isinstance(part, nn.Sequential | nn.ModuleList)]:
        seen: set[str] = set()
        for name, block in list(stage.named_children()):
            if any(block.children()) and kind(block) in seen:
                delattr(stage, name)
            seen.add(kind(block))
    if isinstance(model, models.AlexNet):
        narrow(model.classifier)
    return model


def narrow(classifier: nn.Sequential) -> None:
    """Make the hidden layers of 4,096 outputs, as AlexNet and VGG have them, narrow."""
    first, second, last = (place for place, part in enumerate(classifier) if isinstance(part, nn.Linear))
    classifier[first] = nn.Linear(classifier[first].in_features, 64)
    classifier[second] = nn.Linear(64, 64)
    classifier[last] = nn.Linear(64, OUTPUTS)


@pytest.fixture
def tidied() -> Iterator[None]:
    """A traced model is a cycle of references: it goes when garbage is looked for."""
    yield
    gc.collect()


SIDES = {"maxvit_t": 64}
"""Height and width of a smaller image yet, for a network that is built for it."""


@pytest.fixture
def built_small(monkeypatch) -> None:
    """Families whose members take long to build and run whole, with two blocks a stage; MaxViT for a small image.

    VGG's hidden layers, Swin and the widest RegNets are narrow. MaxViT's windows are of 2 x 2, not of 7 x 7, as 32 of
    them span its image.
    """

    def few(blocks: Iterable[int], most: int = 2) -> list[int]:
        return [min(count, most) for count in blocks]

    class Transformer(models.VisionTransformer):
        def __init__(self, *, num_layers: int, **given):
            super().__init__(num_layers=min(num_layers, 2), **given)

    class Swin(models.SwinTransformer):
        def __init__(self, *, embed_dim: int, depths: list[int], **given):
            super().__init__(embed_dim=embed_dim // 4, depths=few(depths), **given)

    class Residual(models.ResNet):
        def __init__(self, block, layers: list[int], **given):
            super().__init__(block, few(layers), **given)

    class Convolutions(models.ConvNeXt):
        def __init__(self, block_setting, **given):
            for stage in block_setting:
                stage.num_layers = min(stage.num_layers, 2)
            super().__init__(block_setting, **given)

    class Dense(models.DenseNet):
        def __init__(self, growth_rate: int, block_config: tuple[int, ...], *features: int, **given):
            super().__init__(growth_rate, few(block_config, 3), *features, **given)  # with two, all stages are alike

    class Scaled(models.EfficientNet):
        def __init__(self, settings, *given, **more):
            for stage in settings:
                stage.num_layers = min(stage.num_layers, 2)
            super().__init__(settings, *given, **more)

    class Plain(models.VGG):
        def __init__(self, features, **given):
            with torch.device("meta"):
                super().__init__(features, **given)
            narrow(self.classifier)

    class Windows(models.MaxVit):
        def __init__(self, *, input_size, partition_size, **given):
            super().__init__(input_size=(SIDES["maxvit_t"],) * 2, partition_size=2, **given)

    def params(**given) -> BlockParams:
        found = from_init_params(**given)
        found.depths = few(found.depths)
        if max(found.widths) > 3000:
            found.widths, found.group_widths = ([n // 8 for n in ns] for ns in (found.widths, found.group_widths))
        return found

    from_init_params = BlockParams.from_init_params
    monkeypatch.setattr(BlockParams, "from_init_params", params)
    monkeypatch.setattr(vision_transformer, "VisionTransformer", Transformer)
    monkeypatch.setattr(swin_transformer, "SwinTransformer", Swin)
    monkeypatch.setattr(resnet, "ResNet", Residual)
    monkeypatch.setattr(convnext, "ConvNeXt", Convolutions)
    monkeypatch.setattr(densenet, "DenseNet", Dense)
    monkeypatch.setattr(efficientnet, "EfficientNet", Scaled)
    monkeypatch.setattr(vgg, "VGG", Plain)
    monkeypatch.setattr(maxvit, "MaxVit", Windows)


@pytest.mark.parametrize("name", classifiers())
def test_every_classifier_gives_a_finite_image_and_a_gradient_in_every_weight(name, built_small, tidied):
    """Without most repetitions of like blocks, which take time and show nothing new; whole ones are on record."""
    model = shorten(classifier(name))
    assert size(model) < LARGE
    model = model.double()  # float32 loses gradients of 1e-45 and less in deep networks
    side = SIDES.get(name, smallest(name))
    example = torch.zeros(1, 3, side, side, dtype=torch.float64)
    found = cover(model, example, "paper", "adjoint")
    weights = sum(weight.dim() > 1 for weight in model.parameters())
    whole = {"reason": None, "finite": True, "weights": weights, "without gradient": 0}
    assert found == [whole, whole]


class Deaf(nn.Module):
    """Has a weight that its outputs do not depend on."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(12, OUTPUTS), nn.Linear(12, OUTPUTS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.used(x.flatten(1))


def test_cover_tells_what_is_wrong():
    example = torch.zeros(1, 3, 2, 2)
    assert cover(Deaf(), example, "adjoint") == [{"reason": None, "finite": True, "weights": 2, "without gradient": 1}]
    model = Deaf()
    nn.init.constant_(model.used.weight, float("inf"))
    assert "not finite" in cover(model, example, "adjoint")[0]["reason"]
    recurrent = nn.Sequential(nn.Flatten(), nn.Unflatten(1, (3, 4)), nn.LSTM(4, 4, batch_first=True))
    (found,) = cover(recurrent, example, "adjoint")
    assert "LSTM" in found["reason"]


def test_a_network_with_an_output_of_any_shape_is_covered():
    (found,) = cover(nn.Conv2d(3, 2, 3), torch.zeros(1, 3, 8, 8), "adjoint")
    assert found == {"reason": None, "finite": True, "weights": 1, "without gradient": 0}


def test_constant_weights_are_drawn():
    head = classifier("vit_b_32").heads.head.weight
    assert head.std() > 0.01
    assert torch.equal(head, classifier("vit_b_32").heads.head.weight), "from the seed"


def test_coverage_is_recorded_and_shown():
    records = run_all([Coverage(name="coverage", networks=("squeezenet1_1",))], "tiny")
    assert "| squeezenet1_1 | 0.728 | yes, gradients in 26 of 26 weights | yes," in compact(
        coverage_table(records).data
    )
    records[0].results["squeezenet1_1/paper"]["reason"] = "a|b\nc"
    records[0].results["squeezenet1_1/adjoint"]["finite"] = False
    assert "| a/b c | the image is not finite |" in compact(coverage_table(records).data)


def test_hardening_of_a_handful_is_recorded_and_shown():
    (record,) = run_all([Hardened(name="hardened", networks=("shufflenet_v2_x0_5",))], "tiny")
    found = record.results["shufflenet_v2_x0_5"]
    assert found["steps"] == 2 and record.arrays["shufflenet_v2_x0_5"].shape == (4, 3, 32, 32)
    row = f"| shufflenet_v2_x0_5 | 2 | {found['ssim before']:.3f} | {found['ssim']:.3f} |"
    assert row in compact(hardened_table([record]).data)
    assert set(HANDFUL) <= set(classifiers())
