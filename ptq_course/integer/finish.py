"""The two ends of an operation, int32 to codes and int32 to real numbers, and the first quantize.

Chapter 08.
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from ptq_course.grids.affine import QParams, quantize
from ptq_course.integer.fixed_point import clamp_codes, requantize, rescale, to_multiplier


class Requantize(nn.Module):
    """int32 -> codes, by a fixed-point multiplier; a fused ReLU narrows ``limits``."""

    multiplier: Tensor
    shift: Tensor

    def __init__(
        self, acc_scale: Tensor, qparams: QParams, low: float = -math.inf, high: float = math.inf
    ) -> None:
        super().__init__()
        multiplier, shift = to_multiplier(acc_scale.double() / qparams.scale.double())
        self.register_buffer("multiplier", multiplier)
        self.register_buffer("shift", shift)
        self.grid = qparams.grid
        self.zero_point = int(qparams.zero_point)
        self.limits = clamp_codes(low, high, qparams)
        self.rounding = rescale  # chapter 08 tries others

    def forward(self, acc: Tensor, axis: int = 1) -> Tensor:
        multiplier, shift = (_along(v, acc, axis) for v in (self.multiplier, self.shift))
        return requantize(
            acc, multiplier, shift, self.zero_point, self.grid, self.limits, self.rounding
        )

    def __repr__(self) -> str:
        return (
            f"codes {self.limits[0]}..{self.limits[1]}, zero_point {self.zero_point}, "
            f"shift {span_text(span(self.shift))}"
        )


class Dequantize(nn.Module):
    """int32 -> real numbers, the network's last step: acc * scale, clamped where a ReLU follows."""

    scale: Tensor

    def __init__(self, acc_scale: Tensor, low: float = -math.inf, high: float = math.inf) -> None:
        super().__init__()
        self.register_buffer("scale", acc_scale.double())
        self.bounds = (low, high)

    def forward(self, acc: Tensor, axis: int = 1, divisor: int = 1) -> Tensor:
        real = acc.double() * _along(self.scale, acc, axis) / divisor
        return real.clamp(*self.bounds).float()

    def __repr__(self) -> str:
        return "real numbers"


class QuantizeInput(nn.Module):
    """The network's first step: real numbers -> codes. Everything after it is integer."""

    scale: Tensor
    zero_point: Tensor

    def __init__(self, qparams: QParams) -> None:
        super().__init__()
        self.register_buffer("scale", qparams.scale)
        self.register_buffer("zero_point", qparams.zero_point)
        self.grid = qparams.grid

    @property
    def qparams(self) -> QParams:
        return QParams(self.scale, self.zero_point, self.grid)

    def forward(self, x: Tensor) -> Tensor:
        return quantize(x, self.qparams)

    def __repr__(self) -> str:
        grid = self.grid
        return (
            f"QuantizeInput: real numbers -> codes {grid.qmin}..{grid.qmax}, "
            f"zero_point {int(self.zero_point)}"
        )


def _along(values: Tensor, acc: Tensor, axis: int) -> Tensor:
    """Values of each channel, shaped to broadcast along the channel axis of ``acc``."""
    if values.dim() == 0:
        return values
    shape = [1] * acc.dim()
    shape[axis] = -1
    return values.reshape(shape)


def span(values: Tensor) -> tuple[int, int]:
    """The smallest and the largest of integer values."""
    return int(values.min()), int(values.max())


def span_text(bounds: tuple[int, int]) -> str:
    """For a table: "31", or "30..33"."""
    return str(bounds[0]) if bounds[0] == bounds[1] else f"{bounds[0]}..{bounds[1]}"
