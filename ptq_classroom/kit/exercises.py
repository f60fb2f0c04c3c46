"""An exercise: a right answer, generated cases, known wrong answers, other right answers.

The wrong answers double as diagnosis. Exercises live in `chapters/chNN/exercises.py`, loaded on
demand; `checking.check` runs one on a learner's function.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ptq_classroom.kit.mutation import mutation
from ptq_classroom.kit.values import same

CHAPTERS = Path(__file__).resolve().parents[1] / "chapters"

Cases = Callable[[], Iterable[tuple[str, dict[str, Any]]]]


@dataclass(frozen=True)
class Exercise:
    """One exercise. Give `cases` + `reference`, or a `check` of your own, or both.

    cases: yields (label, {parameter name: value}) from seeded generators; values pass by position.
    reference: the right answer; its output on each case is what is expected.
    compare: compare(got, expected, **inputs) raises Failure; default expect_close(rtol, atol).
    check: check(fn) for properties beyond single cases; fn is a `Probe` around the learner's.
    diagnoses: (known wrong answer, likely cause); a wrong answer is a function, or one or several
        changes "before => after" of the reference's source (see mutation.py), and is a function in
        the exercise that comes of it. accepted: right answers written differently.
    pace: one case in the size that the notebook has, where slowness would show (see pace.py).
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
    diagnoses: tuple[tuple[Any, ...], ...]
    accepted: tuple[Callable[..., Any], ...]
    cases: Cases | None = None
    compare: Callable[..., None] | None = None
    check: Callable[..., None] | None = None
    returns: str | tuple[str, ...] = "the result"
    rtol: float = 1e-5
    atol: float = 1e-8
    pace: Callable[[], tuple[str, dict[str, Any]]] | None = None
    may_change_inputs: bool = False
    agree: Callable[[Any, Any], bool] = same

    def __post_init__(self) -> None:
        made = tuple((self._wrong(row[:-1]), row[-1]) for row in self.diagnoses)
        object.__setattr__(self, "diagnoses", made)

    def _wrong(self, answer: tuple[Any, ...]) -> Callable[..., Any]:
        return answer[0] if callable(answer[0]) else mutation(self.reference, *answer)

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
    names = [p.parent.name for p in CHAPTERS.glob("*/exercises.py")]
    numbered = sorted(n[2:] for n in names if re.fullmatch(r"ch\d\d", n))
    return (["prep"] if "prep" in names else []) + numbered


def load(chapter: str) -> list[Exercise]:
    """The exercises of one chapter, from its folder's exercises.py."""
    name = chapter if chapter == "prep" else f"ch{chapter}"
    return importlib.import_module(f"ptq_classroom.chapters.{name}.exercises").EXERCISES


def everything() -> list[Exercise]:
    """Every exercise of every chapter."""
    return [e for chapter in chapters() for e in load(chapter)]
