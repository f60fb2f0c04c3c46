"""SmoothQuant keeps the network, shares one factor, and lifts INT8 with outlier channels."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ptq_course.errors import CalibrationError, QuantizationError, UnsupportedError
from ptq_course.grids.metrics import snr_pooled
from ptq_course.improve.pairs import prepared
from ptq_course.improve.smoothquant import (
    InputScale,
    SmoothQuant,
    find_norms,
    output_error,
    smooth,
    smoothing_factors,
)
from ptq_course.simulation.qconfig import QConfig
from ptq_course.simulation.quantizer import PTQQuantizer


class Block(nn.Module):
    """LayerNorm, then three layers that read it, as query, key and value do."""

    def __init__(self, residual=False):
        super().__init__()
        self.norm, self.residual = nn.LayerNorm(16), residual
        self.q, self.k, self.v = (nn.Linear(16, 16) for _ in range(3))

    def forward(self, x):
        y = self.norm(x)
        found = self.q(y) * self.k(y) + self.v(y)
        return found + y if self.residual else found


def outliers():
    torch.manual_seed(0)
    model, x = Block().eval(), torch.randn(40, 5, 16)
    with torch.no_grad():
        model.norm.weight[3] = 60.0
        for layer in (model.q, model.k, model.v):
            layer.weight[:, 3] /= 60
    return model, x


def test_the_network_computes_the_same_and_int8_gains():
    model, x = outliers()

    def quantized(*steps):
        quantizer = PTQQuantizer(model, steps=steps)
        quantizer.calibrate([x], ranges="minmax", progress=False)
        torch.testing.assert_close(quantizer.float_model(x), model(x), atol=1e-5, rtol=1e-5)
        return snr_pooled(model(x), quantizer.convert()(x))

    with torch.no_grad():
        assert quantized(SmoothQuant([x])) > quantized() + 6


def test_the_factors_are_the_papers():
    found = smoothing_factors(torch.tensor([16.0, 4.0, 0.0]), torch.tensor([4.0, 1.0, 2.0]), 0.5)
    assert found.tolist() == [2.0, 2.0, 1.0]
    one = smoothing_factors(torch.tensor([16.0]), torch.tensor([4.0]), 1.0)
    assert one.item() == 16.0


def test_only_norms_that_linear_layers_alone_read():
    assert find_norms(prepared(Block())) == {"norm": ["q", "k", "v"]}
    assert find_norms(prepared(Block(residual=True))) == {}
    plain = nn.Sequential(nn.LayerNorm(4, elementwise_affine=False), nn.Linear(4, 4))
    assert find_norms(prepared(plain)) == {}


def test_what_is_refused():
    model, x = outliers()
    with pytest.raises(QuantizationError, match="alpha"):
        SmoothQuant([x], alpha=1.5)
    with pytest.raises(CalibrationError, match="no batch"):
        PTQQuantizer(model, steps=[SmoothQuant([])])
    with pytest.raises(UnsupportedError, match="LayerNorm"):
        PTQQuantizer(
            nn.Sequential(nn.Conv2d(3, 4, 3)), steps=[SmoothQuant([torch.ones(1, 3, 8, 8)])]
        )
    with pytest.raises(UnsupportedError, match="gamma"):
        smooth(nn.BatchNorm1d(3, affine=False), [nn.Linear(3, 3)], torch.ones(3))
    for wrong in (torch.ones(2), torch.full((3,), -1.0)):
        with pytest.raises(QuantizationError, match="smoothing_factors"):
            smoothing_factors(torch.ones(3), wrong)


def test_an_input_that_something_else_reads_is_divided_by_an_operation_of_its_own():
    model, x = outliers()
    model.residual = True
    with pytest.raises(UnsupportedError, match="explicit=True"):
        PTQQuantizer(model, steps=[SmoothQuant([x])])
    step = SmoothQuant([x], 0.8, explicit=True)
    quantizer = PTQQuantizer(model, steps=[step])
    scales = [m for m in quantizer.float_model.modules() if isinstance(m, InputScale)]
    assert len(scales) == 1, "query, key and value share one"
    assert step.alphas == {"q": 0.8, "k": 0.8, "v": 0.8}
    with torch.no_grad():
        assert torch.allclose(quantizer.float_model(x), model(x), rtol=1e-4, atol=1e-4)


def test_the_search_finds_an_alpha_that_is_no_worse_than_any_fixed_one():
    model, x = outliers()
    found = {}
    for alpha in (0.0, 0.5, 1.0, None):
        step = SmoothQuant([x], alpha)
        quantizer = PTQQuantizer(model, steps=[step]).observe([x], ranges="minmax", progress=False)
        with torch.no_grad():
            quantized = quantizer.compute_qparams("minmax").convert()(x)
        found[alpha] = snr_pooled(model(x), quantized)
    assert found[None] > max(found[0.0], found[0.5], found[1.0]) - 1.0


def test_output_error_of_nothing_rounded_is_rounding_of_float32():
    layer, x = torch.nn.Linear(4, 3), torch.randn(10, 4)
    config = QConfig(weight_bits=8, activation_bits=None)
    whole = output_error(layer, x, torch.ones(4), config)
    coarse = output_error(layer, x, torch.ones(4), QConfig(weight_bits=3, activation_bits=None))
    assert whole < coarse / 10
