"""A decision with a limit: the cheapest option that surely loses no more than it allows.

What the exercises of several chapters share: cases, right answers written otherwise, wrong choices.
Their references walk through the options (cheapest first) and stop where `low >= -limit`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from ptq_classroom.kit.decisions import Scores, interval, made_scores
from ptq_course.grids.metrics import paired_bootstrap

Choice = Callable[..., tuple]  # (scores, baseline)

UPPER_END = "the upper end was asked: it is the best that may be hoped; the lower end is sure"
MIDDLE = "the mean was asked: it may be inside the limit while the interval reaches beyond"
DEAREST = "this is the dearest that fits: the options stand cheapest first"
NO_LIMIT = "no loss at all was allowed: the limit may be used up"
TWICE = "more than the limit was allowed: the lower end may reach it, and no further"
HALF = "less than the limit was allowed: it may be used up, and a cheaper option then fits"
RELATIVE = "the limit is in points of accuracy, not a share of the baseline's accuracy"
WRONG_CHOICES = (
    ("low >= -limit => high >= -limit", UPPER_END),
    ("low >= -limit => (low + high) / 2 >= -limit", MIDDLE),
    ("in scores: => in reversed(scores):", DEAREST),
    ("low >= -limit => low >= 0", NO_LIMIT),
    ("low >= -limit => low >= -2 * limit", TWICE),
    ("low >= -limit => low >= -limit / 2", HALF),
    ("low >= -limit => low >= -limit * scores[baseline].mean().item()", RELATIVE),
)
HINTS = (
    ("Which interval?",
     "`paired_bootstrap(scores[baseline], scores[choice])` gives (mean, low, high) of the choice "
     "minus the baseline, picture by picture."),
    ("When does an option surely lose at most the limit?",
     "When even the lower end of its interval is not below `-limit`. A mean inside the limit is a "
     "hope: with few pictures the interval reaches beyond."),
    ("Nothing fits",
     "The baseline is among the options, and against itself it loses nothing: it always fits."),
)  # fmt: skip


def limit_cases(
    names: tuple[str, ...], limit: float, seed: int, about: float = 0.9
) -> Iterator[tuple[str, dict]]:
    """Cases for three options or more, cheapest first, of which the last is the baseline."""
    cheap, middle = names[0], names[-2]
    for number, (label, pictures, lost, baseline) in enumerate((
        ("the cheapest will do", 12_000, (0.2, 0.1), about),
        ("the cheapest surely loses too much", 12_000, (8.0, 0.2), about),
        ("too few pictures to promise anything", 400, (1.5, 0.5), about),
        ("the cheapest gains", 12_000, (-2.5, 0.1), about),
        ("one in the middle gains", 12_000, (9.0, -2.5), about),
        ("the cheapest loses a little less than the limit", 40_000, (0.68, 0.1), about),
        ("the cheapest loses a little more than the limit", 40_000, (1.5, 0.1), about),
        ("a baseline that is often wrong", 40_000, (0.68, 0.1), about / 2),
    )):  # fmt: skip
        losses = dict(zip((cheap, middle), lost, strict=True))  # in limits; 5 for all others
        shares = {n: max(0.0, baseline - limit * losses.get(n, 5.0)) for n in names}
        shares[names[-1]] = baseline
        yield (
            label,
            {
                "scores": made_scores(pictures, shares, seed + number),
                "baseline": names[-1],
            },
        )


def first_that_fits(limit: float) -> Choice:
    """The same choice, made from a table of all intervals; the ends come as a pair."""

    def choose(scores: Scores, baseline: str) -> tuple:
        table = {name: interval(scores[baseline], row) for name, row in scores.items()}
        choice = next(name for name, (low, _) in table.items() if low >= -limit)
        return choice, table[choice]

    return choose


def by_standard_error(limit: float) -> Choice:
    """The same with the interval mean +- 1.96 standard errors of the paired differences."""

    def choose(scores: Scores, baseline: str) -> tuple:
        for name, row in scores.items():
            change = row.double() - scores[baseline].double()
            half = 1.96 * change.std().item() / math.sqrt(len(change))
            low, high = change.mean().item() - half, change.mean().item() + half
            if low >= -limit:
                return name, low, high
        return baseline, *paired_bootstrap(scores[baseline], scores[baseline])[1:]

    return choose
