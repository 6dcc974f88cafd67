"""The paper's architectures by name. Sizes that the paper leaves open are this library's choice and say so."""

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet
from torchvision.models.vgg import VGG, cfgs, make_layers
from torchvision.models.vision_transformer import VisionTransformer

from clearstamp.errors import ClearStampError

Shape = tuple[int, int, int]


def cnn(shape: Shape, outputs: int, *, batch_norm: bool = False) -> nn.Sequential:
    """The paper's default: two convolutions, each with ReLU and 2x2 max pooling; fully connected 512, 256, outputs.

    32 and 64 channels, 5x5 kernels and padding 2 are this library's choice: the paper gives none.
    """

    def block(inputs: int, channels: int) -> list[nn.Module]:
        norm = [nn.BatchNorm2d(channels)] if batch_norm else []
        return [nn.Conv2d(inputs, channels, 5, padding=2), *norm, nn.ReLU(), nn.MaxPool2d(2)]

    channels, height, width = shape
    return nn.Sequential(
        *block(channels, 32),
        *block(32, 64),
        nn.Flatten(),
        nn.Linear(64 * (height // 4) * (width // 4), 512),
        nn.ReLU(),
        nn.Linear(512, 256),
        nn.ReLU(),
        nn.Linear(256, outputs),
    )


def cnn_bn(shape: Shape, outputs: int) -> nn.Sequential:
    """The default CNN with batch norm after each convolution."""
    return cnn(shape, outputs, batch_norm=True)


def fc(shape: Shape, outputs: int) -> nn.Sequential:
    """Three fully connected hidden layers of 1024 units with ReLU."""
    widths = [math.prod(shape), 1024, 1024, 1024]
    hidden = [layer for n, m in pairwise(widths) for layer in (nn.Linear(n, m), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(1024, outputs))


class SmallImageResNet(ResNet):
    """torchvision's ResNet for small images: a 3x3 stem with stride 1 and no first pooling.

    `width` is the number of channels of the first stage: 64 as in the original; the later stages scale with it.
    """

    def __init__(self, shape: Shape, outputs: int, *, blocks: list[int], width: int = 64):
        self.width = width
        super().__init__(BasicBlock, blocks, num_classes=outputs)
        self.conv1 = nn.Conv2d(shape[0], width, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
        self.bn1 = nn.BatchNorm2d(width)
        self.maxpool = nn.Identity()
        self.fc = nn.Linear(8 * width, outputs)

    def _make_layer(self, block: Any, planes: int, *args: Any, **named: Any) -> nn.Sequential:
        if planes == 64:
            self.inplanes = self.width
        return super()._make_layer(block, planes * self.width // 64, *args, **named)


def vgg11(shape: Shape, outputs: int, *, width: int = 64) -> nn.Module:
    """torchvision's VGG11 for small images: pools round up, and three fully connected layers 8 `width` wide."""
    channels, height, width_px = shape
    layers = make_layers([c if c == "M" else int(c) * width // 64 for c in cfgs["A"]])
    layers[0] = nn.Conv2d(channels, width, 3, padding=1)
    for layer in layers:
        if isinstance(layer, nn.MaxPool2d):
            layer.ceil_mode = True
    model = VGG(layers, num_classes=outputs)
    model.avgpool = nn.Identity()
    hidden, left = 8 * width, math.ceil(height / 32) * math.ceil(width_px / 32)
    model.classifier = nn.Sequential(
        *(nn.Linear(hidden * left, hidden), nn.ReLU(True), nn.Dropout()),
        *(nn.Linear(hidden, hidden), nn.ReLU(True), nn.Dropout()),
        nn.Linear(hidden, outputs),
    )
    return model


def vit(shape: Shape, outputs: int, *, width: int = 192) -> VisionTransformer:
    """torchvision's ViT for small images: patch 4, six layers of three heads, `width` wide, MLPs 4 `width` wide.

    The head is drawn, where torchvision starts it at zero: a signal of zero would enter the transposed model.
    """
    channels, height, width_px = shape
    if height != width_px or height % 4:
        raise ClearStampError("no image for this ViT", got=shape, expected="(C, H, W), H = W, a multiple of 4")
    model = VisionTransformer(
        image_size=height,
        patch_size=4,
        num_layers=6,
        num_heads=3,
        hidden_dim=width,
        mlp_dim=4 * width,
        num_classes=outputs,
    )
    if channels != 3:
        model.conv_proj = nn.Conv2d(channels, width, 4, 4)
    nn.init.trunc_normal_(model.heads.head.weight, std=width**-0.5)
    return model


def lenet(shape: Shape, outputs: int, *, maps: tuple[int, int], hidden: tuple[int, ...]) -> nn.Sequential:
    """The LeNets of Li et al. (ACSAC 2019): two 5 x 5 convolutions, each with ReLU and pooling, then `hidden` units."""
    channels, height, width = shape
    layers: list[nn.Module] = []
    for inner, outer in zip((channels, *maps), maps, strict=False):
        layers += [nn.Conv2d(inner, outer, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)]
    layers.append(nn.Flatten())
    sizes = (maps[-1] * (height // 4) * (width // 4), *hidden)
    for inner, outer in zip(sizes, hidden, strict=False):
        layers += [nn.Linear(inner, outer), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], outputs))


def deepsigns_mlp(shape: Shape, outputs: int) -> nn.Sequential:
    """The fully connected network of DeepSigns (ASPLOS 2019): twice 512 units, each with ReLU and dropout of 0.2."""
    layers: list[nn.Module] = [nn.Flatten()]
    for inner in (math.prod(shape), 512):
        layers += [nn.Linear(inner, 512), nn.ReLU(), nn.Dropout(0.2)]
    return nn.Sequential(*layers, nn.Linear(512, outputs))


MODELS: dict[str, Callable[[Shape, int], nn.Module]] = {
    **{"cnn": cnn, "cnn-bn": cnn_bn, "fc": fc},
    "resnet18": partial(SmallImageResNet, blocks=[2, 2, 2, 2]),
    "resnet34": partial(SmallImageResNet, blocks=[3, 4, 6, 3]),
    **{"vgg11": vgg11, "vit": vit},
    # of the papers on other watermarks
    "lenet5": partial(lenet, maps=(6, 16), hidden=(120, 84)),
    "deepsigns-mlp": deepsigns_mlp,
    # the same, narrower: for scales below the paper's
    "resnet18-narrow": partial(SmallImageResNet, blocks=[2, 2, 2, 2], width=16),
    "resnet34-narrow": partial(SmallImageResNet, blocks=[3, 4, 6, 3], width=16),
    "vgg11-narrow": partial(vgg11, width=16),
    "vit-narrow": partial(vit, width=48),
}


def build(name: str, shape: Shape, outputs: int, *, seed: int) -> nn.Module:
    """The model `name` for images `shape` (C, H, W), initialised from `seed` without touching the global generator.

    Raises `ClearStampError` if there is none of that name.
    """
    if name not in MODELS:
        raise ClearStampError("unknown model", got=repr(name), expected=" or ".join(map(repr, MODELS)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MODELS[name](shape, outputs)
