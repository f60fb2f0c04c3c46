"""Floating-point grids of 8 and 4 bits, alone and with a scale per block. Chapter 13.

A small float is a grid as well: sign, exponent, mantissa, with steps that double from one power of
two to the next. Rounding is to nearest, half to the even mantissa; what lies beyond the largest
value saturates, as weights and activations want it.

    FP8 E4M3, E5M2   Micikevicius et al., "FP8 Formats for Deep Learning", 2022
    FP4 E2M1, MXFP4  Open Compute Project, "Microscaling Formats (MX) Specification v1.0", 2023:
                     blocks of 32 with a scale that is a power of two (E8M0)
    NVFP4            NVIDIA, 2025: blocks of 16 with a scale in FP8 E4M3, and one float32 scale
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ptq_course.errors import QuantizationError, whole
from ptq_course.grids.affine import SCALE_FLOOR
from ptq_course.grids.blocks import (
    BlockSize,
    checked_block_size,
    parameter_for_blocks,
    split_into_blocks,
)
from ptq_course.grids.tensors import check_tensor


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

    def step_at(self, value: float) -> float:
        """Distance of the grid's values around ``value``."""
        exponent = int(torch.frexp(torch.tensor(abs(value), dtype=torch.float64)).exponent) - 1
        return 2.0 ** (max(exponent, self.least_exponent) - self.mantissa_bits)

    def values(self) -> Tensor:
        """Every value, float32, ascending; zero once."""
        normal = range(self.least_exponent, 2 ** (self.exponent_bits - 1) + 1)
        steps = torch.arange(2**self.mantissa_bits, dtype=torch.float64)
        positive = [steps * self.smallest]
        positive += [(1 + steps / len(steps)) * 2.0**exponent for exponent in normal]
        found = torch.cat(positive)
        found = found[found <= self.largest]
        return torch.cat([-found.flip(0)[:-1], found]).float()


FP8_E4M3 = FloatGrid(4, 3, 448.0)
FP8_E5M2 = FloatGrid(5, 2, 57344.0)
FP4_E2M1 = FloatGrid(2, 1, 6.0)


def round_to_float(x: Tensor, grid: FloatGrid) -> Tensor:
    """x on the grid, in x's dtype: to nearest, half to even, saturating; -0 stays -0.

    Computed in float32 (float64 for float64), where dividing by a power of two is exact. Raises
    QuantizationError for NaN, integers, and what `check_tensor` refuses.
    """
    check_tensor(x, "round_to_float")
    if bool(torch.isnan(x).any()):
        raise QuantizationError(f"round_to_float: {int(torch.isnan(x).sum())} values are NaN.")
    values = x.to(torch.float64).clamp(-grid.largest, grid.largest)
    exponent = (torch.frexp(values).exponent - 1).clamp(min=grid.least_exponent)
    step = torch.exp2((exponent - grid.mantissa_bits).double())
    return (torch.round(values / step) * step).clamp(-grid.largest, grid.largest).to(x.dtype)


@dataclass(frozen=True, eq=False)
class FloatQParams:
    """Scale(s) and the float grid: what `QParams` is for integers, without a zero point.

    scale: float32, 0-d or one entry a block (``block_size`` as in `QParams`), positive, finite.
    scale_bits: bits that storing one scale takes. tensor_scale_bits: of what all blocks share.
    """

    scale: Tensor
    grid: FloatGrid
    block_size: BlockSize = None
    scale_bits: int = 32
    tensor_scale_bits: int = 0

    def __post_init__(self) -> None:
        check_tensor(self.scale, "scale", (torch.float32,))
        size = checked_block_size(self.block_size, self.scale)
        object.__setattr__(self, "block_size", size)
        if not bool((torch.isfinite(self.scale) & (self.scale > 0)).all()):
            raise QuantizationError("every scale must be positive and finite.")

    def nbits_per_value(self, count: int) -> float:
        """Bits for one of ``count`` values, its share of the scales included."""
        shared = self.scale_bits * self.scale.numel() + self.tensor_scale_bits
        return self.grid.bits + shared / max(1, count)


