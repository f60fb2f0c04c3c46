"""Who asks for a value: kernels of the target, and nobody where only an angle comes of it."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ptq_course.errors import UnsupportedError
from ptq_course.graph import plan, trace
from ptq_course.graph.fusion import fuse
from ptq_course.grids.metrics import snr_pooled
from ptq_course.simulation.qconfig import QConfig
from ptq_course.simulation.quantizer import PTQQuantizer


def quantized(model: nn.Module, *inputs: torch.Tensor, **choices) -> tuple[PTQQuantizer, float]:
    """The quantizer, and the signal-to-noise ratio on its own calibration data."""
    model.eval()
    quantizer = PTQQuantizer(model, config=QConfig(**choices)).observe([inputs], progress=False)
    with torch.no_grad():
        simulated = quantizer.compute_qparams("minmax").convert()(*inputs)
        return quantizer, snr_pooled(model(*inputs), simulated)


class Angles(nn.Module):
    """The sinusoidal position of a step t: its angles reach 999 radians."""

    def __init__(self, wave=torch.sin) -> None:
        super().__init__()
        self.wave, self.fc = wave, nn.Linear(8, 4)
        self.register_buffer("factor", 10.0 ** -torch.arange(8))

    def forward(self, t):
        return self.fc(self.wave(t[:, None] * self.factor))


class Sampled(nn.Module):
    """Addresses computed from a layer's output, as in a spatial transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.shift = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 2, 1)
        self.head = nn.Conv2d(4, 2, 1)
        axis = torch.linspace(-1, 1, 12)
        self.register_buffer("grid", torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1))

    def forward(self, x):
        grid = self.grid + self.shift(x).permute(0, 2, 3, 1) * 0.05
        return self.head(F.grid_sample(self.conv(x), grid, align_corners=True))


@pytest.mark.parametrize("target", ["onnxruntime", "tensorrt", "arm"])
@pytest.mark.parametrize("wave", [torch.sin, torch.cos, lambda x: (2 * x + 0.5).sin()])
def test_angles_are_not_rounded(wave, target):
    torch.manual_seed(0)
    quantizer, ratio = quantized(Angles(wave), torch.arange(1000.0), target=target)
    assert ratio > 35
    assert not {"t", "mul", "factor"} & set(quantizer.qparams)
    assert "angle" in quantizer.left_in_float["mul"]


def test_addresses_are_not_rounded_and_layers_are():
    torch.manual_seed(0)
    quantizer, ratio = quantized(Sampled(), torch.randn(4, 3, 12, 12))
    assert set(quantizer.qparams) == {"x", "conv", "grid_sample", "head"}
    assert {"add", "mul"} <= set(quantizer.left_in_float)
    assert ratio > 25


def test_both_sides_of_a_comparison_stay_as_they_are():
    class Gate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 2)

        def forward(self, x, limit):
            return self.b(self.a(x) * (x + limit > 0.5))

    quantizer, ratio = quantized(Gate(), torch.randn(64, 6), torch.rand(64, 6))
    assert "add" not in quantizer.qparams
    assert "limit" not in quantizer.qparams
    assert ratio > 20  # x itself is rounded for the layer that reads it


class PostNorm(nn.Module):
    """A residual that only a LayerNorm reads, as in BERT."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 8)
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.norm(x + self.b(torch.relu(self.a(x)))))


def test_a_sum_that_only_a_norm_reads_is_computed_from_real_numbers():
    quantizer, _ = quantized(PostNorm(), torch.randn(64, 8))
    assert set(quantizer.qparams) == {"x", "relu", "norm"}
    assert "no integer kernel of ONNX Runtime reads" in quantizer.left_in_float["add"]
    values = quantizer.network.plan.values
    assert values["norm"].asked_by == ["QGemm"]


class Decoder(nn.Module):
    """What a detector does with its last convolution: a box's centre in pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 3, padding=1)
        rows, columns = torch.meshgrid(torch.arange(80.0), torch.arange(80.0), indexing="ij")
        self.register_buffer("grid", torch.stack([columns, rows]))

    def forward(self, x):
        return (self.conv(x).sigmoid() + self.grid) * 8


