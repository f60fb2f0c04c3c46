from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ptq_course.errors import UnsupportedError
from ptq_course.graph import plan, trace
from ptq_course.graph.fusion import fuse
from tests.networks import DataDependent, InvertedResidual, Residual, SharedLayer


def planned(model: nn.Module, **kwargs):
    return plan(fuse(trace(model)), **kwargs)


def test_one_scale_a_value_and_the_relu_boundary():
    result = planned(Residual())
    # the input, three ReLU outputs, and the branch that enters the add without a ReLU
    assert list(result.values) == ["x", "relu", "relu__relu_1", "b", "relu__relu_2"]
    assert {n: s.input_value for n, s in result.layers.items()} == {
        "stem": "x",
        "a": "relu",
        "b": "relu__relu_1",
        "fc": "relu__relu_2",
    }
    assert result.left_in_float == {}


def test_pooling_inherits_and_is_rounded_again():
    assert planned(Residual()).values["relu__relu_2"].inherited_by == ["pool"]


def test_relu6_merges_too():
    values = planned(InvertedResidual()).values
    assert "block.0" not in values
    assert {"block.2", "add"} <= set(values)


def test_logits_are_not_quantized():
    assert "fc" not in planned(Residual()).values


def test_float_layers_free_their_inputs():
    result = planned(Residual(), float_layers=("fc",))
    assert result.layers["fc"].input_value is None
    assert "relu__relu_2" not in result.values
    assert "float_layers" in result.left_in_float["fc"]


def test_unknown_float_layer_names_the_layers():
    with pytest.raises(UnsupportedError, match=r"'head'.*a, b, fc, stem"):
        planned(Residual(), float_layers=("head",))


def test_each_call_of_a_shared_layer_has_its_own_input():
    result = planned(SharedLayer())
    assert result.layers["fc"].input_value == "x"
    assert result.layers["fc__call2"].input_value == "mul"


def test_a_shared_layer_keeps_one_weight():
    traced = trace(SharedLayer())
    assert traced.get_submodule("fc").weight is traced.get_submodule("fc__call2").weight


def test_trace_names_the_reason():
    with pytest.raises(UnsupportedError, match=r"DataDependent cannot be traced.*control flow"):
        trace(DataDependent())


class Shapes(nn.Module):
    """Numbers taken from shapes must not be mistaken for tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4 * 16, 2)

    def forward(self, x):
        x = F.max_pool2d(self.conv(x), 2)
        return self.fc(x.view(x.size(0), x.shape[1] * 16))


def test_shapes_are_not_values():
    result = planned(Shapes())
    assert list(result.values) == ["x", "conv"]
    assert result.layers["fc"].input_value == "conv"
    assert result.values["conv"].inherited_by == []  # max pooling stays on the grid


class PoolBetween(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3)

    def forward(self, x):
        return self.b(torch.relu(F.max_pool2d(self.a(x), 2)))


def test_pooling_between_layer_and_relu_gives_the_layer_a_value():
    assert list(planned(PoolBetween()).values) == ["x", "a", "relu", "b"]


class Unknown(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 2)

    def forward(self, x):
        return self.b(self.norm(self.a(x)))


def test_what_stays_in_float_is_said():
    result = planned(Unknown())
    assert "LayerNorm" in result.left_in_float["norm"]
    assert result.layers["b"].input_value == "norm"


def test_clamp_zero_six_is_relu6():
    class Clamped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x):
            return self.b(torch.clamp(self.a(x), 0, 6))

    assert list(planned(Clamped()).values) == ["x", "clamp"]


def test_softmax_has_a_known_range():
    class Attention(nn.Module):
        def forward(self, q, k, v):
            return torch.softmax(q @ k.transpose(-1, -2), -1) @ v

    result = plan(trace(nn.Sequential(nn.Linear(3, 3))))
    assert result.layers
    values = plan(trace(Attention())).values
    assert [v.range for v in values.values() if v.range] == [(0.0, 1.0)]


class ClampedInPlace(nn.Module):
    """The result of clamp_ is not used by name: the clamped tensor is."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x):
        y = self.first(x)
        y.clamp_(min=0)
        z = self.second(y)
        F.hardtanh(z, 0, 6, inplace=True)
        return z


def test_a_clamp_in_place_stays_in_place():
    torch.manual_seed(0)
    model, x = ClampedInPlace().eval(), torch.randn(16, 8)
    assert torch.allclose(trace(model)(x), model(x))


class ByKeyword(nn.Module):
    def __init__(self):
        super().__init__()
        self.square, self.row = nn.Parameter(torch.randn(8, 8)), nn.Parameter(torch.randn(8))

    def forward(self, x):
        return F.linear(F.linear(weight=self.square, input=x), self.row)


def test_functional_layers_by_keyword_and_with_a_vector_as_weight():
    model, x = ByKeyword().eval(), torch.randn(16, 8)
    traced = trace(model)
    assert torch.allclose(traced(x), model(x), atol=1e-5)
    assert list(plan(traced).layers) == ["linear"]  # a vector has no output channels
