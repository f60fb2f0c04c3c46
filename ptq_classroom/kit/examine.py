"""Run an exercise on a learner's function, watch each call, name the likely cause of a failure."""

from __future__ import annotations

import contextlib
import inspect
import linecache
import traceback
import types
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from ptq_classroom.kit.exercises import Exercise, everything
from ptq_classroom.kit.expect import Failure, expect_close, expect_unchanged
from ptq_classroom.kit.values import alike, brief, same, snapshot


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
            raise self.account(error) from error
        self.calls.append((*kept, _kept(got)))
        if not self.exercise.may_change_inputs:
            names = _names(self.exercise, args)
            for name, before, after in zip(names, kept[0], args, strict=False):
                expect_unchanged(before, after, name)
        return got

    def account(self, error: Exception) -> Exception:
        """What to raise for an error of the learner's function: where, or that it is a stub."""
        if _not_attempted(error, self.fn):
            return NotAttempted()
        if stub := _other_stub(error):
            return Failure(stub)
        return _located(error, self.fn, self.exercise)


class NotAttempted(Exception):
    """The stub is still in place."""


@dataclass
class Result:
    """What examining an answer found: "passed", "not attempted" or "failed" with its Failure."""

    exercise: Exercise
    status: str
    failure: Failure | None = None
    calls: list = field(default_factory=list, repr=False)


def examine(exercise: Exercise, fn: Callable[..., Any], watch: type[Probe] = Probe) -> Result:
    """Run the checks; on failure, look for the known wrong answer that does the same.

    watch: the probe to put around the function.
    """
    probe = watch(fn, exercise)
    try:
        _run(exercise, probe)
    except NotAttempted:
        return Result(exercise, "not attempted")
    except Failure as failure:
        if probe.calls and not failure.inputs:
            args = probe.calls[-1][0]
            failure.inputs = dict(zip(_names(exercise, args), args, strict=False))
        failing = len(probe.calls) - 1
        with contextlib.suppress(Exception):  # an odd answer that cannot be compared
            right = failure.tentative and _right_numbers(exercise, probe.calls)
            if not failure.cause or (failure.tentative and not right):
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
            with _comparing(probe, expected):
                if exercise.compare:
                    exercise.compare(got, expected, **inputs)
                else:
                    expect_close(got, expected, exercise.returns, exercise.rtol, exercise.atol)
        except Failure as failure:
            failure.case, failure.inputs = label, inputs
            raise
    if exercise.check:
        with _comparing(probe):
            exercise.check(probe)


@contextlib.contextmanager
def _comparing(probe: Probe, expected: Any = None) -> Iterator[None]:
    """Whatever an odd answer does to a comparison, the learner reads a `Failure`."""
    try:
        yield
    except (Failure, NotAttempted):
        raise
    except Exception as error:
        raise Failure(
            "the result could not be compared",
            expected=expected,
            got=_showable(probe.calls[-1][2]) if probe.calls else None,
            cause=f"another kind of result, or another nesting, is wanted "
            f"({type(error).__name__}: {error})",
        ) from error


def _kept(got: Any) -> Any:
    try:
        return snapshot(got)
    except RecursionError:  # nested too deeply, or in itself
        return got


def _showable(value: Any) -> Any:
    try:
        brief(value)
    except Exception:  # such as a tensor without data
        return f"a {type(value).__name__}"
    return value


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

        def agrees(call: tuple, wrong: Callable[..., Any] = wrong, structure: bool = False) -> bool:
            args, kwargs, got = call
            outcome = _outcome(wrong, args, kwargs)
            return (not structure or alike(got, outcome)) and exercise.agree(got, outcome)

        if agrees(calls[failing], structure=structure):
            agreed = 1 + sum(agrees(call) for i, call in enumerate(calls) if i != failing)
            if agreed > best:
                best, cause = agreed, sentence
    return cause


def _right_numbers(exercise: Exercise, calls: list) -> bool:
    """Whether the last call gave what the reference gives."""
    args, kwargs, got = calls[-1]
    return same(got, _outcome(exercise.reference, args, kwargs))


def _outcome(fn: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    """What one of our own functions gives; what a wrong one warns of is not the learner's."""
    args, kwargs = snapshot((args, kwargs))
    try:
        with warnings.catch_warnings(action="ignore"):
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
    own = inspect.unwrap(fn)  # not a decorator's line, such as torch.no_grad's
    filename = getattr(getattr(own, "__code__", None), "co_filename", None)
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if frame.filename == filename:
            return frame.lineno, linecache.getline(filename, frame.lineno).strip(), frame.name
    return None


def _not_attempted(error: BaseException, fn: Callable[..., Any]) -> bool:
    """A stub's own `raise NotImplementedError`, not one from a library or from another stub."""
    if not isinstance(error, NotImplementedError):
        return False
    last = traceback.extract_tb(error.__traceback__)[-1]
    line = linecache.getline(last.filename, last.lineno)
    raised_here = not line or "NotImplementedError" in line
    own = getattr(inspect.unwrap(fn), "__code__", None)
    return raised_here and _last_frame(error).f_code is own


def _other_stub(error: BaseException) -> str:
    """What to do first, when the answer called the stub of another exercise; else empty."""
    if not isinstance(error, NotImplementedError):
        return ""
    name = _last_frame(error).f_code.co_name
    ids = [e.id for e in everything() if e.function == name]
    return f"{name} is still a stub: do {ids[0]} first" if ids else ""


def _last_frame(error: BaseException) -> types.FrameType:
    """Where the error was raised."""
    return [frame for frame, _ in traceback.walk_tb(error.__traceback__)][-1]


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
