"""What a file holds that lies on no grid of integers: codebooks, and floats of 8 bits.

Chapters 13 and 15. No runtime multiplies such codes. The file holds them, small, in front of an
operation in floating point:

    codebook   Gather(codebook, Cast(codes))    codes in uint8, or in UINT4 where 4 bits hold them
    FP8        DequantizeLinear(codes)          codes in FLOAT8E4M3FN or FLOAT8E5M2

ONNX Runtime computes both when it opens the file, so that a network computes as fast, and takes as
much memory, as in FP32: it is the file that is small.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ptq_course.deploy.onnx import ops as onnx_ops  # noqa: F401  (registers the operators)
from ptq_course.deploy.onnx.layers import Settings
from ptq_course.graph.layer_types import known_type
from ptq_course.grids.affine import FloatQParams
from ptq_course.grids.floats import FP8_E4M3, FP8_E5M2
from ptq_course.simulation.curves import Hardsigmoid, RoundedInside, RoundedSiLU
from ptq_course.simulation.layers import ActivationQuantizer, QuantizedLayer

FP8_DTYPES = {FP8_E4M3: torch.float8_e4m3fn, FP8_E5M2: torch.float8_e5m2}


class DecodedLayer(nn.Module):
    """A layer that computes in floating point with a weight decoded from a codebook or from FP8."""

    weight_codes: Tensor
    codebook: Tensor | None
    weight_scale: Tensor | None
    bias: Tensor | None

    def __init__(self, layer: QuantizedLayer) -> None:
        super().__init__()
        self.axis, self.settings = layer.channel_axis, Settings(layer.float_layer)
        self.operation = known_type(layer.float_layer).compute
        self.is_table = type(layer.float_layer) is nn.Embedding
        qparams = layer.weight_qtensor.qparams
        codes, scale = layer.weight_codes, None
        if isinstance(qparams, FloatQParams):
            codes = codes.view(FP8_DTYPES[qparams.grid])
            scale = qparams.scale.flatten() if qparams.scale.dim() else qparams.scale
        self.register_buffer("weight_codes", codes.clone())
        self.register_buffer("weight_scale", None if scale is None else scale.clone())
        self.register_buffer("codebook", layer.codebook)
        bias = layer.bias
        self.register_buffer("bias", None if bias is None else bias.detach().clone())

    def decoded(self, codes: Tensor) -> Tensor:
        """The values of the codes."""
        if self.codebook is not None:
            return torch.ops.ptq.look_up(codes, self.codebook)
        return torch.ops.ptq.dequantize(codes, self.weight_scale, None, self.axis)

    def forward(self, x: Tensor) -> Tensor:
        if self.is_table and self.codebook is not None:  # the rows that are asked for, no others
            return self.decoded(F.embedding(x, self.weight_codes))
        weight = self.decoded(self.weight_codes)
        return self.operation(cast(nn.Module, self.settings), x, weight, self.bias)


class FloatQuantizer(nn.Module):
    """An ActivationQuantizer on FP8: QuantizeLinear and DequantizeLinear with FP8 between them."""

    def __init__(self, quantizer: ActivationQuantizer) -> None:
        super().__init__()
        self.settings = quantizer.scale.item(), quantizer.grid == FP8_E5M2

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.ptq.quantize_dequantize_fp8(x, *self.settings)


class FloatCurve(nn.Module):
    """A `RoundedInside` whose factor in [0, 1] lies on FP8."""

    def __init__(self, curve: RoundedInside) -> None:
        super().__init__()
        self.kind = type(curve)
        self.settings = curve.factor.scale.item(), curve.factor.grid == FP8_E5M2

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(x) if self.kind is RoundedSiLU else F.hardsigmoid(x)
        if self.kind is Hardsigmoid:
            return gate
        return x * torch.ops.ptq.quantize_dequantize_fp8(gate, *self.settings)
