"""MSE calibration: the mean squared error that a scale would cause, computed from a histogram.

Let a grid have the codes -below..above and decode code c to c * scale. For values x >= 0 rounding
to the nearest code climbs one step at each of the rounding boundaries t_k = (k - 1/2) * scale:

    x_hat   = scale * sum_k [x > t_k]                                          k = 1..above
    x_hat^2 = 2 * scale * sum_k t_k [x > t_k]       because 1 + 3 + ... + (2k - 1) = k^2
    (x - x_hat)^2 = x^2 - 2 * scale * sum_k max(x - t_k, 0)

Saturation is in it: above the last boundary nothing more is subtracted. The mean over the data is

    MSE(scale) = E[x^2] - 2 * scale * sum_k excess(t_k),     excess(t) = E[max(x - t, 0)]

so each code that the grid can afford removes 2 * scale * excess(t_k) from the error, and one prefix
sum answers every scale. Negative values are the same sum on the other side of zero. Zeros cost
nothing, since zero is always a code.

The histogram's values are taken as uniform inside their bin; the rest is exact. All lengths are in
bins (divide by the bin's width to get there, multiply an error by its square to come back), so that
data multiplied by a power of two gives the same numbers.

Choosing the clipping threshold by squared error: Sung, Shin, Hwang, "Resiliency of Deep Neural
Networks under Quantization", 2015; Banner, Nahshan, Soudry, "Post Training 4-bit Quantization of
Convolutional Networks for Rapid-Deployment", 2019 (closed forms of the error for Laplace and
Gaussian data; the threshold where it is smallest is then solved for numerically).
The sum over excesses is this course's own way of evaluating the error.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

BLOCK = 2**16  # (candidate, code) pairs evaluated at a time: temporaries that fit the L2 cache


class Excess(NamedTuple):
    """excess(t) * number of values, for one side of zero; see excess_table."""

    at_edge: NDArray[np.float64]  # [bins + 1] sum of (x - j) over the values above edge j
    beyond: NDArray[np.float64]  # [bins + 1] how many values lie above edge j
    half: NDArray[np.float64]  # [bins + 1] half of how many lie in bin j; a 0 at the end

    def __call__(self, t: NDArray[np.float64]) -> NDArray[np.float64]:
        """sum of max(x - t, 0) over the values x of the histogram; t >= 0 in bins, any shape."""
        t = np.minimum(t, len(self.at_edge) - 1)
        edge = t.astype(np.int64)
        inside = t - edge  # within bin j the values thin out evenly: a parabola
        return self.at_edge[edge] + inside * (inside * self.half[edge] - self.beyond[edge])


def excess_table(counts: ArrayLike) -> Excess:
    """The suffix sums behind excess(t). counts: [bins] from |x| = 0 up; bin j covers [j, j + 1)."""
    counts = np.append(np.asarray(counts), 0).astype(np.float64)
    half = 0.5 * counts
    beyond = np.cumsum(counts[::-1])[::-1]
    steps = beyond - half  # one edge further down, the values above are 1 farther, bin j's 1/2
    return Excess(np.cumsum(steps[::-1])[::-1], beyond, half)


def sum_of_squares(counts: ArrayLike) -> float:
    """Sum of x^2 over the histogram, values uniform inside their bin: j^2 + j + 1/3 for bin j."""
    counts = np.asarray(counts, np.float64)
    j = np.arange(len(counts), dtype=np.float64)
    return float(np.sum(counts * (j * j + j + 1 / 3)))


def folded(negative: ArrayLike, positive: ArrayLike) -> NDArray:
    """Counts of |x| from those of either side of zero, which may differ in length."""
    shorter, longer = sorted((np.asarray(negative), np.asarray(positive)), key=len)
    both = longer.copy()
    both[: len(shorter)] += shorter.astype(both.dtype)
    return both


def squared_errors(
    negative: ArrayLike, positive: ArrayLike, scales: ArrayLike, below: int, above: int
) -> NDArray[np.float64]:
    """Summed squared error of quantizing to the codes -below..above, for every scale.

    negative, positive: [bins] counts of |x| from zero outwards, on either side; they may differ in
    length. scales: [candidates] positive, in bins. Returns [candidates], in bins squared.
    Codes that exist on both sides are paid for once, on the histogram of |x|.
    """
    scales = np.asarray(scales, np.float64)
    both, shared = folded(negative, positive), min(below, above)
    longer = negative if below > above else positive
    error = np.full(len(scales), sum_of_squares(both))
    for counts, codes in (
        (both, np.arange(shared)),
        (longer, np.arange(shared, max(below, above))),
    ):
        if not len(codes) or not np.any(counts):
            continue
        excess, boundaries = excess_table(counts), codes + 0.5
        for rows in _row_blocks(len(scales), len(codes)):
            gains = excess(scales[rows, None] * boundaries)
            error[rows] -= 2 * scales[rows] * gains.sum(axis=1)
    return np.maximum(error, 0.0)


def best_split_errors(
    negative: ArrayLike, positive: ArrayLike, scales: ArrayLike, levels: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """For every scale the best way to share levels - 1 codes between the two sides of zero.

    Arguments as in squared_errors. Returns (errors [candidates], below [candidates]): the summed
    squared error with the codes -below..levels - 1 - below, for the best such zero point. All
    splits are compared: the gains of both sides are summed once, from zero outwards.
    """
    scales = np.asarray(scales, np.float64)
    total = sum_of_squares(negative) + sum_of_squares(positive)
    sides = [excess_table(negative), excess_table(positive)]
    boundaries = np.arange(levels - 1) + 0.5
    errors, below = np.empty(len(scales)), np.empty(len(scales), np.int64)
    for rows in _row_blocks(len(scales), levels):
        gains = []
        for excess in sides:
            first_codes = np.cumsum(excess(scales[rows, None] * boundaries), axis=1)
            gains.append(np.pad(first_codes, ((0, 0), (1, 0))))
        both = gains[0] + gains[1][:, ::-1]  # column b: b codes below zero, the others above
        below[rows] = both.argmax(axis=1)
        errors[rows] = total - 2 * scales[rows] * both.max(axis=1)
    return np.maximum(errors, 0.0), below


def _row_blocks(rows: int, columns: int) -> list[slice]:
    """Slices that cover range(rows), each with about BLOCK entries of `columns` columns."""
    step = max(1, BLOCK // columns)
    return [slice(i, i + step) for i in range(0, rows, step)]
