"""Clipped shares of live data: the count itself, and the monitor around a quantized model."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ptq_course.errors import CalibrationError, QuantizationError, UnsupportedError
from ptq_course.grids.affine import IntGrid, QParams, choose_qparams, quantize
from ptq_course.simulation.monitor import ClippingMonitor, clipped_share
from ptq_course.simulation.qconfig import QConfig
from ptq_course.simulation.quantizer import PTQQuantizer
from tests.networks import DataDependent, Residual, batches, randomize_batch_norms

GRID = IntGrid(8, signed=False)


def quantized(network=Residual, ranges=None, **kwargs):
    torch.manual_seed(0)
    model = randomize_batch_norms(network())
    quantizer = PTQQuantizer(model, **kwargs)
    return quantizer.calibrate(batches(), ranges=ranges, progress=False).convert()


def test_half_a_step_beyond_the_last_level_is_inside():
    qparams = choose_qparams(0.0, 255.0, GRID)  # levels 0, 1, ..., 255
    x = torch.tensor([-0.4, -0.6, 0.0, 255.0, 255.4, 255.6, 1e30, math.inf])
    assert clipped_share(x, qparams) == 4 / 8


@given(
    st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=40),
    st.floats(-10, 0),
    st.floats(0.01, 10),
    st.sampled_from([IntGrid(4), IntGrid(8, signed=False), IntGrid(8, narrow=True)]),
)
def test_it_is_what_a_wider_grid_would_not_clamp(values, low, high, grid):
    qparams = choose_qparams(low, high, grid)
    x = torch.tensor(values)
    wide = IntGrid(16, signed=True)
    free = quantize(x, QParams(qparams.scale, qparams.zero_point, wide))
    expected = ((free < grid.qmin) | (free > grid.qmax)).double().mean().item()
    assert clipped_share(x, qparams) == pytest.approx(expected, abs=1e-12)


def test_bad_live_data_are_refused():
    qparams = choose_qparams(0.0, 1.0, GRID)
    with pytest.raises(QuantizationError, match="NaN"):
        clipped_share(torch.tensor([0.0, math.nan]), qparams)
    with pytest.raises(QuantizationError, match="shape \\(0,\\)"):
        clipped_share(torch.empty(0), qparams)
    with pytest.raises(QuantizationError, match="int64"):
        clipped_share(torch.arange(3), qparams)
    channels = choose_qparams(torch.zeros(3, 1), torch.ones(3, 1), GRID, block_size=(1, -1))
    with pytest.raises(UnsupportedError, match="per-tensor"):
        clipped_share(torch.rand(3, 4), channels)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_it_rounds_as_quantize_does_in_every_dtype(dtype):
    """float64 values around the last boundary: in float32 half of them would fall on it."""
    qparams = choose_qparams(0.0, 255.0, GRID)
    x = (255.5 + torch.linspace(-1, 1, 21, dtype=torch.float64) * 2.0**-20).to(dtype)
    free = quantize(x, QParams(qparams.scale, qparams.zero_point, IntGrid(16)))
    assert clipped_share(x, qparams) == pytest.approx((free > 255).double().mean().item())


def test_an_empty_batch_passes_and_counts_nothing():
    model = quantized()
    x = batches()[0][0]
    with ClippingMonitor(model) as monitor:
        assert torch.equal(model(x[:0]), model(x[:0]))
        with pytest.raises(CalibrationError, match="no live data yet"):
            monitor.shares()
        model(x)
    assert monitor.shares()["x"] == pytest.approx(clipped_share(x, model.qparams["x"]))


def test_calibration_data_are_not_clipped_by_min_max():
    model = quantized(ranges="minmax")
    with ClippingMonitor(model) as monitor:
        for x, _ in batches():
            model(x)
    shares = monitor.shares()
    assert list(shares) == list(model.qparams)
    assert max(shares.values()) < 0.01  # later values see rounded inputs, so not quite 0
    assert shares["x"] == 0.0


def test_live_data_beyond_the_range_are_counted_at_every_value():
    model = quantized()
    x = torch.cat([x for x, _ in batches()])
    with ClippingMonitor(model) as monitor:
        model(4 * x)
    assert monitor.shares()["x"] == pytest.approx(clipped_share(4 * x, model.qparams["x"]))
    assert monitor.shares()["x"] > 0.2
    assert sum(share > 0 for share in monitor.shares().values()) > 2


def test_batches_add_up_and_reset_forgets():
    model = quantized()
    x = torch.cat([x for x, _ in batches()])
    monitor = ClippingMonitor(model)
    with monitor:
        model(x)
    with monitor:
        model(4 * x)
    both = monitor.shares()["x"]
    assert both == pytest.approx(clipped_share(torch.cat([x, 4 * x]), model.qparams["x"]))
    monitor.reset()
    with pytest.raises(CalibrationError, match="no live data yet"):
        monitor.shares()


def test_the_model_computes_the_same_and_is_left_clean():
    model = quantized()
    x = batches()[0][0]
    before = model(x)
    with ClippingMonitor(model):
        assert torch.equal(model(x), before)
    assert not any(m._forward_pre_hooks for m in model.modules())
    with pytest.raises(RuntimeError, match="stop"), ClippingMonitor(model):
        raise RuntimeError("stop")
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_a_value_that_is_passed_on_is_counted_once():
    model = quantized()
    x = batches()[0][0]
    with ClippingMonitor(model) as monitor:
        model(x)
    seen = monitor._seen
    assert seen["x"] == x.numel()
    last = list(model.qparams)[
        -1
    ]  # relu, then pooled and flattened: the pooled copies do not count
    assert seen[last] == 8 * x.numel() / 3


def test_an_untraced_network_is_watched_layer_by_layer():
    torch.manual_seed(0)
    data = [torch.rand(8, 6), -torch.rand(8, 6)]  # one batch for either branch
    with pytest.warns(UserWarning, match="layer by layer"):
        quantizer = PTQQuantizer(DataDependent().eval())
    model = quantizer.calibrate(data, progress=False, ranges="minmax").convert()
    with ClippingMonitor(model) as monitor:
        model(2 * data[0])
    assert list(monitor.shares()) == ["fc.input"]  # the other branch was not reached
    assert monitor.shares()["fc.input"] > 0.1


def test_what_cannot_be_watched_is_refused():
    with pytest.raises(QuantizationError, match="quantizes no activations"):
        ClippingMonitor(nn.Linear(2, 2))
    torch.manual_seed(0)
    model = randomize_batch_norms(Residual())
    weights_only = PTQQuantizer(model, config=QConfig(activation_bits=None)).quantize_weights()
    with pytest.raises(QuantizationError, match="quantizes no activations"):
        ClippingMonitor(weights_only)
    monitor = ClippingMonitor(quantized())
    with pytest.raises(QuantizationError, match="running already"), monitor:
        monitor.__enter__()


class Twice(nn.Module):
    """Cannot be traced; calls its layer twice."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x):
        return x if x.sum() > 1e9 else self.fc(10 * self.fc(x))


@pytest.mark.filterwarnings("ignore:Quantizing layer by layer")
def test_every_call_of_an_untraced_layer_is_counted():
    torch.manual_seed(0)
    model, x = Twice().eval(), torch.randn(16, 8)
    watched = PTQQuantizer(model).calibrate([x], progress=False, ranges="minmax").convert()
    with ClippingMonitor(watched) as monitor:
        watched(100 * x)
    first = clipped_share(100 * x, watched.qparams["fc.input"])
    assert monitor.shares()["fc.input"] > first  # the second call clips more
