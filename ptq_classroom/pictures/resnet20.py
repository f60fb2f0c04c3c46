"""ResNet-20: the network on which quantization papers and tools measure each other.

He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", 2016 (section 4.2): a 3x3
convolution, three stages of three basic blocks with 16, 32 and 64 channels, a linear layer. There
the pictures are CIFAR-10's, 32x32; here they are the course's, 48x48, so the first convolution
strides by 3 and the stages see 16x16, 8x8 and 4x4. Shortcuts that change shape are 1x1
convolutions, as in most published weights.
"""

import torch
from torch import Tensor, nn

from ptq_classroom.pictures.residual import BasicBlock


class ResNet20(nn.Module):
    """float32 [N, 3, 48, 48] -> logits [N, classes]."""

    def __init__(self, num_classes: int = 48) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, 3, bias=False)
        self.bn = nn.BatchNorm2d(16)
        self.relu = nn.ReLU()
        self.stage1 = stage(16, 16, 1)
        self.stage2 = stage(16, 32, 2)
        self.stage3 = stage(32, 64, 2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(64, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn(self.conv(x)))
        x = self.stage3(self.stage2(self.stage1(x)))
        return self.fc(torch.flatten(self.pool(x), 1))


def stage(c_in: int, c_out: int, stride: int, blocks: int = 3) -> nn.Sequential:
    """Basic blocks at one resolution; the first strides."""
    first = BasicBlock(c_in, c_out, stride)
    return nn.Sequential(first, *[BasicBlock(c_out, c_out) for _ in range(blocks - 1)])
