"""A module keeps its QParams and its decoded weight, and never those of other tensors."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ptq_course.errors import QuantizationError
from ptq_course.grids.affine import (
    IntGrid,
    QParams,
    QTensor,
    choose_qparams,
    dequantize,
    fake_quantize,
    quantize,
)
from ptq_course.simulation.dynamic import quantize_dynamic
from ptq_course.simulation.layers import ActivationQuantizer, QuantizedLayer, weight_qparams
from ptq_course.simulation.quantizer import PTQQuantizer

INPUT = choose_qparams(-1.0, 2.0, IntGrid(8, signed=False))


def layer() -> QuantizedLayer:
    torch.manual_seed(0)
    linear = nn.Linear(6, 4)
    made = QuantizedLayer.from_float(
        linear, weight_qparams(linear, IntGrid(8), "per_channel"), INPUT
    )
    made(torch.randn(2, 6))  # now it keeps what it decoded
    return made


def clustered() -> QuantizedLayer:
    codes = torch.arange(24, dtype=torch.uint8).reshape(4, 6) % 3
    made = QuantizedLayer(nn.Linear(6, 4), QTensor(codes, None, torch.tensor([-1.0, 0.0, 2.0])))
    made(torch.randn(2, 6))
    return made


def decoded(module: QuantizedLayer) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight and bias from the buffers as they are now, by the formulas."""
    dtype = module.float_layer.weight.dtype
    if module.codebook is not None:
        return module.codebook[module.weight_codes.long()].to(dtype), module.float_layer.bias
    codes = module.weight_codes.int() - module.weight_zero_point
    bias = module.bias_codes.double() * module.bias_scale.double()
    return codes.to(dtype) * module.weight_scale.to(dtype), bias.to(dtype)


def loaded(module: nn.Module, assign: bool) -> None:
    state = {n: t + 1 if n.endswith("codes") else t for n, t in module.state_dict().items()}
    module.load_state_dict(state, assign=assign)


CHANGES = {
    "in place": lambda m: m.weight_codes.add_(1),
    "one element": lambda m: m.weight_codes.__setitem__((1, 2), 5),
    "assignment": lambda m: setattr(m, "weight_codes", m.weight_codes.neg()),
    "load_state_dict": lambda m: loaded(m, False),
    "load_state_dict, assign": lambda m: loaded(m, True),
    "another device or format": lambda m: m._apply(lambda t: t.flip(0) if t.dim() else t),
    "scale in place": lambda m: m.weight_scale.mul_(2),
    "zero point": lambda m: m.weight_zero_point.add_(3),
    "bias codes": lambda m: m.bias_codes.add_(7),
    "bias scale": lambda m: setattr(m, "bias_scale", m.bias_scale * 3),
    "dtype of the layer": lambda m: m.float_layer.double(),
    "the kept weight itself": lambda m: m.weight.zero_(),
    "the kept bias itself": lambda m: m.bias.zero_(),
}


