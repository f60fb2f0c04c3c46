from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from ptq_classroom.pictures.models import load_model
from ptq_course.errors import QuantizationError
from ptq_course.graph import plan, trace
from ptq_course.graph.fusion import BATCH_NORMS, fold_batch_norm, fuse
from ptq_course.graph.kinds import ACTIVATIONS
from ptq_course.simulation.qconfig import FUSABLE, QConfig
from ptq_course.simulation.quantizer import PTQQuantizer
from tests.networks import InvertedResidual, Residual, randomize_batch_norms

PAIRS = [
    (lambda: nn.Conv2d(3, 5, 3, bias=False), nn.BatchNorm2d, (2, 3, 8, 8)),
    (lambda: nn.Conv2d(4, 4, 3, groups=4), nn.BatchNorm2d, (2, 4, 8, 8)),
    (lambda: nn.Conv1d(3, 5, 3), nn.BatchNorm1d, (2, 3, 9)),
    (lambda: nn.Conv3d(2, 5, 2), nn.BatchNorm3d, (2, 2, 4, 4, 4)),
    (lambda: nn.ConvTranspose2d(3, 5, 3, stride=2), nn.BatchNorm2d, (2, 3, 5, 5)),
    (lambda: nn.Linear(3, 5), nn.BatchNorm1d, (4, 3)),
]


@pytest.mark.parametrize(("make_layer", "norm", "shape"), PAIRS)
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 1000), affine=st.booleans())
def test_folding_equals_layer_then_batch_norm(make_layer, norm, shape, seed, affine):
    torch.manual_seed(seed)
    model = randomize_batch_norms(
        nn.Sequential(make_layer(), norm(5 if shape[1] != 4 else 4, affine=affine)), seed
    )
    x = torch.randn(shape)
    fused = fuse(trace(model))
    assert not any(isinstance(m, BATCH_NORMS) for m in fused.modules())
    torch.testing.assert_close(fused(x), model(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("network", [Residual, InvertedResidual])
def test_whole_networks_compute_the_same_after_fusion(network):
    model = randomize_batch_norms(network())
    x = torch.randn(4, 3, 12, 12)
    fused = fuse(trace(model))
    torch.testing.assert_close(fused(x), model(x), atol=1e-5, rtol=1e-5)
    assert len(list(fused.graph.nodes)) < len(list(trace(model).graph.nodes))


def test_folding_keeps_gamma_and_beta_for_later_chapters():
    model = randomize_batch_norms(nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5)))
    layer = fuse(trace(model)).get_submodule("0")
    assert torch.equal(layer.folded_gamma, model[1].weight)
    assert torch.equal(layer.folded_beta, model[1].bias)


def test_the_model_is_left_alone():
    model = randomize_batch_norms(Residual()).train()
    before = copy.deepcopy(model.state_dict())
    fuse(trace(model))
    assert model.training
    assert all(
        torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True)
    )


def test_training_mode_is_refused():
    traced = trace(Residual()).train()
    with pytest.raises(QuantizationError, match="training mode"):
        fuse(traced)


class TwoConsumers(nn.Module):
    """The convolution's output is also used before batch norm: folding would change that use."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x):
        y = self.conv(x)
        return self.bn(y) + y


class SharedConvolution(nn.Module):
    """One convolution, two batch norms: it cannot absorb both."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.a, self.b = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x):
        return self.b(self.conv(self.a(self.conv(x))))


@pytest.mark.parametrize("network", [TwoConsumers, SharedConvolution])
def test_what_cannot_be_folded_stays_and_the_output_is_unchanged(network):
    model = randomize_batch_norms(network())
    x = torch.randn(2, 3, 6, 6)
    fused = fuse(trace(model))
    torch.testing.assert_close(fused(x), model(x), atol=1e-5, rtol=1e-5)


