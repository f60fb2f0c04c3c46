"""`check("01.2", quantize)`: run a learner's function on generated inputs and say what is wrong.

An `Exercise` knows a right answer, generated cases, known wrong answers (which double as diagnosis)
and differently written right answers. They live in `classroom/checks/chNN.py`, loaded on demand.
"""

from __future__ import annotations

import importlib
import inspect
import linecache
import re
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ptq_course.classroom.expect import (
    Failure,
    brief,
    expect_close,
    expect_unchanged,
    same,
    snapshot,
)

Cases = Callable[[], Iterable[tuple[str, dict[str, Any]]]]


@dataclass(frozen=True)
class Exercise:
    """One exercise. Give `cases` + `reference`, or a `check` of your own, or both.

    cases: yields (label, {parameter name: value}) from seeded generators; values pass by position.
    reference: the right answer; its output on each case is what is expected.
    compare: compare(got, expected, **inputs) raises Failure; default expect_close(rtol, atol).
    check: check(fn) for properties beyond single cases; fn is a `Probe` around the learner's.
    diagnoses: (known wrong answer, likely cause). accepted: right answers written differently.
    """

    id: str
    title: str
    minutes: int
    difficulty: int  # 1 (warm-up) .. 5
    signature: str  # "qparams(lo, hi, grid)"
    reference: Callable[..., Any]
    hints: tuple[tuple[str, str], ...]  # (symptom, text)
    diagnoses: tuple[tuple[Callable[..., Any], str], ...]
    accepted: tuple[Callable[..., Any], ...]
    cases: Cases | None = None
    compare: Callable[..., None] | None = None
    check: Callable[[Probe], None] | None = None
    returns: str | tuple[str, ...] = "the result"
    rtol: float = 1e-5
    atol: float = 1e-8
    may_change_inputs: bool = False

    @property
    def function(self) -> str:
        return self.signature.split("(")[0]


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


def get(id: str) -> Exercise:
    """The exercise with this id ("03.2"); KeyError names the ones there are."""
    chapter = id.split(".")[0]
    if chapter not in chapters():
        raise KeyError(f"no exercises for chapter {chapter!r}; there are {', '.join(chapters())}")
    found = {e.id: e for e in load(chapter)}
    if id not in found:
        raise KeyError(f"no exercise {id!r}; chapter {chapter} has {', '.join(found)}")
    return found[id]


def chapters() -> list[str]:
    """Chapters with exercises, in order: "prep", "01", ..."""
    names = [p.stem for p in (Path(__file__).parent / "checks").glob("*.py")]
    numbered = sorted(n[2:] for n in names if re.fullmatch(r"ch\d\d", n))
    return (["prep"] if "prep" in names else []) + numbered


def load(chapter: str) -> list[Exercise]:
    """The exercises of one chapter, from classroom/checks/chNN.py (or prep.py)."""
    name = chapter if chapter == "prep" else f"ch{chapter}"
    return importlib.import_module(f"ptq_course.classroom.checks.{name}").EXERCISES


def everything() -> list[Exercise]:
    """Every exercise of every chapter."""
    return [e for chapter in chapters() for e in load(chapter)]


def check(id: str, fn: Callable[..., Any], strict: bool = False) -> None:
    """Check `fn` against exercise `id` and print the outcome.

    strict=True raises instead of printing a failure (used below committed solutions).
    """
    exercise = get(id)
    result = examine(exercise, fn)
    if result.status == "passed":
        print(f"✓ {id} {exercise.function} passes")
        if not strict:
            from ptq_course.classroom import learner

            learner.save(exercise, fn)
    elif strict:
        raise result.failure or Failure(f"{id} {exercise.function} is not attempted yet")
    elif result.status == "not attempted":
        print(f"○ {id} {exercise.function} not attempted yet ({exercise.minutes} minutes)")
    else:
        print(f"✗ {id} {exercise.function}: {result.failure}")
        print(f'  stuck?       hint("{id}") has {len(exercise.hints)} hints')


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
        if not failure.cause:
            failing = len(probe.calls) - 1
            _run_on(exercise, probe)
            failure.cause = _diagnose(exercise, probe.calls, failing)
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


def _diagnose(exercise: Exercise, calls: list, failing: int) -> str:
    """The cause whose wrong answer equals the learner's on the failing call and on most others."""
    best, cause = 0, ""
    for wrong, sentence in exercise.diagnoses:
        agree = [same(got, _outcome(wrong, args, kwargs)) for args, kwargs, got in calls]
        if calls and agree[failing] and sum(agree) > best:
            best, cause = sum(agree), sentence
    return cause


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


__all__ = [
    "Exercise",
    "Failure",
    "Probe",
    "Result",
    "brief",
    "check",
    "everything",
    "examine",
    "get",
    "load",
]
