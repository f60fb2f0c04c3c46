from __future__ import annotations

import pytest
import torch
from torch import nn

from ptq_course.errors import QuantizationError, UnsupportedError
from ptq_course.grids.affine import IntGrid, QTensor, choose_qparams, fake_quantize
from ptq_course.simulation.bias import BIAS_LIMIT, quantize_bias
from ptq_course.simulation.layers import (
    ActivationQuantizer,
    QuantizedLayer,
    weight_block_size,
    weight_qparams,
)

NARROW = IntGrid(8, narrow=True)
INPUT = choose_qparams(0.0, 4.0, IntGrid(8, signed=False))
LAYERS = [
    (nn.Linear(6, 4), (3, 6)),
    (nn.Conv1d(4, 6, 3), (2, 4, 9)),
    (nn.Conv2d(4, 6, 3, stride=2, padding=1), (2, 4, 8, 8)),
    (nn.Conv2d(4, 4, 3, groups=4), (2, 4, 8, 8)),
    (nn.Conv2d(4, 6, 3, padding=2, padding_mode="reflect"), (2, 4, 8, 8)),
    (nn.Conv3d(2, 3, 2), (1, 2, 4, 4, 4)),
    (nn.ConvTranspose1d(4, 6, 3, stride=2), (2, 4, 5)),
    (nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1), (2, 4, 5, 5)),
]


@pytest.mark.parametrize(("layer", "shape"), LAYERS, ids=lambda v: type(v).__name__)
@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel", 2])
def test_output_is_close_and_weights_lie_on_the_grid(layer, shape, granularity):
    parameters = weight_qparams(layer, NARROW, granularity)
    quantized = QuantizedLayer.from_float(layer, parameters, INPUT, name="here")
    assert torch.equal(quantized.weight, fake_quantize(layer.weight.detach(), parameters))
    assert quantized.weight_codes.dtype == torch.int8
    assert quantized.weight_codes.abs().max() <= 127
    x = torch.rand(shape) * 4
    error = (quantized(x) - layer(x)).abs().max()
    assert 0 < error < 0.05 * layer(x).abs().max() + 0.05


def test_bias_is_int32_with_scale_input_times_weight():
    layer = nn.Conv2d(3, 5, 3)
    quantized = QuantizedLayer.from_float(
        layer, weight_qparams(layer, NARROW, "per_channel"), INPUT
    )
    expected = INPUT.scale * quantized.weight_scale.flatten()
    assert quantized.bias_codes.dtype == torch.int32
    assert torch.equal(quantized.bias_scale, expected)
    assert (quantized.bias - layer.bias).abs().max() <= expected.max() / 2 * 1.001


def test_without_an_input_scale_the_bias_stays_float():
    layer = nn.Linear(4, 3)
    quantized = QuantizedLayer.from_float(layer, weight_qparams(layer, NARROW, "per_channel"))
    assert quantized.bias is layer.bias


def test_a_dead_channel_gets_a_larger_scale_instead_of_a_wrapped_bias():
    layer = nn.Linear(4, 3)
    with torch.no_grad():
        layer.weight[1] = 1e-12
        layer.bias[1] = 50.0
    quantized = QuantizedLayer.from_float(
        layer, weight_qparams(layer, NARROW, "per_channel"), INPUT
    )
    assert quantized.raised_channels == 1
    assert quantized.bias_codes.abs().max() <= BIAS_LIMIT
    assert quantized.bias[1].item() == pytest.approx(50.0, rel=1e-6)
    torch.testing.assert_close(quantized.bias, layer.bias.detach(), atol=1e-3, rtol=1e-3)


def test_an_accumulator_that_could_overflow_is_refused_by_name():
    layer = nn.Linear(100_000, 1)
    with torch.no_grad():
        layer.weight.fill_(1.0)
    with pytest.raises(UnsupportedError, match=r"wide\.fc.*beyond int32.*float_layers"):
        QuantizedLayer.from_float(
            layer, weight_qparams(layer, NARROW, "per_channel"), INPUT, name="wide.fc"
        )


