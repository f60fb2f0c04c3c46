"""Checks of chapter 09: the share that a range clips, and how many samples meet a rare mode."""

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
    made_scores,
    same_decision,
    unpaired,  # noqa: F401 (of a wrong answer)
)
from ptq_classroom.kit.exercises import Exercise
from ptq_classroom.kit.expect import expect_close, expect_number

# 09.1 ------------------------------------------------------------------------------------------


def clipped_share(calib: Tensor, live: Tensor) -> float:
    """Share of the live values outside the range of the calibration values, zero included."""
    low, high = min(calib.min().item(), 0.0), max(calib.max().item(), 0.0)
    outside = (live < low) | (live > high)
    return outside.double().mean().item()


def _values() -> Iterator[tuple[str, dict[str, Any]]]:
    def case(label: str, calib: list[float], live: list[float]) -> tuple[str, dict[str, Any]]:
        return label, {"calib": torch.tensor(calib), "live": torch.tensor(live)}

    yield case("one of four above the range", [-1.0, 0.5, 2.0], [-0.5, 1.0, 3.0, 1.5])
    yield case("values below the range, too", [-1.0, 0.5, 2.0], [-1.5, -3.0, 3.0, 1.5, 0.1])
    yield case("values at the ends of the range", [-1.0, 2.0], [-1.0, 2.0, 2.0, 2.5, -1.0])
    yield case("no calibration value near zero", [4.0, 2.0, 3.0], [1.0, 0.5, 3.0, -0.5])
    yield case("just beyond the range", [-1.0, 2.0], [2.0004, -1.0003, 1.0, 2.5])
    yield case("every calibration value below zero", [-4.0, -2.0], [-1.0, -0.5, 0.5, -5.0, 0.0])
    yield case("nothing is clipped", [-2.0, 2.0, 0.0], [1.0, -1.5])
    yield case("more calibration values than live ones", [-3.0, 0.5, 2.0, 1.0, 9.0], [1.0, 10.0])
    generator = torch.Generator().manual_seed(901)
    calib = torch.randn(3, 2, 4, 4, generator=generator)
    live = 1.5 * torch.randn(5, 2, 4, 4, generator=generator) + 0.2
    yield "two batches of pictures", {"calib": calib, "live": live}
    yield "channels last in memory", {"calib": calib, "live": live.permute(0, 2, 3, 1)}


def _same_share(got: Any, expected: float, **_: Any) -> None:
    expect_number(got, "the share")
    expect_close(got, expected, "the share", rtol=1e-5, atol=1e-9)


def _share_by_clamping(calib: Tensor, live: Tensor) -> Tensor:
    ends = torch.cat([calib.flatten(), torch.zeros(1)])
    return (live.clamp(ends.min(), ends.max()) != live).float().mean()


def _share_numpy(calib: Tensor, live: Tensor) -> np.float64:
    low, high = np.min([0.0, calib.numpy().min()]), np.max([0.0, calib.numpy().max()])
    ordered = np.sort(live.numpy().ravel())
    below = np.searchsorted(ordered, low, side="left")
    return (below + len(ordered) - np.searchsorted(ordered, high, side="right")) / len(ordered)


def _share_loop(calib: Tensor, live: Tensor) -> float:
    low, high = min(0.0, float(calib.min())), max(0.0, float(calib.max()))
    values = live.flatten().tolist()
    return sum(1 for v in values if v < low or v > high) / len(values)


