"""An EfficientNet-like network: inverted residuals with SiLU and squeeze-and-excitation.

After Tan, Le, "EfficientNetV2: Smaller Models and Faster Training", 2021, whose early blocks are
fused ones; the channel attention is Hu, Shen, Sun, "Squeeze-and-Excitation Networks", 2018. It
holds what makes quantization harder: SiLU has a short negative side, the attention multiplies two
activations, and depthwise weights have unequal channels. As in the residual network, the first
convolution strides by 4, so that channels are wide where integer kernels gain most. Late blocks
alone expand: each expansion adds a SiLU, which runs in floating point, over all its channels.
"""

import torch
from torch import Tensor, nn


class SqueezeExcite(nn.Module):
    """x times a factor in (0, 1) for each channel, computed from the channels' means."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.reduce = nn.Conv2d(channels, squeezed, 1)
        self.act = nn.SiLU()
        self.expand = nn.Conv2d(squeezed, channels, 1)
        self.gate = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(self.expand(self.act(self.reduce(self.pool(x)))))


class MBConv(nn.Module):
    """1x1 expansion, 3x3 depthwise, attention, 1x1 projection; `x + y` where the shapes agree."""

    def __init__(self, c_in: int, c_out: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = c_in * expansion
        self.layers = nn.Sequential(
            nn.Conv2d(c_in, hidden, 1, bias=False),
            nn.BatchNorm2d(hidden),
            nn.SiLU(),
            nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden),
            nn.SiLU(),
            SqueezeExcite(hidden, max(8, c_in // 4)),
            nn.Conv2d(hidden, c_out, 1, bias=False),
            nn.BatchNorm2d(c_out),
        )
        self.residual = stride == 1 and c_in == c_out

    def forward(self, x: Tensor) -> Tensor:
        y = self.layers(x)
        return x + y if self.residual else y


class FusedConv(nn.Module):
    """One 3x3 convolution with SiLU in place of expansion and depthwise; `x + y` likewise."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False), nn.BatchNorm2d(c_out), nn.SiLU()
        )
        self.residual = stride == 1 and c_in == c_out

    def forward(self, x: Tensor) -> Tensor:
        y = self.layers(x)
        return x + y if self.residual else y


class EfficientNet(nn.Module):
    """float32 [N, 3, 48, 48] -> logits [N, classes]; 12x12, 6x6 and 3x3 feature maps."""

    # expansion (0: fused), channels, stride
    BLOCKS = ((0, 32, 1), (0, 64, 2), (0, 64, 1), (0, 64, 1), (2, 64, 1), (4, 112, 2), (4, 112, 1))

    def __init__(self, num_classes: int = 48) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 32, 6, 4, 1, bias=False), nn.BatchNorm2d(32), nn.SiLU()
        )
        blocks: list[nn.Module] = []
        channels = 32
        for expansion, c_out, stride in self.BLOCKS:
            blocks.append(
                MBConv(channels, c_out, stride, expansion)
                if expansion
                else FusedConv(channels, c_out, stride)
            )
            channels = c_out
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Sequential(
            nn.Conv2d(channels, 256, 1, bias=False), nn.BatchNorm2d(256), nn.SiLU()
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(256, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(self.blocks(self.stem(x)))
        return self.fc(torch.flatten(self.pool(x), 1))
