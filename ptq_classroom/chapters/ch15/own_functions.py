"""A network quantized by the learner's own functions, in the form that can be exported."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from ptq_course.graph.layer_types import bias_of, weight_of
from ptq_course.grids.affine import IntGrid
from ptq_course.simulation.bias import quantize_bias
from ptq_course.simulation.layers import ActivationQuantizer, QuantizedLayer
from ptq_course.simulation.quantized import QuantizedModel


def with_ranges(
    quantized: QuantizedModel,
    ranges: Mapping[str, tuple[float, float]],
    qparams: Callable[..., Any],
    quantize: Callable[..., Any],
    channel_scales: Callable[..., Any],
) -> int:
    """Put scales and codes made by these functions into a simulation, in place.

    ranges: by layer, (lowest, highest) of its input. The other values, such as the operands of a
    sum, keep the scales that they have. Returns how many layers were filled.
    """
    module: Any = quantized.module
    filled = 0
    for node in module.graph.nodes:
        layer = _part(module, node)
        if not isinstance(layer, QuantizedLayer) or layer.name not in ranges:
            continue
        source = _quantizer(module, node.all_input_nodes[0])
        if source is not None:
            if source is _part(module, node.all_input_nodes[0]):  # else others read it before
                low, high = (float(end) for end in ranges[layer.name])
                scale, zero_point = qparams(low, high, source.grid)
                source.scale = torch.tensor(float(scale))
                source.zero_point = torch.tensor(int(zero_point), dtype=torch.int32)
            _fill(layer, source.scale, quantize, channel_scales)
            filled += 1
    return filled


def _quantizer(module: nn.Module, node: Any) -> ActivationQuantizer | None:
    """The quantizer of a layer's input; a Flatten may stand between the two."""
    while node.op != "placeholder":
        part = _part(module, node)
        if isinstance(part, ActivationQuantizer):
            return part
        node = node.all_input_nodes[0]
    return None


def _part(module: nn.Module, node: Any) -> nn.Module | None:
    return module.get_submodule(node.target) if node.op == "call_module" else None


def _fill(layer: QuantizedLayer, input_scale: Any, quantize: Any, channel_scales: Any) -> None:
    weight: Any = weight_of(layer.float_layer).detach()
    grid = IntGrid(8, narrow=True)
    scales = torch.as_tensor(channel_scales(weight, 0), dtype=torch.float32).flatten()
    rows = [
        torch.as_tensor(quantize(w, float(s), 0, grid)) for w, s in zip(weight, scales, strict=True)
    ]
    layer.weight_codes = torch.stack(rows).to(layer.weight_codes.dtype)
    assert layer.weight_scale is not None
    layer.weight_scale = scales.reshape(layer.weight_scale.shape)
    bias: Any = bias_of(layer.float_layer)
    if bias is not None:
        layer.bias_codes, layer.bias_scale = quantize_bias(bias.detach(), input_scale, scales)
