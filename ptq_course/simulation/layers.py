"""Quantized layers: a float layer with integer weights, and the module that rounds activations.

Chapters 05 and 06. Everything here *simulates*: it computes in floating point with values that lie
exactly on the integer grids ("fake quantization"). Chapter 08's `integer/` computes the same
network with integers only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, cast, overload

import torch
from torch import Tensor, nn

from ptq_course.errors import QuantizationError, UnsupportedError, whole
from ptq_course.graph.layer_types import bias_of, channel_axis, known_type, layer_type, weight_of
from ptq_course.grids.affine import (
    AnyGrid,
    AnyQParams,
    IntGrid,
    QParams,
    QTensor,
    block_minmax,
    choose_qparams,
    fake_quantize,
    quantize,
)
from ptq_course.grids.float_scales import FloatQParams
from ptq_course.grids.floats import FloatFormat, FloatGrid, format_name
from ptq_course.ranges.weights import mse_range
from ptq_course.simulation.bias import (
    check_accumulator,
    quantize_bias,
    room_for_bias,
    scale_per_output,
)
from ptq_course.simulation.kept import Kept
from ptq_course.simulation.qconfig import GROUP_LENGTH


class ActivationQuantizer(nn.Module):
    """Rounds a tensor to the grid of its QParams: one instance for each tensor value, ``name``."""

    scale: Tensor
    zero_point: Tensor | None  # None: a grid of floats has none

    def __init__(self, qparams: AnyQParams, *, name: str = "") -> None:
        super().__init__()
        self.name = name
        self.register_buffer("scale", qparams.scale)
        zero_point = None if isinstance(qparams, FloatQParams) else qparams.zero_point
        self.register_buffer("zero_point", zero_point)
        self.grid = qparams.grid
        self.block_size = qparams.block_size
        self._kept = Kept()

    @property
    def qparams(self) -> AnyQParams:
        made_from = self._buffers["scale"], self._buffers["zero_point"], self.grid, self.block_size
        return self._kept.get("qparams", made_from, self._make_qparams)

    def _make_qparams(self) -> AnyQParams:
        if isinstance(self.grid, FloatGrid):
            return FloatQParams(self.scale, self.grid, self.block_size)
        assert self.zero_point is not None
        return QParams(self.scale, self.zero_point, self.grid, self.block_size)

    def forward(self, x: Tensor) -> Tensor:
        return fake_quantize(x, self.qparams)

    def extra_repr(self) -> str:
        grid = self.grid
        if self.scale.dim():
            return f"{self.scale.numel()} scales, bits={grid.bits}"
        if isinstance(qparams := self.qparams, FloatQParams):
            return f"scale={self.scale.item():.6g}, {format_name(qparams)}"
        assert self.zero_point is not None
        return (
            f"scale={self.scale.item():.6g}, zero_point={self.zero_point.item()}, bits={grid.bits}"
        )


class LayerStandIn(nn.Module):
    """Stands where a layer of the user's model stood, whose code may ask for its settings.

    ``fc.in_features``, ``conv.padding`` and the like are answered by the submodule that
    ``stands_for`` names. Tensors are not: which weight would it be?
    """

    stands_for: ClassVar[str]

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            layer = vars(self).get("_modules", {}).get(self.stands_for)
            if layer is None or name.startswith("_"):
                raise
            value = getattr(layer, name)
            if isinstance(value, (Tensor, nn.Module)):
                raise
            return value


class QuantizedLayer(LayerStandIn):
    """A Conv, ConvTranspose, Linear or Embedding with integer weight codes.

    ``layer`` is the float layer (kept unchanged, for comparison); ``weight`` holds the codes and
    what decodes them, however they were found: rounding (`from_float`), a file, AdaRound, GPTQ, a
    codebook. On a grid of floats the codes are bit patterns. ``bias_codes`` are int32 [channels],
    their ``bias_scale`` float32 [channels]; without them the bias stays in floating point
    (weight-only, per-group, floats).
    Raises QuantizationError where codes and layer differ in shape, or its weight is not finite.
    """

    stands_for = "float_layer"
    weight_codes: Tensor

    def __init__(
        self, layer: nn.Module, weight: QTensor, bias_codes: Tensor | None = None,
        bias_scale: Tensor | None = None, *, name: str = "",
    ) -> None:  # fmt: skip
        super().__init__()
        check_layer(layer, name)
        if weight.shape != weight_of(layer).shape:
            raise QuantizationError(
                f"{name}: the codes have shape {tuple(weight.shape)}, the weight of the layer has "
                f"{tuple(weight_of(layer).shape)}."
            )
        self.name = name
        self.float_layer = layer
        self.raised_channels = 0  # scales that `from_float` enlarged for the bias
        for buffer in ("weight_codes", "codebook", "weight_scale", "weight_zero_point",
                       "weight_tensor_scale"):  # fmt: skip
            self.register_buffer(buffer, None)
        self.put_weight(weight)
        self.register_buffer("bias_codes", bias_codes)
        self.register_buffer("bias_scale", bias_scale)
        self._kept = Kept()

    def put_weight(self, weight: QTensor) -> None:
        """Replace the codes of the weight, and what decodes them; the bias stays as it is."""
        q = weight.qparams
        floats = q if isinstance(q, FloatQParams) else None
        buffers = {
            "weight_codes": weight.codes,
            "codebook": weight.codebook,
            "weight_scale": None if q is None else q.scale,
            "weight_zero_point": q.zero_point if isinstance(q, QParams) else None,
            "weight_tensor_scale": None if floats is None else floats.tensor_scale,
        }
        for name, values in buffers.items():
            setattr(self, name, values)
        self.weight_grid = None if q is None else q.grid
        self.weight_block_size = None if q is None else q.block_size
        self.weight_row_axis = None if floats is None else floats.row_axis
        self.weight_scale_format = "float32" if floats is None else floats.scale_format

    @classmethod
    def from_float(
        cls, layer: nn.Module, weight_qparams: AnyQParams, input_qparams: AnyQParams | None = None,
        *, name: str = "",
    ) -> QuantizedLayer:  # fmt: skip
        """Round a float layer: the weight with ``weight_qparams``, the bias with s_x * s_w.

        ``input_qparams`` (per-tensor) belong to the layer's input; without them, and where either
        grid is one of floats, the bias stays in floating point. A channel so quiet that its bias
        would not fit int32 gets a larger weight scale: ``raised_channels`` counts them. Raises
        UnsupportedError where the sum of products itself could overflow int32.
        """
        check_layer(layer, name)
        bias_codes, bias_scale = None, None
        if not isinstance(weight_qparams, QParams) or not isinstance(input_qparams, QParams):
            weight = QTensor(quantize(weight_of(layer).detach(), weight_qparams), weight_qparams)
            return cls(layer, weight, name=name)
        weight_qparams, raised = room_for_bias(layer, weight_qparams, input_qparams)
        weight = QTensor(quantize(weight_of(layer).detach(), weight_qparams), weight_qparams)
        scale = scale_per_output(layer, weight_qparams.scale)
        bias = bias_of(layer)
        # Per-group weights have no single accumulator scale: their bias is added in float.
        if bias is not None and scale is not None:
            bias_codes, bias_scale = quantize_bias(bias.detach(), input_qparams.scale, scale)
        quantized = cls(layer, weight, bias_codes, bias_scale, name=name)
        quantized.raised_channels = raised
        check_accumulator(name, layer, weight, bias_codes, input_qparams)
        return quantized

    @property
    def weight_qparams(self) -> QParams | None:
        """Scale and zero point of integer codes; None where they are a codebook's or of floats."""
        qparams = self.weight_qtensor.qparams
        return qparams if isinstance(qparams, QParams) else None

    def require_integers(self, who: str) -> QParams:
        """`weight_qparams`; else UnsupportedError, naming the layer, its codes and ``who`` asks."""
        qparams = self.weight_qparams
        if qparams is None:
            found = self.weight_qtensor.decoded_by
            before = (
                "; do it before clustering"
                if self.codebook is not None
                else (", or plain rounding to the format (convert() or quantize_weights())")
            )
            raise UnsupportedError(
                f"layer {self.name!r}: {found} decodes its weight, and {who} needs integers with a "
                f"scale. Use integer weights (weight_bits, without weight_format){before}."
            )
        return qparams

    @property
    def weight_qtensor(self) -> QTensor:
        """The weight's codes with what decodes them."""
        return self._kept.get("weight_qtensor", self.made_from, self._make_qtensor)

    @property
    def weight(self) -> Tensor:
        """The weight as the integers represent it (floating point, on the grid)."""
        return self._decoded()[0]

    @property
    def bias(self) -> Tensor | None:
        """The bias as the integers represent it; the float bias in weight-only quantization."""
        decoded = self._decoded()[1]
        return bias_of(self.float_layer) if decoded is None else decoded

    @property
    def made_from(self) -> tuple:
        """What weight and bias are decoded from: when one of these changes, they do."""
        dtype = cast(nn.Module, self._modules["float_layer"]).weight.dtype  # the quick way to it
        grid = self.weight_grid, self.weight_block_size, self.weight_row_axis
        return (*self._buffers.values(), *grid, self.weight_scale_format, dtype)

    def _decoded(self) -> tuple[Tensor, Tensor | None]:
        return self._kept.get("decoded", self.made_from, self._decode)

    def _decode(self) -> tuple[Tensor, Tensor | None]:
        dtype = weight_of(self.float_layer).dtype
        weight, bias = self.weight_qtensor.dequantize(dtype), None
        if self.bias_codes is not None and self.bias_scale is not None:
            bias = (self.bias_codes.double() * self.bias_scale.double()).to(dtype)
        return weight, bias

    def _make_qtensor(self) -> QTensor:
        scale, zero_point, grid = self.weight_scale, self.weight_zero_point, self.weight_grid
        if isinstance(grid, FloatGrid):
            assert scale is not None
            floats = FloatQParams(
                scale, grid, self.weight_block_size, self.weight_row_axis,
                self.weight_scale_format, self.weight_tensor_scale,
            )  # fmt: skip
            return QTensor(self.weight_codes, floats)
        if scale is None or zero_point is None or grid is None:
            return QTensor(self.weight_codes, None, self.codebook)
        return QTensor(self.weight_codes, QParams(scale, zero_point, grid, self.weight_block_size))

    @property
    def channel_axis(self) -> int:
        """Axis of the weight that holds the output channels."""
        return channel_axis(self.float_layer)

    def forward(self, input: Tensor, **options: object) -> Tensor:
        layer, (weight, bias) = self.float_layer, self._decoded()
        check_call(layer, self.name, input, options)
        bias = bias_of(layer) if bias is None else bias
        return known_type(layer).compute(layer, input, weight, bias)

    def extra_repr(self) -> str:
        if self.codebook is not None:
            return f"weight: codebook of {len(self.codebook)} values"
        if isinstance(floats := self.weight_qtensor.qparams, FloatQParams):
            return f"weight: {format_name(floats)}, scales: {floats.scale.numel()}"
        qparams = self.weight_qtensor.require_qparams()
        grid, scales = qparams.grid, qparams.scale.numel()
        return f"weight: {grid.bits} bits in [{grid.qmin}, {grid.qmax}], scales: {scales}"


