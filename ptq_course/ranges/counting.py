"""Exact inner loops over float32 values: bin numbers, counts and sums, as fast as NumPy allows.

Apart from the statistics that use them (summaries.py, histograms.py), because they are about the
machine: data that fit its cache, memory used again, integers instead of rounding.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ptq_course.ranges.threads import in_shares

SMALLEST_EXPONENT = -149  # every float32 is a whole multiple of 2^-149
BLOCK = 2**20  # values whose bins are counted at a time
CHUNK = 2**15  # values whose bins are computed at a time: they stay in the processor's cache
ROW = 2**12  # values whose float64 sums are exact, see sums_below
SHARE = 2**16  # values that another thread is worth


class Scratch(threading.local):
    """Memory for a block, kept from call to call: fresh pages cost more than the arithmetic."""

    def __init__(self) -> None:
        self.numbers = np.empty(BLOCK, dtype=np.int32)
        self.scaled = np.empty(CHUNK, dtype=np.float32)
        self.ones = np.ones(ROW)
        self.x, self.whole = np.empty((2, CHUNK // ROW, ROW))


scratch = Scratch()


def count_upper_halves(values: Tensor) -> np.ndarray:
    """How often each of the 65536 bit patterns occurs as the upper half of float32 `values`."""
    counts, _ = count_numbers(values, 2**16, number_upper_halves)
    return counts


def count_on_lattice(
    values: Tensor, exponent: int, first: int, bins: int
) -> tuple[np.ndarray, int]:
    """Counts of floor(x / 2^k) - first over the float32 x that are not 0; how many are 0.

    Returns int64 [bins] and an int; k is `exponent`, every result must lie in 0 ... bins - 1.
    """
    counts, zeros = count_numbers(values, bins, partial(number_bins, exponent, first))
    counts[-first] -= zeros  # they were counted in bin 0
    return counts, zeros


def count_numbers(
    values: Tensor, bins: int, number: Callable[[np.ndarray, np.ndarray], int]
) -> tuple[np.ndarray, int]:
    """How often each of 0 ... bins - 1 is the number of a value, int64 [bins]; how many are 0.

    number: writes the numbers of a block into int32 of its length, returns how many values are 0.
    torch.bincount reads int32 as it is; np.bincount would convert to int64 first.
    """

    def count(share: np.ndarray) -> tuple[np.ndarray, int]:
        counts, zeros = [], 0
        for block in pieces(share, BLOCK):
            numbers = scratch.numbers[: len(block)]
            zeros += number(block, numbers)
            counts.append(torch.bincount(torch.from_numpy(numbers), minlength=bins).numpy())
        return added_up(counts), zeros

    counts, zeros = zip(*in_shares(count, in_memory_order(values), SHARE), strict=True)
    return added_up(counts), sum(zeros)


def added_up(counts: Sequence[np.ndarray]) -> np.ndarray:
    """The sum of one or more arrays, written over the first."""
    for other in counts[1:]:
        np.add(counts[0], other, out=counts[0])
    return counts[0]


def number_upper_halves(block: np.ndarray, numbers: np.ndarray) -> int:
    """The upper halves of float32 `block`; its zeros have one of their own."""
    np.right_shift(block.view(np.uint32), 16, out=numbers.view(np.uint32))
    return 0


def number_bins(exponent: int, first: int, block: np.ndarray, numbers: np.ndarray) -> int:
    """floor(x / 2^k) - first for float32 x [N]; returns how many are 0.

    Where first is 0 there are no negative values, and the fractions are left to the conversion to
    integers, which drops them.
    A product with a power of two is exact unless it underflows. In float32 it cannot for k <= 0
    (|x| grows), which covers data up to about 2^15; beyond, and where 2^-k is no float32, the
    product is taken in float64. So the tiniest negative value, too, lands in bin -1 and not in 0.
    """
    factor, zeros = math.ldexp(1.0, -exponent), 0
    for chunk, out in zip(pieces(block, CHUNK), pieces(numbers, CHUNK), strict=True):
        if -126 <= exponent <= 0:
            scaled = np.multiply(chunk, np.float32(factor), out=scratch.scaled[: len(chunk)])
        else:
            scaled = chunk.astype(np.float64) * factor
        if first < 0:
            np.floor(scaled, out=scaled)
            np.subtract(scaled, first, out=scaled)
        out[:] = scaled  # as integers
        zeros += int(np.count_nonzero(chunk == 0))
    return zeros


def exact_sums(values: Tensor, peak: float) -> tuple[int, int]:
    """Sum of x in units of 2^-149 and sum of x^2 in units of 2^-298, both exact, for float32 x.

    peak: the largest |x|. The x down to 2^-18 of it are added first (sums_below), then those down
    to 2^-18 of the largest of the rest, and so on: two rounds for most data, 15 at most.
    """
    rest, added, squared = in_memory_order(values), 0, 0
    while len(rest):
        shift = max(math.frexp(peak)[1] + 108, 0)  # all |x| < 2^(shift - 108)
        shares = in_shares(partial(sums_below, shift), rest, SHARE)
        for sums, squares, _ in shares:
            added += sums << shift
            squared += squares << 2 * shift
        rest = np.concatenate([left for *_, left in shares])
        peak = float(np.max(np.abs(rest), initial=0.0))
    return added, squared


def sums_below(shift: int, values: np.ndarray) -> tuple[int, int, np.ndarray]:
    """Exact sums of the x and x^2 that are not too small, and those x that are, but for zeros.

    values: float32 [N] below 2^(shift - 108). Units: 2^(shift - 149) and its square.
    Scaled to less than 2^20, an x that is not below 2^2 is a multiple of 2^-21. Split into a whole
    number and a fraction of at most 1/2, a row of 2^12 of them has products that float64, with its
    53 bits, adds without rounding: whole * whole (52 bits), whole * fraction (53) and fraction *
    fraction (52); so has their plain sum (53). With shift 0, all are multiples of 2^-149.
    """
    factor = math.ldexp(1.0, 128 - shift)
    small = np.float32(math.ldexp(1.0, shift - 126) if shift else 0.0)
    sums, left = [], [values[:0]]
    for chunk in pieces(values, CHUNK):
        rows = math.ceil(len(chunk) / ROW)
        x, whole = scratch.x[:rows], scratch.whole[:rows]
        flat = x.reshape(-1)
        flat[: len(chunk)] = chunk
        flat[len(chunk) :] = 0
        magnitudes = np.abs(chunk, out=scratch.scaled[: len(chunk)])
        places = np.flatnonzero((magnitudes < small) & (magnitudes > 0))
        if len(places):
            left.append(chunk[places])
            flat[places] = 0
        np.multiply(x, factor, out=x)
        total = np.vecdot(x, scratch.ones)
        np.rint(x, out=whole)
        fraction = np.subtract(x, whole, out=x)
        pairs = ((whole, whole), (whole, fraction), (fraction, fraction))
        sums.append([total, *(np.vecdot(*pair) for pair in pairs)])
    units = np.ldexp(np.concatenate(sums, axis=1), [[21], [0], [21], [42]])
    added, wholes, mixed, fractions = (sum(row) for row in units.astype(np.int64).tolist())
    return added, (wholes << 42) + (mixed << 22) + fractions, np.concatenate(left)


def in_memory_order(x: Tensor) -> np.ndarray:
    """The elements of x as [N], in the order in which they lie in memory, which avoids a copy."""
    by_stride = sorted(range(x.ndim), key=lambda d: x.stride(d), reverse=True)
    return x.permute(by_stride).reshape(-1).resolve_neg().cpu().numpy()


def pieces(array: np.ndarray, length: int) -> Iterator[np.ndarray]:
    """Consecutive parts of an array, each of the given length but for the last."""
    return (array[start : start + length] for start in range(0, len(array), length))
