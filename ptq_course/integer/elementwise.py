"""Additions, concatenations, products and changes of scale: operations without a weight.

Chapter 08.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ptq_course.grids.affine import QParams
from ptq_course.grids.int32_bound import Range, differences, largest
from ptq_course.integer.layers import IntegerOp
from ptq_course.integer.operations import LEFT_SHIFT, common_unit, to_multiplier, to_unit


class ToUnit(nn.Module):
    """Codes of one scale to int32 multiples of a common unit, with 20 bits of fraction."""

    multiplier: Tensor
    shift: Tensor

    def __init__(self, source: QParams, unit: float) -> None:
        super().__init__()
        multiplier, shift = to_multiplier(source.scale.double().item() / unit)
        self.register_buffer("multiplier", multiplier)
        self.register_buffer("shift", shift)
        self.zero_point = int(source.zero_point)

    def forward(self, codes: Tensor) -> Tensor:
        return to_unit(codes, self.zero_point, self.multiplier, self.shift)


class OnOneUnit(IntegerOp):
    """Base: all inputs come to the largest of their scales, with 20 bits of fraction."""

    def __init__(self, name: str, sources: Sequence[QParams]) -> None:
        unit = common_unit(sources)
        super().__init__(name, unit * 2.0**-LEFT_SHIFT)
        self.bring = nn.ModuleList(ToUnit(q, unit) for q in sources)
        self.sources = tuple(sources)

    @property
    def bounds(self) -> list[int]:
        """The largest absolute value of each input, in the common unit."""
        return [largest(differences(q)) << LEFT_SHIFT for q in self.sources]

    def brought(self, codes: Sequence[Tensor]) -> list[Tensor]:
        return [bring(part) for bring, part in zip(self.bring, codes, strict=True)]


class IntegerAdd(OnOneUnit):
    """a + b, or a - b."""

    def __init__(self, name: str, sources: Sequence[QParams], subtract: bool = False) -> None:
        super().__init__(name, sources)
        self.subtract = subtract

    def accumulate(self, *codes: Tensor) -> Tensor:
        a, b = self.brought(codes)
        return a - b if self.subtract else a + b

    @property
    def terms(self) -> int:
        return 2

    def accumulator_range(self) -> Range:
        return -sum(self.bounds), sum(self.bounds)


class IntegerConcat(OnOneUnit):
    """torch.cat along ``dim``."""

    def __init__(self, name: str, sources: Sequence[QParams], dim: int) -> None:
        super().__init__(name, sources)
        self.dim = dim

    def accumulate(self, *codes: Tensor) -> Tensor:
        return torch.cat(self.brought(codes), dim=self.dim)

    def accumulator_range(self) -> Range:
        return -max(self.bounds), max(self.bounds)


class IntegerMul(IntegerOp):
    """a * b of two activations, with broadcasting: (a - za) * (b - zb), scale s_a * s_b."""

    def __init__(self, name: str, sources: Sequence[QParams]) -> None:
        a, b = sources
        super().__init__(name, a.scale.double() * b.scale.double())
        self.sources = (a, b)

    def accumulate(self, a: Tensor, b: Tensor) -> Tensor:
        za, zb = (int(q.zero_point) for q in self.sources)
        return (a.int() - za) * (b.int() - zb)

    def accumulator_range(self) -> Range:
        bound = math.prod(largest(differences(q)) for q in self.sources)
        return -bound, bound


class IntegerRescale(IntegerOp):
    """The same values on another grid, for example a ReLU that no layer could absorb."""

    def __init__(self, name: str, source: QParams) -> None:
        super().__init__(name, source.scale.double())
        self.source = source

    def accumulate(self, codes: Tensor) -> Tensor:
        return codes.int() - int(self.source.zero_point)

    def accumulator_range(self) -> Range:
        return differences(self.source)


class IntegerMaxPool(nn.Module):
    """Max pooling of codes over the last ``dims`` dimensions, one after the other.

    A maximum over a window is the maximum of its rows' maxima. PyTorch's own kernels know integers
    in two dimensions only, and its channels-last kernel fails on int8.
    settings: kernel_size, stride, padding, dilation, ceil_mode of nn.MaxPool2d; or output_size.
    """

    def __init__(self, dims: int, **settings: Any) -> None:
        super().__init__()
        self.dims, self.settings = dims, settings

    def forward(self, codes: Tensor) -> Tensor:
        for i in range(self.dims):
            axis = codes.dim() - self.dims + i
            each = {
                name: value[i] if isinstance(value, (tuple, list)) else value
                for name, value in self.settings.items()
            }
            pool = _adaptive_max if "output_size" in each else _window_max
            codes = pool(codes.movedim(axis, -1), **each).movedim(-1, axis)
        return codes


def _window_max(
    x: Tensor, kernel_size: int, stride: int | None = None, padding: int = 0, dilation: int = 1,
    ceil_mode: bool = False,
) -> Tensor:  # fmt: skip
    """Largest code of each window of the last dimension; a border never wins."""
    step, span = stride or kernel_size, dilation * (kernel_size - 1) + 1
    free = x.shape[-1] + 2 * padding - span
    count = (-(-free // step) if ceil_mode else free // step) + 1
    if (count - 1) * step >= x.shape[-1] + padding:  # a window may not start behind the input
        count -= 1
    right = (count - 1) * step + span - x.shape[-1] - padding
    x = nn.functional.pad(x, (padding, right), value=torch.iinfo(x.dtype).min)
    return x.unfold(-1, span, step)[..., ::dilation].amax(-1)


def _adaptive_max(x: Tensor, output_size: int | None = None) -> Tensor:
    """Largest code of each of ``output_size`` parts of the last dimension, which may overlap."""
    size, parts = x.shape[-1], output_size or x.shape[-1]
    bounds = [(i * size // parts, -(-(i + 1) * size // parts)) for i in range(parts)]
    return torch.stack([x[..., first:last].amax(-1) for first, last in bounds], -1)


class IntegerPad(nn.Module):
    """Zero padding of codes: the border is the zero point."""

    def __init__(self, padding: Sequence[int], source: QParams) -> None:
        super().__init__()
        self.padding = tuple(padding)
        self.zero_point = int(source.zero_point)

    def forward(self, codes: Tensor) -> Tensor:
        return nn.functional.pad(codes, self.padding, value=self.zero_point)