class Preceded(LayerStandIn):
    """A layer whose input goes through ``before`` first; weight and bias are the layer's."""

    stands_for = "layer"

    def __init__(self, before: nn.Module, layer: nn.Module) -> None:
        super().__init__()
        self.before = before
        self.layer = layer

    @property
    def weight(self) -> Tensor:
        return weight_of(self.layer)

    @property
    def bias(self) -> Tensor | None:
        return bias_of(self.layer)

    def forward(self, input: Tensor, **options: object) -> Tensor:
        return self.layer(self.before(input), **options)


def check_call(layer: nn.Module, name: str, x: Tensor, options: Mapping[str, object]) -> None:
    """Raise UnsupportedError where a layer is called in a way that its integer form does not know.

    Settings given with the call (a transposed convolution's output_size), and a batch norm folded
    into a Linear layer whose input has more than two dimensions: there it normalized another axis.
    """
    if any(value is not None for value in options.values()):
        raise UnsupportedError(
            f"layer {name!r} is called with {', '.join(options)}, which has no integer form; keep "
            "it in floating point (float_layers)."
        )
    rows = known_type(layer).token_dimensions == 1
    if rows and hasattr(layer, "folded_gamma") and x.dim() != 2:
        raise UnsupportedError(
            f"layer {name!r}: the batch norm behind it was folded, which needs an input [N, "
            f"features], got {tuple(x.shape)}. There it normalizes the second dimension; transpose "
            "before it, or use a 1x1 convolution."
        )


