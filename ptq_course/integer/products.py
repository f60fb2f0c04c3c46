"""Exact products of int8 matrices: a fast kernel where it proves itself, an exact path elsewhere.

Chapter 08. `torch._int_mm` multiplies int8 matrices into int32. On x86 processors without VNNI its
kernel adds pairs of products in 16 bits, which saturate: large sums come out wrong without a word.
So it has to pass a known-answer test before it is used.

The other path multiplies the codes as float32, which is exact as long as no sum leaves the integers
that float32 holds, |n| <= 2^24: |a * b| <= 128 * 128 = 2^14, so 2^24 / 2^14 = 1024 products may be
added, in any order, before they move on to int32. It is the one place of `ptq_course.integer` where
floating-point numbers appear, and they only ever hold integers.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

from ptq_course.errors import QuantizationError
from ptq_course.grids.exact import FLOAT32_INTEGERS, exact_product

LARGEST_PRODUCT = 128 * 128  # of two int8
CHUNK = FLOAT32_INTEGERS // LARGEST_PRODUCT  # 1024 products, whose sum float32 holds exactly
# Shapes [M, K] x [K, N] of the known-answer test: one row, one column, K = 1, K no multiple of 8.
KNOWN_SHAPES = (
    (32, 64, 16), (1, 256, 48), (33, 27, 32), (17, 1152, 128), (64, 150, 1), (9, 1, 8)
)  # fmt: skip


def int_matmul(a: Tensor, b: Tensor) -> Tensor:
    """int8 [M, K] times int8 [K, N] as int32 [M, N], exact as long as the result fits int32.

    `torch._int_mm` where it passed its test on this processor, `exact_float_matmul` elsewhere.
    Raises QuantizationError for other types or shapes.
    """
    if a.dtype != torch.int8 or b.dtype != torch.int8:
        raise QuantizationError(
            f"int_matmul: both matrices must be int8, got {a.dtype} and {b.dtype}; "
            "to_signed() turns uint8 codes into int8."
        )
    if a.dim() != 2 or b.dim() != 2 or a.shape[1] != b.shape[0]:
        raise QuantizationError(
            f"int_matmul: shapes {tuple(a.shape)} and {tuple(b.shape)} do not multiply."
        )
    if a.device.type == "cpu" and int_mm_is_exact():
        return int_mm(row_major(a), row_major(b))
    return exact_float_matmul(a, b)


def int_mm(a: Tensor, b: Tensor) -> Tensor:
    """`torch._int_mm`, which PyTorch documents and does not export."""
    return torch._int_mm(a, b)  # pyright: ignore[reportPrivateImportUsage]


def row_major(matrix: Tensor) -> Tensor:
    """The same matrix [R, C] with strides (C, 1), copied if need be.

    `torch._int_mm` guesses the layout from the strides and reads wrong elements where these are
    ambiguous: overlapping rows of im2col, or a dimension of one element, which `contiguous()`
    leaves as it is.
    """
    if matrix.stride() == (matrix.shape[1], 1):
        return matrix
    return matrix.clone(memory_format=torch.contiguous_format)


def exact_float_matmul(a: Tensor, b: Tensor) -> Tensor:
    """The same integers through float32 products of at most 1024 terms, summed in int32.

    float64 takes over where PyTorch may compute float32 products in a shorter format, or where this
    device's are not exact (`exact.exact_product`).
    """
    sums = torch.zeros(a.shape[0], b.shape[1], dtype=torch.int32, device=a.device)
    for x, y in zip(a.split(CHUNK, dim=1), b.split(CHUNK, dim=0), strict=True):
        sums += exact_product(torch.matmul, x, y, x.shape[1] * LARGEST_PRODUCT)
    return sums


@cache
def int_mm_is_exact() -> bool:
    """Known-answer test of `torch._int_mm` on this processor: int8 over its full range.

    Random codes and extreme ones (-128 and 127 throughout, where 16-bit sums saturate), in the
    shapes that convolutions make, against int64 products. False where one element is wrong, or
    where the kernel refuses. Run once, then remembered.
    """
    return all(known_answer(int_mm, *shape) == 0.0 for shape in KNOWN_SHAPES)


def known_answer(
    product: Callable[[Tensor, Tensor], Tensor], rows: int, inner: int, columns: int
) -> float:
    """Share of wrong elements of a matrix product [rows, inner] x [inner, columns] of int8.

    1.0 where it raises. The larger share of two trials counts: random codes and extreme codes.
    """
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randint(-128, 128, shape, generator=generator).to(torch.int8)

    extreme = torch.full((rows, inner), 127, dtype=torch.int8)
    worst = 0.0
    for a in (random(rows, inner), extreme):
        b = (
            random(inner, columns)
            if a is not extreme
            else torch.full((inner, columns), 127, dtype=torch.int8)
        )
        expected = (a.long().unsqueeze(2) * b.long().unsqueeze(0)).sum(1)
        try:
            wrong = (product(a, b) != expected).float().mean().item()
        except RuntimeError:
            return 1.0
        worst = max(worst, wrong)
    return worst


def saturating_matmul(a: Tensor, b: Tensor) -> Tensor:
    """What processors without VNNI compute: int8 [M, K] times int8 [K, N] as int32, often wrong.

    Their instruction vpmaddubsw multiplies unsigned by signed bytes and adds two neighbouring
    products into 16 bits, clamped at -32768 and 32767; only these pair sums reach int32. So a moves
    up by 128 to uint8, and 128 * sum(b) is taken off again. Written in exact integers, so that
    every machine can show the fault.
    """
    if a.shape[1] % 2:
        a, b = functional.pad(a, (0, 1)), functional.pad(b, (0, 0, 0, 1))
    unsigned, signed = a.int() + 128, b.int()
    acc = -128 * signed.sum(0, dtype=torch.int32).expand(len(a), -1)
    for k in range(0, a.shape[1], 2):
        pair = unsigned[:, k : k + 1] * signed[k] + unsigned[:, k + 1 : k + 2] * signed[k + 1]
        acc = acc + pair.clamp_(-(2**15), 2**15 - 1)
    return acc


def to_signed(codes: Tensor, zero_point: int) -> tuple[Tensor, int]:
    """The same reals as int8 codes: uint8 codes and their zero point both move down by 128.

    (q - 128) - (z - 128) = q - z, so nothing that is computed from differences changes. Flipping
    the highest bit is the same as subtracting 128 and costs no wider type.
    """
    if codes.dtype == torch.uint8:
        return codes.bitwise_xor(128).view(torch.int8), zero_point - 128
    return codes, zero_point
