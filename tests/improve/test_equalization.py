"""Equalization and its inverse keep the network and move its ranges; bias absorption is exact."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from ptq_classroom.pictures.models import load_model
from ptq_course.errors import QuantizationError, UnsupportedError
from ptq_course.grids.metrics import snr_pooled
from ptq_course.improve.equalization import (
    Equalize,
    absorb,
    absorb_high_biases,
    equalize,
    equalizing_factors,
    high_bias,
    input_ranges,
    output_ranges,
    unequalize,
)
from ptq_course.improve.pairs import Pair, find_pairs, prepared, with_limits, without_relu6
from ptq_course.simulation.qconfig import QConfig
from ptq_course.simulation.quantizer import PTQQuantizer
from tests.networks import randomize_batch_norms

relu = nn.ReLU
NETWORKS = {
    "convolutions": (
        lambda: [nn.Conv2d(3, 8, 3), relu(), nn.Conv2d(8, 4, 3, padding=1)],
        (2, 3, 9, 9),
    ),
    "depthwise": (
        lambda: [
            nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), relu(),
            nn.Conv2d(8, 8, 3, padding=1, groups=8), relu(), nn.Conv2d(8, 5, 1),
        ],
        (2, 3, 7, 7),
    ),
    "grouped, leaky": (
        lambda: [nn.Conv2d(4, 8, 3), nn.LeakyReLU(0.2), nn.Conv2d(8, 6, 1, groups=2)],
        (2, 4, 6, 6),
    ),
    "linear": (lambda: [nn.Linear(6, 8), relu(), nn.Linear(8, 3)], (2, 5, 6)),
    "flattened": (
        lambda: [nn.Conv2d(3, 8, 3), relu(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(72, 4)],
        (2, 3, 8, 8),
    ),
    "transposed": (
        lambda: [
            nn.ConvTranspose2d(4, 6, 3, 2, groups=2), relu(), nn.ConvTranspose2d(6, 4, 2, groups=2)
        ],
        (2, 4, 5, 5),
    ),
    "one dimension": (lambda: [nn.Conv1d(3, 8, 3), relu(), nn.Conv1d(8, 4, 3)], (2, 3, 9)),
}  # fmt: skip


def made(name):
    torch.manual_seed(3)
    layers, shape = NETWORKS[name]
    return randomize_batch_norms(nn.Sequential(*layers())).eval(), torch.randn(shape)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("change", [equalize, unequalize])
def test_the_network_computes_the_same_with_other_weights(name, change):
    model, x = made(name)
    changed = change(model)
    expected = model(x)
    torch.testing.assert_close(changed(x), expected, atol=1e-5, rtol=1e-5)
    pairs, before = find_pairs(changed), prepared(model)
    assert pairs
    first = pairs[0].first
    ratio = changed.get_submodule(first).weight / before.get_submodule(first).weight
    assert (ratio - 1).abs().max() > 0.01
    assert torch.equal(model(x), expected), "the user's model is left alone"


@pytest.mark.parametrize("name", NETWORKS)
def test_equalized_ranges_are_equal(name):
    module = equalize(made(name)[0], sweeps=200, tolerance=1e-6)
    for pair in find_pairs(module):
        first, second = module.get_submodule(pair.first), module.get_submodule(pair.second)
        reading = input_ranges(second).view(len(output_ranges(first)), -1).amax(1)
        torch.testing.assert_close(output_ranges(first), reading, rtol=1e-3, atol=1e-6)


def test_the_factors_are_those_of_the_paper_and_dead_channels_stay():
    first, second = torch.tensor([8.0, 1.0, 0.0, 3.0]), torch.tensor([2.0, 4.0, 5.0, 0.0])
    assert equalizing_factors(first, second).tolist() == [2.0, 0.5, 1.0, 1.0]
    for wrong in (torch.ones(3), torch.tensor([1.0, -1, 1, 1]), torch.full((4,), torch.nan)):
        with pytest.raises(QuantizationError, match="equalizing_factors"):
            equalizing_factors(first, wrong)


def test_what_stands_in_no_pair():
    shared = nn.Linear(8, 8)

    class Branch(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x):
            y = self.a(x).relu()
            return self.b(y) + y

    assert find_pairs(prepared(Branch())) == []
    assert find_pairs(prepared(nn.Sequential(shared, relu(), shared))) == []
    for between in (nn.ReLU6(), nn.GELU(), nn.Sigmoid(), nn.Softmax(-1), nn.LayerNorm(8)):
        model = nn.Sequential(nn.Linear(8, 8), between, nn.Linear(8, 8))
        assert find_pairs(prepared(model)) == [], between
    tokens = nn.Sequential(nn.Linear(8, 8), nn.Flatten(), nn.Linear(24, 8))  # its channels are last
    assert find_pairs(prepared(tokens)) == []


def test_relu6_is_exchanged_by_name_and_breaks_what_lies_above_six():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU6(), nn.Linear(4, 4)).eval()
    free = without_relu6(model)
    assert [p.first for p in find_pairs(free)] == ["0"]
    small, large = torch.randn(5, 4), 100 * torch.randn(5, 4)
    torch.testing.assert_close(free(small), model(small))
    assert snr_pooled(model(large), free(large)) < 20


def test_settings_are_checked():
    model = made("linear")[0]
    with pytest.raises(QuantizationError, match="sweeps"):
        equalize(model, sweeps=0)
    with pytest.raises(QuantizationError, match="tolerance"):
        equalize(model, tolerance=-1.0)
    with pytest.raises(QuantizationError, match="spread"):
        unequalize(model, spread=0)
    with pytest.raises(UnsupportedError, match="no convolution"):
        output_ranges(nn.Embedding(3, 4))


@pytest.mark.parametrize(("beta", "above"), [(10.0, True), (1.0, False)])
def test_absorbing_a_high_bias_is_exact_above_it(beta, above):
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(6)
    with torch.no_grad():
        norm.bias.fill_(beta)
    model = nn.Sequential(nn.Linear(4, 6), norm, relu(), nn.Linear(6, 3)).eval()
    absorbed, x = absorb_high_biases(model), torch.rand(50, 4)
    before, after = (m.get_parameter("0.bias") for m in (prepared(model), absorbed))
    moved = before - after
    assert (bool(moved.min() > 6.9), bool(moved.max() > 0)) == (above, above)
    torch.testing.assert_close(absorbed(x), model(x), atol=1e-5, rtol=1e-5)
    # Below the constant it is not: what the ReLU cuts off is another value then.
    if above:
        far = 100 * torch.randn(50, 4)
        assert (absorbed(far) - model(far)).abs().max() > 0.1


def test_high_bias_and_padding():
    assert high_bias(torch.tensor([7.0, 1.0]), torch.tensor([-2.0, 1.0])).tolist() == [1.0, 0.0]
    with pytest.raises(QuantizationError, match="alike"):
        high_bias(torch.ones(2), torch.ones(3))
    with pytest.raises(QuantizationError, match="pads"):
        absorb(nn.Conv2d(2, 3, 1), nn.Conv2d(3, 2, 3, padding=1), torch.ones(3))
    with pytest.raises(QuantizationError, match="no bias"):
        absorb(nn.Linear(2, 3, bias=False), nn.Linear(3, 2), torch.ones(3))


def test_a_pair_says_whether_a_bias_can_move():
    model = made("flattened")[0]
    assert find_pairs(prepared(model)) == [Pair("0", "4")]
    assert find_pairs(prepared(made("linear")[0])) == [Pair("0", "2", shifts=True)]


def test_inverse_equalization_ruins_one_scale_per_tensor_and_equalization_restores_it():
    """On the shipped residual network; both steps stand in PTQQuantizer's list of steps."""
    model = load_model("resnet")
    x = torch.randn(16, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    config = replace(QConfig.onnxruntime(), weight_granularity="per_tensor")

    def decibels(*steps):
        quantizer = PTQQuantizer(model, config=config, steps=steps)
        quantizer.calibrate([x], ranges="minmax", progress=False)
        return snr_pooled(model(x), quantizer.convert()(x))

    def ruin(module, quantizer):
        return unequalize(module)

    with torch.no_grad():
        plain, ruined, restored = decibels(), decibels(ruin), decibels(ruin, Equalize())
    assert ruined < plain - 8
    assert restored > ruined + 8


@pytest.mark.parametrize("change", [equalize, unequalize])
def test_limits_go_along_with_the_channels_of_a_relu6(change):
    torch.manual_seed(5)
    clipped = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.ReLU6(), nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.ReLU6(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(72, 4),
    ).eval()  # fmt: skip
    x = 20 * torch.randn(4, 3, 6, 6)
    limited = with_limits(clipped)
    assert torch.equal(limited(x), clipped(x))
    assert not find_pairs(prepared(clipped))
    assert [pair.limit for pair in find_pairs(limited)] == ["limit_of__1", "limit_of__3"]
    changed = change(limited)
    torch.testing.assert_close(changed(x), clipped(x), atol=1e-3, rtol=1e-4)
    assert (changed.get_buffer("limit_of__1") - 6).abs().max() > 0.1
    again = equalize(changed)  # the limits of a changed network go along, too
    torch.testing.assert_close(again(x), clipped(x), atol=1e-3, rtol=1e-4)
    assert (clipped(x) - without_relu6(clipped)(x)).abs().max() > 1, "the limits matter here"


def test_a_relu6_behind_a_sum_keeps_its_six():
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.clip = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1), nn.ReLU6()

        def forward(self, x):
            y = self.a(x)
            return self.b(self.clip(y + y.flip(3)))

    limited = with_limits(Sum())
    assert not find_pairs(limited)
    assert not list(limited.buffers())


