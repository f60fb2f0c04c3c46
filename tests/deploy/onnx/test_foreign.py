"""Other people's architectures: the file agrees with the simulation, or export refuses by name."""

from __future__ import annotations

import warnings

import onnx
import pytest

from ptq_course import PTQQuantizer
from ptq_course.deploy import onnx as deploy
from ptq_course.errors import QuantizationError
from ptq_course.simulation.observe import output_tensors
from tests.foreign import ARCHITECTURES

# Python that branches on a tensor's values has no graph that a file could hold.
REFUSED = dict.fromkeys(("data_dependent", "data_dependent_attention"), "data-dependent")


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_file_agrees_or_is_refused(tmp_path, name):
    architecture = ARCHITECTURES[name]
    data = architecture.batches(2, seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # untraceable models are quantized layer by layer
        quantizer = PTQQuantizer(architecture.model())
        quantized = quantizer.calibrate(data, progress=False, ranges="minmax").convert()
    path = tmp_path / "foreign.onnx"
    if name in REFUSED:
        with pytest.raises(QuantizationError, match=REFUSED[name]):
            deploy.export(quantized, data[1], path)
        assert list(tmp_path.iterdir()) == []
        return
    deploy.export(quantized, data[1], path)
    onnx.checker.check_model(onnx.load(path), full_check=True)
    onnx.shape_inference.infer_shapes(onnx.load(path), strict_mode=True)
    outputs = deploy.session(path, threads=1)(*data[1])
    for expected, got in zip(
        output_tensors(quantized(*data[1])), output_tensors(outputs), strict=True
    ):
        step = (expected.max() - expected.min()) / 255
        difference = (got - expected).abs() / step
        assert difference.max() < 12
        assert difference.mean() < 1.5
