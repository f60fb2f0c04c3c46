"""Range rules on real summaries: what each promises, whatever the data."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ptq_course.errors import CalibrationError, QuantizationError
from ptq_course.grids.affine import IntGrid, choose_qparams, fake_quantize
from ptq_course.ranges.histograms import DyadicHistogram, FloatBitHistogram
from ptq_course.ranges.rules import (
    Range,
    kl_range,
    kl_sweep,
    minmax_range,
    mse_range,
    mse_sweep,
    percentile_range,
)
from ptq_course.ranges.summaries import MinMax, Moments, MovingAverage

SIGNED, UNSIGNED = IntGrid(8), IntGrid(8, signed=False)
SEARCHES = [kl_range, mse_range]
SWEEPS = [kl_sweep, mse_sweep]


def dyadic(x, max_bins=2**16):
    hist = DyadicHistogram(max_bins)
    hist.update(torch.as_tensor(np.asarray(x), dtype=torch.float32))
    return hist


def float_bits(x):
    hist = FloatBitHistogram()
    hist.update(torch.as_tensor(np.asarray(x), dtype=torch.float32))
    return hist


def random(kind, n=50_000, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "laplace": lambda: rng.laplace(size=n),
        "normal": lambda: rng.normal(size=n),
        "relu": lambda: np.maximum(rng.normal(size=n), 0),
        "negative": lambda: -np.abs(rng.normal(size=n)),
        "skewed": lambda: rng.gamma(2.0, size=n) - 1.0,
        "far mode": lambda: np.r_[rng.normal(size=n), rng.normal(40, 0.5, size=n // 500)],
    }[kind]().astype(np.float32)


KINDS = ["laplace", "normal", "relu", "negative", "skewed", "far mode"]


def measured_error(x, low, high, grid, symmetric):
    x = torch.as_tensor(x)
    qparams = choose_qparams(low, high, grid, symmetric)
    return float((x.double() - fake_quantize(x, qparams).double()).square().mean())


any_values = st.lists(
    st.one_of(
        st.just(0.0),
        st.floats(-1e4, 1e4, width=32),
        st.floats(-(2.0**-60), 2.0**-60, width=32),
        st.sampled_from([1.0, 2.0, 1e30, -3e38, 1e-40]),
    ),
    min_size=1,
    max_size=60,
)


# --- min-max and percentile --------------------------------------------------------------------


def test_minmax_is_what_the_summary_saw():
    x = torch.tensor([-2.0, 5.0, 1.0])
    for summary in (MinMax(), Moments(), MovingAverage(), FloatBitHistogram(), DyadicHistogram()):
        with pytest.raises(CalibrationError, match="update"):
            minmax_range(summary)
        summary.update(x)
        assert minmax_range(summary) == Range(-2.0, 5.0)


@settings(max_examples=60, deadline=None)
@given(any_values)
def test_percentile_100_is_minmax(values):
    hist = float_bits(values)
    low, high = minmax_range(hist)
    assert percentile_range(hist, 100, symmetric=False) == Range(low, high)
    largest = max(abs(low), abs(high))
    assert percentile_range(hist, 100) == Range(-largest if low < 0 else 0.0, largest)


@pytest.mark.parametrize("percentile", [90.0, 99.0, 99.9, 99.99])
def test_percentile_cuts_a_tail_on_either_side(percentile):
    x = random("skewed")
    low, high = percentile_range(float_bits(x), percentile, symmetric=False)
    assert low == pytest.approx(np.percentile(x, 100 - percentile), rel=0.01)
    assert high == pytest.approx(np.percentile(x, percentile), rel=0.01)
    assert percentile_range(float_bits(x), percentile) == Range(-high, high)


def test_percentile_includes_zeros():
    """The 90th percentile of nine zeros and one value apiece is small, not 90 % of the values."""
    x = np.r_[np.zeros(9_500), np.full(500, 3.0)]
    assert percentile_range(float_bits(x), 90, symmetric=False) == Range(0.0, 0.0)
    assert percentile_range(float_bits(x), 99).high == pytest.approx(3.0, rel=0.01)


@pytest.mark.parametrize("percentile", [50, 0, -1, 100.1, float("nan")])
def test_percentile_outside_its_range(percentile):
    with pytest.raises(QuantizationError, match=r"percentile must lie in \(50, 100\]"):
        percentile_range(float_bits([1.0]), percentile)


def test_percentile_without_data():
    with pytest.raises(CalibrationError, match="update"):
        percentile_range(FloatBitHistogram())


# --- what both searches promise ----------------------------------------------------------------


@pytest.mark.parametrize("search", SEARCHES)
@settings(max_examples=30, deadline=None)
@given(any_values, st.sampled_from([2, 4, 8]), st.booleans(), st.booleans())
def test_a_range_lies_in_the_data_and_makes_qparams(search, values, bits, signed, symmetric):
    values = np.float32(values)
    assume(signed or not symmetric or (values >= 0).all())
    grid = IntGrid(bits, signed)
    low, high = search(dyadic(values), grid, symmetric, candidates=200)
    largest = float(np.abs(values).max())
    if symmetric:
        assert high <= largest
        assert low == (-high if values.min() < 0 else 0.0)
    elif search is kl_range or min(values.max(), -values.min()) <= 0:
        assert min(0.0, float(values.min())) <= low <= 0 <= high <= max(0.0, float(values.max()))
    else:  # the zero point moves in whole steps, so that one end may be up to a step outside
        step = float(values.max()) - float(values.min())
        step /= grid.levels - 1
        assert float(values.min()) - step <= low <= 0 <= high <= float(values.max()) + step
    qparams = choose_qparams(low, high, grid, symmetric)
    assert torch.isfinite(fake_quantize(torch.from_numpy(values), qparams)).all()


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("exponent", [-30, 1])
def test_powers_of_two_scale_the_range_exactly(search, symmetric, kind, exponent):
    x = random(kind, 5_000)
    low, high = search(dyadic(x), SIGNED, symmetric, candidates=200)
    scaled = search(dyadic(np.ldexp(x, exponent)), SIGNED, symmetric, candidates=200)
    assert scaled == Range(np.ldexp(low, exponent), np.ldexp(high, exponent))


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("kind", ["laplace", "normal"])
def test_mirrored_data_mirror_the_range(search, kind):
    x = random(kind)
    assert search(dyadic(-x), SIGNED) == pytest.approx(search(dyadic(x), SIGNED), rel=1e-3)
    one_sided = np.abs(x)
    low, high = search(dyadic(one_sided), UNSIGNED, symmetric=False)
    mirrored = search(dyadic(-one_sided), UNSIGNED, symmetric=False)
    assert low == 0.0
    assert mirrored.high == 0.0
    assert -mirrored.low == pytest.approx(high, rel=1e-3)


@pytest.mark.parametrize("search", SEARCHES)
def test_one_sided_data_get_all_levels_of_an_unsigned_grid(search):
    """ReLU: symmetric on uint8, affine on uint8 and affine on int8 are one and the same search."""
    hist = dyadic(random("relu"))
    ranges = {
        search(hist, UNSIGNED, symmetric=True),
        search(hist, UNSIGNED, symmetric=False),
        search(hist, SIGNED, symmetric=False),
    }
    assert len(ranges) == 1
    assert ranges.pop().low == 0.0


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("symmetric", [True, False])
def test_constants_and_zeros(search, symmetric):
    assert search(dyadic(np.zeros(5)), SIGNED, symmetric) == Range(0.0, 0.0)
    for value in (3.0, -3.0, 1e-40, 3e38):
        low, high = search(dyadic(np.full(5, value)), SIGNED, symmetric)
        x = torch.full((1,), value)
        decoded = fake_quantize(x, choose_qparams(low, high, SIGNED, symmetric))
        # SCALE_FLOOR bounds what can be decoded near the smallest float32
        assert abs(float(decoded - x)) <= max(1e-6 * abs(value), 1.2e-38)


@pytest.mark.parametrize("search", SEARCHES)
def test_without_data(search):
    with pytest.raises(CalibrationError, match="update"):
        search(DyadicHistogram(), SIGNED)


@pytest.mark.parametrize("search", SEARCHES)
def test_symmetric_on_an_unsigned_grid_refuses_negative_values(search):
    with pytest.raises(QuantizationError, match="signed grid or symmetric=False"):
        search(dyadic([-1.0, 2.0]), UNSIGNED, symmetric=True)


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("symmetric", [True, False])
def test_the_summary_is_not_changed(search, symmetric):
    hist = dyadic(random("skewed", 1000))
    before = hist.counts.copy(), hist.zeros, hist.min_val, hist.max_val
    search(hist, SIGNED, symmetric)
    assert np.array_equal(hist.counts, before[0])
    assert (hist.zeros, hist.min_val, hist.max_val) == before[1:]


@pytest.mark.parametrize("search", SEARCHES)
def test_more_bits_clip_less(search):
    hist = dyadic(random("laplace"))
    thresholds = [search(hist, IntGrid(bits)).high for bits in (2, 4, 6)]
    assert thresholds == sorted(set(thresholds))
    assert search(hist, IntGrid(16)) == Range(-hist.max_val, hist.max_val)  # nothing to gain


# --- a case for each rule ----------------------------------------------------------------------


def test_one_outlier_ruins_minmax_and_not_kl():
    """One value of 100 among 50,000 normal ones: KL serves the others, MSE weighs both."""
    bulk = random("normal")
    x = np.r_[bulk, np.float32(100)]
    hist, ends = dyadic(x), minmax_range(dyadic(x))
    kl, mse = kl_range(hist, SIGNED), mse_range(hist, SIGNED)
    assert kl.high < 6
    assert measured_error(bulk, *kl, SIGNED, True) < 0.01 * measured_error(
        bulk, *ends, SIGNED, True
    )
    assert measured_error(x, *mse, SIGNED, True) < 0.85 * measured_error(x, *ends, SIGNED, True)


def test_kl_is_for_few_levels():
    """With a thousand levels and more it fits the noise of the histogram and clips in vain."""
    x = random("laplace")
    hist, grid = dyadic(x), IntGrid(12)
    errors = [
        measured_error(x, *chosen, grid, True)
        for chosen in (minmax_range(hist), kl_range(hist, grid), mse_range(hist, grid))
    ]
    assert errors[1] > 100 * errors[0]  # 20 dB
    assert errors[2] <= errors[0]


@pytest.mark.parametrize(
    ("kind", "grid", "advantage"),
    [("lognormal", UNSIGNED, 5.0), ("far mode", IntGrid(4), 2.0)],
)
def test_minmax_beats_kl_where_few_values_carry_the_energy(kind, grid, advantage):
    """KL counts how often a value occurs, the squared error how large it is. `advantage`: ratio."""
    rng = np.random.default_rng(0)
    if kind == "lognormal":
        x = rng.lognormal(size=400_000).astype(np.float32)
    else:
        x = np.r_[rng.normal(size=396_000), rng.normal(12, 0.2, size=4_000)].astype(np.float32)
    hist = dyadic(x)
    errors = [
        measured_error(x, *chosen, grid, True)
        for chosen in (minmax_range(hist), kl_range(hist, grid), mse_range(hist, grid))
    ]
    assert errors[1] > advantage * errors[0]
    assert errors[2] < errors[0]
