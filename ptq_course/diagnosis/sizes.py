"""Bytes of a layer: as codes of some width, or in FP16. Chapter 10.

What counts is what a checkpoint stores (`deploy.checkpoint`): packed codes, scales, zero points,
the bias. An FP16 layer takes two bytes a number. On a CPU that is a matter of size alone: its
kernels compute in FP32, so FP16 layers are no faster than FP32 layers.
"""

from __future__ import annotations

import math

from torch import nn

from ptq_course.graph.layer_types import bias_of, weight_of
from ptq_course.grids.affine import FloatQParams
from ptq_course.simulation.layers import ActivationQuantizer, QuantizedLayer

FP16 = 2  # bytes a number
SIZE_NOT_SPEED = (
    "FP16 layers on a CPU count for size, not for speed: it computes them in FP32. An ONNX file "
    "of `deploy.onnx` holds them in FP32, twice the bytes shown here"
)


def layer_bytes(layer: QuantizedLayer) -> int:
    """Bytes of a quantized layer: codes, packed below 8 bits, scales, zero points and bias."""
    q = layer.weight_qtensor
    count, bits = q.codes.numel(), q.code_bits
    total = math.ceil(count * bits / 8) if bits <= 8 else 2 * count
    if q.codebook is not None:
        total += q.codebook.numel() * q.codebook.element_size()
    if isinstance(p := q.qparams, FloatQParams):
        total += p.stored_scale.numel() * p.stored_scale.element_size()
        total += 4 * (p.tensor_scale is not None)
    elif p is not None:
        total += 4 * p.scale.numel()
        if not p.symmetric:
            total += p.zero_point.numel() * (1 if p.grid.bits <= 8 else 2)
    bias = layer.bias if layer.bias_codes is None else layer.bias_codes
    return total + (0 if bias is None else bias.numel() * bias.element_size())


def fp16_bytes(layer: nn.Module) -> int:
    """Bytes of a float layer's weight and bias in FP16."""
    bias = bias_of(layer)
    return FP16 * (weight_of(layer).numel() + (0 if bias is None else bias.numel()))


def model_bytes(model: nn.Module) -> int:
    """Bytes of a network: quantized layers as above, other numbers of it in FP16.

    Of a float model every parameter and buffer in its own type.
    """
    layers = [part for part in model.modules() if isinstance(part, QuantizedLayer)]
    inside = {id(part) for layer in layers for part in layer.modules()}
    total = sum(map(layer_bytes, layers))
    for part in model.modules():
        if id(part) in inside or isinstance(part, ActivationQuantizer):
            continue
        tensors = [*part.parameters(recurse=False), *part.buffers(recurse=False)]
        total += sum(x.numel() * (FP16 if layers else x.element_size()) for x in tensors)
    return total
