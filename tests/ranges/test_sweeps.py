"""The sweeps behind kl_range and mse_range: scores are what they say, the best is the best."""

import numpy as np
import pytest
import torch
from scipy.stats import entropy

from ptq_course.errors import QuantizationError
from ptq_course.grids.affine import IntGrid, choose_qparams, fake_quantize
from ptq_course.ranges import kl
from ptq_course.ranges.histograms import DyadicHistogram
from ptq_course.ranges.sweeps import kl_sweep, mse_sweep

SIGNED, UNSIGNED = IntGrid(8), IntGrid(8, signed=False)


def dyadic(x, max_bins=2**16):
    hist = DyadicHistogram(max_bins)
    hist.update(torch.as_tensor(x, dtype=torch.float32))
    return hist


def laplace(n=60_000, seed=0):
    return np.random.default_rng(seed).laplace(size=n).astype(np.float32)


def skewed(n=60_000, seed=0):
    return (np.random.default_rng(seed).gamma(2.0, size=n) - 1).astype(np.float32)


CASES = [
    pytest.param(laplace, SIGNED, True, id="symmetric"),
    pytest.param(laplace, UNSIGNED, False, id="two-sided"),
    pytest.param(skewed, IntGrid(4), False, id="two-sided 4 bits"),
    pytest.param(lambda: np.maximum(laplace(), 0), UNSIGNED, True, id="relu"),
    pytest.param(lambda: -np.abs(laplace()), IntGrid(4), False, id="negative"),
]


@pytest.mark.parametrize("sweep", [kl_sweep, mse_sweep])
@pytest.mark.parametrize(("values", "grid", "symmetric"), CASES)
def test_shape_of_a_sweep(sweep, values, grid, symmetric):
    hist = dyadic(values())
    result = sweep(hist, grid, symmetric)
    assert result.searched
    assert len(result.thresholds) == len(result.scores) == len(result.lows) == len(result.highs)
    assert np.all(np.diff(result.thresholds) >= 0)
    assert np.all(result.lows <= 0)
    assert np.all(result.highs >= 0)
    smallest = result.scores.min()
    assert result.scores[result.best] <= smallest + kl.TIE
    assert np.all(result.scores[result.best + 1 :] > smallest)  # ties go to the wider range
    assert result.threshold == result.thresholds[result.best]
    assert result.range == (result.lows[result.best], result.highs[result.best])
    largest = max(-hist.min_val, hist.max_val)
    widest = largest if symmetric or not hist.min_val < 0 < hist.max_val else 2 * largest
    assert result.thresholds[-1] <= widest
    if symmetric or hist.min_val >= 0 or hist.max_val <= 0:
        assert result.thresholds[-1] == largest  # min-max is always among the candidates
    else:
        assert result.thresholds[-1] == hist.max_val - hist.min_val


