"""Files without what they can do without: the same sums, readable weights, no zero points."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from ptq_course import PTQQuantizer
from ptq_course.deploy import onnx as deploy
from ptq_course.deploy.onnx import compact as onnx_compact
from ptq_course.deploy.onnx import file as onnx_file
from tests.networks import InvertedResidual, batches, randomize_batch_norms


def both_files(model, x, folder, monkeypatch):
    """The quantized model, its file, and its file without `compact`."""
    quantized = PTQQuantizer(model).calibrate([x], progress=False, ranges="minmax").convert()
    small = deploy.export(quantized, x, folder / "small.onnx")
    with monkeypatch.context() as patch:
        patch.setattr(onnx_compact, "compact", lambda model: None)
        full = deploy.export(quantized, x, folder / "full.onnx")
    return quantized, small, full


def sequence():
    return nn.Sequential(nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 4)).eval()


MODELS = {
    "convolutions": (lambda: randomize_batch_norms(InvertedResidual()), batches()[0][0]),
    "rows of a sequence": (sequence, torch.randn(8, 5, 12)),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_same_sums_from_fewer_bytes(tmp_path, monkeypatch, name):
    torch.manual_seed(0)
    make, x = MODELS[name]
    _, small, full = both_files(make(), x, tmp_path, monkeypatch)
    assert small.stat().st_size < 0.8 * full.stat().st_size
    onnx.checker.check_model(onnx.load(small), full_check=True)
    for exact in (True, False):
        ours, theirs = (deploy.session(path, 1, exact) for path in (small, full))
        assert torch.equal(ours(x), theirs(x))
        assert ours.operators == theirs.operators


@pytest.mark.parametrize("shape", [(8, 8), (8, 5, 8)])
def test_biases_of_zeros_in_several_layers(tmp_path, shape):
    """Their codes equal their zero points, which torch.onnx.export stores once for all."""
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)).eval()
    for layer in (model[0], model[2]):
        nn.init.zeros_(layer.bias)
    x = torch.randn(shape)
    quantized = PTQQuantizer(model).calibrate([x], progress=False, ranges="minmax").convert()
    got = deploy.session(deploy.export(quantized, x, tmp_path / "zero.onnx"), 1)(x)
    torch.testing.assert_close(got, quantized(x).detach(), atol=0.05, rtol=0.05)


def test_an_encoder_layer_as_pytorch_initializes_it(tmp_path):
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0).eval()
    x = torch.randn(4, 6, 16)
    quantized = PTQQuantizer(model).calibrate([x], progress=False, ranges="minmax").convert()
    got = deploy.session(deploy.export(quantized, x, tmp_path / "encoder.onnx"), 1)(x)
    step = (quantized(x).max() - quantized(x).min()) / 255
    assert (got - quantized(x)).abs().max() < 3 * step


def test_what_a_reader_of_the_graph_finds(tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).eval()
    x = torch.randn(4, 3, 8, 8)
    quantized = PTQQuantizer(model).calibrate([x], progress=False, ranges="minmax").convert()
    before = {name: layer.weight_codes for name, layer in quantized.quantized_layers().items()}
    graph = onnx.load(deploy.export(quantized, x, tmp_path / "read.onnx")).graph
    constants = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    for name in ("0", "3"):
        assert np.array_equal(constants[f"{name}.weight"], before[name].numpy())
    nodes = {node.op_type: node for node in graph.node}
    assert nodes["Conv"].input[1] in {n.output[0] for n in graph.node if n.input[0] == "0.weight"}
    assert not any(node.name or node.doc_string for node in graph.node)
    # The scale of a bias is the product of two scales of the file.
    bias = next(n for n in graph.node if n.output[0] == nodes["Conv"].input[2])
    product = next(n for n in graph.node if bias.input[1] in n.output)
    assert product.op_type == "Mul"
    s_x, s_w = (constants[name] for name in product.input)
    layer = quantized.quantized_layers()["0"]
    assert np.array_equal(s_x * s_w, layer.bias_scale.numpy())
    assert len(bias.input) == 2, "a bias has no zero point"


def tiny(*nodes, **constants):
    """A model around some nodes, from x to y."""
    graph = helper.make_graph(
        list(nodes), "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4, 6, 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4, 6, 6])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )  # fmt: skip
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return ir.from_proto(proto)


INTEGER = [
    helper.make_node("QuantizeLinear", ["x", "sx", "zx"], ["q"]),
    helper.make_node("DequantizeLinear", ["q", "sx", "zx"], ["dx"]),
    helper.make_node("DequantizeLinear", ["w", "s", "z"], ["dw"], axis=0),
    helper.make_node("Conv", ["dx", "dw"], ["c"]),
    helper.make_node("QuantizeLinear", ["c", "sx", "zx"], ["qc"]),
    helper.make_node("DequantizeLinear", ["qc", "sx", "zx"], ["y"]),
]
REAL_OUTPUT = [*INTEGER[:3], helper.make_node("Conv", ["dx", "dw"], ["y"])]
REAL_INPUT = [INTEGER[2], helper.make_node("Conv", ["x", "dw"], ["c"]), *INTEGER[4:]]
PRODUCT = [*INTEGER[:3], helper.make_node("MatMul", ["dx", "dw"], ["c"]), *INTEGER[4:]]


@pytest.mark.parametrize(
    ("nodes", "zero", "activations", "dropped"),
    [
        (INTEGER, 0, np.uint8, True),
        (INTEGER, 3, np.uint8, False),
        (INTEGER, 0, np.int8, False),
        (REAL_OUTPUT, 0, np.uint8, False),
        (REAL_INPUT, 0, np.uint8, False),
        (PRODUCT, 0, np.uint8, False),
    ],
    ids=["integer", "not zero", "signed", "real output", "real input", "matmul"],
)
def test_only_zero_points_that_nobody_needs_are_dropped(nodes, zero, activations, dropped):
    given = {"w": np.ones((4, 4, 1, 1), np.int8), "s": np.ones(4, np.float32)}
    given |= {"sx": np.float32(0.1), "zx": activations(0), "z": np.full(4, zero, np.int8)}
    model = tiny(*nodes, **given)
    onnx_compact.drop_zero_points(model)
    onnx_file.prune(model)
    proto = ir.to_proto(model)
    assert ("z" not in {t.name for t in proto.graph.initializer}) == dropped
    weight = next(node for node in proto.graph.node if node.input[0] == "w")
    assert list(weight.input) == (["w", "s"] if dropped else ["w", "s", "z"])


@pytest.mark.parametrize(("factor", "products"), [(1.0, 1), (1.5, 0)])
def test_a_bias_scale_that_is_no_product_stays(factor, products):
    s_x, s_w = np.float32(0.3), np.array([0.1, 0.7, 0.2, 0.5], np.float32)
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "sx"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "sx"], ["dx"]),
        helper.make_node("DequantizeLinear", ["w", "sw"], ["dw"], axis=0),
        helper.make_node("DequantizeLinear", ["b", "sb"], ["db"], axis=0),
        helper.make_node("Conv", ["dx", "dw", "db"], ["y"]),
    ]
    model = tiny(
        *nodes, sx=s_x, sw=s_w, sb=s_x * s_w * np.float32(factor),
        w=np.ones((4, 4, 1, 1), np.int8), b=np.ones(4, np.int32),
    )  # fmt: skip
    onnx_compact.multiply_bias_scales(model)
    proto = ir.to_proto(model)
    assert sum(node.op_type == "Mul" for node in proto.graph.node) == products
    onnx.checker.check_model(proto, full_check=True)


def test_defaults_are_dropped_and_choices_are_kept():
    conv = helper.make_node(
        "Conv", ["x", "w"], ["c"], group=1, strides=[2, 2], dilations=[1, 1], pads=[0, 0, 0, 0],
        kernel_shape=[1, 1], auto_pad="NOTSET",
    )  # fmt: skip
    gemm = helper.make_node("Gemm", ["f", "v"], ["y"], alpha=1.0, beta=0.5, transA=0, transB=1)
    flat = helper.make_node("Flatten", ["c"], ["f"], axis=1)
    model = tiny(conv, flat, gemm, w=np.ones((4, 4, 1, 1), np.float32),
                 v=np.ones((3, 36), np.float32))  # fmt: skip
    onnx_compact.drop_defaults(model)
    kept = {node.op_type: set(node.attributes) for node in model.graph}
    assert kept == {"Conv": {"strides", "kernel_shape"}, "Flatten": set(),
                    "Gemm": {"beta", "transB"}}  # fmt: skip


def branching(steps):
    """y = f(x) where a branch reads constants of the graph around it, and has its own."""
    codes = np.arange(16, dtype=np.int8).reshape(4, 4) - 8
    given = {"sizes": np.array([-1, 4]), "w": codes, "s": np.full(4, 0.25, np.float32)}
    given |= {"z": np.zeros(4, np.int8), "c": np.array(True), "a": np.float32(2)}
    out = [helper.make_tensor_value_info("u", TensorProto.FLOAT, None)]
    own = [numpy_helper.from_array(np.float32(3), "b")]
    then = [
        helper.make_node("Reshape", ["x", "sizes"], ["t"]),
        helper.make_node("MatMul", ["t", "d"], ["v"]),
        helper.make_node("Mul", ["v", "b"], ["u"]),
    ]
    other = [helper.make_node("MatMul", ["f", "d"], ["u"])]
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["d"], "unused name", axis=1),
        helper.make_node("Reshape", ["x", "sizes"], ["f"]),
        helper.make_node("MatMul", ["f", "d"], ["g"]),
        helper.make_node(
            "If", ["c"], ["h"], then_branch=helper.make_graph(then, "t", [], out, own),
            else_branch=helper.make_graph(other, "e", [], out),
        ),
        helper.make_node("Add", ["g", "h"], ["i"]),
        helper.make_node("Shape", ["x"], ["j"]),
        helper.make_node("Reshape", ["i", "j"], ["y"]),
    ]  # fmt: skip
    model = tiny(*nodes, **given)
    for step in steps:
        step(model)
    return ir.to_proto(model)


def test_branches_keep_what_they_read_and_get_what_is_theirs(tmp_path):
    steps = [onnx_file.strip, onnx_file.own_weights, onnx_compact.compact]
    x, found = np.random.default_rng(0).normal(size=(2, 4, 6, 6)).astype(np.float32), []
    for name, proto in (("before", branching([])), ("after", branching(steps))):
        onnx.checker.check_model(proto, full_check=True)
        onnx.save(proto, tmp_path / f"{name}.onnx")
        found.append(deploy.session(tmp_path / f"{name}.onnx", 1)(x))
    assert np.array_equal(*found)
    model = ir.from_proto(proto)
    weights = [node for node in onnx_file.all_nodes(model) if onnx_file.is_dequantize(node)]
    assert len(weights) == 3, "one for each product, those in the branches included"
    assert len({node.inputs[0] for node in weights}) == len({n.inputs[2] for n in weights}) == 3
    assert all(len(node.outputs[0].uses()) == 1 for node in weights)
    names = [v.name for node in onnx_file.all_nodes(model) for v in node.outputs]
    assert all(len(name) <= 2 for name in names)
    assert not any(node.name for node in onnx_file.all_nodes(model))


def test_constants_of_functions_and_branches_are_seen():
    """2.0 is read by nothing and goes; what only a branch reads stays."""
    proto = branching([onnx_file.prune])
    assert "a" not in {t.name for t in proto.graph.initializer}
    assert {"w", "s", "z", "c", "sizes"} == {t.name for t in proto.graph.initializer}


class Bag(nn.Module):
    """PyTorch writes it as a loop with branches inside."""

    def __init__(self):
        super().__init__()
        self.bag, self.fc = nn.EmbeddingBag(9, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.fc(self.bag(x))


@pytest.mark.parametrize("quantized", [False, True])
def test_a_network_with_a_loop(tmp_path, quantized):
    torch.manual_seed(0)
    model, x = Bag().eval(), torch.randint(0, 9, (6, 3))
    if quantized:
        model = PTQQuantizer(model).calibrate([x], progress=False, ranges="minmax").convert()
    run = deploy.session(deploy.export(model, x, tmp_path / "bag.onnx"), 1)
    assert "Loop" in run.operators
    assert ("QGemm" in run.operators) == quantized
    for given in (x, x[:2]):
        torch.testing.assert_close(run(given), model(given).detach(), atol=1e-5, rtol=1e-5)