def fake_quantize_float(x: Tensor, qparams: FloatQParams) -> Tensor:
    """x rounded to scale times a value of the grid, in x's dtype and shape.

    Raises QuantizationError as `round_to_float` does, and where the blocks do not fit x.
    """
    check_tensor(x, "fake_quantize_float")
    if qparams.block_size is None:
        blocks, scale = x, qparams.scale
    else:
        blocks = split_into_blocks(x, qparams.block_size)
        scale = parameter_for_blocks(qparams.scale, blocks)
    scale = scale.to(x.device, torch.float64)
    return (
        (round_to_float(blocks.double() / scale, qparams.grid) * scale).to(x.dtype).reshape(x.shape)
    )


def choose_float_qparams(x: Tensor, grid: FloatGrid, block_size: BlockSize = None) -> FloatQParams:
    """Scales that put the largest |value| of each block on the grid's largest value.

    A block of zeros gets scale 1. Raises QuantizationError for NaN, infinity, an empty x.
    """
    largest = _largest(x, block_size)
    scale = torch.where(largest > 0, largest / grid.largest, 1.0)
    return FloatQParams(scale.float().clamp(min=SCALE_FLOOR), grid, block_size)


def mxfp4(x: Tensor, block: int = 32) -> FloatQParams:
    """FP4 in blocks along the last dimension, scales 2^k: k = floor(log2(max)) - 2 (section 6.3).

    2 is the exponent of FP4's largest value; the largest of a block may saturate (up to 8 as 6).
    """
    largest = _largest(x, _rows(x, block))
    exponent = torch.frexp(largest).exponent - 1 - 2
    scale = torch.exp2(exponent.double().clamp(-126, 127))  # E8M0, short of float32's subnormals
    scale = torch.where(largest > 0, scale, 1.0)
    return FloatQParams(scale.float(), FP4_E2M1, _rows(x, block), scale_bits=8)


def nvfp4(x: Tensor, block: int = 16) -> FloatQParams:
    """FP4 in blocks along the last dimension; scales in FP8 E4M3, times one for the whole tensor.

    The tensor's scale, max / (6 * 448), puts the largest block scale on FP8's largest value.
    """
    largest = _largest(x, _rows(x, block))
    whole_tensor = (largest.max() / (FP4_E2M1.largest * FP8_E4M3.largest)).clamp(min=SCALE_FLOOR)
    wanted = largest / FP4_E2M1.largest / whole_tensor
    stored = round_to_float(wanted, FP8_E4M3)
    stored = stored.clamp(min=FP8_E4M3.smallest)  # of blocks so small that 0 would be the scale
    scale = torch.where(largest > 0, stored * whole_tensor, 1.0).float().clamp(min=SCALE_FLOOR)
    return FloatQParams(scale, FP4_E2M1, _rows(x, block), scale_bits=8, tensor_scale_bits=32)


def _rows(x: Tensor, block: int) -> tuple[int, ...]:
    check_tensor(x, "block of floats", filled=True)
    if x.dim() == 0:
        raise QuantizationError("blocks run along the last dimension, and x has none.")
    return (*[1] * (x.dim() - 1), whole("block", block, 1))


def _largest(x: Tensor, block_size: BlockSize) -> Tensor:
    """Largest |value| of each block, float64."""
    check_tensor(x, "choosing a float scale", filled=True)
    values = x.detach().double().abs()
    if not bool(torch.isfinite(values).all()):
        raise QuantizationError("choosing a float scale: NaN or infinity in the tensor.")
    if block_size is None:
        return values.max()
    blocks = split_into_blocks(values, block_size)
    return blocks.amax(dim=tuple(range(1, blocks.ndim, 2)))
