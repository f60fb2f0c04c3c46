"""Decisions: the learner chooses among options and defends the choice with a paired interval.

A decision is an ordinary `Exercise`. The learner's function gets what the options scored on the
same pictures and returns (choice, low, high): the choice, and the 95 % interval of its accuracy
minus the baseline's. `defended` accepts every choice that the data can carry, whichever it is: a
choice falls only where the data speak against it. See chapters/ch02/exercises.py for one in use.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ptq_classroom.kit.expect import Failure, expect
from ptq_classroom.kit.values import as_array
from ptq_course.grids.metrics import paired_bootstrap

Scores = dict[str, Tensor]
Objection = Callable[[str, Scores, str], str]

# Likely causes that every decision shares; a mutation of the reference names them.
SIGN = "the sign: it is the choice's accuracy minus the baseline's"
PERCENT = "in points of a hundred: give shares of 1"
TURNED = "the lower end comes first"
UNPAIRED = "not paired: subtract picture by picture, then ask how far the mean may move"


def interval(before: Tensor, after: Tensor) -> tuple[float, float]:
    """95 % interval of mean(after - before), [N] scores of the same pictures."""
    return paired_bootstrap(before, after)[1:]


def unpaired(before: Tensor, after: Tensor) -> tuple[float, float]:
    """The interval that ignores which pictures belong together: too wide. For wrong answers."""
    half = 1.96 * math.sqrt((before.var() / len(before) + after.var() / len(after)).item())
    middle = (after.mean() - before.mean()).item()
    return middle - half, middle + half


# Wrong answers for every reference that ends in `low, high = interval(scores[baseline],
# scores[choice])` and `return choice, low, high`, in a module that imports `unpaired`.
WRONG_INTERVALS = (
    ("interval(scores[baseline], scores[choice]) => interval(scores[choice], scores[baseline])",
     SIGN),
    ("interval(scores[baseline], scores[choice]) => unpaired(scores[baseline], scores[choice])",
     UNPAIRED),
    ("return choice, low, high => return choice, 100 * low, 100 * high", PERCENT),
    ("return choice, low, high => return choice, high, low", TURNED),
)  # fmt: skip


def defended(
    got: Any, expected: Any, scores: Scores, baseline: str, objection: Objection, **_: Any
) -> None:
    """Accept (choice, low, high) where the interval is the choice's and nothing speaks against it.

    objection(choice, scores, baseline): what the data say against a choice; "" where nothing.
    """
    choice, low, high = _parts(got, expected, scores)
    wanted = interval(scores[baseline], scores[choice])
    shown = {"where": "the interval", "expected": [round(end, 4) for end in wanted], "got": got}
    for name, end in (("low", low), ("high", high)):
        expect(math.isfinite(end), f"{name} is not a number, but {end}", **shown)
    expect(low <= high, "the interval is turned round", **shown)
    near = agree_on_interval((low, high), wanted)
    expect(near, f"this is not the interval of {choice!r} minus {baseline!r}", **shown)
    against = objection(choice, scores, baseline)
    expect(not against, f"{choice!r} cannot be defended: {against}", expected=expected, got=got)


def no_rival_is_better(choice: str, scores: Scores, baseline: str) -> str:
    """Objects where another option beats the choice with an interval that leaves out zero."""
    for rival in scores:
        low, high = interval(scores[choice], scores[rival])
        if rival != choice and low > 0:
            return f"{rival!r} is better on the same pictures, by {low:.3f} to {high:.3f}"
    return ""


def cheapest_within(limit: float) -> Objection:
    """The cheapest option (they stand cheapest first) that surely loses at most `limit`.

    "Surely": the lower end of its interval against the baseline is at least -limit. Where no option
    can promise that, the baseline itself is the answer.
    """

    def objection(choice: str, scores: Scores, baseline: str) -> str:
        lows = {name: interval(scores[baseline], row)[0] for name, row in scores.items()}
        fits = [name for name, low in lows.items() if low >= -limit]
        if choice not in fits:
            return f"it may lose {-lows[choice]:.3f}, more than {limit}"
        if fits[0] != choice:
            return f"{fits[0]!r} is cheaper, and surely loses no more than {limit}"
        return ""

    return objection


def agree_on_interval(got: tuple[float, float], wanted: tuple[float, float]) -> bool:
    """Whether two intervals are one, but for the chance in a bootstrap."""
    width, middle = wanted[1] - wanted[0], sum(wanted) / 2
    if width < 1e-9:
        return abs(got[0] - wanted[0]) < 1e-6 and abs(got[1] - wanted[1]) < 1e-6
    ratio, off = (got[1] - got[0]) / width, abs(sum(got) / 2 - middle)
    return 0.87 < ratio < 1.15 and off < 0.09 * width


def same_decision(got: Any, wrong: Any) -> bool:
    """For `Exercise.agree`: the same choice with nearly the same interval."""
    try:
        (a, *ends), (b, *others) = got, wrong
        ends, others = ([float(end) for end in row] for row in (ends, others))
        if a != b or len(ends) != 2 or len(others) != 2:
            return False
        turned = [(row[0] > row[1]) for row in (ends, others)]
        low, high = sorted(ends), sorted(others)
        return turned[0] == turned[1] and agree_on_interval((low[0], low[1]), (high[0], high[1]))
    except (TypeError, ValueError):
        return False


def made_scores(pictures: int, accuracies: dict[str, float], seed: int) -> Scores:
    """Scores [pictures] of 0.0 and 1.0 of options with about these accuracies, on one set.

    Hard pictures are hard for all of them, as in a real network, so that pairing matters.
    """
    rng = np.random.default_rng(seed)
    hard, luck = rng.random(pictures), {name: rng.random(pictures) for name in accuracies}
    mixed = {name: 0.85 * hard + 0.15 * luck[name] for name in accuracies}
    return {
        name: torch.from_numpy(row <= np.quantile(row, accuracies[name])).double()
        for name, row in mixed.items()
    }


def _parts(got: Any, expected: Any, scores: Scores) -> tuple[str, float, float]:
    parts = list(got) if isinstance(got, tuple | list) else []
    if len(parts) == 2 and isinstance(parts[1], tuple | list | Tensor | np.ndarray):
        parts = [parts[0], *parts[1]]  # (choice, (low, high)) says the same
    shown = {"expected": expected, "got": got, "structure": True}
    if len(parts) != 3:
        raise Failure("the function should return 3 values: choice, low, high", **shown)
    choice = parts[0]
    if choice not in list(scores):
        options = ", ".join(map(repr, scores))
        raise Failure(f"{choice!r} is no option; there are {options}", **shown)
    try:
        low, high = (float(as_array(end).item()) for end in parts[1:])
    except (TypeError, ValueError):
        raise Failure("low and high should be numbers", **shown) from None
    return choice, low, high
