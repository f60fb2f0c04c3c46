"""Histograms that merge exactly (chapters 02 and 03).

An ordinary histogram must know its range before it counts; widening it later moves the bin edges,
and the result depends on what came first. Here the edges are given by arithmetic instead:

- `FloatBitHistogram`: a bin is the upper half of a float32. Nothing to agree on, every bin is under
  1 % wide, from 1e-38 to 3e38. For percentiles.
- `DyadicHistogram`: bins of equal width 2^k at whole multiples of 2^k. When the data outgrow them,
  neighbours are added in pairs and k grows by one: every edge of the wider bins was an edge before.
  For KL and mean squared error, which need equal widths.

Both states are functions of the values seen: batches, order and processes leave no trace.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
import torch.distributed as dist
from torch import Tensor

from ptq_course.errors import CalibrationError, number, whole
from ptq_course.ranges.counting import SMALLEST_EXPONENT, count_on_lattice, count_upper_halves
from ptq_course.ranges.mse import folded
from ptq_course.ranges.reduction import agree_on_extremes, sum_over_processes
from ptq_course.ranges.summaries import Summary


class FloatBitHistogram(Summary):
    """Counts of float32 values by sign, exponent and the first 7 bits of the mantissa.

    counts: int64 [65536] in the order of the values: bin 0 is the most negative, bin 32768 begins
    at +0.0 (float_bit_edges gives the edges). A bin is at most 2^-7 = 0.8 % of its values wide,
    but for those below 1.2e-38 in magnitude.
    """

    def __init__(self, *, name: str | None = None) -> None:
        super().__init__(name=name)
        self.counts = np.zeros(2**16, dtype=np.int64)

    def percentile(self, p: float) -> float:
        """The value below which p percent of the data lie, p from 0 to 100.

        As torch.quantile does, it interpolates between the two order statistics around rank
        p / 100 * (count - 1). Each of them is known to its bin, so the result is within 2^-7 of the
        larger of the two in magnitude; 0 and 100 are the exact extremes.
        Raises CalibrationError for p outside 0..100 and before the first update.
        """
        number("percentile", p, "[0, 100]", CalibrationError)
        self.require_data()
        rank = p / 100 * (self.count - 1)
        lower, upper = (self._order_statistic(f(rank)) for f in (math.floor, math.ceil))
        return lower + (rank - math.floor(rank)) * (upper - lower)

    def _order_statistic(self, rank: int) -> float:
        """The value of the given rank (0: smallest), as if its bin's were evenly spread.

        The two bins next to zero hold nearly always nothing but zeros, and count as such.
        """
        if rank == 0:
            return self.min_val
        if rank >= self.count - 1:
            return self.max_val
        until = np.cumsum(self.counts)
        number = int(np.searchsorted(until, rank, side="right"))
        in_bin = int(self.counts[number])
        share = (rank - (int(until[number]) - in_bin) + 0.5) / in_bin
        left, right = float_bit_edges()[number : number + 2]
        value = 0.0 if 0.0 in (left, right) else float(left + share * (right - left))
        return min(max(value, self.min_val), self.max_val)

    def _collect(self, values: Tensor, low: float, high: float) -> None:
        positive, negative = np.split(count_upper_halves(values), 2)  # the first bit is the sign
        self.counts[2**15 :] += positive
        self.counts[: 2**15] += negative[::-1]  # whose magnitude grows with the other bits
        self.min_val, self.max_val = min(self.min_val, low), max(self.max_val, high)

    def _absorb(self, other: FloatBitHistogram) -> None:
        self.counts += other.counts
        self.min_val = min(self.min_val, other.min_val)
        self.max_val = max(self.max_val, other.max_val)

    def _reduce(self, group: dist.ProcessGroup | None) -> None:
        """Sum the counts of all processes."""
        low, high = agree_on_extremes(self.min_val, self.max_val, group)
        total = sum_over_processes(np.append(self.counts, self.count), group)
        self.counts, self.count = total[:-1], int(total[-1])
        self.min_val, self.max_val = low, high


class DyadicHistogram(Summary):
    """Counts in bins of width 2^k at whole multiples of 2^k; exact zeros are counted apart.

    max_bins: how many bins there may be. The lattice (dyadic_lattice) always contains zero and is
    the finest that covers the data, so one-sided data use all bins on one side.

    exponent: k. first: the number j of the first bin. counts: int64, counts[j - first] is the
    number of values in [j * 2^k, (j + 1) * 2^k) that are not 0. zeros: how many are 0 (or -0).
    """

    def __init__(self, max_bins: int = 2**16, *, name: str | None = None) -> None:
        super().__init__(name=name)
        self.max_bins = max_bins = whole("max_bins", max_bins, 2, 2**24, CalibrationError)
        self.exponent, self.first, bins = dyadic_lattice(0.0, 0.0, max_bins)
        self.counts = np.zeros(bins, dtype=np.int64)
        self.zeros = 0

    @property
    def width(self) -> float:
        """2^k, the width of a bin."""
        return math.ldexp(1.0, self.exponent)

    def edges(self) -> np.ndarray:
        """The len(counts) + 1 edges of the bins, float64 (exact)."""
        return np.ldexp(self.first + np.arange(len(self.counts) + 1.0), self.exponent)

    def magnitudes(self) -> tuple[np.ndarray, float]:
        """Counts of |x| in bins of `width` from 0 up: the bins below zero folded onto those above.

        Folded bins keep their own closed end: -x from (j * width, (j + 1) * width].
        """
        below, above = self.counts[: -self.first][::-1], self.counts[-self.first :]
        return folded(below, above), self.width

    def _collect(self, values: Tensor, low: float, high: float) -> None:
        low, high = min(low, self.min_val), max(high, self.max_val)
        lattice = dyadic_lattice(low, high, self.max_bins)
        counts, zeros = count_on_lattice(values, *lattice)
        counts += self._counts_on(*lattice)
        self._assign(*lattice[:2], counts, self.zeros + zeros, low, high)

    def _absorb(self, other: DyadicHistogram) -> None:
        low, high = min(self.min_val, other.min_val), max(self.max_val, other.max_val)
        lattice = dyadic_lattice(low, high, self.max_bins)
        counts = self._counts_on(*lattice) + other._counts_on(*lattice)
        self._assign(*lattice[:2], counts, self.zeros + other.zeros, low, high)

    def _reduce(self, group: dist.ProcessGroup | None) -> None:
        """Agree on k, coarsen, sum."""
        low, high = agree_on_extremes(self.min_val, self.max_val, group)
        lattice = dyadic_lattice(low, high, self.max_bins)
        mine = np.append(self._counts_on(*lattice), [self.zeros, self.count])
        total = sum_over_processes(mine, group)
        self._assign(*lattice[:2], total[:-2], int(total[-2]), low, high)
        self.count = int(total[-1])

    def _counts_on(self, exponent: int, first: int, bins: int) -> np.ndarray:
        """The counts on a lattice that is as coarse or coarser and covers this one."""
        counts, own_first = self.counts, self.first
        if (exponent, first, bins) == (self.exponent, own_first, len(counts)):
            return counts
        if self.zeros == self.count:  # nothing to coarsen, and a new lattice is 2^-149 fine
            return np.zeros(bins, dtype=np.int64)
        for _ in range(exponent - self.exponent):
            counts, own_first = halve(counts, own_first)
        placed = np.zeros(bins, dtype=np.int64)
        placed[own_first - first : own_first - first + len(counts)] = counts
        return placed

    def _assign(
        self, exponent: int, first: int, counts: np.ndarray, zeros: int, low: float, high: float
    ) -> None:
        self.exponent, self.first, self.counts, self.zeros = exponent, first, counts, zeros
        self.min_val, self.max_val = low, high

    def _settings(self) -> dict[str, Any]:
        return {"max_bins": self.max_bins}


def dyadic_lattice(low: float, high: float, max_bins: int) -> tuple[int, int, int]:
    """The finest dyadic bins that cover low, high and 0: (k, number of the first, how many).

    k is the smallest for which the bins from floor(low / 2^k) to floor(high / 2^k) are at most
    max_bins. It depends on the extremes alone, and never falls when these widen.
    """
    low, high = min(low, 0.0), max(high, 0.0)
    exponent = SMALLEST_EXPONENT
    if peak := max(-low, high):  # at least 2^(e - 1), so that bins finer than this are too many
        exponent = max(exponent, math.frexp(peak)[1] - max_bins.bit_length())
    while True:
        first, last = (math.floor(math.ldexp(bound, -exponent)) for bound in (low, high))
        if last - first + 1 <= max_bins:
            return exponent, first, last - first + 1
        exponent += 1


def halve(counts: np.ndarray, first: int) -> tuple[np.ndarray, int]:
    """Bins of twice the width: bins 2j and 2j + 1 become bin j."""
    counts = np.pad(counts, (first % 2, (first + len(counts)) % 2))
    return counts[0::2] + counts[1::2], first // 2


@lru_cache(maxsize=1)
def float_bit_edges() -> np.ndarray:
    """The 65537 edges of a FloatBitHistogram's bins, float64, in order; the outermost infinite."""
    magnitudes = np.full(2**15 + 1, np.inf)
    finite = (np.arange(0x7F80, dtype=np.uint32) << 16).view(np.float32)
    magnitudes[: len(finite)] = finite
    magnitudes[len(finite)] = 2.0**128  # where infinity's bits begin
    return np.concatenate([-magnitudes[:0:-1], magnitudes])
