"""Examples as tensors, tuples, dicts and nested; height and width that stay free."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ptq_course import PTQQuantizer, QuantizationError, quantize_dynamic
from ptq_course.deploy import onnx as deploy
from ptq_course.deploy.onnx.examples import arguments


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(4, 8)

    def forward(self, x, y, scale=None):
        return self.a(x).relu() + self.b(y)


class Pair(Two):
    def forward(self, pair, more):
        return super().forward(pair[0], more["y"])


X, Y = torch.randn(5, 6), torch.randn(5, 4)


def test_an_example_by_names(tmp_path):
    torch.manual_seed(0)
    model = Two().eval()
    quantized = PTQQuantizer(model).calibrate([(X, Y)], progress=False, ranges="minmax").convert()
    for made in (model, quantized):
        given = {"y": Y, "x": X, "label": torch.zeros(5)}
        run = deploy.session(deploy.export(made, given, tmp_path / "two.onnx"), 1)
        expected = made(X, Y).detach()
        for got in (run(X, Y), run(x=X, y=Y), run(X, y=Y)):
            torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    for wrong in ({"x": X}, {"x": X, "z": Y}):
        with pytest.raises(QuantizationError, match="takes 2 inputs"):
            run(**wrong)
    with pytest.raises(QuantizationError, match="missing a required argument: 'y'"):
        deploy.export(model, {"x": X}, tmp_path / "two.onnx")


def test_a_nested_example(tmp_path):
    torch.manual_seed(0)
    model = Pair().eval()
    for example in (((X, X), {"y": Y}), {"pair": [X, X], "more": {"y": Y}}):
        path = deploy.export(model, example, tmp_path / "pair.onnx")
        got = deploy.session(path, 1)(X, X, Y)
        torch.testing.assert_close(got, model((X, X), {"y": Y}).detach())


@pytest.mark.parametrize("wrong", [None, (), [], 3, "x", (3,), ((X, "y"),), torch.tensor(1.0)])
def test_what_is_no_example(wrong):
    with pytest.raises(QuantizationError, match="example"):
        arguments(Two(), wrong)


class Pictures(nn.Module):
    """Down, up again, and one value a picture: runs at any size."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.c, self.fc = nn.Conv2d(11, 4, 1), nn.Linear(4, 2)

    def forward(self, x):
        y = F.relu(self.b(F.relu(self.a(x))))
        y = F.interpolate(y, scale_factor=2.0, mode="nearest")
        y = F.relu(self.c(torch.cat([x, y], 1)))
        return self.fc(y.mean((2, 3)))


def static(model, x):
    return PTQQuantizer(model).calibrate([x], progress=False, ranges="minmax").convert()


def at_run_time(model, x):
    return quantize_dynamic(model, granularity="per_tensor")


@pytest.mark.parametrize("convert", [static, at_run_time])
def test_height_and_width_stay_free_on_request(tmp_path, convert):
    torch.manual_seed(0)
    model, x = Pictures().eval(), torch.randn(4, 3, 8, 12)
    quantized = convert(model, x)
    free = deploy.export(quantized, x, tmp_path / "free.onnx", free_dimensions=(0, 2, 3))
    run = deploy.session(free, 1)
    kernel = "QLinearConv" if convert is static else "ConvInteger"
    assert run.operators[kernel] == 3
    for shape in ((4, 3, 8, 12), (1, 3, 16, 6), (2, 3, 30, 32)):
        given = torch.randn(shape)
        with torch.no_grad():
            expected = quantized(given)
        torch.testing.assert_close(run(given), expected, atol=0.02, rtol=0.02)
    fixed = deploy.session(deploy.export(quantized, x, tmp_path / "fixed.onnx"), 1)
    with pytest.raises(QuantizationError, match="cannot be run on"):
        fixed(torch.randn(4, 3, 16, 6))


def test_a_network_that_fixes_its_size_says_so(tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 6 * 6, 2)).eval()
    x = torch.randn(4, 3, 8, 8)
    run = deploy.session(deploy.export(model, x, tmp_path / "a.onnx", free_dimensions=(0, 2, 3)), 1)
    torch.testing.assert_close(run(x), model(x).detach(), atol=1e-5, rtol=1e-5)
    with pytest.raises(QuantizationError, match=r"a\.onnx cannot be run on"):
        run(torch.randn(4, 3, 9, 8))
    with pytest.raises(QuantizationError, match="free_dimensions are positions from 0"):
        deploy.export(model, x, tmp_path / "b.onnx", free_dimensions=(0, -1))
    assert [path.name for path in tmp_path.iterdir()] == ["a.onnx"]
