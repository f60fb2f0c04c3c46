"""Searching a range: every candidate threshold with its score, for kl_range and mse_range.

`symmetric=True` means zero_point 0. The range is then [-T, T], or [0, T] for data without negative
values, and T is the clipping threshold, decoded from the code qmax. On a signed grid T is cut into
qmax + 1 = 2^(bits - 1) magnitudes, on an unsigned one into 2^bits. `symmetric=False` shares all
levels of the grid between the two signs: data of one sign is searched from zero outwards, data of
both signs by the two-sided searches described at kl_sweep and mse_sweep.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ptq_course.errors import QuantizationError, whole
from ptq_course.grids.affine import FLOAT32_MAX
from ptq_course.ranges import kl, mse

if TYPE_CHECKING:
    from ptq_course.grids.affine import IntGrid
    from ptq_course.ranges.histograms import DyadicHistogram

CANDIDATES = 2048
PAIRS = 2**18  # candidates x levels of one sweep, about 5 ms: more levels get fewer candidates
FEWEST = 64  #    but never fewer than these, so that 13 to 16 bits take up to about 50 ms
MSE_SPAN = 1024  # the smallest threshold that mse_sweep tries is the largest value / MSE_SPAN


class Range(NamedTuple):
    """A real interval in the units of the data."""

    low: float
    high: float


@dataclass(frozen=True, eq=False)
class Sweep:
    """Every candidate of a search and its score; all arrays [candidates], thresholds increasing.

    thresholds: T where the range is [-T, T], [0, T] or [-T, 0]; high - low where both ends move.
    scores: smaller is better, in `unit`. lows, highs: the candidate ranges. best: the chosen index.
    """

    thresholds: NDArray[np.float64]
    scores: NDArray[np.float64]
    best: int
    name: str
    unit: str
    lows: NDArray[np.float64]
    highs: NDArray[np.float64]

    @property
    def threshold(self) -> float:
        """The best of the thresholds."""
        return float(self.thresholds[self.best])

    @property
    def range(self) -> Range:
        """The range of the best candidate."""
        return Range(float(self.lows[self.best]), float(self.highs[self.best]))

    @property
    def searched(self) -> bool:
        """False when one candidate at most had a finite score: nothing was compared.

        It happens to kl_sweep when the histogram, or what a huge outlier leaves of it to the other
        values, has no more bins than the grid has levels. The range is then that of min-max.
        """
        return int(np.isfinite(self.scores).sum()) > 1


def kl_sweep(
    hist: DyadicHistogram, grid: IntGrid, symmetric: bool = True, candidates: int = CANDIDATES
) -> Sweep:
    """KL divergence, in nats, of the candidate ranges; what is compared and why: kl.py.

    hist: its exact zeros are left out. grid: qmax + 1 levels when symmetric, else all of them.
    candidates: thresholds to try, at least 2, on bin edges, in geometric progression from as many
    bins as levels to the largest value; cut to 2^18 / levels, but never below 64. No more bins than
    levels leaves one candidate, min-max: see Sweep.searched.

    An outlier beyond about 2^16 / levels times the bulk (500 at 8 bits symmetric) leaves fewer bins
    than levels under it: the result is min-max. Use percentile, or summary=DyadicHistogram(2**20).

    Affine and data of both signs: coordinate descent. From the full range the best upper end is
    searched with the lower one held, then the best lower end, and so on until a search no longer
    helps; each tries a quarter of the candidates. That finds a local optimum, not always the best
    pair.
    Ties: the smallest divergence, then the wider range.

    Not for regression on data with long tails: clipped values are counted, and how far they are cut
    does not matter (kl.py). Meant for few levels, 8 bits at most: a histogram of N values in B
    filled bins differs from its groups by about (B - levels) / 2N nats of sampling noise alone.
    Where rounding costs less than that, KL clips to be rid of noise: at 12 bits, on 50,000 Laplace
    values, its signal-to-noise ratio is more than 20 dB below that of min-max. Use mse_sweep there.

    Raises CalibrationError before any data and QuantizationError for a symmetric range of negative
    values on an unsigned grid or fewer than 2 candidates.
    """
    negative, positive = _sides(hist, grid, symmetric)
    levels = grid.qmax + 1 if symmetric else grid.levels
    candidates = _affordable(candidates, levels)
    if not symmetric and len(negative) and len(positive):
        return _two_sided_kl_sweep(hist, negative, positive, levels, candidates)
    magnitudes = np.trim_zeros(hist.magnitudes()[0], "b")
    if not len(magnitudes):  # nothing but zeros
        return _sweep_from_zero(hist, [0.0], [0.0], symmetric, "kl", "nats")
    stops = kl.candidate_stops(len(magnitudes), levels, candidates)
    scores = kl.kl_divergences(magnitudes, levels, stops)
    thresholds = np.minimum(stops * hist.width, _largest(hist))
    return _sweep_from_zero(hist, thresholds, scores, symmetric, "kl", "nats", kl.TIE)


def _two_sided_kl_sweep(
    hist: DyadicHistogram, negative: NDArray, positive: NDArray, levels: int, candidates: int
) -> Sweep:
    """The coordinate descent of kl_sweep; a window is the bins that it keeps on either side."""
    sums = kl.prefix_sums(np.concatenate([negative[::-1], positive]))
    zero, per_search = len(negative), max(2, candidates // 4)
    kept, tried, lowest = [len(negative), len(positive)], [], np.inf
    for side, other in itertools.cycle([(1, 0), (0, 1)]):
        lengths = kl.candidate_stops(
            len((negative, positive)[side]), max(1, levels - kept[other]), per_search
        )
        windows = np.tile(kept, (len(lengths), 1))
        windows[:, side] = lengths
        starts, stops = zero - windows[:, 0], zero + windows[:, 1]
        scores = kl.window_divergences(sums, levels, starts, stops)
        tried.append((windows, scores))
        kept[side] = int(lengths[kl.best_candidate(scores)])
        if scores.min() >= lowest - kl.TIE:
            break
        lowest = scores.min()

    windows, scores = (np.concatenate(parts) for parts in zip(*tried, strict=True))
    left, right = windows.T
    lows = np.maximum(-left * hist.width, hist.min_val)
    highs = np.minimum(right * hist.width, hist.max_val)
    order = np.argsort(highs - lows, kind="stable")
    lows, highs, scores = lows[order], highs[order], scores[order]
    return Sweep(highs - lows, scores, kl.best_candidate(scores), "kl", "nats", lows, highs)


def mse_sweep(
    hist: DyadicHistogram, grid: IntGrid, symmetric: bool = True, candidates: int = CANDIDATES
) -> Sweep:
    """Mean squared error, in the data's unit squared, of the candidate ranges: see mse.py.

    The error of the true grid: round to nearest, saturate, the extra code -2^(bits - 1) of a grid
    that is not narrow. Zeros count, with error 0. candidates: thresholds to try, at least 2, in
    geometric progression from 1/1024 of the largest value; cut to 2^18 / levels, but never below
    64.

    Affine and data of both signs: a quarter of the candidates is tried as the scale, up to that of
    the full range, each with every zero point; its best zero point stands for it in the sweep.
    Ties: the smallest error, then the wider range. Raises CalibrationError before any data and
    QuantizationError for a symmetric range of negative values on an unsigned grid or fewer than 2
    candidates.
    """
    negative, positive = _sides(hist, grid, symmetric)
    steps = grid.levels - 1
    candidates = _affordable(candidates, grid.qmax + 1 if symmetric else grid.levels)
    if not len(negative) and not len(positive):
        return _sweep_from_zero(hist, [0.0], [0.0], symmetric, "mse", "squared error")
    unit = hist.width**2 / hist.count  # a sum in bins squared to a mean in the data's unit squared

    if not symmetric and len(negative) and len(positive):
        widths = (hist.max_val - hist.min_val) * _fractions(max(2, candidates // 4))
        scales = widths / steps
        errors, below = mse.best_split_errors(negative, positive, scales / hist.width, grid.levels)
        ends = -below * scales, (steps - below) * scales  # beyond the data, perhaps beyond float32
        lows, highs = (np.clip(end, -FLOAT32_MAX, FLOAT32_MAX) for end in ends)
        scores = errors * unit
        best = kl.best_candidate(scores, tie=0)
        return Sweep(widths, scores, best, "mse", "squared error", lows, highs)

    thresholds = _largest(hist) * _fractions(candidates)
    if symmetric:
        below, above, scales = -grid.qmin, grid.qmax, thresholds / grid.qmax
    else:
        below, above = (steps, 0) if len(negative) else (0, steps)
        scales = thresholds / steps
    errors = mse.squared_errors(negative, positive, scales / hist.width, below, above)
    return _sweep_from_zero(hist, thresholds, errors * unit, symmetric, "mse", "squared error")


def _sides(
    hist: DyadicHistogram, grid: IntGrid, symmetric: bool
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Counts of |x| from zero outwards, of the negative and the positive values; no empty tail."""
    hist.require_data()
    if symmetric and not grid.signed and hist.min_val < 0:
        raise QuantizationError(
            f"{hist.name or 'range'}: a symmetric range on an unsigned grid needs data >= 0, the "
            f"minimum is {hist.min_val:g}: use a signed grid or symmetric=False"
        )
    negative, positive = hist.counts[: -hist.first][::-1], hist.counts[-hist.first :]
    return np.trim_zeros(negative, "b"), np.trim_zeros(positive, "b")


def _sweep_from_zero(
    hist: DyadicHistogram,
    thresholds: ArrayLike,
    scores: ArrayLike,
    symmetric: bool,
    name: str,
    unit: str,
    tie: float = 0.0,
) -> Sweep:
    """The sweep of ranges [-T, T], or on one side of zero: [0, T] or, when affine, [-T, 0]."""
    thresholds, scores = np.asarray(thresholds, np.float64), np.asarray(scores, np.float64)
    nothing = np.zeros_like(thresholds)
    lows = -thresholds if hist.min_val < 0 else nothing
    highs = thresholds if symmetric or hist.max_val > 0 else nothing
    return Sweep(thresholds, scores, kl.best_candidate(scores, tie), name, unit, lows, highs)


def _largest(hist: DyadicHistogram) -> float:
    return max(-hist.min_val, hist.max_val)


def _fractions(count: int) -> NDArray[np.float64]:
    return np.geomspace(1 / MSE_SPAN, 1, count)


def _affordable(candidates: int, levels: int) -> int:
    """`candidates`, checked and cut to what the time allows."""
    return min(whole("candidates", candidates, 2), max(FEWEST, PAIRS // levels))
