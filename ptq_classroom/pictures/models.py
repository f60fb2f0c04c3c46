"""The trained networks of the course: residual, depthwise, with SiLU, and a vision transformer.

`mobilenet` is made of inverted residuals with depthwise convolutions and ReLU6 (after Sandler,
Howard, Zhu, Zhmoginov, Chen, "MobileNetV2: Inverted Residuals and Linear Bottlenecks", 2018); the
others have files of their own. All are written plainly so that torch.fx traces them, and need about
10 million multiply-adds a 48x48 image at most. All but `resnet20`, which is as published, keep
their channels wide at low resolution, where integer kernels gain most.
"""

from collections.abc import Callable

import safetensors.torch
import torch
from torch import Tensor, nn

from ptq_classroom.pictures.classes import CLASS_NAMES
from ptq_classroom.pictures.efficientnet import EfficientNet
from ptq_classroom.pictures.integrity import facts, verified
from ptq_classroom.pictures.residual import ResNet
from ptq_classroom.pictures.resnet20 import ResNet20
from ptq_classroom.pictures.vit import ViT


class InvertedResidual(nn.Module):
    """1x1 expansion, 3x3 depthwise, 1x1 linear projection; `x + y` where the shapes agree."""

    def __init__(self, c_in: int, c_out: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = c_in * expansion
        layers: list[nn.Module] = []
        if expansion != 1:
            layers += [nn.Conv2d(c_in, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU6()]
        layers += [
            nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU6(),
            nn.Conv2d(hidden, c_out, 1, bias=False),
            nn.BatchNorm2d(c_out),
        ]
        self.layers = nn.Sequential(*layers)
        self.residual = stride == 1 and c_in == c_out

    def forward(self, x: Tensor) -> Tensor:
        y = self.layers(x)
        return x + y if self.residual else y


class MobileNet(nn.Module):
    """float32 [N, 3, 48, 48] -> logits [N, classes]."""

    # expansion, channels, stride
    BLOCKS = ((1, 16, 1), (6, 24, 2), (6, 24, 1), (6, 40, 2), (6, 40, 1), (6, 64, 2), (6, 64, 1))

    def __init__(self, num_classes: int = 48) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU6()
        )
        blocks = []
        channels = 32
        for expansion, c_out, stride in self.BLOCKS:
            blocks.append(InvertedResidual(channels, c_out, stride, expansion))
            channels = c_out
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Sequential(
            nn.Conv2d(channels, 256, 1, bias=False), nn.BatchNorm2d(256), nn.ReLU6()
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(256, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(self.blocks(self.stem(x)))
        return self.fc(torch.flatten(self.pool(x), 1))


def multiply_adds(model: nn.Module, image_size: int = 48) -> int:
    """Multiply-adds of the convolutions and linear layers for one image [3, size, size]."""
    total = 0

    def count(module: nn.Module, inputs: tuple, output: Tensor) -> None:
        nonlocal total
        channels = output.shape[1 if isinstance(module, nn.Conv2d) else -1]
        total += module.weight.numel() * (output.numel() // channels)

    hooks = [
        module.register_forward_hook(count)
        for module in model.modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    ]
    training = model.training
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(1, 3, image_size, image_size))
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    return total


ARCHITECTURES: dict[str, Callable[[int], nn.Module]] = {
    "resnet": ResNet,
    "mobilenet": MobileNet,
    "efficientnet": EfficientNet,
    "vit": ViT,
    "resnet20": ResNet20,
}


def resnet(num_classes: int = 48) -> ResNet:
    """An untrained residual network."""
    return ResNet(num_classes)


def mobilenet(num_classes: int = 48) -> MobileNet:
    """An untrained depthwise network."""
    return MobileNet(num_classes)


def manifest(name: str) -> dict:
    """What data/manifest.json says of a network: sha256, fp32_accuracy, multiply_adds, ..."""
    return facts(f"{_known(name)}.safetensors")


def load_model(name: str) -> nn.Module:
    """The trained network `name` (one of ARCHITECTURES) in eval mode.

    Raises ValueError for another name, `DataIntegrityError` where the file is not the manifest's.
    """
    model = ARCHITECTURES[_known(name)](len(CLASS_NAMES))
    model.load_state_dict(safetensors.torch.load(verified(f"{name}.safetensors").getvalue()))
    return model.eval()


def _known(name: str) -> str:
    if name not in ARCHITECTURES:
        raise ValueError(f"unknown network {name!r}; choose one of {', '.join(ARCHITECTURES)}")
    return name
