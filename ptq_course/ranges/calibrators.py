"""Calibrators: a summary and a range rule under the classic names (chapters 02 and 03).

To add one, write its range as a pure function and a subclass of `Calibrator` with its `rule`.

    calibrator = KLCalibrator()
    for batch in batches:
        calibrator.update(batch)                 # collects: a summary
    calibrator.range(grid)                       # decides: a range rule
    calibrator.qparams(grid)                     # what affine.quantize applies
    calibrator.compute_scale(bits=8)             # the same as two numbers: (scale, zero_point)

One summary can serve several calibrators (`summary=`), so that a pass over the data is paid once:
KLCalibrator and MSECalibrator read the same histogram.
"""

from __future__ import annotations

from typing import ClassVar, cast, overload

import torch.distributed as dist
from torch import Tensor

from ptq_course.errors import CalibrationError, QuantizationError, number
from ptq_course.grids.affine import AnyGrid, AnyQParams, IntGrid, QParams, choose_qparams
from ptq_course.grids.floats import FloatFormat
from ptq_course.ranges.histograms import DyadicHistogram, FloatBitHistogram
from ptq_course.ranges.rules import (
    Range,
    RangeRule,
    kl_range,
    minmax_range,
    mse_range,
    percentile_range,
)
from ptq_course.ranges.summaries import MinMax, MovingAverage, Summary
from ptq_course.ranges.sweeps import kl_sweep, mse_sweep

# Percentiles six to a decade of the share cut off, from 1 % to 0.01 %: 99, 99.32, ..., 99.99.
PERCENTILES = tuple(round(100 - 10 ** (-k / 6), 4) for k in range(13))
CALIBRATORS: dict[str, type[Calibrator]] = {}  # by the name of their rule


class Calibrator:
    """Base: collects with a summary of its rule's type, and decides with its rule.

    summary: one collected before, shared and not copied (default: a new, empty one).
    name: the layer, for error messages of a new summary; one that is given keeps its own.
    options: of the rule. A subclass with a `rule` of its own is entered in CALIBRATORS by its name.
    Raises CalibrationError for a summary of another type.
    """

    rule: ClassVar[RangeRule]

    def __init_subclass__(cls) -> None:
        if "rule" in vars(cls):
            CALIBRATORS[cls.rule.name] = cls

    def __init__(self, *, summary: Summary | None = None, name: str | None = None) -> None:
        if summary is None:
            summary = self.rule.summary(name=name)
        elif not isinstance(summary, self.rule.summary):
            raise CalibrationError(
                f"{type(self).__name__} reads a {self.rule.summary.__name__}, got a "
                f"{type(summary).__name__}: collect with {type(self).__name__}.rule.summary"
            )
        self.summary = summary
        self.options: dict[str, float] = {}

    @property
    def min_val(self) -> float:
        """The smallest value seen (for a moving average, its lower end); +inf before any data."""
        return self.summary.min_val

    @property
    def max_val(self) -> float:
        """The largest value seen (for a moving average, its upper end); -inf before any data."""
        return self.summary.max_val

    def update(self, x: Tensor) -> None:
        """Take in one batch. Raises CalibrationError for bad data, and then nothing has changed."""
        self.summary.update(x)

    def merge(self, other: Calibrator) -> None:
        """Take in the data that `other` has seen.

        Raises CalibrationError for one whose summary is of another type or settings.
        """
        if not isinstance(other, Calibrator):
            raise CalibrationError(
                f"cannot merge {type(other).__name__} into {type(self).__name__}: not a calibrator"
            )
        self.summary.merge(other.summary)

    def all_reduce(self, group: dist.ProcessGroup | None = None) -> None:
        """Merge over all processes of a torch.distributed group; each calls it once."""
        self.summary.all_reduce(group)

    def range(self, grid: AnyGrid, symmetric: bool = True) -> Range:
        """The interval (low, high) that `grid` shall cover. CalibrationError before any data.

        Raises QuantizationError for floats and a rule that searches a grid of integers (KL, MSE).
        """
        if isinstance(grid, FloatFormat):
            symmetric = True
            if self.rule.sweep is not None:
                raise QuantizationError(
                    f"the range rule {self.rule.name!r} searches a grid of integers, and the "
                    f"format is {grid.name!r}; use 'minmax', 'percentile' or 'search'."
                )
        return self.rule.decide(self.summary, grid, symmetric, **self.options)

    @overload
    def qparams(self, grid: IntGrid, symmetric: bool = True) -> QParams: ...
    @overload
    def qparams(self, grid: AnyGrid, symmetric: bool = True) -> AnyQParams: ...
    def qparams(self, grid: AnyGrid, symmetric: bool = True) -> AnyQParams:
        """Per-tensor scale, and zero point where the grid has one, for the range."""
        low, high = self.range(grid, symmetric)
        return choose_qparams(low, high, grid, symmetric)

    def compute_scale(self, bits: int = 8, symmetric: bool = True) -> tuple[float, int]:
        """(scale, zero_point); symmetric: zero_point 0, else one in [0, 2^bits - 1].

        symmetric: codes are signed, scale = T / (2^(bits - 1) - 1) for the range [-T, T]. Affine:
        codes are unsigned, scale = (high - low) / (2^bits - 1) once the range contains 0.
        Takes under 10 ms up to 12 bits, MSE up to 30 ms at 16 (benchmarks/kl_sweep.py).
        """
        qparams = self.qparams(IntGrid(bits, signed=symmetric), symmetric)
        return float(qparams.scale), int(qparams.zero_point)


