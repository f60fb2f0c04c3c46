"""`check("01.2", quantize)`: run a learner's function on generated inputs and say what is wrong.

An `Exercise` knows a right answer, generated cases, known wrong answers (which double as diagnosis)
and differently written right answers. They live in `classroom/checks/chNN.py`, loaded on demand.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ptq_course.classroom.examine import Probe, Result, examine
from ptq_course.classroom.expect import Failure
from ptq_course.classroom.values import same

Cases = Callable[[], Iterable[tuple[str, dict[str, Any]]]]


@dataclass(frozen=True)
class Exercise:
    """One exercise. Give `cases` + `reference`, or a `check` of your own, or both.

    cases: yields (label, {parameter name: value}) from seeded generators; values pass by position.
    reference: the right answer; its output on each case is what is expected.
    compare: compare(got, expected, **inputs) raises Failure; default expect_close(rtol, atol).
    check: check(fn) for properties beyond single cases; fn is a `Probe` around the learner's.
    diagnoses: (known wrong answer, likely cause). accepted: right answers written differently.
    agree: agree(got, known wrong answer), whether the two do the same; where chance plays a part,
        equality would never find it.
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
    agree: Callable[[Any, Any], bool] = same

    @property
    def function(self) -> str:
        return self.signature.split("(")[0]


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

    strict=True raises instead of printing a failure (used below committed solutions). Without it
    a function of the course is refused: it would pass, and be saved as the learner's.
    """
    exercise = get(id)
    if not strict and (getattr(fn, "__module__", None) or "").startswith("ptq_course."):
        print(f"✗ {id} {exercise.function}: this is the course's function: run your own cell again")
        return
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
        print(f"✗ {id} {exercise.function}: {_text(result.failure)}")
        print(f'  stuck?       hint("{id}") has {len(exercise.hints)} hints')


def _text(failure: Failure) -> str:
    """What the learner reads, also where the answer is a thing that cannot be shown."""
    try:
        return str(failure)
    except Exception:
        kind = type(failure.got).__name__
        return f"{failure.headline}\n  got          a {kind} that cannot be shown"


__all__ = [
    "Exercise",
    "Probe",
    "Result",
    "chapters",
    "check",
    "everything",
    "examine",
    "get",
    "load",
]
