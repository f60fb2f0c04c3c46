"""Quantizers and quantized layers in the form in which they are written to a file."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from ptq_course.deploy.onnx import ops as onnx_ops  # noqa: F401  (registers the operators)
from ptq_course.deploy.targets import has_groups
from ptq_course.graph.layer_types import known_type
from ptq_course.grids.affine import IntGrid, QParams, fake_quantize
from ptq_course.simulation.layers import ActivationQuantizer, QuantizedLayer


class ExportedQuantizer(nn.Module):
    """An ActivationQuantizer, as the runtime executes it.

    factor: a constant that its input lacks (`curves.absorb_factors`); x * factor is rounded.
    """

    def __init__(self, quantizer: ActivationQuantizer, factor: float = 1.0) -> None:
        super().__init__()
        grid, zero_point = quantizer.grid, quantizer.zero_point
        assert isinstance(grid, IntGrid)  # floats: `lookups`
        assert zero_point is not None
        dtype = torch.int8 if grid.signed else torch.uint8
        decoded = quantizer.scale.item()
        scale = (quantizer.scale.double() / factor).float().item()
        self.settings = (scale, int(zero_point), grid.signed, decoded)
        # A grid smaller than the 8-bit type needs its own clamp, in real numbers.
        limits = torch.iinfo(dtype)
        self.clamp: tuple[float, float] | None = None
        if (grid.qmin, grid.qmax) != (limits.min, limits.max):
            scale, zero, *_ = self.settings
            self.clamp = ((grid.qmin - zero) * scale, (grid.qmax - zero) * scale)

    def forward(self, x: Tensor) -> Tensor:
        if self.clamp is not None:
            x = torch.clamp(x, *self.clamp)
        return torch.ops.ptq.quantize_dequantize(x, *self.settings)


def known_qparams(layer: QuantizedLayer) -> QParams:
    """The grid of a layer's weight; what has none is written by `lookups`."""
    qparams = layer.weight_qparams
    assert qparams is not None
    return qparams


class ExportedLayer(nn.Module):
    """A QuantizedLayer whose weight, and where known bias, are integer constants of the file.

    ``integer_bias`` False writes the bias as floating point, with the values of its codes.
    """

    weight_codes: Tensor
    weight_scale: Tensor
    weight_zero_point: Tensor | None
    bias_codes: Tensor | None
    bias_scale: Tensor | None
    float_bias: Tensor | None

    def __init__(self, layer: QuantizedLayer, integer_bias: bool = True) -> None:
        super().__init__()
        qparams = known_qparams(layer)
        self.axis = layer.channel_axis
        # Not copy.copy(): torch.export must see the operation without the float weights.
        self.operation = known_type(layer.float_layer).compute
        self.settings = Settings(layer.float_layer)
        self.is_linear = isinstance(layer.float_layer, nn.Linear)
        scale = qparams.scale.flatten() if qparams.scale.dim() else qparams.scale
        zeros = qparams.zero_point.reshape(scale.shape).to(torch.int8)
        self.register_buffer("weight_codes", layer.weight_codes.to(torch.int8))
        self.register_buffer("weight_scale", scale.clone())
        self.register_buffer("weight_zero_point", zeros if zeros.any() else None)
        integer_bias = integer_bias and layer.bias_codes is not None
        self.register_buffer("bias_codes", layer.bias_codes if integer_bias else None)
        self.register_buffer("bias_scale", layer.bias_scale if integer_bias else None)
        bias = None if integer_bias or layer.bias is None else layer.bias.detach().clone()
        self.register_buffer("float_bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        constants = (self.weight_codes, self.weight_scale, self.weight_zero_point)
        if self.is_linear and self.bias_codes is not None:
            # Rows of a matrix fuse to QGemm, which adds the int32 bias; MatMul and Add would not.
            rows = x if x.dim() == 2 else x.flatten(0, -2)
            rows = torch.ops.ptq.integer_linear(rows, *constants, self.bias_codes, self.bias_scale)
            return rows if x.dim() == 2 else rows.unflatten(0, x.shape[:-1])
        bias = self.float_bias
        if self.bias_codes is not None:
            bias = torch.ops.ptq.dequantize(self.bias_codes, self.bias_scale, None, 0)
        weight = torch.ops.ptq.dequantize(*constants, self.axis)
        return self.operation(cast(nn.Module, self.settings), x, weight, bias)


class ExportedEmbedding(nn.Module):
    """A table of integer rows: the rows that are asked for are decoded, and not the whole table.

    A scale for each row is looked up as the row is; one for all is the table's.
    """

    weight_codes: Tensor
    weight_scale: Tensor | None
    scale: Tensor
    zero_point: Tensor

    def __init__(self, layer: QuantizedLayer) -> None:
        super().__init__()
        qparams = known_qparams(layer)
        rows = qparams.scale.dim() > 0
        self.register_buffer("weight_codes", layer.weight_codes.to(torch.int8))
        self.register_buffer("weight_scale", qparams.scale.reshape(-1, 1) if rows else None)
        self.register_buffer("scale", torch.ones(()) if rows else qparams.scale.clone())
        zeros = torch.zeros(()) if rows else qparams.zero_point
        self.register_buffer("zero_point", zeros.to(torch.int8))

    def forward(self, x: Tensor) -> Tensor:
        codes = nn.functional.embedding(x, self.weight_codes)
        values = torch.ops.ptq.dequantize(codes, self.scale, self.zero_point, 0)
        if self.weight_scale is None:
            return values
        return values * nn.functional.embedding(x, self.weight_scale)


class FourBitLinear(nn.Module):
    """A Linear with weights of 4 bits or fewer per group: INT4 [in, out], a scale for each group.

    The runtime fuses DequantizeLinear and MatMul to one kernel (MatMulNBits) where the group is a
    power of two of at least 16; it multiplies in floating point.
    """

    weight_codes: Tensor
    weight_scale: Tensor
    bias: Tensor | None

    def __init__(self, layer: QuantizedLayer) -> None:
        super().__init__()
        scale = known_qparams(layer).scale
        self.register_buffer("weight_codes", layer.weight_codes.to(torch.int8).t().contiguous())
        self.register_buffer("weight_scale", scale.t().contiguous())
        self.block = layer.weight_codes.shape[1] // scale.shape[1]
        bias = None if layer.bias is None else layer.bias.detach().clone()
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        weight = torch.ops.ptq.dequantize_blocks(self.weight_codes, self.weight_scale, self.block)
        # As a batch of matrices: of a single one and a bias the runtime would make a float Gemm.
        single = x.dim() == 2
        product = torch.matmul(x.unsqueeze(0) if single else x, weight)
        product = product.squeeze(0) if single else product
        return product if self.bias is None else product + self.bias


def exported_layer(layer: QuantizedLayer, integer_bias: bool) -> nn.Module:
    """The module that writes ``layer``; `targets.check_target` has accepted it."""
    if has_groups(layer):
        return FourBitLinear(layer)
    if type(layer.float_layer) is nn.Embedding:
        return ExportedEmbedding(layer)
    return ExportedLayer(layer, integer_bias)


class Settings:
    """The settings of a float layer (stride, padding, ...) without its parameters."""

    def __init__(self, layer: nn.Module) -> None:
        for name, value in vars(layer).items():
            if not name.startswith("_") or name == "_reversed_padding_repeated_twice":
                setattr(self, name, value)
        self._kind: Any = type(layer)

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