CLIPPED_SHARE = Exercise(
    id="09.1", title="The share of live values that a range clips", minutes=6, difficulty=2,
    signature="clipped_share(calib, live)", reference=clipped_share, cases=_values,
    compare=_same_share, returns="share",
    accepted=(_share_by_clamping, _share_numpy, _share_loop),
    diagnoses=(
        ("(live < low) | (live > high) => live > high",
         "only values above the range are counted; those below it are clipped too"),
        ("(live < low) | (live > high) => live.abs() > calib.abs().max()",
         "magnitudes are compared: this range has two ends of its own"),
        ("low, high = min(calib.min().item(), 0.0), max(calib.max().item(), 0.0) => low, high = "
         "calib.min(), calib.max()",
         "the range does not contain 0: an affine range is widened to hold it"),
        ("(live < low) | (live > high) => (live <= low) | (live >= high)",
         "values at an end of the range count as clipped: they are inside"),
        ("return outside => return (~outside)", "this is the share inside; clipped are the others"),
        ("return outside => return 100 * outside",
         "this is a percentage: give a share from 0 to 1"),
        ("double().mean() => double().sum()",
         "this is the number of values: divide it by how many live values there are"),
        ("outside = (live < low) | (live > high) => codes = ((live - low) / (high - low) * "
         "255).round(); outside = (codes < 0) | (codes > 255)",
         "codes beyond the grid were counted: a value up to half a step beyond the range still "
         "rounds to its last code; compare the values"),
        ("(live < low) | (live > high) => (calib < low) | (calib > high)",
         "the calibration values were counted: none of them lies outside their own range"),
        ("outside.double().mean() => (outside.sum() / calib.numel())",
         "divided by the number of calibration values: it is a share of the live ones"),
        ("outside.double().mean().item() => outside.sum().item() / len(live)",
         "divided by len(live), the number of pictures: it is a share of the values"),
        ("min(calib.min().item(), 0.0), max(calib.max().item(), 0.0) => min(calib[0].min().item(), "
         "0.0), max(calib[0].max().item(), 0.0)",
         "the range is that of the first calibration value or picture: it is that of all"),
        ("low, high = min => calib, live = live, calib; low, high = min",
         "calib and live are exchanged: calib makes the range"),
        ("return outside.double() => return (outside.flatten(1).any(1) if live.dim() > 1 else "
         "outside).double()",
         "this is the share of pictures with a clipped value; count values"),
    ),
    hints=(
        ("Which two numbers make the range?",
         "The smallest and the largest calibration value, and 0 belongs to it in any case: "
         "min(smallest, 0) and max(largest, 0)."),
        ("How do I count without a loop?",
         "(live < low) | (live > high) is True where a value is clipped. The mean of True and "
         "False, as floats, is the share."),
    ),
)  # fmt: skip


# 09.2 ------------------------------------------------------------------------------------------


def samples_needed(share: float, risk: float) -> int:
    """The smallest n with (1 - share)^n <= risk."""
    n = 1
    while (1 - share) ** n > risk:
        n += 1
    return n


def _modes() -> Iterator[tuple[str, dict[str, Any]]]:
    yield "every second picture, risk 0.25", {"share": 0.5, "risk": 0.25}
    yield "every second picture, risk 0.2", {"share": 0.5, "risk": 0.2}
    yield "nine of ten pictures, risk 0.05", {"share": 0.9, "risk": 0.05}
    yield "nine of ten pictures, risk 0.2", {"share": 0.9, "risk": 0.2}
    yield "one picture in forty, risk 0.05", {"share": 0.025, "risk": 0.05}
    yield "one picture in fifty, risk 0.01", {"share": 0.02, "risk": 0.01}
    yield "one picture in a thousand, risk 0.3", {"share": 0.001, "risk": 0.3}
    yield "one picture in a hundred thousand, risk 0.5", {"share": 0.00001, "risk": 0.5}
    yield "any risk will do", {"share": 0.3, "risk": 1.0}


def _same_number(got: Any, expected: int, **_: Any) -> None:
    expect_number(got, "the number of samples")
    expect_close(got, expected, "the number of samples", rtol=0, atol=1e-9)


def _needed_by_logarithm(share: float, risk: float) -> int:
    return max(1, math.ceil(math.log(risk) / math.log1p(-share) - 1e-9))


def _needed_by_bisection(share: float, risk: float) -> int:
    low, high = 0, 1  # low is too few
    while (1 - share) ** high > risk:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if (1 - share) ** middle > risk else (low, middle)
    return high


