"""PyTorch operators that stand for ONNX's on integers: Q, DQ, and products of what Q makes.

PyTorch's own fake-quantize operators export with float weights and cannot express narrow or 4-bit
ranges. These custom operators carry integer codes, so that the file does as well. What is one
number is a number here, and what is zero is left out: each tensor that a network holds costs
torch.export time, which grows with the square of their number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ptq_course.errors import needs

FLOAT, INT32 = 1, 6  # ONNX's numbers of these types (importing onnx for them would be slow)


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


@torch.library.custom_op("ptq::quantize_dequantize_fp8", mutates_args=())
def quantize_dequantize_fp8(x: Tensor, scale: float, wide: bool) -> Tensor:
    """QuantizeLinear and DequantizeLinear with FP8 E4M3 between them; E5M2 where ``wide``."""
    dtype = torch.float8_e5m2 if wide else torch.float8_e4m3fn
    largest = torch.finfo(dtype).max
    return (x / scale).clamp(-largest, largest).to(dtype).to(x.dtype) * scale


@torch.library.custom_op("ptq::look_up", mutates_args=())
def look_up(codes: Tensor, codebook: Tensor) -> Tensor:
    """Gather: the entries of a codebook [K] at uint8 codes of any shape."""
    return codebook[codes.int()]


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


@torch.library.custom_op("ptq::lstm", mutates_args=())
def lstm(
    x: Tensor, w: Tensor, r: Tensor, bias: Tensor | None, h: Tensor | None, c: Tensor | None,
    hidden: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """LSTM of x [steps, batch, in], w [directions, 4 hidden, in], r [directions, 4 hidden, hidden].

    Gates in the order i o f c; h and c are [directions, batch, hidden], as what is returned behind
    y [steps, directions, batch, hidden]. Without them the states begin with zeros.
    """
    raise NotImplementedError(_FOR_FILES)


@torch.library.custom_op("ptq::recurrent", mutates_args=())
def recurrent(
    x: Tensor, w: Tensor, r: Tensor, bias: Tensor | None, h: Tensor | None, hidden: int, mode: str
) -> tuple[Tensor, Tensor]:
    """GRU (gates z r h), RNN_TANH or RNN_RELU; shapes as those of `lstm`."""
    raise NotImplementedError(_FOR_FILES)


@torch.library.custom_op("ptq::dynamic_lstm", mutates_args=())
def dynamic_lstm(
    x: Tensor, w: Tensor, w_scale: Tensor, w_zero_point: Tensor,
    r: Tensor, r_scale: Tensor, r_zero_point: Tensor,
    bias: Tensor | None, h: Tensor | None, c: Tensor | None, hidden: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """DynamicQuantizeLSTM of ONNX Runtime: int8 w and r [directions, in, 4 hidden], else `lstm`."""
    raise NotImplementedError(_FOR_FILES)


_FOR_FILES = "stands for an operator of a file; the simulation computes it (graph.recurrent)."


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


@quantize_dequantize_fp8.register_fake
def _(x: Tensor, scale: float, wide: bool) -> Tensor:
    return torch.empty_like(x)


@look_up.register_fake
def _(codes: Tensor, codebook: Tensor) -> Tensor:
    return torch.empty_like(codes, dtype=codebook.dtype)


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


@lstm.register_fake
def _(
    x: Tensor, w: Tensor, r: Tensor, bias: Tensor | None, h: Tensor | None, c: Tensor | None,
    hidden: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return _states(x, w, hidden, 3)


@recurrent.register_fake
def _(
    x: Tensor, w: Tensor, r: Tensor, bias: Tensor | None, h: Tensor | None, hidden: int, mode: str
) -> tuple[Tensor, Tensor]:
    return _states(x, w, hidden, 2)


@dynamic_lstm.register_fake
def _(
    x: Tensor, w: Tensor, w_scale: Tensor, w_zero_point: Tensor,
    r: Tensor, r_scale: Tensor, r_zero_point: Tensor,
    bias: Tensor | None, h: Tensor | None, c: Tensor | None, hidden: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return _states(x, w, hidden, 3)


def _states(x: Tensor, w: Tensor, hidden: int, count: int) -> Any:
    ends = [x.new_empty((w.shape[0], x.shape[1], hidden)) for _ in range(count - 1)]
    return x.new_empty((x.shape[0], w.shape[0], x.shape[1], hidden)), *ends


@cache
def translation_table(opset: int) -> dict[Callable, Callable]:
    """What torch.onnx.export writes for each operator (importing onnxscript takes a second)."""
    with needs("onnx"):
        import onnx_ir
        import onnxscript
        from onnxscript import values

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

    def translate_fp8(x, scale: float, wide: bool):
        kind = onnx_ir.DataType.FLOAT8E5M2 if wide else onnx_ir.DataType.FLOAT8E4M3FN
        zero_point = op.Constant(value=onnx_ir.tensor(np.zeros((), kind.numpy()), dtype=kind))
        step = op.Constant(value_float=scale)
        return op.DequantizeLinear(op.QuantizeLinear(x, step, zero_point), step, zero_point)

    def translate_look_up(codes, codebook):
        return op.Gather(codebook, op.Cast(codes, to=INT32))

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

    microsoft = values.Opset("com.microsoft", 1)
    dynamic = values.Op(microsoft, "DynamicQuantizeLSTM", _dynamic_lstm_schema())

    def direction(w) -> str:
        return "bidirectional" if w.shape[0] == 2 else "forward"

    def translate_lstm(x, w, r, bias, h, c, hidden: int):
        return op.LSTM(
            x, w, r, bias, None, h, c, None, hidden_size=hidden, direction=direction(w)
        )  # fmt: skip

    def translate_recurrent(x, w, r, bias, h, hidden: int, mode: str):
        settings = {"hidden_size": hidden, "direction": direction(w)}
        if mode == "GRU":  # the reset gate behind the product, as PyTorch has it
            return op.GRU(x, w, r, bias, None, h, linear_before_reset=1, **settings)
        curve = {"RNN_TANH": "Tanh", "RNN_RELU": "Relu"}[mode]
        return op.RNN(x, w, r, bias, None, h, activations=[curve] * w.shape[0], **settings)

    def translate_dynamic_lstm(
        x, w, w_scale, w_zero_point, r, r_scale, r_zero_point, bias, h, c, hidden: int
    ):
        return dynamic(
            x, w, r, bias, None, h, c, None, w_scale, w_zero_point, r_scale, r_zero_point,
            hidden_size=hidden, direction=direction(w),
        )  # fmt: skip

    return {
        torch.ops.ptq.lstm.default: translate_lstm,
        torch.ops.ptq.recurrent.default: translate_recurrent,
        torch.ops.ptq.dynamic_lstm.default: translate_dynamic_lstm,
        torch.ops.ptq.quantize_dequantize.default: translate_quantize_dequantize,
        torch.ops.ptq.dequantize.default: translate_dequantize,
        torch.ops.ptq.quantize_dequantize_fp8.default: translate_fp8,
        torch.ops.ptq.look_up.default: translate_look_up,
        torch.ops.ptq.integer_linear.default: translate_integer_linear,
        torch.ops.ptq.dequantize_blocks.default: translate_dequantize_blocks,
        torch.ops.ptq.dynamic_linear.default: translate_dynamic_linear,
        torch.ops.ptq.dynamic_conv.default: translate_dynamic_conv,
        torch.ops.ptq.global_average_pool.default: translate_global_average_pool,
    }


def _dynamic_lstm_schema() -> Any:
    """What ONNX Runtime documents of its operator; the onnx package knows only ONNX's own."""
    import onnx.defs

    schema, option = onnx.defs.OpSchema, onnx.defs.OpSchema.FormalParameterOption.Optional
    names = "X W R B sequence_lens initial_h initial_c P W_scale W_zero_point R_scale R_zero_point"
    codes = {"W", "R", "W_zero_point", "R_zero_point"}
    inputs = [
        schema.FormalParameter(
            name,
            "tensor(int8)" if name in codes else "tensor(int32)" if "lens" in name else "T",
            param_option=option if name in ("B", "sequence_lens", "initial_h", "initial_c", "P")
            else schema.FormalParameterOption.Single,
        )
        for name in names.split()
    ]  # fmt: skip
    outputs = [schema.FormalParameter(n, "T", param_option=option) for n in ("Y", "Y_h", "Y_c")]
    attributes = [
        schema.Attribute("hidden_size", schema.AttrType.INT),
        schema.Attribute("direction", schema.AttrType.STRING),
    ]
    return schema(
        "DynamicQuantizeLSTM", "com.microsoft", 1, inputs=inputs, outputs=outputs,
        type_constraints=[("T", ["tensor(float)"], "")], attributes=attributes,
    )  # fmt: skip