def check_layer(layer: nn.Module, name: str = "") -> None:
    """Raise where a layer has no integer form, or its weight or bias is not finite."""
    if layer_type(layer) is None:
        raise UnsupportedError(
            f"{name or 'layer'}: {type(layer).__name__} has no integer form here."
        )
    for what in ("weight", "bias"):
        values = getattr(layer, what, None)
        if values is not None and not torch.isfinite(values).all():
            raise QuantizationError(
                f"{name}: the {what} holds NaN or infinity; check the checkpoint."
            )


def weight_block_size(layer: nn.Module, granularity: str | int) -> tuple[int, ...] | None:
    """The ``block_size`` of affine.py for "per_tensor", "per_channel", or a group length.

    A group runs along the input channels of a Linear or Conv; one longer than the row is the row.
    Raises QuantizationError for another word, and where a group does not divide the number of input
    channels (the error names both).
    """
    if granularity == "per_tensor":
        return None
    axis = channel_axis(layer)
    if granularity == "per_channel":
        return tuple(1 if d == axis else -1 for d in range(weight_of(layer).dim()))
    length, inputs = whole(GROUP_LENGTH, granularity, 1), weight_of(layer).shape[1 - axis]
    if length >= inputs:  # one group covers the row
        return weight_block_size(layer, "per_channel")
    if inputs % length:
        raise QuantizationError(
            f"groups of {length} do not divide {inputs} input channels; use a divisor of {inputs}, "
            "or 'per_channel' for this layer."
        )
    return tuple(
        1 if d == axis else length if d == 1 - axis else -1 for d in range(weight_of(layer).dim())
    )


