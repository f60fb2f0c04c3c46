"""The KL sweep: against Migacz's example, against scipy, the loop against the prefix sums."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import entropy

from ptq_course.errors import CalibrationError, QuantizationError
from ptq_course.grids.affine import IntGrid, choose_qparams, fake_quantize
from ptq_course.grids.metrics import sqnr_db
from ptq_course.ranges.histograms import DyadicHistogram
from ptq_course.ranges.kl import (
    best_candidate,
    candidate_stops,
    clipped_histogram,
    kl_divergence,
    kl_divergences,
    kl_divergences_loop,
    requantized_histogram,
)
from ptq_course.ranges.mse import squared_errors
from ptq_course.ranges.rules import kl_range


def oracle(counts, levels, stop, start=0):
    """KL of one window, written apart from the package: labels, no slices; scipy's entropy."""
    window = np.asarray(counts[start:stop], float)
    reference = window.copy()
    reference[0] += np.sum(counts[:start])
    reference[-1] += np.sum(counts[stop:])
    edges = np.floor(np.arange(levels + 1) * len(window) / levels)
    label = np.searchsorted(edges, np.arange(len(window)), side="right") - 1
    filled = reference != 0
    mass = np.bincount(label, weights=window, minlength=levels)
    share = np.bincount(label, weights=filled, minlength=levels)
    quantized = np.where(filled, mass[label] / np.maximum(share[label], 1), 0)
    if quantized.sum() == 0:
        return np.inf
    return entropy(reference, quantized)  # normalises both; infinite where only P has mass


def assert_equal_divergences(a, b, tolerance=1e-9):
    assert np.array_equal(np.isinf(a), np.isinf(b))
    np.testing.assert_allclose(
        np.where(np.isinf(a), 0, a), np.where(np.isinf(b), 0, b), rtol=0, atol=tolerance
    )


counts_of_any_kind = st.lists(
    st.one_of(st.just(0), st.integers(0, 5), st.integers(0, 10**4), st.integers(0, 10**13)),
    min_size=1,
    max_size=80,
).filter(any)


@st.composite
def histogram_with_windows(draw):
    counts = np.array(draw(counts_of_any_kind))
    pairs = st.tuples(st.integers(0, len(counts)), st.integers(0, len(counts)))
    windows = draw(st.lists(pairs.filter(lambda p: p[0] != p[1]), min_size=1, max_size=12))
    return counts, np.min(windows, axis=1), np.max(windows, axis=1)


def test_migacz_example():
    """The eight bins and two levels of the 2017 slides."""
    counts = [1, 0, 2, 3, 5, 3, 1, 7]
    q = requantized_histogram(counts, levels=2, stop=8)
    assert q.tolist() == [2, 0, 2, 2, 4, 4, 4, 4]


def test_four_bins_by_hand():
    """Keep 2 of the bins 4 2 1 1 with one level: P = 4 4, Q = 3 3. With two levels Q = 4 2."""
    counts = [4, 2, 1, 1]
    assert clipped_histogram(counts, stop=2).tolist() == [4, 4]
    assert requantized_histogram(counts, 1, stop=2).tolist() == [3, 3]
    assert kl_divergences(counts, 1, [2]) == pytest.approx(0, abs=1e-12)
    by_hand = 0.5 * np.log(0.5 / (4 / 6)) + 0.5 * np.log(0.5 / (2 / 6))
    assert kl_divergences(counts, 2, [2]) == pytest.approx(by_hand, abs=1e-12)


def test_outliers_go_to_both_edges_and_not_into_q():
    counts = [1, 2, 3, 4, 5, 6]
    assert clipped_histogram(counts, stop=4, start=1).tolist() == [3, 3, 15]
    assert requantized_histogram(counts, 3, stop=4, start=1).tolist() == [2, 3, 4]


