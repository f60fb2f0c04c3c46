"""torch.export reads quantized models; its programs compute the same."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ptq_course import PTQQuantizer, QConfig, quantize_dynamic
from tests.networks import Residual, batches, randomize_batch_norms

FLOATS = QConfig(weight_format="nvfp4", activation_format="fp8_e4m3")


def floats(model, data):
    return PTQQuantizer(model, config=FLOATS).calibrate(data, progress=False).convert()


VERSIONS = {
    "static": lambda m, data: PTQQuantizer(m).calibrate(data, progress=False).convert(),
    "weights": lambda m, data: PTQQuantizer(m).quantize_weights(),
    "dynamic": lambda m, data: quantize_dynamic(m),
    "floats": lambda m, data: (
        PTQQuantizer(m, config=FLOATS).calibrate(data, progress=False).convert()
    ),
}


@pytest.mark.parametrize("version", VERSIONS)
def test_the_exported_program_computes_the_same(version):
    torch.manual_seed(0)
    model, data = randomize_batch_norms(Residual()), [x for x, _ in batches()]
    quantized = VERSIONS[version](model, data)
    program = torch.export.export(quantized, (data[0],)).module()
    with torch.no_grad():
        torch.testing.assert_close(program(data[1]), quantized(data[1]), atol=1e-4, rtol=1e-4)


def test_tokens():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 16), nn.GELU(), nn.Linear(16, 4)).eval()
    x = torch.randn(3, 7, 12)
    quantized = quantize_dynamic(model)
    program = torch.export.export(quantized, (x,)).module()
    torch.testing.assert_close(program(2 * x), quantized(2 * x), atol=1e-4, rtol=1e-4)