SAMPLES_NEEDED = Exercise(
    id="09.2", title="How many samples meet a rare mode", minutes=6, difficulty=2,
    signature="samples_needed(share, risk)", reference=samples_needed, cases=_modes,
    compare=_same_number, returns="n",
    accepted=(_needed_by_logarithm, _needed_by_bisection),
    diagnoses=(
        ("return n => return math.floor(math.log(risk) / math.log(1 - share))",
         "rounded down: with one sample fewer the risk is still too high"),
        ("return n => return math.log(risk) / math.log(1 - share)",
         "this is no whole number: round it up"),
        ("> risk => >= risk", "one too many where (1 - share)^n is exactly the risk"),
        ("return n => return math.ceil(1 / share)",
         "this many samples hold the mode once on average, and often not at all; `risk` is not "
         "used"),
        ("return n => return math.ceil(3 / share)",
         "3 / share is a rule of thumb for a risk of 5 %: `risk` is not used"),
        ("return n => return math.ceil((1 - risk) / share)",
         "chances do not add up: two samples of share 0.5 do not meet the mode for certain"),
        ("n = 1 => n = 0", "n is at least 1: with a risk of 1 the formula gives 0 samples"),
        ("return n => return round(math.log(risk) / math.log(1 - share))",
         "rounded to the nearest: where that is down, the risk is still too high"),
        ("return n => return int(torch.ceil(torch.tensor(risk).log() / torch.tensor(1 - share)"
         ".log()))",
         "32-bit floats are too coarse for 1 - share: use Python's floats or float64"),
        ("(1 - share) ** n => share**n",
         "this is the chance that every sample shows the mode: use 1 - share"),
        ("> risk => > 1 - risk", "risk is the chance to miss the mode, not the chance to meet it"),
        ("(1 - share) ** n => math.exp(-n * share)",
         "exp(-n share) stands for (1 - share)^n: close for a small share, but not equal"),
    ),
    hints=(
        ("Where do I begin?",
         "One sample misses the mode with chance 1 - share. n independent samples all miss it "
         "with chance (1 - share) ** n."),
        ("How do I find n?",
         "A loop is enough: begin with n = 1 and go on while the chance exceeds the risk. With "
         "logarithms it takes one line; then round up."),
    ),
)  # fmt: skip


# 09.3 ------------------------------------------------------------------------------------------


def choose_size(scores: Scores, baseline: str) -> tuple[str, float, float]:
    """The smallest set that surely loses at most one point, with its interval."""
    limit = 0.01
    for choice in scores:
        low, high = interval(scores[baseline], scores[choice])
        if low >= -limit:
            return choice, low, high
    raise ValueError("the baseline is one of the options")


def _sizes() -> Iterator[tuple[str, dict[str, Any]]]:
    yield from limit_cases(("3", "10", "100", "1000"), 0.01, 930)
    scores = made_scores(40_000, {"20": 0.45, "60": 0.488, "all": 0.5}, 938)
    yield "a hard task: FP32 is right half of the time", {"scores": scores, "baseline": "all"}
    scores = made_scores(8_000, {"3": 0.8, "100": 0.8946, "1000": 0.9}, 940)
    yield "nine times in ten inside the limit", {"scores": scores, "baseline": "1000"}


CHOOSE_SIZE = Exercise(
    id="09.3", title="Choose the size of the set", minutes=7, difficulty=3,
    signature="choose_size(scores, baseline)", reference=choose_size,
    cases=_sizes,
    compare=functools.partial(defended, objection=cheapest_within(0.01)), agree=same_decision,
    accepted=(first_that_fits(0.01), by_standard_error(0.01)),
    diagnoses=(
        *WRONG_INTERVALS,
        *WRONG_CHOICES,
        ("low >= -limit => abs(low) <= limit",
         "a gain was refused: the limit is for losses alone"),
        ("low >= -limit => low >= -limit / scores[baseline].mean()",
         "the limit is in points of accuracy: neither multiply nor divide by the baseline's"),
    ),
    hints=HINTS,
)  # fmt: skip


EXERCISES = [CLIPPED_SHARE, SAMPLES_NEEDED, CHOOSE_SIZE]
