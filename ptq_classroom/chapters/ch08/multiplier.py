"""Exercise 08.3: a real number as an integer multiplier and a shift."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ptq_classroom.kit.exercises import Exercise
from ptq_classroom.kit.expect import Failure, expect
from ptq_classroom.kit.values import as_array


def to_multiplier(r: float) -> tuple[int, int]:
    """m of 31 bits and a shift with r = m * 2^-shift, for 0 < r < 1."""
    fraction, exponent = math.frexp(r)  # r = fraction * 2^exponent, 0.5 <= fraction < 1
    m, shift = round(fraction * 2**31), 31 - exponent
    if m == 2**31:  # 0.99999999999 was rounded up to 1
        m, shift = m // 2, shift - 1
    return m, shift


def _ratios() -> Iterator[tuple[str, dict[str, Any]]]:
    yield "a power of two", {"r": 0.25}
    yield "a third", {"r": 1 / 3}
    yield "a typical ratio", {"r": 0.0011835}
    yield "a small ratio", {"r": 3.7e-7}
    yield "just below one", {"r": 1 - 2.0**-40}


CARRY = "a fraction just below 1 rounded up to 2^31: halve m, reduce the shift"
NOT_EXACT = "m is not exact enough: float32 has 24 bits, use Python's float"


def _pair(got: Any, expected: tuple[int, int]) -> tuple[float, float]:
    """m and shift out of two numbers in a tuple, list, array or tensor."""
    try:
        m, shift = (float(v) for v in (got if isinstance(got, tuple | list) else as_array(got)))
    except (ValueError, TypeError, RuntimeError, OverflowError):
        raise Failure(
            "the function should return (m, shift)",
            expected=expected,
            got=got,
            cause="return two numbers, m and shift",
        ) from None
    return m, shift


def _represents(got: Any, expected: tuple[int, int], r: float, **_: Any) -> None:
    def ensure(condition: bool, headline: str, cause: str = "") -> None:
        expect(condition, headline, expected=expected, got=got, cause=cause)

    m, shift = _pair(got, expected)
    ensure(math.isfinite(m) and math.isfinite(shift), "m and shift should be finite numbers")
    unscaled = "m is the fraction itself: multiply it by 2^31 and round"
    rounding = unscaled if abs(m) < 1 else "m was not rounded"
    ensure(m == round(m), "m should be a whole number", rounding)
    ensure(shift == round(shift), "the shift should be a whole number", "count whole doublings")
    ensure(m < 2**31, "m does not fit into int32", CARRY if m == 2**31 and r > 0.99 else "")
    ensure(m >= 2**30, "m gives bits away")
    reasonable = abs(shift) <= 1000  # 2.0**-shift overflows a float beyond
    error = abs(m * 2.0**-shift / r - 1) if reasonable else math.inf
    inexact = 2.0**-30 < error < 2.0**-20
    ensure(error <= 2.0**-30, "m * 2^-shift is not r", NOT_EXACT if inexact else "")


def _fixed_shift(r: float) -> tuple[int, int]:
    return round(r * 2**31), 31


def _sixteen_bit_multiplier(r: float) -> tuple[int, int]:
    fraction, exponent = math.frexp(r)
    return round(fraction * 2**15), 15 - exponent


def _negative_shift(r: float) -> tuple[int, int]:
    m, shift = to_multiplier(r)
    return m, -shift


def _swapped(r: float) -> tuple[int, int]:
    m, shift = to_multiplier(r)
    return shift, m


def _thirty_two_bits(r: float) -> tuple[int, int]:
    fraction, exponent = math.frexp(r)
    return round(fraction * 2**32), 32 - exponent


def _not_carried(r: float) -> tuple[int, int]:
    fraction, exponent = math.frexp(r)
    return round(fraction * 2**31), 31 - exponent


def _not_rounded(r: float) -> tuple[float, int]:
    fraction, exponent = math.frexp(r)
    return fraction * 2**31, 31 - exponent


def _float32_fraction(r: float) -> tuple[int, int]:
    fraction, exponent = torch.frexp(torch.tensor(r))
    return int(torch.round(fraction * 2**31)), 31 - int(exponent)


def _only_m(r: float) -> int:
    return to_multiplier(r)[0]


def _multiplier_tensor(r: float) -> Tensor:
    return torch.tensor(to_multiplier(r))


def _multiplier_loop(r: float) -> tuple[int, int]:
    shift = 0
    while round(r * 2**shift) < 2**30:
        shift += 1
    return round(r * 2**shift), shift


def _multiplier_log(r: float) -> list[int]:
    shift = 30 - math.floor(math.log2(r))
    m = int(r * 2**shift)
    return [m, shift] if m < 2**31 else [m >> 1, shift - 1]


MULTIPLIER = Exercise(
    id="08.3",
    title="A real number as multiplier and shift",
    minutes=7,
    difficulty=3,
    signature="to_multiplier(r)",
    reference=to_multiplier,
    cases=_ratios,
    compare=_represents,
    returns="(m, shift)",
    accepted=(_multiplier_loop, _multiplier_log, _multiplier_tensor),
    diagnoses=(
        (_fixed_shift, "a fixed shift gives bits away when r is small: let the shift grow"),
        (_sixteen_bit_multiplier, "m has 16 bits; an int32 has room for 31"),
        (_negative_shift, "the shift goes to the right: r = m * 2^-shift, shift positive"),
        (_swapped, "m and shift are exchanged"),
        (_thirty_two_bits, "m has 32 bits, and one of int32's belongs to the sign: m < 2^31"),
        (_not_carried, CARRY),
        (_not_rounded, "m was not rounded"),
        (math.frexp, "m is the fraction itself: multiply it by 2^31 and round"),
        (_float32_fraction, NOT_EXACT),
        (_only_m, "return two numbers, m and shift"),
    ),
    hints=(
        (
            "How do I find the shift?",
            "Double r until it lies between 2^30 and 2^31, and count the doublings.",
        ),
        (
            "Python has something for it",
            "math.frexp(r) gives a fraction in [0.5, 1) and an exponent: r = f * 2^e.",
        ),
    ),
)
