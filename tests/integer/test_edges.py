"""Calls written differently, outputs of other shapes, empty batches, and whose network it is."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ptq_course.errors import QuantizationError, UnsupportedError
from ptq_course.integer import agreement, int_conv2d, to_integer
from ptq_course.simulation.qconfig import QConfig
from ptq_course.simulation.quantizer import PTQQuantizer
from tests.networks import Net


def made(function, shape=(4, 3, 8, 8), seed=0, **layers):
    """A simulated network, and data of its shape."""
    torch.manual_seed(seed)
    model = Net(function, **{name: make() for name, make in layers.items()}).eval()
    x = torch.randn(shape)
    quantizer = PTQQuantizer(model, config=QConfig.arm())  # integers throughout
    return quantizer.calibrate([x], progress=False, ranges="minmax").convert(), x


def conv(inputs=3, outputs=4, **settings):
    return lambda: nn.Conv2d(inputs, outputs, 3, padding=1, **settings)


def linear(inputs, outputs):
    return lambda: nn.Linear(inputs, outputs)


PAIR = {"a": conv(), "b": conv(), "c": conv(4, 2)}


@pytest.mark.parametrize(
    "function",
    [
        lambda s, x: s.c(torch.add(s.a(x), other=s.b(x))),
        lambda s, x: s.c(torch.sub(other=s.b(x), input=s.a(x))),
        lambda s, x: s.c(torch.mul(input=s.a(x), other=s.b(x))),
        lambda s, x: s.c(torch.cat(tensors=[s.a(x)[:, :2], s.b(x)[:, 2:]], dim=1)),
        lambda s, x: s.c(F.relu(input=s.a(x)) + s.b(x)),
    ],
    ids=["add", "sub", "mul", "cat", "relu"],
)
def test_arguments_by_keyword(function):
    simulated, x = made(function, **PAIR)
    table = agreement(to_integer(simulated), simulated, x)
    assert max(d.largest for d in table.isolated.values()) <= 1


MOVES = {
    "max_pool2d": lambda x: F.max_pool2d(x, 3, 2, 1),
    "torch.max_pool2d": lambda x: torch.max_pool2d(x, 2),
    "adaptive_max_pool2d": lambda x: F.adaptive_max_pool2d(x, (3, 5)),
    "amax": lambda x: x.amax((2, 3), keepdim=True),
    "amin": lambda x: torch.amin(x, 3, keepdim=True),
    "roll": lambda x: x.roll(1, 2),
    "flip": lambda x: torch.flip(x, (3,)),
    "repeat": lambda x: x.repeat(1, 1, 2, 1),
    "narrow": lambda x: x.narrow(2, 1, 3),
    "select": lambda x: x.select(2, 0).unsqueeze(2),
    "unfold": lambda x: x.unfold(2, 2, 2).flatten(3),
    "mT": lambda x: x.mT,
    "unshuffle": lambda x: F.pixel_unshuffle(F.pixel_shuffle(x, 2), 2),
    "subtract": lambda x: x.subtract(x * x),
    "multiply": lambda x: torch.multiply(x, x),
    "concatenate": lambda x: torch.concatenate([x, x], 2),
}


@pytest.mark.parametrize("move", MOVES.values(), ids=MOVES)
def test_what_only_moves_codes(move):
    """12 pixels and more, where PyTorch's channels-last kernel for the maximum of int8 fails."""
    simulated, x = made(lambda s, x: s.c(move(s.a(x))), (2, 3, 14, 12), a=conv(), c=conv(4, 2))
    table = agreement(to_integer(simulated), simulated, x)
    assert max(d.largest for d in table.isolated.values()) <= 1


def test_modules_of_max_pooling():
    layers = {"p": lambda: nn.MaxPool2d(2, ceil_mode=True), "q": lambda: nn.AdaptiveMaxPool2d(3)}
    simulated, x = made(
        lambda s, x: s.c(s.q(s.p(s.a(x)))), (2, 3, 25, 23), a=conv(), c=conv(4, 2), **layers
    )
    integer = to_integer(simulated)
    assert agreement(integer, simulated, x).isolated["a"].largest <= 1
    assert (integer(x) - simulated(x)).abs().max() < 0.1


def test_a_mean_over_the_batch_through_a_negative_dimension():
    def f(s, x):
        return s.b(s.a(x).mean(-2))

    simulated, x = made(f, (5, 7, 6), a=linear(6, 6), b=linear(6, 2))
    integer = to_integer(simulated)
    assert integer(x).shape == (5, 2)
    with pytest.raises(UnsupportedError, match=r"mean: dimension \[-2\].*\(5, 6\) is the batch"):
        integer(x[:, 0])


# --- outputs --------------------------------------------------------------------------------------


def test_decisions_of_every_pixel():
    simulated, x = made(lambda s, x: s.c(F.relu(s.a(x))), a=conv(), c=conv(4, 5))
    table = agreement(to_integer(simulated), simulated, x)
    assert table.decisions == 4 * 8 * 8
    assert 0.98 <= table.same_decision <= 1
    assert f"same decision: {table.equal_decisions} of 256" in str(table)


