"""Floats with scales: what `QParams`, `quantize` and `dequantize` are for integers. Chapter 13.

    code  = the bit pattern of round_to_float(x / scale)          quantize_float
    x_hat = the value of the code * scale                         dequantize_float

As for integers, x / scale is computed in float32 (float64 for float64), as ONNX Runtime does it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ptq_course.errors import QuantizationError
from ptq_course.grids.blocks import (
    BlockSize,
    checked_block_size,
    parameter_for_blocks,
    split_into_blocks,
)
from ptq_course.grids.float_grids import (
    FP8_E4M3,
    FloatGrid,
    bit_patterns,
    from_bit_patterns,
    round_to_float,
)
from ptq_course.grids.tensors import SCALE_FLOOR, check_tensor

SCALE_BITS = {"float32": 32, "e8m0": 8, "e4m3": 8}  # how one scale is stored, and its bits
E8M0_BIAS = 127  # a stored exponent of 127 is the scale 1


@dataclass(frozen=True, eq=False)
class FloatQParams:
    """Scale(s) and the float grid: what `QParams` is for integers, without a zero point.

    scale: float32, 0-d or one entry a block (``block_size`` as in `QParams`), positive, finite.
    row_axis: the blocks run along the rows of x instead of x: x with this axis in front, the others
        flattened, [rows, K]. ``block_size`` is then (1, block), and the last block of a row may be
        shorter, so that every layer has a form.
    scale_format: how a scale is stored: "float32", "e8m0" (a power of two), or "e4m3" (FP8 times
        ``tensor_scale``, one float32 number for all blocks).
    Raises QuantizationError where a scale is not of its format.
    """

    scale: Tensor
    grid: FloatGrid
    block_size: BlockSize = None
    row_axis: int | None = None
    scale_format: str = "float32"
    tensor_scale: Tensor | None = None

    def __post_init__(self) -> None:
        check_tensor(self.scale, "scale", (torch.float32,))
        size = checked_block_size(self.block_size, self.scale)
        object.__setattr__(self, "block_size", size)
        if self.scale_format not in SCALE_BITS:
            raise QuantizationError(
                f"scale_format is one of {', '.join(SCALE_BITS)}, got {self.scale_format!r}."
            )
        if self.row_axis is not None and (size is None or len(size) != 2 or size[0] != 1):
            raise QuantizationError(f"blocks along rows have the size (1, block), got {size}.")
        if (self.tensor_scale is not None) != (self.scale_format == "e4m3"):
            raise QuantizationError("tensor_scale belongs to scale_format='e4m3', and to no other.")
        if not torch.compiler.is_compiling():  # torch.export asks no tensor what it holds
            self._check_values()

    def _check_values(self) -> None:
        shared = self.tensor_scale
        if shared is not None:
            check_tensor(shared, "tensor_scale", (torch.float32,))
            if shared.dim() or not 0 < shared.item() < torch.inf:
                raise QuantizationError("tensor_scale is one positive, finite number.")
        if not bool((torch.isfinite(self.scale) & (self.scale > 0)).all()):
            raise QuantizationError("every scale must be positive and finite.")
        stored = scale_from_stored(self.stored_scale, self.scale_format, shared)
        if not torch.equal(stored, self.scale):
            raise QuantizationError(f"a scale is no value of its format, {self.scale_format}.")

    @property
    def stored_scale(self) -> Tensor:
        """The scales as a file holds them: float32, or uint8 bit patterns of their format."""
        if self.scale_format == "e8m0":
            return (torch.frexp(self.scale).exponent - 1 + E8M0_BIAS).to(torch.uint8)
        if self.tensor_scale is not None:
            parts = self.scale.double() / self.tensor_scale.double()
            parts = round_to_float(parts, FP8_E4M3).clamp(min=FP8_E4M3.smallest)
            return bit_patterns(parts, FP8_E4M3)
        return self.scale

    def nbits_per_value(self, count: int) -> float:
        """Bits for one of ``count`` values, its share of the scales included."""
        shared = SCALE_BITS[self.scale_format] * self.scale.numel()
        if self.tensor_scale is not None:
            shared += 32
        return self.grid.bits + shared / max(1, count)


def scale_from_stored(stored: Tensor, scale_format: str, tensor_scale: Tensor | None) -> Tensor:
    """float32 scales from what `FloatQParams.stored_scale` gives."""
    if scale_format == "e8m0":
        return torch.exp2(stored.double() - E8M0_BIAS).float()
    if tensor_scale is not None:
        parts = from_bit_patterns(stored, FP8_E4M3)
        return (parts * tensor_scale.double()).float().clamp(min=SCALE_FLOOR)
    return stored.float()


def quantize_float(x: Tensor, qparams: FloatQParams) -> Tensor:
    """Bit patterns of x / scale on the grid, in the grid's dtype and x's shape.

    Raises QuantizationError as `round_to_float` does, and where the blocks do not fit x.
    """
    check_tensor(x, "quantize")
    blocks, scale = _blocks(x, qparams)
    rounded = round_to_float(blocks.to(scale.dtype) / scale, qparams.grid)
    return _joined(bit_patterns(rounded, qparams.grid), x.shape, qparams)


def dequantize_float(
    codes: Tensor, qparams: FloatQParams, dtype: torch.dtype = torch.float32
) -> Tensor:
    """The reals that bit patterns stand for: values of the grid times the scale."""
    blocks, scale = _blocks(codes, qparams)
    if dtype == torch.float64:
        scale = scale.double()
    values = from_bit_patterns(blocks, qparams.grid).to(scale.dtype) * scale
    return _joined(_cast(values, dtype), codes.shape, qparams)


def fake_quantize_float(x: Tensor, qparams: FloatQParams) -> Tensor:
    """x rounded to scale times a value of the grid, in x's dtype and shape.

    The same as `quantize_float` and `dequantize_float` after another; same errors.
    """
    check_tensor(x, "fake_quantize_float")
    blocks, scale = _blocks(x, qparams)
    rounded = round_to_float(blocks.to(scale.dtype) / scale, qparams.grid) * scale
    return _joined(_cast(rounded, x.dtype), x.shape, qparams)


def outside_float(x: Tensor, qparams: FloatQParams) -> int:
    """How many values of x saturate: those more than half a step beyond the largest."""
    blocks, scale = _blocks(x, qparams)
    grid = qparams.grid
    edge = grid.largest + grid.step_at(grid.largest) / 2
    return int(((blocks / scale).abs() > edge).sum())


def in_rows(x: Tensor, axis: int, block: int) -> Tensor:
    """x as rows [shape[axis], K], filled up with zeros to a whole number of blocks."""
    rows = x.movedim(axis, 0).flatten(1) if x.dim() > 1 else x.reshape(len(x), 1)
    return torch.nn.functional.pad(rows, (0, -rows.shape[1] % block))


def _blocks(x: Tensor, qparams: FloatQParams) -> tuple[Tensor, Tensor]:
    """x, values or codes, cut into blocks, and the scales that broadcast against it.

    The scales have the type to compute in, float32, or float64 where x has it.
    """
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    scale = qparams.scale.to(x.device, dtype)
    if qparams.block_size is None:
        return x, scale
    if qparams.row_axis is not None:
        x = in_rows(x, qparams.row_axis, qparams.block_size[1])
    blocks = split_into_blocks(x, qparams.block_size)
    return blocks, parameter_for_blocks(scale, blocks)


def _joined(blocks: Tensor, shape: torch.Size, qparams: FloatQParams) -> Tensor:
    """What `_blocks` cut, in the shape that it had."""
    axis = qparams.row_axis
    if axis is None or len(shape) < 2:
        return blocks.reshape(shape) if axis is None else blocks.flatten(1)[:, :1].reshape(shape)
    moved = (shape[axis], *shape[:axis], *shape[axis + 1 :])
    rows = blocks.reshape(shape[axis], -1)[:, : shape.numel() // shape[axis]]
    return rows.reshape(moved).movedim(0, axis).contiguous()


def _cast(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Values in another format; what it cannot hold saturates."""
    if dtype in (torch.float16, torch.bfloat16):
        values = values.clamp(-torch.finfo(dtype).max, torch.finfo(dtype).max)
    return values.to(dtype)
