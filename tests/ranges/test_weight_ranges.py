"""Weight ranges by squared error: never worse than min-max, better at 4 bits, block by block."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from ptq_course.errors import QuantizationError
from ptq_course.grids.affine import IntGrid, block_minmax, choose_qparams, fake_quantize
from ptq_course.grids.metrics import snr_pooled
from ptq_course.ranges.weights import mse_range
from ptq_course.simulation.qconfig import QConfig
from ptq_course.simulation.quantizer import PTQQuantizer


def errors(x, grid, symmetric, block_size, find):
    low, high = find(x)
    qparams = choose_qparams(low, high, grid, symmetric, block_size)
    return (fake_quantize(x, qparams) - x).double().square().sum(-1)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_no_row_loses_and_four_bits_gain(bits, symmetric):
    x = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    grid, size = IntGrid(bits), (1, -1)
    found = errors(x, grid, symmetric, size, lambda x: mse_range(x, grid, symmetric, size))
    plain = errors(x, grid, symmetric, size, lambda x: block_minmax(x, size))
    assert bool((found <= plain).all())
    if bits <= 4:
        assert found.sum() < 0.9 * plain.sum()


def test_one_block_groups_and_zeros():
    x = torch.randn(4, 32)
    x[0] = 0
    for size, shape in ((None, ()), ((1, 8), (4, 4))):
        low, high = mse_range(x, IntGrid(4), True, size)
        assert (low.shape, high.shape) == (shape, shape)
    assert mse_range(x[:1], IntGrid(4))[1] == 0


def test_the_config_switches_it_on():
    torch.manual_seed(0)
    layer = nn.Linear(256, 16)
    model = nn.Sequential(layer).eval()
    config = replace(QConfig(), weight_bits=4, activation_bits=None)

    def decibels(config):
        quantizer = PTQQuantizer(model, config=config)
        weight = quantizer.quantize_weights().quantized_layers()["0"].weight
        return snr_pooled(layer.weight.detach(), weight), str(quantizer.report())

    with torch.no_grad():
        layer.weight.normal_()
    plain, by_error = decibels(config), decibels(replace(config, weight_range="mse"))
    assert by_error[0] > plain[0] + 0.5
    assert by_error[1] != plain[1]
    with pytest.raises(QuantizationError, match="weight_range"):
        QConfig(weight_range="kl")
