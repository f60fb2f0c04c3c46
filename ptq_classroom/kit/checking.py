"""`check("01.2", quantize)`: run a learner's function on generated inputs and say what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ptq_classroom.kit import exercises, learner, pace
from ptq_classroom.kit.cells import outdated
from ptq_classroom.kit.examine import examine
from ptq_classroom.kit.expect import Failure

OURS = ("ptq_course.", "ptq_classroom.")


def check(id: str, fn: Callable[..., Any], strict: bool = False) -> None:
    """Check `fn` against exercise `id` and print the outcome.

    strict=True raises instead of printing a failure (used below committed solutions). Without it
    a function of the course is refused: it would pass, and be saved as the learner's.
    """
    exercise = exercises.get(id)
    if not strict and (getattr(fn, "__module__", None) or "").startswith(OURS):
        print(f"✗ {id} {exercise.function}: this is the course's function: run your own cell again")
        return
    if not strict and (said := outdated(fn)):
        print(f"✗ {id} {exercise.function}: {said}")
        return
    result = examine(exercise, fn)
    if result.status == "passed":
        print(f"✓ {id} {exercise.function} passes")
        if said := pace.note(exercise, fn):
            print(f"  {said}")
        if not strict:
            learner.save(exercise, fn)
    elif strict:
        raise result.failure or Failure(f"{id} {exercise.function} is not attempted yet")
    elif result.status == "not attempted":
        print(f"○ {id} {exercise.function} not attempted yet ({exercise.minutes} minutes)")
    else:
        print(f"✗ {id} {exercise.function}: {_text(result.failure)}")
        print(f'  stuck?       hint("{id}") has {len(exercise.hints)} hints')


def _text(failure: Failure) -> str:
    """What the learner reads, also where the answer is a thing that cannot be shown."""
    try:
        return str(failure)
    except Exception:
        kind = type(failure.got).__name__
        return f"{failure.headline}\n  got          a {kind} that cannot be shown"
