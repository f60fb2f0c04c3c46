"""Calibrators under their classic names: what each collects and what scale comes out."""

import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from summary_cases import collected, data
from torch import nn

from ptq_course.errors import CalibrationError, QuantizationError, UnsupportedError
from ptq_course.grids.affine import IntGrid, choose_qparams, dequantize, fake_quantize
from ptq_course.ranges.calibrators import (
    CALIBRATORS,
    Calibrator,
    KLCalibrator,
    MinMaxCalibrator,
    MovingAverageCalibrator,
    MSECalibrator,
    PercentileCalibrator,
)
from ptq_course.ranges.histograms import DyadicHistogram
from ptq_course.ranges.rules import Range, RangeRule
from ptq_course.ranges.summaries import MinMax, Moments, MovingAverage
from ptq_course.simulation.qconfig import QConfig
from ptq_course.simulation.quantizer import PTQQuantizer
from ptq_course.simulation.range_search import search_ranges

FLOAT32_MAX = float(torch.finfo(torch.float32).max)
EVERY = list(CALIBRATORS.values())
MERGEABLE = [c for c in EVERY if c is not MovingAverageCalibrator]
every_calibrator = pytest.mark.parametrize("make", EVERY)


def batches(count=10, spread=0.5):
    generator = torch.Generator().manual_seed(11)
    return [torch.randn(32, 64, generator=generator) * spread for _ in range(count)]


def test_the_classic_names():
    assert set(CALIBRATORS) == {"minmax", "moving_average", "percentile", "kl", "mse"}
    assert all(issubclass(calibrator, Calibrator) for calibrator in EVERY)


# --- the scale -----------------------------------------------------------------------------------


@every_calibrator
@pytest.mark.parametrize("bits", [2, 4, 8, 12, 16])
@pytest.mark.parametrize("symmetric", [True, False])
def test_compute_scale(make, bits, symmetric):
    calibrator = collected(make, *batches())
    scale, zero_point = calibrator.compute_scale(bits, symmetric)
    assert isinstance(scale, float)
    assert isinstance(zero_point, int)
    grid = IntGrid(bits, signed=symmetric)
    low, high = calibrator.range(grid, symmetric)
    if symmetric:
        assert zero_point == 0
        assert scale == pytest.approx(max(-low, high) / (2 ** (bits - 1) - 1), rel=1e-6)
    else:
        assert 0 <= zero_point <= 2**bits - 1
        assert scale == pytest.approx((high - low) / (2**bits - 1), rel=1e-6)
    qparams = calibrator.qparams(grid, symmetric)
    assert (float(qparams.scale), int(qparams.zero_point)) == (scale, zero_point)
    assert qparams.block_size is None


@every_calibrator
def test_defaults_are_8_bits_symmetric(make):
    calibrator = collected(make, *batches())
    assert calibrator.compute_scale() == calibrator.compute_scale(bits=8, symmetric=True)


def test_minmax_by_hand():
    calibrator = collected(MinMaxCalibrator, torch.tensor([-1.0, 0.5]), torch.tensor([1.55]))
    assert (calibrator.min_val, calibrator.max_val) == (-1.0, pytest.approx(1.55))
    assert calibrator.compute_scale() == (pytest.approx(1.55 / 127), 0)
    assert calibrator.compute_scale(symmetric=False) == (pytest.approx(0.01), 100)


def test_moving_average_by_hand():
    calibrator = MovingAverageCalibrator(momentum=0.75)
    calibrator.update(torch.tensor([-4.0, 8.0]))
    calibrator.update(torch.tensor([0.0, 4.0]))
    assert (calibrator.min_val, calibrator.max_val, calibrator.momentum) == (-3.0, 7.0, 0.75)
    assert calibrator.compute_scale() == (pytest.approx(7 / 127), 0)


@every_calibrator
def test_extremes_are_readable(make):
    calibrator = make()
    assert (calibrator.min_val, calibrator.max_val) == (math.inf, -math.inf)
    calibrator.update(torch.tensor([0.25, -3.0, 1.0]))
    assert (calibrator.min_val, calibrator.max_val) == (-3.0, 1.0)


@every_calibrator
@pytest.mark.parametrize("constant", [5.0, -3.0, 0.1, 1e-30, 3e38, -1e10])
@pytest.mark.parametrize("symmetric", [True, False])
def test_a_constant_decodes_to_itself_within_one_ulp(make, constant, symmetric):
    x = torch.full((100,), constant)
    qparams = collected(make, x).qparams(IntGrid(8), symmetric)
    ulp = np.spacing(np.float32(abs(constant)))
    assert (fake_quantize(x, qparams) - x).abs().max() <= ulp


@every_calibrator
def test_all_zero(make):
    calibrator = collected(make, torch.zeros(100))
    for symmetric in (True, False):
        assert calibrator.compute_scale(symmetric=symmetric) == (1.0, 0)


