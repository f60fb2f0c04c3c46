"""An integer layer: codes in, int32 accumulators inside, codes out.

Chapter 08. Every operation of an integer network does two things: `accumulate` computes int32 from
codes, and ``finish`` turns int32 into the next codes (`Requantize`) or, at the end of the network,
into real numbers (`Dequantize`). Which sums can occur is known before any picture is seen.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ptq_course.graph.layer_types import known_type
from ptq_course.grids.affine import QParams
from ptq_course.grids.int32_bound import Range, differences, sum_ranges
from ptq_course.integer.finish import Dequantize, Requantize
from ptq_course.integer.operations import int_conv2d, int_linear
from ptq_course.simulation.layers import QuantizedLayer


class IntegerOp(nn.Module):
    """Base: ``accumulate`` integers, then ``finish``. ``name`` is the place in the user's model.

    acc_scale: real value of one unit of the accumulator, float64, 0-d or [channels]. It is used
    only to choose multipliers.
    """

    axis = 1  # of the accumulator, which holds the output channels

    def __init__(self, name: str, acc_scale: Tensor | float) -> None:
        super().__init__()
        self.name = name
        self.acc_scale = torch.as_tensor(acc_scale, dtype=torch.float64)
        self.finish: Requantize | Dequantize = Dequantize(self.acc_scale)

    def accumulate(self, *codes: Tensor) -> Tensor:
        raise NotImplementedError

    def accumulator_range(self) -> Range:
        """Smallest and largest integer that any partial sum can take, for every possible input."""
        raise NotImplementedError

    @property
    def terms(self) -> int:
        """How many products or codes one output adds up."""
        return 1

    @property
    def kind(self) -> str:
        return type(self).__name__.removeprefix("Integer")

    def forward(self, *codes: Tensor) -> Tensor:
        return self.finish(self.accumulate(*codes), self.axis)

    def __repr__(self) -> str:
        return f"{self.kind} {self.extra_repr()}".rstrip() + f" -> int32 -> {self.finish!r}"


class IntegerLayer(IntegerOp):
    """A Linear, Conv1d or Conv2d: int8 weight codes, int32 bias, the zero point of its input."""

    weight_codes: Tensor
    weight_zero_points: Tensor | None
    bias_codes: Tensor | None

    def __init__(self, layer: QuantizedLayer, source: QParams) -> None:
        weight = layer.weight_qtensor.require_qparams()
        acc_scale = source.scale.double() * weight.scale.double().flatten()
        if weight.block_size is None:
            acc_scale = acc_scale.reshape(())
        super().__init__(layer.name, acc_scale)
        self.layer_type = known_type(layer.float_layer)
        self.register_buffer("weight_codes", layer.weight_codes.to(torch.int8))
        zero_points = weight.zero_point.flatten().expand(len(layer.weight_codes)).clone()
        self.register_buffer("weight_zero_points", zero_points if bool(zero_points.any()) else None)
        self.register_buffer("bias_codes", layer.bias_codes)
        self.input_zero_point = int(source.zero_point)
        self.input_range = differences(source)
        self.axis = -self.layer_type.token_dimensions
        if isinstance(layer.float_layer, nn.Conv1d | nn.Conv2d):
            self.settings = _conv_settings(layer.float_layer)

    def accumulate(self, xq: Tensor) -> Tensor:
        given = (self.weight_codes, self.input_zero_point, self.bias_codes, self.weight_zero_points)
        if self.layer_type.module is nn.Linear:
            return int_linear(xq, *given)
        if self.layer_type.module is nn.Conv1d:  # a picture of height 1
            weight = given[0].unsqueeze(2)
            return int_conv2d(xq.unsqueeze(2), weight, *given[1:], **self.settings).squeeze(2)
        return int_conv2d(xq, *given, **self.settings)

    @property
    def terms(self) -> int:
        return self.weight_codes[0].numel()

    @property
    def kind(self) -> str:
        return self.layer_type.module.__name__

    def accumulator_range(self) -> Range:
        low, high = self.ranges_by_channel()
        return int(low.min()), int(high.max())

    def ranges_by_channel(self) -> tuple[Tensor, Tensor]:
        """int64 [channels]: the lowest and highest sums, for every possible input."""
        factors = self.weight_codes.flatten(1)
        if self.weight_zero_points is not None:
            factors = factors.int() - self.weight_zero_points.unsqueeze(1)
        return sum_ranges(factors, self.input_range, self.bias_codes)

    def extra_repr(self) -> str:
        shape = "x".join(str(n) for n in self.weight_codes.shape)
        return f"{shape} int8"


def _conv_settings(layer: nn.Conv1d | nn.Conv2d) -> dict[str, Any]:
    """Keyword arguments of `int_conv2d` for a Conv1d or Conv2d (padding "same" included)."""
    sides = tuple(layer._reversed_padding_repeated_twice)
    pairs = {"stride": layer.stride, "dilation": layer.dilation}
    if isinstance(layer, nn.Conv1d):
        sides = (*sides, 0, 0)
        pairs = {key: (1, *value) for key, value in pairs.items()}
    return {**pairs, "padding": sides, "groups": layer.groups}
