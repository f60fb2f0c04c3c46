"""Floating-point formats of 8 and 4 bits: a grid, and scales for all, a channel or a block.

Chapter 13. `float_grids` says which values there are, `float_scales` how a tensor is put on them;
here are the formats by the names that `QConfig.weight_format` takes, and their choice of scales.

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
from ptq_course.grids.blocks import BlockSize, split_into_blocks
from ptq_course.grids.float_grids import (
    FP4_E2M1,
    FP8_E4M3,
    FP8_E5M2,
    FloatGrid,
    round_to_float,
)
from ptq_course.grids.float_scales import (
    FloatQParams,
    dequantize_float,
    fake_quantize_float,
    in_rows,
    quantize_float,
)
from ptq_course.grids.tensors import SCALE_FLOOR, check_tensor

__all__ = [
    "FLOAT_FORMATS",
    "FP4_E2M1",
    "FP8_E4M3",
    "FP8_E5M2",
    "FloatFormat",
    "FloatGrid",
    "FloatQParams",
    "choose_float_qparams",
    "dequantize_float",
    "fake_quantize_float",
    "float_format",
    "format_name",
    "mxfp4",
    "nvfp4",
    "quantize_float",
    "round_to_float",
]


@dataclass(frozen=True)
class FloatFormat:
    """A format by name: its grid, how many values share a scale, and how scales are stored.

    block: values of a row that share a scale; None where the caller chooses, as for integers.
    """

    name: str
    grid: FloatGrid
    block: int | None = None
    scale_format: str = "float32"

    @property
    def bits(self) -> int:
        """Bits of one value, its scale left out."""
        return self.grid.bits

    def choose(
        self, x: Tensor, block_size: BlockSize = None, row_axis: int | None = None
    ) -> FloatQParams:
        """Scales from the largest |value| of each block of x.

        A format with blocks of its own ignores ``block_size``: its blocks run along the rows of x
        (`FloatQParams.row_axis`, default: the first). Raises QuantizationError for NaN, infinity,
        an empty x, or blocks that do not fit.
        """
        if self.block is None:
            return self.from_largest(_largest(x, block_size), block_size)
        check_tensor(x, f"choosing scales of {self.name}", filled=True)
        axis = row_axis or 0
        size = (1, self.block)
        return self.from_largest(_largest(in_rows(x, axis, self.block), size), size, axis)

    def from_largest(
        self, largest: Tensor, block_size: BlockSize = None, row_axis: int | None = None
    ) -> FloatQParams:
        """Scales from the largest |value| of each block, float64: 0-d, or one entry a block.

        float32: the largest value comes to lie on the grid's largest. e8m0: 2^k with
        k = floor(log2(largest)) - the exponent of the grid's largest value (section 6.3 of the
        specification), so that a block may saturate (up to 8 as 6). e4m3: as float32, rounded to
        FP8 times one number that puts the largest scale on FP8's largest value.
        A block of zeros gets scale 1 (e4m3: that of FP8's 1).
        """
        shared = None
        if self.scale_format == "e8m0":
            top = int(torch.frexp(torch.tensor(self.grid.largest)).exponent) - 1
            exponent = torch.frexp(largest).exponent - 1 - top
            scale = torch.exp2(exponent.double().clamp(-126, 127))  # float32's normal numbers
            scale = torch.where(largest > 0, scale, 1.0).float()
        elif self.scale_format == "e4m3":
            shared = (largest.max() / (self.grid.largest * FP8_E4M3.largest)).float()
            shared = shared.clamp(min=SCALE_FLOOR)
            stored = round_to_float(largest / self.grid.largest / shared.double(), FP8_E4M3)
            stored = stored.clamp(min=FP8_E4M3.smallest)  # where 0 would be the scale
            scale = torch.where(largest > 0, stored, 1.0) * shared.double()
            scale = scale.float().clamp(min=SCALE_FLOOR)
        else:
            scale = torch.where(largest > 0, largest / self.grid.largest, 1.0)
            scale = scale.float().clamp(min=SCALE_FLOOR)
        return FloatQParams(scale, self.grid, block_size, row_axis, self.scale_format, shared)


MXFP4 = FloatFormat("mxfp4", FP4_E2M1, 32, "e8m0")
NVFP4 = FloatFormat("nvfp4", FP4_E2M1, 16, "e4m3")
FLOAT_FORMATS = {
    known.name: known
    for known in (
        FloatFormat("fp8_e4m3", FP8_E4M3), FloatFormat("fp8_e5m2", FP8_E5M2),
        FloatFormat("fp4_e2m1", FP4_E2M1), MXFP4, NVFP4,
    )
}  # fmt: skip


def float_format(name: str) -> FloatFormat:
    """The format of that name; QuantizationError, with the names there are, for another word."""
    if name not in FLOAT_FORMATS:
        raise QuantizationError(
            f"a floating-point format is one of {', '.join(FLOAT_FORMATS)}, got {name!r}."
        )
    return FLOAT_FORMATS[name]


def format_name(qparams: FloatQParams) -> str:
    """The name in FLOAT_FORMATS of what these lead to, or a description of the grid."""
    for known in FLOAT_FORMATS.values():
        if (known.grid, known.scale_format) == (qparams.grid, qparams.scale_format):
            return known.name
    return repr(qparams.grid)


def choose_float_qparams(x: Tensor, grid: FloatGrid, block_size: BlockSize = None) -> FloatQParams:
    """Scales that put the largest |value| of each block on the grid's largest value.

    A block of zeros gets scale 1. Raises QuantizationError for NaN, infinity, an empty x.
    """
    return FloatFormat("", grid).choose(x, block_size)


def mxfp4(x: Tensor, block: int = 32) -> FloatQParams:
    """FP4 in blocks along the last dimension, scales 2^k: k = floor(log2(max)) - 2 (section 6.3).

    2 is the exponent of FP4's largest value; the largest of a block may saturate (up to 8 as 6).
    """
    size = _last(x, block)
    return MXFP4.from_largest(_largest(x, size), size)


def nvfp4(x: Tensor, block: int = 16) -> FloatQParams:
    """FP4 in blocks along the last dimension; scales in FP8 E4M3, times one for the whole tensor.

    The tensor's scale, max / (6 * 448), puts the largest block scale on FP8's largest value.
    """
    size = _last(x, block)
    return NVFP4.from_largest(_largest(x, size), size)


def _last(x: Tensor, block: int) -> tuple[int, ...]:
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
