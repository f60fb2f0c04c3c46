"""The two trained networks with integers only: decisions and codes on real pictures."""

import pytest
import torch

from ptq_classroom.pictures.datasets import load_split, to_input
from ptq_classroom.pictures.models import load_model
from ptq_course.integer import agreement, to_integer
from ptq_course.simulation.quantizer import PTQQuantizer

SAME_DECISION = 0.995


@pytest.fixture(scope="module", params=["resnet", "mobilenet"])
def networks(request):
    pictures = to_input(load_split("calibration").images[:300])
    quantizer = PTQQuantizer(load_model(request.param)).observe([pictures], progress=False)
    quantized = quantizer.compute_qparams("percentile").convert()
    return request.param, quantized, to_integer(quantized)


@pytest.mark.slow
def test_decisions_agree(networks):
    """On the whole test split; on a thousand pictures with the network that takes long."""
    name, quantized, integer = networks
    x = to_input(load_split("test").images[: None if name == "resnet" else 1000])
    with torch.no_grad():
        simulated = torch.cat([quantized(part) for part in x.split(250)])
    assert (integer(x).argmax(1) == simulated.argmax(1)).double().mean() >= SAME_DECISION


def test_every_operation_alone_is_one_step_off_at_most(networks):
    _, quantized, integer = networks
    table = agreement(integer, quantized, to_input(load_split("test").images[:64]))
    for name, differences in table.isolated.items():
        assert differences.largest <= 1, name
        assert differences.equal > 0.999 * differences.codes, name
