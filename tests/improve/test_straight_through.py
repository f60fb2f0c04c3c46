"""Gradients through rounding: those of the papers, written out, and PyTorch's."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ptq_course.grids.affine import IntGrid
from ptq_course.improve.straight_through import round_per_tensor, round_through

GRID = IntGrid(4)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=8),
    st.floats(0.2, 3.0),
    st.integers(-3, 3),
)
def test_gradients_through_the_rounding_are_those_of_the_papers(values, step, zero):
    """One value at a time, written out: inside, below and above the grid."""
    x = torch.tensor(values, dtype=torch.float64, requires_grad=True)
    scale = torch.tensor(step, dtype=torch.float64, requires_grad=True)
    y = round_through(x, scale, torch.tensor(float(zero), dtype=torch.float64), GRID)
    weights = torch.arange(1.0, len(values) + 1, dtype=torch.float64)
    (y * weights).sum().backward()
    low, high, of_scale = GRID.qmin - zero, GRID.qmax - zero, 0.0
    for i, value in enumerate(x.tolist()):
        v = value / step
        if min(abs(v - low), abs(v - high)) < 1e-9:
            return  # at the very end both are right
        inside = low < v < high
        assert x.grad is not None
        assert x.grad[i].item() == pytest.approx((i + 1) * inside)
        code = round(min(max(v, low), high))
        assert y[i].item() == pytest.approx(code * step)
        of_scale += (i + 1) * (code - v if inside else code)
    assert scale.grad is not None
    assert scale.grad.item() == pytest.approx(of_scale, abs=1e-6)


@pytest.mark.parametrize("zero", [0.1, 0.7, 1.3, 2.4, 2.9])  # PyTorch truncates negative ones
@pytest.mark.parametrize("step", [0.25, 0.8, 1.7, 3.0])
def test_a_learned_zero_point_gets_the_gradient_that_pytorch_gives_it(step, zero):
    """PyTorch's kernel clips and rounds alike; the sum of its gradients is compared in float32."""
    generator = torch.Generator().manual_seed(round(100 * (step + zero)))
    x = 60 * torch.rand(200, generator=generator) - 30
    steps, ends = x / step, torch.tensor([GRID.qmin, GRID.qmax]) - round(zero)
    plain = ((steps * 2).round() / 2 - steps).abs() > 1e-3  # no tie
    plain &= ((steps[:, None] - ends).abs() > 0.51).all(1)  # PyTorch decides after rounding
    values = x[plain].tolist()
    assert len(values) > 100
    found, theirs = [], []
    for function, results in (
        (lambda x, s, z: round_per_tensor(x, s, z, GRID), found),
        (
            lambda x, s, z: torch.ops.aten._fake_quantize_learnable_per_tensor_affine(
                x, s.reshape(1), z.reshape(1), GRID.qmin, GRID.qmax, 1.0
            ),
            theirs,
        ),
    ):
        x = torch.tensor(values, requires_grad=True)
        scale, zero_point = (torch.tensor(v, requires_grad=True) for v in (step, zero))
        y = function(x, scale, zero_point)
        (y * torch.linspace(-1, 2, len(values))).sum().backward()
        results += [y.detach(), x.grad, scale.grad, zero_point.grad]
    for mine, other in zip(found, theirs, strict=True):
        assert mine is not None
        assert torch.allclose(mine, other, rtol=1e-4, atol=1e-3), (found, theirs)


def test_both_functions_agree_where_the_zero_point_is_not_learned():
    generator = torch.Generator().manual_seed(0)
    grid, zero = IntGrid(8, signed=False), torch.tensor(17.0)
    results = []
    for function in (round_through, round_per_tensor):
        x = torch.randn(64, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()
        scale = torch.tensor(0.013, requires_grad=True)
        y = function(x, scale, zero, grid)
        y.backward(torch.randn(y.shape, generator=generator.manual_seed(2)))
        results.append((y, x.grad, scale.grad))
    for mine, other in zip(*results, strict=True):
        assert torch.allclose(mine, other, rtol=1e-4)
