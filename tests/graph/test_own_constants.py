"""A formula that reads a layer's tensor means the tensor that the user's model has."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from ptq_course.graph import trace
from ptq_course.graph.fusion import fuse
from ptq_course.improve.bias_correction import CorrectBias
from ptq_course.improve.walk import improved
from ptq_course.simulation.qconfig import QConfig
from ptq_course.simulation.quantizer import PTQQuantizer


class WeightStatistics(nn.Module):
    """Scales its result by the norm of a weight into which a batch norm is folded."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.out = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2)
        self.norm.running_var = torch.full((4,), 0.1)

    def forward(self, x: Tensor) -> Tensor:
        size = self.conv.weight.square().sum() + self.conv.weight.abs().mean()
        return self.out(F.relu(self.norm(self.conv(x))).mean((2, 3)) / size) + self.out.bias.sum()


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return WeightStatistics().eval()


def test_folding_leaves_the_formula_alone(model):
    x = torch.randn(2, 3, 6, 6)
    for traced in (trace(model), fx.symbolic_trace(model)):
        fused = fuse(traced)
        torch.testing.assert_close(fused(x), model(x))
        names = {str(n.target) for n in fused.graph.nodes if n.op == "get_attr"}
        assert names == {"conv_weight_value", "out_bias_value"}


def test_rounding_and_correcting_leave_the_formula_alone(model):
    x = torch.randn(8, 3, 6, 6)
    quantizer = PTQQuantizer(model, config=QConfig(weight_bits=2, activation_bits=None))
    network = improved(quantizer, [x], [CorrectBias(inherited=True)], progress=False).module
    kept = network.get_buffer("out_bias_value"), network.get_buffer("conv_weight_value")
    assert torch.equal(kept[0], model.get_parameter("out.bias"))
    assert torch.equal(kept[1], model.get_parameter("conv.weight"))
    with torch.no_grad():
        shift = (network(x) - model(x)).mean(0)
    assert shift.abs().max() < 1e-6  # a corrected bias must not come in twice