@pytest.mark.parametrize(("values", "grid", "symmetric"), CASES)
def test_mse_scores_are_measured_errors(values, grid, symmetric):
    """Quantize the data at nine candidates: the sweep predicted each mean squared error to 1 %."""
    x = torch.as_tensor(values())
    sweep = mse_sweep(dyadic(x), grid, symmetric)
    for i in np.linspace(len(sweep.scores) // 3, len(sweep.scores) - 1, 9).astype(int):
        qparams = choose_qparams(float(sweep.lows[i]), float(sweep.highs[i]), grid, symmetric)
        measured = (x.double() - fake_quantize(x, qparams).double()).square().mean()
        assert sweep.scores[i] == pytest.approx(float(measured), rel=0.01)


def test_kl_scores_are_scipys():
    """Classic one-sided search on 1,000 bins, P and Q made here from np.array_split."""
    hist = dyadic(np.abs(laplace()), max_bins=1024)
    counts, width = hist.magnitudes()
    sweep = kl_sweep(hist, IntGrid(4), symmetric=True)
    for i in np.linspace(0, len(sweep.scores) - 1, 25).astype(int):
        stop = min(round(sweep.thresholds[i] / width), len(counts))
        stop = len(counts) if i == len(sweep.scores) - 1 else stop
        if stop % 8:
            continue
        p = counts[:stop].astype(float)
        p[-1] += counts[stop:].sum()
        groups = np.split(counts[:stop], 8), np.split(p > 0, 8)
        q = [c.sum() * f / max(f.sum(), 1) for c, f in zip(*groups, strict=True)]
        assert sweep.scores[i] == pytest.approx(entropy(p, np.concatenate(q)), abs=1e-9)


def test_levels_come_from_the_grid():
    """Symmetric signed: 2^(bits - 1) magnitudes. Unsigned: 2^bits. Affine: every code."""
    counts, width = dyadic(np.abs(laplace()), 4096).magnitudes()
    counts = np.trim_zeros(counts, "b")
    for grid, symmetric, levels in (
        (IntGrid(6), True, 32),
        (IntGrid(6, narrow=True), True, 32),
        (IntGrid(6, signed=False), True, 64),
        (IntGrid(6), False, 64),
        (IntGrid(6, narrow=True), False, 63),
    ):
        sweep = kl_sweep(dyadic(np.abs(laplace()), 4096), grid, symmetric, candidates=50)
        stops = kl.candidate_stops(len(counts), levels, 50)
        assert np.array_equal(sweep.thresholds[:-1], stops[:-1] * width)
        np.testing.assert_allclose(
            sweep.scores, kl.kl_divergences_loop(counts, levels, stops), rtol=0, atol=1e-9
        )


def test_zeros_are_left_out_of_kl_and_count_in_the_squared_error():
    x = np.abs(laplace())
    with_zeros = np.r_[x, np.zeros(len(x), np.float32)]
    for sweep, share in ((kl_sweep, 1.0), (mse_sweep, 0.5)):
        plain, diluted = sweep(dyadic(x), UNSIGNED), sweep(dyadic(with_zeros), UNSIGNED)
        np.testing.assert_allclose(diluted.scores, plain.scores * share, rtol=1e-12, atol=1e-12)
        assert diluted.threshold == plain.threshold


def test_the_extra_code_of_a_full_range_grid():
    """-128 decodes below -T: a full grid clips negative values a step later than a narrow one."""
    x = -np.abs(laplace(20_000))
    full = mse_sweep(dyadic(x), IntGrid(3), True)
    narrow = mse_sweep(dyadic(x), IntGrid(3, narrow=True), True)
    assert np.all(full.scores <= narrow.scores)
    assert np.all(full.scores[:1500] < narrow.scores[:1500])
    assert full.threshold < narrow.threshold
    mirrored = mse_sweep(dyadic(-x), IntGrid(3), True)  # no use for it above zero
    np.testing.assert_allclose(mirrored.scores, narrow.scores, rtol=1e-3)


@pytest.mark.parametrize("symmetric", [True, False])
def test_a_histogram_of_128_bins_is_minmax_in_disguise(symmetric):
    """Not searched, and it says so; with 2^16 bins the same data are clipped."""
    x = np.abs(np.r_[laplace(), np.float32(200)])
    sweep = kl_sweep(dyadic(x, max_bins=128), SIGNED, symmetric)
    assert not sweep.searched
    assert sweep.range.high == 200
    assert kl_sweep(dyadic(x), SIGNED, symmetric).range.high < 20
    assert mse_sweep(dyadic(x, max_bins=128), SIGNED, symmetric).searched


@pytest.mark.parametrize(("outlier", "searched"), [(1500.0, True), (2048.0, False)])
def test_an_outlier_that_hides_the_bulk_says_so(outlier, searched):
    """The levels need more bins than remain below it: all windows but the widest are infinite."""
    x = np.r_[np.random.default_rng(0).normal(size=100_000), outlier]
    sweep = kl_sweep(dyadic(x), SIGNED)
    assert sweep.searched == searched
    assert (sweep.range.high < 10) == searched
    finer = kl_sweep(dyadic(x, max_bins=2**20), SIGNED)  # the remedy
    assert finer.searched
    assert finer.range.high < 10


@pytest.mark.parametrize("sweep", [kl_sweep, mse_sweep])
@pytest.mark.parametrize("candidates", [1, 0, -5, True, 2.0, "many", None])
def test_the_number_of_candidates_is_checked(sweep, candidates):
    with pytest.raises(QuantizationError, match="candidates must be an integer of at least 2"):
        sweep(dyadic(laplace()), SIGNED, candidates=candidates)
    assert len(sweep(dyadic(laplace()), SIGNED, candidates=np.int64(2)).scores) == 2


def test_resolution_does_not_suffer_from_an_outlier_a_hundred_times_the_bulk():
    """Candidates lie within 1 % of each other near a threshold of 1/100 of the maximum."""
    x = np.random.default_rng(0).normal(size=100_000)
    alone = kl_sweep(dyadic(x), SIGNED)
    outlier = kl_sweep(dyadic(np.r_[x, 450.0]), SIGNED)
    assert outlier.threshold == pytest.approx(alone.threshold, rel=0.15)
    near = outlier.thresholds[np.searchsorted(outlier.thresholds, 4.5) - 1 :][:2]
    assert near[1] / near[0] < 1.01


@pytest.mark.parametrize("bits", [4, 5])
@pytest.mark.parametrize("values", [laplace, skewed])
def test_coordinate_descent_comes_close_to_the_best_pair_of_ends(values, bits):
    """All pairs of ends on a coarse histogram: the descent's divergence is at most 15 % larger."""
    hist, grid = dyadic(values(), max_bins=256), IntGrid(bits)
    bins, zero = len(hist.counts), -hist.first
    windows = [
        (a, b) for a in range(zero) for b in range(zero + 1, bins + 1) if b - a >= grid.levels
    ]
    starts, stops = np.array(windows).T
    brute = kl.kl_divergences(hist.counts, grid.levels, stops, starts)
    found = kl_sweep(hist, grid, symmetric=False)
    full = kl.kl_divergences(hist.counts, grid.levels, [bins])[0]
    assert brute.min() <= found.scores.min() + 1e-9
    assert found.scores.min() <= 1.15 * brute.min()
    assert found.scores.min() < 0.6 * full


def test_the_two_sided_mse_search_uses_the_skew():
    """Affine levels go where the data are: smaller error than the symmetric grid's."""
    hist = dyadic(skewed())
    affine, symmetric = mse_sweep(hist, SIGNED, False), mse_sweep(hist, SIGNED, True)
    assert affine.scores.min() < 0.5 * symmetric.scores.min()
    assert -affine.range.low < 0.2 * affine.range.high


@pytest.mark.parametrize("sweep", [kl_sweep, mse_sweep])
def test_candidates_are_bounded_by_the_levels(sweep):
    """2^18 pairs of candidate and level at most, and 64 candidates at least."""
    hist = dyadic(np.abs(laplace()))
    assert len(sweep(hist, SIGNED, True).scores) <= 2048
    assert len(sweep(hist, UNSIGNED, True).scores) <= 1024
    assert len(sweep(hist, SIGNED, True, candidates=10).scores) <= 10
    assert 32 < len(sweep(hist, IntGrid(16), True).scores) <= 64
