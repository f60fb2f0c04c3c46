"""The int32 bias, which starts the accumulator, and the room that it needs there.

Chapters 06 and 08. Integer hardware adds the bias to the accumulator, so the bias has the scale of
the products, s_x * s_w, and zero point 0 (Jacob et al., "Quantization and Training of Neural
Networks for Efficient Integer-Arithmetic-Only Inference", 2018, section 2.4).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from ptq_course.errors import UnsupportedError
from ptq_course.graph.layer_types import bias_of, channel_axis, row_repeats, weight_of
from ptq_course.grids.affine import SCALE_FLOOR, QParams, QTensor, block_minmax
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
# The bias of a channel of zeros is one of its outputs: finer than the step of 16-bit activations.
SILENT_BIAS = 2**16


def scale_per_output(layer: nn.Module, scale: Tensor) -> Tensor | None:
    """Weight scales as one for each output channel [channels]; None where a channel has several.

    ``scale`` is 0-d (per tensor) or shaped as `weight_block_size` leads to (per channel, per
    group). The groups of a ConvTranspose share the scales of its weight's axis 1.
    """
    axis, groups = channel_axis(layer), row_repeats(layer)
    rows = weight_of(layer).shape[axis]
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
    """Weight QParams under which int32 codes can express every bias, and how many scales grew.

    Folding batch norm leaves "dead channels": weights near zero beside an ordinary bias, whose code
    bias / (s_x * s_w) would not fit int32; a larger weight scale, which keeps it below 2^30, costs
    such a channel nothing. Pruning, or a gamma of 0, leaves channels of zeros, which any scale
    decodes: theirs shrinks until the bias, which is all that they give, has a code of 2^16.
    """
    bias = bias_of(layer)
    scale = scale_per_output(layer, qparams.scale)
    if bias is None or scale is None or len(scale) != len(bias):
        return qparams, 0
    codes = bias.detach().double().abs() / input_qparams.scale.double()  # for a weight scale of 1
    needed = codes / BIAS_LIMIT * (1 + 2**-20)  # a little more than the float32 rounding takes
    raised = int((codes / BIAS_LIMIT > scale.double()).sum())
    # Outputs that share a scale (groups of a ConvTranspose) take the largest of their needs.
    rows = needed.reshape(row_repeats(layer), -1).amax(0)
    shared = rows.reshape(max(1, qparams.scale.numel()), -1).amax(1).reshape(qparams.scale.shape)
    low, high = block_minmax(weight_of(layer).detach(), qparams.block_size)
    silent = (low == 0) & (high == 0) & (shared > 0)
    finest = torch.where(silent, shared * (BIAS_LIMIT / SILENT_BIAS), torch.inf)
    adapted = qparams.scale.double().clamp(max=finest).clamp(min=shared.clamp(min=SCALE_FLOOR))
    return replace(qparams, scale=adapted.float()), raised


def check_accumulator(
    name: str, layer: nn.Module, weight: QTensor, bias_codes: Tensor | None, input_qparams: QParams
) -> None:
    """Raise UnsupportedError where the sum of products plus the bias could exceed int32."""
    factors = weight.codes if weight.require_qparams().symmetric else less_zero_point(weight)
    found = sum_range(factors, differences(input_qparams), bias_codes, channel_axis(layer))
    if not fits_int32(found):
        raise UnsupportedError(
            f"{name}: a sum of products can reach {largest(found):.3g}, beyond int32. Use fewer "
            "bits for its weights or inputs, or keep it in floating point (float_layers)."
        )
