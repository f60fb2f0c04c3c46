"""Weights on float grids: what is rounded, what is left, and the quantizer on top."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from ptq_course.errors import UnsupportedError
from ptq_course.grids.floats import (
    FP8_E4M3,
    choose_float_qparams,
    fake_quantize_float,
    mxfp4,
    nvfp4,
)
from ptq_course.improve.float_weights import float_weights
from ptq_course.improve.matrices import weight_of
from ptq_course.simulation.qconfig import QConfig
from ptq_course.simulation.quantizer import PTQQuantizer

FP8 = partial(choose_float_qparams, grid=FP8_E4M3, block_size=(1, -1))


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(4, 8, 4), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.ReLU(), nn.Flatten(),
        nn.Linear(8 * 9, 4),
    ).eval()  # fmt: skip


@pytest.mark.parametrize("choose", [mxfp4, nvfp4, FP8])
def test_each_row_is_rounded_and_activations_may_be_quantized(choose):
    model, x = network(), torch.randn(6, 4, 8, 8)
    found = float_weights(model, choose)
    weight = weight_of(model[0])
    rows = weight.flatten(1)
    expected = fake_quantize_float(rows, choose(rows)).reshape(weight.shape)
    assert torch.equal(weight_of(found.module.get_submodule("0")), expected)
    assert set(found.bits) | set(found.left_out) == {"0", "2", "5"}
    assert set(found.left_out) == (set() if choose is FP8 else {"2", "5"})
    quantizer = PTQQuantizer(found.module, config=QConfig(weight_bits=None))
    converted = quantizer.calibrate([x], ranges="minmax", progress=False).convert()
    with torch.no_grad():
        assert not torch.equal(converted(x), found.module(x)), "activations are rounded"
        assert (converted(x) - model(x)).norm() < 0.3 * model(x).norm()
    assert torch.equal(weight, weight_of(network()[0])), "the user's model stays"


def test_bits_count_the_scales():
    assert float_weights(network(), mxfp4).bits == {"0": 4.25}


def test_some_layers_stay():
    model = network()
    found = float_weights(model, FP8, keep=("5",))
    assert torch.equal(weight_of(found.module.get_submodule("5")), weight_of(model[5]))
    assert list(found.left_out) == ["5"]


def test_no_layer_is_an_error():
    with pytest.raises(UnsupportedError, match="no layer was rounded"):
        float_weights(nn.Sequential(nn.Conv2d(3, 4, 3)), mxfp4)
