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
    counts = None
    for block in pieces(in_memory_order(values), BLOCK):
        numbers = scratch.numbers[: len(block)]
        np.right_shift(block.view(np.uint32), 16, out=numbers.view(np.uint32))
        counts = count_numbers(numbers, 2**16, counts)
    return counts


def count_on_lattice(
    values: Tensor, exponent: int, first: int, bins: int
) -> tuple[np.ndarray, int]:
    """Counts of floor(x / 2^k) - first over the float32 x that are not 0; how many are 0.

    Returns int64 [bins] and an int; k is `exponent`, every result must lie in 0 ... bins - 1.
    """
    counts, zeros = None, 0
    for block in pieces(in_memory_order(values), BLOCK):
        numbers = scratch.numbers[: len(block)]
        for chunk, out in zip(pieces(block, CHUNK), pieces(numbers, CHUNK), strict=True):
            out[:] = bin_numbers(chunk, exponent, first)  # as integers
            zeros += int(np.count_nonzero(chunk == 0))
        counts = count_numbers(numbers, bins, counts)
    counts[-first] -= zeros  # they were counted in bin 0
    return counts, zeros


def bin_numbers(chunk: np.ndarray, exponent: int, first: int) -> np.ndarray:
    """floor(x / 2^k) - first for float32 x [N], N at most CHUNK; the result is overwritten later.

    Where first is 0 there are no negative values, and the fractions are left to the conversion to
    integers, which drops them.
    A product with a power of two is exact unless it underflows. In float32 it cannot for k <= 0
    (|x| grows), which covers data up to about 2^15; beyond, and where 2^-k is no float32, the
    product is taken in float64. So the tiniest negative value, too, lands in bin -1 and not in 0.
    """
    factor = math.ldexp(1.0, -exponent)
    if -126 <= exponent <= 0:
        scaled = np.multiply(chunk, np.float32(factor), out=scratch.scaled[: len(chunk)])
    else:
        scaled = chunk.astype(np.float64) * factor
    if first < 0:
        np.floor(scaled, out=scaled)
        np.subtract(scaled, first, out=scaled)
    return scaled


def count_numbers(numbers: np.ndarray, bins: int, before: np.ndarray | None) -> np.ndarray:
    """How often each of 0 ... bins - 1 occurs in int32 `numbers`, int64 [bins], added to `before`.

    torch.bincount reads int32 as it is; np.bincount would convert to int64 first.
    """
    counts = torch.bincount(torch.from_numpy(numbers), minlength=bins).numpy()
    return counts if before is None else np.add(counts, before, out=counts)


def exact_sums(values: Tensor) -> tuple[int, int]:
    """Sum of x in units of 2^-149 and sum of x^2 in units of 2^-298, both exact, for float32 x.

    Every x is mantissa * 2^shift units. Mantissas of equal shift are added as float64 (no sum of
    2^28 of them reaches 2^53, below which whole numbers add exactly), then as Python's integers.
    """
    added = squared = 0
    for block in pieces(in_memory_order(values), 2**28):
        sums = sum(map(mantissa_sums, pieces(block, CHUNK)))
        for shift, (mantissas, upper, lower) in enumerate(sums.T):
            added += int(mantissas) << shift
            squared += ((int(upper) << 24) + int(lower)) << (2 * shift)
    return added, squared


def mantissa_sums(chunk: np.ndarray) -> np.ndarray:
    """Sums by shift of float32 x [N]: mantissas, upper and lower 24 bits of their squares.

    float64 [3, 254], all whole numbers. A mantissa has 24 bits, of which a float32 does not store
    the first: it is 1, or 0 for subnormals, whose exponent field is 0 and means the same as 1.
    """
    bits = chunk.view(np.int32)  # the sign, 8 bits of exponent, 23 of mantissa
    exponent = (bits >> 23) & 0xFF
    mantissa = (bits & 0x7FFFFF) + (np.sign(exponent) << 23)
    shift = np.maximum(exponent, 1) - 1
    square = mantissa.astype(np.int64) ** 2
    columns = (np.where(bits < 0, -mantissa, mantissa), square >> 24, square & 0xFFFFFF)
    return np.stack([np.bincount(shift, weights=column, minlength=254) for column in columns])


def in_memory_order(x: Tensor) -> np.ndarray:
    """The elements of x as [N], in the order in which they lie in memory, which avoids a copy."""
    by_stride = sorted(range(x.ndim), key=lambda d: x.stride(d), reverse=True)
    return x.permute(by_stride).reshape(-1).resolve_neg().cpu().numpy()


def pieces(array: np.ndarray, length: int) -> Iterator[np.ndarray]:
    """Consecutive parts of an array, each of the given length but for the last."""
    return (array[start : start + length] for start in range(0, len(array), length))