def test_nan_weights_and_unknown_layers_are_named():
    layer = nn.Linear(4, 3)
    parameters = weight_qparams(layer, NARROW, "per_tensor")
    with torch.no_grad():
        layer.weight[0, 0] = float("nan")
    with pytest.raises(QuantizationError, match="fc: the weight holds NaN"):
        QuantizedLayer.from_float(layer, parameters, name="fc")
    with pytest.raises(UnsupportedError, match=r"rnn: LSTM"):
        QuantizedLayer.from_float(nn.LSTM(2, 2), parameters, name="rnn")


def test_granularity_words():
    conv = nn.Conv2d(6, 4, 3)
    assert weight_block_size(conv, "per_tensor") is None
    assert weight_block_size(conv, "per_channel") == (1, -1, -1, -1)
    assert weight_block_size(conv, 3) == (1, 3, -1, -1)
    assert weight_block_size(conv, 64) == (1, -1, -1, -1)  # longer than the row
    assert weight_block_size(nn.ConvTranspose2d(6, 4, 3), "per_channel") == (-1, 1, -1, -1)
    with pytest.raises(QuantizationError, match="groups of 4 do not divide 6"):
        weight_block_size(conv, 4)
    with pytest.raises(QuantizationError, match="'per_row'"):
        weight_block_size(conv, "per_row")


def test_activation_quantizer_is_fake_quantize():
    x = torch.randn(3, 5)
    assert torch.equal(ActivationQuantizer(INPUT)(x), fake_quantize(x, INPUT))
    assert "zero_point=0" in repr(ActivationQuantizer(INPUT))


def test_codes_from_elsewhere_and_a_codebook():
    layer = nn.Linear(6, 4)
    rounded = QuantizedLayer.from_float(layer, weight_qparams(layer, NARROW, 3), name="fc")
    again = QuantizedLayer(layer, rounded.weight_qtensor, name="fc")
    assert torch.equal(again.weight, rounded.weight)
    book = torch.tensor([-0.5, 0.0, 0.25, 1.0])
    codes = torch.randint(0, 4, (4, 6), dtype=torch.uint8)
    clustered = QuantizedLayer(layer, QTensor(codes, codebook=book), name="fc")
    assert torch.equal(clustered.weight, book[codes.long()])
    assert clustered.weight_qparams is None
    assert "codebook of 4" in repr(clustered)
    x = torch.randn(2, 6)
    torch.testing.assert_close(clustered(x), x @ book[codes.long()].T + layer.bias)
    with pytest.raises(QuantizationError, match=r"fc: the codes have shape \(4, 6\).*\(4, 5\)"):
        QuantizedLayer(nn.Linear(5, 4), rounded.weight_qtensor, name="fc")


def test_a_grouped_transposed_convolution_has_an_int32_bias():
    layer = nn.ConvTranspose2d(4, 6, 3, groups=2)
    with torch.no_grad():
        layer.weight[:, 1] = 1e-12  # output channels 1 and 4 are dead
        layer.bias[4] = 20.0
    parameters = weight_qparams(layer, NARROW, "per_channel")
    quantized = QuantizedLayer.from_float(layer, parameters, INPUT)
    assert quantized.raised_channels == 1 or quantized.raised_channels == 2
    assert quantized.bias_scale.shape == (6,)
    torch.testing.assert_close(quantized.bias, layer.bias.detach(), atol=1e-3, rtol=1e-3)
    x = torch.rand(2, 4, 5, 5) * 4
    assert (quantized(x) - layer(x)).abs().max() < 0.1


def test_zero_points_of_the_weight_count_in_the_accumulator():
    layer = nn.Linear(200, 1, bias=False)
    nn.init.uniform_(layer.weight, 0.9, 1.0)  # codes near 2047, zero point -2048
    grid = IntGrid(12)
    with pytest.raises(UnsupportedError, match="beyond int32"):
        QuantizedLayer.from_float(
            layer,
            weight_qparams(layer, grid, "per_channel", symmetric=False),
            choose_qparams(0.0, 1.0, IntGrid(12, signed=False)),
            name="fc",
        )


def test_a_bias_of_zero_beside_scales_whose_product_underflows():
    codes, scale = quantize_bias(torch.zeros(1), torch.tensor(1e-9), torch.tensor([1.2e-38]))
    assert codes.item() == 0
    assert scale.item() == 0


def test_a_quantizer_with_several_scales_prints():
    qparams = choose_qparams(torch.zeros(1, 3), torch.ones(1, 3), IntGrid(), False, (-1, 1))
    assert "3 scales" in repr(ActivationQuantizer(qparams))
