"""A quantized network that learns: it starts as it was, and no gradient is lost on the way."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ptq_course.improve.learning import learning_copy, written_back
from ptq_course.simulation.layers import QuantizedLayer
from ptq_course.simulation.qconfig import QConfig
from ptq_course.simulation.quantizer import PTQQuantizer


def calibrated(model, batches, **choices):
    quantizer = PTQQuantizer(model.eval(), config=QConfig(**choices))
    return quantizer.calibrate(batches, ranges="minmax", progress=False)


@pytest.fixture(scope="module")
def data():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(4, 8, 6, 6, generator=generator) for _ in range(3)]


def network(activation: nn.Module) -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(8, 8, 3, padding=1), activation, nn.Conv2d(8, 4, 1), activation, nn.Flatten(),
        nn.Linear(144, 5),
    )  # fmt: skip


@pytest.mark.parametrize("granularity", ["per_channel", "per_tensor", 4])
def test_it_starts_from_the_quantized_network_and_is_written_back_as_it_was(data, granularity):
    quantized = calibrated(network(nn.ReLU()), data, weight_granularity=granularity).convert()
    learner = learning_copy(quantized, learn_scales=True)
    with torch.no_grad():
        assert torch.allclose(learner(data[0]), quantized(data[0]), atol=1e-4)
    again = written_back(learner, quantized)
    assert torch.equal(again(data[0]), quantized(data[0]))


@pytest.mark.parametrize(
    "activation", [nn.SiLU(), nn.Hardswish(), nn.Hardsigmoid(), nn.GELU(), nn.Sigmoid()]
)
def test_an_activation_that_rounds_inside_lets_the_whole_gradient_through(data, activation):
    """round() alone would leave x * round(sigmoid(x)) only the gradient of its first factor."""
    model = network(activation)
    quantized = calibrated(model, data).convert()
    gradients = []
    for net in (model, learning_copy(quantized)):
        x = data[0].clone().requires_grad_()
        net(x).square().sum().backward()
        gradients.append(x.grad.flatten())
    cosine = torch.cosine_similarity(*gradients, dim=0).item()
    assert cosine > 0.99, cosine


def test_a_layer_with_two_names_learns_under_both(data):
    """Without a graph each call goes by its own name; one copy left behind would not learn."""

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(6, 6)
            self.second = self.first

        def forward(self, x):
            if x.sum() > 1e9:  # torch.fx cannot trace a branch on values
                return x
            return self.second(torch.relu(self.first(x)))

    torch.manual_seed(0)
    batches = [x.flatten(0, 2)[:32] for x in data]
    with pytest.warns(UserWarning, match="layer by layer"):
        quantizer = PTQQuantizer(Twice().eval(), config=QConfig())
    quantized = quantizer.calibrate(batches, ranges="minmax", progress=False).convert()
    learner = learning_copy(quantized)
    assert learner.first is learner.second
    assert not any(isinstance(part, QuantizedLayer) for part in learner.modules())
    with torch.no_grad():
        assert torch.allclose(learner(batches[0]), quantized(batches[0]), atol=1e-5)
