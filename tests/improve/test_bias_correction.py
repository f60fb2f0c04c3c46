"""The mean of the output comes back, with data and without."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import fx, nn

from ptq_course.errors import QuantizationError, UnsupportedError
from ptq_course.improve.bias_correction import (
    CorrectBias,
    analytic_shift,
    correct_bias_without_data,
    input_means,
    mean_shift,
    relu_mean,
)
from ptq_course.improve.walk import improved
from ptq_course.simulation.qconfig import QConfig
from ptq_course.simulation.quantizer import PTQQuantizer

LAYERS = {
    "linear": (lambda: nn.Linear(6, 5, bias=False), (200, 6), -1),
    "convolution": (lambda: nn.Conv2d(4, 6, 3), (20, 4, 7, 7), 1),
    "depthwise": (lambda: nn.Conv2d(4, 4, 3, groups=4, bias=False), (20, 4, 7, 7), 1),
    "transposed": (lambda: nn.ConvTranspose2d(4, 6, 2, groups=2), (20, 4, 5, 5), 1),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("activation_bits", [None, 8])
def test_the_mean_of_every_channel_comes_back(name, activation_bits):
    torch.manual_seed(0)
    make, shape, channel = LAYERS[name]
    model, x = nn.Sequential(make()).eval(), 2 + torch.randn(shape)
    config = replace(QConfig(), weight_bits=3, activation_bits=activation_bits)
    quantizer = PTQQuantizer(model, config=config)
    if activation_bits:
        quantizer.calibrate([x], ranges="minmax", progress=False)
    plain = quantizer.convert() if activation_bits else quantizer.quantize_weights()
    corrected = improved(quantizer, [x], [CorrectBias()], progress=False)
    with torch.no_grad():
        before, after = (
            mean_shift([model(x)], [m(x)], channel).abs().max() for m in (plain, corrected)
        )
    assert before > 0.02
    assert after < 0.1 * before


@pytest.mark.parametrize("ceiling", [float("inf"), 6.0])
def test_the_mean_behind_a_relu_is_that_of_many_samples(ceiling):
    mean = torch.tensor([-2.0, 0.0, 1.0, 5.5, 3.0])
    deviation = torch.tensor([1.0, 2.0, 0.5, 3.0, 0.0])
    y = mean + deviation * torch.randn(200_000, 5, generator=torch.Generator().manual_seed(0))
    expected = y.clamp(0, ceiling).double().mean(0)
    torch.testing.assert_close(relu_mean(mean, deviation, ceiling), expected, atol=0.01, rtol=0)


def test_without_data_the_shift_is_the_weights_error_times_the_mean():
    torch.manual_seed(0)
    for make, shape, channel in LAYERS.values():
        layer = make()
        means = torch.rand(shape[1])
        rounded = layer.weight.detach().round(decimals=1)
        x = means.view([1, -1] + [1] * (len(shape) - 2)).expand(shape)
        other = make()
        other.load_state_dict(layer.state_dict())
        other.weight.data = rounded
        with torch.no_grad():
            expected = mean_shift([layer(x)], [other(x)], channel)
        if isinstance(layer, nn.ConvTranspose2d):
            continue  # its outputs see a part of the taps each: the sum over taps is an upper bound
        torch.testing.assert_close(
            analytic_shift(layer, rounded, means), expected, atol=1e-5, rtol=1e-4
        )


@pytest.mark.parametrize("between", [nn.ReLU, nn.ReLU6, nn.Identity])
def test_batch_norm_tells_the_mean_of_the_next_layers_input(between):
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(8)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 1), norm, between(), nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8),
    )  # fmt: skip
    with torch.no_grad():
        nn.init.uniform_(norm.bias, -1, 4)
        nn.init.uniform_(norm.weight, 0.5, 2)
    x = torch.randn(400, 3, 6, 6)
    model.train()
    for _ in range(60):
        model(x)  # the statistics of this very data
    model.eval()
    quantizer = PTQQuantizer(model, config=replace(QConfig(), weight_bits=3, activation_bits=None))
    assert isinstance(quantizer.float_model, fx.GraphModule)
    means = input_means(quantizer.float_model)
    with torch.no_grad():
        true = model[:3](x).double().mean((0, 2, 3))
    assert list(means) == ["3"]
    torch.testing.assert_close(means["3"].double(), true, atol=0.1, rtol=0)
    quantized = quantizer.quantize_weights()
    layer = quantized.quantized_layers()["3"]
    with torch.no_grad():
        exact = quantizer.float_model.get_submodule("3")
        inputs = model[:3](x)
        before = mean_shift([exact(inputs)], [layer(inputs)], 1).abs().max()
        assert correct_bias_without_data(quantized, quantizer.float_model) == ["3"]
        after = mean_shift([exact(inputs)], [layer(inputs)], 1).abs().max()
    assert after < 0.5 * before


def test_what_is_refused():
    with pytest.raises(QuantizationError, match="shapes"):
        mean_shift([torch.ones(2, 3)], [torch.ones(3, 3)], 0)
    with pytest.raises(QuantizationError, match="no values"):
        mean_shift([torch.ones(2, 0)], [torch.ones(2, 0)], 0)
    with pytest.raises(QuantizationError, match="negative"):
        relu_mean(torch.ones(2), -torch.ones(2))
    with pytest.raises(QuantizationError, match="input channels"):
        analytic_shift(nn.Linear(3, 2), torch.ones(2, 3), torch.ones(4))
    quantizer = PTQQuantizer(nn.Sequential(nn.Linear(3, 2)))
    with pytest.raises(UnsupportedError, match="batch norm"):
        correct_bias_without_data(quantizer.quantize_weights(), quantizer.float_model)


@pytest.mark.parametrize("activation_bits", [None, 8])
def test_correcting_without_data_a_second_time_changes_nothing(activation_bits):
    """A cell of a notebook is run again; the shift must not be taken away twice."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6, affine=False), nn.ReLU(),
        nn.Conv2d(6, 4, 3, bias=activation_bits is None),
    ).eval()  # fmt: skip
    config, x = QConfig(weight_bits=3, activation_bits=activation_bits), torch.randn(4, 3, 8, 8)
    quantizer = PTQQuantizer(model, config=config)
    if activation_bits is None:
        quantized = quantizer.quantize_weights()
    else:
        quantized = quantizer.calibrate([x], ranges="minmax", progress=False).convert()
    before = quantized(x)
    # Without gamma and beta, mean and deviation are 0 and 1.
    assert correct_bias_without_data(quantized, quantizer.float_model) == ["3"]
    once = quantized(x)
    assert not torch.equal(before, once)
    correct_bias_without_data(quantized, quantizer.float_model)
    assert torch.equal(quantized(x), once)
