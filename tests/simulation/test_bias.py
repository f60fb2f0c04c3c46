"""Every bias survives: in the simulation, in the exported file, and with integers only."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ptq_course import PTQQuantizer, QConfig
from ptq_course.deploy import onnx as deploy
from ptq_course.integer import to_integer
from ptq_course.simulation.layers import weight_qparams


def steps(quantized, name=""):
    return next(q.scale for n, q in quantized.qparams.items() if n.startswith(name))


def pixels():
    return torch.arange(256.0).reshape(4, 1, 8, 8)


def one_by_one(weights, biases, kind=nn.Conv2d, groups=1):
    layer = kind(groups, len(biases), 1, groups=groups)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(weights).reshape(layer.weight.shape))
        layer.bias.copy_(torch.tensor(biases))
    return layer


@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d], ids=lambda k: k.__name__)
@pytest.mark.parametrize("granularity", ["per_channel", "per_tensor"])
@pytest.mark.parametrize("weights", [[1 / 256, 0.0], [0.0, 0.0], [0.0, 1e-30]], ids=str)
def test_a_channel_of_zeros_keeps_its_bias(tmp_path, kind, granularity, weights):
    """Its weight scale is free, and 1 made the input's scale the step of the bias."""
    model = nn.Sequential(one_by_one(weights, [0.1, 0.4], kind), nn.ReLU()).eval()
    config = QConfig(weight_granularity=granularity)
    quantized = (
        PTQQuantizer(model, config=config)
        .calibrate([pixels()], progress=False, ranges="minmax")
        .convert()
    )
    half = 0.5 * 256 * max(weights) / 127 + 2**-16
    outputs = list(quantized.qparams.values())[1:]  # of a convolution: its kernel returns codes
    half += sum(0.5 * output.scale.item() for output in outputs)
    expected = model(pixels())
    assert (quantized(pixels()) - expected).abs().max() <= half
    if granularity == "per_channel" and max(weights) > 1e-3:
        file = deploy.session(deploy.export(quantized, pixels(), tmp_path / "q.onnx"), 1)
        assert (file(pixels()) - expected).abs().max() <= half
    if kind is nn.Conv2d:
        assert (to_integer(quantized)(pixels()) - expected).abs().max() <= half


def pruned():
    """Channel 1 of the first convolution is pruned, 2 has gamma 0, the input reaches 1000."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 1), nn.ReLU(),
        nn.Flatten(), nn.Linear(6 * 36, 5),
    ).eval()  # fmt: skip
    with torch.no_grad():
        model[0].weight[1] = 0.0
        model[0].weight[[0, 3]] *= 0.003
        model[1].weight[2] = 0.0
        model[1].bias.copy_(torch.tensor([0.1, 0.7, 0.3, 0.2]))
        model[3].weight[4] = 0.0
        model[3].bias[4] = 0.5
        model[6].weight[2] = 0.0
    return model, torch.rand(8, 1, 8, 8) * 1000


def test_pruned_channels_and_a_gamma_of_zero_end_to_end(tmp_path):
    model, x = pruned()
    quantized = PTQQuantizer(model).calibrate([x], progress=False, ranges="minmax").convert()
    with torch.no_grad():
        expected = model(x)
    hidden = quantized.module.get_submodule("0")
    torch.testing.assert_close(hidden.bias, hidden.float_layer.bias, atol=1e-3, rtol=0)
    assert quantized(x)[0, 2].item() == pytest.approx(model[6].bias[2].item(), rel=1e-4)
    integer, path = to_integer(quantized), deploy.export(quantized, x, tmp_path / "q.onnx")
    for got in (quantized(x), integer(x), deploy.session(path, 1)(x)):
        assert (got - expected).norm() < 0.03 * expected.norm()


def test_groups_of_a_transposed_convolution_that_share_a_row_of_zeros():
    model = nn.Sequential(
        one_by_one([0.01, 0.0, 0.02, 0.0], [0.0, 0.3, 0.1, -0.001], nn.ConvTranspose2d, groups=2)
    ).eval()
    x = torch.cat([pixels(), pixels()], 1)
    quantized = PTQQuantizer(model).calibrate([x], progress=False, ranges="minmax").convert()
    found = quantized(x)[0, [1, 3], 0, 0].tolist()
    assert found == pytest.approx([0.3, -0.001], abs=2**-16)


def test_the_bias_stays_where_zeros_need_no_other_scale():
    layer = one_by_one([0.5, 0.0], [0.25, 0.0])
    quantizer = PTQQuantizer(nn.Sequential(layer).eval()).calibrate(
        [pixels()], progress=False, ranges="minmax"
    )
    quantized = quantizer.convert().quantized_layers()["0"]
    grid = quantizer.config.weight_grid
    assert grid is not None
    by_itself = weight_qparams(layer, grid, "per_channel")
    assert torch.equal(quantized.weight_scale, by_itself.scale)
    assert quantized.raised_channels == 0
