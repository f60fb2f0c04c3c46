"""Small networks for tests, each with one structural feature that quantization must handle."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Residual(nn.Module):
    """Conv-BN-ReLU, a residual add, pooling, a linear layer: the shape of a ResNet."""

    def __init__(self, channels: int = 8, classes: int = 5) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, padding=1, bias=False)
        self.stem_bn = nn.BatchNorm2d(channels)
        self.a = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.a_bn = nn.BatchNorm2d(channels)
        self.b = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.b_bn = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.stem_bn(self.stem(x)))
        y = self.b_bn(self.b(self.relu(self.a_bn(self.a(x)))))
        x = self.relu(x + y)
        return self.fc(self.drop(torch.flatten(self.pool(x), 1)))


class InvertedResidual(nn.Module):
    """Depthwise convolution and ReLU6, as in MobileNetV2."""

    def __init__(self, channels: int = 6, classes: int = 4) -> None:
        super().__init__()
        wide = channels * 3
        self.stem = nn.Sequential(nn.Conv2d(3, channels, 3, 2, 1), nn.BatchNorm2d(channels))
        self.block = nn.Sequential(
            nn.Conv2d(channels, wide, 1, bias=False),
            nn.BatchNorm2d(wide),
            nn.ReLU6(),
            nn.Conv2d(wide, wide, 3, padding=1, groups=wide, bias=False),
            nn.BatchNorm2d(wide),
            nn.ReLU6(),
            nn.Conv2d(wide, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        )
        self.head = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.block(x)
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


class SharedLayer(nn.Module):
    """One linear layer called twice, on inputs of different ranges."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)
        self.out = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.relu(self.fc(torch.relu(self.fc(x)) * 10)))


class DataDependent(nn.Module):
    """Branches on a value of its input: torch.fx cannot trace it."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 4)
        self.other = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) if x.sum() > 0 else self.other(x)


def randomize_batch_norms(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every batch norm statistics and parameters that folding must get right."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)):
            size = module.running_mean.shape
            module.running_mean.copy_(torch.randn(size, generator=generator))
            module.running_var.copy_(torch.rand(size, generator=generator) * 3 + 0.1)
            if module.affine:
                module.weight.data.copy_(torch.randn(size, generator=generator))
                module.bias.data.copy_(torch.randn(size, generator=generator))
    return model.eval()


def batches(count: int = 4, size: int = 8, shape: tuple[int, ...] = (3, 12, 12), seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(size, *shape, generator=generator), torch.zeros(size)) for _ in range(count)
    ]


def answering(data: list, seed: int = 0) -> nn.Module:
    """A residual network whose classes all occur on `data`, so that noise can change answers."""
    torch.manual_seed(seed)
    model = randomize_batch_norms(Residual(), seed)
    with torch.no_grad():
        model.fc.bias -= model(torch.cat([x for x, _ in data])).mean(0)
    return model


def taught_by(model: nn.Module, data: list) -> list[tuple[Tensor, Tensor]]:
    """`data` with the model's own answers as labels: in FP32 it scores 100 %."""
    with torch.no_grad():
        return [(x, model(x).argmax(1)) for x, _ in data]


class Net(nn.Module):
    """Layers by name, and a function that calls them."""

    def __init__(self, function, **layers):
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x):
        return self.function(self, x)
