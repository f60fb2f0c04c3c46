"""Slow answers: the note, by a clock of our own (nothing here is timed)."""

from __future__ import annotations

import pytest

from ptq_classroom.kit import exercises, pace
from ptq_classroom.kit.exercises import Exercise, everything


class Clock:
    """Stands still but where a function says how long it takes."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(pace, "time", made)
    return made


def answer(clock: Clock, seconds: float):
    def double(x):
        if len(x) == 3:
            clock.now += seconds
        return [2 * v for v in x]

    return double


def exercise(clock: Clock, loop: float, **changes) -> Exercise:
    reference = answer(clock, 1e-4)
    wrong = tuple((lambda x, n=n: n, f"it is {n}") for n in range(3))
    return Exercise(
        "99.1", "Double", 1, 1, "double(x)", reference, (("a", "b"),) * 2, wrong,
        (answer(clock, loop),), **changes, pace=lambda: ("three numbers", {"x": [1, 2, 3]}),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("own", "loop", "noted"),
    [(2.0, 0.01, True), (0.6, 0.01, False), (0.04, 1e-5, False), (1e-4, 0.01, False)],
)
def test_what_is_a_hundred_times_the_plain_loop_is_noted(clock, own, loop, noted):
    said = pace.note(exercise(clock, loop), answer(clock, own))
    assert bool(said) == noted
    if noted:
        assert "200 times as slow as a plain loop: 2.0 s for three numbers" in said


def test_check_prints_the_note_below_what_passes(clock, monkeypatch, capsys):
    made = exercise(clock, 0.01, cases=lambda: [("two", {"x": [1, 2]})])
    monkeypatch.setattr(exercises, "get", lambda id: made)
    from ptq_classroom.kit.checking import check

    check("99.1", answer(clock, 5.0))
    passes, note, *_ = capsys.readouterr().out.splitlines()
    assert passes == "✓ 99.1 double passes"
    assert note.startswith("  right, but 500 times as slow as a plain loop: 5.0 s")


def test_an_answer_that_fails_at_that_size_is_left_alone(clock):
    def fails(x):
        raise MemoryError

    assert pace.note(exercise(clock, 0.01), fails) == ""


@pytest.mark.parametrize("made", [e for e in everything() if e.pace], ids=lambda e: e.id)
def test_the_case_of_real_size_is_one_that_right_answers_agree_on(made):
    _, inputs = made.pace()
    expected = made.reference(*inputs.values())
    for right in made.accepted:
        (made.compare or (lambda got, wanted, **_: None))(
            right(*inputs.values()), expected, **inputs
        )
    assert list(inputs) == list(next(iter(made.cases()))[1])
