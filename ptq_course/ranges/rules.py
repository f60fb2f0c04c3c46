"""Range rules: from a summary of the data to the real interval that the grid shall cover.

What collects is a summary (summaries.py, histograms.py); what decides stands here; what applies is
quantize (affine.py). Every decision is a pure function of the summary, and data multiplied by a
power of two gets its range multiplied by exactly that power.

    minmax_range      everything                                           chapter 02
    percentile_range  all but a stated share at either end                 chapter 02
    kl_range          what changes the histogram least: kl.py              chapter 03
    mse_range         what gives the smallest squared error: mse.py        chapter 03

kl_sweep and mse_sweep (sweeps.py) return every candidate with its score, for a plot. A `RangeRule`
is one of these functions with all that others need to know of it; calibrators.py lists them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ptq_course.errors import number
from ptq_course.ranges.sweeps import CANDIDATES, Range, Sweep, kl_sweep, mse_sweep

if TYPE_CHECKING:
    from ptq_course.grids.affine import IntGrid
    from ptq_course.ranges.histograms import DyadicHistogram, FloatBitHistogram
    from ptq_course.ranges.summaries import Summary

__all__ = [
    "Range",
    "RangeRule",
    "Sweep",
    "kl_range",
    "kl_sweep",
    "minmax_range",
    "mse_range",
    "mse_sweep",
    "percentile_range",
]


@dataclass(frozen=True)
class RangeRule:
    """One way to choose a range, and all that the rest of the package knows of it.

    name: what `compute_qparams(ranges=...)` takes. summary: the type of summary that it reads.
    decide: (summary, grid, symmetric, **options) -> Range, a pure function. sweep: from the same
    arguments every candidate range with its score; None where nothing is searched. tried: the
    options with which `search_ranges` tries the rule. most_bits: beyond them a warning is given.
    """

    name: str
    summary: type[Summary]
    decide: Callable[..., Range]
    sweep: Callable[..., Sweep] | None = None
    tried: tuple[dict[str, float], ...] = ({},)
    most_bits: int = 16


def minmax_range(summary: Summary) -> Range:
    """[min_val, max_val] of any summary. Raises CalibrationError before any data."""
    summary.require_data()
    return Range(summary.min_val, summary.max_val)


def percentile_range(
    hist: FloatBitHistogram, percentile: float = 99.9, symmetric: bool = True
) -> Range:
    """The range between the percentiles 100 - percentile and percentile, zeros included.

    percentile: above 50, at most 100, which is min-max. symmetric: [-T, T] with T the larger end in
    absolute value, or [0, T] for data without negative values.
    Raises QuantizationError for a percentile outside (50, 100], CalibrationError before any data.
    """
    number("percentile", percentile, "(50, 100]")
    low, high = hist.percentile(100 - percentile), hist.percentile(percentile)
    if not symmetric:
        return Range(low, high)
    threshold = max(abs(low), abs(high))
    return Range(-threshold if hist.min_val < 0 else 0.0, threshold)


def kl_range(
    hist: DyadicHistogram, grid: IntGrid, symmetric: bool = True, candidates: int = CANDIDATES
) -> Range:
    """The range whose clipped histogram stays closest to its quantized one: kl_sweep(...).range."""
    return kl_sweep(hist, grid, symmetric, candidates).range


def mse_range(
    hist: DyadicHistogram, grid: IntGrid, symmetric: bool = True, candidates: int = CANDIDATES
) -> Range:
    """The range with the smallest mean squared quantization error: mse_sweep(...).range."""
    return mse_sweep(hist, grid, symmetric, candidates).range
