"""The trained networks of the course: residual, depthwise, with SiLU, and a vision transformer.

`resnet` is made of Conv-BN-ReLU and residual adds (after He, Zhang, Ren, Sun, "Deep Residual
Learning for Image Recognition", 2016), `mobilenet` of inverted residuals with depthwise
convolutions and ReLU6 (after Sandler, Howard, Zhu, Zhmoginov, Chen, "MobileNetV2: Inverted
Residuals and Linear Bottlenecks", 2018); `efficientnet` and `vit` have files of their own. All
are written plainly so that torch.fx traces them, stay below 10 million multiply-adds a 48x48 image,
and keep their channels wide at low resolution, where integer kernels gain most.
"""

from collections.abc import Callable

import safetensors.torch
import torch
from torch import Tensor, nn

from ptq_classroom.pictures.classes import CLASS_NAMES
from ptq_classroom.pictures.efficientnet import EfficientNet
from ptq_classroom.pictures.integrity import facts, verified
from ptq_classroom.pictures.vit import ViT


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; `x + y`, then ReLU."""

    def __init__(self, c_in: int, c_out: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(c_out)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.relu2 = nn.ReLU()
        self.shortcut = nn.Identity()
        if stride != 1 or c_in != c_out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.relu2(self.shortcut(x) + y)


class ResNet(nn.Module):
    """float32 [N, 3, 48, 48] -> logits [N, classes]; 12x12, 6x6, 6x6, 3x3 feature maps.

    The first convolution strides by 4, because integer kernels are slow on three input channels.
    """

    def __init__(self, num_classes: int = 48) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 32, 6, 4, 1, bias=False)
        self.bn = nn.BatchNorm2d(32)
        self.relu = nn.ReLU()
        self.layer1 = BasicBlock(32, 32)
        self.layer2 = BasicBlock(32, 64, stride=2)
        self.layer3 = BasicBlock(64, 64)
        self.layer4 = BasicBlock(64, 128, stride=2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(128, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn(self.conv(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(torch.flatten(self.pool(x), 1))


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
