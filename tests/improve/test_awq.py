"""AWQ keeps the network, never loses to rounding to nearest, and refuses by name."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ptq_course.errors import CalibrationError, QuantizationError, UnsupportedError
from ptq_course.improve.awq import AWQ
from ptq_course.improve.awq_search import (
    InputStatistics,
    awq_factors,
    check_supported,
    output_error,
    scaled_copy,
    search_factors,
    to_nearest,
)
from ptq_course.improve.matrices import weight_of
from ptq_course.simulation.qconfig import QConfig
from ptq_course.simulation.quantizer import PTQQuantizer

CONFIG = replace(QConfig(), weight_bits=3, activation_bits=None)


def loud(x):
    """The same inputs with one channel, of dimension 1, that is fifty times as loud."""
    factor = torch.ones(x.shape[1])
    factor[1] = 50
    return x * factor.view(1, -1, *[1] * (x.dim() - 2))


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.ReLU(),
        nn.Conv2d(8, 6, 1), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(6 * 4, 4),
    ).eval()  # fmt: skip


class Block(nn.Module):
    """LayerNorm, two layers that read it, and a residual that reads their product only."""

    def __init__(self):
        super().__init__()
        self.norm, self.q, self.k = nn.LayerNorm(8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        y = self.norm(x)
        return self.q(y) * self.k(y)


@pytest.mark.parametrize("explicit", [False, True])
@pytest.mark.parametrize("kind", ["pictures", "tokens"])
def test_fp32_computes_the_same(kind, explicit):
    model, x = network(), torch.randn(16, 3, 8, 8)
    if kind == "tokens":
        model, x = Block().eval(), torch.randn(16, 5, 8)
        model.norm.weight.data[3] = 40.0
    step = AWQ([x[:8], x[8:]], explicit=explicit)
    quantizer = PTQQuantizer(model, config=CONFIG, steps=[step])
    with torch.no_grad():
        torch.testing.assert_close(quantizer.float_model(x), model(x), atol=1e-5, rtol=1e-5)
    assert any(found.alpha > 0 for found in step.found.values())
    assert all(found.error <= found.nearest for found in step.found.values())
    if kind == "tokens":
        assert step.found["q"] is step.found["k"], "what reads one norm shares its factors"


def test_what_is_scaled_and_what_is_left_out():
    model, x = network(), torch.randn(8, 3, 8, 8)
    for explicit, scaled in ((False, {"6"}), (True, {"0", "4", "6", "9"})):
        step = AWQ([x], explicit=explicit)
        PTQQuantizer(model, config=CONFIG, steps=[step])
        expected = scaled | {"4"}  # behind the ReLU of a depthwise convolution, so folded
        assert set(step.found) == expected
        assert "groups=8" in step.left_out["2"]
        assert set(step.found) | set(step.left_out) == {"0", "2", "4", "6", "9"}


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    bits=st.integers(2, 4),
    granularity=st.sampled_from(["per_tensor", "per_channel", 2]),
    spread=st.floats(0, 3),
)
def test_never_worse_than_rounding_to_nearest(seed, bits, granularity, spread):
    generator = torch.Generator().manual_seed(seed)
    layer = nn.Conv2d(4, 5, 2) if seed % 2 else nn.Linear(4, 5)
    with torch.no_grad():
        for values in layer.parameters():
            values.copy_(torch.randn(values.shape, generator=generator))
    channels = (spread * torch.randn(4, generator=generator)).exp()
    x = torch.randn(6, 4, 3, 3, generator=generator) * channels.view(4, 1, 1)
    x = x if seed % 2 else x.movedim(1, -1)
    config = replace(CONFIG, weight_bits=bits, weight_granularity=granularity)
    rounded, known = to_nearest(config), InputStatistics.of(layer, x)
    found = search_factors([layer], [known], rounded, steps=6)
    nearest = output_error(layer, rounded(layer), known.moments)
    assert found.error <= found.nearest
    assert found.nearest == pytest.approx(nearest, rel=1e-5)
    assert (found.error < found.nearest) == (found.alpha > 0)


def test_the_error_that_it_reports_is_the_layers():
    torch.manual_seed(1)
    layer, x = nn.Conv2d(4, 5, 3, padding=1), loud(torch.randn(8, 4, 6, 6))
    known, rounded = InputStatistics.of(layer, x), to_nearest(CONFIG)
    found = search_factors([layer], [known], rounded)
    other = scaled_copy(layer, found.factors)
    with torch.no_grad():
        weight_of(other).copy_(rounded(other))
        y = other(x / found.factors.float().view(-1, 1, 1))
        error = (y - layer(x)).double().square().sum().item()
    assert error == pytest.approx(found.error, rel=1e-3)
    assert found.error < 0.9 * found.nearest, "one loud channel is what AWQ is for"
    torch.testing.assert_close(known.magnitudes, x.double().abs().mean((0, 2, 3)))


def test_a_loud_channel_is_rescued_in_a_network():
    torch.manual_seed(2)
    norm = nn.LayerNorm(32)
    with torch.no_grad():
        norm.weight[5] = 60.0
    model = nn.Sequential(norm, nn.Linear(32, 16)).eval()
    x = torch.randn(64, 32)
    plain = PTQQuantizer(model, config=CONFIG).quantize_weights()
    better = PTQQuantizer(model, config=CONFIG, steps=[AWQ([x])]).quantize_weights()
    with torch.no_grad():
        before, after = (((q(x) - model(x)) ** 2).sum() for q in (plain, better))
    assert after < before / 4


def test_factors():
    found = awq_factors(torch.tensor([4.0, 1.0, 0.0, 0.25]), 0.5)
    assert found.tolist() == [2.0, 1.0, 1.0, 0.5]
    assert torch.equal(awq_factors(torch.zeros(3), 0.5), torch.ones(3))
    assert torch.equal(awq_factors(torch.tensor([7.0, 3.0]), 0.0), torch.ones(2))
    for wrong in (torch.tensor([-1.0]), torch.tensor([torch.nan]), torch.ones(2, 2)):
        with pytest.raises(QuantizationError, match="awq_factors"):
            awq_factors(wrong, 0.5)


def test_with_integer_activations_too():
    model, x = network(), torch.randn(16, 3, 8, 8)
    quantizer = PTQQuantizer(model, bits=8, steps=[AWQ([x], explicit=True)])
    found = quantizer.calibrate([x], ranges="minmax", progress=False).convert()
    with torch.no_grad():
        error = (found(x) - model(x)).square().sum() / model(x).square().sum()
    assert error < 0.01


def test_what_is_refused():
    x = torch.randn(2, 3, 8, 8)
    with pytest.raises(CalibrationError, match="no batch"):
        PTQQuantizer(network(), config=CONFIG, steps=[AWQ([])])
    with pytest.raises(UnsupportedError, match="0: nothing before it"):
        PTQQuantizer(nn.Sequential(nn.Conv2d(3, 4, 3)), config=CONFIG, steps=[AWQ([x])])
    floats = replace(CONFIG, weight_bits=None, activation_bits=8)
    with pytest.raises(QuantizationError, match="weight_bits"):
        PTQQuantizer(network(), config=floats, steps=[AWQ([x])])
    with pytest.raises(QuantizationError, match="steps"):
        AWQ([x], steps=0)
    for layer in (nn.ConvTranspose2d(2, 3, 3), nn.Embedding(3, 4), nn.Conv2d(4, 4, 3, groups=4)):
        with pytest.raises(UnsupportedError, match=type(layer).__name__):
            check_supported(layer)


def test_a_weight_that_is_used_twice_is_left():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.other, self.tied = (nn.Linear(4, 4) for _ in range(3))
            self.tied.weight = self.other.weight

        def forward(self, x):
            y = self.first(self.first(x)).tanh()
            return self.tied(self.other(y)) + nn.functional.relu(y)

    model, x = nn.Sequential(Twice(), nn.Linear(4, 3)).eval(), torch.randn(16, 4)
    step = AWQ([x], explicit=True)
    quantizer = PTQQuantizer(model, config=CONFIG, steps=[step])
    with torch.no_grad():
        torch.testing.assert_close(quantizer.float_model(x), model(x), atol=1e-5, rtol=1e-5)
    assert set(step.found) == {"1"}
    assert set(step.left_out) >= {"0.first", "0.other", "0.tied"}
    assert "more than once" in step.left_out["0.first"]


def test_layers_that_stay_in_floating_point_are_left():
    step = AWQ([torch.randn(4, 3, 8, 8)], explicit=True)
    PTQQuantizer(network(), config=replace(CONFIG, float_layers=("4",)), steps=[step])
    assert "4" not in step.found
