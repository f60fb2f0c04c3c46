"""Dynamically quantized models as files: integer kernels, the simulation's numbers, refusals."""

from __future__ import annotations

import warnings

import onnx
import pytest
import torch
from torch import nn

from ptq_course import PTQQuantizer, QConfig, UnsupportedError, quantize_dynamic, sqnr_db
from ptq_course.deploy import onnx as deploy
from ptq_course.deploy.validate import Kernels


def made(model, x, path, **how):
    torch.manual_seed(0)
    quantized = quantize_dynamic(model.eval(), **({"granularity": "per_tensor"} | how))
    return quantized, deploy.export(quantized, x, path)


def assert_agree(run, quantized, model, x):
    """The file lies much nearer to its simulation than the simulation lies to the float model."""
    with torch.no_grad():
        exact, simulated = model(x), quantized(x)
    assert sqnr_db(simulated, run(x)) > sqnr_db(exact, simulated) + 6


def dynamic(model, config):
    return quantize_dynamic(model, granularity="per_tensor", config=config)


def only_weights(model, config):
    return PTQQuantizer(model, config=config).quantize_weights()


def static(model, config):
    x = torch.randint(0, 50, (4, 6))
    return (
        PTQQuantizer(model, config=config).calibrate([x], progress=False, ranges="minmax").convert()
    )


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, activation="gelu")
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        return self.head(self.layer(x))


def test_an_encoder_runs_in_fused_integer_kernels(tmp_path):
    """Q, K and V share one rounded input; every other product is one kernel with its bias."""
    torch.manual_seed(0)
    model, x = Encoder().eval(), torch.randn(4, 6, 16)
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.bias)
    quantized, path = made(model, x, tmp_path / "encoder.onnx")
    for exact in (True, False):
        run = deploy.session(path, 1, exact)
        assert run.operators["DynamicQuantizeMatMul"] == 4
        assert run.operators["MatMulIntegerToFloat"] == 3
        assert run.operators["DynamicQuantizeLinear"] == 1
        assert run.operators.get("MatMul", 0) + run.operators.get("FusedMatMul", 0) == 2
    run = deploy.session(path, 1)
    assert_agree(run, quantized, model, x)
    assert run(x[:1]).shape == (1, 6, 5)
    weights = [t for t in onnx.load(path).graph.initializer if len(t.dims) == 2]
    assert [t.data_type for t in weights] == [onnx.TensorProto.INT8] * 7
    kernels = Kernels.of(run.operators)
    assert kernels.integer["DynamicQuantizeMatMul"] == 4
    assert "DynamicQuantizeLinear" in kernels.boundary


@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel"])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("shape", [(8, 12), (8, 3, 12)])
def test_linear_networks(tmp_path, granularity, symmetric, shape):
    torch.manual_seed(0)
    if not symmetric and granularity == "per_channel":
        pytest.skip("refused, like in static files: zero points per channel")
    model = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 4, bias=False))
    with torch.no_grad():
        model[0].weight += 0.3
    config = QConfig(weight_granularity=granularity, weight_symmetric=symmetric)
    x = torch.randn(shape)
    quantized, path = made(model, x, tmp_path / "linear.onnx", config=config)
    run = deploy.session(path, 1)
    assert_agree(run, quantized, model, x)
    assert run.operators["DynamicQuantizeMatMul"] == 2


CONVOLUTIONS = {
    "plain": (nn.Conv2d(3, 8, 3, padding=1), (4, 3, 7, 8)),
    "uneven": (nn.Conv2d(4, 8, (3, 2), stride=(2, 1), padding=(0, 2), dilation=2), (4, 4, 9, 7)),
    "depthwise": (nn.Conv2d(6, 6, 3, groups=6, padding=1, bias=False), (4, 6, 5, 5)),
    "same": (nn.Conv2d(3, 4, (4, 3), padding="same"), (4, 3, 6, 6)),
    "circular": (nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"), (4, 3, 6, 6)),
    "one": (nn.Conv1d(3, 4, 5, stride=2, padding=3), (4, 3, 11)),
    "three": (nn.Conv3d(2, 4, 3, padding=1), (4, 2, 4, 5, 6)),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_are_integer_too(tmp_path, name):
    """The padding is the input's zero point, and no channel mixes with another's scale."""
    torch.manual_seed(0)
    conv, shape = CONVOLUTIONS[name]
    model, x = nn.Sequential(conv, nn.ReLU()), torch.randn(shape) + 1
    quantized, path = made(model, x, tmp_path / "conv.onnx")
    run = deploy.session(path, 1)
    assert run.operators["ConvInteger"] == 1
    assert_agree(run, quantized, model, x)


def test_what_has_no_integer_form_keeps_integer_weights(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.ConvTranspose2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 3))
    x = torch.randn(4, 3, 4, 4)
    quantized, path = made(model, x, tmp_path / "transposed.onnx")
    with torch.no_grad():
        assert sqnr_db(quantized(x), deploy.session(path, 1)(x)) > 30
    types = {t.data_type for t in onnx.load(path).graph.initializer if len(t.dims) == 4}
    assert types == {onnx.TensorProto.INT8}


def test_the_file_says_that_it_has_one_scale_a_tensor(tmp_path):
    model, x = nn.Sequential(nn.Linear(8, 4)), torch.randn(4, 8)
    with pytest.warns(UserWarning, match=r"one scale .* made per_token.*per_tensor") as seen:
        made(model, x, tmp_path / "a.onnx", granularity="per_token")
    assert seen[0].filename == __file__
    with pytest.warns(UserWarning, match="symmetric"):
        made(model, x, tmp_path / "a.onnx", config=QConfig.tensorrt())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made(model, x, tmp_path / "a.onnx")


@pytest.mark.parametrize(
    ("how", "target", "words"),
    [
        ({"config": QConfig(weight_granularity=4)}, "onnxruntime", "0 .*weights per group"),
        ({"bits": 4}, "onnxruntime", "4 bits at run time"),
        ({"bits": 12}, "onnxruntime", "12 bits at run time"),
        ({}, "tensorrt", r"QConfig.tensorrt\(\)"),
        ({}, "arm", r"QConfig.arm\(\)"),
    ],
)
def test_what_a_file_cannot_hold(tmp_path, how, target, words):
    model = nn.Sequential(nn.Linear(8, 4))
    quantized = quantize_dynamic(model, granularity="per_tensor", **how)
    with pytest.raises(UnsupportedError, match=words):
        deploy.export(quantized, torch.randn(4, 8), tmp_path / "a.onnx", target=target)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel"])
@pytest.mark.parametrize("convert", [dynamic, only_weights, static])
def test_a_table_of_rows_decodes_the_rows_that_are_asked_for(tmp_path, granularity, convert):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Embedding(50, 16), nn.Linear(16, 8)), torch.randint(0, 50, (4, 6))
    quantized = convert(model.eval(), config=QConfig(weight_granularity=granularity))
    path = deploy.export(quantized, x, tmp_path / "rows.onnx")
    model = onnx.load(path)
    table = next(t for t in model.graph.initializer if list(t.dims) == [50, 16])
    assert table.data_type == onnx.TensorProto.INT8
    assert {n.op_type for n in model.graph.node if table.name in n.input} == {"Gather"}
    for given in (x, x[:1]):
        with torch.no_grad():
            assert sqnr_db(quantized(given), deploy.session(path, 1)(given)) > 40