def test_dropout_and_identity_disappear():
    model = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.9), nn.Identity(), nn.Linear(3, 2)).eval()
    fused = fuse(trace(model))
    assert sum(isinstance(m, (nn.Dropout, nn.Identity)) for m in fused.modules()) == 0
    x = torch.randn(5, 3)
    torch.testing.assert_close(fused(x), model(x))


def test_wrong_shapes_and_negative_variance_are_named():
    weight, ones = torch.ones(4, 3), torch.ones(4)
    with pytest.raises(QuantizationError, match=r"mean has shape \(3,\).*4 channels"):
        fold_batch_norm(weight, None, torch.ones(3), ones, ones, ones, 1e-5)
    with pytest.raises(QuantizationError, match="negative"):
        fold_batch_norm(weight, None, ones, -ones, ones, ones, 1e-5)


GROUPED = [
    (nn.ConvTranspose1d(4, 6, 3, groups=2), nn.BatchNorm1d(6), (2, 4, 7)),
    (nn.ConvTranspose2d(6, 9, 3, stride=2, groups=3, bias=False), nn.BatchNorm2d(9), (2, 6, 5, 5)),
    (nn.ConvTranspose3d(4, 2, 2, groups=2), nn.BatchNorm3d(2), (2, 4, 3, 3, 3)),
]


@pytest.mark.parametrize(("layer", "norm", "shape"), GROUPED, ids=lambda v: type(v).__name__)
def test_grouped_transposed_convolution_absorbs_batch_norm(layer, norm, shape):
    model = randomize_batch_norms(nn.Sequential(layer, norm))
    fused = fuse(trace(model))
    x = torch.randn(shape)
    assert not any(isinstance(m, BATCH_NORMS) for m in fused.modules())
    torch.testing.assert_close(fused(x), model(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["resnet", "mobilenet"])
def test_the_trained_networks_compute_the_same_after_fusion(name):
    model = load_model(name)
    fused = fuse(trace(model))
    x = torch.randn(4, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, got = model(x), fused(x)
    assert (expected - got).abs().max() <= 1e-5 * expected.abs().max()
    assert not any(isinstance(m, (*BATCH_NORMS, nn.Dropout)) for m in fused.modules())


class Functional(nn.Module):
    """Batch norm as a function; ``batch``: which statistics it uses."""

    def __init__(self, batch: bool = False) -> None:
        super().__init__()
        self.conv, self.norm, self.batch = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), batch

    def forward(self, x):
        n = self.norm
        x = self.conv(x)
        return F.batch_norm(x, n.running_mean, n.running_var, n.weight, n.bias, self.batch)


def test_functional_batch_norm():
    x = torch.randn(2, 3, 6, 6)
    model = randomize_batch_norms(Functional())
    fused = fuse(trace(model))
    assert [n.target for n in fused.graph.nodes if n.op == "call_module"] == ["conv"]
    torch.testing.assert_close(fused(x), model(x), atol=1e-5, rtol=1e-5)
    assert torch.equal(fused.conv.folded_gamma, model.norm.weight)
    by_batch = fuse(trace(randomize_batch_norms(Functional(batch=True))))
    assert any(n.target is F.batch_norm for n in by_batch.graph.nodes)


class Dropping(nn.Module):
    """The ways of writing dropout; ``always``: the common mistake that drops at inference too."""

    def __init__(self, always: bool = False) -> None:
        super().__init__()
        self.a, self.b, self.always = nn.Linear(4, 4), nn.Linear(4, 2), always
        self.drop = nn.Dropout(0.9)

    def forward(self, x):
        x = self.drop(F.dropout(self.a(x), 0.9, training=self.training))
        x = F.alpha_dropout(x, 0.9, self.training)
        return self.b(F.dropout(x, 0.9) if self.always else x)


def test_every_dropout_disappears():
    model = Dropping().train()
    fused, x = fuse(trace(model)), torch.randn(5, 4)
    assert [n.target for n in fused.graph.nodes if n.op.startswith("call")] == ["a", "b"]
    torch.testing.assert_close(fused(x), model.eval()(x))


def test_dropout_that_ignores_the_mode_is_removed_with_a_warning():
    model, x = Dropping(always=True).eval(), torch.randn(5, 4)
    with pytest.warns(UserWarning, match="training=self.training"):
        fused = fuse(trace(model))
    torch.testing.assert_close(fused(x), model.b(model.a(x)))
    with pytest.warns(UserWarning, match="training=self.training"):
        quantizer = PTQQuantizer(model)
    quantized = quantizer.calibrate(
        [x], progress=False, ranges="minmax"
    ).convert()  # a random model: not compared
    assert torch.equal(quantized(x), quantized(x))


@pytest.mark.parametrize(
    ("activation", "target"),
    [
        (lambda x: F.relu(x), "relu"), (torch.relu, "relu"), (lambda x: x.relu(), "relu"),
        (lambda x: x.clamp(min=0), "relu"), (lambda x: torch.clamp(x, 0, 6), "relu6"),
        (lambda x: x.clamp(0, max=6), "relu6"), (lambda x: F.hardtanh(x, 0.0, 6.0), "relu6"),
        (nn.Hardtanh(0, 6), "relu6"), (lambda x: F.relu6(x), "relu6"),
    ],
)  # fmt: skip
def test_clamping_activations_merge_in_every_form(activation, target):
    model = Activated(activation)
    traced = fuse(trace(model))
    x = torch.randn(3, 4) * 5
    torch.testing.assert_close(traced(x), model(x))
    node = list(traced.graph.nodes)[2]
    name = getattr(node.target, "__name__", node.target)
    assert name in (target, f"{target}_")
    assert list(plan(traced).values) == ["x", node.name]


class Activated(nn.Module):
    def __init__(self, activation) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 2)
        self.activation = activation

    def forward(self, x):
        return self.b(self.activation(self.a(x)))


