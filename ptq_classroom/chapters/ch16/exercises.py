"""Checks of chapter 16: a diagnosis is a cause, and a test that fails on the bug alone.

Each exercise asks for a function that returns (cause, test); `museum.judge` runs the test on the
broken pipeline and on two right ones. The last one is a decision: which repairs have to go out?
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

from ptq_classroom.chapters.ch16.museum import CAUSES, EXHIBITS, Pipeline, judge
from ptq_classroom.kit.cheapest import (
    HINTS,
    WRONG_CHOICES,
    by_standard_error,
    first_that_fits,
)
from ptq_classroom.kit.decisions import (
    WRONG_INTERVALS,
    Scores,
    cheapest_within,
    defended,
    interval,
    made_scores,
    same_decision,
    unpaired,  # noqa: F401  (a wrong answer of WRONG_INTERVALS calls it)
)
from ptq_classroom.kit.exercises import Exercise
from ptq_classroom.kit.expect import Failure

PASSES = "the test passes on everything: it does not see the bug"
FAILS = "the test fails on everything, also where the bug is repaired"
OTHER = "the test is right, the cause is another one"
EMPTY = "the test returned None: is a `return` missing in it?"
STOPPED = "the test stopped with ZeroDivisionError: return False instead"
ORDER = {
    "codes": ("Codes", "the largest code of a value far beyond the range, and the smallest"),
    "peaks": ("Peaks", "one layer and one batch, whose largest value you choose"),
    "ranges": ("Ranges", "what the network is like afterwards"),
    "affine": ("Affine", "a range that lies wholly above zero"),
    "linear": ("Linear", "an input that the weights ignore: what is left is the bias"),
    "collecting": ("Collecting", "two batches, one of them much louder"),
    "folding": ("Folding", "a batch norm that enlarges one channel and shrinks another"),
    "channels": ("Channels", "a layer with 3 channels in and 5 out: how many scales?"),
}
WANTED = "(cause, test): one of CAUSES, and a function of a pipeline"


def _checked(name: str) -> Callable[[Any], None]:
    def refused(headline: str, got: Any, cause: str = "") -> Failure:
        failure = Failure(headline, cause=cause, expected=WANTED, got=got)
        failure.inputs = {"exhibit": name}
        return failure

    def check(answer: Callable[..., Any]) -> None:
        got = answer()
        pair = isinstance(got, (tuple, list)) and len(got) == 2
        if not pair or not isinstance(got[0], str) or not callable(got[1]):
            raise refused("this is no diagnosis", got, _slip(got) if pair else "")
        if said := judge(EXHIBITS[name], *got):
            raise refused("the diagnosis does not hold", got[0], said)

    return check


def _slip(got: Any) -> str:
    """Why a pair is no diagnosis, where that can be told."""
    cause, test = got
    if callable(cause) and isinstance(test, str):
        return "the cause comes first, then the test"
    if isinstance(cause, str) and isinstance(test, (bool, Tensor)):
        return "the test was called: return `test` itself, without parentheses"
    return ""


def _made(cause: str, test: Callable[[Pipeline], Any]) -> Callable[[], tuple]:
    return lambda: (cause, test)


def _in_other_words(name: str) -> Callable[[], list]:
    """The same diagnosis as a list, its test answering 1 or 0."""
    exhibit = EXHIBITS[name]
    return lambda: [exhibit.cause, lambda pipeline: int(exhibit.test(pipeline))]


def _twice(name: str) -> Callable[[], tuple]:
    """A test that asks twice."""
    exhibit = EXHIBITS[name]
    return _made(exhibit.cause, lambda p: exhibit.test(p) and exhibit.test(p))


def _exercise(number: int, name: str) -> Exercise:
    exhibit, (title, look) = EXHIBITS[name], ORDER[name]
    function = f"diagnose_{name}"
    reference = _made(exhibit.cause, exhibit.test)
    reference.__name__ = function
    wrong_cause = next(c for c in CAUSES if c != exhibit.cause)
    return Exercise(
        id=f"16.{number}", title=title, minutes=8, difficulty=3, signature=f"{function}()",
        reference=reference, check=_checked(name), returns="the diagnosis",
        accepted=(_in_other_words(name), _twice(name)),
        diagnoses=(
            (_made(exhibit.cause, lambda pipeline: True), PASSES),
            (_made(exhibit.cause, lambda pipeline: False), FAILS),
            (_made(wrong_cause, exhibit.test), OTHER),
            (_made(exhibit.cause, lambda pipeline: 1 / 0 == 1), STOPPED),
            (_made(exhibit.cause, lambda pipeline: None), EMPTY),
            (lambda: (exhibit.test, exhibit.cause), "the cause comes first, then the test"),
            (lambda: (exhibit.cause, exhibit.test(exhibit.broken)),
             "the test was called: return `test` itself, without parentheses"),
            (_made("a bug", exhibit.test),
             "'a bug' is none of the causes: choose one of CAUSES"),
        ),
        hints=(
            ("What does it promise?",
             "Read the docstring. Each exhibit breaks one sentence of it."),
            ("What do I test it on?", f"On {look}."),
            ("My test fails on everything",
             "Run it on a right pipeline of your own. Test the promise, not the way it is kept."),
        ),
    )  # fmt: skip


# 16.9 ------------------------------------------------------------------------------------------


def choose_repairs(scores: Scores, baseline: str) -> tuple[str, float, float]:
    """The fewest repairs that surely leave at most five points lost, and their interval."""
    limit = 0.05
    for choice in scores:
        low, high = interval(scores[baseline], scores[choice])
        if low >= -limit:
            return choice, low, high
    raise ValueError("the baseline is one of the options")


def _releases() -> Iterator[tuple[str, dict[str, Any]]]:
    """What each release loses against FP32, in accuracy; many pictures, and few."""
    names = ("as it is", "one repair", "both repairs", "FP32")
    for number, (label, pictures, lost) in enumerate((
        ("two bugs that both cost", 4_000, (0.85, 0.4, 0.02)),
        ("the second one hardly costs", 4_000, (0.8, 0.01, 0.0)),
        ("none of them costs much", 4_000, (0.02, 0.01, 0.0)),
        ("too few pictures to promise anything", 150, (0.5, 0.045, 0.01)),
        ("few pictures, and a loss that may be chance", 100, (0.6, 0.07, 0.02)),
        ("the network is better without a repair", 4_000, (-0.03, 0.0, 0.0)),
        ("it is better by more than the limit", 4_000, (-0.07, 0.0, 0.0)),
        ("a repair that brings out another bug", 4_000, (0.02, 0.3, 0.0)),
        ("a third bug that nobody has found", 4_000, (0.8, 0.4, 0.15)),
        ("one repair leaves a little more than five points", 4_000, (0.5, 0.07, 0.0)),
        ("one repair leaves a little less than five points", 4_000, (0.5, 0.035, 0.0)),
    )):  # fmt: skip
        shares = {name: 0.92 - loss for name, loss in zip(names, (*lost, 0.0), strict=True)}
        yield label, {"scores": made_scores(pictures, shares, 1690 + number), "baseline": "FP32"}
    one = {"as it is": 0.42, "one repair": 0.89, "both repairs": 0.92, "FP32": 0.92}
    scores = made_scores(900, one, 1712)
    yield "just enough pictures to be sure", {"scores": scores, "baseline": "FP32"}
    scores = made_scores(4_000, {"v1": 0.2, "v1.1": 0.464, "v1.2": 0.5, "float": 0.5}, 1711)
    label = "a hard task: even the float network is right half of the time"
    yield label, {"scores": scores, "baseline": "float"}


REPAIRS = Exercise(
    id="16.9", title="Decide: which repairs have to go out?", minutes=8, difficulty=3,
    signature="choose_repairs(scores, baseline)", reference=choose_repairs, cases=_releases,
    compare=functools.partial(defended, objection=cheapest_within(0.05)), agree=same_decision,
    accepted=(first_that_fits(0.05), by_standard_error(0.05)),
    diagnoses=(
        *WRONG_INTERVALS,
        *WRONG_CHOICES,
        ("low >= -limit => abs(low) <= limit",
         "a gain was refused: the limit is for losses alone"),
    ),
    hints=HINTS,
)  # fmt: skip


EXERCISES = [*(_exercise(number, name) for number, name in enumerate(ORDER, start=1)), REPAIRS]
