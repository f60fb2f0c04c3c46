"""Checks of chapter 01: scale and zero point by hand, and quantization itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ptq_classroom.kit.decisions import (
    WRONG_INTERVALS,
    Scores,
    cheapest_within,
    defended,
    interval,
    made_scores,
    same_decision,
    unpaired,  # noqa: F401  (a wrong answer's)
)
from ptq_classroom.kit.exercises import Exercise
from ptq_classroom.kit.expect import expect, expect_close, expect_dtype, expect_integers, several
from ptq_course.grids.affine import IntGrid
from ptq_course.grids.metrics import paired_bootstrap

U8, S8, N8 = IntGrid(8, signed=False), IntGrid(8), IntGrid(8, narrow=True)
U4, S4 = IntGrid(4, signed=False), IntGrid(4)


# 01.1 ------------------------------------------------------------------------------------------


def qparams(lo: float, hi: float, grid: IntGrid) -> tuple[float, int]:
    """Affine scale and zero point of [lo, hi], widened to contain 0."""
    lo, hi = min(lo, 0.0), max(hi, 0.0)
    if lo == hi:
        return 1.0, 0
    scale = (hi - lo) / (grid.qmax - grid.qmin)
    return scale, round(grid.qmin - lo / scale)


def _ranges() -> Iterator[tuple[str, dict[str, Any]]]:
    yield "a range around zero, 8 bits unsigned", {"lo": -1.0, "hi": 3.0, "grid": U8}
    yield "a range around zero, 4 bits signed", {"lo": -1.1, "hi": 2.6, "grid": S4}
    yield "after a ReLU", {"lo": 0.0, "hi": 6.0, "grid": U8}
    yield "after a ReLU, signed codes", {"lo": 0.0, "hi": 6.0, "grid": S8}
    yield "a range that leaves out zero, above", {"lo": 2.0, "hi": 6.0, "grid": U8}
    yield "a range that leaves out zero, below", {"lo": -4.0, "hi": -1.0, "grid": U4}
    yield "a narrow grid", {"lo": -1.1, "hi": 2.6, "grid": N8}
    yield "a single value, above zero", {"lo": 3.0, "hi": 3.0, "grid": U8}
    yield "a single value, below zero", {"lo": -2.0, "hi": -2.0, "grid": S8}
    rng = np.random.default_rng(101)
    for grid in (U8, S8, U4, S4):
        lo, hi = sorted(round(float(v), 2) for v in rng.uniform(-5, 5, 2))
        yield "random ends", {"lo": lo, "hi": hi, "grid": grid}
    yield "a very small range", {"lo": -2e-4, "hi": 5e-4, "grid": U8}
    yield "nothing but zeros", {"lo": 0.0, "hi": 0.0, "grid": U8}


def _same_qparams(got: Any, expected: tuple, lo: float, hi: float, grid: IntGrid) -> None:
    values = several(got, 2)
    if lo == hi == 0.0 and values is not None and None not in values:
        expect(
            0 < float(values[0]) < float("inf"),
            "a range without width needs some positive scale",
            expected="any positive scale",
            got=got,
        )
        expect_integers(values[1], "zero_point")
        inside = grid.qmin <= float(values[1]) <= grid.qmax
        on_grid = f"an integer from {grid.qmin} to {grid.qmax}"
        expect(inside, "the zero point lies outside the grid", expected=on_grid, got=got)
        return
    expect_close(got, expected, ("scale", "zero_point"), rtol=1e-4, atol=1e-9)
    expect_integers(values[1], "zero_point")


def _qparams_from_the_top(lo: float, hi: float, grid: IntGrid) -> tuple[Tensor, Tensor]:
    low, high = torch.tensor([lo, 0.0]).min().double(), torch.tensor([hi, 0.0]).max().double()
    scale = torch.clamp((high - low) / (grid.levels - 1), min=1e-12)
    return scale, torch.round(grid.qmax - high / scale).to(torch.int32)


def _qparams_numpy(lo: float, hi: float, grid: IntGrid) -> tuple[np.float64, int]:
    ends = np.array([min(lo, 0), max(hi, 0)], dtype=np.float64)
    scale = max(np.diff(ends)[0] / (grid.qmax - grid.qmin), 1e-9)
    return scale, grid.qmin + int(np.rint(-ends[0] / scale))


def _qparams_one_tensor(lo: float, hi: float, grid: IntGrid) -> Tensor:
    return torch.tensor(qparams(lo, hi, grid))


QPARAMS = Exercise(
    id="01.1", title="Scale and zero point by hand", minutes=8, difficulty=2,
    signature="qparams(lo, hi, grid)", reference=qparams, cases=_ranges, compare=_same_qparams,
    returns=("scale", "zero_point"),
    accepted=(_qparams_from_the_top, _qparams_numpy, _qparams_one_tensor),
    diagnoses=(
        ("(grid.qmax - grid.qmin) => 2**grid.bits",
         "2^bits is the number of codes; between the lowest and the highest there are qmax - "
         "qmin steps"),
        ("lo, hi = min(lo, 0.0), max(hi, 0.0) => pass",
         "the range was not widened to contain 0: lo = min(lo, 0), hi = max(hi, 0) come first"),
        ("lo, hi = min(lo, 0.0), max(hi, 0.0) => pass",
         "round(grid.qmin - lo / scale) => min(max(round(grid.qmin - lo / scale), grid.qmin), "
         "grid.qmax)",
         "the zero point was clamped, but the range was not widened to contain 0, so 0 is not "
         "representable"),
        ("round(grid.qmin - lo / scale) => grid.qmin - lo / scale",
         "the zero point was not rounded: it must be one of the integers"),
        ("round( => int(", "the zero point was cut off by int(...) instead of rounded"),
        ("round(grid.qmin - lo => round(-lo",
         "lo should land on qmin; your zero point assumes codes from 0"),
        ("grid.qmin - lo => grid.qmin + lo",
         "the sign of lo / scale is reversed in the zero point"),
        ("(hi - lo) / (grid.qmax - grid.qmin) => max(abs(lo), abs(hi)) / grid.qmax",
         "round(grid.qmin - lo / scale) => 0",
         "this is the symmetric formula (max|x| / qmax, zero point 0); the affine one uses both "
         "ends"),
        ("if lo == hi: => if False:",
         "a range without width (lo = hi = 0) divides by zero: give it any positive scale"),
        ("if lo == hi: => if hi - lo < 1e-3:",
         "a small range is not an empty one: only lo = hi has no width"),
        ("(grid.qmax - grid.qmin) => (2**grid.bits - 1)",
         "2^bits - 1 steps are those of a full grid; a narrow one has one less: use qmax - qmin"),
        ("lo, hi = min => same, lo, hi = lo == hi, min",
         "if lo == hi: => if same:",
         "lo = hi was asked before widening: [3, 3] widens to [0, 3], which has a width"),
        ("return scale, round(grid.qmin - lo / scale) => return round(grid.qmin - lo / scale), "
         "scale",
         "the scale comes first, then the zero point"),
    ),
    hints=(
        ("I do not know where to begin",
         "Two conditions fix a straight line: lo must land on qmin and hi on qmax. The scale is "
         "the real distance divided by the number of steps between codes."),
        ("My zero point is a fraction",
         "The code of 0.0 is qmin - lo / scale. Round it: then 0.0 is exact."),
        ("A range such as [2, 6] fails",
         "0 must lie inside the range, or no code stands for it. Widen first: min(lo, 0), "
         "max(hi, 0)."),
        ("ZeroDivisionError",
         "A tensor of zeros gives lo = hi = 0. Return any positive scale, such as 1.0."),
    ),
)  # fmt: skip


# 01.2 ------------------------------------------------------------------------------------------


def quantize(x: Tensor, scale: float, zero_point: int, grid: IntGrid) -> Tensor:
    """clamp(round(x / scale) + zero_point, qmin, qmax), stored in grid.dtype."""
    codes = torch.round(x / scale) + zero_point
    return codes.clamp(grid.qmin, grid.qmax).to(grid.dtype)


def _tensors() -> Iterator[tuple[str, dict[str, Any]]]:
    def case(
        label: str, x: list[float] | Tensor, scale: float, zero_point: int, grid: IntGrid
    ) -> tuple:
        x = torch.as_tensor(x, dtype=torch.float32)
        return label, {"x": x, "scale": scale, "zero_point": zero_point, "grid": grid}

    yield case("inside the range", [0.26, -0.26, 0.74, -0.74, 1.02], 0.5, 0, S8)
    yield case("near the middle of two codes", [0.6252, 1.1748, -0.8748, 1.0952], 0.01, 0, S8)
    yield case("with a zero point", [-1.0, -0.31, 0.0, 0.52, 2.9], 4 / 255, 64, U8)
    yield case("beyond both ends, 8 bits", [1.3, 3.0, -1.3, -3.0, 0.5], 0.01, 0, S8)
    yield case("beyond both ends, 4 bits", [0.4, 2.3, -0.9, -2.3, 0.12], 0.1, 0, S4)
    yield case("beyond both ends, zero point in the middle", [9.0, -9.0, 0.2], 0.05, 100, U8)
    yield case("a narrow grid", [-2.0, -1.28, -1.27, 1.27, 2.0], 0.01, 0, N8)
    generator = torch.Generator().manual_seed(102)
    x = torch.randn(4, 5, generator=generator)
    codes = torch.floor(x / 0.03) + 0.3  # never halfway between two codes
    yield case("a matrix", codes * 0.03, 0.03, -20, S8)
    yield case("a transposed matrix", (codes * 0.03).T, 0.03, -20, S8)
    yield case("halfway between two codes", [0.25, 0.75, 1.25, 1.75, -0.25, -0.75], 0.5, 3, U8)


def _same_codes(got: Any, expected: Tensor, grid: IntGrid, **_: Any) -> None:
    expect_close(got, expected, "codes", atol=1e-6)
    expect_dtype(got, grid.dtype, "codes")


def _quantize_numpy(x: Tensor, scale: float, zero_point: int, grid: IntGrid) -> np.ndarray:
    codes = np.rint(x.numpy().astype(np.float64) / scale) + zero_point
    kind = str(grid.dtype).removeprefix("torch.")
    return np.minimum(np.maximum(codes, grid.qmin), grid.qmax).astype(kind)


def _quantize_reciprocal(x: Tensor, scale: float, zero_point: int, grid: IntGrid) -> Tensor:
    low, high = (grid.qmin - zero_point) * scale, (grid.qmax - zero_point) * scale
    inside = x.double().clamp(low, high)
    return (torch.round(inside * (1 / scale)) + zero_point).to(grid.dtype)


QUANTIZE = Exercise(
    id="01.2", title="Quantize a tensor", minutes=7, difficulty=2,
    signature="quantize(x, scale, zero_point, grid)", reference=quantize, cases=_tensors,
    compare=_same_codes, returns="codes",
    accepted=(_quantize_numpy, _quantize_reciprocal),
    diagnoses=(
        ("codes.clamp(grid.qmin, grid.qmax) => codes.long()",
         "there is no clamp: codes beyond the grid wrap around or leave it"),
        ("codes.clamp(grid.qmin, grid.qmax).to(grid.dtype) => "
         "codes.long().to(grid.dtype).clamp(grid.qmin, grid.qmax)",
         "your output equals casting before clamping: the cast wraps around, and then nothing is "
         "left to clamp"),
        ("torch.round( => torch.floor(",
         "floor instead of round: the error grows up to a whole scale"),
        ("torch.round(x / scale) => x / scale",
         "no rounding: the cast to integers cuts off towards zero"),
        ("grid.qmin, => -(2 ** (grid.bits - 1)) if grid.signed else 0,",
         "the lowest code of a narrow grid is -127: clamp to grid.qmin, not to -2^(bits-1)"),
        ("torch.round(x / scale) => torch.round(x / scale).clamp(grid.qmin, grid.qmax)",
         "clamped before the zero point was added: add it, then clamp"),
        ("+ zero_point => - zero_point",
         "the zero point is added when quantizing; it is subtracted on the way back"),
        ("torch.round(x / scale) + zero_point => torch.round((x + zero_point) / scale)",
         "the zero point counts codes: add it after dividing by the scale"),
        ("x / scale => x * scale", "x was multiplied by the scale; divide to quantize"),
        (".to(grid.dtype) => .long().to(torch.int8)",
         "stored in int8 whatever the grid: an unsigned code above 127 wraps around; use "
         "grid.dtype"),
        ("+ zero_point =>", "the zero point was not added"),
        ("codes.clamp(grid.qmin, grid.qmax).to(grid.dtype) => (codes.clamp(grid.qmin, grid.qmax) "
         "- zero_point) * scale",
         "these are real numbers again: return the codes themselves"),
        ("torch.round(x / scale) => (x / scale + 0.5).int()",
         "adding 0.5 and cutting off rounds negative numbers the wrong way: torch.round"),
        ("torch.round(x / scale) => torch.floor(x / scale + 0.5)",
         "halfway values went up: torch.round takes the even neighbour, as ONNX does"),
        ("torch.round(x / scale) + zero_point => torch.round(x / scale + zero_point)",
         "rounded after the zero point was added: an odd one turns the even neighbour of a "
         "halfway value into the other one"),
        (".to(grid.dtype) =>", "the numbers are right; store them with .to(grid.dtype) at the end"),
    ),
    hints=(
        ("Large values come back negative",
         "An int8 that is asked to hold 130 shows -126. Saturate first (clamp), cast last."),
        ("I am off by one here and there",
         "torch.round goes to the nearest whole number; a cast alone cuts off the fraction."),
        ("Everything is right on [-128, 127] and wrong on the narrow grid",
         "Use grid.qmin and grid.qmax instead of numbers."),
    ),
)  # fmt: skip


# 01.3 ------------------------------------------------------------------------------------------


def fewest_bits(scores: Scores, baseline: str, limit: float) -> tuple:
    """The first option (they stand cheapest first) that surely loses at most `limit`."""
    fits = [name for name in scores if interval(scores[baseline], scores[name])[0] >= -limit]
    choice = fits[0]
    low, high = interval(scores[baseline], scores[choice])
    return choice, low, high


def _widths() -> Iterator[tuple[str, dict[str, Any]]]:
    for i, (label, accuracies, limit) in enumerate((
        ("6 bits are enough", {"4": 0.80, "6": 0.899, "8": 0.9, "32": 0.9}, 0.01),
        ("only a wide limit allows 4 bits", {"4": 0.86, "6": 0.89, "8": 0.9, "32": 0.9}, 0.06),
        ("6 bits lose little, but not surely", {"4": 0.6, "6": 0.892, "8": 0.9, "32": 0.9}, 0.01),
        ("6 bits happen to be best", {"4": 0.60, "6": 0.93, "8": 0.9, "32": 0.9}, 0.01),
        ("6 bits keep the limit, 8 do not", {"4": 0.6, "6": 0.91, "8": 0.86, "32": 0.9}, 0.01),
        ("only FP32 can promise it", {"4": 0.60, "6": 0.80, "8": 0.888, "32": 0.9}, 0.01),
    )):  # fmt: skip
        scores = made_scores(4000, accuracies, 130 + i)
        yield label, {"scores": scores, "baseline": "32", "limit": limit}


def _surely_within(got: Any, expected: Any, scores: Scores, baseline: str, limit: float) -> None:
    defended(got, expected, scores, baseline, cheapest_within(limit))


def _bits_in_a_loop(scores: Scores, baseline: str, limit: float) -> tuple:
    for name, row in scores.items():
        change = row - scores[baseline]
        half = 1.96 * change.std() / len(change) ** 0.5
        if change.mean() - half >= -limit:
            return name, (change.mean() - half, change.mean() + half)
    raise AssertionError("the baseline itself loses nothing")


def _bits_from_the_top(scores: Scores, baseline: str, limit: float) -> list:
    best, ends = baseline, (0.0, 0.0)
    for name in reversed(list(scores)):
        _, *found = paired_bootstrap(scores[baseline], scores[name], seed=4)
        if found[0] >= -limit:
            best, ends = name, tuple(found)
    return [best, *ends]


FEWEST_BITS = Exercise(
    id="01.3", title="As few bits as you can defend", minutes=8, difficulty=3,
    signature="fewest_bits(scores, baseline, limit)", reference=fewest_bits, cases=_widths,
    compare=_surely_within, agree=same_decision, returns=("bits", "low", "high"),
    accepted=(_bits_in_a_loop, _bits_from_the_top),
    diagnoses=(
        *WRONG_INTERVALS,
        ("fits[0] => fits[-1]", "this is the dearest that fits: the options stand cheapest first"),
        ("[name])[0] >= -limit => [name])[1] >= -limit",
         "the upper end says what it may lose at best: the lower end has to keep the limit"),
        ("interval(scores[baseline], scores[name])[0] >= => "
         "(scores[name].mean() - scores[baseline].mean()).item() >=",
         "the mean alone was asked: other pictures may lose more, so the lower end decides"),
        ("fits[0] => next(n for i, n in enumerate(scores) if set(list(scores)[i:]) <= set(fits))",
         "stopped at the first that does not fit, from the dearest down: a cheaper one may fit"),
        ("fits[0] => list(scores)[0]", "the cheapest of all, whatever it loses"),
        (">= -limit => >= 0", "this asks for no loss at all: `limit` may be lost"),
    ),
    hints=(
        ("Surely at most", "The lower end of the paired interval must not lie below -limit."),
        ("Which one", "The dictionary is ordered, cheapest first: take the first that fits."),
    ),
)  # fmt: skip


EXERCISES = [QPARAMS, QUANTIZE, FEWEST_BITS]
