from __future__ import annotations

import onnx
import pytest
import torch
from torch import nn

from ptq_course.deploy import onnx as deploy
from ptq_course.deploy.onnx.layers import implied_clamp
from ptq_course.deploy.session import latency
from ptq_course.errors import QuantizationError, UnsupportedError
from ptq_course.grids.affine import IntGrid, choose_qparams
from ptq_course.grids.metrics import sqnr_db
from ptq_course.simulation.qconfig import QConfig
from ptq_course.simulation.quantizer import PTQQuantizer
from tests.networks import InvertedResidual, Residual, batches, randomize_batch_norms


@pytest.fixture(scope="module", params=[Residual, InvertedResidual])
def exported(request, tmp_path_factory):
    """Model, quantized model, and the two files."""
    folder = tmp_path_factory.mktemp("with a space")
    torch.manual_seed(0)
    model = randomize_batch_norms(request.param())
    quantized = PTQQuantizer(model).calibrate(batches(), progress=False, ranges="minmax").convert()
    x = batches()[0][0]
    return {
        "model": model,
        "quantized": quantized,
        "x": x,
        "fp32": deploy.export(model, x, folder / "fp32.onnx"),
        "int8": deploy.export(quantized, x, folder / "int8.onnx"),
    }


def test_fp32_file_computes_what_the_model_computes(exported):
    got = deploy.session(exported["fp32"])(exported["x"])
    torch.testing.assert_close(got, exported["model"](exported["x"]).detach(), atol=1e-4, rtol=1e-4)


def test_int8_file_computes_what_the_simulation_computes(exported):
    x = torch.cat([x for x, _ in batches()])
    got = deploy.session(exported["int8"])(x)
    assert sqnr_db(exported["quantized"](x).detach(), got) > 35
    assert (got.argmax(1) == exported["quantized"](x).argmax(1)).double().mean() >= 0.95


def test_batch_size_is_dynamic(exported):
    run = deploy.session(exported["int8"])
    whole = run(exported["x"])
    one_by_one = torch.cat([run(x[None]) for x in exported["x"]])
    torch.testing.assert_close(whole, one_by_one, atol=1e-5, rtol=1e-5)


def test_weights_and_biases_are_integers_in_the_file(exported):
    tensors = onnx.load(exported["int8"]).graph.initializer
    kinds = {onnx.TensorProto.DataType.Name(t.data_type) for t in tensors if len(t.dims) > 1}
    assert kinds == {"INT8"}
    biggest_float = max(
        (t.dims[0] for t in tensors if t.data_type == onnx.TensorProto.FLOAT and t.dims), default=0
    )
    assert biggest_float <= 18, "the only floats are the scales, one a channel"


def test_the_runtime_fuses_every_operation(exported):
    operators = deploy.session(exported["int8"]).operators
    assert operators["QLinearConv"] >= 3
    assert operators["QLinearAdd"] == 1
    assert operators["QLinearGlobalAveragePool"] == 1
    assert operators["QGemm"] == 1
    assert not {"Conv", "FusedConv", "Gemm", "Add", "Relu", "Clip"} & set(operators)


def test_no_path_of_this_machine_is_in_the_file(exported):
    for name in ("fp32", "int8"):
        data = exported[name].read_bytes()
        assert b"site-packages" not in data
        assert b".py" not in data


def test_numpy_in_numpy_out(exported):
    run = deploy.session(exported["fp32"], threads=1)
    assert isinstance(run(exported["x"].numpy()), type(exported["x"].numpy()))


def test_latency_reports_every_session(exported):
    runs = {name: deploy.session(exported[name]) for name in ("fp32", "int8")}
    assert set(latency(runs, exported["x"], rounds=2)) == {"fp32", "int8"}
    with pytest.raises(QuantizationError, match="round"):
        latency(runs, exported["x"], rounds=0)


@pytest.mark.parametrize("bits", [2, 4, 6])
def test_fewer_bits_run_correctly_in_the_runtime(tmp_path, bits):
    model = randomize_batch_norms(Residual())
    x = batches()[0][0]
    quantized = (
        PTQQuantizer(model, bits=bits)
        .calibrate(batches(), progress=False, ranges="minmax")
        .convert()
    )
    got = deploy.session(deploy.export(quantized, x, tmp_path / "low.onnx"))(x)
    assert sqnr_db(quantized(x).detach(), got) > 25


@pytest.mark.parametrize("preset", [QConfig.tensorrt, QConfig.arm])
def test_other_presets_run_too(tmp_path, preset):
    model = randomize_batch_norms(Residual())
    x = batches()[0][0]
    quantizer = PTQQuantizer(model, config=preset()).calibrate(
        batches(), progress=False, ranges="minmax"
    )
    quantized = quantizer.convert()
    got = deploy.session(deploy.export(quantized, x, tmp_path / "other.onnx"))(x)
    assert sqnr_db(quantized(x).detach(), got) > 30


