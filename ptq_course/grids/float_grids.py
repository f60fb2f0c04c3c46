"""Small floats as a grid: which values there are, rounding to them, and their bit patterns.

Chapter 13. A small float is a grid as well: sign, exponent, mantissa, with steps that double from
one power of two to the next. Rounding is to nearest, half to the even mantissa; what lies beyond
the largest value saturates, as weights and activations want it.

    FP8 E4M3, E5M2   Micikevicius et al., "FP8 Formats for Deep Learning", 2022
    FP4 E2M1         Open Compute Project, "Microscaling Formats (MX) Specification v1.0", 2023
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from ptq_course.errors import QuantizationError, whole
from ptq_course.grids.tensors import check_tensor

# A format to compute in, integers of its size, and the bits that hold its exponent.
SHORT = torch.float32, torch.int32, 0x7F800000
LONG = torch.float64, torch.int64, 0x7FF0000000000000


@dataclass(frozen=True)
class FloatGrid:
    """A sign, ``exponent_bits`` and ``mantissa_bits``; ``largest`` is the largest finite value.

    Formats differ in what their topmost codes mean (infinity, NaN, numbers), so that ``largest`` is
    stated. Raises QuantizationError for sizes out of range, or a ``largest`` that is no value.
    """

    exponent_bits: int
    mantissa_bits: int
    largest: float

    def __post_init__(self) -> None:
        whole("exponent_bits", self.exponent_bits, 1, 8)
        whole("mantissa_bits", self.mantissa_bits, 0, 10)
        on_grid = self.largest > 0 and self.step_at(self.largest) > 0
        if not on_grid or self.largest % self.step_at(self.largest):
            raise QuantizationError(f"largest must be a value of the format, got {self.largest!r}.")

    @property
    def bits(self) -> int:
        return 1 + self.exponent_bits + self.mantissa_bits

    @property
    def least_exponent(self) -> int:
        """Exponent of the smallest normal value, which subnormal ones share."""
        return 2 - 2 ** (self.exponent_bits - 1)

    @property
    def smallest(self) -> float:
        """The smallest positive value, a subnormal one."""
        return 2.0 ** (self.least_exponent - self.mantissa_bits)

    @property
    def dtype(self) -> torch.dtype:
        """The smallest torch dtype that holds every bit pattern."""
        return torch.uint8 if self.bits <= 8 else torch.int32

    def step_at(self, value: float) -> float:
        """Distance of the grid's values around ``value``."""
        exponent = int(torch.frexp(torch.tensor(abs(value), dtype=torch.float64)).exponent) - 1
        return 2.0 ** (max(exponent, self.least_exponent) - self.mantissa_bits)

    def values(self) -> Tensor:
        """Every value, float32, ascending; zero once."""
        found = _magnitudes(self)
        return torch.cat([-found.flip(0)[:-1], found]).float()


FP8_E4M3 = FloatGrid(4, 3, 448.0)
FP8_E5M2 = FloatGrid(5, 2, 57344.0)
FP4_E2M1 = FloatGrid(2, 1, 6.0)


def round_to_float(x: Tensor, grid: FloatGrid) -> Tensor:
    """x on the grid, in x's dtype: to nearest, half to even, saturating; -0 stays -0.

    Computed in float32 (float64 for float64 and for exponents of 8 bits), where dividing by a power
    of two is exact. Raises QuantizationError for NaN, integers, and what `check_tensor` refuses.
    """
    check_tensor(x, "round_to_float")
    compiling = torch.compiler.is_compiling()
    if not compiling and x.numel() and bool(torch.isnan(x.detach().max())):  # max keeps a NaN
        raise QuantizationError(f"round_to_float: {int(torch.isnan(x).sum())} values are NaN.")
    if compiling or (x.requires_grad and torch.is_grad_enabled()):
        return round_by_division(x, grid)
    return _round_by_addition(x, grid)


