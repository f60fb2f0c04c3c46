"""The int32 accumulator bound: can a sum of products, and the bias that starts it, leave int32?

Chapters 06, 07 and 08. int32 is a promise of the hardware, not of the network. Whether every sum
fits follows from the codes of the weight, of the bias, and the grid of the input, before any data
is seen. Biases, dynamic layers and integer execution ask here, and nowhere else.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ptq_course.grids.affine import QParams, QTensor, dequantize

INT32_MAX = 2**31 - 1
Range = tuple[int, int]


def differences(qparams: QParams) -> Range:
    """Smallest and largest code - zero_point of a per-tensor grid: what is multiplied."""
    zero_point = int(qparams.zero_point)
    return qparams.grid.qmin - zero_point, qparams.grid.qmax - zero_point


def largest(bounds: Range) -> int:
    """The largest absolute value within (low, high)."""
    return max(-bounds[0], bounds[1])


def less_zero_point(q: QTensor) -> Tensor:
    """Codes less their zero points: what is multiplied, as integers that float32 holds."""
    qparams = q.require_qparams()
    return dequantize(q.codes, replace(qparams, scale=torch.ones_like(qparams.scale)))


def sum_ranges(
    factors: Tensor, inputs: Range, bias: Tensor | None = None, axis: int = 0
) -> tuple[Tensor, Tensor]:
    """int64 [channels]: the lowest and highest sum of products of each output channel.

    factors: the weight's codes less their zero points, ``axis`` its output channels. inputs:
    the `differences` of the input, low <= 0 <= high. bias: int32 codes [channels]. Each weight
    meets the input that hurts most, so the bounds hold for every input and, because 0 is among the
    inputs, for partial sums in any order, bias first or last.
    """
    low, high = inputs
    rows = factors.movedim(axis, 0).flatten(1)
    dtype = torch.float64 if rows.is_floating_point() else torch.int64  # both exact
    up, down = (part.sum(1, dtype=dtype).long() for part in (rows.clamp(min=0), rows.clamp(max=0)))
    lowest, highest = up * low + down * high, up * high + down * low
    if bias is not None:
        repeats = len(bias) // len(lowest)  # groups of a ConvTranspose share its rows
        lowest = lowest.repeat(repeats) + bias.long().clamp(max=0)
        highest = highest.repeat(repeats) + bias.long().clamp(min=0)
    return lowest, highest


def sum_range(factors: Tensor, inputs: Range, bias: Tensor | None = None, axis: int = 0) -> Range:
    """The lowest and highest sum over all channels: see `sum_ranges`."""
    lowest, highest = sum_ranges(factors, inputs, bias, axis)
    return int(lowest.min()), int(highest.max())


def fits_int32(bounds: Range) -> bool:
    """Whether every sum within (low, high) is an int32."""
    return largest(bounds) <= INT32_MAX