def test_weight_only_export(tmp_path):
    model = randomize_batch_norms(Residual())
    quantized = PTQQuantizer(model, config=QConfig(activation_bits=None)).convert()
    x = batches()[0][0]
    got = deploy.session(deploy.export(quantized, x, tmp_path / "w8.onnx"))(x)
    torch.testing.assert_close(got, quantized(x).detach(), atol=1e-4, rtol=1e-4)


class TestRefusals:
    def test_what_has_no_integer_kernel(self, tmp_path):
        model = nn.Sequential(nn.Linear(8, 4))
        data = [torch.randn(4, 8)]
        wide = (
            PTQQuantizer(model, bits=10).calibrate(data, progress=False, ranges="minmax").convert()
        )
        with pytest.raises(UnsupportedError, match="10"):
            deploy.export(wide, data[0], tmp_path / "a.onnx")
        grouped = PTQQuantizer(model, config=QConfig(weight_granularity=4))
        with pytest.raises(UnsupportedError, match="per group"):
            deploy.export(
                grouped.calibrate(data, progress=False, ranges="minmax").convert(),
                data[0],
                tmp_path / "a.onnx",
            )
        assert list(tmp_path.iterdir()) == []

    def test_target_folder_and_file(self, tmp_path):
        model, x = nn.Linear(3, 2), torch.ones(2, 3)
        with pytest.raises(QuantizationError, match=r"'coreml'.*onnxruntime"):
            deploy.export(model, x, tmp_path / "a.onnx", target="coreml")
        with pytest.raises(QuantizationError, match="does not exist"):
            deploy.export(model, x, tmp_path / "missing" / "a.onnx")
        with pytest.raises(QuantizationError, match="no file"):
            deploy.session(tmp_path / "a.onnx")


class TestExamples:
    """What does not fit the model is said before torch.onnx.export is asked."""

    @pytest.fixture
    def quantized(self):
        model = nn.Sequential(nn.Linear(6, 4)).eval()
        return (
            PTQQuantizer(model)
            .calibrate([torch.randn(8, 6)], progress=False, ranges="minmax")
            .convert()
        )

    @pytest.mark.parametrize(
        ("example", "match"),
        [
            (None, "got NoneType"),
            ([], "got list"),
            ([[1.0, 2.0]], "holds float"),
            (torch.tensor(1.0), "without dimensions"),
            (torch.ones(2, 6).numpy(), "got ndarray"),
            (torch.ones(2, 6, dtype=torch.float64), r"float64 .*float32; pass example.to"),
            (torch.ones(2, 6, dtype=torch.int64), "int64"),
            (torch.ones(2, 7), "same reduction dim"),
        ],
    )
    def test_refused(self, quantized, tmp_path, example, match, capfd):
        with pytest.raises(QuantizationError, match=match):
            deploy.export(quantized, example, tmp_path / "x.onnx")
        assert list(tmp_path.iterdir()) == []
        said = "".join(capfd.readouterr())
        assert said.count("\n") < 5, "not forty lines of torch.export's log"

    def test_no_network(self, tmp_path):
        with pytest.raises(QuantizationError, match=r"needs an nn\.Module, got int"):
            deploy.export(3, torch.ones(2, 6), tmp_path / "x.onnx")

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_quantized_models_of_other_formats(self, tmp_path, dtype):
        model, x = nn.Sequential(nn.Linear(6, 4)).eval().to(dtype), torch.randn(8, 6).to(dtype)
        quantized = PTQQuantizer(model).calibrate([x], progress=False, ranges="minmax").convert()
        with pytest.raises(UnsupportedError, match=rf"layer '0' computes in {dtype}.*model.float"):
            deploy.export(quantized, x, tmp_path / "x.onnx")

    def test_an_older_file_stays_where_a_new_one_fails(self, quantized, tmp_path):
        path = tmp_path / "x.onnx"
        path.write_text("old")
        with pytest.raises(QuantizationError):
            deploy.export(quantized, torch.ones(2, 7), path)
        assert path.read_text() == "old"
        assert list(tmp_path.iterdir()) == [path]


def test_implied_clamp():
    unsigned = IntGrid(8, signed=False)
    relu6 = choose_qparams(0.0, 6.0, unsigned)
    assert implied_clamp(relu6, 0.0, 6.0)
    assert implied_clamp(choose_qparams(0.0, 3.0, unsigned), 0.0, float("inf"))
    assert not implied_clamp(choose_qparams(-1.0, 3.0, unsigned), 0.0, 6.0)
    assert not implied_clamp(choose_qparams(0.0, 7.0, unsigned), 0.0, 6.0)


class Refuses(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        if x.sum() > 1e9:  # cannot be traced
            return x
        raise NotImplementedError


def test_a_refusal_without_a_text_and_a_folder_as_the_path(tmp_path):
    with pytest.raises(UnsupportedError, match="refused Refuses"):
        deploy.export(Refuses(), torch.zeros(2, 4), tmp_path / "x.onnx")
    with pytest.raises(QuantizationError, match="is a folder"):
        deploy.export(nn.Sequential(nn.Linear(4, 4)), torch.zeros(2, 4), tmp_path)
    assert not list(tmp_path.iterdir())
