"""AdaRound and GPTQ against every rounding of eight weights; the fallback; layers of each kind."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from torch import nn

from ptq_course.errors import CalibrationError, QuantizationError, UnsupportedError
from ptq_course.grids.affine import IntGrid, dequantize, quantize
from ptq_course.improve.adaround import AdaRound, adaround
from ptq_course.improve.gptq import GPTQ, gptq
from ptq_course.improve.matrices import columns, matrices, second_moments, unmatrix
from ptq_course.improve.rounding import Rounding, compensated, damped, spread_over
from ptq_course.improve.walk import improved
from ptq_course.simulation.layers import weight_qparams
from ptq_course.simulation.qconfig import QConfig
from ptq_course.simulation.quantizer import PTQQuantizer

GRID = IntGrid(3, narrow=True)
LAYERS = {
    "linear": (lambda: nn.Linear(6, 5), (4, 3, 6)),
    "convolution": (lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1), (3, 4, 7, 7)),
    "grouped": (lambda: nn.Conv2d(4, 6, 3, groups=2, dilation=2), (3, 4, 8, 8)),
    "depthwise": (lambda: nn.Conv2d(4, 4, 3, groups=4, padding="same"), (3, 4, 7, 7)),
    "reflected": (lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), (3, 4, 7, 7)),
    "one dimension": (lambda: nn.Conv1d(4, 6, 3, padding=1), (3, 4, 9)),
}


def problem(seed, rows=4, size=8, correlated=True):
    generator = torch.Generator().manual_seed(seed)
    target = torch.randn(1, rows, size, generator=generator, dtype=torch.float64)
    x = torch.randn(size, 40, generator=generator, dtype=torch.float64)
    if correlated:
        x += 2 * torch.randn(1, 40, generator=generator, dtype=torch.float64)
    scale = (target.abs().amax(2, keepdim=True) / GRID.qmax).expand(target.shape)
    return Rounding(target, damped((x @ x.T)[None], 1e-4), scale, torch.zeros_like(target), GRID)


def best_of_all(p):
    """The least loss of each row over the 2^8 ways to round its weights down or up."""
    floor = (p.target / p.scale).floor()
    ways = torch.tensor(list(itertools.product([0.0, 1.0], repeat=8)), dtype=torch.float64)
    losses = [p.loss((floor + way).clamp(GRID.qmin, GRID.qmax)) for way in ways]
    return torch.stack(losses).amin(0)


def test_adaround_comes_near_the_best_of_all_roundings():
    problems = [problem(seed) for seed in range(4)]
    best, nearest, found = 0.0, 0.0, 0.0
    for p in problems:
        losses = p.loss(adaround(p))
        assert bool((losses <= p.loss(p.nearest()) * (1 + 1e-9)).all())
        best, found = best + best_of_all(p).sum(), found + losses.sum()
        nearest = nearest + p.loss(p.nearest()).sum()
    assert found <= 1.1 * best
    assert nearest > 2 * best


def test_the_loss_is_the_squared_error_of_the_output():
    torch.manual_seed(1)
    for name, (make, shape) in LAYERS.items():
        layer, x = make(), torch.randn(shape)
        qparams = weight_qparams(layer, GRID, "per_channel")
        rounded = dequantize(quantize(layer.weight.detach(), qparams), qparams)
        other = make()
        other.load_state_dict(layer.state_dict())
        other.weight.data = rounded
        scale, zero = (matrices(layer, t) for t in spread_over(layer.weight.detach(), qparams))
        p = Rounding(matrices(layer).double(), second_moments(layer, x), scale, zero, GRID)
        with torch.no_grad():
            expected = (layer(x) - other(x)).double().square().sum()
        torch.testing.assert_close(p.loss(p.nearest()).sum(), expected, rtol=1e-4, atol=0)
        torch.testing.assert_close(
            unmatrix(layer, p.decoded(p.nearest())).float(), rounded, msg=name
        )


@pytest.mark.parametrize("name", LAYERS)
def test_columns_are_what_the_weight_multiplies(name):
    make, shape = LAYERS[name]
    layer, x = make(), torch.randn(shape)
    y = (matrices(layer) @ columns(layer, x)).flatten(0, 1)  # [O, N]
    with torch.no_grad():
        expected = layer(x) - layer.bias.view([-1] + [1] * (x.dim() - 2 if name[0] != "l" else 0))
    expected = (
        expected.reshape(-1, 5).T if name == "linear" else expected.transpose(0, 1).flatten(1)
    )
    torch.testing.assert_close(y, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("ordered", [True, False])
def test_gptq_beats_nearest_together_and_uncorrelated_inputs_leave_nothing_to_gain(ordered):
    problems = [problem(seed, rows=8, size=24) for seed in range(5)]
    found = sum(p.loss(gptq(p, ordered)).sum() for p in problems)
    assert found < 0.8 * sum(p.loss(p.nearest()).sum() for p in problems)
    p = problem(0)
    alone = replace(p, moments=torch.diag_embed(torch.arange(1.0, 9.0).double())[None])
    assert torch.equal(gptq(alone, ordered), alone.nearest())


def test_descending_never_loses():
    p = problem(3, rows=16, size=12)
    start = (p.nearest() + 1).clamp(GRID.qmin, GRID.qmax)
    found = p.descend(start)
    assert bool((p.loss(found) <= p.loss(start)).all())
    assert found.min() >= GRID.qmin
    assert found.max() <= GRID.qmax


def test_compensation_is_least_squares():
    generator = torch.Generator().manual_seed(0)
    w, x, y = (torch.randn(s, generator=generator).double() for s in ((1, 3, 5), (5, 50), (5, 50)))
    found = compensated(w, (y @ y.T)[None], (x @ y.T)[None], 1e-12)[0]
    expected = torch.linalg.lstsq(y.T, (w[0] @ x).T).solution.T
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.ReLU(), nn.Flatten(),
        nn.Linear(8 * 16, 4),
    ).eval()  # fmt: skip


@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel", 16])
@pytest.mark.parametrize("step", [AdaRound(50), GPTQ(), GPTQ(compensate=True)])
def test_every_layer_of_a_network_loses_less(step, granularity):
    model, x = network(), 3 + torch.randn(32, 3, 8, 8)
    config = replace(QConfig.onnxruntime(), weight_bits=3, weight_granularity="per_channel")
    if granularity == 16:
        model = nn.Sequential(nn.Flatten(), nn.Linear(192, 32), nn.ReLU(), nn.Linear(32, 4)).eval()
    config = replace(config, weight_granularity=granularity, activation_bits=None)
    quantizer = PTQQuantizer(model, config=config)
    plain = quantizer.quantize_weights()
    better = improved(quantizer, [x[:16], x[16:]], [step], progress=False)
    with torch.no_grad():
        expected, before, after = model(x), plain(x), better(x)
    assert (after - expected).square().sum() < 0.9 * (before - expected).square().sum()
    for name, layer in better.quantized_layers().items():
        assert torch.equal(layer.weight_scale, plain.quantized_layers()[name].weight_scale)


def test_dead_inputs_and_one_example_break_nothing():
    model, x = network(), torch.zeros(1, 3, 8, 8)
    quantizer = PTQQuantizer(model, config=replace(QConfig.onnxruntime(), activation_bits=None))
    for step in (AdaRound(5), GPTQ(), GPTQ(compensate=True)):
        assert torch.isfinite(improved(quantizer, [x], [step], progress=False)(x)).all()


def test_what_is_refused():
    p = problem(0)
    for broken in ({"moments": p.moments[:, :3]}, {"scale": p.scale[..., :2]}):
        with pytest.raises(QuantizationError, match="Rounding"):
            replace(p, **broken)
    with pytest.raises(QuantizationError, match="NaN"):
        replace(p, target=p.target * torch.nan)
    with pytest.raises(QuantizationError, match="iterations"):
        AdaRound(-1)
    with pytest.raises(QuantizationError, match="damping"):
        GPTQ(damping=0)
    for layer in (nn.ConvTranspose2d(2, 3, 3), nn.Conv3d(2, 3, 3), nn.Embedding(3, 4)):
        with pytest.raises(UnsupportedError, match=type(layer).__name__):
            matrices(layer)
    quantizer = PTQQuantizer(network(), config=replace(QConfig(), activation_bits=None))
    with pytest.raises(CalibrationError, match="no batch"):
        improved(quantizer, [], [AdaRound()], progress=False)
