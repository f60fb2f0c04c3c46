"""Subclasses of layers: those that compute as their base, and those that ask for shapes."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ptq_course import PTQQuantizer, quantize_dynamic
from ptq_course.deploy import onnx as deploy
from ptq_course.deploy import storage
from ptq_course.errors import UnsupportedError
from ptq_course.graph import trace
from ptq_course.integer import to_integer


class Plain(nn.Linear):
    """Computes as nn.Linear."""


class Named(nn.Conv2d):
    def __init__(self, *args, label="", **kwargs):
        super().__init__(*args, **kwargs)
        self.label = label

    def extra_repr(self):
        return self.label


class Norm(nn.BatchNorm2d):
    pass


class Activation(nn.ReLU6):
    pass


class Same(nn.Conv2d):
    """TensorFlow's padding, whose widths depend on the size of the input."""

    def forward(self, x):
        height, width = x.shape[-2:]
        (sh, sw), (kh, kw) = self.stride, self.kernel_size
        pad_h = max((math.ceil(height / sh) - 1) * sh + kh - height, 0)
        pad_w = max((-(width // -sw) - 1) * sw + kw - width, 0)
        if pad_h > 0 or pad_w > 0:
            x = F.pad(x, [pad_w // 2, pad_w - pad_w // 2, pad_h // 2, pad_h - pad_h // 2])
        return F.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class Gated(nn.Linear):
    """Decides by values, which no example answers."""

    def forward(self, x):
        return super().forward(x) if x.sum() > 0 else x[:, : self.out_features]


def pair(seed=0):
    """A network of subclasses and the same of plain classes."""
    torch.manual_seed(seed)
    ours = nn.Sequential(
        Named(3, 8, 3, padding=1), Norm(8), Activation(), nn.Flatten(), Plain(8 * 36, 5)
    ).eval()
    plain = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU6(), nn.Flatten(),
        nn.Linear(8 * 36, 5),
    ).eval()  # fmt: skip
    plain.load_state_dict(ours.state_dict())
    return ours, plain, torch.randn(4, 3, 6, 6)


def test_a_subclass_that_changes_nothing_is_its_base(tmp_path):
    ours, plain, x = pair()
    made = [PTQQuantizer(m).calibrate([x], progress=False, ranges="minmax") for m in (ours, plain)]
    assert made[0].left_in_float == made[1].left_in_float == {}
    quantized, expected = (q.convert() for q in made)
    assert list(quantized.quantized_layers()) == ["0", "4"]
    assert torch.equal(quantized(x), expected(x))
    assert torch.equal(to_integer(quantized)(x), to_integer(expected)(x))
    storage.save(quantized, tmp_path / "q.safetensors")
    assert torch.equal(storage.load(tmp_path / "q.safetensors", ours)(x), expected(x))
    assert torch.equal(quantize_dynamic(ours)(x), quantize_dynamic(plain)(x))


def test_a_model_that_is_one_subclass():
    x = torch.randn(6, 4)
    quantized = (
        PTQQuantizer(Plain(4, 3).eval()).calibrate([x], progress=False, ranges="minmax").convert()
    )
    assert len(quantized.quantized_layers()) == 1


def test_a_subclass_in_a_model_without_a_graph():
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = Plain(4, 3)

        def forward(self, x):
            return self.fc(x) if x.sum() > 0 else -self.fc(x)

    x = torch.randn(6, 4)
    with pytest.warns(UserWarning, match="layer by layer"):
        quantizer = PTQQuantizer(Branching().eval())
    assert list(
        quantizer.calibrate([x], progress=False, ranges="minmax").convert().quantized_layers()
    ) == ["fc"]


def padding_network():
    torch.manual_seed(0)
    return nn.Sequential(
        Same(3, 4, 3, stride=2), Norm(4), nn.ReLU(), Same(4, 4, 2), nn.Flatten(), Plain(4 * 49, 3)
    ).eval()


def test_padding_by_the_shape_of_the_input(tmp_path):
    """The first batch is the example; the batch size stays free."""
    model, x = padding_network(), torch.randn(8, 3, 14, 14)
    with pytest.warns(UserWarning, match=r"0 \(Same\), 3 \(Same\)"):
        quantizer = PTQQuantizer(model)
    quantized = quantizer.calibrate(iter([x]), progress=False, ranges="minmax").convert()
    assert len(quantized.quantized_layers()) == 3
    assert quantized.left_in_float == {}
    for rows in (x, x[:3]):
        error = (quantized(rows) - model(rows)).norm() / model(rows).norm()
        assert error < 0.05
        assert (to_integer(quantized)(rows) - quantized(rows)).norm() < 0.05 * model(rows).norm()
    session = deploy.session(deploy.export(quantized, x, tmp_path / "q.onnx"), 1)
    assert (session(x) - quantized(x)).norm() < 0.02 * quantized(x).norm()
    storage.save(quantized, tmp_path / "q.safetensors")
    loaded = storage.load(tmp_path / "q.safetensors", copy.deepcopy(model), [x])
    assert torch.equal(loaded(x), quantized(x))


def test_another_shape_that_would_take_another_way_is_refused():
    model = nn.Sequential(Same(1, 1, 2, stride=3)).eval()  # pads at 13, not at 12
    traced = trace(model, [torch.randn(1, 1, 13, 13)])
    x = torch.randn(2, 1, 16, 16)
    assert torch.equal(traced(x), model(x))
    with pytest.raises(UnsupportedError, match="decides by the shape of its input"):
        traced(torch.randn(1, 1, 12, 12))


def test_an_example_serves_without_data():
    model, x = padding_network(), torch.randn(2, 3, 14, 14)
    for options in ({}, {"weights_only": True}):
        quantized = quantize_dynamic(model, example=x, **options)
        assert len(quantized.quantized_layers()) == 3
        assert (quantized(x) - model(x)).norm() < 0.05 * model(x).norm()


@pytest.mark.filterwarnings("ignore:Quantizing layer by layer")
def test_what_no_example_answers_names_the_subclass():
    model = nn.Sequential(Gated(4, 3)).eval()
    with pytest.raises(UnsupportedError, match=r"no layer to quantize.*0 \(Gated\).*F\.pad"):
        PTQQuantizer(model).calibrate([torch.randn(6, 4)], progress=False, ranges="minmax")
    with pytest.raises(UnsupportedError, match="need example="):
        quantize_dynamic(nn.Sequential(Same(3, 4, 3)).eval())