@settings(max_examples=25)
@every_calibrator
@given(x=data, bits=st.integers(2, 10), symmetric=st.booleans())
def test_whatever_the_data_the_parameters_are_valid(make, x, bits, symmetric):
    calibrator = collected(make, x)
    scale, zero_point = calibrator.compute_scale(bits, symmetric)
    assert math.isfinite(scale)
    assert math.isfinite(1 / scale)
    grid = IntGrid(bits, signed=symmetric)
    codes = torch.tensor([grid.qmin, grid.qmax, zero_point])
    decoded = dequantize(codes, calibrator.qparams(grid, symmetric))
    assert torch.isfinite(decoded).all()
    assert decoded[2] == 0


@pytest.mark.parametrize("make", [PercentileCalibrator, KLCalibrator, MSECalibrator])
def test_clipping_calibrators_leave_a_lone_outlier_out(make):
    x = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    calibrator = collected(make, x, torch.tensor([100.0]))
    assert calibrator.max_val == 100
    bits = 4 if make is MSECalibrator else 8
    low, high = calibrator.range(IntGrid(bits))
    assert 2 < high < 50
    assert low == -high


@pytest.mark.parametrize("bits", [2, 3, 8])
def test_the_widest_data_have_a_range_inside_float32(bits):
    """The affine search moves whole grids over zero, whose ends reach beyond the data."""
    calibrator = collected(MSECalibrator, torch.tensor([-3e38, 3e38]))
    grid = IntGrid(bits, signed=False)
    low, high = calibrator.range(grid, symmetric=False)
    assert -FLOAT32_MAX <= low < 0 < high <= FLOAT32_MAX
    scale, zero_point = calibrator.compute_scale(bits, symmetric=False)
    assert math.isfinite(scale)
    assert 0 < zero_point <= grid.qmax


def test_relu_data_on_an_unsigned_grid_begin_at_zero():
    x = torch.randn(50_000).relu()
    for make in EVERY:
        low, _ = collected(make, x).range(IntGrid(8, signed=False), symmetric=False)
        assert low == 0


# --- percentiles ---------------------------------------------------------------------------------


@pytest.mark.parametrize("outlier", [None, 4e6])
@pytest.mark.parametrize("percentile", [90.0, 99.0, 99.9, 99.99])
def test_percentile_within_one_percent_even_beside_a_huge_outlier(percentile, outlier):
    x = torch.randn(500_000, generator=torch.Generator().manual_seed(4))
    if outlier:
        x = torch.cat([x, torch.tensor([outlier])])
    calibrator = collected(lambda: PercentileCalibrator(percentile), *x.split(70_000))
    low, high = calibrator.range(IntGrid(8), symmetric=False)
    exact = np.quantile(x.double().numpy(), [1 - percentile / 100, percentile / 100])
    assert [low, high] == pytest.approx(list(exact), rel=0.01)
    scale, _ = calibrator.compute_scale()
    assert scale == pytest.approx(max(abs(exact)) / 127, rel=0.01)


def test_percentile_agrees_with_torch_quantile():
    x = torch.randn(10_000, generator=torch.Generator().manual_seed(8)) * 3 + 1
    _, high = collected(PercentileCalibrator, x).range(IntGrid(8), symmetric=False)
    assert high == pytest.approx(float(torch.quantile(x, 0.999)), rel=0.01)


def test_percentile_100_is_minmax():
    x = torch.randn(1000)
    percentile = collected(lambda: PercentileCalibrator(100), x)
    for symmetric in (True, False):
        assert percentile.compute_scale(8, symmetric) == collected(
            MinMaxCalibrator, x
        ).compute_scale(8, symmetric)


def test_percentile_is_readable_and_checked():
    assert PercentileCalibrator().percentile == 99.9
    assert PercentileCalibrator(percentile=99.0).percentile == 99.0
    for percentile in (50, 0, -1, 100.1, math.nan):
        with pytest.raises(CalibrationError, match="percentile"):
            PercentileCalibrator(percentile)


@every_calibrator
def test_memory_does_not_depend_on_how_much_was_seen(make):
    few, many = collected(make, *batches(2)), collected(make, *batches(60))
    assert abs(len(pickle.dumps(many)) - len(pickle.dumps(few))) < 200_000
    assert len(pickle.dumps(many)) < 600_000


# --- merging and sharing -------------------------------------------------------------------------


@pytest.mark.parametrize("make", MERGEABLE)
def test_merged_calibrators_decide_as_one(make):
    parts = batches(8)
    parts[3] *= 40
    one, left, right = collected(make, *parts), collected(make, *parts[:5]), make()
    right.update(torch.cat(parts[5:]))
    right.merge(left)
    for symmetric in (True, False):
        assert right.compute_scale(8, symmetric) == one.compute_scale(8, symmetric)


def test_moving_averages_do_not_merge():
    one, other = (collected(MovingAverageCalibrator, *batches(2)) for _ in range(2))
    with pytest.raises(UnsupportedError, match="order of the batches"):
        one.merge(other)


@pytest.mark.parametrize("other", [KLCalibrator(), MinMax(), None])
def test_merging_what_does_not_fit(other):
    with pytest.raises(CalibrationError, match="merge"):
        MinMaxCalibrator().merge(other)


