"""Histograms: every count against exact rational arithmetic, percentiles against NumPy."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from summary_cases import any_float32, assert_same_bits, collected, data

from ptq_course.errors import CalibrationError
from ptq_course.ranges import histograms
from ptq_course.ranges.counting import BLOCK
from ptq_course.ranges.histograms import (
    DyadicHistogram,
    FloatBitHistogram,
    dyadic_lattice,
    float_bit_edges,
    halve,
)

max_bins = st.sampled_from([2, 3, 100, 128, 2048, 2**16])


def nonzero_bins(hist):
    """{bin number: count} of the bins that hold something."""
    return {hist.first + int(i): int(hist.counts[i]) for i in np.flatnonzero(hist.counts)}


# --- the dyadic histogram ------------------------------------------------------------------------


@given(data, max_bins)
def test_every_value_is_in_the_bin_that_exact_arithmetic_says(x, bins):
    hist = collected(lambda: DyadicHistogram(bins), x)
    expected = {}
    for value in x.tolist():
        if value != 0:
            number = math.floor(Fraction(value) / Fraction(2) ** hist.exponent)
            expected[number] = expected.get(number, 0) + 1
    assert nonzero_bins(hist) == expected
    assert hist.zeros == x.tolist().count(0.0)
    assert hist.count == len(x) == hist.counts.sum() + hist.zeros
    assert (hist.min_val, hist.max_val) == (float(x.min()), float(x.max()))
    assert hist.counts.dtype == np.int64


@given(st.tuples(any_float32, any_float32).map(sorted), max_bins)
def test_lattice_is_the_finest_that_covers_the_range_and_zero(bounds, bins):
    def needed(exponent):
        unit = Fraction(2) ** exponent
        return [math.floor(Fraction(b) / unit) for b in (min(bounds[0], 0), max(bounds[1], 0))]

    exponent, first, number = dyadic_lattice(*bounds, bins)
    assert [first, first + number - 1] == needed(exponent)
    assert first <= 0 < first + number
    assert number <= bins
    if exponent > -149:
        finer = needed(exponent - 1)
        assert finer[1] - finer[0] + 1 > bins


@pytest.mark.parametrize("before", [[], [torch.zeros(5)]], ids=["new", "zeros only"])
def test_an_empty_lattice_is_not_coarsened(before, monkeypatch):
    """It begins at 2^-149: adding neighbours some 140 times cost more than counting."""
    hist = collected(DyadicHistogram, *before)
    monkeypatch.setattr(histograms, "halve", None)
    hist.update(torch.tensor([-1.0, 2.0]))
    assert list(nonzero_bins(hist).values()) == [1, 1]


def test_tiny_negative_values_lie_below_zero_whatever_the_width():
    """Scaled in float32 they would underflow to zero and land on its right."""
    tiny = 2.0**-149
    for huge in (1.0, 1e5, 3e38):
        hist = collected(DyadicHistogram, torch.tensor([-tiny, -1e-38, tiny, huge, 0.0, -0.0]))
        assert nonzero_bins(hist)[-1] == 2
        assert nonzero_bins(hist)[0] == 1
        assert hist.zeros == 2


@pytest.mark.parametrize("power", [-149, -140, -127, -126, -60, -17, 0, 14, 15, 16, 17, 60, 127])
@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_constants_of_every_magnitude(power, sign):
    constant = sign * 2.0**power
    hist = collected(DyadicHistogram, torch.full((1000,), constant))
    (number,) = nonzero_bins(hist)
    assert number * Fraction(hist.width) <= Fraction(constant) < (number + 1) * Fraction(hist.width)
    assert (hist.min_val, hist.max_val) == (constant, constant)


def test_one_sided_data_use_all_bins_on_one_side():
    x = torch.linspace(0, 0.999, 1001)
    both = collected(DyadicHistogram, torch.cat([x, -x]))
    right, left = collected(DyadicHistogram, x), collected(DyadicHistogram, -x)
    assert right.exponent == left.exponent == -16
    assert both.exponent == -15
    assert right.first == 0
    assert left.first + len(left.counts) == 1  # the last bin is the one that begins at zero
    assert len(right.counts) > 65_000


def test_edges_and_width():
    hist = collected(lambda: DyadicHistogram(8), torch.tensor([-1.0, 2.5, 0.0]))
    assert hist.width == 0.5
    assert hist.edges().tolist() == [-1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0]
    assert hist.counts.tolist() == [1, 0, 0, 0, 0, 0, 0, 1]


def test_magnitudes_fold_the_negative_side():
    hist = collected(
        lambda: DyadicHistogram(8), torch.tensor([-1.75, -0.25, 0.25, 0.75, 0.8, 1.2, 0.0])
    )
    counts, width = hist.magnitudes()
    assert width == 0.5
    assert counts.tolist() == [2, 2, 1, 1]
    assert counts.sum() == hist.counts.sum()
    left, _ = collected(lambda: DyadicHistogram(8), torch.tensor([-3.0, -0.5])).magnitudes()
    assert left.tolist() == [1, 0, 0, 0, 0, 1]  # -0.5 ends the bin (0, 0.5], -3 the bin (2.5, 3]


@given(st.lists(st.integers(0, 9), min_size=1, max_size=12), st.integers(-9, 9))
def test_halving_adds_neighbours(counts, first):
    halved, new_first = halve(np.array(counts), first)
    expected = {}
    for number, count in enumerate(counts, first):
        expected[number // 2] = expected.get(number // 2, 0) + count
    assert {new_first + i: int(c) for i, c in enumerate(halved)} == expected


def test_an_outlier_leaves_enough_bins_under_it():
    """A hundred times the bulk: more than 600 of 65536 bins remain for the bulk."""
    hist = collected(DyadicHistogram, torch.cat([torch.rand(10_000), torch.tensor([100.0])]))
    assert 1 / hist.width > 500


def test_more_than_one_block():
    x = torch.randn(2, BLOCK + 77).relu()
    hist = collected(DyadicHistogram, x)
    assert hist.count == x.numel() == hist.counts.sum() + hist.zeros
    assert hist.zeros == int((x == 0).sum())
    expected = np.bincount((x[x > 0].double() / hist.width).floor().long().numpy())
    assert np.array_equal(np.trim_zeros(hist.counts, "b"), expected)
    pieces = collected(DyadicHistogram, *x.reshape(-1).split(100_000))
    assert_same_bits(hist, pieces)


def test_memory_does_not_grow():
    hist = collected(DyadicHistogram, torch.randn(1000))
    assert len(hist.counts) <= 2**16
    for power in range(-30, 30, 5):
        hist.update(torch.randn(1000) * 10.0**power)
        assert len(hist.counts) <= 2**16


@pytest.mark.parametrize("bins", [1, 0, -5, 2**25, 2.5, "many", True])
def test_refuses_other_numbers_of_bins(bins):
    with pytest.raises(CalibrationError, match="max_bins"):
        DyadicHistogram(bins)


def test_empty_histogram():
    hist = DyadicHistogram()
    assert hist.count == hist.zeros == hist.counts.sum() == 0
    assert hist.magnitudes()[0].tolist() == [0]


def test_only_zeros():
    hist = collected(DyadicHistogram, torch.zeros(7))
    assert (hist.zeros, hist.counts.sum(), hist.min_val, hist.max_val) == (7, 0, 0.0, 0.0)
    hist.update(torch.tensor([-3.0, 5.0]))
    assert_same_bits(hist, collected(DyadicHistogram, torch.tensor([-3.0, 5.0] + [0.0] * 7)))


# --- float-bit bins ------------------------------------------------------------------------------


@given(data)
def test_every_value_is_inside_its_float_bit_bin(x):
    hist = collected(FloatBitHistogram, x)
    edges = float_bit_edges()
    expected = np.zeros(2**16, dtype=np.int64)
    for value in x.tolist():
        if math.copysign(1, value) > 0:
            expected[np.searchsorted(edges, value, side="right") - 1] += 1
        else:
            expected[2**15 - 1 - (np.searchsorted(edges, -value, side="right") - 1 - 2**15)] += 1
    assert np.array_equal(hist.counts, expected)
    assert hist.counts.dtype == np.int64


def test_bins_are_in_order_and_under_one_percent_wide():
    edges = float_bit_edges()
    assert len(edges) == 2**16 + 1
    assert np.array_equal(edges, -edges[::-1])
    inside = edges[np.isfinite(edges)]
    assert (np.diff(inside) > 0).all()
    normal = inside[inside >= 2.0**-126]
    assert (normal[1:] / normal[:-1]).max() <= 1 + 2**-7


@given(data, st.floats(0, 100))
def test_percentile_is_within_a_bin_of_the_exact_one(x, p):
    values = x.double().numpy()
    low, exact, high = (
        np.quantile(values, p / 100, method=method) for method in ("lower", "linear", "higher")
    )
    found = collected(FloatBitHistogram, x).percentile(p)
    assert abs(found - exact) <= (2**-7 + 1e-9) * max(abs(low), abs(high)) + 2.0**-132
    assert x.min() <= found <= x.max()


@pytest.mark.parametrize("kind", ["normal", "relu", "laplace", "uniform", "lognormal"])
@pytest.mark.parametrize("outlier", [None, 1e6])
@pytest.mark.parametrize("p", [0, 0.1, 25, 50, 90, 99, 99.9, 99.99, 100])
def test_percentiles_of_real_shapes_within_one_percent(kind, outlier, p):
    rng = np.random.default_rng(5)
    x = {
        "normal": lambda: rng.normal(1, 3, 200_000),
        "relu": lambda: np.maximum(rng.normal(0, 1, 200_000), 0),
        "laplace": lambda: rng.laplace(0, 1, 200_000),
        "uniform": lambda: rng.uniform(-1, 2, 200_000),
        "lognormal": lambda: rng.lognormal(0, 2, 200_000),
    }[kind]().astype(np.float32)
    if outlier:
        x = np.append(x, np.float32(outlier))
    exact = np.quantile(x.astype(np.float64), p / 100)
    found = collected(FloatBitHistogram, torch.from_numpy(x)).percentile(p)
    assert found == pytest.approx(exact, rel=0.01, abs=1e-4)
    if p in (0, 100):
        assert found == exact


@pytest.mark.parametrize("p", [-0.1, 100.1, math.nan])
def test_percentile_outside_0_to_100(p):
    with pytest.raises(CalibrationError, match="percentile"):
        collected(FloatBitHistogram, torch.zeros(1)).percentile(p)


def test_percentile_before_data():
    with pytest.raises(CalibrationError, match="no calibration data"):
        FloatBitHistogram(name="conv1").percentile(50)
