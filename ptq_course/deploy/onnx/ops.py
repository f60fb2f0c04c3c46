"""PyTorch operators that stand for ONNX's QuantizeLinear and DequantizeLinear.

PyTorch's own fake-quantize operators export with float weights and cannot express narrow or 4-bit
ranges. These custom operators carry integer codes, so that the file does as well.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from ptq_course.errors import needs


@torch.library.custom_op("ptq::quantize_dequantize", mutates_args=())
def quantize_dequantize(x: Tensor, scale: Tensor, zero_point: Tensor, decoded: Tensor) -> Tensor:
    """QuantizeLinear, then DequantizeLinear: the boundary between two integer operations.

    ``decoded`` is the scale that the codes are decoded with: the same, or times a constant factor
    that x lacks.
    """
    limits = torch.iinfo(zero_point.dtype)
    codes = torch.clamp(torch.round(x / scale) + zero_point, limits.min, limits.max)
    return (codes - zero_point) * decoded


@torch.library.custom_op("ptq::dequantize", mutates_args=())
def dequantize(codes: Tensor, scale: Tensor, zero_point: Tensor, axis: int) -> Tensor:
    """DequantizeLinear on constant codes: what puts integers, not floats, into the file."""
    shape = [1] * codes.dim()
    if scale.dim():
        shape[axis] = -1
    zeros = zero_point.reshape(shape if zero_point.dim() else [])
    return (codes - zeros).to(scale.dtype) * scale.reshape(shape if scale.dim() else [])


@torch.library.custom_op("ptq::dequantize_blocks", mutates_args=())
def dequantize_blocks(codes: Tensor, scale: Tensor, block: int) -> Tensor:
    """DequantizeLinear with a scale for each ``block`` rows: codes [K, N], scale [K / block, N]."""
    return codes.to(scale.dtype) * scale.repeat_interleave(block, 0)


@torch.library.custom_op("ptq::global_average_pool", mutates_args=())
def global_average_pool(x: Tensor) -> Tensor:
    """GlobalAveragePool; PyTorch would export ReduceMean, which has no integer kernel."""
    return x.mean(tuple(range(2, x.dim())), keepdim=True)


@quantize_dequantize.register_fake
def _(x: Tensor, scale: Tensor, zero_point: Tensor, decoded: Tensor) -> Tensor:
    return torch.empty_like(x)


@dequantize.register_fake
def _(codes: Tensor, scale: Tensor, zero_point: Tensor, axis: int) -> Tensor:
    return torch.empty_like(codes, dtype=scale.dtype)


@dequantize_blocks.register_fake
def _(codes: Tensor, scale: Tensor, block: int) -> Tensor:
    return torch.empty_like(codes, dtype=scale.dtype)


@global_average_pool.register_fake
def _(x: Tensor) -> Tensor:
    return x.new_empty((x.shape[0], x.shape[1], *[1] * (x.dim() - 2)))


@cache
def translation_table(opset: int) -> dict[Callable, Callable]:
    """What torch.onnx.export writes for each operator (importing onnxscript takes a second)."""
    with needs("onnx"):
        import onnxscript

    op = getattr(onnxscript, f"opset{opset}")

    # onnxscript reads the annotations: untyped arguments are ONNX values, typed ones attributes.
    # ruff: noqa: ANN001

    def translate_quantize_dequantize(x, scale, zero_point, decoded):
        return op.DequantizeLinear(op.QuantizeLinear(x, scale, zero_point), decoded, zero_point)

    def translate_dequantize(codes, scale, zero_point, axis: int):
        return op.DequantizeLinear(codes, scale, zero_point, axis=axis)

    def translate_dequantize_blocks(codes, scale, block: int):
        return op.DequantizeLinear(codes, scale, axis=0, block_size=block)

    def translate_global_average_pool(x):
        return op.GlobalAveragePool(x)

    return {
        torch.ops.ptq.quantize_dequantize.default: translate_quantize_dequantize,
        torch.ops.ptq.dequantize.default: translate_dequantize,
        torch.ops.ptq.dequantize_blocks.default: translate_dequantize_blocks,
        torch.ops.ptq.global_average_pool.default: translate_global_average_pool,
    }