@pytest.mark.parametrize(
    ("reader", "moves"),
    [
        (nn.Conv2d(6, 4, 3, bias=False), True),
        (nn.Conv2d(6, 6, 3, groups=6, stride=2), True),
        (nn.Conv2d(6, 4, 3, padding=1), False),
        (nn.ConvTranspose2d(6, 4, 3), False),
    ],
)
def test_convolutions_absorb_high_biases_also_without_a_bias_of_their_own(reader, moves):
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(6)
    with torch.no_grad():
        norm.get_parameter("bias").fill_(9.0)
        norm.get_parameter("weight").fill_(0.5)
    model = nn.Sequential(nn.Conv2d(3, 6, 1, bias=False), norm, relu(), reader).eval()
    x = torch.randn(2, 3, 8, 8)
    absorbed = absorb_high_biases(model)
    before, after = (m.get_parameter("0.bias") for m in (prepared(model), absorbed))
    shift = 7.5 if moves else 0.0
    torch.testing.assert_close(before - after, torch.full((6,), shift))
    torch.testing.assert_close(absorbed(x), model(x), atol=1e-4, rtol=1e-4)


def test_a_step_that_changes_the_network_is_named():
    """Without a batch, flattening from dimension 1 does not flatten the channels."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), relu(), nn.Flatten(1), nn.Linear(64, 4))
    quantizer, data = PTQQuantizer(model.eval(), steps=[Equalize()]), [torch.randn(3, 8, 8)]
    with pytest.raises(UnsupportedError, match=r"after Equalize.*without them it does"):
        quantizer.calibrate(data, ranges="minmax", progress=False)
