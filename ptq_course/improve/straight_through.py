"""Gradients through rounding: the straight-through estimator, and learned steps. Chapter 14.

Rounding has gradient zero almost everywhere, so nothing could be learned through it. The
straight-through estimator takes 1 instead where the value is inside the grid, and 0 where it is
clipped (Bengio, Leonard, Courville, "Estimating or Propagating Gradients Through Stochastic Neurons
for Conditional Computation", 2013). A scale learns through the same formula (Esser, McKinstry,
Bablani, Appuswamy, Modha, "Learned Step Size Quantization", 2020), and a zero point, too (Bhalgat,
Lee, Nagel, Blankevoort, Kwak, "LSQ+: Improving Low-Bit Quantization Through Learnable Offsets and
Better Initialization", 2020).
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from ptq_course.grids.affine import IntGrid


class RoundThrough(torch.autograd.Function):
    """round(x), whose gradient is that of x: the straight-through estimator."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: object, *gradients: Tensor) -> Tensor:
        return gradients[0]


def round_through(x: Tensor, scale: Tensor, zero_point: Tensor, grid: IntGrid) -> Tensor:
    """x on the grid, with gradients: for x where it is not clipped, and for the scale.

    scale, zero_point: shaped to broadcast against x. The gradient of the scale is the code less
    x / scale inside the grid, and the end of the grid outside (equation 3 of Esser et al.).
    """
    codes = (x / scale).clamp(grid.qmin - zero_point, grid.qmax - zero_point)
    return cast(Tensor, RoundThrough.apply(codes)) * scale


class _RoundPerTensor(torch.autograd.Function):
    """`round_per_tensor`, its gradients written out: half the passes over x that autograd takes."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor, low: float, high: float
    ) -> Tensor:
        zero = zero_point.round()
        steps = x / scale
        codes = steps.round().clamp_(low - zero, high - zero)
        ctx.save_for_backward(steps, codes, scale)
        ctx.ends = low - float(zero), high - float(zero)
        return codes * scale

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        steps, codes, scale = ctx.saved_tensors
        inside = (steps >= ctx.ends[0]) & (steps <= ctx.ends[1])
        through = gradient * inside
        of_scale = of_zero = None
        wide = torch.promote_types(gradient.dtype, torch.float32)  # large sums that nearly cancel
        if ctx.needs_input_grad[1]:
            inner = torch.dot(through.flatten().to(wide), steps.flatten().to(wide))
            of_scale = torch.dot(gradient.flatten().to(wide), codes.flatten().to(wide))
            of_scale = (of_scale - inner).reshape(()).to(scale.dtype)
        if ctx.needs_input_grad[2]:
            of_zero = (through.sum(dtype=wide) - gradient.sum(dtype=wide)).to(scale.dtype) * scale
        return through, of_scale, of_zero, None, None


def round_per_tensor(x: Tensor, scale: Tensor, zero_point: Tensor, grid: IntGrid) -> Tensor:
    """x on a grid with one scale and one zero point (0-d), with gradients for all three.

    zero_point: a real number, rounded here, which is straight through, too. Clipped values follow
    the end of the grid, which moves with it: their gradient for the zero point is -scale.
    """
    ends = float(grid.qmin), float(grid.qmax)
    return cast(Tensor, _RoundPerTensor.apply(x, scale, zero_point, *ends))
