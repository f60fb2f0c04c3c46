"""OpenVINO runs the same files: same protocol, other kernels, nearly the same numbers."""

import numpy as np
import pytest
import torch
from networks import Residual

pytest.importorskip("openvino", reason="the extra 'openvino' is not installed")

from ptq_course import PTQQuantizer, QuantizationError
from ptq_course.deploy.onnx import export
from ptq_course.deploy.openvino_session import OpenVINOSession
from ptq_course.deploy.session import session


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """(pictures, FP32 file, INT8 file) of a small residual network."""
    torch.manual_seed(0)
    folder, network, x = tmp_path_factory.mktemp("files"), Residual(), torch.randn(64, 3, 12, 12)
    quantizer = PTQQuantizer(network.eval())
    quantizer.calibrate([x], num_batches=1, ranges="minmax")
    return (
        x,
        export(network, x[:2], folder / "fp32.onnx"),
        export(quantizer.convert(), x[:2], folder / "int8.onnx"),
    )


def test_a_file_in_floating_point_gives_the_same_numbers(files):
    x, fp32, _ = files
    ours, theirs = session(fp32)(x), session(fp32, runtime="openvino")(x)
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-5)


def test_an_integer_file_gives_nearly_the_same_numbers_from_integer_kernels(files):
    x, _, int8 = files
    run = OpenVINOSession(int8)
    ours, theirs = session(int8)(x), run(x)
    assert torch.nn.functional.cosine_similarity(ours, theirs).min() > 0.99
    assert run.precisions["Convolution", "u8"] == 3
    assert ("Convolution", "f32") not in run.precisions
    assert run.operators["Convolution"] == 3
    assert run.size == int8.stat().st_size


def test_the_protocol_is_that_of_the_other_session(files):
    x, _, int8 = files
    run = session(int8, threads=1, runtime="openvino")
    assert isinstance(run, OpenVINOSession)
    first = run(x)
    kept = first.clone()
    run(x + 1)
    assert torch.equal(first, kept), "an answer is not overwritten by the next"
    assert isinstance(run(x.numpy()), np.ndarray)
    assert torch.equal(run(x[:3].permute(0, 1, 3, 2).permute(0, 1, 3, 2)), first[:3])
    (name,) = run._names
    assert torch.equal(run(**{name: x}), first)


def test_errors_name_place_and_remedy(files, tmp_path):
    x, _, int8 = files
    run = session(int8, runtime="openvino")
    with pytest.raises(QuantizationError, match=r"takes 1 inputs .*got 2"):
        run(x, x)
    with pytest.raises(QuantizationError, match=r"int8.onnx cannot be run on float64.*float32"):
        run(x.double())
    with pytest.raises(QuantizationError, match=r"cannot be run on float32 \(2, 5\)"):
        run(torch.zeros(2, 5))
    with pytest.raises(QuantizationError, match="no file"):
        session(tmp_path / "absent.onnx", runtime="openvino")
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(b"no file of ONNX")
    with pytest.raises(QuantizationError, match="OpenVINO cannot open"):
        session(damaged, runtime="openvino")
    with pytest.raises(QuantizationError, match="'onnxruntime' or 'openvino', got 'tvm'"):
        session(int8, runtime="tvm")
    with pytest.raises(QuantizationError, match="exact is a mode of ONNX Runtime"):
        session(int8, exact=True, runtime="openvino")
    with pytest.raises(QuantizationError, match="threads"):
        session(int8, threads=0, runtime="openvino")