def check(module: QuantizedLayer) -> None:
    weight, bias = decoded(module)
    assert torch.equal(module.weight, weight)
    assert module.weight.dtype == weight.dtype
    assert torch.equal(module.bias, bias)
    assert torch.equal(module.weight_qtensor.codes, module.weight_codes)
    x = torch.randn(3, 6, dtype=weight.dtype)
    expected = nn.functional.linear(x, module.weight, module.bias)
    assert torch.equal(module(x), expected)


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_change_is_seen(change):
    module = layer()
    change(module)
    check(module)


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("again", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_keeps_nothing_of_the_original(again, change):
    module = layer()
    change(module)  # before it could be noticed
    check(again(module))
    module = layer()
    twin = again(module)
    change(twin)
    check(twin)
    check(module)


def test_torch_save_and_load():
    module, file = layer(), io.BytesIO()
    module.weight_codes.add_(1)
    torch.save(module, file)
    file.seek(0)
    check(torch.load(file, weights_only=False))


@pytest.mark.parametrize("change", ["weight_codes", "codebook"])
def test_a_codebook(change):
    module = clustered()
    getattr(module, change).copy_(getattr(module, change).flip(0))
    check(module)


def test_unchanged_tensors_are_decoded_once(monkeypatch):
    module, quantizer = layer(), ActivationQuantizer(INPUT)
    assert module.weight is module.weight
    assert quantizer.qparams is quantizer.qparams
    made = []
    monkeypatch.setattr(QParams, "__post_init__", lambda self: made.append(self))
    for _ in range(3):
        module(quantizer(torch.randn(2, 6)))
    assert made == []


def test_scales_are_validated_again_when_they_change():
    quantizer = ActivationQuantizer(choose_qparams(0.0, 1.0, IntGrid(8, signed=False)))
    quantizer(torch.ones(3))
    quantizer.scale.fill_(float("nan"))
    with pytest.raises(QuantizationError, match="scale"):
        quantizer(torch.ones(3))
    quantizer.scale = torch.tensor(0.5)
    assert quantizer(torch.tensor([0.6])) == 0.5
    with pytest.raises(QuantizationError, match="float32"):
        quantizer.double()(torch.ones(3))


def test_inference_mode():
    with torch.inference_mode():
        module = layer()
        module.weight_codes.add_(1)  # PyTorch counts no writes to tensors of inference mode
        check(module)
    normal = layer()
    with torch.inference_mode():
        normal.weight_codes.add_(1)  # but those to others, also from within
        check(normal)
        normal.weight_codes = normal.weight_codes.clone()
        normal.weight_codes.add_(1)
        check(normal)
    normal = layer()
    normal.weight_scale = normal.weight_scale.clone()
    with torch.inference_mode():
        normal(torch.ones(1, 6))
    x = torch.ones(1, 6, requires_grad=True)
    normal(x).sum().backward()  # what inference mode makes cannot be saved for backward
    assert torch.equal(x.grad[0], normal.weight.sum(0))


def test_scales_that_are_learned_get_their_gradient_in_every_step():
    module = clustered()
    module.codebook.requires_grad_()
    for _ in range(2):
        module.codebook.grad = None
        module(torch.ones(1, 6)).sum().backward()
        assert module.codebook.grad.tolist() == [8.0, 8.0, 8.0]


def test_dynamic_layers_see_changed_codes():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 4)), torch.randn(3, 6)
    dynamic = quantize_dynamic(model)
    before = dynamic(x)
    (inner,) = dynamic.dynamic_layers().values()
    inner.quantized.weight_codes.neg_()
    assert not torch.equal(dynamic(x), before)
    torch.testing.assert_close(dynamic(x), inner.simulate(x))
    assert torch.equal(copy.deepcopy(dynamic)(x), dynamic(x))


def test_a_whole_network_after_load_state_dict():
    torch.manual_seed(0)
    x = torch.randn(8, 6)

    def quantized(seed):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4))
        return PTQQuantizer(model).calibrate([x], progress=False, ranges="minmax").convert()

    one, other = quantized(1), quantized(2)
    assert not torch.equal(one(x), other(x))
    one.load_state_dict(other.state_dict())
    assert torch.equal(one(x), other(x))


floats = st.floats(width=32, allow_nan=False)


@given(
    st.lists(floats, min_size=1, max_size=40),
    st.floats(-1e3, 0),
    st.floats(0, 1e3),
    st.sampled_from([IntGrid(8, signed=False), IntGrid(8, narrow=True), IntGrid(16), IntGrid(2)]),
    st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16]),
)
def test_one_scale_or_one_for_each_row_gives_the_same_bits(values, low, high, grid, dtype):
    """The quick path of one scale against the general one, signs of zero included."""
    x = torch.tensor([[*values, 0.0, -0.0, -1e-9, float("inf"), -float("inf")]]).to(dtype)
    one = choose_qparams(low, high, grid)
    rows = QParams(one.scale.reshape(1, 1), one.zero_point.reshape(1, 1), grid, (1, -1))
    for expected in (fake_quantize(x, rows), dequantize(quantize(x, one), one, dtype)):
        got = fake_quantize(x, one)
        assert torch.equal(got, expected)
        assert torch.equal(got.signbit(), expected.signbit())
