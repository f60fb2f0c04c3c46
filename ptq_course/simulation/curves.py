"""Activations that a runtime computes with several integer kernels: what is rounded inside them.

Chapter 15. ONNX Runtime has no integer SiLU, Hardswish or Hardsigmoid, but it has QLinearSigmoid,
QLinearAdd and QLinearMul, of which they can be made. The factor in [0, 1] between the two kernels
then lies on a grid of its own; its range is known, so nothing is calibrated.

    SiLU(x)        = x * sigmoid(x)             Hardsigmoid(x) = clamp(x + 3, 0, 6) / 6
    Hardswish(x)   = x * Hardsigmoid(x)

Sources: Ramachandran, Zoph, Le, "Searching for Activation Functions", 2017 (SiLU, called Swish);
Howard et al., "Searching for MobileNetV3", 2019 (Hardswish, chosen because it quantizes well).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ptq_course.grids.affine import AnyGrid, AnyQParams, IntGrid, choose_qparams, fake_quantize


class RoundedInside(nn.Module):
    """Base: ``factor`` are the QParams of what is rounded inside, a value in [0, 1]."""

    def __init__(self, grid: AnyGrid) -> None:
        super().__init__()
        if isinstance(grid, IntGrid):
            grid = IntGrid(grid.bits, signed=grid.signed)
        self.factor: AnyQParams = choose_qparams(0.0, 1.0, grid)

    def gate(self, x: Tensor) -> Tensor:
        """The rounded factor in [0, 1]."""
        raise NotImplementedError

    def exact(self, x: Tensor) -> Tensor:
        """What it computes without rounding; its gradient is the one to learn with."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x)


class RoundedSiLU(RoundedInside):
    """x * round(sigmoid(x))."""

    def gate(self, x: Tensor) -> Tensor:
        return fake_quantize(torch.sigmoid(x), self.factor)

    def exact(self, x: Tensor) -> Tensor:
        return F.silu(x)


class RoundedHardswish(RoundedInside):
    """x * round(clamp(x + 3, 0, 6) / 6)."""

    def gate(self, x: Tensor) -> Tensor:
        return fake_quantize(F.hardsigmoid(x), self.factor)

    def exact(self, x: Tensor) -> Tensor:
        return F.hardswish(x)


class Hardsigmoid(RoundedInside):
    """clamp(x + 3, 0, 6) / 6: nothing is rounded inside, but a file writes it as a sum."""

    def exact(self, x: Tensor) -> Tensor:
        return F.hardsigmoid(x)

    def forward(self, x: Tensor) -> Tensor:
        return F.hardsigmoid(x)


ROUNDED: dict[str, type[RoundedInside]] = {
    "silu": RoundedSiLU,
    "hardswish": RoundedHardswish,
    "hardsigmoid": Hardsigmoid,
}