@pytest.mark.parametrize(
    "wrap", [lambda y: {"logits": y, "twice": y}, lambda y: (y, y[:, :1]), lambda y: [[y]]]
)
def test_the_first_tensor_decides(wrap):
    simulated, x = made(lambda s, x: wrap(s.b(s.a(x))), (9, 6), a=linear(6, 6), b=linear(6, 3))
    table = agreement(to_integer(simulated), simulated, x)
    assert (table.decisions, table.equal_decisions) == (9, 9)


def test_an_output_without_classes_decides_nothing():
    simulated, x = made(lambda s, x: s.a(x).flatten(), (9, 6), a=linear(6, 1))
    table = agreement(to_integer(simulated), simulated, x)
    assert table.decisions == 0
    assert math.isnan(table.same_decision)
    assert "0 of 0" in str(table)


def test_outputs_that_are_no_batch_are_refused_by_shape():
    def f(s, x):
        return s.b(F.relu(s.a(x))).transpose(0, 1)

    simulated, x = made(f, (65, 6), a=linear(6, 6), b=linear(6, 3))
    with pytest.raises(QuantizationError, match=r"\(3, 64\) for 64 inputs.*batch_size"):
        to_integer(simulated)(x)
    torch.testing.assert_close(to_integer(simulated, 65)(x), simulated(x), atol=1e-4, rtol=1e-3)


def test_inputs_of_different_lengths():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 2)

        def forward(self, x, y):
            return self.c(self.a(x) + self.b(y))

    x = torch.randn(5, 6)
    simulated = (
        PTQQuantizer(Two().eval()).calibrate([(x, x)], progress=False, ranges="minmax").convert()
    )
    with pytest.raises(QuantizationError, match="5, 1 rows"):
        to_integer(simulated)(x, x[:1])


def test_an_output_that_is_no_tensor():
    simulated, _ = made(lambda s, x: (s.a(x), None), (9, 6), a=linear(6, 3))
    with pytest.raises(UnsupportedError, match="returns None beside its tensors"):
        to_integer(simulated)


# --- whose network, whose scales ------------------------------------------------------------------


@pytest.mark.parametrize("change", ["weights", "scales", "calibration"])
def test_another_network_of_the_same_architecture_is_noticed(change):
    def f(s, x):
        return s.c(F.relu(s.a(x)))

    simulated, x = made(f, a=conv(), c=conv(4, 2))
    if change == "weights":
        other, _ = made(f, a=conv(), c=conv(4, 2))
        codes = other.quantized_layers()["c"].weight_codes
        codes[0, 0, 0, 0] = 5 if codes[0, 0, 0, 0] == 4 else 4
    elif change == "scales":
        other, _ = made(f, seed=1, a=conv(), c=conv(4, 2))
    else:
        model = Net(f, a=conv()(), c=conv(4, 2)())
        quantizers = [
            PTQQuantizer(model).calibrate([d], progress=False, ranges="minmax") for d in (x, 2 * x)
        ]
        simulated, other = (quantizer.convert() for quantizer in quantizers)
    integer = to_integer(simulated)
    assert agreement(integer, simulated, x).decisions
    with pytest.raises(QuantizationError, match="another model"):
        agreement(integer, other, x)


def test_a_multiplier_out_of_range_names_its_layer():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    with torch.no_grad():
        model[0].bias.fill_(-100)
        model[0].weight.mul_(1e3)
        model[0].bias[0] = 0
        model[0].weight[0] *= 1e-18
    x = torch.randn(64, 4) * 0.01
    simulated = PTQQuantizer(model).calibrate([x], progress=False, ranges="minmax").convert()
    with pytest.raises(QuantizationError, match="to_integer: 0: to_multiplier: every ratio"):
        to_integer(simulated)


# --- empty and not yet seen -----------------------------------------------------------------------


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_no_picture_at_all(groups):
    codes = torch.zeros(0, 4, 6, 6, dtype=torch.uint8)
    weight = torch.ones(4, 4 // groups, 3, 3, dtype=torch.int8)
    assert int_conv2d(codes, weight, 3, groups=groups).shape == (0, 4, 4, 4)


def test_agreement_on_no_picture():
    simulated, x = made(lambda s, x: s.c(F.relu(s.a(x))), a=conv(), c=conv(4, 5))
    integer = to_integer(simulated)
    assert integer(x[:0]).shape == (0, 5, 8, 8)
    table = agreement(integer, simulated, x[:0])
    assert all(d.codes == 0 for d in table.isolated.values())
    assert "-" in str(table)


def test_a_fixed_window_is_known_before_the_first_picture():
    def f(s, x):
        return s.c(F.avg_pool2d(s.a(x), (2, 4)))

    simulated, _ = made(f, a=conv(), c=conv(4, 2))
    rows = {row.name: row for row in to_integer(simulated).accumulators().rows}
    assert rows["avg_pool2d"].terms == 8
    assert rows["avg_pool2d"].high > 0
