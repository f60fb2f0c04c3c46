"""What each target refuses, by name and with the preset to use; INT4; files the target can hold."""

from __future__ import annotations

from dataclasses import replace

import onnx
import pytest
import torch
from onnx import TensorProto
from torch import nn

from ptq_course import PTQQuantizer, QConfig
from ptq_course.deploy import onnx as deploy
from ptq_course.errors import QuantizationError, UnsupportedError
from tests.networks import Residual, batches, randomize_batch_norms


def linear(config):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 8))
    data = [torch.randn(8, 64) for _ in range(2)]
    quantizer = PTQQuantizer(model, config=config)
    if config.activation_bits is not None:
        quantizer.calibrate(data, progress=False, ranges="minmax")
    return quantizer.convert(), data[1]


def types(path):
    return {TensorProto.DataType.Name(t.data_type) for t in onnx.load(path).graph.initializer}


@pytest.mark.parametrize(
    ("preset", "target", "reason"),
    [
        ("onnxruntime", "tensorrt", r"unsigned.*QConfig\.tensorrt\(\)"),
        ("arm", "tensorrt", r"zero point -?\d+.*QConfig\.tensorrt\(\)"),
        ("onnxruntime", "arm", r"unsigned.*QConfig\.arm\(\)"),
    ],
)
def test_another_presets_grid_is_refused(tmp_path, preset, target, reason):
    module, x = linear(getattr(QConfig, preset)())
    with pytest.raises(UnsupportedError, match=reason):
        deploy.export(module, x, tmp_path / "a.onnx", target=target)
    assert list(tmp_path.iterdir()) == []


BASE = QConfig.onnxruntime()


@pytest.mark.parametrize(
    ("config", "target", "reason"),
    [
        (replace(QConfig.tensorrt(), activation_bits=None), "tensorrt", "only the weights"),
        (replace(QConfig.arm(), quantize_bias=False), "arm", "quantize_bias=True"),
        (replace(BASE, activation_bits=12), "onnxruntime", "12 bits"),
        (replace(BASE, weight_bits=12), "onnxruntime", "12-bit weights"),
        (replace(BASE, weight_granularity=16), "onnxruntime", "per_channel"),
        (replace(BASE, weight_symmetric=False, weight_narrow=False), "onnxruntime", "zero points"),
        (replace(QConfig.arm(), weight_bits=4, weight_granularity=16), "arm", "onnxruntime"),
    ],
)
def test_what_no_kernel_serves_is_refused_with_a_remedy(tmp_path, config, target, reason):
    module, x = linear(config)
    with pytest.raises(UnsupportedError, match=reason):
        deploy.export(module, x, tmp_path / "a.onnx", target=target)


def test_unknown_target():
    with pytest.raises(QuantizationError, match=r"'coreml'.*onnxruntime, tensorrt, arm"):
        deploy.export(nn.Linear(2, 2), torch.ones(2, 2), "a.onnx", target="coreml")


@pytest.mark.parametrize("activation_bits", [None, 8])
@pytest.mark.parametrize("bits", [3, 4])
def test_linear_layers_of_four_bits_per_group_are_int4(tmp_path, bits, activation_bits):
    config = replace(BASE, weight_bits=bits, weight_granularity=16, activation_bits=activation_bits)
    module, x = linear(config)
    path = deploy.export(module, x, tmp_path / "four.onnx")
    assert "INT4" in types(path)
    assert "INT8" not in types(path)
    codes = [t for t in onnx.load(path).graph.initializer if t.data_type == TensorProto.INT4]
    assert sum(len(t.raw_data) for t in codes) == (64 * 32 + 32 * 8) // 2
    run = deploy.session(path)
    torch.testing.assert_close(run(x), module(x).detach(), atol=1e-5, rtol=1e-5)
    if activation_bits is None:
        assert run.operators["MatMulNBits"] == 2


def test_int4_on_sequences(tmp_path):
    module, _ = linear(replace(BASE, weight_bits=4, weight_granularity=32, activation_bits=None))
    x = torch.randn(3, 5, 64)
    run = deploy.session(deploy.export(module, x, tmp_path / "four.onnx"))
    torch.testing.assert_close(run(x), module(x).detach(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("target", "integer_bias"), [("tensorrt", False), ("arm", True)])
def test_the_bias_is_as_the_target_wants_it(tmp_path, target, integer_bias):
    module, x = linear(getattr(QConfig, target)())
    path = deploy.export(module, x, tmp_path / "a.onnx", target=target)
    assert ("INT32" in types(path)) == integer_bias
    assert "UINT8" not in types(path)
    torch.testing.assert_close(deploy.session(path)(x), module(x).detach(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("left_out", ["weight_bits", "activation_bits"])
def test_the_runtime_quantizes_nothing_unasked(tmp_path, left_out):
    """ONNX Runtime would otherwise quantize the float weights between quantized activations."""
    model = randomize_batch_norms(Residual())
    quantizer = PTQQuantizer(model, config=replace(BASE, **{left_out: None}))
    if left_out == "weight_bits":
        quantizer.calibrate(batches(), progress=False, ranges="minmax")
    module, x = quantizer.convert(), batches()[0][0]
    run = deploy.session(deploy.export(module, x, tmp_path / "half.onnx"))
    expected = module(x).detach()
    step = (expected.max() - expected.min()) / 255
    assert ((run(x) - expected).abs().max() / step) < 1
    assert not {"QLinearConv", "QGemm"} & set(run.operators)
