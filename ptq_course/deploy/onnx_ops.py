"""PyTorch operators that stand for ONNX's QuantizeLinear and DequantizeLinear.

PyTorch's own fake-quantize operators export with float weights and cannot express narrow or 4-bit
ranges. These custom operators carry integer codes, so that the file does as well.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn

from ptq_course.affine import QParams, fake_quantize
from ptq_course.errors import UnsupportedError
from ptq_course.layers import OPERATIONS, ActivationQuantizer, QuantizedLayer


@torch.library.custom_op("ptq::quantize_dequantize", mutates_args=())
def quantize_dequantize(x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """QuantizeLinear, then DequantizeLinear: the boundary between two integer operations."""
    limits = torch.iinfo(zero_point.dtype)
    codes = torch.clamp(torch.round(x / scale) + zero_point, limits.min, limits.max)
    return (codes - zero_point) * scale


@torch.library.custom_op("ptq::dequantize", mutates_args=())
def dequantize(codes: Tensor, scale: Tensor, zero_point: Tensor, axis: int) -> Tensor:
    """DequantizeLinear on constant codes: what puts integers, not floats, into the file."""
    shape = [1] * codes.dim()
    if scale.dim():
        shape[axis] = -1
    return (codes - zero_point.reshape(shape)).to(scale.dtype) * scale.reshape(shape)


@torch.library.custom_op("ptq::global_average_pool", mutates_args=())
def global_average_pool(x: Tensor) -> Tensor:
    """GlobalAveragePool; PyTorch would export ReduceMean, which has no integer kernel."""
    return x.mean((2, 3), keepdim=True)


@quantize_dequantize.register_fake
def _(x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    return torch.empty_like(x)


@dequantize.register_fake
def _(codes: Tensor, scale: Tensor, zero_point: Tensor, axis: int) -> Tensor:
    return torch.empty_like(codes, dtype=scale.dtype)


@global_average_pool.register_fake
def _(x: Tensor) -> Tensor:
    return x.new_empty((x.shape[0], x.shape[1], 1, 1))


@cache
def translation_table() -> dict[Callable, Callable]:
    """What torch.onnx.export writes for each operator (importing onnxscript takes a second)."""
    from onnxscript import opset20 as op

    # onnxscript reads the annotations: untyped arguments are ONNX values, typed ones attributes.
    # ruff: noqa: ANN001

    def translate_quantize_dequantize(x, scale, zero_point):
        return op.DequantizeLinear(op.QuantizeLinear(x, scale, zero_point), scale, zero_point)

    def translate_dequantize(codes, scale, zero_point, axis: int):
        return op.DequantizeLinear(codes, scale, zero_point, axis=axis)

    def translate_global_average_pool(x):
        return op.GlobalAveragePool(x)

    return {
        torch.ops.ptq.quantize_dequantize.default: translate_quantize_dequantize,
        torch.ops.ptq.dequantize.default: translate_dequantize,
        torch.ops.ptq.global_average_pool.default: translate_global_average_pool,
    }


class ExportedQuantizer(nn.Module):
    """An ActivationQuantizer, as the runtime executes it."""

    def __init__(self, quantizer: ActivationQuantizer) -> None:
        super().__init__()
        grid = quantizer.grid
        if grid.bits > 8:
            raise UnsupportedError(
                f"export: activations of {grid.bits} bits have no integer kernels; use 8 or fewer."
            )
        dtype = torch.int8 if grid.signed else torch.uint8
        self.register_buffer("scale", quantizer.scale.clone())
        self.register_buffer("zero_point", quantizer.zero_point.to(dtype))
        # A grid smaller than the 8-bit type needs its own clamp, in real numbers.
        limits = torch.iinfo(dtype)
        self.clamp: tuple[float, float] | None = None
        if (grid.qmin, grid.qmax) != (limits.min, limits.max):
            zero = int(quantizer.zero_point)
            scale = quantizer.scale.item()
            self.clamp = ((grid.qmin - zero) * scale, (grid.qmax - zero) * scale)

    def forward(self, x: Tensor) -> Tensor:
        if self.clamp is not None:
            x = torch.clamp(x, *self.clamp)
        return torch.ops.ptq.quantize_dequantize(x, self.scale, self.zero_point)


class ExportedLayer(nn.Module):
    """A QuantizedLayer whose weight and bias are integer constants of the file."""

    def __init__(self, layer: QuantizedLayer) -> None:
        super().__init__()
        if layer.weight_grid.bits > 8:
            raise UnsupportedError(
                f"export: {layer.name} has {layer.weight_grid.bits}-bit weights; use 8 or fewer."
            )
        self.axis = layer.channel_axis
        scale = layer.weight_scale
        if scale.dim():
            per_channel = scale.movedim(self.axis, 0).flatten(1)
            if per_channel.shape[1] != 1:
                raise UnsupportedError(
                    f"export: {layer.name} has weights per group, for which ONNX Runtime has no "
                    "integer convolution; use weight_granularity='per_channel'."
                )
            scale = per_channel.flatten()
        # Not copy.copy(): torch.export must see the operation without the float weights.
        self.operation = OPERATIONS[type(layer.float_layer)]
        self.settings = _Settings(layer.float_layer)
        self.register_buffer("weight_codes", layer.weight_codes.to(torch.int8))
        self.register_buffer("weight_scale", scale.clone())
        zeros = layer.weight_zero_point.flatten() if scale.dim() else layer.weight_zero_point
        self.register_buffer("weight_zero_point", zeros.to(torch.int8))
        bias = layer.float_layer.bias
        self.register_buffer("bias_codes", layer.bias_codes)
        self.register_buffer("bias_scale", layer.bias_scale)
        if layer.bias_codes is not None:
            self.register_buffer("bias_zero_point", torch.zeros_like(layer.bias_codes))
            bias = None
        self.register_buffer("float_bias", None if bias is None else bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        weight = torch.ops.ptq.dequantize(
            self.weight_codes, self.weight_scale, self.weight_zero_point, self.axis
        )
        bias = self.float_bias
        if self.bias_codes is not None:
            bias = torch.ops.ptq.dequantize(
                self.bias_codes, self.bias_scale, self.bias_zero_point, 0
            )
        return self.operation(self.settings, x, weight, bias)


class _Settings:
    """The settings of a float layer (stride, padding, ...) without its parameters."""

    def __init__(self, layer: nn.Module) -> None:
        for name, value in vars(layer).items():
            if not name.startswith("_") or name == "_reversed_padding_repeated_twice":
                setattr(self, name, value)
        self._kind = type(layer)

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return self._kind._conv_forward(self, x, weight, bias)


def implied_clamp(qparams: QParams, low: float, high: float) -> bool:
    """Whether saturating to the codes of ``qparams`` already clamps to [low, high].

    True where the code of ``low`` is qmin (everything below saturates there too) and that of
    ``high`` is qmax: then clamp-then-quantize and quantize give the same codes for every input.
    """
    ends = torch.tensor([low, min(high, torch.finfo(torch.float32).max)], dtype=torch.float32)
    grid = qparams.grid
    codes = fake_quantize(ends, qparams) / qparams.scale + qparams.zero_point
    first, last = codes.round().tolist()
    return first == grid.qmin and last == grid.qmax
