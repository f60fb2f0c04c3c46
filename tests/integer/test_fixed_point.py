"""Fixed-point requantization against exact rational arithmetic."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ptq_course.errors import QuantizationError
from ptq_course.grids.affine import IntGrid, choose_qparams, quantize
from ptq_course.integer.fixed_point import (
    clamp_codes,
    divide_half_even,
    requantize,
    rescale,
    rescale_down,
    rescale_twice,
    rounding_doubling_high_mul,
    to_multiplier,
)

INT32 = st.integers(-(2**31) + 1, 2**31 - 1)
RATIOS = st.floats(-30, 29, allow_nan=False).map(lambda e: 2.0**e)


@given(RATIOS)
def test_multiplier_represents_the_ratio(ratio):
    multiplier, shift = (int(v) for v in to_multiplier(ratio))
    assert 2**30 <= multiplier < 2**31
    assert 1 <= shift <= 62
    assert abs(Fraction(multiplier, 2**shift) / Fraction(ratio) - 1) <= Fraction(1, 2**31)


@given(st.floats(-20, 0).map(lambda e: 2.0**e), st.integers(2, 31))
def test_fewer_bits_cost_precision_and_no_more_than_they_must(ratio, bits):
    multiplier, shift = (int(v) for v in to_multiplier(ratio, bits))
    assert multiplier < 2**bits
    assert abs(Fraction(multiplier, 2**shift) / Fraction(ratio) - 1) <= Fraction(1, 2**bits)


def test_powers_of_two_are_exact():
    for exponent in range(-31, 30):
        multiplier, shift = (int(v) for v in to_multiplier(2.0**exponent))
        assert Fraction(multiplier, 2**shift) == Fraction(2) ** exponent


def test_a_fraction_that_rounds_up_to_one_is_carried():
    multiplier, shift = to_multiplier(1 - 2.0**-40)
    assert (int(multiplier), int(shift)) == (2**30, 30)


def test_a_ratio_for_each_channel():
    multiplier, shift = to_multiplier(torch.tensor([0.5, 0.001, 3.0]))
    assert multiplier.dtype == shift.dtype == torch.int32
    assert (multiplier.double() * 2.0 ** -shift.double()).tolist() == pytest.approx(
        [0.5, 0.001, 3.0], rel=1e-7
    )


def test_ratios_too_small_to_matter_give_zero():
    multiplier, shift = to_multiplier(2.0**-40)
    assert int(rescale(torch.tensor([2**31 - 1], dtype=torch.int32), multiplier, shift)) == 0


def test_large_ratio_with_few_bits():
    multiplier, shift = (int(v) for v in to_multiplier(20.0, 3))
    assert shift >= 1
    assert multiplier / 2**shift == 20


@pytest.mark.parametrize("ratio", [0.0, -1.0, float("nan"), float("inf"), 2.0**30])
def test_impossible_ratios_are_refused(ratio):
    with pytest.raises(QuantizationError, match="scales"):
        to_multiplier(ratio)


def test_bits_outside_are_refused():
    with pytest.raises(QuantizationError, match="bits"):
        to_multiplier(0.5, 32)


@given(st.lists(INT32, min_size=1, max_size=20), st.integers(1, 2**31 - 1), st.integers(1, 62))
def test_rescale_is_exact_rounding_half_to_even(acc, multiplier, shift):
    got = rescale(torch.tensor(acc, dtype=torch.int32), torch.tensor(multiplier), shift)
    assert got.tolist() == [round(Fraction(a * multiplier, 2**shift)) for a in acc]


def test_ties_go_to_even():
    half = to_multiplier(0.5)
    acc = torch.tensor([-5, -3, -1, 1, 3, 5], dtype=torch.int32)
    assert rescale(acc, *half).tolist() == [-2, -2, 0, 0, 2, 2]


def test_the_accumulator_is_left_alone():
    acc = torch.tensor([7, -7], dtype=torch.int32)
    rescale(acc, *to_multiplier(0.3))
    assert acc.tolist() == [7, -7]


@given(st.lists(INT32, min_size=1, max_size=20), RATIOS, st.integers(0, 255), st.integers(2, 8))
def test_requantize_is_one_step_from_float64_at_most(acc, ratio, zero_point, bits):
    grid = IntGrid(bits, signed=False)
    zero_point = min(zero_point, grid.qmax)
    acc = torch.tensor(acc, dtype=torch.int32)
    got = requantize(acc, *to_multiplier(ratio), zero_point, grid)
    expected = (torch.round(acc.double() * ratio) + zero_point).clamp(grid.qmin, grid.qmax)
    assert got.dtype == torch.uint8
    assert (got.double() - expected).abs().max() <= 1


def test_limits_clamp_as_a_relu_does():
    qparams = choose_qparams(-1.0, 7.0, IntGrid(8, signed=True))
    limits = clamp_codes(0.0, 6.0, qparams)
    assert limits == tuple(quantize(torch.tensor([0.0, 6.0]), qparams).tolist())
    acc = torch.arange(-3000, 3000, 7, dtype=torch.int32)
    multiplier, shift = to_multiplier(0.1)
    free = requantize(acc, multiplier, shift, int(qparams.zero_point), qparams.grid)
    fused = requantize(acc, multiplier, shift, int(qparams.zero_point), qparams.grid, limits)
    assert torch.equal(fused, free.clamp(*limits))
    assert clamp_codes(float("-inf"), float("inf"), qparams) == (-128, 127)


@given(st.lists(st.integers(-(2**20), 2**20), min_size=1, max_size=20), st.integers(1, 1000))
def test_division_is_exact(sums, count):
    got = divide_half_even(torch.tensor(sums, dtype=torch.int32), count)
    assert got.tolist() == [round(Fraction(s, count)) for s in sums]


@given(INT32, INT32)
def test_gemmlowp_high_product(a, b):
    got = int(rounding_doubling_high_mul(*(torch.tensor(v, dtype=torch.int32) for v in (a, b))))
    exact = Fraction(a * b, 2**31)
    assert abs(got - exact) <= Fraction(1, 2)


@given(st.integers(-(2**24), 2**24), st.floats(-20, -1).map(lambda e: 2.0**e))
def test_two_roundings_differ_by_a_step_at_most(acc, ratio):
    multiplier, shift = to_multiplier(ratio)
    acc = torch.tensor([acc], dtype=torch.int32)
    once, twice = rescale(acc, multiplier, shift), rescale_twice(acc, multiplier, shift)
    assert (once - twice).abs().max() <= 1


def test_two_roundings_can_turn_a_value_below_the_middle_into_the_next_code():
    """0.4999 rounds to 0; rounded to a half first, and then away from zero, it becomes 1."""
    acc, (multiplier, shift) = torch.tensor([3], dtype=torch.int32), to_multiplier(1 / 6.0000001)
    assert int(rescale(acc, multiplier, shift)) == 0
    assert int(rescale_twice(acc, multiplier, shift)) == 1
    with pytest.raises(QuantizationError, match="ratio"):
        rescale_twice(acc, *to_multiplier(2.0))


@given(st.lists(INT32, min_size=1, max_size=20), RATIOS)
def test_a_bare_shift_rounds_down(acc, ratio):
    multiplier, shift = to_multiplier(ratio)
    got = rescale_down(torch.tensor(acc, dtype=torch.int32), multiplier, shift)
    exact = Fraction(int(multiplier), 2 ** int(shift))
    assert got.tolist() == [math.floor(a * exact) for a in acc]


def test_another_rounding_can_be_tried():
    grid, given_ = IntGrid(8, signed=False), (torch.tensor([7]).int(), *to_multiplier(0.25))
    assert int(requantize(*given_, 3, grid)) == 5
    assert int(requantize(*given_, 3, grid, rounding=rescale_down)) == 4
