"""Quantized layers: a float layer with integer weights, and the module that rounds activations.

Chapters 05 and 06. Everything here *simulates*: it computes in floating point with values that lie
exactly on the integer grids ("fake quantization"). Chapter 08's `integer.py` computes the same
network with integers only.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ptq_course.affine import (
    IntGrid,
    QParams,
    block_minmax,
    choose_qparams,
    dequantize,
    fake_quantize,
    quantize,
)
from ptq_course.errors import QuantizationError, UnsupportedError

# A float layer's operation with a weight and a bias of our choosing.
OPERATIONS: dict[type[nn.Module], Callable[[nn.Module, Tensor, Tensor, Tensor | None], Tensor]] = {
    nn.Linear: lambda layer, x, w, b: F.linear(x, w, b),
    nn.Conv1d: lambda layer, x, w, b: layer._conv_forward(x, w, b),
    nn.Conv2d: lambda layer, x, w, b: layer._conv_forward(x, w, b),
    nn.Conv3d: lambda layer, x, w, b: layer._conv_forward(x, w, b),
    nn.ConvTranspose1d: lambda layer, x, w, b: F.conv_transpose1d(
        x, w, b, layer.stride, layer.padding, layer.output_padding, layer.groups, layer.dilation
    ),
    nn.ConvTranspose2d: lambda layer, x, w, b: F.conv_transpose2d(
        x, w, b, layer.stride, layer.padding, layer.output_padding, layer.groups, layer.dilation
    ),
}
INT32_MAX = 2**31 - 1
# Bias codes stay below half of int32, which leaves the other half to the sum of products.
BIAS_LIMIT = 2**30


class ActivationQuantizer(nn.Module):
    """Rounds a tensor to the grid of its QParams: one instance for each tensor value."""

    def __init__(self, qparams: QParams) -> None:
        super().__init__()
        self.register_buffer("scale", qparams.scale)
        self.register_buffer("zero_point", qparams.zero_point)
        self.grid = qparams.grid
        self.block_size = qparams.block_size

    @property
    def qparams(self) -> QParams:
        return QParams(self.scale, self.zero_point, self.grid, self.block_size)

    def forward(self, x: Tensor) -> Tensor:
        return fake_quantize(x, self.qparams)

    def extra_repr(self) -> str:
        grid = self.grid
        return (
            f"scale={self.scale.item():.6g}, zero_point={self.zero_point.item()}, bits={grid.bits}"
        )


class QuantizedLayer(nn.Module):
    """A Conv, ConvTranspose or Linear with integer weight codes and, given its input's scale, an
    int32 bias.

    ``layer`` is the float layer (kept unchanged, for comparison); ``weight_qparams`` fit its
    weight; ``input_qparams`` (per-tensor) quantize the bias with scale s_x * s_w and zero point 0,
    as integer hardware adds it. Without them the bias stays in floating point (weight-only).

    A channel so quiet that its bias would not fit int32 ("dead channels" are common after folding
    batch norm) gets a larger weight scale: ``raised_channels`` counts them. Raises
    UnsupportedError where the sum of products itself could overflow int32.
    """

    def __init__(
        self, layer: nn.Module, weight_qparams: QParams, input_qparams: QParams | None = None,
        *, name: str = "",
    ) -> None:  # fmt: skip
        super().__init__()
        if type(layer) not in OPERATIONS:
            raise UnsupportedError(
                f"{name or 'layer'}: {type(layer).__name__} has no integer form here."
            )
        self.name = name
        self.float_layer = layer
        self.weight_grid = weight_qparams.grid
        self.weight_block_size = weight_qparams.block_size
        self.raised_channels = 0
        weight = layer.weight.detach()
        if not torch.isfinite(weight).all():
            raise QuantizationError(
                f"{name}: the weight holds NaN or infinity; check the checkpoint."
            )
        if layer.bias is not None and not torch.isfinite(layer.bias).all():
            raise QuantizationError(
                f"{name}: the bias holds NaN or infinity; check the checkpoint."
            )
        if input_qparams is not None:
            weight_qparams = self._make_room_for_bias(weight_qparams, input_qparams)
        self.register_buffer("weight_codes", quantize(weight, weight_qparams))
        self.register_buffer("weight_scale", weight_qparams.scale)
        self.register_buffer("weight_zero_point", weight_qparams.zero_point)
        self.register_buffer("bias_codes", None)
        self.register_buffer("bias_scale", None)
        if input_qparams is not None and layer.bias is not None:
            self._quantize_bias(input_qparams)
        if input_qparams is not None:
            self._check_accumulator(input_qparams)

    @property
    def weight_qparams(self) -> QParams:
        return QParams(
            self.weight_scale, self.weight_zero_point, self.weight_grid, self.weight_block_size
        )

    @property
    def weight(self) -> Tensor:
        """The weight as the integers represent it (floating point, on the grid)."""
        return dequantize(self.weight_codes, self.weight_qparams, self.float_layer.weight.dtype)

    @property
    def bias(self) -> Tensor | None:
        """The bias as the integers represent it; the float bias in weight-only quantization."""
        if self.bias_codes is None:
            return self.float_layer.bias
        codes = self.bias_codes.double()
        return (codes * self.bias_scale.double()).to(self.float_layer.weight.dtype)

    @property
    def channel_axis(self) -> int:
        """Axis of the weight that holds the output channels."""
        return 1 if "Transpose" in type(self.float_layer).__name__ else 0

    def forward(self, x: Tensor) -> Tensor:
        return OPERATIONS[type(self.float_layer)](self.float_layer, x, self.weight, self.bias)

    def extra_repr(self) -> str:
        grid = self.weight_grid
        scales = self.weight_scale.numel()
        return f"weight: {grid.bits} bits in [{grid.qmin}, {grid.qmax}], scales: {scales}"

    def _scale_per_channel(self, scale: Tensor) -> Tensor | None:
        """Weight scales as [channels], or None where a channel has several (per group)."""
        channels = self.float_layer.weight.shape[self.channel_axis]
        if scale.dim() == 0:
            return scale.expand(channels)
        per_channel = scale.movedim(self.channel_axis, 0).flatten(1)
        if per_channel.shape[1] != 1 or channels % per_channel.shape[0]:
            return None
        return per_channel.flatten().repeat_interleave(channels // per_channel.shape[0])

    def _make_room_for_bias(self, qparams: QParams, input_qparams: QParams) -> QParams:
        bias = self.float_layer.bias
        scale = self._scale_per_channel(qparams.scale)
        if bias is None or scale is None or len(scale) != len(bias):
            return qparams
        needed = bias.detach().double().abs() / (input_qparams.scale.double() * BIAS_LIMIT)
        self.raised_channels = int((needed > scale.double()).sum())
        if not self.raised_channels:
            return qparams
        if qparams.scale.dim() == 0:
            scale = torch.maximum(qparams.scale.double(), needed.max()) * (1 + 2**-20)
        else:
            shape = [1] * self.float_layer.weight.dim()
            shape[self.channel_axis] = -1
            raised = needed.reshape(shape) * (1 + 2**-20)
            scale = torch.maximum(qparams.scale.double(), raised)
        return QParams(scale.float(), qparams.zero_point, qparams.grid, qparams.block_size)

    def _quantize_bias(self, input_qparams: QParams) -> None:
        scale = self._scale_per_channel(self.weight_scale)
        bias = self.float_layer.bias.detach()
        if scale is None or len(scale) != len(bias):
            return  # per-group weights: no single accumulator scale, the bias is added in float
        self.bias_scale = input_qparams.scale * scale  # float32, as an integer runtime computes it
        codes = torch.round(bias.double() / self.bias_scale.double())
        self.bias_codes = codes.clamp(-INT32_MAX, INT32_MAX).to(torch.int32)

    def _check_accumulator(self, input_qparams: QParams) -> None:
        """|sum of products + bias| <= sum |w| * max |x| + |bias| must fit int32."""
        grid = input_qparams.grid
        zero_point = int(input_qparams.zero_point)
        largest_input = max(abs(grid.qmin - zero_point), abs(grid.qmax - zero_point))
        codes = self.weight_codes.movedim(self.channel_axis, 0).flatten(1).double()
        bound = codes.abs().sum(1).max().item() * largest_input
        if self.bias_codes is not None:
            bound += self.bias_codes.double().abs().max().item()
        if bound > INT32_MAX:
            raise UnsupportedError(
                f"{self.name}: a sum of products can reach {bound:.3g}, beyond int32. Use fewer "
                "bits for its weights or inputs, or keep it in floating point (float_layers)."
            )


def weight_block_size(layer: nn.Module, granularity: str | int) -> tuple[int, ...] | None:
    """The ``block_size`` of affine.py for "per_tensor", "per_channel", or a group length.

    A group runs along the input channels of a Linear or Conv; one longer than the row is the row.
    Raises QuantizationError for another word, and where a group does not divide the number of input
    channels (the error names both).
    """
    if granularity == "per_tensor":
        return None
    axis = 1 if "Transpose" in type(layer).__name__ else 0
    if granularity == "per_channel":
        return tuple(1 if d == axis else -1 for d in range(layer.weight.dim()))
    if isinstance(granularity, int) and not isinstance(granularity, bool) and granularity > 0:
        inputs = layer.weight.shape[1 - axis]
        if granularity >= inputs:  # one group covers the row
            return weight_block_size(layer, "per_channel")
        if inputs % granularity:
            raise QuantizationError(
                f"groups of {granularity} do not divide {inputs} input channels; "
                f"use a divisor of {inputs}, or 'per_channel' for this layer."
            )
        return tuple(
            1 if d == axis else granularity if d == 1 - axis else -1
            for d in range(layer.weight.dim())
        )
    raise QuantizationError(
        f"granularity must be 'per_tensor', 'per_channel' or a group length, got {granularity!r}."
    )


def weight_qparams(
    layer: nn.Module, grid: IntGrid, granularity: str | int, symmetric: bool = True
) -> QParams:
    """Scale and zero point of a layer's weight from its own extremes: no data is needed."""
    block_size = weight_block_size(layer, granularity)
    low, high = block_minmax(layer.weight.detach(), block_size)
    return choose_qparams(low, high, grid, symmetric=symmetric, block_size=block_size)
