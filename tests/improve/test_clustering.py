"""Codebooks against exact one-dimensional k-means by dynamic programming."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from ptq_course.deploy.checkpoint import load, save, size_report
from ptq_course.errors import QuantizationError
from ptq_course.improve.clustering import Cluster, cluster, squared_error
from ptq_course.improve.walk import improved
from ptq_course.simulation.qconfig import QConfig
from ptq_course.simulation.quantizer import PTQQuantizer


def best_error(values, size):
    """The least squared error of ``size`` clusters, which are runs of the sorted values."""
    x = values.double().sort().values
    sums, squares = (torch.cat([torch.zeros(1), t.cumsum(0)]).double() for t in (x, x * x))
    n = len(x)
    i, j = torch.meshgrid(torch.arange(n + 1), torch.arange(n + 1), indexing="ij")
    count = (j - i).clamp(min=1)
    cost = squares[j] - squares[i] - (sums[j] - sums[i]).square() / count  # of x[i:j]
    cost = torch.where(j > i, cost, torch.inf)
    least = torch.cat([torch.zeros(1), torch.full((n,), torch.inf)]).double()
    for _ in range(size):
        least = (least[:, None] + cost).amin(0)
    return float(least[n])


@pytest.mark.parametrize("bits", [1, 2, 3])
def test_the_error_is_near_the_exact_optimum(bits):
    for seed in range(4):
        x = torch.randn(120, generator=torch.Generator().manual_seed(seed))
        found = cluster(x, bits)
        best = best_error(x, 2**bits)
        error = float((x - found.dequantize()).double().square().sum())
        assert best - 1e-6 <= error <= 1.25 * best
        assert found.codebook is not None
        assert error == pytest.approx(squared_error(x.double(), found.codebook.double()), rel=1e-3)


def test_few_values_are_kept_exactly():
    x = torch.tensor([[1.0, -2.0], [1.0, 0.5]])
    found = cluster(x, 2)
    assert torch.equal(found.dequantize(), x)
    assert found.codebook is not None
    assert len(found.codebook) == 3
    assert torch.equal(cluster(torch.zeros(5), 4).dequantize(), torch.zeros(5))


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: nn.Linear(16, 8), (4, 16)),
        (lambda: nn.Conv2d(4, 8, 3), (2, 4, 6, 6)),
        (lambda: nn.Conv2d(8, 8, 3, groups=8), (2, 8, 6, 6)),
    ],
)
def test_a_layer_of_each_kind(make, shape):
    torch.manual_seed(0)
    model, x = nn.Sequential(make()).eval(), torch.randn(shape)
    config = replace(QConfig(), activation_bits=None, weight_bits=3)
    quantizer = PTQQuantizer(model, config=config)
    found = improved(quantizer, [x], [Cluster(3)], progress=False)
    weight = found.quantized_layers()["0"].weight
    assert len(weight.unique()) <= 8
    with torch.no_grad():
        assert (found(x) - model(x)).norm() < 0.3 * model(x).norm()
        assert not torch.equal(found(x), model(x))


def test_what_is_refused():
    for wrong, why in ((torch.tensor([torch.inf]), "infinity"), (torch.empty(0), "empty")):
        with pytest.raises(QuantizationError, match=why):
            cluster(wrong)
    with pytest.raises(QuantizationError, match="bits"):
        cluster(torch.ones(3), 9)
    quantizer = PTQQuantizer(nn.Sequential(nn.Linear(4, 4)))
    quantizer.calibrate([torch.randn(8, 4)], ranges="minmax", progress=False)
    with pytest.raises(QuantizationError, match="activation_bits=None"):
        improved(quantizer, [torch.randn(8, 4)], [Cluster()], progress=False)


@pytest.mark.parametrize("bits", [1, 3, 4])
def test_a_checkpoint_holds_packed_codes_and_the_codebook(tmp_path, bits):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 8)).eval()
    x = torch.randn(4, 64)
    quantizer = PTQQuantizer(model, config=replace(QConfig(), activation_bits=None))
    found = improved(quantizer, [x], [Cluster(bits)], progress=False)
    path = save(found, tmp_path / "clustered.safetensors")
    assert torch.equal(load(path, model)(x), found(x))
    layers = size_report(path).layers
    assert [(s.bits, s.code_bytes) for s in layers] == [(bits, 256 * bits), (bits, 32 * bits)]
    assert [s.scale_bytes for s in layers] == [4 * 2**bits] * 2
