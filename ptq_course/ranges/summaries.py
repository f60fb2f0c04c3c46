"""What calibration collects: statistics of a stream of tensors, in constant memory (chapter 02).

A summary sees each batch once and keeps a few numbers. It obeys the merge law: however the data are
cut into batches, in whatever order, on however many processes, merging gives the bits of one pass:

    summary(a, b, c) == merge(summary(a, b), summary(c))

Floating-point addition alone does not (it is not associative), so sums are kept as integers.
`MovingAverage` breaks the law by its nature and refuses to merge; `BatchExtremaMean` is its cousin
that obeys. Histograms stand in histograms.py; what decides on a range is ranges.py.
"""

from __future__ import annotations

import copy
import json
import math
from fractions import Fraction
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ptq_course.errors import CalibrationError, UnsupportedError, number
from ptq_course.grids.tensors import check_tensor
from ptq_course.ranges.counting import SMALLEST_EXPONENT, exact_sums
from ptq_course.ranges.reduction import check_alike, check_group, gather_texts


class Summary:
    """Base: checks the data, counts it, merges and reduces over processes.

    A subclass holds its statistics as attributes and implements `_collect` and `_absorb`. Both must
    finish computing before they assign, so that a failed update or merge changes nothing. One that
    holds more than numbers (an array) implements `_reduce` too.

    count: how many values were seen. name: the layer or tensor, for error messages only.
    min_val, max_val: the extremes, +inf and -inf before the first update.
    """

    def __init__(self, *, name: str | None = None) -> None:
        self.name = name
        self.count = 0
        self.min_val = math.inf
        self.max_val = -math.inf

    def update(self, x: Tensor) -> None:
        """Take in one batch: a floating-point tensor of any shape, on any device.

        Statistics are of float32 values: float16 and bfloat16 convert exactly, float64 rounds to
        nearest. Raises CalibrationError for NaN, infinity, an empty tensor or one of integers.
        """
        self.take(*checked_values(x, self._label()))

    def take(self, values: Tensor, low: float, high: float) -> None:
        """`update` with what checked_values returned, so that several summaries share the check."""
        self._collect(values, low, high)
        self.count += values.numel()

    def merge(self, other: Summary) -> None:
        """Take in what `other` has seen, as if its batches had come here. `other` is not changed.

        Raises CalibrationError when the two are of different kinds or settings.
        """
        if type(other) is not type(self) or other._settings() != self._settings():
            found = other._kind() if isinstance(other, Summary) else type(other).__name__
            raise CalibrationError(
                f"{self._label()}: cannot merge {found} into {self._kind()}: collect with the same "
                "settings"
            )
        self._absorb(other)
        self.count += other.count

    def all_reduce(self, group: dist.ProcessGroup | None = None) -> None:
        """Merge the summaries of all processes of a torch.distributed group, in every process.

        Every process of the group calls it, once, also one that saw no data. Call it after the last
        update: what is reduced twice is counted twice. Needs a backend for CPU tensors (gloo).
        Raises CalibrationError, in every process, where their kinds or settings differ.
        """
        check_group(group, self._label())
        check_alike(self._kind(), group, self._label())
        self._reduce(group)

    def _reduce(self, group: dist.ProcessGroup | None) -> None:
        """`all_reduce` once it is known that all processes hold this type with these settings."""
        states = map(json.loads, gather_texts(json.dumps(self.state()), group))
        total, *others = (self.from_state(state) for state in states)
        for other in others:
            total.merge(other)
        self.__dict__.update(total.__dict__ | {"name": self.name})

    def state(self) -> dict[str, Any]:
        """Everything that was collected, as a dictionary: equal data, equal state."""
        return copy.deepcopy({k: v for k, v in self.__dict__.items() if k != "name"})

    @classmethod
    def from_state(cls, state: dict[str, Any], *, name: str | None = None) -> Summary:
        """The summary whose `state()` was saved. CalibrationError for that of another class."""
        needed = vars(cls()).keys() - {"name"}
        if state.keys() != needed:
            raise CalibrationError(
                f"{name or cls.__name__}: the state holds {', '.join(sorted(state))}, and a "
                f"{cls.__name__} has {', '.join(sorted(needed))}: restore with the class that saved"
            )
        summary = cls.__new__(cls)
        summary.__dict__.update(copy.deepcopy(state) | {"name": name})
        return summary

    def require_data(self) -> None:
        """Raise CalibrationError if nothing was collected yet."""
        if self.count == 0:
            raise CalibrationError(
                f"{self._label()}: no calibration data yet: call update(x) first, and if the model "
                "was run, check that this layer was reached"
            )

    def _collect(self, values: Tensor, low: float, high: float) -> None:
        """Add float32 `values` (any shape, all finite) whose extremes are low and high."""
        raise NotImplementedError

    def _absorb(self, other: Summary) -> None:
        """Add the statistics of `other`, which has this type and these settings."""
        raise NotImplementedError

    def _settings(self) -> dict[str, Any]:
        return {}

    def _kind(self) -> str:
        settings = ", ".join(f"{key}={value}" for key, value in self._settings().items())
        return f"{type(self).__name__}({settings})"

    def _label(self) -> str:
        return self.name or type(self).__name__


class MinMax(Summary):
    """The smallest and the largest value."""

    def _collect(self, values: Tensor, low: float, high: float) -> None:
        self.min_val, self.max_val = min(self.min_val, low), max(self.max_val, high)

    def _absorb(self, other: MinMax) -> None:
        self._collect(torch.empty(0), other.min_val, other.max_val)


