"""The detector of chapter 10: one stage, no anchors, boxes and scores in one output tensor.

After Redmon, Divvala, Girshick, Farhadi, "You Only Look Once: Unified, Real-Time Object Detection",
2016: the picture is divided into 12 x 12 cells, and each cell answers for the object whose centre
lies in it. As in the exported YOLO networks, the decoding is a part of the network, and its last
operation joins pixels (0 to 96) and probabilities (0 to 1) in one tensor.
"""

from __future__ import annotations

import safetensors.torch
import torch
from torch import Tensor, nn

from ptq_classroom.pictures.detection import DETECTED, SCENE_SIZE
from ptq_classroom.pictures.integrity import facts, verified

STRIDE = 8
CELLS = SCENE_SIZE // STRIDE  # a row of cells


class ConvBNReLU(nn.Sequential):
    """Convolution, batch norm, ReLU."""

    def __init__(self, c_in: int, c_out: int, kernel: int = 3, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(c_in, c_out, kernel, stride, 1 if kernel > 1 else 0, bias=False),
            nn.BatchNorm2d(c_out),
            nn.ReLU(),
        )


class Decode(nn.Module):
    """Raw values [N, 5 + classes, 12, 12] to [N, 144, 5 + classes].

    A row is one cell: centre x, centre y, width, height in pixels, then the probability that the
    cell holds an object, then one for each class. The centre may lie half a cell outside.
    """

    centres: Tensor

    def __init__(self) -> None:
        super().__init__()
        steps = torch.arange(CELLS, dtype=torch.float32) * STRIDE - STRIDE / 2
        y, x = torch.meshgrid(steps, steps, indexing="ij")
        self.register_buffer("centres", torch.stack([x, y], -1).reshape(1, -1, 2), persistent=False)

    def forward(self, raw: Tensor) -> Tensor:
        share = torch.sigmoid(raw.flatten(2).transpose(1, 2))
        centre = share[:, :, 0:2] * (2 * STRIDE) + self.centres
        root = share[:, :, 2:4]
        size = root * root * SCENE_SIZE
        return torch.cat([centre, size, share[:, :, 4:]], 2)


class Detector(nn.Module):
    """float32 [N, 3, 96, 96] -> [N, 144, 5 + classes], boxes in pixels beside probabilities."""

    def __init__(self, num_classes: int = len(DETECTED)) -> None:
        super().__init__()
        self.stem = ConvBNReLU(3, 24, 6, 4)  # 24 x 24
        self.conv1 = ConvBNReLU(24, 24)
        self.down1 = ConvBNReLU(24, 48, 3, 2)  # 12 x 12
        self.down2 = ConvBNReLU(48, 96, 3, 2)  # 6 x 6
        self.conv2 = ConvBNReLU(96, 96)
        self.lateral = ConvBNReLU(96, 48, 1)
        self.up = nn.Upsample(scale_factor=2, mode="nearest")
        self.neck = ConvBNReLU(48, 48)
        self.head = nn.Conv2d(48, 5 + num_classes, 1)
        self.decode = Decode()

    def raw(self, x: Tensor) -> Tensor:
        """What the head says before decoding: [N, 5 + classes, 12, 12]."""
        fine = self.down1(self.conv1(self.stem(x)))
        coarse = self.lateral(self.conv2(self.down2(fine)))
        return self.head(self.neck(fine + self.up(coarse)))

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.raw(x))


def load_detector() -> Detector:
    """The trained detector in eval mode; `DataIntegrityError` where its file is damaged."""
    model = Detector()
    model.load_state_dict(safetensors.torch.load(verified("detector.safetensors").getvalue()))
    return model.eval()


def manifest() -> dict:
    """What data/manifest.json says of the detector: sha256, map50, map, multiply_adds, ..."""
    return facts("detector.safetensors")
