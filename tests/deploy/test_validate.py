"""validate: what it reports on a small network, on multiple inputs, and on the shipped networks."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from ptq_classroom import load_model, load_split, loader
from ptq_course import PTQQuantizer, QConfig, quantize_dynamic
from ptq_course.deploy.session import Timing, session, timings
from ptq_course.deploy.validate import Kernels, validate
from ptq_course.errors import QuantizationError
from ptq_course.simulation.observe import output_tensors
from tests.networks import Residual, batches, randomize_batch_norms


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    model = randomize_batch_norms(Residual())
    quantized = PTQQuantizer(model).calibrate(batches(), progress=False, ranges="minmax").convert()
    return model, quantized, torch.cat([x for x, _ in batches()])


@pytest.fixture(scope="module")
def report(small, tmp_path_factory):
    model, quantized, x = small
    path = tmp_path_factory.mktemp("validate") / "int8.onnx"
    labels = model(x).argmax(1)
    return validate(quantized, model, path, x, labels, threads=1, rounds=1), path


def test_agreement_accuracy_and_size(report):
    found, path = report
    assert found.examples == 32
    assert found.agreement >= 0.96
    assert found.mean_steps <= found.max_steps < 3
    assert found.accuracy["FP32"] == 1.0
    assert found.accuracy["file"] == pytest.approx(found.accuracy["simulation"], abs=0.04)
    assert found.sizes["INT8"] == path.stat().st_size
    assert found.size_ratio == found.sizes["INT8"] / found.sizes["FP32"]


def test_kernels_and_the_printed_table(report):
    found, _ = report
    assert found.kernels.integer["QLinearConv"] == 3
    assert found.kernels.floating == {}
    text = str(found)
    for words in ("agreement", "3 QLinearConv", "batch 32", "x FP32", "top-1, file"):
        assert words in text
    assert ("unguarded" in text) == found.guarded


def test_speed_is_fp32s_time_over_int8s(report):
    found, _ = report
    times = {"FP32": Timing(2.0, 3.0), "INT8": Timing(1.0, 2.0)}
    invented = replace(found, seconds={1: times})
    assert invented.speedup(1) == 2.0
    assert invented.speedup(1, statistic="median") == 1.5
    assert set(found.seconds) == {1, 32}


def test_kernels_are_sorted():
    kernels = Kernels.of({"QLinearConv": 2, "Conv": 1, "Transpose": 4, "DequantizeLinear": 3})
    assert (kernels.integer, kernels.floating) == ({"QLinearConv": 2}, {"Conv": 1})
    assert kernels.boundary == {"DequantizeLinear": 3}


def test_several_inputs(tmp_path):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 8), nn.Linear(4, 8)
            self.out = nn.Linear(8, 3)

        def forward(self, x, y):
            return self.out(self.a(x) + self.b(y))

    inputs = (torch.randn(5, 6), torch.randn(5, 4))
    quantized = PTQQuantizer(Two()).calibrate([inputs], progress=False, ranges="minmax").convert()
    found = validate(quantized, Two(), tmp_path / "two.onnx", inputs, threads=1, rounds=1)
    assert found.agreement == 1.0
    assert found.accuracy is None
    assert set(found.seconds) == {1}, "five examples make no batch of 32"
    with pytest.raises(QuantizationError, match="as many rows in each"):
        validate(quantized, Two(), tmp_path / "b.onnx", (inputs[0], inputs[1][:2]))


def test_scales_at_run_time_and_inputs_by_name(tmp_path):
    torch.manual_seed(0)
    model, x = (
        nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)).eval(),
        torch.randn(8, 6),
    )
    quantized = quantize_dynamic(model, granularity="per_tensor")
    found = validate(quantized, model, tmp_path / "d.onnx", {"input": x}, threads=1, rounds=1)
    assert found.kernels.integer == {"DynamicQuantizeMatMul": 2}
    assert found.agreement == 1.0
    for wrong in (None, 3, "x", {}, [1.0, 2.0]):
        with pytest.raises(QuantizationError, match="example"):
            validate(quantized, model, tmp_path / "e.onnx", wrong)


class Wrapped(nn.Module):
    """A segmentation network: a decision for each pixel, in a dictionary or alone."""

    def __init__(self, wrap):
        super().__init__()
        self.a, self.b, self.wrap = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1), wrap

    def forward(self, x):
        return self.wrap(self.b(torch.relu(self.a(x))))


@pytest.mark.parametrize("wrap", [lambda y: {"logits": y, "more": y[:, :1]}, lambda y: y])
def test_dictionaries_and_pixels(tmp_path, wrap):
    torch.manual_seed(0)
    model, x = Wrapped(wrap).eval(), torch.randn(8, 3, 10, 10)
    quantized = PTQQuantizer(model).calibrate([x], progress=False, ranges="minmax").convert()
    path = tmp_path / "pixels.onnx"
    found = validate(quantized, model, path, x, threads=1, rounds=1)
    got, simulated = (output_tensors(run(x))[0] for run in (session(path, 1), quantized))
    same = (got.argmax(1) == simulated.argmax(1)).double().mean().item()
    assert found.agreement == same >= 0.99
    assert found.max_steps < 3


def test_bad_input(small, tmp_path):
    model, quantized, x = small
    with pytest.raises(QuantizationError, match="two examples"):
        validate(quantized, model, tmp_path / "a.onnx", x[:1])
    with pytest.raises(QuantizationError, match="32 examples and 3 labels"):
        validate(quantized, model, tmp_path / "a.onnx", x, torch.zeros(3))
    assert list(tmp_path.iterdir()) == []


def test_timings_take_turns():
    calls = []
    runs = {name: (lambda x, name=name: calls.append(name)) for name in "ab"}
    times = timings(runs, torch.zeros(1), rounds=2, calls=1)
    assert "".join(calls) == "aabb" * 2, "one call to warm up, one that counts"
    assert all(t.best <= t.median for t in times.values())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "preset", "count"),
    [
        ("resnet", "onnxruntime", 4000),  # the whole test split once, where it is quick
        ("resnet", "arm", 1000),
        ("mobilenet", "onnxruntime", 1000),
        ("mobilenet", "arm", 1000),
    ],
)
def test_the_shipped_networks_agree(tmp_path, name, preset, count):
    """At least 99.5 % of the decisions, and integer kernels throughout with ONNX Runtime's."""
    model = load_model(name)
    config = getattr(QConfig, preset)()
    quantizer = PTQQuantizer(model, config=config)
    quantizer.observe(loader(load_split("calibration"))[:4], ranges="percentile", progress=False)
    quantized = quantizer.compute_qparams("percentile").convert()
    x = torch.cat([x for x, _ in loader(load_split("test"))])[:count]
    path = tmp_path / "int8.onnx"
    found = validate(quantized, model, path, x, target=preset, rounds=1)
    assert found.examples == count
    assert found.agreement >= 0.995
    if name == "resnet":
        assert found.size_ratio <= 0.28
    if preset == "onnxruntime":
        assert found.kernels.floating == {}
