"""Exact inner loops over float32 values: bin numbers, counts and sums, as fast as NumPy allows.

Apart from the statistics that use them (summaries.py, histograms.py), because they are about the
machine: data that fit its cache, memory used again, integers instead of rounding.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

SMALLEST_EXPONENT = -149  # every float32 is a whole multiple of 2^-149
BLOCK = 2**20  # values whose bins are counted at a time
CHUNK = 2**15  # values whose bins are computed at a time: they stay in the processor's cache


class Scratch(threading.local):
    """Memory for a block, kept from call to call: fresh pages cost more than the arithmetic."""

    def __init__(self) -> None:
        self.numbers = np.empty(BLOCK, dtype=np.int32)
        self.scaled = np.empty(CHUNK, dtype=np.float32)


scratch = Scratch()


def count_upper_halves(values: Tensor) -> np.ndarray:
    """How often each of the 65536 bit patterns occurs as the upper half of float32 `values`."""
    counts = np.zeros(2**16, dtype=np.int64)
    for block in pieces(in_memory_order(values), BLOCK):
        numbers = scratch.numbers[: len(block)]
        np.right_shift(block.view(np.uint32), 16, out=numbers.view(np.uint32))
        counts += count_numbers(numbers, 2**16)
    return counts


def count_on_lattice(
    values: Tensor, exponent: int, first: int, bins: int
) -> tuple[np.ndarray, int]:
    """Counts of floor(x / 2^k) - first over the float32 x that are not 0; how many are 0.

    Returns int64 [bins] and an int; k is `exponent`, every result must lie in 0 ... bins - 1.
    """
    counts, zeros = np.zeros(bins, dtype=np.int64), 0
    for block in pieces(in_memory_order(values), BLOCK):
        numbers = scratch.numbers[: len(block)]
        for chunk, out in zip(pieces(block, CHUNK), pieces(numbers, CHUNK), strict=True):
            out[:] = bin_numbers(chunk, exponent, first)
            zeros += int(np.count_nonzero(chunk == 0))
        counts += count_numbers(numbers, bins)
    counts[-first] -= zeros  # they were counted in bin 0
    return counts, zeros


def bin_numbers(chunk: np.ndarray, exponent: int, first: int) -> np.ndarray:
    """floor(x / 2^k) - first for float32 x [N], N at most CHUNK; the result is overwritten later.

    A product with a power of two is exact unless it underflows. In float32 it cannot for k <= 0
    (|x| grows), which covers data up to about 2^15; beyond, and where 2^-k is no float32, the
    product is taken in float64. So the tiniest negative value, too, lands in bin -1 and not in 0.
    """
    factor = math.ldexp(1.0, -exponent)
    if -126 <= exponent <= 0:
        scaled = np.multiply(chunk, np.float32(factor), out=scratch.scaled[: len(chunk)])
    else:
        scaled = chunk.astype(np.float64) * factor
    np.floor(scaled, out=scaled)
    return np.subtract(scaled, first, out=scaled)


def count_numbers(numbers: np.ndarray, bins: int) -> np.ndarray:
    """How often each of 0 ... bins - 1 occurs in int32 `numbers`, as int64 [bins].

    torch.bincount reads int32 as it is; np.bincount would convert to int64 first.
    """
    return torch.bincount(torch.from_numpy(numbers), minlength=bins).numpy()


def exact_sums(values: Tensor) -> tuple[int, int]:
    """Sum of x in units of 2^-149 and sum of x^2 in units of 2^-298, both exact.

    A float32 is mantissa * 2^shift units, a whole mantissa below 2^24. Mantissas of equal shift are
    added in float64, where whole numbers below 2^53 add exactly (their squares in two halves of 24
    bits); Python's integers then add over the shifts.
    """
    added = squared = 0
    for block in pieces(in_memory_order(values), 2**18):
        bits = block.view(np.int32)  # sign, 8 bits of exponent, 23 of mantissa
        exponent = (bits >> 23) & 0xFF
        mantissa = (bits & 0x7FFFFF) + (np.sign(exponent) << 23)  # but subnormals' leading bit is 0
        shift = np.maximum(exponent, 1).astype(np.int64) - 1
        square = mantissa.astype(np.int64) ** 2
        added += _sum_by_shift(shift, np.where(bits < 0, -mantissa, mantissa))
        squared += _sum_by_shift(2 * shift, square >> 24) << 24
        squared += _sum_by_shift(2 * shift, square & 0xFFFFFF)
    return added, squared


def _sum_by_shift(shift: np.ndarray, whole: np.ndarray) -> int:
    """Sum of whole * 2^shift, for |whole| below 2^24."""
    sums = np.bincount(shift, weights=whole)
    return sum(int(sums[s]) << int(s) for s in np.flatnonzero(sums))


def in_memory_order(x: Tensor) -> np.ndarray:
    """The elements of x as [N], in the order in which they lie in memory, which avoids a copy."""
    by_stride = sorted(range(x.ndim), key=lambda d: x.stride(d), reverse=True)
    return x.permute(by_stride).reshape(-1).cpu().numpy()


def pieces(array: np.ndarray, length: int) -> Iterator[np.ndarray]:
    """Consecutive parts of an array, each of the given length but for the last."""
    return (array[start : start + length] for start in range(0, len(array), length))
