"""Checks of chapter 17: an acceptance rule that another person could run, and the choice."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ptq_classroom.kit.decisions import made_scores
from ptq_classroom.kit.exercises import Exercise
from ptq_classroom.kit.expect import expect
from ptq_classroom.kit.values import same
from ptq_course.grids.metrics import paired_bootstrap

# 17.1 ------------------------------------------------------------------------------------------


def accepts(before: Tensor, after: Tensor, limit: float) -> bool:
    """Whether the loss is surely at most `limit`: the lower end of the paired interval is above."""
    low = paired_bootstrap(before, after)[1]
    return bool(low >= -limit)


def _releases() -> Iterator[tuple[str, dict[str, Any]]]:
    rows = (
        ("a small loss on many pictures", 4_000, -0.002, 0.02),
        ("a large loss", 4_000, -0.08, 0.02),
        ("a small loss on few pictures", 120, -0.01, 0.02),
        ("a gain", 2_000, 0.03, 0.02),
        ("inside on average, not surely", 500, -0.012, 0.02),
        ("no loss is allowed, and none is made", 1_000, 0.06, 0.0),
        ("a gain that is not sure", 300, 0.01, 0.0),
        ("too large on average, small at best", 300, -0.035, 0.02),
        ("surely inside, where the same pictures are compared", 2_000, -0.006, 0.02),
        ("a sure loss inside a large limit", 10_000, -0.09, 0.1),
        ("a little more than a large limit", 10_000, -0.097, 0.1),
        ("a clear gain on few pictures", 400, 0.05, 0.02),
    )
    for number, (label, pictures, change, limit) in enumerate(rows):
        scores = made_scores(pictures, {"before": 0.9, "after": 0.9 + change}, 1701 + number)
        yield label, {**scores, "limit": limit}
    yield "the limit is reached exactly", {**scores, "after": scores["before"], "limit": 0.0}
    scores = made_scores(8_000, {"before": 0.9, "after": 0.89}, 1719)
    change = scores["after"] - scores["before"]
    error = (change.std() / len(change) ** 0.5).item()  # 1.73 of them: 92 %; 2.14: 97 %
    for label, errors in (("nine times in ten inside", 1.73), ("just sure enough", 2.14)):
        yield label, {**scores, "limit": round(errors * error - change.mean().item(), 5)}


def _verdict(got: Any, expected: bool, **inputs: Any) -> None:
    known = isinstance(got, (bool, np.bool_)) or (
        isinstance(got, Tensor) and got.dtype is torch.bool
    )
    expect(known, "the verdict is True or False", expected=expected, got=got)
    expect(bool(got) is expected, "the verdict is another one", expected=expected, got=bool(got))


def _by_standard_error(before: Tensor, after: Tensor, limit: float) -> bool:
    change = (after - before).double()
    return (change.mean() - 1.96 * change.std() / len(change) ** 0.5 + limit).item() >= 0


def _by_drawing(before: Tensor, after: Tensor, limit: float) -> np.bool_:
    change, rng = (after - before).double().numpy(), np.random.default_rng(0)
    means = [change[rng.integers(0, len(change), len(change))].mean() for _ in range(500)]
    return np.quantile(means, 0.025) >= -limit


def _unpaired(before: Tensor, after: Tensor, limit: float) -> bool:
    error = (before.double().var() / len(before) + after.double().var() / len(after)).sqrt()
    return bool(after.mean() - before.mean() - 1.96 * error >= -limit)


ACCEPTS = Exercise(
    id="17.1", title="An acceptance rule", minutes=6, difficulty=2,
    signature="accepts(before, after, limit)", reference=accepts, cases=_releases,
    compare=_verdict, agree=functools.partial(same, rtol=0), returns="the verdict",
    accepted=(_by_standard_error, _by_drawing),
    diagnoses=(
        ("paired_bootstrap(before, after)[1] => paired_bootstrap(before, after)[0]",
         "the mean was asked: half of the time the loss is larger"),
        ("paired_bootstrap(before, after)[1] => paired_bootstrap(before, after)[2]",
         "the upper end was asked: it is the best that may be hoped"),
        ("paired_bootstrap(before, after)[1] => paired_bootstrap(after, before)[1]",
         "the change was taken the other way round: it is after minus before"),
        ("low >= -limit => low >= limit", "the limit is an allowed loss: compare with -limit"),
        ("low >= -limit => low >= 0", "no loss at all was allowed: the limit may be used up"),
        ("low >= -limit => low < -limit", "turned round: this accepts what has to be refused"),
        ("low >= -limit => low > -limit",
         "a lower end of exactly -limit is accepted: compare with >="),
        ("paired_bootstrap(before, after)[1] => paired_bootstrap(before, after, confidence=0.9)[1]",
         "this is the interval of 90 % (or 1.645 standard errors): asked for are 95 %"),
        ("paired_bootstrap(before, after)[1] => "
         "paired_bootstrap(before, after, confidence=0.975)[1]",
         "this is the interval of 97.5 % (or 2.24 standard errors): asked for are 95 %"),
        ("low >= -limit => low >= -limit * before.mean()",
         "the limit is in points of accuracy, not a share of FP32's accuracy"),
        (_unpaired,
         "not paired: subtract picture by picture, then ask how far the mean may move"),
    ),
    hints=(
        ("Which number decides?",
         "The lower end of the interval of after minus before: paired_bootstrap gives (mean, low, "
         "high)."),
        ("Few pictures", "Then the interval is wide and the rule refuses. That is its purpose."),
    ),
)  # fmt: skip


# 17.2 ------------------------------------------------------------------------------------------


def pick_release(
    scores: dict[str, Tensor], sizes: dict[str, float], limit: float, budget: float
) -> str | None:
    """The most accurate version whose size keeps the budget and whose loss is surely allowed."""
    fit = []
    for name, row in scores.items():
        if name == "FP32" or sizes[name] > budget:
            continue
        mean, low, _ = paired_bootstrap(scores["FP32"], row)
        if low >= -limit:
            fit.append((mean, name))
    return max(fit)[1] if fit else None


def _changed(row: Tensor, gained: int, lost: int) -> Tensor:
    """`row` with so many wrong answers turned right, and so many right ones turned wrong."""
    after = row.clone()
    after[(row == 0).nonzero()[:gained]] = 1.0
    after[(row == 1).nonzero()[:lost]] = 0.0
    return after


def _limit(row: Tensor, gained: int, lost: int, errors: float) -> float:
    """A limit so many standard errors below the change that `_changed` makes."""
    change = _changed(row, gained, lost) - row
    return round((errors * change.std() / len(change) ** 0.5 - change.mean()).item(), 5)


def _uncertain() -> Iterator[tuple[str, dict[str, Any]]]:
    """Versions that change many answers, and so have wide intervals, against one with few."""
    sizes = {"W4A8": 0.14, "W8A8": 0.26, "FP32": 1.0}  # another order than that of the scores
    fp32 = made_scores(4_000, {"FP32": 0.85}, 1750)["FP32"]
    for label, eight, four, limit in (
        ("the most accurate has the lower lower end", (30, 0), (220, 180), 0.025),
        ("the most accurate has the lower upper end", (40, 0), (220, 200), 0.025),
        ("the most accurate of them is not sure", (500, 495), (0, 12), 0.01),
        ("no loss is allowed, and none is made", (0, 0), (0, 100), 0.0),
        ("nine times in ten inside", (400, 440), (0, 50), _limit(fp32, 400, 440, 1.73)),
        ("just sure enough", (400, 440), (0, 50), _limit(fp32, 400, 440, 2.14)),
    ):
        scores = {"W8A8": _changed(fp32, *eight), "FP32": fp32, "W4A8": _changed(fp32, *four)}
        yield label, {"scores": scores, "sizes": sizes, "limit": limit, "budget": 0.3}


def _versions() -> Iterator[tuple[str, dict[str, Any]]]:
    sizes = {"FP32": 1.0, "INT8": 0.26, "INT8 min-max": 0.26, "INT4": 0.14}
    rows = (
        ("all fit", 4_000, {"INT8": 0.0, "INT8 min-max": -0.01, "INT4": -0.005}, 0.025, 0.3),
        ("a small budget", 4_000, {"INT8": 0.0, "INT8 min-max": 0.0, "INT4": -0.01}, 0.025, 0.15),
        ("4 bits lose", 4_000, {"INT8": -0.01, "INT8 min-max": -0.1, "INT4": -0.06}, 0.025, 0.3),
        ("nothing fits", 4_000, {"INT8": 0.0, "INT8 min-max": 0.0, "INT4": -0.2}, 0.025, 0.15),
        ("4 bits win", 4_000, {"INT8": -0.015, "INT8 min-max": -0.05, "INT4": 0.015}, 0.025, 0.3),
        ("too few pictures to promise anything", 150,
         {"INT8": -0.01, "INT8 min-max": -0.02, "INT4": -0.02}, 0.01, 0.3),
        ("inside on average, not surely", 900,
         {"INT8": -0.1, "INT8 min-max": -0.018, "INT4": -0.1}, 0.025, 0.3),
        ("a size of exactly the budget", 4_000,
         {"INT8": 0.0, "INT8 min-max": -0.01, "INT4": -0.015}, 0.025, 0.26),
        ("a size a little above the budget", 4_000,
         {"INT8": 0.0, "INT8 min-max": -0.01, "INT4": -0.015}, 0.025, 0.255),
        ("a budget that FP32 keeps, too", 4_000,
         {"INT8": -0.005, "INT8 min-max": -0.02, "INT4": -0.03}, 0.025, 1.0),
        ("a larger limit", 4_000, {"INT8": -0.035, "INT8 min-max": -0.1, "INT4": -0.1}, 0.05, 0.3),
        ("a gain beyond the limit", 4_000,
         {"INT8": 0.06, "INT8 min-max": 0.0, "INT4": -0.01}, 0.025, 0.3),
        ("a gain that is too large for the budget", 4_000,
         {"INT8": 0.05, "INT8 min-max": 0.0, "INT4": -0.01}, 0.025, 0.15),
    )  # fmt: skip
    for number, (label, pictures, changes, limit, budget) in enumerate(rows):
        shares = {"FP32": 0.85, **{n: 0.85 + c for n, c in changes.items()}}
        scores = made_scores(pictures, shares, 1720 + number)
        yield label, {"scores": scores, "sizes": sizes, "limit": limit, "budget": budget}
    yield from _uncertain()


def _best_first(scores: Any, sizes: Any, limit: float, budget: float) -> str | None:
    """A wrong answer: only the most accurate inside the budget is asked whether it is sure."""
    fit = [name for name in scores if name != "FP32" and sizes[name] <= budget]
    best = max(fit, key=lambda name: scores[name].mean().item(), default="FP32")
    sure = paired_bootstrap(scores["FP32"], scores[best])[1] >= -limit
    return best if sure and fit else None


def _same_choice(got: Any, expected: str | None, **_: Any) -> None:
    known = got is None or isinstance(got, str)
    expect(known, "the answer is the name of a version, or None", expected=expected, got=got)
    expect(got == expected, "another version is the right one", expected=expected, got=got)


def _by_filter(scores: Any, sizes: Any, limit: float, budget: float) -> str | None:
    changes = {n: paired_bootstrap(scores["FP32"], row) for n, row in scores.items() if n != "FP32"}
    good = {n: c[0] for n, c in changes.items() if c[1] >= -limit and sizes[n] <= budget}
    return max(good, key=good.__getitem__) if good else None


def _by_order(scores: Any, sizes: Any, limit: float, budget: float) -> str | None:
    for name in sorted(scores, key=lambda n: -float(scores[n].mean())):
        fits = name != "FP32" and sizes[name] <= budget
        if fits and paired_bootstrap(scores["FP32"], scores[name])[1] >= -limit:
            return name
    return None


CHOOSE = Exercise(
    id="17.2", title="Decide: the release", minutes=8, difficulty=3,
    signature="pick_release(scores, sizes, limit, budget)", reference=pick_release,
    cases=_versions, compare=_same_choice, agree=functools.partial(same, rtol=0),
    returns="the version", accepted=(_by_filter, _by_order),
    diagnoses=(
        ("low >= -limit => mean >= -limit",
         "the mean was asked: it may be inside the limit while the interval reaches beyond"),
        ("low >= -limit => True", "the limit was not looked at"),
        ('paired_bootstrap(scores["FP32"], row) => '
         'paired_bootstrap(scores["FP32"], row, confidence=0.9)',
         "this is the interval of 90 % (or 1.645 standard errors): asked for are 95 %"),
        ('paired_bootstrap(scores["FP32"], row) => '
         'paired_bootstrap(scores["FP32"], row, confidence=0.975)',
         "this is the interval of 97.5 % (or 2.24 standard errors): asked for are 95 %"),
        ("sizes[name] > budget => False", "the budget was not looked at"),
        ('name == "FP32" or sizes[name] > budget => sizes[name] > max(budget, 1)',
         "FP32 is no quantized version, and larger than the budget"),
        ("sizes[name] > budget => sizes[name] >= budget",
         "a size of exactly the budget keeps it"),
        ('name == "FP32" or sizes[name] > budget => sizes[name] > budget',
         "FP32 itself was released: a budget that it keeps does not make it a release"),
        ("low >= -limit => low > -limit",
         "a lower end of exactly -limit is still allowed: compare with >="),
        ("low >= -limit => abs(low) <= limit",
         "a gain was refused: the limit is for losses alone"),
        ("fit.append((mean, name)) => fit.append((low, name))",
         "the best lower end was taken: it decides what is allowed, the accuracy which is taken"),
        (_best_first,
         "the limit was asked of the most accurate alone: another one may be surely inside"),
        ("max(fit)[1] => min(fit)[1]", "the least accurate that fits was taken"),
        ("max(fit)[1] if fit else None => max(fit)[1] if fit else \"FP32\"",
         "where nothing fits, nothing is released: None"),
        ("max(fit)[1] => min((sizes[n], n) for _, n in fit)[1]",
         "the smallest that fits: asked for is the most accurate inside the budget"),
    ),
    hints=(
        ("In which order?", "First the budget, then the limit, then the accuracy of what is left."),
        ("Nothing is left", "Then the answer is None: no release is an answer, too."),
    ),
)  # fmt: skip


EXERCISES = [ACCEPTS, CHOOSE]
