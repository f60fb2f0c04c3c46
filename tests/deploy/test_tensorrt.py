"""check_tensorrt: a clean file has no breach; each rule is broken by a file of its own."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from ptq_classroom import load_model, load_split, loader
from ptq_course import PTQQuantizer, QConfig
from ptq_course.deploy import onnx as deploy
from ptq_course.deploy.tensorrt import RULES, check_tensorrt
from ptq_course.errors import QuantizationError

RNG = np.random.default_rng(0)


@dataclass
class File:
    """A graph under construction: input x [N, 4, 6, 6]."""

    nodes: list = field(default_factory=list)
    tensors: list = field(default_factory=list)

    def constant(self, array):
        name = f"c{len(self.tensors)}"
        self.tensors.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def add(self, op, *inputs, **attributes):
        name = f"{op.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], name, **attributes))
        return name

    def quantize(self, x, scale=0.1, zero=0, dtype=np.int8):
        scale = scale if isinstance(scale, str) else self.constant(np.float32(scale))
        return self.add("QuantizeLinear", x, scale, self.constant(dtype(zero)))

    def dequantize(self, x, scale=0.1, zero=0, dtype=np.int8):
        scale = scale if isinstance(scale, str) else self.constant(np.float32(scale))
        return self.add("DequantizeLinear", x, scale, self.constant(dtype(zero)))

    def pair(self, x, scale=0.1, **other):
        return self.dequantize(self.quantize(x, scale, **other), scale, **other)

    def weight(self, shape=(4, 4, 3, 3), axis=0, dtype=np.int8, zero=0, scale=0.01, **attributes):
        codes = RNG.integers(0 if dtype is np.uint8 else -127, 127, shape).astype(dtype)
        scales = np.full(shape[axis], scale, np.float32)
        zeros = np.full(shape[axis], zero, dtype)
        given = [self.constant(a) for a in (codes, scales, zeros)]
        return self.add("DequantizeLinear", *given, axis=axis, **attributes)

    def conv(self, x, weight=None, bias=None, op="Conv"):
        bias = bias or self.constant(np.zeros(4, np.float32))
        return self.add(op, x, weight or self.weight(), bias, pads=[1, 1, 1, 1])

    def save(self, folder, output, opset=20):
        graph = helper.make_graph(
            self.nodes, "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4, 6, 6])],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
            self.tensors,
        )  # fmt: skip
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
        path = folder / "file.onnx"
        onnx.save(proto, path)
        return path


def clean(f):
    """Convolution, ReLU, residual addition, transposed convolution, Gemm and MatMul, all right."""
    x = f.pair("x")
    a = f.pair(f.add("Relu", f.conv(x)))
    b = f.pair(f.conv(a))
    y = f.pair(f.add("Relu", f.add("Add", a, b)))
    y = f.pair(
        f.conv(f.add("MaxPool", y, kernel_shape=[1, 1]), f.weight(axis=1), None, "ConvTranspose")
    )
    flat = f.add("Flatten", y)
    bias = f.constant(np.zeros(5, np.float32))
    gemm = f.pair(f.add("Gemm", flat, f.weight((5, 144), 0), bias, transB=1))
    return f.add(
        "Add", f.add("MatMul", gemm, f.weight((5, 3), 1)), f.constant(np.zeros(3, np.float32))
    )


def one_convolution(f):
    """The smallest quantized network: one convolution."""
    return f.conv(f.pair("x"))


def moved_in_between(f):
    """Nearest neighbours only move codes, and a weight may pass Identity and Transpose."""
    sizes = f.constant(np.array([1, 1, 2, 2], np.float32))
    near = f.add("Resize", f.pair("x"), "", sizes, mode="nearest")
    return f.conv(near, f.add("Identity", f.weight()))


def two_quantized_activations(f):
    return f.add("MatMul", f.pair("x"), f.add("Transpose", f.pair("x"), perm=[0, 1, 3, 2]))


def weight_from_the_left(f):
    return f.add("MatMul", f.weight((6, 6), 0), f.pair("x"))


# Each of these breaks one rule. The name is the rule's; "_" and what follows tell cases apart.


def opset(f):
    return one_convolution(f)


def format_nothing_quantized(f):
    return f.add("Relu", "x")


def format_integer_operator(f):
    x = f.quantize("x")
    f.dequantize(x)
    product = f.add("ConvInteger", f.constant(np.zeros((1, 4, 6, 6), np.uint8)),
                    f.constant(np.zeros((4, 4, 3, 3), np.uint8)))  # fmt: skip
    return f.add("Cast", product, to=TensorProto.FLOAT)


def format_operator_of_one_runtime(f):
    x = f.add("Flatten", f.pair("x"))
    codes, scales = f.constant(np.zeros((3, 9, 8), np.uint8)), f.constant(np.ones(27, np.float32))
    return f.add("MatMulNBits", x, codes, scales, K=144, N=3, bits=4, block_size=16,
                 domain="com.microsoft")  # fmt: skip


def format_pair_of_one_runtime(f):
    scale, zero = f.constant(np.float32(0.1)), f.constant(np.uint8(0))
    q = f.add("QuantizeLinear", "x", scale, zero, domain="com.microsoft")
    return f.conv(f.add("DequantizeLinear", q, scale, zero, domain="com.microsoft"))


def type_in_a_branch(f):
    """A uint8 pair that only runs where a condition holds."""
    f.conv(f.pair("x"))
    given = [numpy_helper.from_array(np.float32(0.1), "scale")]
    inner = [
        helper.make_node("QuantizeLinear", ["x", "scale"], ["inner_q"]),
        helper.make_node("DequantizeLinear", ["inner_q", "scale"], ["inner_y"]),
    ]
    out = helper.make_tensor_value_info("inner_y", TensorProto.FLOAT, None)
    same = helper.make_tensor_value_info("same", TensorProto.FLOAT, None)
    branch = helper.make_graph(inner, "then", [], [out], given)
    other = helper.make_graph([helper.make_node("Identity", ["x"], ["same"])], "else", [], [same])
    return f.add("If", f.constant(np.array(True)), then_branch=branch, else_branch=other)


def type_unsigned_activation(f):
    return f.conv(f.pair("x", dtype=np.uint8))


def type_unsigned_weight(f):
    return f.conv(f.pair("x"), f.weight(dtype=np.uint8))


def type_by_default(f):
    scale = f.constant(np.float32(0.1))
    return f.conv(f.add("DequantizeLinear", f.add("QuantizeLinear", "x", scale), scale))


def zero_point_activation(f):
    return f.conv(f.pair("x", zero=3))


def zero_point_weight(f):
    return f.conv(f.pair("x"), f.weight(zero=1))


def scale_negative(f):
    return f.conv(f.pair("x"), f.weight(scale=-0.01))


def scale_nan(f):
    return f.conv(f.dequantize(f.quantize("x", np.nan), np.nan))


def scale_infinite(f):
    return f.conv(f.pair("x", scale=np.inf))


def scale_computed(f):
    scale = f.add("ReduceMax", "x", keepdims=0)
    return f.conv(f.pair("x", scale=scale))


def per_tensor(f):
    scale = f.constant(np.full(4, 0.1, np.float32))
    zero = f.constant(np.zeros(4, np.int8))
    q = f.add("QuantizeLinear", "x", scale, zero, axis=1)
    return f.conv(f.add("DequantizeLinear", q, scale, zero, axis=1))


def axis_conv(f):
    return f.conv(f.pair("x"), f.weight(axis=1))


def axis_transposed(f):
    return f.conv(f.pair("x"), f.weight(axis=0), op="ConvTranspose")


def axis_gemm(f):
    return f.add("Gemm", f.add("Flatten", f.pair("x")), f.weight((144, 144), 1), transB=1)


def axis_matmul(f):
    return f.add("MatMul", f.add("Flatten", f.pair("x")), f.weight((144, 3), 0))


def axis_matmul_from_the_left(f):
    return f.add("MatMul", f.weight((6, 6), 1), f.pair("x"))


def axis_scales_of_another_number(f):
    codes = f.constant(np.zeros((4, 4, 3, 3), np.int8))
    scales, zeros = f.constant(np.full(3, 0.1, np.float32)), f.constant(np.zeros(3, np.int8))
    return f.conv(f.pair("x"), f.add("DequantizeLinear", codes, scales, zeros, axis=0))


def axis_matmul_through_transpose(f):
    weight = f.add("Transpose", f.weight((3, 144), 1), perm=[1, 0])
    return f.add("MatMul", f.add("Flatten", f.pair("x")), weight)


def block(f):
    codes = f.constant(RNG.integers(-127, 127, (144, 3)).astype(np.int8))
    scale = f.constant(np.full((9, 3), 0.01, np.float32))
    weight = f.add("DequantizeLinear", codes, scale, axis=0, block_size=16)
    return f.add("MatMul", f.add("Flatten", f.pair("x")), weight)


def pair_scale(f):
    return f.conv(f.dequantize(f.quantize("x", 0.1), 0.2))


def pair_codes_used(f):
    q = f.quantize("x")
    moved = f.add("Reshape", q, f.constant(np.array([-1, 4, 6, 6])))
    return f.conv(f.dequantize(moved))


def weight_floating(f):
    return f.conv(f.pair("x"), f.constant(np.ones((4, 4, 3, 3), np.float32)))


def weight_shared(f):
    weight = f.weight()
    return f.conv(f.pair(f.conv(f.pair("x"), weight)), weight)


def weight_floating_from_the_left(f):
    return f.add("MatMul", f.constant(np.ones((6, 6), np.float32)), f.pair("x"))


def input(f):
    return f.conv("x", f.weight())


def input_right_of_the_weight(f):
    return f.add("MatMul", f.weight((6, 6), 0), "x")


def input_one_of_two_activations(f):
    return f.add("MatMul", f.pair("x"), f.add("Relu", "x"))


def bias_int32(f):
    codes = f.constant(np.zeros(4, np.int32))
    bias = f.dequantize(codes, 0.001, dtype=np.int32)
    return f.conv(f.pair("x"), bias=bias)


def bias_added(f):
    codes = f.constant(np.zeros(3, np.int32))
    product = f.add("MatMul", f.add("Flatten", f.pair("x")), f.weight((144, 3), 1))
    return f.add("Add", product, f.dequantize(codes, 0.001, dtype=np.int32))


def residual_one_side(f):
    x = f.pair("x")
    return f.pair(f.add("Add", x, f.conv(x)))


def residual_neither_side(f):
    x = f.pair("x")
    return f.conv(f.pair(f.add("Relu", f.add("Add", f.conv(x), f.conv(x)))))


def fusion_relu(f):
    return f.conv(f.pair(f.add("Relu", f.pair(f.conv(f.pair("x"))))))


def fusion_batch_norm(f):
    stats = [f.constant(np.ones(4, np.float32)) for _ in range(4)]
    return f.add("BatchNormalization", f.pair(f.conv(f.pair("x"))), *stats)


BREAKING = [
    opset, format_nothing_quantized, format_integer_operator, format_operator_of_one_runtime,
    format_pair_of_one_runtime, type_in_a_branch, scale_nan, axis_matmul_from_the_left,
    axis_scales_of_another_number, weight_floating_from_the_left, input_right_of_the_weight,
    input_one_of_two_activations, type_unsigned_activation,
    type_unsigned_weight, type_by_default, zero_point_activation, zero_point_weight,
    scale_negative, scale_infinite, scale_computed, per_tensor, axis_conv, axis_transposed,
    axis_gemm, axis_matmul, axis_matmul_through_transpose, block, pair_scale, pair_codes_used,
    weight_floating, weight_shared, input, bias_int32, bias_added, residual_one_side,
    residual_neither_side, fusion_relu, fusion_batch_norm,
]  # fmt: skip
OPSETS = {"opset": 12, "block": 21}


def rule_of(build):
    return next(rule for rule in RULES if build.__name__.startswith(rule))


@pytest.mark.parametrize(
    "build",
    [clean, one_convolution, moved_in_between, two_quantized_activations, weight_from_the_left],
)
def test_a_right_file_breaks_nothing(tmp_path, build):
    f = File()
    found = check_tensorrt(f.save(tmp_path, build(f)))
    assert found == []
    assert "no breach" in str(found)


@pytest.mark.parametrize("build", BREAKING, ids=lambda build: build.__name__)
def test_each_breaking_file_breaks_exactly_its_rule(tmp_path, build):
    f = File()
    rule = rule_of(build)
    path = f.save(tmp_path, build(f), OPSETS.get(rule, 20))
    found = check_tensorrt(path, max_opset=21 if rule == "block" else 20)
    assert {breach.rule for breach in found} == {rule}
    for breach in found:
        assert breach.node
        assert breach.found
        assert breach.remedy.endswith(".")
    assert rule in str(found)


def test_averaging_neighbours_does_not_only_move(tmp_path):
    f = File()
    sizes = f.constant(np.array([1, 1, 2, 2], np.float32))
    path = f.save(tmp_path, f.conv(f.add("Resize", f.pair("x"), "", sizes, mode="linear")))
    assert {breach.rule for breach in check_tensorrt(path)} == {"input"}


def test_a_node_without_a_name_is_told_by_its_layer(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).eval()
    x = torch.randn(4, 3, 8, 8)
    quantized = PTQQuantizer(model).calibrate([x], progress=False, ranges="minmax").convert()
    path = deploy.export(quantized, x, tmp_path / "ort.onnx")
    nodes = {breach.node for breach in check_tensorrt(path)}
    assert "Conv of '0'" in nodes, "its bias"
    assert "QuantizeLinear behind 'x'" in nodes or "QuantizeLinear behind 'input'" in nodes
    assert "QuantizeLinear behind '0'" in nodes, "its unsigned output"


def test_every_rule_is_broken_by_some_file():
    assert {rule_of(build) for build in BREAKING} == set(RULES)


def test_a_newer_opset_is_allowed_where_the_caller_says_so(tmp_path):
    f = File()
    path = f.save(tmp_path, one_convolution(f), 21)
    assert [breach.rule for breach in check_tensorrt(path)] == ["opset"]
    assert check_tensorrt(path, max_opset=21) == []


def test_what_is_no_onnx_file_is_refused(tmp_path):
    with pytest.raises(QuantizationError, match="no file"):
        check_tensorrt(tmp_path / "missing.onnx")
    (tmp_path / "text.onnx").write_text("hello, this is not a model")
    with pytest.raises(QuantizationError, match="ONNX"):
        check_tensorrt(tmp_path / "text.onnx")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet", "mobilenet"])
def test_the_shipped_networks_export_without_breach(tmp_path, name):
    batches = loader(load_split("calibration"))[:1]
    quantizer = PTQQuantizer(load_model(name), config=QConfig.tensorrt())
    quantized = quantizer.calibrate(batches, progress=False, ranges="minmax").convert()
    example = batches[0][0][:2].clone()
    path = deploy.export(quantized, example, tmp_path / "trt.onnx", target="tensorrt")
    assert check_tensorrt(path) == []
    wrong = (
        PTQQuantizer(load_model(name)).calibrate(batches, progress=False, ranges="minmax").convert()
    )
    path = deploy.export(wrong, example, tmp_path / "ort.onnx")
    assert {"type", "zero_point", "bias"} <= {breach.rule for breach in check_tensorrt(path)}
