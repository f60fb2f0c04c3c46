"""Average pooling and means of codes: integer sums and one exact rounded division. Chapter 08."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ptq_course.errors import UnsupportedError
from ptq_course.grids.affine import QParams
from ptq_course.grids.int32_bound import Range, differences, fits_int32
from ptq_course.integer.finish import Dequantize
from ptq_course.integer.fixed_point import divide_half_even
from ptq_course.integer.layers import IntegerOp
from ptq_course.integer.operations import sum_pool


class IntegerAveraging(IntegerOp):
    """Base of what averages codes: an integer sum, then one exact rounded division.

    The output keeps the scale of the input, so no multiplier is needed: the codes' mean is the
    mean's code (`divide_half_even`). How many codes are averaged may depend on the picture's size;
    then ``terms`` is 0 before the first call.
    """

    def __init__(self, name: str, source: QParams) -> None:
        super().__init__(name, source.scale.double())
        self.source = source
        self.seen_terms = 0

    @property
    def terms(self) -> int:
        return self.seen_terms

    def accumulator_range(self) -> Range:
        low, high = differences(self.source)
        return low * self.terms, high * self.terms

    def forward(self, codes: Tensor) -> Tensor:
        self.seen_terms = self.count(codes)
        if not fits_int32(self.accumulator_range()):
            raise UnsupportedError(
                f"{self.name}: the sum of {self.seen_terms} codes can leave int32. Use smaller "
                "pictures, or average in two steps."
            )
        acc = self.accumulate(codes)
        if isinstance(self.finish, Dequantize):
            return self.finish(acc, self.axis, self.seen_terms)
        return self.finish(divide_half_even(acc, self.seen_terms), self.axis)

    def count(self, codes: Tensor) -> int:
        """How many codes one output averages."""
        raise NotImplementedError


class IntegerAveragePool(IntegerAveraging):
    """Mean over windows of [N, C, H, W] or [N, C, L]; a padded border counts as zeros.

    kernel, stride, padding: pairs (1 first for [N, C, L]). output_size instead of them: as many
    windows as that, which must divide the picture.
    """

    def __init__(
        self, name: str, source: QParams, kernel: Range | None = None, stride: Range | None = None,
        padding: Range = (0, 0), output_size: tuple[int | None, int | None] = (None, None),
    ) -> None:  # fmt: skip
        super().__init__(name, source)
        self.kernel, self.stride, self.padding = kernel, stride, padding
        self.output_size = output_size
        self.seen_terms = 0 if kernel is None else math.prod(kernel)

    def accumulate(self, codes: Tensor) -> Tensor:
        kernel = self.kernel_for(codes)
        flat = codes.dim() == 3
        acc = sum_pool(
            codes.unsqueeze(2) if flat else codes,
            int(self.source.zero_point), kernel, self.stride or kernel, self.padding,
        )  # fmt: skip
        return acc.squeeze(2) if flat else acc

    def kernel_for(self, codes: Tensor) -> Range:
        """The window [kH, kW], which ``output_size`` makes depend on the picture."""
        if self.kernel is not None:
            return self.kernel
        height, width = codes.shape[-2:] if codes.dim() == 4 else (1, codes.shape[-1])
        rows, columns = (
            n or size for n, size in zip(self.output_size, (height, width), strict=True)
        )
        if height % rows or width % columns:
            raise UnsupportedError(
                f"{self.name}: adaptive pooling of {height}x{width} to {rows}x{columns} needs "
                "windows of unequal size; choose an output size that divides the input."
            )
        return height // rows, width // columns

    def count(self, codes: Tensor) -> int:
        return math.prod(self.kernel_for(codes))


class IntegerMean(IntegerAveraging):
    """torch.mean over whole dimensions, such as the global average before the last layer."""

    def __init__(self, name: str, source: QParams, dims: tuple[int, ...], keepdim: bool) -> None:
        super().__init__(name, source)
        self.dims, self.keepdim = dims, keepdim

    def accumulate(self, codes: Tensor) -> Tensor:
        if any(d % codes.dim() == 0 for d in self.dims):
            raise UnsupportedError(
                f"{self.name}: dimension {list(self.dims)} of an input of shape "
                f"{tuple(codes.shape)} is the batch; name the dimensions to average."
            )
        values = codes.int() - int(self.source.zero_point)
        return values.sum(self.dims, keepdim=self.keepdim, dtype=torch.int32)

    def count(self, codes: Tensor) -> int:
        return math.prod(codes.shape[d] for d in self.dims)
