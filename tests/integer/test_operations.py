"""Operations on codes: against float64, against PyTorch's integers, against ONNX Runtime."""

import numpy as np
import onnxruntime as ort
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch import fx, nn
from torch.nn import functional as F

from ptq_course.errors import QuantizationError
from ptq_course.grids.affine import IntGrid, choose_qparams, dequantize
from ptq_course.integer.elementwise import IntegerMaxPool
from ptq_course.integer.fixed_point import requantize, to_multiplier
from ptq_course.integer.operations import add_int, im2col, int_conv2d, int_linear, sum_pool
from ptq_course.integer.rules import max_pooling


def integers(shape, low, high, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(low, high + 1, shape, generator=generator).to(dtype)


def activation(shape, signed, seed):
    if signed:
        return integers(shape, -128, 127, torch.int8, seed)
    return integers(shape, 0, 255, torch.uint8, seed)


@st.composite
def convolutions(draw):
    """Codes and settings of a convolution: strides, padding, dilation, groups, zero points."""
    pick = lambda low, high: draw(st.integers(low, high))  # noqa: E731
    groups, depthwise, signed = pick(1, 3), draw(st.booleans()), draw(st.booleans())
    inputs, outputs = (1 if depthwise else pick(1, 4)), pick(1, 3)
    kernel, dilation = (pick(1, 3), pick(1, 3)), (pick(1, 2), pick(1, 2))
    size = [pick(d * (k - 1) + 1, 8) for k, d in zip(kernel, dilation, strict=True)]
    seed = pick(0, 999)
    x = activation((pick(1, 2), inputs * groups, *size), signed, seed)
    w = integers((outputs * groups, inputs, *kernel), -127, 127, torch.int8, seed + 1)
    zx = pick(-128, 127) if signed else pick(0, 255)
    bias = integers((len(w),), -(2**20), 2**20, torch.int32, seed + 2)
    zw = integers((len(w),), -30, 30, torch.int32, seed + 3)
    return {
        "xq": x, "wq": w, "zx": zx, "bias": draw(st.sampled_from([None, bias])),
        "zw": draw(st.sampled_from([None, zw])), "stride": (pick(1, 3), pick(1, 3)),
        "padding": (pick(0, 2), pick(0, 2)), "dilation": dilation, "groups": groups,
    }  # fmt: skip


def float64_convolution(xq, wq, zx, bias, zw, **settings):
    zw = 0 if zw is None else zw.double().reshape(-1, 1, 1, 1)
    bias = None if bias is None else bias.double()
    return F.conv2d(xq.double() - zx, wq.double() - zw, bias, **settings)


@given(convolutions())
def test_convolution_equals_float64(case):
    acc = int_conv2d(**case)
    assert acc.dtype == torch.int32
    assert torch.equal(acc.double(), float64_convolution(**case))


@given(convolutions(), st.floats(1e-6, 1e-2), st.integers(2, 8), st.booleans(), st.integers(0, 99))
def test_requantized_convolution_is_one_step_from_float64_at_most(case, ratio, bits, signed, seed):
    """The whole layer: products, bias, a multiplier a channel, zero point, saturation."""
    generator = torch.Generator().manual_seed(seed)
    ratio = ratio * (0.5 + torch.rand(len(case["wq"]), generator=generator, dtype=torch.float64))
    ratio = ratio.reshape(-1, 1, 1)
    grid = IntGrid(bits, signed=signed)
    zero_point = grid.qmin + seed % grid.levels
    got = requantize(int_conv2d(**case), *to_multiplier(ratio), zero_point, grid)
    real = torch.round(float64_convolution(**case) * ratio) + zero_point
    assert got.dtype == grid.dtype
    assert (got.double() - real.clamp(grid.qmin, grid.qmax)).abs().max() <= 1


@given(st.booleans(), st.integers(-128, 127), st.integers(1, 3), st.integers(0, 99))
def test_linear_equals_float64(signed, zx, dimensions, seed):
    zx = zx if signed else zx + 128
    xq = activation((2, 3, 4, 17)[4 - dimensions - 1 :], signed, seed)
    wq = integers((5, 17), -127, 127, torch.int8, seed + 1)
    zw = integers((5,), -9, 9, torch.int32, seed)
    bias = integers((5,), -(2**25), 2**25, torch.int32, seed + 2)
    got = int_linear(xq, wq, zx, bias, zw)
    expected = F.linear(xq.double() - zx, wq.double() - zw.double()[:, None], bias.double())
    assert torch.equal(got.double(), expected)


def test_linear_equals_pytorchs_integer_product():
    xq, wq = activation((4, 300), False, 0), integers((7, 300), -127, 127, torch.int8, 1)
    assert torch.equal(int_linear(xq, wq, 200), (xq.int() - 200) @ wq.int().t())


def test_patches_are_those_of_unfold():
    x = torch.randn(2, 3, 7, 9)
    rows = im2col(x.permute(0, 2, 3, 1), (3, 2), (2, 1), (1, 2))
    expected = F.unfold(x, (3, 2), stride=(2, 1), dilation=(1, 2))  # [N, C * kH * kW, L]
    expected = expected.reshape(2, 3, 6, *rows.shape[1:3]).permute(0, 3, 4, 2, 1)
    assert torch.equal(rows, expected.reshape(rows.shape))


def test_convolution_errors_name_the_shapes():
    x, w = activation((1, 3, 4, 4), False, 0), integers((2, 4, 1, 1), -9, 9, torch.int8, 0)
    with pytest.raises(QuantizationError, match="3 channels"):
        int_conv2d(x, w, 0)
    wide = integers((2, 3, 5, 5), -9, 9, torch.int8, 0)
    with pytest.raises(QuantizationError, match="larger"):
        int_conv2d(x, wide, 0)


# --- ONNX Runtime ---------------------------------------------------------------------------------


def run_onnx(node, inputs, output_type):
    types = {np.uint8: TensorProto.UINT8, np.int8: TensorProto.INT8}
    graph = helper.make_graph(
        [node], "peer",
        [helper.make_tensor_value_info("x", types[inputs["x"].dtype.type], inputs["x"].shape)],
        [helper.make_tensor_value_info("y", output_type, None)],
        [numpy_helper.from_array(v, k) for k, v in inputs.items() if k != "x"],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"x": inputs["x"]})[0])


