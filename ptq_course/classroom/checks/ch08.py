"""Checks of chapter 08: integer products, int32 bias, fixed-point multiplier, integer addition."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ptq_course.affine import IntGrid, QParams, choose_qparams
from ptq_course.classroom.exercises import Exercise
from ptq_course.classroom.expect import expect, expect_close
from ptq_course.integer import operations
from ptq_course.integer.fixed_point import rescale

# 08.1 ------------------------------------------------------------------------------------------


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
    xq = torch.full((1, 1200), 255, dtype=byte)
    yield case("sums beyond 2^24", xq, torch.full((2, 1200), 127, dtype=signed), 0)


def _same_integers(got: Any, expected: Tensor, **_: Any) -> None:
    if isinstance(got, Tensor):
        expect(
            not got.is_floating_point(),
            "the accumulators should be integers",
            got=got.dtype,
            expected=torch.int32,
            cause="the product was computed in floating point",
        )
    expect_close(got, expected, "the accumulators", rtol=0, atol=0)


def _no_zero_point(xq: Tensor, wq: Tensor, zx: int) -> Tensor:
    return xq.int() @ wq.int().T


def _wrapped_difference(xq: Tensor, wq: Tensor, zx: int) -> Tensor:
    return (xq - zx).int() @ wq.int().T


def _wrapped_input(xq: Tensor, wq: Tensor, zx: int) -> Tensor:
    return (xq.to(torch.int8).int() - zx) @ wq.int().T


def _wrong_sign(xq: Tensor, wq: Tensor, zx: int) -> Tensor:
    return xq.int() @ wq.int().T + zx * wq.int().sum(1)


def _one_correction(xq: Tensor, wq: Tensor, zx: int) -> Tensor:
    return xq.int() @ wq.int().T - zx * wq.int().sum()


def _sixteen_bits(xq: Tensor, wq: Tensor, zx: int) -> Tensor:
    exact = (xq.int() - zx) @ wq.int().T
    return exact.to(torch.int16).int()


def _transposed(xq: Tensor, wq: Tensor, zx: int) -> Tensor:
    return wq.int() @ (xq.int() - zx).T


def _through_float(xq: Tensor, wq: Tensor, zx: int) -> Tensor:
    return (xq.float() - zx) @ wq.float().T


def _linear_corrected(xq: Tensor, wq: Tensor, zx: int) -> Tensor:
    return xq.long() @ wq.long().T - zx * wq.long().sum(dim=1)


def _linear_loops(xq: Tensor, wq: Tensor, zx: int) -> Tensor:
    rows = [[sum((x - zx) * w for x, w in zip(a, b, strict=True)) for b in wq.tolist()]
            for a in xq.tolist()]  # fmt: skip
    return torch.tensor(rows, dtype=torch.int32)


# 08.2 ------------------------------------------------------------------------------------------


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


def _same_codes(got: Any, expected: Tensor, **_: Any) -> None:
    expect_close(got, expected, "the bias codes", rtol=0, atol=0)


def _bias_truncated(b: Tensor, sx: float, sw: Tensor) -> Tensor:
    return (b / (sx * sw)).to(torch.int32)


def _bias_input_scale(b: Tensor, sx: float, sw: Tensor) -> Tensor:
    return torch.round(b / sx).to(torch.int32)


def _bias_weight_scale(b: Tensor, sx: float, sw: Tensor) -> Tensor:
    return torch.round(b / sw).to(torch.int32)


def _bias_multiplied(b: Tensor, sx: float, sw: Tensor) -> Tensor:
    return torch.round(b * (sx * sw)).to(torch.int32)


def _bias_int8(b: Tensor, sx: float, sw: Tensor) -> Tensor:
    return torch.round(b / (sx * sw)).clamp(-127, 127).to(torch.int32)


def _bias_int8_wraps(b: Tensor, sx: float, sw: Tensor) -> Tensor:
    return torch.round(b / (sx * sw)).to(torch.int32).to(torch.int8)


def _bias_largest_scale(b: Tensor, sx: float, sw: Tensor) -> Tensor:
    return torch.round(b / (sx * sw.max())).to(torch.int32)


def _bias_float(b: Tensor, sx: float, sw: Tensor) -> Tensor:
    return b / (sx * sw)


def _bias_python(b: Tensor, sx: float, sw: Tensor) -> list[int]:
    return [round(v / (sx * s)) for v, s in zip(b.tolist(), sw.tolist(), strict=True)]


def _bias_numpy(b: Tensor, sx: float, sw: Tensor) -> Any:
    import numpy as np

    return np.rint(b.double().numpy() / sx / sw.double().numpy()).astype(np.int32)


# 08.3 ------------------------------------------------------------------------------------------


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


def _represents(got: Any, expected: tuple[int, int], r: float, **_: Any) -> None:
    expect(
        isinstance(got, tuple | list) and len(got) == 2,
        "the function should return (m, shift)",
        expected=expected,
        got=got,
    )
    try:
        m, shift = (float(v) for v in got)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        m = shift = math.nan
    whole = m.is_integer() and shift.is_integer()  # NaN and infinity are not
    expect(whole, "m and shift should be whole numbers", expected=expected, got=got)
    expect(
        m < 2**31, "m does not fit into int32", expected=expected, got=got,
    )  # fmt: skip
    expect(m >= 2**30, "m gives bits away", expected=expected, got=got)
    error = abs(m * 2.0**-shift / r - 1)
    expect(error <= 2.0**-30, "m * 2^-shift is not r", expected=expected, got=got)


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


def _multiplier_loop(r: float) -> tuple[int, int]:
    shift = 0
    while round(r * 2**shift) < 2**30:
        shift += 1
    return round(r * 2**shift), shift


def _multiplier_log(r: float) -> list[int]:
    shift = 30 - math.floor(math.log2(r))
    m = int(r * 2**shift)
    return [m, shift] if m < 2**31 else [m >> 1, shift - 1]


# 08.4 ------------------------------------------------------------------------------------------


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


def _nearly_same(got: Any, expected: Tensor, **_: Any) -> None:
    expect(isinstance(got, Tensor), "the function should return a tensor", got=got)
    expect(
        got.shape == expected.shape,
        f"the result has shape {list(got.shape)}; {list(expected.shape)} was expected",
        expected=expected,
        got=got,
    )
    expect(bool(got.isfinite().all()), "a code is NaN or infinite", expected=expected, got=got)
    distance = (got.double() - expected.double()).abs()
    share = (distance > 0).double().mean().item()
    if distance.max() > 1 or share > 0.02:
        expect_close(got, expected, "the codes of the sum", rtol=0, atol=0)


def _real_sum(a: Tensor, b: Tensor, qa: QParams, qb: QParams) -> Tensor:
    values = [(c.double() - q.zero_point) * q.scale.double() for c, q in ((a, qa), (b, qb))]
    return values[0] + values[1]


def _to_codes(real: Tensor, qy: QParams) -> Tensor:
    codes = torch.round(real / qy.scale.double()) + qy.zero_point
    return codes.clamp(qy.grid.qmin, qy.grid.qmax).to(qy.grid.dtype)


def _each_rounded(a: Tensor, b: Tensor, qa: QParams, qb: QParams, qy: QParams) -> Tensor:
    parts = [
        torch.round((c.double() - q.zero_point) * q.scale.double() / qy.scale.double())
        for c, q in ((a, qa), (b, qb))
    ]
    return (parts[0] + parts[1] + qy.zero_point).clamp(qy.grid.qmin, qy.grid.qmax).byte()


def _codes_added(a: Tensor, b: Tensor, qa: QParams, qb: QParams, qy: QParams) -> Tensor:
    return (a.int() + b.int()).clamp(qy.grid.qmin, qy.grid.qmax).byte()


def _no_zero_points(a: Tensor, b: Tensor, qa: QParams, qb: QParams, qy: QParams) -> Tensor:
    real = a.double() * qa.scale.double() + b.double() * qb.scale.double()
    return _to_codes(real, qy)


def _one_scale(a: Tensor, b: Tensor, qa: QParams, qb: QParams, qy: QParams) -> Tensor:
    same = QParams(qa.scale, qb.zero_point, qb.grid)
    return _to_codes(_real_sum(a, b, qa, same), qy)


def _output_zero_point(a: Tensor, b: Tensor, qa: QParams, qb: QParams, qy: QParams) -> Tensor:
    codes = torch.round(_real_sum(a, b, qa, qb) / qy.scale.double())
    return codes.clamp(qy.grid.qmin, qy.grid.qmax).byte()


def _wrapping_sum(a: Tensor, b: Tensor, qa: QParams, qb: QParams, qy: QParams) -> Tensor:
    codes = torch.round(_real_sum(a, b, qa, qb) / qy.scale.double()) + qy.zero_point
    return codes.int().to(torch.uint8)


def _sum_truncated(a: Tensor, b: Tensor, qa: QParams, qb: QParams, qy: QParams) -> Tensor:
    codes = torch.floor(_real_sum(a, b, qa, qb) / qy.scale.double()) + qy.zero_point
    return codes.clamp(qy.grid.qmin, qy.grid.qmax).byte()


def _sum_by_course(a: Tensor, b: Tensor, qa: QParams, qb: QParams, qy: QParams) -> Tensor:
    return operations.add_int(a, b, qa, qb, qy)


def _sum_in_64_bits(a: Tensor, b: Tensor, qa: QParams, qb: QParams, qy: QParams) -> Tensor:
    ka, kb = (round(q.scale.item() / qy.scale.item() * 2**32) for q in (qa, qb))
    total = (a.long() - int(qa.zero_point)) * ka + (b.long() - int(qb.zero_point)) * kb
    y = ((total + 2**31) >> 32) + int(qy.zero_point)
    return y.clamp(qy.grid.qmin, qy.grid.qmax).to(torch.uint8)


EXERCISES = [
    Exercise(
        id="08.1",
        title="A linear layer on codes",
        minutes=6,
        difficulty=2,
        signature="int_linear(xq, wq, zx)",
        reference=int_linear,
        cases=_products,
        compare=_same_integers,
        returns="accumulators",
        accepted=(_linear_corrected, _linear_loops),
        diagnoses=(
            (_no_zero_point, "the zero point is missing: a code stands for (code - zx) steps"),
            (_wrapped_difference, "xq - zx wrapped around in 8 bits: widen to int32 first"),
            (_wrapped_input, "uint8 codes above 127 do not fit into int8: widen to int32 instead"),
            (_wrong_sign, "the correction is subtracted: -zx * (sum of the weights)"),
            (_one_correction, "each output has its own correction: sum the weights of its row"),
            (_sixteen_bits, "16 bits are too few for these sums: accumulate in int32"),
            (_transposed, "the result is transposed: one row for each input, [N, O]"),
            (_through_float, "the product was computed in floating point"),
        ),
        hints=(
            ("The numbers are far off", "Widen before subtracting: xq.to(torch.int32) - zx."),
            (
                "Which dimensions are multiplied?",
                "xq is [N, K], wq is [O, K]: transpose the weight, then multiply matrices with @, "
                "which works on int32 tensors.",
            ),
        ),
    ),
    Exercise(
        id="08.2",
        title="The bias in the accumulator's steps",
        minutes=4,
        difficulty=2,
        signature="quantize_bias(b, sx, sw)",
        reference=quantize_bias,
        cases=_biases,
        compare=_same_codes,
        returns="codes",
        accepted=(_bias_python, _bias_numpy),
        diagnoses=(
            (_bias_truncated, "the fraction was cut off: round to the nearest code"),
            (_bias_input_scale, "these are steps of sx: the accumulator counts in sx * sw"),
            (_bias_weight_scale, "these are steps of sw: the accumulator counts in sx * sw"),
            (_bias_multiplied, "multiplied by the scale: divide by it to get codes"),
            (_bias_int8, "clamped to 8 bits: a bias is int32"),
            (_bias_int8_wraps, "stored in 8 bits, where it wrapped around: a bias is int32"),
            (_bias_largest_scale, "one scale for all channels: each channel has its own sw"),
            (_bias_float, "the result was never rounded"),
        ),
        hints=(
            (
                "What is one step of the accumulator worth?",
                "It adds up (input code) * (weight code), and those stand for sx and sw.",
            ),
            (
                "My codes look like the bias itself, or like zeros",
                "Divide by the step, which is small: b / (sx * sw). Then round and convert.",
            ),
        ),
    ),
    Exercise(
        id="08.3",
        title="A real number as multiplier and shift",
        minutes=7,
        difficulty=3,
        signature="to_multiplier(r)",
        reference=to_multiplier,
        cases=_ratios,
        compare=_represents,
        returns="(m, shift)",
        accepted=(_multiplier_loop, _multiplier_log),
        diagnoses=(
            (_fixed_shift, "a fixed shift gives bits away when r is small: let the shift grow"),
            (_sixteen_bit_multiplier, "m has 16 bits; an int32 has room for 31"),
            (_negative_shift, "the shift goes to the right: r = m * 2^-shift, shift positive"),
            (_swapped, "m and shift are exchanged"),
            (_thirty_two_bits, "m has 32 bits, and one of int32's belongs to the sign: m < 2^31"),
            (_not_carried, "a fraction just below 1 rounded up to 2^31: halve m, reduce the shift"),
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
    ),
    Exercise(
        id="08.4",
        title="Adding codes of two scales",
        minutes=9,
        difficulty=4,
        signature="add_int(a, b, qa, qb, qy)",
        reference=add_int,
        cases=_sums,
        compare=_nearly_same,
        returns="codes",
        accepted=(_sum_by_course, _sum_in_64_bits),
        diagnoses=(
            (
                _each_rounded,
                "each input was rounded to an output step before adding: keep fractions",
            ),
            (_codes_added, "codes of different scales cannot be added"),
            (_no_zero_points, "the zero points of the inputs are missing"),
            (_one_scale, "both inputs were taken to have the scale of a"),
            (_output_zero_point, "the zero point of the output is missing"),
            (_wrapping_sum, "sums beyond the grid wrapped around: clamp before the cast"),
            (_sum_truncated, "the fraction was cut off: round to the nearest code"),
        ),
        hints=(
            (
                "I get many codes that are one step off",
                "Shift the differences left by 20 bits before you bring them to a common scale. "
                "Rounding then costs a millionth of a step.",
            ),
            (
                "Which scale is common?",
                "The larger of the two: the other one's ratio is then below 1.",
            ),
        ),
    ),
]