def round_by_division(x: Tensor, grid: FloatGrid) -> Tensor:
    """`round_to_float` as its definition says it, round(x / step) * step; a NaN stays a NaN."""
    _, values, power = _powers(x, grid)
    step = power.mul_(2.0**-grid.mantissa_bits)
    return ((values / step).round_() * step).clamp_(-grid.largest, grid.largest).to(x.dtype)


def _round_by_addition(x: Tensor, grid: FloatGrid) -> Tensor:
    """The same values, faster: two tensors are made, and the rest happens in them.

    A sum with 1.5 * 2^k, where ``dtype`` has steps of the wanted size, is rounded by the addition
    itself, half to even. The difference is exact, but loses the sign of -0.
    """
    dtype, values, power = _powers(x, grid)
    mantissa = 23 if dtype == torch.float32 else 52
    shift = power.mul_(1.5 * 2.0 ** (mantissa - grid.mantissa_bits))
    return values.add_(shift).sub_(shift).copysign_(x).to(x.dtype)


def _powers(x: Tensor, grid: FloatGrid) -> tuple[torch.dtype, Tensor, Tensor]:
    """The dtype to compute in, x in it, clamped, and the power of two at or below each |value|."""
    long = x.dtype == torch.float64 or grid.exponent_bits == 8
    dtype, integers, exponent = LONG if long else SHORT
    values = x.to(dtype).clamp(-grid.largest, grid.largest)
    power = (values.detach().view(integers) & exponent).view(dtype)  # the exponent's bits alone
    return dtype, values, power.clamp_(min=2.0**grid.least_exponent)


def _magnitudes(grid: FloatGrid) -> Tensor:
    """The values from 0 up, float64: the place of each is its bit pattern without the sign."""
    return _made(grid) if torch.compiler.is_compiling() else _kept(grid)


@cache
def _kept(grid: FloatGrid) -> Tensor:
    return _made(grid)


def _made(grid: FloatGrid) -> Tensor:
    normal = range(grid.least_exponent, 2 ** (grid.exponent_bits - 1) + 1)
    steps = torch.arange(2**grid.mantissa_bits, dtype=torch.float64)
    positive = [steps * grid.smallest]
    positive += [(1 + steps / len(steps)) * 2.0**exponent for exponent in normal]
    found = torch.cat(positive)
    return found[found <= grid.largest]


def bit_patterns(values: Tensor, grid: FloatGrid) -> Tensor:
    """The bit pattern of each value, which lies on the grid: sign, exponent, mantissa.

    Returns ``grid.dtype`` in x's shape. -0 has a pattern of its own.
    """
    table = _magnitudes(grid).to(values.device)
    codes = torch.searchsorted(table, values.abs().double().contiguous())
    return (codes + (torch.signbit(values) << (grid.bits - 1))).to(grid.dtype)


def from_bit_patterns(codes: Tensor, grid: FloatGrid) -> Tensor:
    """The values of bit patterns that `check_bit_patterns` lets pass, float64."""
    sign = 1 << (grid.bits - 1)
    codes = codes.long()
    values = _magnitudes(grid).to(codes.device)[codes & (sign - 1)]
    return torch.where(codes >= sign, -values, values)


def check_bit_patterns(codes: Tensor, grid: FloatGrid) -> None:
    """Raise QuantizationError where a code is beyond the width, or an infinity or NaN."""
    if not codes.numel():
        return
    low, high = (int(v) for v in torch.aminmax(codes))
    if low < 0 or high >= 2**grid.bits:
        raise QuantizationError(
            f"bit patterns must lie in [0, {2**grid.bits - 1}], found [{low}, {high}]"
        )
    beyond = (codes.long() & (2 ** (grid.bits - 1) - 1)) >= len(_magnitudes(grid))
    if bool(beyond.any()):
        raise QuantizationError(
            f"{int(beyond.sum())} bit patterns stand for infinity or NaN, or for values beyond "
            f"{grid.largest:g}: quantize() makes none of these."
        )
