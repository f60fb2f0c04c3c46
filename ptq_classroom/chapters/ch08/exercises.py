"""Checks of chapter 08: integer products, int32 bias, fixed-point multiplier, integer addition."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ptq_classroom.kit.cheapest import (
    HINTS,
    WRONG_CHOICES,
    by_standard_error,
    first_that_fits,
    limit_cases,
)
from ptq_classroom.kit.decisions import (
    WRONG_INTERVALS,
    Scores,
    cheapest_within,
    defended,
    interval,
    same_decision,
    unpaired,  # noqa: F401 (of a wrong answer)
)
from ptq_classroom.kit.exercises import Exercise
from ptq_classroom.kit.expect import Failure, expect, expect_close, several
from ptq_classroom.kit.values import as_array, same
from ptq_course.grids.affine import IntGrid, QParams, choose_qparams
from ptq_course.integer import operations
from ptq_course.integer.fixed_point import rescale


def _expect_whole(got: Any, where: str, cause: str) -> None:
    """No tensor or array of a floating-point type; plain Python numbers are never complained of."""
    floating = isinstance(got, Tensor | np.ndarray | np.generic) and as_array(got).dtype.kind == "f"
    dtype = getattr(got, "dtype", None)
    said = f"{where} should be integers"
    expect(not floating, said, expected=torch.int32, got=dtype, cause=cause)


# 08.1 --------------------------------------------------------------------------------------------


def int_linear(xq: Tensor, wq: Tensor, zx: int) -> Tensor:
    """int32 [N, O]: sum over k of (xq - zx) * wq."""
    differences = xq.to(torch.int32) - zx
    return differences @ wq.to(torch.int32).T


def _products() -> Iterator[tuple[str, dict[str, Any]]]:
    generator = torch.Generator().manual_seed(801)

    def codes(shape: tuple[int, ...], low: int, high: int, dtype: torch.dtype) -> Tensor:
        return torch.randint(low, high + 1, shape, generator=generator).to(dtype)

    def case(label: str, xq: Any, wq: Any, zx: int) -> tuple[str, dict[str, Any]]:
        return label, {"xq": xq, "wq": wq, "zx": zx}

    byte, signed = torch.uint8, torch.int8
    xq, wq = torch.tensor([[4, 6, 5]], dtype=byte), torch.tensor([[1, -2, 3]], dtype=signed)
    yield case("three products, zero point 5", xq, wq, 5)
    xq, wq = codes((2, 4), 0, 30, byte), codes((3, 4), -9, 9, signed)
    yield case("three outputs, zero point 0", xq, wq, 0)
    xq, wq = codes((2, 40), 0, 255, byte), codes((3, 40), -127, 127, signed)
    yield case("the full range of uint8", xq, wq, 131)
    xq, wq = codes((3, 300), -128, 127, signed), codes((2, 300), -127, 127, signed)
    yield case("int8 codes, 300 products", xq, wq, -40)
    xq = torch.full((1, 1201), 255, dtype=byte)  # an odd sum, which float32 cannot hold
    yield case("sums beyond 2^24", xq, torch.full((2, 1201), 127, dtype=signed), 0)


def _same_integers(got: Any, expected: Tensor, **_: Any) -> None:
    _expect_whole(got, "the accumulators", "the product was computed in floating point")
    expect_close(got, expected, "the accumulators", rtol=0, atol=0)


def _linear_corrected(xq: Tensor, wq: Tensor, zx: int) -> Tensor:
    return xq.long() @ wq.long().T - zx * wq.long().sum(dim=1)


def _linear_loops(xq: Tensor, wq: Tensor, zx: int) -> Tensor:
    rows = [[sum((x - zx) * w for x, w in zip(a, b, strict=True)) for b in wq.tolist()]
            for a in xq.tolist()]  # fmt: skip
    return torch.tensor(rows, dtype=torch.int32)


INT_LINEAR = Exercise(
    id="08.1", title="A linear layer on codes", minutes=6, difficulty=2,
    signature="int_linear(xq, wq, zx)", reference=int_linear, cases=_products,
    compare=_same_integers, returns="accumulators",
    accepted=(_linear_corrected, _linear_loops),
    diagnoses=(
        ("- zx =>", "the zero point is missing: a code stands for (code - zx) steps"),
        ("xq.to(torch.int32) - zx => (xq - zx).to(torch.int32)",
         "xq - zx wrapped around in 8 bits: widen to int32 first"),
        ("xq.to(torch.int32) => xq.to(torch.int8).int()",
         "uint8 codes above 127 do not fit into int8: widen to int32 instead"),
        ("- zx => + zx", "the correction is subtracted: -zx * (sum of the weights)"),
        ("differences @ wq.to(torch.int32).T => xq.int() @ wq.int().T - zx * wq.int().sum()",
         "each output has its own correction: sum the weights of its row"),
        ("differences @ wq.to(torch.int32).T => xq.int() @ wq.int().T - zx * xq.shape[1]",
         "zx * K is the correction only where every weight is 1: sum them"),
        ("differences @ wq.to(torch.int32).T => xq.int() @ wq.int().T - zx",
         "zx was subtracted once from the sum: each of its products has it, times a weight"),
        ("- zx =>",
         "wq.to(torch.int32).T => (wq.to(torch.int32) - zx).T",
         "zx is the zero point of xq, and was subtracted from wq"),
        ("differences @ wq.to(torch.int32).T => (differences @ "
         "wq.to(torch.int32).T).short().int()",
         "16 bits are too few for these sums: accumulate in int32"),
        ("differences @ wq.to(torch.int32).T => (differences @ "
         "wq.to(torch.int32).T).clamp(-32768, 32767)",
         "the sums were held at 16 bits: accumulate in int32"),
        ("wq.to(torch.int32).T => (wq.to(torch.int32) - zx).T",
         "zx is the zero point of xq alone: the weights' own is 0"),
        ("wq.to(torch.int32).T => wq.to(torch.int32).reshape(xq.shape[1], -1)",
         "reshape does not transpose: it fills rows in the order of memory, use wq.T"),
        ("xq.to(torch.int32) - zx => (xq.to(torch.int32) - zx).clamp(-128, 127)",
         "the differences were held at 8 bits: uint8 less its zero point needs nine"),
        ("differences @ wq.to(torch.int32).T => (differences @ wq.to(torch.int32).T).clamp(min=0)",
         "negative sums became 0: that is a ReLU, which comes after the bias"),
        ("differences @ wq.to(torch.int32).T => wq.to(torch.int32) @ differences.T",
         "the result is transposed: one row for each input, [N, O]"),
        ("xq.to(torch.int32) => xq.float()",
         "wq.to(torch.int32) => wq.float()",
         "the product was computed in floating point"),
    ),
    hints=(
        ("The numbers are far off", "Widen before subtracting: xq.to(torch.int32) - zx."),
        ("Which dimensions are multiplied?",
         "xq is [N, K], wq is [O, K]: transpose the weight, then multiply matrices with @, which "
         "works on int32 tensors."),
    ),
)  # fmt: skip


# 08.2 --------------------------------------------------------------------------------------------


def quantize_bias(b: Tensor, sx: float, sw: Tensor) -> Tensor:
    """int32 codes [O] of a bias, in steps of sx * sw."""
    return torch.round(b / (sx * sw)).to(torch.int32)


def _biases() -> Iterator[tuple[str, dict[str, Any]]]:
    def case(label: str, b: list[float], sx: float, sw: list[float]) -> tuple[str, dict[str, Any]]:
        return label, {"b": torch.tensor(b), "sx": sx, "sw": torch.tensor(sw)}

    yield case("one scale for all", [1.0, -0.5, 0.26], 0.5, [0.25, 0.25, 0.25])
    yield case("a scale for each channel", [1.0, 1.0, -1.0], 0.03, [0.002, 0.004, 0.008])
    yield case("large codes", [3.0, -2.0, 0.7], 0.01, [0.001, 0.0003, 0.002])
    yield case("values that round up", [0.57, -0.38], 0.1, [1.0, 1.0])
    yield case("codes beyond 24 bits", [40.0, -24.0, 1.5], 2.0**-10, [2.0**-14] * 3)
    yield case("halfway between two codes", [0.0625, 0.1875, -0.0625, -0.1875], 0.5, [0.25] * 4)


def _same_codes(got: Any, expected: Tensor, **_: Any) -> None:
    expect_close(got, expected, "the bias codes", rtol=0, atol=0)
    _expect_whole(got, "the bias codes", "rounded, but still floating point: convert to int32")


def _bias_python(b: Tensor, sx: float, sw: Tensor) -> list[int]:
    return [round(v / (sx * s)) for v, s in zip(b.tolist(), sw.tolist(), strict=True)]


def _bias_numpy(b: Tensor, sx: float, sw: Tensor) -> Any:
    return np.rint(b.double().numpy() / sx / sw.double().numpy()).astype(np.int32)


QUANTIZE_BIAS = Exercise(
    id="08.2", title="The bias in the accumulator's steps", minutes=4, difficulty=2,
    signature="quantize_bias(b, sx, sw)", reference=quantize_bias, cases=_biases,
    compare=_same_codes, returns="codes",
    accepted=(_bias_python, _bias_numpy),
    diagnoses=(
        ("torch.round(b / (sx * sw)) => (b / (sx * sw))",
         "the fraction was cut off: round to the nearest code"),
        ("(sx * sw) => sx", "these are steps of sx: the accumulator counts in sx * sw"),
        ("(sx * sw) => sw", "these are steps of sw: the accumulator counts in sx * sw"),
        ("b / (sx * sw) => b * (sx * sw)", "multiplied by the scale: divide by it to get codes"),
        (".to(torch.int32) => .clamp(-127, 127).to(torch.int32)",
         "clamped to 8 bits: a bias is int32"),
        (".to(torch.int32) => .clamp(-128, 127).to(torch.int32)",
         "clamped to the range of int8: a bias is int32"),
        ("torch.round(b / (sx * sw)) => torch.floor(b / (sx * sw) + 0.5)",
         "halfway codes went up: torch.round takes the even neighbour"),
        (".to(torch.int32) => .to(torch.int32).to(torch.int8)",
         "stored in 8 bits, where it wrapped around: a bias is int32"),
        ("torch.round(b / (sx * sw)) => torch.floor(b / (sx * sw))",
         "floor instead of round: every code went down"),
        ("torch.round(b / (sx * sw)) => torch.ceil(b / (sx * sw))",
         "ceil instead of round: every code went up"),
        ("torch.round(b / (sx * sw)) => (b / (sx * sw) + 0.5)",
         "adding 0.5 and cutting off rounds positive values only: use torch.round"),
        ("torch.round(b / (sx * sw)) => (b.sign() * torch.floor(b.abs() / (sx * sw) + 0.5))",
         "halfway codes went away from zero: torch.round takes the even neighbour"),
        (".to(torch.int32) => .to(torch.int16)",
         "stored in 16 bits, where it wrapped around: a bias is int32"),
        (".to(torch.int32) => .clamp(-32768, 32767).to(torch.int32)",
         "clamped to 16 bits: a bias is int32"),
        (".to(torch.int32) => .clamp(-(2**23), 2**23 - 1).to(torch.int32)",
         "clamped to 24 bits: a bias is int32"),
        ("torch.round(b / (sx * sw)) => torch.round(torch.round(b / sx) / sw)",
         "rounded twice, the first time in steps of sx: divide by sx * sw, then round once"),
        ("torch.round(b / (sx * sw)).to(torch.int32) => torch.round(b / (sx * sw)) * sx * sw",
         "these are the decoded values: the codes are asked for"),
        ("sw) => sw.max())", "one scale for all channels: each channel has its own sw"),
        ("torch.round(b / (sx * sw)).to(torch.int32) => b / (sx * sw)",
         "the result was never rounded"),
        (".to(torch.int32) =>", "rounded, but still floating point: convert to int32"),
    ),
    hints=(
        ("What is one step of the accumulator worth?",
         "It adds up (input code) * (weight code), and those stand for sx and sw."),
        ("My codes look like the bias itself, or like zeros",
         "Divide by the step, which is small: b / (sx * sw). Then round and convert."),
    ),
)  # fmt: skip


# 08.3 --------------------------------------------------------------------------------------------


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
    yield "seven tenths", {"r": 0.7}
    yield "just below one", {"r": 1 - 2.0**-40}
    yield "just below a half", {"r": 0.5 - 2.0**-42}
    yield "near one, where nothing is carried", {"r": 0.9999}
    yield "a tiny ratio", {"r": 3.1e-13}


CARRY = "a fraction just below 1 rounded up to 2^31: halve m, reduce the shift"
NOT_EXACT = "m is not exact enough: float32 has 24 bits, use Python's float"


def _pair(got: Any, expected: tuple[int, int]) -> tuple[float, float]:
    """m and shift out of two numbers in a tuple, list, array or tensor."""
    try:
        m, shift = (float(as_array(v)) for v in several(got, 2) or ())
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
    ensure(abs(m - r * 2.0**shift) <= 0.5, "m is not the nearest whole number")


def _multiplier_tensor(r: float) -> Tensor:
    return torch.tensor(to_multiplier(r))


def _multiplier_loop(r: float) -> tuple[int, int]:
    shift = 0
    while round(r * 2**shift) < 2**30:
        shift += 1
    return round(r * 2**shift), shift


def _multiplier_log(r: float) -> list[int]:
    shift = 30 - math.floor(math.log2(r))
    m = round(r * 2**shift)
    return [m, shift] if m < 2**31 else [m >> 1, shift - 1]


TO_MULTIPLIER = Exercise(
    id="08.3", title="A real number as multiplier and shift", minutes=7, difficulty=3,
    signature="to_multiplier(r)", reference=to_multiplier, cases=_ratios, compare=_represents,
    returns="(m, shift)",
    agree=functools.partial(same, rtol=0),
    accepted=(_multiplier_loop, _multiplier_log, _multiplier_tensor),
    diagnoses=(
        ("round(fraction * 2**31), 31 - exponent => round(r * 2**31), 31",
         "a fixed shift gives bits away when r is small: let the shift grow"),
        ("round(fraction * 2**31), 31 - exponent => round(fraction * 2**15), 15 - exponent",
         "m has 16 bits; an int32 has room for 31"),
        ("round(fraction * 2**31) => int(fraction * 2**31)",
         "the fraction was cut off: round m to the nearest whole number"),
        ("m // 2, shift - 1 => 2**31 - 1, shift",
         "held at 2^31 - 1, which is not the nearest: halve 2^31, reduce the shift"),
        ("31 - exponent => 30 - exponent", "the shift is one too small: m * 2^-shift is 2 r"),
        ("31 - exponent => 32 - exponent", "the shift is one too large: m * 2^-shift is r / 2"),
        ("return m, shift => return m, -exponent",
         "the shift is frexp's exponent: m has 31 bits more than the fraction, so 31 - exponent"),
        ("return m, shift => return m, -shift",
         "the shift goes to the right: r = m * 2^-shift, shift positive"),
        ("return m, shift => return shift, m", "m and shift are exchanged"),
        ("round(fraction * 2**31), 31 - exponent => round(fraction * 2**32), 32 - exponent",
         "m has 32 bits, and one of int32's belongs to the sign: m < 2^31"),
        ("if m == 2**31: => if False:", CARRY),
        ("if m == 2**31: => if r > 1 - 2**-32:",
         "carried next to 1 only: just below every power of two m rounds up to 2^31"),
        ("return m, shift => return (2**30, 30) if r > 0.999 else (m, shift)",
         "a ratio near 1 was taken for 1: that holds only where m rounds up to 2^31"),
        ("m // 2, shift - 1 => m // 2, shift + 1",
         "the halved m needs one halving less afterwards: the shift goes down, not up"),
        ("m // 2, shift - 1 => m // 2, shift",
         "m was halved and the shift kept: then m * 2^-shift is r / 2"),
        ("return m, shift => return (m, shift) if shift < 63 else (round(r * 2**62), 62)",
         "the shift ended at 62, before m had its 31 bits: a tiny r needs more"),
        ("round(fraction * 2**31) => math.ceil(fraction * 2**31)",
         "m went up to the next whole number: round it to the nearest"),
        ("round(fraction * 2**31), 31 - exponent => round(fraction * 2**30), 30 - exponent",
         "m has 30 bits and may have 31: it is at least 2^30"),
        ("round(fraction * 2**31) => fraction * 2**31", "m was not rounded"),
        ("return m, shift => return fraction, exponent",
         "m is the fraction itself: multiply it by 2^31 and round"),
        ("math.frexp(r) => math.frexp(np.float32(r).item())", NOT_EXACT),
        ("return m, shift => return m", "return two numbers, m and shift"),
    ),
    hints=(
        ("How do I find the shift?",
         "Double r until it lies between 2^30 and 2^31, and count the doublings."),
        ("Python has something for it",
         "math.frexp(r) gives a fraction in [0.5, 1) and an exponent: r = f * 2^e."),
    ),
)  # fmt: skip


# 08.4 --------------------------------------------------------------------------------------------


def add_int(a: Tensor, b: Tensor, qa: QParams, qb: QParams, qy: QParams) -> Tensor:
    """Codes of a + b on the grid of qy."""
    unit = max(qa.scale.item(), qb.scale.item())
    total = 0
    for codes, q in ((a, qa), (b, qb)):
        m, shift = to_multiplier(q.scale.item() / unit / 2)  # half of it stays below 1
        shifted = (codes.int() - int(q.zero_point)) << 20
        total = total + rescale(shifted, m, shift).int()
    m, shift = to_multiplier(unit * 2 / 2**20 / qy.scale.item())
    y = rescale(total, m, shift) + int(qy.zero_point)
    return y.clamp(qy.grid.qmin, qy.grid.qmax).to(qy.grid.dtype)


def _sums() -> Iterator[tuple[str, dict[str, Any]]]:
    grid = IntGrid(8, signed=False)
    generator = torch.Generator().manual_seed(804)

    def case(label: str, *ranges: tuple[float, float]) -> tuple[str, dict[str, Any]]:
        a, b = (torch.randint(0, 256, (300,), generator=generator).byte() for _ in range(2))
        qa, qb, qy = (choose_qparams(*r, grid) for r in ranges)
        return label, {"a": a, "b": b, "qa": qa, "qb": qb, "qy": qy}

    yield case("zero points 0, different scales", (0, 1.0), (0, 1.7), (0, 2.8))
    yield case("zero points in the middle", (-1.0, 2.0), (-0.7, 0.5), (-1.9, 2.6))
    yield case("sums beyond the output's range", (0, 3.0), (-2.0, 2.5), (-1.0, 2.3))
    yield case("scales far apart", (0, 10.0), (-0.3, 0.3), (0, 10.5))
    label, given = case("four dimensions, a result of 7 bits", (-1, 2.0), (-0.7, 0.5), (-1, 2.0))
    a, b = (given[name].reshape(2, 3, 5, 10) for name in "ab")
    seven = choose_qparams(-1.2, 1.9, IntGrid(7, signed=False))
    yield label, {**given, "a": a, "b": b, "qy": seven}
    label, given = case("large inputs that nearly cancel", (0, 8.0), (-8.317, 0), (-0.0973, 0.1011))
    codes = torch.arange(256.0, dtype=torch.float64)
    a, b = codes.repeat_interleave(256), codes.repeat(256)
    sums = (a * given["qa"].scale) + (b - given["qb"].zero_point) * given["qb"].scale
    near = torch.nonzero(sums.abs() < 0.1).flatten()[:300]
    yield label, {**given, "a": a[near].byte(), "b": b[near].byte()}


def _nearly_same(got: Any, expected: Tensor, **_: Any) -> None:
    try:
        found = as_array(got).astype(np.float64)
    except (ValueError, TypeError):
        found = np.empty(0)
    wanted = expected.double().numpy()
    if found.shape == wanted.shape and np.isfinite(found).all():
        distance = np.abs(found - wanted)
        if distance.max() <= 1 and (distance > 0).mean() <= 0.02:
            return
    expect_close(got, expected, "the codes of the sum", rtol=0, atol=0)


def _sum_as_list(a: Tensor, b: Tensor, qa: QParams, qb: QParams, qy: QParams) -> list[int]:
    return operations.add_int(a, b, qa, qb, qy).tolist()


def _sum_numpy(a: Tensor, b: Tensor, qa: QParams, qb: QParams, qy: QParams) -> np.ndarray:
    return operations.add_int(a, b, qa, qb, qy).int().numpy()


def _sum_by_course(a: Tensor, b: Tensor, qa: QParams, qb: QParams, qy: QParams) -> Tensor:
    return operations.add_int(a, b, qa, qb, qy)


def _sum_in_64_bits(a: Tensor, b: Tensor, qa: QParams, qb: QParams, qy: QParams) -> Tensor:
    ka, kb = (round(q.scale.item() / qy.scale.item() * 2**32) for q in (qa, qb))
    total = (a.long() - int(qa.zero_point)) * ka + (b.long() - int(qb.zero_point)) * kb
    y = ((total + 2**31) >> 32) + int(qy.zero_point)
    return y.clamp(qy.grid.qmin, qy.grid.qmax).to(torch.uint8)


ADD_INT = Exercise(
    id="08.4", title="Adding codes of two scales", minutes=9, difficulty=4,
    signature="add_int(a, b, qa, qb, qy)", reference=add_int, cases=_sums, compare=_nearly_same,
    returns="codes",
    accepted=(_sum_by_course, _sum_in_64_bits, _sum_as_list, _sum_numpy),
    diagnoses=(
        ("to_multiplier(q.scale.item() / unit / 2) => to_multiplier(q.scale.item() / 2**20 / "
         "qy.scale.item())",
         "rescale(total, m, shift) => total",
         "each input was rounded to an output step before adding: keep fractions"),
        ("return y.clamp => return (a.int() + b.int()).clamp",
         "codes of different scales cannot be added"),
        ("codes.int() - int(q.zero_point) => codes.int()",
         "the zero points of the inputs are missing"),
        ("q.scale.item() / unit => qa.scale.item() / unit",
         "both inputs were taken to have the scale of a"),
        ("+ int(qy.zero_point) =>", "the zero point of the output is missing"),
        ("y.clamp(qy.grid.qmin, qy.grid.qmax) => y",
         "sums beyond the grid wrapped around: clamp before the cast"),
        ("rescale(total, m, shift) => (total.long() * m >> shift)",
         "the fraction was cut off: round to the nearest code"),
        ("/ 2**20 =>", "the 20 bits were never taken off again: divide by 2^20"),
        ("<< 20 => << 24",
         "2**20 => 2**24",
         "a code shifted left by 24 bits leaves int32: 20 bits are enough"),
        ("<< 20 => << 8", "2**20 => 2**8",
         "8 bits of fraction are too few where the output's step is fine: shift left by 20"),
        ("return y.clamp => return (a.int() - int(qa.zero_point) + b.int() - int(qb.zero_point) "
         "+ int(qy.zero_point)).clamp",
         "the scales were left out: codes of different scales cannot be added, even without "
         "their zero points"),
        ("codes.int() - int(q.zero_point) => (codes - int(q.zero_point)).int()",
         "a code minus its zero point wrapped around in uint8: widen to int32 first"),
        ("y.clamp(qy.grid.qmin, qy.grid.qmax) => y.clamp(0, 255)",
         "clamped to 0 ... 255: the result's grid has its own ends, qy.grid.qmin and qy.grid.qmax"),
        ("y.clamp(qy.grid.qmin, qy.grid.qmax).to(qy.grid.dtype) => y.clamp(-128, 127)",
         "clamped to the ends of int8: those of the result's grid are asked for"),
        ("+ int(qy.zero_point) => - int(qy.zero_point)",
         "the zero point of the result is added, not subtracted"),
        ("q.scale.item() / unit / 2 => 1 / 2",
         "both inputs were taken to have the larger scale: bring each to the common one first"),
        ("<< 20 => << 4", "2**20 => 2**4",
         "4 bits of fraction are too few where the output's step is fine: shift left by 20"),
        ("/ 2**20 / qy.scale.item() => / 2**20",
         "the scale of the result is missing: divide by the step of qy"),
        ("unit = max( => unit = min(",
         "the smaller step is common here, and the other's codes leave int32"),
        ("y.clamp(qy.grid.qmin, qy.grid.qmax) => y",
         "rescale(total, m, shift) => rescale(total, m, shift).clamp(qy.grid.qmin, qy.grid.qmax)",
         "clamped before the zero point was added: clamp the final code"),
        ("y.clamp(qy.grid.qmin, qy.grid.qmax).to(qy.grid.dtype) => y",
         "sums beyond the grid were not clamped"),
    ),
    hints=(
        ("I get many codes that are one step off",
         "Shift the differences left by 20 bits before you bring them to a common scale. "
         "Rounding then costs a millionth of a step."),
        ("Which scale is common?", "The larger of the two: the other one's ratio is then below 1."),
    ),
)  # fmt: skip


# 08.5 ------------------------------------------------------------------------------------------


def choose_rounding(scores: Scores, baseline: str) -> tuple[str, float, float]:
    """The cheapest rounding that surely loses at most one point, with its interval."""
    limit = 0.01
    for choice in scores:
        low, high = interval(scores[baseline], scores[choice])
        if low >= -limit:
            return choice, low, high
    raise ValueError("the baseline is one of the options")


CHOOSE_ROUNDING = Exercise(
    id="08.5", title="Choose how the hardware rounds", minutes=7, difficulty=3,
    signature="choose_rounding(scores, baseline)", reference=choose_rounding,
    cases=functools.partial(limit_cases, ("shift only", "twice", "once, to nearest"), 0.01, 850),
    compare=functools.partial(defended, objection=cheapest_within(0.01)), agree=same_decision,
    accepted=(first_that_fits(0.01), by_standard_error(0.01)),
    diagnoses=(*WRONG_INTERVALS, *WRONG_CHOICES), hints=HINTS,
)  # fmt: skip


EXERCISES = [INT_LINEAR, QUANTIZE_BIAS, TO_MULTIPLIER, ADD_INT, CHOOSE_ROUNDING]