class MinMaxCalibrator(Calibrator):
    """Everything that was seen: no clipping, and one outlier sets the scale for all."""

    rule = RangeRule("minmax", MinMax, lambda summary, *_: minmax_range(summary))


class MovingAverageCalibrator(Calibrator):
    """The moving average of each batch's extremes. Depends on the batches' order; cannot merge.

    momentum: 0.9, or that of `summary`, unless given. Raises CalibrationError where they disagree.
    """

    rule = RangeRule(
        "moving_average", MovingAverage, lambda summary, *_: minmax_range(summary), tried=()
    )

    def __init__(
        self,
        momentum: float | None = None,
        *,
        summary: Summary | None = None,
        name: str | None = None,
    ) -> None:
        if summary is None:
            summary = MovingAverage(0.9 if momentum is None else momentum, name=name)
        super().__init__(summary=summary)
        self.momentum = cast(MovingAverage, self.summary).momentum
        if momentum not in (None, self.momentum):
            raise CalibrationError(
                f"MovingAverageCalibrator: momentum is {momentum}, and that of the summary is "
                f"{self.momentum}: give one of the two"
            )


class PercentileCalibrator(Calibrator):
    """All but the outermost values: the range between percentiles 100 - percentile and percentile.

    percentile: above 50 and at most 100, of all values, zeros included.
    """

    rule = RangeRule(
        "percentile",
        FloatBitHistogram,
        lambda hist, _, symmetric, percentile: percentile_range(hist, percentile, symmetric),
        tried=tuple({"percentile": p} for p in PERCENTILES),
    )

    def __init__(
        self,
        percentile: float = 99.9,
        *,
        summary: Summary | None = None,
        name: str | None = None,
    ) -> None:
        self.percentile = number("percentile", percentile, "(50, 100]", CalibrationError)
        super().__init__(summary=summary, name=name)
        self.options = {"percentile": self.percentile}


class KLCalibrator(Calibrator):
    """The range whose clipped histogram diverges least from its quantized one. See sweeps.kl_sweep.

    An outlier beyond about 2^16 / levels times the bulk (500 at 8 bits symmetric) leaves fewer bins
    than levels under it: the result is min-max. Use percentile, or summary=DyadicHistogram(2**20).
    Not for regression on data with long tails: it counts the clipped values and does not see how
    far they are cut (kl.py); there it loses 10 dB and more against MSECalibrator.
    Source: Migacz, "8-bit Inference with TensorRT", 2017.
    """

    rule = RangeRule("kl", DyadicHistogram, kl_range, kl_sweep, most_bits=8)


class MSECalibrator(Calibrator):
    """The range with the smallest mean squared quantization error on the histogram."""

    rule = RangeRule("mse", DyadicHistogram, mse_range, mse_sweep)
