"""Codebooks and FP8 in files: small, what the simulation computes, and refused where no form is."""

from __future__ import annotations

import math
import warnings
from typing import Any

import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto
from torch import nn

from ptq_course.deploy import onnx as deploy
from ptq_course.deploy.validate import validate
from ptq_course.errors import UnsupportedError
from ptq_course.improve.clustering import Cluster, cluster
from ptq_course.improve.walk import improved
from ptq_course.simulation.qconfig import QConfig
from ptq_course.simulation.quantizer import PTQQuantizer

X = torch.randn(8, 3, 10, 10, generator=torch.Generator().manual_seed(1))
WEIGHTS = QConfig(activation_bits=None)
LEVELS = (ort.GraphOptimizationLevel.ORT_DISABLE_ALL, ort.GraphOptimizationLevel.ORT_ENABLE_ALL)


def network() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 32, 3, groups=32),
        nn.SiLU(), nn.Conv2d(32, 64, 3), nn.ReLU6(), nn.ConvTranspose2d(64, 32, 3),
        nn.Hardswish(), nn.Flatten(), nn.Linear(32 * 36, 20), nn.ReLU(), nn.Linear(20, 5),
    ).eval()  # fmt: skip


def clustered(bits, config=WEIGHTS, model=None, x=X):
    quantizer = PTQQuantizer(model or network(), config=config)
    if config.activation_bits is not None:
        quantizer.calibrate([x], progress=False)
    return improved(quantizer, [x], [Cluster(bits)], progress=False)


def initializers(path):
    found = onnx.load(path).graph.initializer
    return {TensorProto.DataType.Name(t.data_type) for t in found}


def opened(path, level, x):
    options = ort.SessionOptions()
    options.graph_optimization_level = level
    run = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return torch.from_numpy(run.run(None, {run.get_inputs()[0].name: x.numpy()})[0])


@pytest.fixture(scope="module")
def fp32_size(tmp_path_factory):
    path = deploy.export(network(), X, tmp_path_factory.mktemp("fp32") / "a.onnx")
    return path.stat().st_size


@pytest.mark.parametrize("bits", [4, 5])
def test_a_file_of_codebooks_is_small_and_agrees(tmp_path, bits, fp32_size):
    model = clustered(bits)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # only the weights are quantized: nothing to warn of
        path = deploy.export(model, X, tmp_path / "book.onnx")
    stored = 4 if bits <= 4 else 8
    layers = model.quantized_layers().values()
    codes = sum(math.ceil(layer.weight_codes.numel() * stored / 8) for layer in layers)
    # some 1,000 bytes a layer: its codebook, its bias, its share of the graph
    assert codes < path.stat().st_size < codes + 7000, "codes, books, biases and the graph"
    assert path.stat().st_size < (0.17 if bits <= 4 else 0.29) * fp32_size
    assert ("UINT4" in initializers(path)) == (bits <= 4)
    assert "UINT8" not in initializers(path) or bits > 4
    expected = model(X).detach()
    for level in LEVELS:  # constants folded, and looked up at every call
        assert (opened(path, level, X) - expected).abs().max() < 1e-5 * expected.abs().max()
    torch.testing.assert_close(deploy.session(path)(X[:3]), expected[:3], rtol=1e-4, atol=1e-6)


def test_every_weight_of_the_file_is_an_entry_of_its_codebook(tmp_path):
    model = clustered(3)
    proto = onnx.load(deploy.export(model, X, tmp_path / "book.onnx"))
    tensors = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}
    for name, layer in model.quantized_layers().items():
        held = torch.from_numpy(tensors[f"{name}.weight"].astype("uint8"))
        assert torch.equal(layer.codebook[held.long()].reshape(layer.weight.shape), layer.weight)


def test_a_table_of_embeddings_looks_up_rows(tmp_path):
    model = nn.Sequential(nn.Embedding(50, 16), nn.Linear(16, 4))
    x = torch.randint(0, 50, (4, 7))
    for bits in (4, 6):
        made = clustered(bits, WEIGHTS, model, x)
        path = deploy.export(made, x, tmp_path / "e.onnx")
        torch.testing.assert_close(deploy.session(path)(x), made(x).detach())
    fp8 = PTQQuantizer(model, config=QConfig(weight_format="fp8_e4m3", activation_bits=None))
    made = fp8.quantize_weights()
    path = deploy.export(made, x, tmp_path / "e.onnx")
    torch.testing.assert_close(deploy.session(path)(x), made(x).detach())