@overload
def weight_qparams(
    layer: nn.Module, grid: IntGrid, granularity: str | int, symmetric: bool = True,
    weight_range: str = "minmax",
) -> QParams: ...  # fmt: skip
@overload
def weight_qparams(
    layer: nn.Module, grid: AnyGrid, granularity: str | int, symmetric: bool = True,
    weight_range: str = "minmax",
) -> AnyQParams: ...  # fmt: skip
def weight_qparams(
    layer: nn.Module, grid: AnyGrid, granularity: str | int, symmetric: bool = True,
    weight_range: str = "minmax",
) -> AnyQParams:  # fmt: skip
    """Scale and zero point of a layer's weight by `QConfig.weight_range`: no data is needed.

    The blocks of a format that has its own run along the rows of the weight, one row a channel.
    """
    weight = weight_of(layer).detach()
    if isinstance(grid, FloatFormat) and grid.block is not None:
        return grid.choose(weight, row_axis=channel_axis(layer))
    block_size = weight_block_size(layer, granularity)
    if isinstance(grid, FloatFormat):
        return grid.choose(weight, block_size)
    if weight_range == "mse":
        low, high = mse_range(weight, grid, symmetric, block_size)
    else:
        low, high = block_minmax(weight, block_size)
    return choose_qparams(low, high, grid, symmetric=symmetric, block_size=block_size)
