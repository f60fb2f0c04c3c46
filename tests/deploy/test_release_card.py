"""The release card says what is known, and marks what is not."""

from __future__ import annotations

import pytest
import torch
from networks import answering, batches

from ptq_course import PTQQuantizer, QConfig, __version__
from ptq_course.deploy.release_card import OPEN, open_points, release_card
from ptq_course.deploy.validate import validate
from ptq_course.errors import QuantizationError


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    data = batches(count=2, size=16)
    model = answering(data)
    quantizer = PTQQuantizer(model, config=QConfig.onnxruntime()).calibrate(data, progress=False)
    quantized, x = quantizer.convert(), torch.cat([x for x, _ in data])
    path = tmp_path_factory.mktemp("release") / "int8.onnx"
    return quantized, validate(quantized, model, path, x, rounds=1)


def test_what_is_not_given_is_marked_as_open(release):
    card = release_card("net", release[0], release[1], (-0.01, -0.02, 0.0))
    assert open_points(card) == ["Calibration data", "Acceptance rule", "Known weaknesses"]
    assert f"by ptq_course {__version__}" in card
    assert "Against FP32 -1.0 points, 95 % interval -2.0 to +0.0, on 32 examples" in card


@pytest.mark.parametrize(("limit", "word"), [(0.02, "kept"), (0.01, "**broken**")])
def test_the_rule_is_applied(release, limit, word):
    card = release_card(
        "net", release[0], release[1], (-0.01, -0.02, 0.0), limit=limit, calibration="32 pictures",
        weaknesses="none known", by_mode=[("night", 8, -0.1, -0.2, 0.0)],
    )  # fmt: skip
    assert open_points(card) == []
    assert OPEN not in card
    assert f": {word} (-2.0)" in card
    assert f"[1] >= {-limit}" in card
    assert "| night | 8 | -10.0 | -20.0 to +0.0 |" in card


def test_an_interval_that_is_none_is_refused(release):
    with pytest.raises(QuantizationError, match=r"no \(mean, low, high\)"):
        release_card("net", release[0], release[1], (0.0, 0.1, 0.2))
