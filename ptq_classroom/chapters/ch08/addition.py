"""Exercise 08.4: codes of two scales added with integers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ptq_classroom.chapters.ch08.multiplier import to_multiplier
from ptq_classroom.kit.exercises import Exercise
from ptq_classroom.kit.expect import expect_close
from ptq_classroom.kit.values import as_array
from ptq_course.grids.affine import IntGrid, QParams, choose_qparams
from ptq_course.integer import fixed_point, operations
from ptq_course.integer.fixed_point import rescale


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


def _fixed_point_sum(
    a: Tensor, b: Tensor, qa: QParams, qb: QParams, qy: QParams,
    left: int = 20, back: int = 20, unit: Any = max,
) -> Tensor:  # fmt: skip
    """The reference with one of its three choices made otherwise."""
    common = unit(qa.scale.item(), qb.scale.item())
    total = 0
    for codes, q in ((a, qa), (b, qb)):
        m, shift = fixed_point.to_multiplier(q.scale.item() / common)
        total = total + rescale((codes.int() - int(q.zero_point)) << left, m, shift).int()
    m, shift = fixed_point.to_multiplier(common / 2**back / qy.scale.item())
    y = rescale(total, m, shift) + int(qy.zero_point)
    return y.clamp(qy.grid.qmin, qy.grid.qmax).to(qy.grid.dtype)


def _not_shifted_back(a: Tensor, b: Tensor, qa: QParams, qb: QParams, qy: QParams) -> Tensor:
    return _fixed_point_sum(a, b, qa, qb, qy, back=0)


def _shifted_too_far(a: Tensor, b: Tensor, qa: QParams, qb: QParams, qy: QParams) -> Tensor:
    return _fixed_point_sum(a, b, qa, qb, qy, left=24, back=24)


def _smaller_unit(a: Tensor, b: Tensor, qa: QParams, qb: QParams, qy: QParams) -> Tensor:
    return _fixed_point_sum(a, b, qa, qb, qy, unit=min)


def _clamped_too_early(a: Tensor, b: Tensor, qa: QParams, qb: QParams, qy: QParams) -> Tensor:
    codes = torch.round(_real_sum(a, b, qa, qb) / qy.scale.double())
    return (codes.clamp(qy.grid.qmin, qy.grid.qmax) + qy.zero_point).int().to(torch.uint8)


def _never_clamped(a: Tensor, b: Tensor, qa: QParams, qb: QParams, qy: QParams) -> Tensor:
    return (torch.round(_real_sum(a, b, qa, qb) / qy.scale.double()) + qy.zero_point).int()


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


ADDITION = Exercise(
    id="08.4",
    title="Adding codes of two scales",
    minutes=9,
    difficulty=4,
    signature="add_int(a, b, qa, qb, qy)",
    reference=add_int,
    cases=_sums,
    compare=_nearly_same,
    returns="codes",
    accepted=(_sum_by_course, _sum_in_64_bits, _sum_as_list, _sum_numpy),
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
        (_not_shifted_back, "the 20 bits were never taken off again: divide by 2^20"),
        (_shifted_too_far, "a code shifted left by 24 bits leaves int32: 20 bits are enough"),
        (_smaller_unit, "the smaller step is common here, and the other's codes leave int32"),
        (_clamped_too_early, "clamped before the zero point was added: clamp the final code"),
        (_never_clamped, "sums beyond the grid were not clamped"),
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
)