@pytest.mark.parametrize(
    "activation", [F.hardswish, F.silu, nn.Hardswish(), nn.SiLU()], ids=["f", "f", "m", "m"]
)
def test_hardswish_and_silu_are_fused_where_the_runtime_does(activation):
    def values(config, model=None):
        quantizer = PTQQuantizer(model or Activated(activation), config=config)
        quantized = quantizer.calibrate(
            [torch.randn(32, 4)], progress=False, ranges="minmax"
        ).convert()
        return list(quantized.qparams)

    # Of Hardswish ONNX Runtime makes integer kernels, which read codes; of SiLU it does not.
    rounded = activation is F.hardswish or isinstance(activation, nn.Hardswish)
    assert len(values(QConfig.onnxruntime())) == 2 + rounded  # input, layer, activation
    assert ("a" in values(QConfig.onnxruntime())) == rounded
    assert "a" not in values(QConfig.tensorrt())
    assert "a" in values(QConfig.arm())


def test_fused_activations_can_change_after_observation():
    quantizer = PTQQuantizer(Activated(F.hardswish), config=QConfig.tensorrt())
    quantizer.calibrate([torch.randn(32, 4)], progress=False, ranges="minmax")
    assert set(quantizer.qparams) == {"x", "hardswish"}
    quantizer.compute_qparams(config=QConfig.onnxruntime())
    assert set(quantizer.qparams) == {"x", "a", "hardswish"}
    relu = PTQQuantizer(Activated(F.relu)).calibrate(
        [torch.randn(32, 4)], progress=False, ranges="minmax"
    )
    apart = replace(QConfig.tensorrt(), fused_activations=())
    with pytest.raises(QuantizationError, match="values a, which were not observed"):
        relu.compute_qparams(config=apart)
    unfused = PTQQuantizer(Activated(F.relu), config=apart)
    unfused.calibrate([torch.randn(32, 4)], progress=False, ranges="minmax")
    assert set(unfused.qparams) == {
        "x", "a", "relu",
    }  # fmt: skip
    with pytest.raises(QuantizationError, match=r"relu, relu6, hardswish, silu"):
        QConfig(fused_activations=("gelu",))
    assert set(FUSABLE) == set(ACTIVATIONS)
