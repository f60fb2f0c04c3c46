"""The simulated camera: from linear light to the bytes of a picture, and back to a network's input.

The camera writes the square root of the light up to diffuse white and its logarithm above, so one
byte holds both a night scene and the glare of a flash. The shape is that of hybrid log-gamma (ITU-R
BT.2100, 2018), not its numbers: that curve turns from root to logarithm at a twelfth of its peak
light, below diffuse white, and continues there without a kink. Chroma is kept at half resolution
and everything in steps of `STEP`, as cameras do, which also keeps the shipped splits small.
Decoding is integer arithmetic: the same bytes on every machine.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

WHITE_CODE = 192  # the byte written for diffuse white, light 1.0
PEAK = 48.0  # the light that byte 255 stands for
STEP = 4  # step of the stored luma and chroma
MEAN, STD = 0.35, 0.35  # of the light of ordinary pictures, rounded


class Planes(NamedTuple):
    """A picture as stored: steps of luma uint8 [N, 48, 48] and of chroma int8 [N, 2, 24, 24]."""

    luma: Tensor
    chroma: Tensor


def respond(light: Tensor) -> Tensor:
    """Linear light (any shape, >= 0) to byte values 0..255, not yet rounded."""
    low = light.clamp(0, 1).sqrt_().mul_(WHITE_CODE)
    high = light.clamp(1, PEAK).log_().mul_((255 - WHITE_CODE) / float(np.log(PEAK)))
    return low.add_(high)


def light_of_codes() -> np.ndarray:
    """The light that each of the 256 bytes stands for: float64 [256], the inverse of `respond`."""
    codes = np.arange(256, dtype=np.float64)
    low = (codes / WHITE_CODE) ** 2
    high = PEAK ** ((codes - WHITE_CODE) / (255 - WHITE_CODE))
    return np.where(codes <= WHITE_CODE, low, high)


_INPUT = torch.from_numpy((light_of_codes() - MEAN) / STD).to(torch.float32)


def to_input(images: Tensor) -> Tensor:
    """uint8 pictures [N, 3, 48, 48] to float32 inputs: linear light, normalized as in training.

    Ordinary pixels come out between -1 and about 2; the glare of a flash reaches 136. Those
    outliers are planted (see data/README.md): they are what makes the choice of a calibrator
    matter.
    """
    if images.dtype != torch.uint8:
        raise ValueError(
            f"to_input wants uint8 pictures, got {images.dtype}; keep the split's bytes"
        )
    return _INPUT[images.int()]


def expose(codes: Tensor, luma_noise: Tensor, chroma_noise: Tensor) -> Planes:
    """Byte values float [N, 3, 48, 48] and noise [N, 48, 48], [N, 2, 24, 24] to stored planes."""
    red, green, blue = codes.unbind(1)
    luma = (red + 2 * green + blue) / 4 + luma_noise
    chroma = torch.stack([(red - blue) / 2, (2 * green - red - blue) / 4], 1)
    chroma = torch.nn.functional.avg_pool2d(chroma, 2) + chroma_noise
    return Planes(
        (luma / STEP).round().clamp_(0, 255 // STEP).to(torch.uint8),
        (chroma / STEP).round().clamp_(-32, 31).to(torch.int8),
    )


def develop(planes: Planes) -> Tensor:
    """Stored planes to pictures uint8 [N, 3, 48, 48]; integer arithmetic only."""
    luma = planes.luma.to(torch.int16) * STEP
    chroma = planes.chroma.to(torch.int16) * STEP
    chroma = chroma.repeat_interleave(2, 2).repeat_interleave(2, 3)
    orange, green = chroma.unbind(1)
    rest = luma - green
    pictures = torch.stack([rest + orange, luma + green, rest - orange], 1)
    return pictures.clamp_(0, 255).to(torch.uint8)
