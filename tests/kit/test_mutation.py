"""Wrong answers written as changes of the reference's source."""

from __future__ import annotations

import inspect
import traceback

import pytest

from ptq_classroom.kit.mutation import mutation

STEP = 2


def halves(x: float, times: int) -> float:
    """x / STEP, x / STEP / STEP, ... as often as `times` says."""
    for _ in range(times):
        x = x / STEP
    return x


def test_one_fragment_is_replaced_and_the_original_stays():
    doubles = mutation(halves, "x / STEP => x * STEP")
    assert (doubles(8, 2), halves(8, 2)) == (32, 2)
    assert doubles.__name__ == "halves with x / STEP => x * STEP"
    assert inspect.signature(doubles) == inspect.signature(halves)


def test_changes_follow_one_another():
    assert mutation(halves, "x / STEP => x", "x = x => x -= 1")(8, 3) == 5
    assert mutation(halves, "x = x / STEP => pass")(8, 3) == 8
    assert mutation(halves, "/ STEP =>")(8, 3) == 8


@pytest.mark.parametrize(
    ("change", "times"),
    [("x * STEP => x", 0), ("times => 2", 1), ("x => y", 3), ("x / STEP", 1), (" => 3", 0)],
)
def test_a_fragment_that_does_not_stand_there_once_is_refused(change: str, times: int):
    if change == "times => 2":  # docstring and signature do not count
        assert mutation(halves, change)(8, 99) == 2
        return
    with pytest.raises(ValueError, match=rf"halves: .*{times} times"):
        mutation(halves, change)


def test_what_is_no_python_any_more_is_refused():
    with pytest.raises(SyntaxError):
        mutation(halves, "range(times) => range(times")


def test_names_are_those_of_the_module_at_the_time_of_the_call(monkeypatch):
    thirds = mutation(halves, "x / STEP => x / (STEP + 1)")
    monkeypatch.setitem(globals(), "STEP", 3)
    assert thirds(8, 1) == 2


def test_tracebacks_and_inspect_show_the_changed_source():
    broken = mutation(halves, "x / STEP => x / 0")
    with pytest.raises(ZeroDivisionError) as caught:
        broken(1, 1)
    assert traceback.extract_tb(caught.value.__traceback__)[-1].line == "x = x / 0"
    assert "x = x / 0" in inspect.getsource(broken)
    assert "x = x / STEP" in inspect.getsource(halves)
