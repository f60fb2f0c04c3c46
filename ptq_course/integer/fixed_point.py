"""Fixed-point requantization: multiply an int32 by a real number below 1 without floating point.

Chapter 08. An accumulator holds y in steps of s_x * s_w; the next layer wants it in steps of s_y.
The ratio r = s_x * s_w / s_y is a real number known beforehand, so it is stored as an integer m of
31 bits and a shift:  r = m * 2^-shift  (Jacob et al., "Quantization and Training of Neural Networks
for Efficient Integer-Arithmetic-Only Inference", 2018, section 2.2).

Rounding. The product acc * m is taken exactly in 64 bits and rounded once, to nearest, ties to
even: the rule of `affine.quantize` and of ONNX, so that the simulation and the integers agree. It
is not the only rule in use. gemmlowp and early TensorFlow Lite round twice
(`rounding_doubling_high_mul`, then a rounding shift), because that needs 32-bit registers only; the
later "single rounding" of TensorFlow Lite rounds once, ties up. The three differ where a result
lies almost exactly between two codes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ptq_course.errors import QuantizationError, whole
from ptq_course.grids.affine import IntGrid, QParams

MULTIPLIER_BITS = 31
LARGEST_SHIFT = 62  # |acc * m| < 2^62, so a longer shift would only ever give 0


def to_multiplier(ratio: float | Tensor, bits: int = MULTIPLIER_BITS) -> tuple[Tensor, Tensor]:
    """int32 multiplier and shift with ratio = m * 2^-shift, relative error at most 2^-bits.

    ratio: positive, a number or a tensor (one for each channel); m and shift have its shape.
    m has exactly ``bits`` bits, 2^(bits-1) <= m < 2^bits, so that no precision is given away, but
    for ratios too small or too large for a shift of 1 to 62.
    Raises QuantizationError for a ratio that is not positive or is 2^30 and more, bits outside
    2..31.
    """
    bits = whole("to_multiplier: bits", bits, 2, MULTIPLIER_BITS)
    ratio = torch.as_tensor(ratio, dtype=torch.float64)
    if not bool(((ratio > 0) & (ratio < 2**30)).all()):
        raise QuantizationError(
            "to_multiplier: every ratio s_x * s_w / s_y must be positive and below 2^30, got "
            f"{ratio.min().item():g} to {ratio.max().item():g}: look at the scales of the layer."
        )
    fraction, exponent = torch.frexp(ratio)  # 0.5 <= fraction < 1
    multiplier = torch.round(fraction * 2**bits).long()
    shift = bits - exponent.long()
    carried = multiplier == 2**bits  # 0.99999... rounded up to 1
    multiplier = torch.where(carried, multiplier >> 1, multiplier)
    shift = torch.where(carried, shift - 1, shift)
    multiplier = multiplier << (1 - shift).clamp(min=0)  # few bits and a large ratio
    shift = shift.clamp(min=1)
    over = (shift - LARGEST_SHIFT).clamp(min=0, max=LARGEST_SHIFT)  # a ratio below 2^-31
    multiplier = multiplier >> over
    return multiplier.to(torch.int32), (shift - over).clamp(max=LARGEST_SHIFT).to(torch.int32)


def shift_right_half_even(values: Tensor, shift: int | Tensor) -> Tensor:
    """round(values / 2^shift), ties to even, of int64 ``values``, which are overwritten.

    shift >= 1. A right shift of two's complement is a floor; half less one, and one more where the
    floor is odd, added before it turns the floor into rounding to even.
    """
    shift = torch.as_tensor(shift, dtype=torch.int64, device=values.device)
    odd = (values >> shift).bitwise_and_(1)
    values += (torch.ones_like(shift) << (shift - 1)) - 1
    values += odd
    values >>= shift
    return values


def rescale(acc: Tensor, multiplier: Tensor, shift: Tensor) -> Tensor:
    """round(acc * multiplier * 2^-shift) as int64; acc is int32, ties go to even."""
    return shift_right_half_even(acc.long().mul_(multiplier), shift)


Rounding = Callable[[Tensor, Tensor, Tensor], Tensor]  # acc, multiplier, shift -> int64


def divide_half_even(sums: Tensor, count: int) -> Tensor:
    """round(sums / count), ties to even, exactly, of int32 sums: averages need no multiplier."""
    floor = torch.div(sums, count, rounding_mode="floor")
    twice_rest = 2 * (sums - floor * count)  # 0 <= rest < count
    up = (twice_rest > count) | ((twice_rest == count) & (floor % 2 == 1))
    return floor + up.int()


def requantize(
    acc: Tensor,
    multiplier: Tensor,
    shift: Tensor,
    zero_point: int,
    grid: IntGrid,
    limits: tuple[int, int] | None = None,
    rounding: Rounding = rescale,
) -> Tensor:
    """int32 accumulator -> codes: clamp(round(acc * m * 2^-shift) + zero_point), saturating.

    multiplier, shift: 0-d, or shaped to broadcast against acc (`to_multiplier`). limits: the lowest
    and highest code to clamp to, which is how a ReLU is fused (`clamp_codes`); default: the grid.
    rounding: another rule than `rescale`, for comparison.
    """
    low, high = limits or (grid.qmin, grid.qmax)
    return rounding(acc, multiplier, shift).add_(zero_point).clamp_(low, high).to(grid.dtype)


def clamp_codes(low: float, high: float, qparams: QParams) -> tuple[int, int]:
    """The codes of the real numbers low and high: a ReLU is a clamp at the code of 0.

    Infinite bounds mean no bound but the grid. clamp and quantize commute, so this is exact.
    """
    grid = qparams.grid
    bounds = torch.tensor([low, high], dtype=torch.float32, device=qparams.scale.device)
    codes = torch.round(bounds / qparams.scale) + qparams.zero_point
    lowest, highest = codes.clamp(grid.qmin, grid.qmax).int().tolist()
    return lowest, highest


def rounding_doubling_high_mul(a: Tensor, b: Tensor) -> Tensor:
    """gemmlowp's product of two int32: round(a * b / 2^31), ties away from zero for a * b >= 0.

    For comparison only. The "doubling high half" of the 64-bit product is what ARM's SQRDMULH
    computes in one instruction; gemmlowp (Jacob and Warden, 2015 to 2018) rounds it so that ties of
    negative products go up. -2^31 times -2^31 saturates.
    """
    product = a.long() * b.long()
    nudge = torch.where(product >= 0, 2**30, 1 - 2**30)
    total = product + nudge
    high = torch.div(total, 2**31, rounding_mode="trunc")  # C's division drops the fraction
    return high.clamp(max=2**31 - 1).to(torch.int32)


def rescale_twice(acc: Tensor, multiplier: Tensor, shift: Tensor) -> Tensor:
    """gemmlowp's requantization: a rounding high product, then a rounding shift, ties away from 0.

    For comparison with `rescale`. Needs shift >= 31, that is a ratio below 1.
    """
    if bool((torch.as_tensor(shift) < 31).any()):
        raise QuantizationError("rescale_twice: a shift below 31 (a ratio of 1 or more).")
    high = rounding_doubling_high_mul(acc, multiplier)
    rest = shift - 31
    one = torch.ones_like(high)
    mask = (one << rest) - 1
    threshold = (mask >> 1) + (high < 0).int()
    return ((high >> rest) + ((high & mask) > threshold).int()).long()


def rescale_down(acc: Tensor, multiplier: Tensor, shift: Tensor) -> Tensor:
    """A shift without any rounding, floor(acc * m * 2^-shift): for comparison with `rescale`."""
    return acc.long().mul_(multiplier) >> torch.as_tensor(shift, dtype=torch.int64)