@pytest.mark.parametrize("names", [("behind:conv",), ("sigmoid", "add", "mul")])
def test_any_operation_stays_in_floating_point_by_name_type_or_place(names):
    torch.manual_seed(0)
    model, x = Decoder().eval(), torch.randn(2, 3, 80, 80)
    quantizer, _ = quantized(model, x, target="arm", float_layers=names)
    with torch.no_grad():
        pixels = (quantizer.convert()(x) - model(x)).abs().max()
    assert pixels < 0.1
    assert set(quantizer.left_in_float) == {"sigmoid", "add", "mul"}
    assert list(quantizer.convert().quantized_layers()) == ["conv"]
    with torch.no_grad():
        rounded = (quantized(model, x, target="arm")[0].convert()(x) - model(x)).abs().max()
    assert rounded > 1


def test_a_type_stands_for_all_its_operations():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sigmoid(), nn.Conv2d(4, 4, 1), nn.Sigmoid(),
                          nn.Conv2d(4, 2, 1))  # fmt: skip
    quantizer, _ = quantized(model, torch.randn(4, 3, 6, 6), float_layers=("Sigmoid",))
    assert set(quantizer.left_in_float) == {"1", "3"}
    layers = quantized(model, torch.randn(4, 3, 6, 6), float_layers=("Conv2d",))[0]
    assert layers.convert().quantized_layers() == {}


def test_a_name_that_matches_nothing_lists_what_there_is():
    with pytest.raises(UnsupportedError, match=r"names 'sig'.*layers: conv\..*sigmoid, add, mul"):
        PTQQuantizer(Decoder(), config=QConfig(float_layers=("sig",)))
    with pytest.raises(UnsupportedError, match="'behind:neck'"):
        PTQQuantizer(Decoder(), config=QConfig(float_layers=("behind:neck",)))


def test_a_runtime_of_integers_throughout_rounds_the_last_sum():
    class Ends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)

        def forward(self, x):
            x = torch.relu(self.a(x))
            return x + self.b(x)

    graph = fuse(trace(Ends()))
    assert list(plan(graph).values) == ["x", "relu", "b"]
    assert list(plan(graph, target="arm").values) == ["x", "relu", "b", "add"]
    assert list(plan(graph, target="tensorrt").values) == ["x", "relu"]


def test_the_report_says_what_is_rounded_only_because_of_its_kernel():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU(), nn.Conv2d(4, 2, 1))
    quantizer, _ = quantized(model, torch.randn(4, 3, 8, 8))
    text = str(quantizer.report())
    assert "in floating point (1): 1 (GELU" in text
    assert "rounded only because their kernel returns codes (2): 0 (QLinearConv, " in text
    assert "dB pooled" in text


def test_a_late_batch_norm_is_a_depthwise_convolution():
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(4)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), norm, nn.Conv2d(4, 2, 3, padding=1)).eval()
    x = torch.randn(2, 3, 8, 8)
    fused = fuse(trace(model))
    torch.testing.assert_close(fused(x), model(x), rtol=1e-5, atol=1e-5)
    layer = fused.get_submodule("2")
    assert isinstance(layer, nn.Conv2d)
    assert (layer.groups, layer.kernel_size) == (4, (1, 1))
    twice = nn.Sequential(nn.ReLU(), norm, nn.ReLU(), norm, nn.Conv2d(4, 2, 1)).eval()
    graph = fuse(trace(twice))
    torch.testing.assert_close(graph(x[:, [0, 1, 2, 0]]), twice(x[:, [0, 1, 2, 0]]))
    assert len(plan(graph).layers) == 2  # the last convolution takes the second call in


def test_weights_alone_leave_activations_as_they_are():
    """Nothing is rounded inside a Hardswish where no activation is quantized."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Hardswish(), nn.Linear(8, 2)).eval()
    x = torch.randn(32, 6)
    quantizer = PTQQuantizer(model)
    assert not any("rounded" in name for name, _ in quantizer.quantize_weights().named_modules())
    whole = quantizer.observe([x], progress=False).compute_qparams("minmax").convert()
    assert any("rounded" in name for name, _ in whole.named_modules())
