"""Every exercise of every chapter: wrong answers fail with their cause named, right ones pass."""

from __future__ import annotations

import pytest

from ptq_course.classroom import exercises
from ptq_course.classroom.exercises import Exercise, everything, examine
from ptq_course.classroom.values import same, snapshot

ALL = everything()
ids = pytest.mark.parametrize("exercise", ALL, ids=lambda e: e.id)


def stub(*args, **kwargs):
    raise NotImplementedError


def test_there_are_exercises():
    assert [e.id for e in ALL][:2] == ["prep.1", "prep.2"]
    assert {"01.1", "01.2"} <= {e.id for e in ALL}


def test_ids_and_function_names_are_unique():
    assert len({e.id for e in ALL}) == len({e.function for e in ALL}) == len(ALL)


@ids
def test_enough_material(exercise: Exercise):
    assert len(exercise.diagnoses) >= 3
    assert len(exercise.accepted) >= 2
    assert len(exercise.hints) >= 2
    assert 1 <= exercise.difficulty <= 5
    assert 1 <= exercise.minutes <= 30
    assert exercise.cases or exercise.check
    assert exercises.get(exercise.id) is exercise
    causes = [cause for _, cause in exercise.diagnoses]
    assert len(set(causes)) == len(causes)


@pytest.mark.parametrize(
    ("exercise", "wrong", "cause"),
    [(e, wrong, cause) for e in ALL for wrong, cause in e.diagnoses],
    ids=[f"{e.id}-{i}" for e in ALL for i in range(len(e.diagnoses))],
)
def test_wrong_answer_fails_with_its_cause(exercise: Exercise, wrong, cause: str):
    result = examine(exercise, wrong)
    assert result.status == "failed"
    assert result.failure.cause == cause
    assert result.failure.inputs, "the message must show the generated input"
    assert exercise.function or str(result.failure)


@pytest.mark.parametrize(
    ("exercise", "right"),
    [(e, right) for e in ALL for right in (e.reference, *e.accepted)],
    ids=[f"{e.id}-{i}" for e in ALL for i in range(1 + len(e.accepted))],
)
def test_right_answer_passes(exercise: Exercise, right):
    result = examine(exercise, right)
    assert result.status == "passed", str(result.failure)


@ids
def test_stub_is_not_attempted(exercise: Exercise, capsys: pytest.CaptureFixture):
    exercises.check(exercise.id, stub)
    assert "not attempted yet" in capsys.readouterr().out


@ids
def test_an_empty_answer_is_told_to_return(exercise: Exercise):
    result = examine(exercise, lambda *args: None)
    assert result.status == "failed"


@ids
def test_cases_are_the_same_in_every_run(exercise: Exercise):
    if exercise.cases:
        first, second = list(exercise.cases()), list(exercise.cases())
        assert [label for label, _ in first] == [label for label, _ in second]
        assert all(same(a, b) for (_, a), (_, b) in zip(first, second, strict=True))


@ids
def test_reference_leaves_its_inputs_alone(exercise: Exercise):
    for _, inputs in exercise.cases() if exercise.cases else ():
        before = snapshot(inputs)
        exercise.reference(*inputs.values())
        assert exercise.may_change_inputs or same(before, inputs)