def test_rounded_inputs_are_said_to_meet_floating_point(tmp_path):
    config = QConfig(quantize_bias=False, activation_range="minmax")
    model = clustered(4, config)
    with pytest.warns(UserWarning, match=r"0, 3, 5, 7, 10, 12: weights .* a codebook.*floating"):
        path = deploy.export(model, X, tmp_path / "a.onnx")
    expected = model(X).detach()
    step = (expected.max() - expected.min()) / 255
    run = deploy.session(path)
    assert (run(X) - expected).abs().max() < step
    assert not {"QLinearConv", "QGemm"} & set(run.operators)
    with pytest.warns(UserWarning, match="a codebook"):
        found = validate(model, network(), tmp_path / "b.onnx", X, rounds=1)
    assert found.kernels.floating["Conv"] >= 2
    assert found.agreement == 1


@pytest.mark.parametrize(
    ("name", "granularity"), [("fp8_e4m3", "per_channel"), ("fp8_e5m2", "per_tensor")]
)
def test_fp8_weights(tmp_path, name, granularity, fp32_size):
    config = QConfig(weight_format=name, activation_bits=None, weight_granularity=granularity)
    model = PTQQuantizer(network(), config=config).quantize_weights()
    path = deploy.export(model, X, tmp_path / "a.onnx")
    expected = model(X).detach()
    for level in LEVELS:
        assert (opened(path, level, X) - expected).abs().max() < 1e-5 * expected.abs().max()
    assert path.stat().st_size < 0.3 * fp32_size
    wide = "FLOAT8E5M2" if name == "fp8_e5m2" else "FLOAT8E4M3FN"
    assert wide in initializers(path)


@pytest.mark.parametrize("name", ["fp8_e4m3", "fp8_e5m2"])
def test_fp8_activations_behind_every_clamp(tmp_path, name):
    config = QConfig(weight_format=name, activation_format=name, activation_range="minmax")
    model = PTQQuantizer(network(), config=config).calibrate([X], progress=False).convert()
    with pytest.warns(UserWarning, match=name):
        path = deploy.export(model, X, tmp_path / "a.onnx")
    graph = onnx.load(path).graph
    assert sum(node.op_type == "QuantizeLinear" for node in graph.node) >= 7
    expected = model(X).detach()
    error = (deploy.session(path)(X) - expected).norm() / expected.norm()
    assert error < 1e-3, "sums in another order may move a value across a tie"
    assert error < 0.1 * ((expected - network()(X)).norm() / expected.norm()).item()


def test_integer_weights_behind_fp8_activations_meet_no_integer_kernel(tmp_path):
    config = QConfig(activation_format="fp8_e4m3", activation_range="minmax")
    model = PTQQuantizer(network(), config=config).calibrate([X], progress=False).convert()
    with pytest.warns(UserWarning, match=r"fp8_e4m3.* computes 0, .* in floating point"):
        path = deploy.export(model, X, tmp_path / "a.onnx")
    run, expected = deploy.session(path), model(X).detach()
    assert run.operators["Conv"] > 0
    assert not {"QLinearConv", "QGemm"} & set(run.operators)
    assert (run(X) - expected).norm() < 1e-3 * expected.norm()


@pytest.mark.parametrize(
    ("config", "target", "why"),
    [
        (QConfig(weight_format="mxfp4"), "onnxruntime", r"0 .*mxfp4.*fp8_e4m3"),
        (QConfig(weight_format="nvfp4"), "onnxruntime", r"0 .*nvfp4.*fp8_e4m3"),
        (QConfig(activation_format="fp4_e2m1"), "onnxruntime", r"'input_1'.*fp4_e2m1"),
        (QConfig(weight_format="fp8_e4m3"), "arm", r"fp8_e4m3|'input_1' is unsigned"),
        (QConfig.tensorrt(), "tensorrt", r"0 .*codebook.*onnxruntime"),
        (
            QConfig(weight_format="fp8_e4m3", weight_granularity=16, float_layers=("0", "3", "12")),
            "onnxruntime", "5 .*fp8_e4m3 per group.*per_channel",
        ),
    ],
)  # fmt: skip
def test_what_has_no_form_is_refused_by_name(tmp_path, config, target, why):
    quantizer = PTQQuantizer(network(), config=config).calibrate([X], progress=False)
    model: Any = quantizer.convert()
    if target == "tensorrt":
        for layer in model.quantized_layers().values():
            layer.bias_codes = layer.bias_scale = None
            layer.put_weight(cluster(layer.float_layer.weight, 4))
    with pytest.raises(UnsupportedError, match=why):
        deploy.export(model, X, tmp_path / "a.onnx", target=target)
    assert not list(tmp_path.iterdir())


def test_a_recurrent_layer_of_codebooks_is_refused(tmp_path):
    class Reader(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = nn.LSTM(8, 8, batch_first=True)

        def forward(self, x):
            return self.lstm(x)[0]

    config = QConfig(weight_format="fp8_e4m3", activation_bits=None)
    model = PTQQuantizer(Reader(), config=config).quantize_weights()
    with pytest.raises(UnsupportedError, match=r"lstm.*fp8_e4m3"):
        deploy.export(model, torch.randn(2, 5, 8), tmp_path / "a.onnx")