def test_groups_differ_by_one_bin_at_most():
    """Seven bins in three groups: 2, 2 and 3, not 2, 2 and all that is left of a larger window."""
    q = requantized_histogram([1, 3, 5, 7, 0, 3, 9], levels=3, stop=7)
    assert q.tolist() == [2, 2, 6, 6, 0, 6, 6]


@settings(max_examples=150, deadline=None)
@given(histogram_with_windows(), st.integers(1, 20))
def test_loop_and_prefix_sums_equal_scipy(case, levels):
    counts, starts, stops = case
    expected = np.array([oracle(counts, levels, b, a) for a, b in zip(starts, stops, strict=True)])
    assert_equal_divergences(kl_divergences_loop(counts, levels, stops, starts), expected)
    assert_equal_divergences(kl_divergences(counts, levels, stops, starts), expected)


@settings(max_examples=100, deadline=None)
@given(counts_of_any_kind, st.integers(1, 20))
def test_thresholds_of_loop_prefix_sums_and_scipy_are_identical(counts, levels):
    stops = candidate_stops(len(counts), levels)
    expected = [oracle(counts, levels, stop) for stop in stops]
    best = best_candidate(expected)
    assert best_candidate(kl_divergences(counts, levels)) == best
    assert best_candidate(kl_divergences_loop(counts, levels)) == best


@pytest.mark.parametrize("levels", [8, 128, 256])
def test_thresholds_on_real_shapes(levels):
    """2,048 bins of a hundred thousand values: divergences and threshold, against scipy."""
    rng = np.random.default_rng(levels)
    for values in (
        rng.laplace(size=100_000),
        rng.normal(size=100_000),
        rng.lognormal(size=100_000),
    ):
        counts = np.histogram(np.abs(values), bins=2048)[0]
        stops = candidate_stops(2048, levels, 200)
        expected = [oracle(counts, levels, stop) for stop in stops]
        actual = kl_divergences(counts, levels, stops)
        assert_equal_divergences(actual, np.array(expected))
        assert best_candidate(actual) == best_candidate(expected)


def test_many_bins_and_huge_counts_stay_precise():
    """65,536 bins whose counts reach 1e15: prefix sums of large numbers lose no more than 1e-9."""
    bins = np.arange(2**16)
    counts = (1e15 * np.exp(-bins / 4000)).astype(np.int64)
    stops = candidate_stops(2**16, 128, 12)
    expected = [oracle(counts, 128, stop) for stop in stops]
    assert_equal_divergences(kl_divergences(counts, 128, stops), np.array(expected))


def test_no_more_bins_than_levels_leaves_one_candidate():
    """The trap of 128 bins: nothing is searched, the answer is min-max whatever the data are."""
    counts = np.r_[np.full(100, 1000), np.zeros(27, int), 1]
    for levels in (128, 200):
        assert candidate_stops(128, levels).tolist() == [128]
        assert kl_divergences(counts, levels).tolist() == pytest.approx([0], abs=1e-12)
    assert len(kl_divergences(counts, 127)) == 2


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 70_000), st.integers(1, 70_000), st.integers(1, 300))
def test_candidates_increase_from_levels_to_all_bins(bins, levels, candidates):
    stops = candidate_stops(bins, levels, candidates)
    assert stops[-1] == bins
    assert np.all(np.diff(stops) > 0)
    assert len(stops) <= max(candidates, 2)
    assert stops[0] == min(levels, bins) or candidates == 1
    if bins > levels:  # neighbours are as far apart as a geometric progression, or one bin
        ratio = (bins / levels) ** (1 / max(1, len(stops) - 1))
        assert np.all(np.diff(stops) <= 1 + 2 * (ratio - 1) * bins)


def test_outliers_on_an_empty_edge_bin_are_finite_when_their_group_has_mass():
    counts = [5, 5, 5, 0, 2]
    p, q = clipped_histogram(counts, 4), requantized_histogram(counts, 2, 4)
    assert p.tolist() == [5, 5, 5, 2]
    assert q.tolist() == [5, 5, 2.5, 2.5]
    assert np.isfinite(kl_divergences(counts, 2, [4])).all()


