"""A layer that rounds its input at run time, and what chooses the scale. Chapter 07."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ptq_course.errors import QuantizationError, UnsupportedError
from ptq_course.graph.layer_types import known_type, row_repeats
from ptq_course.grids.affine import (
    IntGrid,
    QParams,
    QTensor,
    block_minmax,
    choose_qparams,
    fake_quantize,
    quantize,
)
from ptq_course.grids.exact import exact_product
from ptq_course.grids.int32_bound import fits_int32, largest, less_zero_point, sum_range
from ptq_course.simulation.kept import Kept
from ptq_course.simulation.layers import LayerStandIn, QuantizedLayer, check_call

GRANULARITIES = ("per_tensor", "per_token")


def check_granularity(granularity: str) -> None:
    """Raise QuantizationError for a granularity of activations that is none."""
    if granularity not in GRANULARITIES:
        raise QuantizationError(
            f"granularity must be 'per_tensor' or 'per_token', got {granularity!r}; weights have "
            "their own, QConfig.weight_granularity."
        )


class DynamicQuantizer(nn.Module):
    """Chooses scale and zero point from each tensor that it is given, and rounds to them.

    granularity: "per_tensor", or "per_token": one scale for each block of the last
    ``token_dimensions`` dimensions. Raises QuantizationError, with the layer's ``name``, for NaN,
    infinity, or an empty input.
    """

    def __init__(
        self, grid: IntGrid, symmetric: bool, granularity: str, token_dimensions: int = 1,
        name: str = "",
    ) -> None:  # fmt: skip
        super().__init__()
        check_granularity(granularity)
        self.grid, self.symmetric, self.granularity = grid, symmetric, granularity
        self.token_dimensions, self.name = token_dimensions, name

    @property
    def largest(self) -> int:
        """Bound of |code - zero point|, whatever the zero point will be."""
        if self.symmetric:
            return max(-self.grid.qmin, self.grid.qmax)
        return self.grid.qmax - self.grid.qmin

    def qparams(self, x: Tensor) -> QParams:
        """Scale and zero point from the smallest and largest value of x, or of each token of x."""
        block_size = None
        if self.granularity == "per_token":
            whole = min(self.token_dimensions, x.dim())
            block_size = (1,) * (x.dim() - whole) + (-1,) * whole
        try:
            low, high = block_minmax(x.detach(), block_size)
            return choose_qparams(low, high, self.grid, self.symmetric, block_size)
        except QuantizationError as error:
            raise type(error)(f"layer {self.name!r}, its input at run time: {error}") from error

    def codes(self, x: Tensor) -> QTensor:
        """The integers that stand for x, with the scales that were just chosen."""
        qparams = self.qparams(x)
        return QTensor(quantize(x, qparams), qparams)

    def forward(self, x: Tensor) -> Tensor:
        return fake_quantize(x, self.qparams(x))

    def extra_repr(self) -> str:
        kind = "symmetric" if self.symmetric else "affine"
        return f"{self.granularity}, {kind}, bits={self.grid.bits}"


class DynamicLayer(LayerStandIn):
    """A layer that rounds its input at run time, multiplies integers, and returns floating point.

        codes of the input  ->  int32 sums of products  ->  times s_x * s_w, plus the float bias

    ``quantized`` is the layer with integer weights, ``quantizer`` rounds its input. With weights
    per group each group has an int32 sum of its own, and these are added in floating point.
    Raises UnsupportedError, naming the layer, where a sum could exceed int32, for codebooks, and
    for weights per group in a convolution with groups.
    """

    stands_for = "quantized"
    rounds_input = True  # asked for by `graph.recurrent`

    def __init__(self, quantized: QuantizedLayer, quantizer: DynamicQuantizer) -> None:
        super().__init__()
        self.quantized, self.quantizer, self.name = quantized, quantizer, quantized.name
        self._kept = Kept()
        if quantized.weight_qparams is None:
            raise UnsupportedError(
                f"layer {self.name!r}: {quantized.weight_qtensor.decoded_by} has no integer "
                "product; use weights_only=True."
            )
        factors, inputs = less_zero_point(quantized.weight_qtensor), quantizer.largest
        sums = sum_range(factors, (-inputs, inputs), axis=quantized.channel_axis)
        self.bound = largest(sums)
        if not fits_int32(sums):
            raise UnsupportedError(
                f"layer {self.name!r}: a sum of products can reach {self.bound:.3g}, beyond int32. "
                "Use fewer bits, or keep it in floating point (float_layers)."
            )
        if len(self._weight_scales()) > 1 and getattr(quantized.float_layer, "groups", 1) > 1:
            raise UnsupportedError(
                f"layer {self.name!r}: weights per group in a convolution with groups have no "
                "dynamic form here; use weight_granularity='per_channel'."
            )

    @property
    def weight(self) -> Tensor:
        return self.quantized.weight

    @property
    def bias(self) -> Tensor | None:
        return self.quantized.bias

    def forward(self, input: Tensor, **options: object) -> Tensor:
        check_call(self.quantized.float_layer, self.name, input, options)
        if input.numel() == 0:  # no row, so nothing to round
            return self.quantized(input)
        x, given = input, self.quantizer.codes(input)
        # Parts of the input channels that share a weight scale; one part unless there are groups.
        weights, scales = self._kept.get("parts", self.quantized.made_from, self._parts)
        integers = less_zero_point(given)
        input_scale = given.require_qparams().scale
        inputs = integers.chunk(len(scales), dim=-self.quantizer.token_dimensions)
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        output = torch.zeros((), dtype=dtype, device=x.device)
        for part, weight, weight_scale in zip(inputs, weights, scales, strict=True):
            sums = self.sums(part, weight)
            output = output + sums.to(dtype) * (input_scale * weight_scale).to(dtype)
        if self.quantized.bias is not None:
            output = output + self._per_channel(self.quantized.bias.to(dtype))
        return output.to(x.dtype)

    def sums(self, x: Tensor, weight: Tensor) -> Tensor:
        """int32 sums of products of integers that float32 tensors hold. Exact.

        In float32 where that is exact, else in float64 (`exact.exact_product`).
        """
        layer = self.quantized.float_layer
        operation = known_type(layer).compute
        return exact_product(
            lambda given, w: operation(layer, given, w, None),
            x, weight, self.bound, self.quantizer.largest,
        )  # fmt: skip

    def simulate(self, x: Tensor) -> Tensor:
        """The layer by fake quantization: equal to `forward` up to floating-point rounding."""
        return self.quantized(self.quantizer(x))

    def _parts(self) -> tuple[tuple[Tensor, ...], list[Tensor]]:
        """The weight's integers, cut into input channels that share a scale, and these scales."""
        scales, axis = self._weight_scales(), self.quantized.channel_axis
        integers = less_zero_point(self.quantized.weight_qtensor)
        return integers.chunk(len(scales), dim=1 - axis), scales

    def _weight_scales(self) -> list[Tensor]:
        """Weight scales that broadcast against the output: one tensor for each group of inputs."""
        scale = self.quantized.weight_qtensor.require_qparams().scale
        axis = self.quantized.channel_axis
        if scale.dim() == 0:
            return [scale]
        by_row = scale.movedim(axis, 0).flatten(1)
        repeats = row_repeats(self.quantized.float_layer)
        return [self._per_channel(column.repeat(repeats)) for column in by_row.unbind(1)]

    def _per_channel(self, values: Tensor) -> Tensor:
        """[channels], shaped to broadcast against the output."""
        return values.reshape(-1, *(1,) * (self.quantizer.token_dimensions - 1))