class Moments(Summary):
    """Mean, variance and extremes, from exact sums of x and x^2.

    The sums are Python integers in units of 2^-149 and 2^-298, in which every float32 and every
    square of one is whole; nothing is rounded before `mean` or `var` is asked for. (Kulisch,
    "Computer Arithmetic and Validity", 2008, adds the same way in a long fixed-point register.)
    """

    def __init__(self, *, name: str | None = None) -> None:
        super().__init__(name=name)
        self.sum_units = 0  # sum of x, in units of 2^-149
        self.square_units = 0  # sum of x^2, in units of 2^-298

    @property
    def mean(self) -> float:
        self.require_data()
        return _as_float(Fraction(self.sum_units, self.count), SMALLEST_EXPONENT)

    @property
    def var(self) -> float:
        """Mean square distance from the mean (divided by n, not n - 1)."""
        self.require_data()
        mean = Fraction(self.sum_units, self.count)
        return _as_float(Fraction(self.square_units, self.count) - mean**2, 2 * SMALLEST_EXPONENT)

    @property
    def std(self) -> float:
        return math.sqrt(self.var)

    def _collect(self, values: Tensor, low: float, high: float) -> None:
        added, squared = exact_sums(values, max(-low, high))
        self.sum_units += added
        self.square_units += squared
        self.min_val, self.max_val = min(self.min_val, low), max(self.max_val, high)

    def _absorb(self, other: Moments) -> None:
        self.sum_units += other.sum_units
        self.square_units += other.square_units
        self.min_val = min(self.min_val, other.min_val)
        self.max_val = max(self.max_val, other.max_val)


class MovingAverage(Summary):
    """Exponential moving average of each batch's extremes; the first batch starts it.

        min_val = momentum * min_val + (1 - momentum) * min(batch)

    The result depends on the order of the batches, so two averages cannot be merged.
    Source: Jacob et al., "Quantization and Training of Neural Networks for Efficient
    Integer-Arithmetic-Only Inference", 2018 (section 3.1, for activations).
    """

    def __init__(self, momentum: float = 0.9, *, name: str | None = None) -> None:
        super().__init__(name=name)
        self.momentum = number("momentum", momentum, "[0, 1)", CalibrationError)

    def _collect(self, values: Tensor, low: float, high: float) -> None:
        if self.count:
            low = self.momentum * self.min_val + (1 - self.momentum) * low
            high = self.momentum * self.max_val + (1 - self.momentum) * high
        self.min_val, self.max_val = low, high

    def merge(self, other: Summary) -> None:
        raise UnsupportedError(
            f"{self._label()}: a moving average depends on the order of the batches, so two of "
            "them have no merged value: use BatchExtremaMean, or MinMax, which merge"
        )

    def all_reduce(self, group: dist.ProcessGroup | None = None) -> None:
        if dist.is_available() and dist.is_initialized():
            super().all_reduce(group)  # where another process holds another kind, both hear of it
        self._reduce(group)

    def _reduce(self, group: dist.ProcessGroup | None) -> None:
        self.merge(self)


class BatchExtremaMean(Summary):
    """The mean over batches of each batch's smallest and largest value.

    Smooths like a moving average, but every batch weighs the same, so order does not matter.
    batches: how many were seen. The data must be cut into the same batches to give the same mean.
    """

    def __init__(self, *, name: str | None = None) -> None:
        super().__init__(name=name)
        self.batches = 0
        self.min_units = 0  # sums of batch extremes, in units of 2^-149
        self.max_units = 0

    def _collect(self, values: Tensor, low: float, high: float) -> None:
        low_units, high_units = (int(math.ldexp(v, -SMALLEST_EXPONENT)) for v in (low, high))
        self._add(1, low_units, high_units)

    def _absorb(self, other: BatchExtremaMean) -> None:
        self._add(other.batches, other.min_units, other.max_units)

    def _add(self, batches: int, min_units: int, max_units: int) -> None:
        self.batches += batches
        self.min_units += min_units
        self.max_units += max_units
        if self.batches:
            self.min_val = _as_float(Fraction(self.min_units, self.batches), SMALLEST_EXPONENT)
            self.max_val = _as_float(Fraction(self.max_units, self.batches), SMALLEST_EXPONENT)


def checked_values(x: Tensor, label: str) -> tuple[Tensor, float, float]:
    """x as float32 without gradient, its smallest and its largest value.

    One pass over the data: aminmax carries NaN and infinity into the extremes, so looking at these
    two numbers checks them all. A zero extreme is +0.0 (min(-0.0, 0.0) depends on the order).
    Raises CalibrationError, beginning with `label`, for data that cannot be calibrated on.
    """
    check_tensor(x, label, filled=True, error=CalibrationError)
    values = x.detach().to(torch.float32)
    low, high = torch.stack(torch.aminmax(values)).tolist()
    if not (math.isfinite(low) and math.isfinite(high)):
        nans, infinities = int(torch.isnan(values).sum()), int(torch.isinf(values).sum())
        raise CalibrationError(
            f"{label}: {nans} NaN and {infinities} infinite among {x.numel()} values"
            f"{' after conversion to float32' if x.dtype == torch.float64 else ''}: "
            "look at the input batch and at the layers before this one"
        )
    return values, low + 0.0, high + 0.0


def _as_float(units: Fraction, exponent: int) -> float:
    """units * 2^exponent, rounded once."""
    return float(units * Fraction(2) ** exponent)
