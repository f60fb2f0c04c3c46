"""The int32 bias, which starts the accumulator, and the room that it needs there.

Chapters 06 and 08. Integer hardware adds the bias to the accumulator, so the bias has the scale of
the products, s_x * s_w, and zero point 0 (Jacob et al., "Quantization and Training of Neural
Networks for Efficient Integer-Arithmetic-Only Inference", 2018, section 2.4).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ptq_course.errors import UnsupportedError
from ptq_course.graph.layer_types import channel_axis, row_repeats
from ptq_course.grids.affine import SCALE_FLOOR, QParams, QTensor
from ptq_course.grids.int32_bound import (
    INT32_MAX,
    differences,
    fits_int32,
    largest,
    less_zero_point,
    sum_range,
)

# Bias codes stay below half of int32, which leaves the other half to the sum of products.
BIAS_LIMIT = 2**30


def scale_per_output(layer: nn.Module, scale: Tensor) -> Tensor | None:
    """Weight scales as one for each output channel [channels]; None where a channel has several.

    ``scale`` is 0-d (per tensor) or shaped as `weight_block_size` leads to (per channel, per
    group). The groups of a ConvTranspose share the scales of its weight's axis 1.
    """
    axis, groups = channel_axis(layer), row_repeats(layer)
    rows = layer.weight.shape[axis]
    if scale.dim() == 0:
        return scale.expand(rows * groups)
    per_row = scale.movedim(axis, 0).flatten(1)
    if per_row.shape[1] != 1 or rows % per_row.shape[0]:
        return None
    return per_row.flatten().repeat_interleave(rows // per_row.shape[0]).repeat(groups)


def quantize_bias(bias: Tensor, input_scale: Tensor, weight_scale: Tensor) -> tuple[Tensor, Tensor]:
    """int32 codes [channels] of a bias and their scale, float32 [channels].

    input_scale is 0-d, weight_scale 0-d or [channels]. The product of the scales is rounded to
    float32, as an integer runtime computes it; codes beyond int32 saturate (`room_for_bias` keeps
    them below half of it).
    """
    scale = (input_scale * weight_scale).expand(bias.shape).clone()
    # In float32 the smallest products of scales are 0; what is divided must stay a number.
    codes = torch.round(bias.double() / scale.double().clamp(min=SCALE_FLOOR))
    return codes.clamp(-INT32_MAX, INT32_MAX).to(torch.int32), scale


def room_for_bias(
    layer: nn.Module, qparams: QParams, input_qparams: QParams
) -> tuple[QParams, int]:
    """Weight QParams under which every bias code stays below 2^30, and how many scales grew.

    Folding batch norm leaves "dead channels": weights near zero beside an ordinary bias, whose code
    bias / (s_x * s_w) would not fit int32. A larger weight scale costs such a channel nothing.
    """
    bias = getattr(layer, "bias", None)
    scale = scale_per_output(layer, qparams.scale)
    if bias is None or scale is None or len(scale) != len(bias):
        return qparams, 0
    needed = bias.detach().double().abs() / (input_qparams.scale.double() * BIAS_LIMIT)
    raised = int((needed > scale.double()).sum())
    if not raised:
        return qparams, 0
    needed = needed * (1 + 2**-20)  # a little more, so that rounding to float32 cannot undo it
    if qparams.scale.dim() == 0:
        grown = torch.maximum(qparams.scale.double(), needed.max())
    else:
        # Outputs that share a scale (groups of a ConvTranspose) take the largest of their needs.
        rows = qparams.scale.numel()
        shape = [1] * layer.weight.dim()
        shape[channel_axis(layer)] = rows
        axis_first = needed.reshape(-1, layer.weight.shape[channel_axis(layer)]).amax(0)
        grown = torch.maximum(
            qparams.scale.double(), axis_first.reshape(rows, -1).amax(1).reshape(shape)
        )
    return QParams(grown.float(), qparams.zero_point, qparams.grid, qparams.block_size), raised


def check_accumulator(
    name: str, layer: nn.Module, weight: QTensor, bias_codes: Tensor | None, input_qparams: QParams
) -> None:
    """Raise UnsupportedError where the sum of products plus the bias could exceed int32."""
    factors = weight.codes if weight.qparams.symmetric else less_zero_point(weight)
    found = sum_range(factors, differences(input_qparams), bias_codes, channel_axis(layer))
    if not fits_int32(found):
        raise UnsupportedError(
            f"{name}: a sum of products can reach {largest(found):.3g}, beyond int32. Use fewer "
            "bits for its weights or inputs, or keep it in floating point (float_layers)."
        )
