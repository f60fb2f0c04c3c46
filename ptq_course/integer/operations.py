"""A network's operations on integer codes, as plain functions that a notebook walks through.

Chapter 08. Each reads codes (uint8 or int8) and returns int32 accumulators, which
`fixed_point.requantize` turns into the next layer's codes. Activations are [N, C, H, W], stored
channels-last, so that the row of a matrix product lies together in memory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ptq_course.errors import QuantizationError
from ptq_course.grids.affine import QParams
from ptq_course.integer.fixed_point import requantize, rescale, to_multiplier
from ptq_course.integer.products import int_matmul, to_signed

# Head room of an addition: 8-bit differences reach 255 < 2^8, and 8 + 20 + 1 bits fit into int32.
LEFT_SHIFT = 20
Pair = tuple[int, int]


def int_linear(
    xq: Tensor, wq: Tensor, zx: int, bias: Tensor | None = None, zw: Tensor | None = None
) -> Tensor:
    """sum_k (xq - zx) * (wq - zw) + bias, in int32: [..., K] and [O, K] -> [..., O].

    xq: uint8 or int8 codes, zx: their zero point. wq: int8 codes of the weight, zw: its zero points
    [O] or None for 0. bias: int32 [O] in steps of s_x * s_w. Written out, the sum is

        sum xq wq  -  zx sum wq  -  zw sum xq  +  K zx zw

    where the second and fourth terms do not depend on the input (Jacob et al., 2018, section 2.3).
    """
    x, zx = to_signed(xq, zx)
    rows = x.reshape(-1, x.shape[-1])
    acc = int_matmul(rows, wq.t())
    acc -= zx * wq.sum(1, dtype=torch.int32)
    if zw is not None:
        sums = rows.sum(1, dtype=torch.int32, keepdim=True)
        acc -= (sums - zx * rows.shape[1]) * zw
    if bias is not None:
        acc += bias
    return acc.reshape(*x.shape[:-1], len(wq))


def int_conv2d(
    xq: Tensor, wq: Tensor, zx: int, bias: Tensor | None = None, zw: Tensor | None = None,
    *, stride: Pair = (1, 1), padding: Pair | tuple[int, int, int, int] = (0, 0),
    dilation: Pair = (1, 1), groups: int = 1,
) -> Tensor:  # fmt: skip
    """Convolution of codes [N, C, H, W] with [O, C / groups, kH, kW]: int32 [N, O, H', W'].

    padding: (vertical, horizontal), or (left, right, top, bottom). The border is filled with the
    zero point, the code that stands for 0. Depthwise convolutions add up shifted pictures, all
    others gather the patch under each output into a row (im2col) and multiply matrices.
    """
    if xq.shape[1] != wq.shape[1] * groups:
        raise QuantizationError(
            f"int_conv2d: the input has {xq.shape[1]} channels, the weight wants "
            f"{wq.shape[1]} x {groups} groups."
        )
    xq, zx = to_signed(xq, zx)
    if len(padding) == 2:
        padding = (padding[1], padding[1], padding[0], padding[0])
    if any(padding):
        xq = F.pad(xq, padding, value=zx)
    x = xq.permute(0, 2, 3, 1).contiguous()  # channels last; no copy where they are already
    if wq.shape[1] == 1 and groups > 1:
        acc = _depthwise(x, wq, zx, bias, zw, stride, dilation)
    else:
        kernels = wq.permute(0, 2, 3, 1).reshape(groups, len(wq) // groups, -1)  # [g, O/g, kh*kw*c]
        parts = zip(
            x.chunk(groups, dim=-1), kernels, _split(bias, groups), _split(zw, groups), strict=True
        )
        windows = [
            int_linear(im2col(part, (wq.shape[2], wq.shape[3]), stride, dilation), kernel, zx, b, z)
            for part, kernel, b, z in parts
        ]
        acc = windows[0] if groups == 1 else torch.cat(windows, dim=-1)
    return acc.permute(0, 3, 1, 2)


def im2col(x: Tensor, kernel: Pair, stride: Pair = (1, 1), dilation: Pair = (1, 1)) -> Tensor:
    """[N, H, W, C] -> [N, H', W', kH * kW * C]: the patch under each output, as one row.

    Works on any dtype: the patches are a view with overlapping strides, then copied once.
    """
    n, height, width, channels = x.shape
    out = tuple(
        (size - d * (k - 1) - 1) // s + 1
        for size, k, s, d in zip((height, width), kernel, stride, dilation, strict=True)
    )
    if min(out) < 1:
        raise QuantizationError(
            f"int_conv2d: a kernel of {tuple(kernel)} with dilation {tuple(dilation)} is larger "
            f"than the padded input {(height, width)}."
        )
    sn, sh, sw, sc = x.stride()
    patches = x.as_strided(
        (n, *out, *kernel, channels),
        (sn, sh * stride[0], sw * stride[1], sh * dilation[0], sw * dilation[1], sc),
    )
    return patches.reshape(n, *out, math.prod(kernel) * channels)


def _depthwise(
    x: Tensor, wq: Tensor, zx: int, bias: Tensor | None, zw: Tensor | None, stride: Pair,
    dilation: Pair,
) -> Tensor:  # fmt: skip
    """One kernel a channel (or several): sum over taps of shifted pictures, [N, H', W', O]."""
    taps = wq.squeeze(1).permute(1, 2, 0).int()  # [kH, kW, O]
    if zw is not None:
        taps = taps - zw
    values = x.int() - zx
    copies = len(wq) // x.shape[-1]
    if copies > 1:
        values = values.repeat_interleave(copies, dim=-1)
    (kh, kw), (height, width) = taps.shape[:2], x.shape[1:3]
    out_h = (height - dilation[0] * (kh - 1) - 1) // stride[0] + 1
    out_w = (width - dilation[1] * (kw - 1) - 1) // stride[1] + 1
    acc = torch.zeros((len(x), out_h, out_w, len(wq)), dtype=torch.int32, device=x.device)
    if bias is not None:
        acc += bias
    for i in range(kh):
        for j in range(kw):
            top, left = i * dilation[0], j * dilation[1]
            shifted = values[
                :, top : top + (out_h - 1) * stride[0] + 1 : stride[0],
                left : left + (out_w - 1) * stride[1] + 1 : stride[1],
            ]  # fmt: skip
            acc.addcmul_(shifted, taps[i, j])
    return acc


def _split(values: Tensor | None, groups: int) -> list[Tensor | None]:
    return [None] * groups if values is None else list(values.chunk(groups))


def common_unit(qparams: Sequence[QParams]) -> float:
    """The step in which values of several scales are added: the largest of the scales."""
    return max(q.scale.double().item() for q in qparams)


def to_unit(
    codes: Tensor, zero_point: int, multiplier: Tensor, shift: Tensor, left_shift: int = LEFT_SHIFT
) -> Tensor:
    """Codes as int32 multiples of unit * 2^-left_shift; multiplier and shift say scale / unit.

    The left shift makes room for fractions: the rounding error is 2^-left_shift of a step. Values
    of the largest scale, whose ratio is 1, are only shifted, exactly.
    """
    shifted = (codes.int() - zero_point) << left_shift
    return rescale(shifted, multiplier, shift).to(torch.int32)


def add_int(
    a: Tensor, b: Tensor, qa: QParams, qb: QParams, qy: QParams, left_shift: int = LEFT_SHIFT
) -> Tensor:
    """Codes of a + b on the output's grid: both inputs come to one scale, are added, requantized.

    Both are first shifted left by 20 bits and brought to the larger of the two scales, so that
    their own rounding (2^-20 of a step) cannot add up to a wrong code (after Jacob et al., 2018,
    appendix A.2, and TensorFlow Lite, which takes twice the larger scale).
    """
    unit = common_unit([qa, qb])
    acc = torch.zeros((), dtype=torch.int32)
    for codes, q in ((a, qa), (b, qb)):
        ratio = to_multiplier(q.scale.double().item() / unit)
        acc = acc + to_unit(codes, int(q.zero_point), *ratio, left_shift)
    multiplier, shift = to_multiplier(unit * 2.0**-left_shift / qy.scale.double().item())
    return requantize(acc, multiplier, shift, int(qy.zero_point), qy.grid)


def sum_pool(
    codes: Tensor, zero_point: int, kernel: Pair, stride: Pair, padding: Pair = (0, 0)
) -> Tensor:
    """int32 sums of (code - zero_point) over windows of [N, C, H, W]; the border adds nothing.

    `fixed_point.divide_half_even` makes averages of them.
    """
    values = codes.int() - zero_point
    if any(padding):
        values = F.pad(values, (padding[1], padding[1], padding[0], padding[0]))
    return values.unfold(2, kernel[0], stride[0]).unfold(3, kernel[1], stride[1]).sum(
        (-2, -1), dtype=torch.int32
    )  # fmt: skip
