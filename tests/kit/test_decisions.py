"""Decisions: any choice that the data carry passes; others fall with their cause."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from ptq_classroom.kit import decisions as kit
from ptq_classroom.kit.decisions import (
    Scores,
    cheapest_within,
    defended,
    interval,
    made_scores,
    unpaired,
)
from ptq_classroom.kit.examine import examine
from ptq_classroom.kit.exercises import Exercise

CLEAR = {"old": 0.80, "new": 0.90, "odd": 0.70}
EVEN = {"old": 0.80, "new": 0.86, "odd": 0.86}


def choose(scores: Scores, baseline: str) -> tuple[str, float, float]:
    """The option with the highest mean, and its interval against the baseline."""
    choice = max(scores, key=lambda name: scores[name].mean().item())
    low, high = interval(scores[baseline], scores[choice])
    return choice, low, high


def cases():
    for label, accuracies in (("clear", CLEAR), ("even", EVEN)):
        yield label, {"scores": made_scores(3000, accuracies, 5), "baseline": "old"}


BEST = Exercise(
    id="99.1", title="Choose", minutes=5, difficulty=2, signature="choose(scores, baseline)",
    reference=choose, cases=cases, agree=kit.same_decision,
    compare=partial(defended, objection=kit.no_rival_is_better),
    accepted=(lambda s, b: ("new", interval(s[b], s["new"])),) * 2, hints=(("a", "b"),) * 2,
    diagnoses=(
        *kit.WRONG_INTERVALS,
        ("max(scores => min(scores", "this is the worst of them"),
    ),
)  # fmt: skip


@pytest.mark.parametrize(("wrong", "cause"), BEST.diagnoses)
def test_a_wrong_answer_is_named(wrong, cause: str):
    result = examine(BEST, wrong)
    assert result.status == "failed"
    assert result.failure.cause == cause


def pick(name: str):
    return lambda s, b: (name, *interval(s[b], s[name]))


def test_every_choice_that_no_rival_beats_is_accepted():
    _, even = list(cases())[1]
    for name, objection in (("new", ""), ("odd", ""), ("old", "is better on the same pictures")):
        assert objection in kit.no_rival_is_better(name, **even)
        assert bool(objection) == bool(kit.no_rival_is_better(name, **even))
    assert examine(BEST, choose).status == "passed"
    assert examine(BEST, pick("new")).status == "passed"
    failure = examine(BEST, pick("odd")).failure
    assert failure.headline.startswith("'odd' cannot be defended: 'old' is better")


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda s, b: "new", "should return 3 values"),
        (lambda s, b: None, "should return 3 values"),
        (lambda s, b: ("best", 0.0, 0.1), "'best' is no option; there are 'old', 'new', 'odd'"),
        (lambda s, b: ("new", "a", 0.1), "low and high should be numbers"),
        (lambda s, b: ("new", float("nan"), 0.1), "low is not a number"),
        (lambda s, b: ("new", 0.05, 0.15), "not the interval of 'new' minus 'old'"),
        (lambda s, b: ("new", *interval(s[b], s["odd"])), "not the interval of 'new'"),
    ],
)
def test_what_is_no_decision_is_said(answer, said: str):
    assert said in examine(BEST, answer).failure.headline


def test_other_ways_to_write_an_interval():
    def normal(s, b):
        d = s["new"] - s[b]
        half = 1.96 * d.std() / len(d) ** 0.5
        return "new", torch.stack([d.mean() - half, d.mean() + half])

    assert examine(BEST, normal).status == "passed"


def test_the_cheapest_within_a_limit():
    scores = made_scores(4000, {"4": 0.86, "6": 0.898, "8": 0.899, "32": 0.90}, 7)
    against = cheapest_within(0.01)
    assert "it may lose" in against("4", scores, "32")
    assert against("6", scores, "32") == ""
    assert "'6' is cheaper" in against("8", scores, "32")
    few = {name: row[:60] for name, row in scores.items()}  # too few pictures to promise anything
    assert "it may lose" in against("4", few, "32")


def test_made_scores_are_paired_and_as_good_as_asked():
    scores = made_scores(4000, CLEAR, 1)
    for name, accuracy in CLEAR.items():
        assert abs(scores[name].mean().item() - accuracy) < 0.001
    low, high = interval(scores["old"], scores["new"])
    wide = unpaired(scores["old"], scores["new"])
    assert high - low < 0.7 * (wide[1] - wide[0])
