"""Run an exercise on a learner's function, watch each call, name the likely cause of a failure."""

from __future__ import annotations

import inspect
import linecache
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ptq_course.classroom.expect import Failure, expect_close, expect_unchanged
from ptq_course.classroom.values import alike, same, snapshot

if TYPE_CHECKING:
    from ptq_course.classroom.exercises import Exercise


class Probe:
    """The learner's function, watched: inputs are copied, changes noticed, errors located."""

    def __init__(self, fn: Callable[..., Any], exercise: Exercise):
        self.fn, self.exercise = fn, exercise
        self.calls: list[tuple[tuple, dict, Any]] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        kept = snapshot((args, kwargs))
        try:
            got = self.fn(*args, **kwargs)
        except Exception as error:
            self.calls.append((*kept, error))
            if _not_attempted(error, self.fn):
                raise NotAttempted from error
            raise _located(error, self.fn, self.exercise) from error
        self.calls.append((*kept, snapshot(got)))
        if not self.exercise.may_change_inputs:
            names = _names(self.exercise, args)
            for name, before, after in zip(names, kept[0], args, strict=False):
                expect_unchanged(before, after, name)
        return got


class NotAttempted(Exception):
    """The stub is still in place."""


@dataclass
class Result:
    """What examining an answer found: "passed", "not attempted" or "failed" with its Failure."""

    exercise: Exercise
    status: str
    failure: Failure | None = None
    calls: list = field(default_factory=list, repr=False)


def examine(exercise: Exercise, fn: Callable[..., Any]) -> Result:
    """Run the checks; on failure, look for the known wrong answer that does the same."""
    probe = Probe(fn, exercise)
    try:
        _run(exercise, probe)
    except NotAttempted:
        return Result(exercise, "not attempted")
    except Failure as failure:
        if probe.calls and not failure.inputs:
            args = probe.calls[-1][0]
            failure.inputs = dict(zip(_names(exercise, args), args, strict=False))
        failing = len(probe.calls) - 1
        if not failure.cause or (failure.tentative and not _right_numbers(exercise, probe.calls)):
            _run_on(exercise, probe)
            known = _diagnose(exercise, probe.calls, failing, failure.structure)
            failure.cause = known or failure.cause
        return Result(exercise, "failed", failure, probe.calls)
    return Result(exercise, "passed", calls=probe.calls)


def _run(exercise: Exercise, probe: Probe) -> None:
    if not callable(probe.fn):
        raise Failure(
            f"check needs the function itself: check(..., {exercise.function})",
            expected="a function",
            got=probe.fn,
        )
    for label, inputs in exercise.cases() if exercise.cases else ():
        expected = exercise.reference(*snapshot(tuple(inputs.values())))
        try:
            got = probe(*snapshot(tuple(inputs.values())))
            if exercise.compare:
                exercise.compare(got, expected, **inputs)
            else:
                expect_close(got, expected, exercise.returns, exercise.rtol, exercise.atol)
        except Failure as failure:
            failure.case, failure.inputs = label, inputs
            raise
    if exercise.check:
        exercise.check(probe)


def _run_on(exercise: Exercise, probe: Probe) -> None:
    """Call the learner's function on the remaining cases, so that look-alikes can be told apart."""
    for _, inputs in list(exercise.cases() if exercise.cases else ())[len(probe.calls) :]:
        try:
            probe(*snapshot(tuple(inputs.values())))
        except (Failure, NotAttempted):
            continue


def _diagnose(exercise: Exercise, calls: list, failing: int, structure: bool = False) -> str:
    """The cause whose wrong answer equals the learner's on the failing call and on most others.

    structure: what failed is not a number; then only an answer of the very same structure counts.
    """
    best, cause = len(calls) // 2, ""  # a look-alike on a single input is not a cause
    for wrong, sentence in exercise.diagnoses if calls else ():
        outcomes = [_outcome(wrong, args, kwargs) for args, kwargs, _ in calls]
        if structure and not alike(calls[failing][2], outcomes[failing]):
            continue
        agree = [
            exercise.agree(got, outcome)
            for (_, _, got), outcome in zip(calls, outcomes, strict=True)
        ]
        if agree[failing] and sum(agree) > best:
            best, cause = sum(agree), sentence
    return cause


def _right_numbers(exercise: Exercise, calls: list) -> bool:
    """Whether the last call gave what the reference gives."""
    args, kwargs, got = calls[-1]
    return same(got, _outcome(exercise.reference, args, kwargs))


def _outcome(fn: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    args, kwargs = snapshot((args, kwargs))
    try:
        return fn(*args, **kwargs)
    except Exception as error:
        return error


def _names(exercise: Exercise, args: tuple) -> list[str]:
    try:
        names = list(inspect.signature(exercise.reference).parameters)
    except (TypeError, ValueError):
        names = []
    return names + [f"argument {i}" for i in range(len(names), len(args))]


def _own_line(error: BaseException, fn: Callable[..., Any]) -> tuple[int, str, str] | None:
    """(line number, source text, function) of the deepest line that the learner wrote."""
    filename = getattr(getattr(fn, "__code__", None), "co_filename", None)
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if frame.filename == filename:
            return frame.lineno, linecache.getline(filename, frame.lineno).strip(), frame.name
    return None


def _not_attempted(error: BaseException, fn: Callable[..., Any]) -> bool:
    """A stub's own `raise NotImplementedError`, not one from inside a library."""
    if not isinstance(error, NotImplementedError):
        return False
    last = traceback.extract_tb(error.__traceback__)[-1]
    line = linecache.getline(last.filename, last.lineno)
    return not line or "NotImplementedError" in line


def _located(error: Exception, fn: Callable[..., Any], exercise: Exercise) -> Failure:
    own = _own_line(error, fn)
    text = f"{type(error).__name__}: {error}"
    if own is None:
        failure = Failure(f"could not be called as {exercise.signature}", got=text)
        failure.expected = exercise.signature
        return failure
    failure = Failure(f"raised {text}")
    failure.location = f"line {own[0]} in {own[2]}: {own[1]}"
    return failure
