"""Every layer kind that the quantizer knows, exported and executed against its simulation."""

from __future__ import annotations

import math

import onnx
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ptq_course import PTQQuantizer, QConfig, UnsupportedError
from ptq_course.deploy import onnx as deploy
from ptq_course.deploy.session import products_saturate
from ptq_course.deploy.tensorrt import check_tensorrt
from ptq_course.deploy.validate import Kernels
from tests.networks import Net


def attend(s, x):
    scores = s.q(x) @ s.k(x).transpose(1, 2) * 0.25
    return s.o(torch.softmax(scores, -1) @ s.v(x))


def squeeze_excite(s, x):
    y = F.relu(s.a(x))
    return s.c(y * torch.sigmoid(s.b(F.adaptive_avg_pool2d(y, 1))))


def conv(c_in=3, c_out=8, kernel=3, **options):
    return nn.Conv2d(c_in, c_out, kernel, **options)


PICTURE = (4, 3, 8, 8)
LAST = {"c": lambda: conv(8, 4, 1)}
# name: function, layers, input shape, integer kernels that ONNX Runtime must fuse
KINDS = {
    "conv1d": (
        lambda s, x: s.b(F.relu(s.a(x))),
        {"a": lambda: nn.Conv1d(4, 8, 3), "b": lambda: nn.Conv1d(8, 8, 3)},
        (8, 4, 16), {"QLinearConv"},
    ),
    "conv3d": (
        lambda s, x: s.b(F.relu(s.a(x))),
        {"a": lambda: nn.Conv3d(2, 8, 3), "b": lambda: nn.Conv3d(8, 4, 1)},
        (4, 2, 5, 5, 5), {"QLinearConv"},
    ),
    "transposed": (
        lambda s, x: s.c(F.relu(s.a(x))),
        {"a": lambda: nn.ConvTranspose2d(3, 8, 3, stride=2), **LAST}, PICTURE, set(),
    ),
    "transposed groups": (
        lambda s, x: s.c(F.relu(s.a(x))),
        {"a": lambda: nn.ConvTranspose2d(4, 8, 3, groups=2), **LAST}, (4, 4, 6, 6), set(),
    ),
    "linear": (
        lambda s, x: s.b(F.relu(s.a(x))),
        {"a": lambda: nn.Linear(16, 32), "b": lambda: nn.Linear(32, 5)}, (8, 16), {"QGemm"},
    ),
    "linear on sequences": (
        lambda s, x: s.b(F.relu(s.a(x))),
        {"a": lambda: nn.Linear(16, 32), "b": lambda: nn.Linear(32, 5)}, (8, 6, 16), {"QGemm"},
    ),
    "add": (
        lambda s, x: s.c(s.a(x) + s.b(x)), {"a": conv, "b": conv, **LAST}, PICTURE, {"QLinearAdd"},
    ),
    "squeeze excite": (
        squeeze_excite, {"a": conv, "b": lambda: conv(8, 8, 1), **LAST}, PICTURE,
        {"QLinearMul", "QLinearGlobalAveragePool", "QLinearSigmoid"},
    ),
    "concat": (
        lambda s, x: s.c(torch.cat([s.a(x), s.b(x)], 1)),
        {"a": conv, "b": conv, "c": lambda: conv(16, 4, 1)}, PICTURE, {"QLinearConcat"},
    ),
    "attention": (
        attend, dict.fromkeys("qkvo", lambda: nn.Linear(16, 16)), (4, 6, 16),
        {"QGemm", "QLinearMatMul", "QLinearSoftmax"},
    ),
    "max pool": (
        lambda s, x: s.c(F.max_pool2d(F.relu(s.a(x)), 2)), {"a": conv, **LAST}, PICTURE,
        {"NhwcMaxPool"},
    ),
    "average pool": (
        lambda s, x: s.c(F.avg_pool2d(F.relu(s.a(x)), 2)), {"a": conv, **LAST}, PICTURE,
        {"QLinearAveragePool"},
    ),
    "mean": (
        lambda s, x: s.c(F.relu(s.a(x)).mean((2, 3))), {"a": conv, "c": lambda: nn.Linear(8, 4)},
        PICTURE, {"QLinearGlobalAveragePool"},
    ),
    "relu6": (
        lambda s, x: s.c(F.relu6(s.a(x))), {"a": lambda: conv(3, 8, groups=1), **LAST}, PICTURE,
        {"QLinearConv"},
    ),
    "hardswish": (lambda s, x: s.c(F.hardswish(s.a(x))), {"a": conv, **LAST}, PICTURE, set()),
    "silu": (lambda s, x: s.c(F.silu(s.a(x))), {"a": conv, **LAST}, PICTURE, set()),
    "shared layer": (
        lambda s, x: s.o(F.relu(s.f(F.relu(s.f(x)) * 10))),
        {"f": lambda: nn.Linear(6, 6), "o": lambda: nn.Linear(6, 2)}, (8, 6), {"QGemm"},
    ),
    "depthwise": (
        lambda s, x: s.c(F.relu6(s.a(x))), {"a": lambda: conv(8, 8, groups=8), **LAST},
        (4, 8, 8, 8), {"QLinearConv"},
    ),
}  # fmt: skip


