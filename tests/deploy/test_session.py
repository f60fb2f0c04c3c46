from __future__ import annotations

import pytest
import torch

from ptq_course.deploy import onnx as deploy
from ptq_course.deploy.session import products_saturate
from ptq_course.quantizer import PTQQuantizer


@pytest.fixture(scope="module")
def extreme(tmp_path_factory):
    """A layer whose products reach the ends of the 8-bit grids, and its integer file."""
    layer = torch.nn.Sequential(torch.nn.Linear(64, 8))
    with torch.no_grad():
        layer[0].weight.fill_(1.0)
        layer[0].bias.zero_()
    x = torch.full((4, 64), 2.0)
    quantized = PTQQuantizer(layer).calibrate([x], progress=False).convert()
    path = tmp_path_factory.mktemp("extreme") / "extreme.onnx"
    return quantized, x, deploy.export(quantized, x, path)


def test_the_guarded_session_is_right_on_every_processor(extreme):
    quantized, x, path = extreme
    run = deploy.session(path)
    torch.testing.assert_close(run(x), quantized(x).detach(), atol=1e-3, rtol=1e-4)
    assert run.saturation_guard == products_saturate()


def test_without_the_guard_a_saturating_processor_is_wrong(extreme):
    quantized, x, path = extreme
    if not products_saturate():
        pytest.skip("this processor multiplies bytes exactly (VNNI or Arm)")
    wrong = deploy.session(path, exact=False)(x)
    assert (wrong - quantized(x)).abs().max() > 1
