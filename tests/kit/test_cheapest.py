"""Decisions with a limit: the shared cases tell the answers apart, and any limit works."""

from __future__ import annotations

import pytest

from ptq_classroom.kit.cheapest import by_standard_error, first_that_fits, limit_cases
from ptq_classroom.kit.decisions import cheapest_within, interval

NAMES = ("small", "medium", "large", "whole")


@pytest.mark.parametrize("limit", [0.01, 0.02])
def test_each_kind_of_option_wins_somewhere(limit: float):
    cases = dict(limit_cases(NAMES, limit, 7))
    won = {label: first_that_fits(limit)(**case)[0] for label, case in cases.items()}
    assert set(won.values()) == {"small", "large", "whole"}
    assert won["too few pictures to promise anything"] == "whole"


@pytest.mark.parametrize("limit", [0.01, 0.02])
def test_both_right_answers_choose_what_can_be_defended(limit: float):
    for label, case in limit_cases(NAMES, limit, 7):
        choices = {make(limit)(**case)[0] for make in (first_that_fits, by_standard_error)}
        assert len(choices) == 1, label
        assert cheapest_within(limit)(choices.pop(), case["scores"], case["baseline"]) == ""


def test_few_pictures_leave_the_mean_inside_the_limit_and_the_interval_outside():
    case = dict(limit_cases(NAMES, 0.01, 7))["too few pictures to promise anything"]
    low, high = interval(case["scores"]["whole"], case["scores"]["large"])
    assert low < -0.01 < (low + high) / 2