def quantized(name, preset):
    torch.manual_seed(0)
    function, layers, shape, fused = KINDS[name]
    model = Net(function, **{key: make() for key, make in layers.items()}).eval()
    data = [torch.randn(shape) for _ in range(2)]
    quantizer = PTQQuantizer(model, config=getattr(QConfig, preset)())
    return quantizer.calibrate(data, progress=False, ranges="minmax").convert(), data[1], fused


@pytest.mark.parametrize("preset", ["onnxruntime", "arm", "tensorrt"])
@pytest.mark.parametrize("name", KINDS)
def test_the_file_agrees_with_the_simulation(tmp_path, name, preset):
    module, x, fused = quantized(name, preset)
    path = deploy.export(module, x, tmp_path / "kind.onnx", target=preset)
    onnx.checker.check_model(onnx.load(path), full_check=True)
    onnx.shape_inference.infer_shapes(onnx.load(path), strict_mode=True)
    expected = module(x).detach()
    step = (expected.max() - expected.min()) / 255
    for exact in (True,) if products_saturate() else (False, True):
        run = deploy.session(path, threads=1, exact=exact)
        assert ((run(x) - expected).abs().max() / step) < 3
        assert run(x[:1]).shape == expected[:1].shape, "the batch is dynamic"
    if preset == "onnxruntime":
        assert fused <= set(Kernels.of(run.operators).integer)
    elif preset == "tensorrt":
        assert check_tensorrt(path) == []


def convolutions():
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.ConvTranspose2d(32, 32, 3), nn.Flatten(),
        nn.Linear(2048, 4),
    ).eval()  # fmt: skip


@pytest.mark.parametrize("activation_bits", [8, None])
@pytest.mark.parametrize("exact", [True, False])
def test_convolutions_of_four_bits_are_half_as_large_on_request(tmp_path, activation_bits, exact):
    torch.manual_seed(0)
    model, x = convolutions(), torch.randn(4, 3, 6, 6)
    config = QConfig(weight_bits=4, activation_bits=activation_bits)
    quantizer = PTQQuantizer(model, config=config)
    if activation_bits is None:
        quantized = quantizer.quantize_weights()
    else:
        quantized = quantizer.calibrate([x], progress=False, ranges="minmax").convert()
    with pytest.warns(UserWarning, match=r"export: 0, 2, 4: .*stored as int8.*four_bit_conv"):
        wide = deploy.export(quantized, x, tmp_path / "wide.onnx")
    with pytest.warns(UserWarning, match=r"export: 4: weights"):
        packed = deploy.export(quantized, x, tmp_path / "4.onnx", four_bit_convolutions=True)
    weights = [t for t in onnx.load(packed).graph.initializer if len(t.dims) == 4]
    assert [t.data_type for t in weights] == [onnx.TensorProto.INT4] * 2
    saved = sum(math.prod(t.dims) for t in weights) / 2
    assert wide.stat().st_size - packed.stat().st_size == pytest.approx(saved, rel=0.05)
    ours, theirs = (deploy.session(path, 1, exact)(x) for path in (packed, wide))
    step = (ours.max() - ours.min()) / 255
    assert (ours - theirs).abs().max() < 2 * step
    with pytest.raises(UnsupportedError, match="four_bit_convolutions"):
        deploy.export(model, x, tmp_path / "t.onnx", "tensorrt", four_bit_convolutions=True)
