"""Additions, concatenations, products and changes of scale: operations without a weight.

Chapter 08.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ptq_course.grids.affine import QParams
from ptq_course.integer.layers import IntegerOp, Range
from ptq_course.integer.operations import LEFT_SHIFT, common_unit, to_multiplier, to_unit


def differences(qparams: QParams) -> Range:
    """Smallest and largest code - zero_point."""
    zero_point = int(qparams.zero_point)
    return qparams.grid.qmin - zero_point, qparams.grid.qmax - zero_point


def largest(qparams: QParams) -> int:
    """Largest |code - zero_point|."""
    return max(abs(n) for n in differences(qparams))


class ToUnit(nn.Module):
    """Codes of one scale to int32 multiples of a common unit, with 20 bits of fraction."""

    def __init__(self, source: QParams, unit: float) -> None:
        super().__init__()
        multiplier, shift = to_multiplier(source.scale.double().item() / unit)
        self.register_buffer("multiplier", multiplier)
        self.register_buffer("shift", shift)
        self.zero_point = int(source.zero_point)

    def forward(self, codes: Tensor) -> Tensor:
        return to_unit(codes, self.zero_point, self.multiplier, self.shift)


class IntegerAdd(IntegerOp):
    """a + b, or a - b: both come to the larger scale, with 20 bits of fraction, then are added."""

    def __init__(self, name: str, sources: Sequence[QParams], subtract: bool = False) -> None:
        unit = common_unit(sources)
        super().__init__(name, unit * 2.0**-LEFT_SHIFT)
        self.bring = nn.ModuleList(ToUnit(q, unit) for q in sources)
        self.sources = tuple(sources)
        self.subtract = subtract

    def accumulate(self, a: Tensor, b: Tensor) -> Tensor:
        first, second = (bring(codes) for bring, codes in zip(self.bring, (a, b), strict=True))
        return first - second if self.subtract else first + second

    @property
    def terms(self) -> int:
        return 2

    def accumulator_range(self) -> Range:
        bound = sum(largest(q) for q in self.sources) << LEFT_SHIFT
        return -bound, bound


class IntegerConcat(IntegerOp):
    """torch.cat along ``dim``: the inputs come to the largest scale first."""

    def __init__(self, name: str, sources: Sequence[QParams], dim: int) -> None:
        unit = common_unit(sources)
        super().__init__(name, unit * 2.0**-LEFT_SHIFT)
        self.bring = nn.ModuleList(ToUnit(q, unit) for q in sources)
        self.sources = tuple(sources)
        self.dim = dim

    def accumulate(self, *codes: Tensor) -> Tensor:
        parts = [bring(part) for bring, part in zip(self.bring, codes, strict=True)]
        return torch.cat(parts, dim=self.dim)

    def accumulator_range(self) -> Range:
        bound = max(largest(q) for q in self.sources) << LEFT_SHIFT
        return -bound, bound


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
        bound = largest(self.sources[0]) * largest(self.sources[1])
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


class IntegerMaxPool1d(nn.Module):
    """Max pooling of codes [N, C, L], which PyTorch has for integers in two dimensions only."""

    def __init__(self, pool: nn.MaxPool1d) -> None:
        super().__init__()
        settings = (pool.kernel_size, pool.stride, pool.padding, pool.dilation)
        one = (n if isinstance(n, int) else n[0] for n in settings)
        self.settings = tuple((fill, n) for fill, n in zip((1, 1, 0, 1), one, strict=True))
        self.ceil_mode = pool.ceil_mode

    def forward(self, codes: Tensor) -> Tensor:
        pooled = nn.functional.max_pool2d(codes.unsqueeze(2), *self.settings, self.ceil_mode)
        return pooled.squeeze(2)


class IntegerPad(nn.Module):
    """Zero padding of codes: the border is the zero point."""

    def __init__(self, padding: Sequence[int], source: QParams) -> None:
        super().__init__()
        self.padding = tuple(padding)
        self.zero_point = int(source.zero_point)

    def forward(self, codes: Tensor) -> Tensor:
        return nn.functional.pad(codes, self.padding, value=self.zero_point)