def test_outliers_on_an_empty_group_are_infinitely_far():
    counts = [5, 5, 0, 0, 2]
    assert (
        kl_divergence(clipped_histogram(counts, 4), requantized_histogram(counts, 2, 4)) == np.inf
    )
    assert kl_divergences(counts, 2, [4]).tolist() == [np.inf]
    assert np.isfinite(kl_divergences(counts, 2, [5])).all()  # all bins: no outliers


@pytest.mark.parametrize("place", [0, 1, 30, 63])
def test_all_mass_in_one_bin(place):
    """Windows that hold the bin cost nothing, ties go to the largest; others are infinite."""
    counts = np.zeros(64, int)
    counts[place] = 7
    divergences = kl_divergences(counts, 4)
    stops = candidate_stops(64, 4)
    assert np.array_equal(np.isinf(divergences), stops <= place)
    assert divergences[stops > place] == pytest.approx(0, abs=1e-12)
    assert stops[best_candidate(divergences)] == 64


def test_ties_go_to_the_larger_threshold():
    assert best_candidate([3.0, 1.0, 2.0, 1.0, 5.0]) == 3
    assert best_candidate([1.0, 1.0 - 1e-12, 1.0 + 1e-12]) == 2
    assert best_candidate([np.inf, 2.0]) == 1


@settings(max_examples=50, deadline=None)
@given(counts_of_any_kind, st.integers(2, 20), st.integers(2, 1000))
def test_more_of_the_same_data_changes_nothing(counts, levels, times):
    counts = np.array(counts)
    a, b = kl_divergences(counts, levels), kl_divergences(counts * times, levels)
    assert_equal_divergences(a, b)


@settings(max_examples=50, deadline=None)
@given(histogram_with_windows(), st.integers(1, 20))
def test_mirrored_histograms_with_equal_groups_agree(case, levels):
    """Where groups are equally wide, left and right are treated alike."""
    counts, starts, stops = case
    bins = len(counts)
    even = (stops - starts) % levels == 0
    starts, stops = starts[even], stops[even]
    if not len(starts):
        return
    mirrored = kl_divergences(counts[::-1], levels, bins - starts, bins - stops)
    assert_equal_divergences(kl_divergences(counts, levels, stops, starts), mirrored)


def test_divergence_of_equal_distributions_is_zero_and_otherwise_positive():
    assert kl_divergence([1, 2, 3], [2, 4, 6]) == pytest.approx(0, abs=1e-15)
    assert kl_divergence([1, 2, 3], [3, 2, 1]) > 0
    assert kl_divergence([0, 1], [1, 0]) == np.inf
    assert kl_divergence([0, 1], [1, 1]) == pytest.approx(np.log(2))


def test_sampling_noise_costs_half_a_nat_per_free_bin():
    """Uniform data, nothing clipped or lost: what remains is (bins - levels) / 2N on average."""
    counts = np.random.default_rng(0).poisson(100, size=8192)
    (divergence,) = kl_divergences(counts, 128, [8192])
    assert divergence == pytest.approx((8192 - 128) / (2 * counts.sum()), rel=0.05)


def test_counts_are_not_changed():
    counts = np.array([5, 0, 3, 1, 0, 2])
    before = counts.copy()
    kl_divergences(counts, 2)
    kl_divergences_loop(counts, 2)
    assert np.array_equal(counts, before)


@pytest.mark.parametrize(("start", "stop"), [(0, 0), (2, 2), (0, 4), (-1, 2), (3, 1)])
def test_a_window_is_inside_the_histogram(start, stop):
    for call in (
        lambda: clipped_histogram([1, 2, 3], stop, start),
        lambda: requantized_histogram([1, 2, 3], 2, stop, start),
    ):
        with pytest.raises(QuantizationError, match="start < stop <= 3 bins"):
            call()
    with pytest.raises(QuantizationError, match="levels must be an integer of at least 1, got 0"):
        requantized_histogram([1, 2, 3], 0, 3)


