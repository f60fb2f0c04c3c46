"""Which functions of the course an answer may call: those that the course's own answers call."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Iterator
from typing import Any

from ptq_classroom.kit import exercises

ALWAYS = ("ptq_course.grids.affine.IntGrid", "ptq_course.grids.affine.QParams", "ptq_course.errors")
BOOTSTRAP = "ptq_course.grids.metrics.paired_bootstrap"
# Answers to one exercise that another one builds on.
BUILT_ON = {"08.4": ("ptq_course.integer.fixed_point.", "ptq_course.integer.operations.")}
QUANTIZER = "ptq_course.simulation.quantizer.PTQQuantizer"


@functools.cache
def names(id: str) -> tuple[str, ...]:
    """Beginnings of full names ("ptq_course.grids.metrics.paired_bootstrap") for an exercise.

    An exercise on the quantizer itself may use the whole course; a decision may use the bootstrap.
    """
    exercise = exercises.get(id)
    found = {*ALWAYS, *BUILT_ON.get(id, ())}
    seen: set[Any] = set()
    for answer in (exercise.reference, *exercise.accepted):
        if str(getattr(answer, "__module__", "")).startswith("ptq_classroom.chapters"):
            found |= set(_used(answer, seen))
    if QUANTIZER in found:
        return ("ptq_course.",)
    if any(name.startswith("ptq_classroom.kit.decisions.interval") for name in found):
        found.add(BOOTSTRAP)
    return tuple(sorted(found))


def _used(fn: Any, seen: set[Any]) -> Iterator[str]:
    """Full names of what a function takes from the course, through the helpers beside it."""
    fn = inspect.unwrap(fn)
    code = getattr(fn, "__code__", None)
    if code is None or fn in seen:
        return
    seen.add(fn)
    for word in _words(code):
        value = fn.__globals__.get(word)
        module = getattr(value, "__module__", None)
        if not isinstance(module, str):
            continue
        if module.startswith("ptq_classroom.chapters") and isinstance(value, types.FunctionType):
            yield from _used(value, seen)
        if module.startswith(("ptq_course", "ptq_classroom")):
            yield f"{module}.{getattr(value, '__qualname__', word)}"


def _words(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _words(constant)
