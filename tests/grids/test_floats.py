"""Small floats against PyTorch's own float8 types and ml_dtypes', over every half-way point."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ptq_course.errors import QuantizationError
from ptq_course.grids.float_grids import round_by_division
from ptq_course.grids.floats import (
    FP4_E2M1,
    FP8_E4M3,
    FP8_E5M2,
    FloatGrid,
    FloatQParams,
    choose_float_qparams,
    fake_quantize_float,
    mxfp4,
    nvfp4,
    round_to_float,
)

GRIDS = {"e4m3fn": FP8_E4M3, "e5m2": FP8_E5M2, "e2m1fn": FP4_E2M1}


def critical(grid):
    """Every value, every middle of two neighbours, and float32's nearest numbers around both."""
    values = grid.values()
    points = torch.cat([values, (values[1:] + values[:-1]) / 2])
    up = torch.nextafter(points, torch.full_like(points, torch.inf))
    return torch.cat([points, up, torch.nextafter(points, torch.full_like(points, -torch.inf))])


@pytest.mark.parametrize("name", GRIDS)
def test_rounding_is_that_of_ml_dtypes(name):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    kind = getattr(ml_dtypes, f"float{GRIDS[name].bits}_{name}")
    x = torch.cat([critical(GRIDS[name]), torch.randn(20000) * GRIDS[name].largest / 3])
    x = x.clamp(-GRIDS[name].largest, GRIDS[name].largest)  # beyond, formats differ: NaN, infinity
    expected = x.numpy().astype(kind).astype(np.float32)
    found = round_to_float(x, GRIDS[name])
    assert torch.equal(found, torch.from_numpy(expected))
    assert torch.equal(torch.signbit(found), torch.signbit(torch.from_numpy(expected)))


@pytest.mark.parametrize("name", ["e4m3fn", "e5m2"])
def test_rounding_is_that_of_torch(name):
    kind, grid = getattr(torch, f"float8_{name}"), GRIDS[name]
    x = critical(grid).clamp(-grid.largest, grid.largest)
    assert torch.equal(round_to_float(x, grid), x.to(kind).float())
    every = torch.arange(256, dtype=torch.uint8).view(kind).float()
    finite = every[every.isfinite()]
    assert torch.equal(finite.unique(), grid.values()), "all codes, and no value besides them"
    assert torch.equal(round_to_float(finite, grid), finite)