@pytest.mark.parametrize(
    ("p", "q", "words"),
    [
        ([1, 2], [1, 2, 3], r"shapes \(2,\) and \(3,\)"),
        ([[1, 2]], [[1, 2]], "shapes"),
        ([1, -1, 3], [1, 1, 1], "negative"),
        ([1, 1, 1], [1, -1, 3], "negative"),
        ([0, 0], [1, 1], "not all 0"),
        ([], [], "not all 0"),
        ([1, np.nan], [1, 1], "finite"),
        ([1, 1], [1, np.inf], "finite"),
    ],
)
def test_what_is_no_distribution_is_refused(p, q, words):
    with pytest.raises(QuantizationError, match=words):
        kl_divergence(p, q)


@pytest.mark.parametrize("search", [kl_divergences, kl_divergences_loop])
class TestErrors:
    def test_no_windows(self, search):
        with pytest.raises(QuantizationError, match="no window to try"):
            search([1, 2, 3], 2, [])

    @pytest.mark.parametrize("counts", [[], [0, 0, 0], [[1, 2], [3, 4]]])
    def test_no_histogram(self, search, counts):
        with pytest.raises(CalibrationError, match="one-dimensional with a count above 0"):
            search(counts, 2)

    @pytest.mark.parametrize("counts", [[1, -1, 3], [1.0, np.nan], [1.0, np.inf]])
    def test_bad_counts(self, search, counts):
        with pytest.raises(CalibrationError, match="finite counts"):
            search(counts, 1)

    def test_levels(self, search):
        with pytest.raises(
            QuantizationError, match="levels must be an integer of at least 1, got 0"
        ):
            search([1, 2], 0)

    @pytest.mark.parametrize(("starts", "stops"), [(0, [4]), (-1, [2]), (2, [2]), ([0, 3], [3, 1])])
    def test_windows(self, search, starts, stops):
        with pytest.raises(QuantizationError, match="start < stop <= 3 bins"):
            search([1, 2, 3], 2, stops, starts)


def test_the_divergence_does_not_know_how_far_the_clipped_values_lie():
    """Why KL must not be used where rare large values are the answer: the error grows, KL does not.

    A thousandth of the values lies in one bin beyond the threshold, near it or far away.
    """
    bulk = np.full(256, 1000.0)
    divergences, errors = [], []
    for far in (300, 3000, 30000):
        counts = np.zeros(far + 1)
        counts[:256] = bulk
        counts[far] = 256.0
        divergences.append(float(kl_divergences(counts, 128, [256])[0]))
        errors.append(float(squared_errors([], counts, [256 / 255], 0, 255)[0]))
    assert divergences[0] == pytest.approx(divergences[2], abs=1e-12)
    assert errors[2] > 1000 * errors[0]


@pytest.mark.parametrize(
    ("draw", "low", "high"),
    [("normal", -0.5, 3.0), ("exponential", -0.5, 3.0), ("lognormal", -12.0, -5.0)],
)
def test_kl_is_as_good_as_min_max_but_on_a_long_dense_tail(draw, low, high):
    """Decibels of KL minus those of min-max at 8 bits: the docstring of kl.py and chapter 03."""
    x = torch.tensor(getattr(np.random.default_rng(0), draw)(size=400_000), dtype=torch.float32)
    hist, grid = DyadicHistogram(), IntGrid(8, signed=False)
    hist.update(x)
    ends = kl_range(hist, grid, symmetric=False), (hist.min_val, hist.max_val)
    by_kl, by_minmax = (sqnr_db(x, fake_quantize(x, choose_qparams(*e, grid))) for e in ends)
    assert low < by_kl - by_minmax < high
