"""The expected squared error of a scale: against integrals bin by bin, and against real samples."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, optimize, stats

from ptq_course.ranges.mse import best_split_errors, excess_table, squared_errors, sum_of_squares


def integrated_error(positive, scale, above):
    """The same error the long way: bins cut where the nearest code changes, an integral each."""
    total = 0.0
    boundaries = (np.arange(above) + 0.5) * scale
    for j, count in enumerate(positive):
        cuts = np.unique(np.clip(np.r_[j, boundaries, j + 1], j, j + 1))
        for left, right in itertools.pairwise(cuts):
            code = np.sum(boundaries < (left + right) / 2)
            x = code * scale
            total += count * ((right - x) ** 3 - (left - x) ** 3) / 3
    return total


counts = st.lists(st.integers(0, 1000), min_size=1, max_size=30)
scales = st.floats(0.05, 20)


@settings(max_examples=100, deadline=None)
@given(counts, counts, scales, st.integers(0, 20), st.integers(0, 20))
def test_equals_the_integral(negative, positive, scale, below, above):
    expected = integrated_error(negative, scale, below) + integrated_error(positive, scale, above)
    (actual,) = squared_errors(negative, positive, [scale], below, above)
    assert actual == pytest.approx(expected, rel=1e-9, abs=1e-6)


@settings(max_examples=60, deadline=None)
@given(counts, counts, scales, st.integers(2, 17))
def test_best_split_is_the_best_of_all_splits(negative, positive, scale, levels):
    (error,), (below,) = best_split_errors(negative, positive, [scale], levels)
    each = [
        squared_errors(negative, positive, [scale], b, levels - 1 - b)[0] for b in range(levels)
    ]
    assert error == pytest.approx(min(each), rel=1e-9, abs=1e-6)
    assert each[below] == pytest.approx(min(each), rel=1e-9, abs=1e-6)


@settings(max_examples=60, deadline=None)
@given(counts, st.lists(st.floats(0, 40), min_size=1, max_size=10))
def test_excess_is_the_mean_of_what_lies_beyond(positive, thresholds):
    """Against 2,000 evenly spread values per bin."""
    inside = (np.arange(2000) + 0.5) / 2000
    values = np.arange(len(positive))[:, None] + inside
    actual = excess_table(positive)(np.array(thresholds))
    for t, excess in zip(thresholds, actual, strict=True):
        expected = np.array(positive) @ np.maximum(values - t, 0).mean(axis=1)
        assert excess == pytest.approx(expected, rel=1e-5, abs=1e-3)


def test_measured_on_real_samples():
    """Quantize the samples themselves: the histogram predicts their error to 0.1 %."""
    x = np.random.default_rng(0).laplace(size=200_000)
    width = 2.0**-10
    positive = np.bincount(np.floor(x[x >= 0] / width).astype(int))
    negative = np.bincount(np.floor(-x[x < 0] / width).astype(int))
    for scale, below, above in ((0.05, 128, 127), (0.5, 8, 7), (0.5, 3, 12), (2.0, 2, 1)):
        decoded = np.clip(np.round(x / scale), -below, above) * scale
        (predicted,) = squared_errors(negative, positive, [scale / width], below, above)
        measured = np.sum((x - decoded) ** 2)
        assert predicted * width**2 == pytest.approx(measured, rel=1e-3)


def test_no_codes_leave_the_data_themselves():
    assert squared_errors([3, 1], [0, 2], [1.0], 0, 0) == pytest.approx(
        sum_of_squares([3, 1]) + sum_of_squares([0, 2])
    )
    assert sum_of_squares([1]) == pytest.approx(1 / 3)


def test_one_empty_side_costs_nothing():
    assert squared_errors([], [0, 2], [0.5], 7, 7) == squared_errors([0], [0, 2], [0.5], 0, 7)


def exact_counts(distribution, reach, bins=2**16, total=1e12):
    """Counts of |x| for a symmetric density with hardly any sampling noise; and the bin width."""
    edges = np.linspace(0, reach, bins + 1)
    return np.diff(2 * distribution.cdf(edges) * total).round(), reach / bins


def mean_squared_error(distribution, scale, codes):
    """Of a symmetric grid -codes..codes, by numerical integration over each rounding cell."""
    error = 0.0
    for k in range(codes + 1):
        left, right = max(k - 0.5, 0) * scale, np.inf if k == codes else (k + 0.5) * scale
        error += integrate.quad(
            lambda x, k=k: (x - k * scale) ** 2 * distribution.pdf(x), left, right
        )[0]
    return 2 * error


@pytest.mark.parametrize("codes", [1, 3, 7])
@pytest.mark.parametrize("distribution", [stats.norm(), stats.laplace()], ids=["normal", "laplace"])
def test_optimum_equals_numerical_optimisation(distribution, codes):
    """2, 3 and 4 bits on a narrow grid: scipy minimises the integral, the sweep finds the same."""
    counts, width = exact_counts(distribution, 24.0)
    thresholds = np.geomspace(0.5, 24, 4000)
    errors = squared_errors(counts, [], thresholds / codes / width, codes, 0) * width**2 / 1e12
    found = optimize.minimize_scalar(
        lambda t: mean_squared_error(distribution, t / codes, codes),
        bounds=(0.5, 12),
        method="bounded",
        options={"xatol": 1e-6},
    )
    assert thresholds[errors.argmin()] == pytest.approx(found.x, rel=3e-3)
    assert errors.min() == pytest.approx(found.fun, rel=1e-5)


@pytest.mark.parametrize(
    ("distribution", "bits", "published"),
    [
        (stats.laplace(), 2, 2.83),
        (stats.laplace(), 3, 3.89),
        (stats.laplace(), 4, 5.03),
        (stats.norm(), 2, 1.71),
        (stats.norm(), 3, 2.15),
        (stats.norm(), 4, 2.55),
    ],
)
def test_published_clipping_values(distribution, bits, published):
    """Banner et al. 2019 clip to [-a, a] and cut it into 2^bits cells with noise cell^2 / 12.

    Their approximation gives the published a (in standard scales); our exact error of a grid that
    has a code at zero, 2^bits - 1 cells, gives an outer edge of the last cell close to it.
    """

    def clipped(a):
        return 2 * integrate.quad(lambda x: (x - a) ** 2 * distribution.pdf(x), a, np.inf)[0]

    theirs = optimize.minimize_scalar(
        lambda a: clipped(a) + a**2 / (3 * 4**bits), bounds=(0.5, 12), method="bounded"
    )
    assert theirs.x == pytest.approx(published, abs=0.01)

    counts, width = exact_counts(distribution, 24.0)
    codes = 2 ** (bits - 1) - 1
    thresholds = np.geomspace(0.5, 24, 4000)
    errors = squared_errors(counts, [], thresholds / codes / width, codes, 0)
    outer_edge = thresholds[errors.argmin()] * (codes + 0.5) / codes
    assert outer_edge == pytest.approx(published, rel=0.1)
