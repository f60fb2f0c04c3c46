from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ptq_course.errors import QuantizationError
from ptq_course.fusion import BATCH_NORMS, fold_batch_norm, fuse
from ptq_course.graph import trace
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