def test_one_summary_serves_several_calibrators():
    hist = collected(DyadicHistogram, *batches())
    for make in (KLCalibrator, MSECalibrator):
        assert make(summary=hist).summary is hist
        assert make(summary=hist).compute_scale() == collected(make, *batches()).compute_scale()


@every_calibrator
def test_the_summary_of_the_rule_is_enough_to_collect(make):
    summary = collected(make.rule.summary, *batches())
    assert make(summary=summary).compute_scale() == collected(make, *batches()).compute_scale()


def test_a_summary_of_another_type_is_refused():
    with pytest.raises(
        CalibrationError, match="KLCalibrator reads a DyadicHistogram, got a MinMax"
    ):
        KLCalibrator(summary=MinMax())
    assert MovingAverageCalibrator(summary=MovingAverage(0.5)).momentum == 0.5
    assert MovingAverageCalibrator(0.5, summary=MovingAverage(0.5)).momentum == 0.5
    with pytest.raises(CalibrationError, match=r"momentum is 0.5.*summary is 0.9: give one"):
        MovingAverageCalibrator(0.5, summary=MovingAverage(0.9))
    assert MovingAverageCalibrator().momentum == 0.9


# --- bad input -----------------------------------------------------------------------------------


@every_calibrator
def test_asked_before_it_saw_data(make):
    calibrator = make(name="layer1.conv2")
    for call in (
        calibrator.compute_scale,
        lambda: calibrator.qparams(IntGrid(8)),
        lambda: calibrator.range(IntGrid(8)),
    ):
        with pytest.raises(CalibrationError, match=r"layer1.conv2: no calibration data.*update"):
            call()


@every_calibrator
@pytest.mark.parametrize(
    "bad",
    [torch.tensor([1.0, math.nan]), torch.tensor([math.inf]), torch.empty(0), torch.arange(3)],
    ids=["nan", "inf", "empty", "integers"],
)
def test_bad_data_change_nothing(make, bad):
    calibrator = collected(make, *batches(3))
    before = calibrator.compute_scale(), calibrator.min_val, calibrator.summary.count
    with pytest.raises(CalibrationError):
        calibrator.update(bad)
    assert (calibrator.compute_scale(), calibrator.min_val, calibrator.summary.count) == before


@every_calibrator
@pytest.mark.parametrize("bits", [1, 17, "8"])
def test_bits_are_checked(make, bits):
    with pytest.raises(ValueError, match="bits"):
        collected(make, *batches(1)).compute_scale(bits)


def test_qparams_apply():
    calibrator = collected(MinMaxCalibrator, *batches())
    x = batches()[0]
    qparams = calibrator.qparams(IntGrid(8, signed=False), symmetric=False)
    expected = choose_qparams(calibrator.min_val, calibrator.max_val, IntGrid(8, signed=False))
    assert torch.equal(fake_quantize(x, qparams), fake_quantize(x, expected))
    assert (fake_quantize(x, qparams) - x).abs().max() <= 0.501 * float(qparams.scale)


# --- one place for a rule ------------------------------------------------------------------------


def test_a_rule_that_searches_keeps_the_best_of_its_sweep():
    hist = collected(DyadicHistogram, *batches())
    searching = [c.rule for c in EVERY if c.rule.sweep is not None]
    assert [rule.name for rule in searching] == ["kl", "mse"]
    for rule in searching:
        for symmetric in (True, False):
            grid = IntGrid(6, signed=symmetric)
            sweep = rule.sweep(hist, grid, symmetric)
            assert rule.decide(hist, grid, symmetric) == sweep.range
            assert sweep.scores[sweep.best] == sweep.scores.min()


def test_a_new_calibrator_is_one_class():
    """Its name is then known to the quantizer, the configuration, the search and diagnose."""
    known = dict(CALIBRATORS)
    try:

        class FourSigma(Calibrator):
            rule = RangeRule(
                "four_sigma",
                Moments,
                lambda seen, *_: Range(seen.mean - 4 * seen.std, seen.mean + 4 * seen.std),
            )

        model, x = nn.Sequential(nn.Linear(8, 4)), torch.randn(64, 8)
        quantizer = PTQQuantizer(model).observe([x], progress=False).compute_qparams("four_sigma")
        assert isinstance(quantizer.calibrators["0"], FourSigma)
        mean, std = x.double().mean().item(), x.double().std(correction=0).item()
        low, high = quantizer.calibrators["0"].range(IntGrid(8, signed=False), False)
        assert (low, high) == pytest.approx((mean - 4 * std, mean + 4 * std))
        assert QConfig(activation_range="four_sigma").activation_range == "four_sigma"
        assert "four_sigma" in {t.rule for t in search_ranges(quantizer, [x], progress=False).tried}
    finally:
        CALIBRATORS.clear()
        CALIBRATORS.update(known)
    with pytest.raises(QuantizationError, match="four_sigma"):
        QConfig(activation_range="four_sigma")