def test_the_known_values():
    assert FP4_E2M1.values().tolist() == [
        -6, -4, -3, -2, -1.5, -1, -0.5, 0, 0.5, 1, 1.5, 2, 3, 4, 6
    ]  # fmt: skip
    assert (FP8_E4M3.smallest, FP8_E5M2.smallest) == (2.0**-9, 2.0**-16)
    assert [g.bits for g in GRIDS.values()] == [8, 8, 4]
    big = torch.tensor([1e30, -torch.inf, 500.0])
    assert round_to_float(big, FP8_E4M3).tolist() == [448.0, -448.0, 448.0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes_and_idempotence(dtype):
    x = torch.randn(100).to(dtype)
    once = round_to_float(x, FP4_E2M1)
    assert once.dtype == dtype
    assert torch.equal(round_to_float(once, FP4_E2M1), once)


@pytest.mark.parametrize(("choose", "block", "bits"), [(mxfp4, 32, 4.25), (nvfp4, 16, 4.5)])
def test_block_formats(choose, block, bits):
    x = torch.randn(6, 4, 64) * torch.logspace(-1, 1, 6).view(6, 1, 1)
    x[0, 0] = 0
    qparams = choose(x)
    found = fake_quantize_float(x, qparams)
    assert qparams.scale.shape == (6, 4, 64 // block)
    assert qparams.nbits_per_value(x.numel()) == pytest.approx(bits, abs=0.05)
    assert torch.equal(found[0, 0], x[0, 0])
    largest = x.unflatten(2, (-1, block)).abs().amax(-1, keepdim=True)
    # half of the widest step (2, between 4 and 6), or what saturates (8 as 6), of at most 2 / 8
    worst = ((found - x).unflatten(2, (-1, block)).abs() / largest.clamp(min=1e-30)).max()
    assert worst <= 0.25 + 1e-6
    if choose is mxfp4:
        mantissa = torch.frexp(qparams.scale).mantissa
        assert set(mantissa.unique().tolist()) == {0.5}, "powers of two"


def test_nvfp4_scales_are_fp8_values_times_one_number():
    x = torch.randn(8, 64)
    qparams = nvfp4(x)
    shared = x.abs().max().double() / (6 * 448)
    stored = (qparams.scale.double() / shared).float()
    torch.testing.assert_close(stored, round_to_float(stored, FP8_E4M3), rtol=1e-6, atol=0)


def test_the_largest_value_of_each_block_stays_and_channels_help():
    x = torch.randn(4, 32) * torch.tensor([[1e-4], [1.0], [30.0], [1e4]])
    by_row = choose_float_qparams(x, FP4_E2M1, (1, -1))
    at = x.abs().argmax(1, keepdim=True)
    found = fake_quantize_float(x, by_row)
    torch.testing.assert_close(found.gather(1, at), x.gather(1, at))
    whole = fake_quantize_float(x, choose_float_qparams(x, FP4_E2M1))
    assert (found - x)[0].norm() < 0.5 * (whole - x)[0].norm()


def test_what_is_refused():
    with pytest.raises(QuantizationError, match="largest"):
        FloatGrid(2, 1, 5.0)
    with pytest.raises(QuantizationError, match="exponent_bits"):
        FloatGrid(0, 1, 5.0)
    for wrong, why in ((torch.tensor([torch.nan]), "NaN"), (torch.ones(2).int(), "int32")):
        with pytest.raises(QuantizationError, match=why):
            round_to_float(wrong, FP8_E4M3)
    with pytest.raises(QuantizationError, match="infinity"):
        mxfp4(torch.full((32,), torch.inf))
    with pytest.raises(QuantizationError, match="divide"):
        mxfp4(torch.ones(4, 33))
    with pytest.raises(QuantizationError, match="empty"):
        nvfp4(torch.empty(0, 16))
    with pytest.raises(QuantizationError, match="none"):
        nvfp4(torch.tensor(1.0))
    with pytest.raises(QuantizationError, match="positive"):
        FloatQParams(torch.tensor(0.0), FP8_E4M3)


SEVERAL = [FP8_E4M3, FP8_E5M2, FP4_E2M1, FloatGrid(5, 10, 65504.0), FloatGrid(8, 7, 2.0**127),
         FloatGrid(7, 0, 4.0)]  # fmt: skip


@pytest.mark.parametrize("grid", SEVERAL)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_rounding_by_addition_is_rounding_by_division(grid, dtype):
    patterns = torch.arange(-(2**15), 2**15).to(torch.int16)
    every = patterns.view(torch.bfloat16).to(dtype)  # all exponents, -0, infinities
    nearby = torch.randn(20_000, dtype=torch.float64) * grid.largest
    values = torch.linspace(-1, 1, 20_001, dtype=torch.float64) * 8 * grid.smallest
    ties = torch.arange(-999, 1000, dtype=torch.float64) * grid.smallest / 2
    x = torch.cat([every[~every.isnan()], *(v.to(dtype) for v in (nearby, values, ties))])
    found, wanted = round_to_float(x, grid), round_by_division(x, grid)
    assert found.dtype == dtype
    assert torch.equal(found, wanted)
    assert torch.equal(found.signbit(), wanted.signbit())


def test_rounding_leaves_its_input_alone_and_keeps_the_graph():
    x = torch.randn(5, 4).t()
    before = x.clone()
    round_to_float(x, FP8_E4M3)
    assert torch.equal(x, before)
    assert round_to_float(torch.ones(1).expand(3), FP4_E2M1).tolist() == [1.0] * 3
    assert round_to_float(torch.empty(0), FP4_E2M1).shape == (0,)
    assert round_to_float(x.requires_grad_(), FP8_E4M3).requires_grad
