"""PyTorch operators that stand for ONNX's on integers: Q, DQ, and products of what Q makes.

PyTorch's own fake-quantize operators export with float weights and cannot express narrow or 4-bit
ranges. These custom operators carry integer codes, so that the file does as well. What is one
number is a number here, and what is zero is left out: each tensor that a network holds costs
torch.export time, which grows with the square of their number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import torch
from torch import Tensor

from ptq_course.errors import needs

FLOAT = 1  # ONNX's number of float32 (importing onnx for it would be slow)


@torch.library.custom_op("ptq::quantize_dequantize", mutates_args=())
def quantize_dequantize(
    x: Tensor, scale: float, zero_point: int, signed: bool, decoded: float
) -> Tensor:
    """QuantizeLinear, then DequantizeLinear: the boundary between two integer operations.

    ``decoded`` is the scale that the codes are decoded with: the same, or times a constant factor
    that x lacks.
    """
    limits = torch.iinfo(torch.int8 if signed else torch.uint8)
    codes = torch.clamp(torch.round(x / scale) + zero_point, limits.min, limits.max)
    return (codes - zero_point) * decoded


@torch.library.custom_op("ptq::dequantize", mutates_args=())
def dequantize(codes: Tensor, scale: Tensor, zero_point: Tensor | None, axis: int) -> Tensor:
    """DequantizeLinear on constant codes: what puts integers, not floats, into the file.

    Without a ``zero_point`` the file has zeros of the scale's shape.
    """
    shape = [1] * codes.dim()
    if scale.dim():
        shape[axis] = -1
    zeros = 0
    if zero_point is not None:
        zeros = zero_point.reshape(shape if zero_point.dim() else [])
    return (codes - zeros).to(scale.dtype) * scale.reshape(shape if scale.dim() else [])


@torch.library.custom_op("ptq::integer_linear", mutates_args=())
def integer_linear(
    x: Tensor, codes: Tensor, scale: Tensor, zero_point: Tensor | None,
    bias: Tensor, bias_scale: Tensor,
) -> Tensor:  # fmt: skip
    """Gemm of x [N, in] with the codes of a weight and of a bias, in one step."""
    weight = dequantize(codes, scale, zero_point, 0)
    return torch.nn.functional.linear(x, weight, dequantize(bias, bias_scale, None, 0))


@torch.library.custom_op("ptq::dequantize_blocks", mutates_args=())
def dequantize_blocks(codes: Tensor, scale: Tensor, block: int) -> Tensor:
    """DequantizeLinear with a scale for each ``block`` rows: codes [K, N], scale [K / block, N]."""
    return codes.to(scale.dtype) * scale.repeat_interleave(block, 0)


@torch.library.custom_op("ptq::global_average_pool", mutates_args=())
def global_average_pool(x: Tensor) -> Tensor:
    """GlobalAveragePool; PyTorch would export ReduceMean, which has no integer kernel."""
    return x.mean(tuple(range(2, x.dim())), keepdim=True)


@torch.library.custom_op("ptq::dynamic_linear", mutates_args=())
def dynamic_linear(x: Tensor, codes: Tensor, scale: Tensor, zero_point: Tensor | None) -> Tensor:
    """DynamicQuantizeLinear and MatMulInteger: x [..., K] rounded to uint8, codes [K, N]."""
    integers, s_x = _rounded(x)
    weight = codes.double() if zero_point is None else codes.double() - zero_point.double()
    return (integers @ weight).to(x.dtype) * (s_x * scale)


@torch.library.custom_op("ptq::dynamic_conv", mutates_args=())
def dynamic_conv(
    x: Tensor, codes: Tensor, scale: Tensor, zero_point: Tensor, strides: list[int],
    pads: list[int], dilations: list[int], groups: int,
) -> Tensor:  # fmt: skip
    """DynamicQuantizeLinear and ConvInteger: uint8 codes [out, in, ...], scale [out, 1, ...].

    pads: at the beginning of each dimension, then at the end of each, as ONNX has them.
    """
    integers, s_x = _rounded(x)
    weight = codes.double() - zero_point.double()
    return _convolved(integers, weight, strides, pads, dilations, groups).to(x.dtype) * (
        s_x * scale
    )


def _convolved(
    x: Tensor, weight: Tensor, strides: list[int], pads: list[int], dilations: list[int],
    groups: int,
) -> Tensor:  # fmt: skip
    sides = zip(pads[: len(strides)], pads[len(strides) :], strict=True)
    padded = torch.nn.functional.pad(x, [n for side in reversed(list(sides)) for n in side])
    zeros = [0] * len(strides)
    return torch.convolution(padded, weight, None, strides, zeros, dilations, False, zeros, groups)


def _rounded(x: Tensor) -> tuple[Tensor, Tensor]:
    """What DynamicQuantizeLinear makes of x: codes less the zero point, float64, and the scale."""
    low, high = x.amin().clamp(max=0), x.amax().clamp(min=0)
    scale = (high - low) / 255
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    zero_point = (-low / scale).round().clamp(0, 255)
    return ((x / scale).round() + zero_point).clamp(0, 255).double() - zero_point, scale


@quantize_dequantize.register_fake
def _(x: Tensor, scale: float, zero_point: int, signed: bool, decoded: float) -> Tensor:
    return torch.empty_like(x)


@dequantize.register_fake
def _(codes: Tensor, scale: Tensor, zero_point: Tensor | None, axis: int) -> Tensor:
    return torch.empty_like(codes, dtype=scale.dtype)


@integer_linear.register_fake
def _(
    x: Tensor, codes: Tensor, scale: Tensor, zero_point: Tensor | None,
    bias: Tensor, bias_scale: Tensor,
) -> Tensor:  # fmt: skip
    return torch.nn.functional.linear(x, x.new_empty(codes.shape))  # it looks at the shapes, too


@dequantize_blocks.register_fake
def _(codes: Tensor, scale: Tensor, block: int) -> Tensor:
    return torch.empty_like(codes, dtype=scale.dtype)


@global_average_pool.register_fake
def _(x: Tensor) -> Tensor:
    return x.new_empty((x.shape[0], x.shape[1], *[1] * (x.dim() - 2)))


@dynamic_linear.register_fake
def _(x: Tensor, codes: Tensor, scale: Tensor, zero_point: Tensor | None) -> Tensor:
    return x @ x.new_empty(codes.shape)


@dynamic_conv.register_fake
def _(
    x: Tensor, codes: Tensor, scale: Tensor, zero_point: Tensor, strides: list[int],
    pads: list[int], dilations: list[int], groups: int,
) -> Tensor:  # fmt: skip
    return _convolved(x, x.new_empty(codes.shape), strides, pads, dilations, groups)


@cache
def translation_table(opset: int) -> dict[Callable, Callable]:
    """What torch.onnx.export writes for each operator (importing onnxscript takes a second)."""
    with needs("onnx"):
        import onnx_ir
        import onnxscript

    op = getattr(onnxscript, f"opset{opset}")

    # onnxscript reads the annotations: untyped arguments are ONNX values, typed ones attributes.
    # ruff: noqa: ANN001

    def translate_quantize_dequantize(
        x, scale: float, zero_point: int, signed: bool, decoded: float
    ):
        code = np.array(zero_point, np.int8 if signed else np.uint8)
        zero_point = op.Constant(value=onnx_ir.tensor(code))
        codes = op.QuantizeLinear(x, op.Constant(value_float=scale), zero_point)
        return op.DequantizeLinear(codes, op.Constant(value_float=decoded), zero_point)

    def translate_dequantize(codes, scale, zero_point, axis: int):
        if zero_point is None:
            zeros = np.zeros(tuple(scale.shape), codes.dtype.numpy())
            zero_point = op.Constant(value=onnx_ir.tensor(zeros))
        return op.DequantizeLinear(codes, scale, zero_point, axis=axis)

    def translate_integer_linear(x, codes, scale, zero_point, bias, bias_scale):
        weight = translate_dequantize(codes, scale, zero_point, 0)
        bias = op.DequantizeLinear(bias, bias_scale, axis=0)
        return op.Gemm(x, weight, bias, transB=1)

    def translate_dequantize_blocks(codes, scale, block: int):
        return op.DequantizeLinear(codes, scale, axis=0, block_size=block)

    def translate_global_average_pool(x):
        return op.GlobalAveragePool(x)

    def translate_dynamic_linear(x, codes, scale, zero_point):
        integers, s_x, z_x = op.DynamicQuantizeLinear(x)
        sums = op.MatMulInteger(integers, codes, z_x, zero_point)
        return op.Mul(op.Cast(sums, to=FLOAT), op.Mul(s_x, scale))

    def translate_dynamic_conv(
        x, codes, scale, zero_point, strides: Sequence[int], pads: Sequence[int],
        dilations: Sequence[int], groups: int,
    ):  # fmt: skip
        integers, s_x, z_x = op.DynamicQuantizeLinear(x)
        sums = op.ConvInteger(
            integers, codes, z_x, zero_point,
            strides=strides, pads=pads, dilations=dilations, group=groups,
        )  # fmt: skip
        return op.Mul(op.Cast(sums, to=FLOAT), op.Mul(s_x, scale))

    return {
        torch.ops.ptq.quantize_dequantize.default: translate_quantize_dequantize,
        torch.ops.ptq.dequantize.default: translate_dequantize,
        torch.ops.ptq.integer_linear.default: translate_integer_linear,
        torch.ops.ptq.dequantize_blocks.default: translate_dequantize_blocks,
        torch.ops.ptq.dynamic_linear.default: translate_dynamic_linear,
        torch.ops.ptq.dynamic_conv.default: translate_dynamic_conv,
        torch.ops.ptq.global_average_pool.default: translate_global_average_pool,
    }