# Weights of 7 bits: ONNX Runtime's kernels saturate beyond on processors without VNNI.
X = activation((2, 6, 9, 9), False, 5)
W = integers((8, 6, 3, 3), -63, 63, torch.int8, 6)


@pytest.mark.parametrize(("stride", "padding", "dilation"), [(1, 0, 1), (2, 1, 1), (1, 2, 2)])
def test_onnx_runtime_conv_integer_gives_the_same_accumulators(stride, padding, dilation):
    node = helper.make_node(
        "ConvInteger", ["x", "w", "zx"], ["y"], strides=[stride] * 2, pads=[padding] * 4,
        dilations=[dilation] * 2,
    )  # fmt: skip
    inputs = {"x": X.numpy(), "w": W.numpy(), "zx": np.array(131, np.uint8)}
    expected = run_onnx(node, inputs, TensorProto.INT32)
    pairs = ((stride,) * 2, (padding,) * 2, (dilation,) * 2)
    got = int_conv2d(X, W, 131, stride=pairs[0], padding=pairs[1], dilation=pairs[2])
    assert torch.equal(got, expected)


def test_onnx_runtime_qlinear_conv_gives_the_same_codes():
    """ONNX Runtime multiplies by a float32 ratio, so one step is allowed, and hardly ever used."""
    sx, sy, zx, zy = 0.031, 0.09, 131, 120
    sw = (0.002 + 0.003 * torch.rand(8, generator=torch.Generator().manual_seed(0))).float()
    bias = integers((8,), -(2**14), 2**14, torch.int32, 7)
    node = helper.make_node(
        "QLinearConv", ["x", "sx", "zx", "w", "sw", "zw", "sy", "zy", "b"], ["y"], pads=[1] * 4
    )
    inputs = {
        "x": X.numpy(), "sx": np.float32(sx), "zx": np.uint8(zx), "w": W.numpy(),
        "sw": sw.numpy(), "zw": np.zeros(8, np.int8), "sy": np.float32(sy), "zy": np.uint8(zy),
        "b": bias.numpy(),
    }  # fmt: skip
    expected = run_onnx(node, {k: np.asarray(v) for k, v in inputs.items()}, TensorProto.UINT8)
    acc = int_conv2d(X, W, zx, bias, padding=(1, 1))
    ratio = (torch.tensor(sx).double() * sw.double() / torch.tensor(sy).double()).reshape(-1, 1, 1)
    got = requantize(acc, *to_multiplier(ratio), zy, IntGrid(8, signed=False))
    distance = (got.int() - expected.int()).abs()
    assert len(expected.unique()) > 50
    assert distance.max() <= 1
    assert (distance == 0).double().mean() > 0.999


