"""Layers that round their input at run time, in the form in which they are written to a file."""

from __future__ import annotations

from typing import TypeAlias, cast

import torch
from torch import Tensor, nn

from ptq_course.deploy.onnx.layers import ExportedLayer, known_qparams
from ptq_course.simulation.dynamic_layers import DynamicLayer
from ptq_course.simulation.layers import QuantizedLayer

Convolution: TypeAlias = nn.Conv1d | nn.Conv2d | nn.Conv3d


class DynamicLinear(nn.Module):
    """A Linear that rounds its input at run time, to uint8 with one scale: int8 codes [in, out].

    The runtime fuses DynamicQuantizeLinear, MatMulInteger and the bias to DynamicQuantizeMatMul.
    """

    weight_codes: Tensor
    weight_scale: Tensor
    weight_zero_point: Tensor | None
    bias: Tensor | None

    def __init__(self, layer: QuantizedLayer) -> None:
        super().__init__()
        qparams = known_qparams(layer)
        zeros = None if qparams.symmetric else qparams.zero_point.flatten().to(torch.int8)
        self.register_buffer("weight_codes", layer.weight_codes.to(torch.int8).t().contiguous())
        self.register_buffer("weight_scale", qparams.scale.flatten().clone())
        self.register_buffer("weight_zero_point", zeros)
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        product = torch.ops.ptq.dynamic_linear(
            x, self.weight_codes, self.weight_scale, self.weight_zero_point
        )
        return product if self.bias is None else product + self.bias


class DynamicConv(nn.Module):
    """A convolution that rounds its input at run time, to uint8 with one scale: ConvInteger.

    The runtime's kernel reads uint8 weights: the codes and their zero point are moved by 128.
    """

    weight_codes: Tensor
    weight_scale: Tensor
    weight_zero_point: Tensor
    bias: Tensor | None

    def __init__(self, layer: QuantizedLayer) -> None:
        super().__init__()
        conv, qparams = cast(Convolution, layer.float_layer), known_qparams(layer)
        count = len(conv.stride)
        self.sides = conv._reversed_padding_repeated_twice  # also for padding="same"
        self.mode = None if conv.padding_mode == "zeros" else conv.padding_mode
        first, last = self.sides[0::2][::-1], self.sides[1::2][::-1]
        pads = [0] * 2 * count if self.mode else [*first, *last]
        self.settings = (list(conv.stride), pads, list(conv.dilation), conv.groups)
        codes = (layer.weight_codes.to(torch.int16) + 128).to(torch.uint8)
        zeros = qparams.zero_point.flatten()[:1].reshape([]) + 128
        self.register_buffer("weight_codes", codes)
        self.register_buffer("weight_scale", qparams.scale.reshape(-1, *[1] * count).clone())
        self.register_buffer("weight_zero_point", zeros.to(torch.uint8))
        bias = None if layer.bias is None else layer.bias.detach().reshape(-1, *[1] * count)
        self.register_buffer("bias", None if bias is None else bias.clone())

    def forward(self, x: Tensor) -> Tensor:
        if self.mode is not None:
            x = torch.nn.functional.pad(x, self.sides, mode=self.mode)
        sums = torch.ops.ptq.dynamic_conv(
            x, self.weight_codes, self.weight_scale, self.weight_zero_point, *self.settings
        )
        return sums if self.bias is None else sums + self.bias


def exported_dynamic_layer(layer: DynamicLayer) -> nn.Module:
    """The module that writes a layer of a `DynamicModel`.

    Transposed convolutions have integer weights in the file and compute in floating point: there is
    no ConvTransposeInteger.
    """
    kind = type(layer.quantized.float_layer)
    if kind is nn.Linear:
        return DynamicLinear(layer.quantized)
    if kind in (nn.Conv1d, nn.Conv2d, nn.Conv3d):
        return DynamicConv(layer.quantized)
    return ExportedLayer(layer.quantized)