# --- without weights ------------------------------------------------------------------------------


@given(
    st.floats(0.01, 10), st.floats(0.01, 10), st.floats(0.01, 10), st.booleans(),
    st.integers(2, 8), st.integers(0, 99),
)  # fmt: skip
def test_addition_is_one_step_from_float64_at_most(high_a, high_b, high_y, signed, bits, seed):
    grid = IntGrid(bits, signed=signed)
    qa = choose_qparams(-high_a / 3, high_a, grid)
    qb = choose_qparams(-high_b, high_b / 2, grid)
    qy = choose_qparams(-high_y / 2, high_y, grid)
    a, b = (integers((400,), grid.qmin, grid.qmax, grid.dtype, seed + i) for i in range(2))
    got = add_int(a, b, qa, qb, qy)
    real = dequantize(a, qa, torch.float64) + dequantize(b, qb, torch.float64)
    expected = torch.round(real / qy.scale.double()) + qy.zero_point
    distance = (got - expected.clamp(grid.qmin, grid.qmax)).abs()
    assert got.dtype == grid.dtype
    assert distance.max() <= 1


def test_without_the_left_shift_addition_loses_codes():
    grid = IntGrid(8, signed=False)
    qa, qb, qy = (choose_qparams(0.0, h, grid) for h in (1.0, 1.7, 2.5))
    a, b = (integers((5000,), 0, 255, torch.uint8, i) for i in range(2))
    real = dequantize(a, qa, torch.float64) + dequantize(b, qb, torch.float64)
    expected = (torch.round(real / qy.scale.double()) + qy.zero_point).clamp(0, 255)
    wrong = {n: (add_int(a, b, qa, qb, qy, n) != expected).double().mean() for n in (0, 20)}
    assert wrong[0] > 0.05
    assert wrong[20] < 0.001


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(2, 2, 0), (3, 2, 1), (3, 1, 0)])
def test_sums_over_windows(kernel, stride, padding):
    x = activation((2, 3, 9, 9), False, 3)
    got = sum_pool(x, 100, (kernel,) * 2, (stride,) * 2, (padding,) * 2)
    expected = nn.AvgPool2d(kernel, stride, padding, divisor_override=1)(x.double() - 100)
    assert torch.equal(got.double(), expected)


POOLS = [
    nn.MaxPool1d(2),
    nn.MaxPool1d(3, 2, 1, 2, ceil_mode=True),
    nn.MaxPool2d(2),
    nn.MaxPool2d((3, 2), (2, 3), (1, 0)),
    nn.MaxPool2d(3, 2, 1, dilation=(1, 2), ceil_mode=True),
    nn.MaxPool2d(2, 3, ceil_mode=True),
    nn.MaxPool3d(2, 1),
    nn.AdaptiveMaxPool1d(3),
    nn.AdaptiveMaxPool2d((5, None)),
    nn.AdaptiveMaxPool3d((2, 3, 1)),
]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8], ids=str)
@pytest.mark.parametrize("pool", POOLS, ids=str)
def test_max_pooling_of_codes_equals_that_of_their_reals(pool, dtype):
    dims = int(type(pool).__name__[-2])
    limits = torch.iinfo(dtype)
    for size in (5, 12, 13, 31) if dims < 3 else (5, 12):
        codes = torch.randint(limits.min, limits.max + 1, (2, 4, *(size,) * dims)).to(dtype)
        if dims == 2:
            codes = codes.contiguous(memory_format=torch.channels_last)
        node = fx.symbolic_trace(nn.Sequential(pool)).graph.find_nodes(op="call_module", target="0")
        settings = max_pooling(pool, node[0])
        assert torch.equal(IntegerMaxPool(**settings)(codes).double(), pool(codes.double()))
