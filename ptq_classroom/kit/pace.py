"""A note for an answer that is right but far slower than it need be, on inputs of the real size."""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Callable
from typing import Any

from ptq_classroom.kit.exercises import Exercise
from ptq_classroom.kit.values import snapshot

SLOW = 100  # times the slowest of our own right answers, which is a plain loop
BORING = 0.05  # seconds a call: less than that nobody waits for
ENOUGH = 0.5  # seconds: so long a call is measured once


def note(exercise: Exercise, fn: Callable[..., Any]) -> str:
    """What to say about the speed of an answer that passed; "" where there is nothing to say.

    Seconds are compared within one run, the better of two calls each, never with a fixed number.
    """
    if exercise.pace is None:
        return ""
    label, inputs = exercise.pace()
    values = tuple(inputs.values())
    try:
        own = _seconds(fn, values)
        if own < BORING:
            return ""
        loop = max(_seconds(right, values) for right in (exercise.reference, *exercise.accepted))
    except Exception:  # the checks have passed: whatever this is, it is no matter of speed
        return ""
    if own < SLOW * loop:
        return ""
    return (
        f"right, but {own / loop:,.0f} times as slow as a plain loop: {own:.1f} s for {label}, and "
        "the notebook calls it often. Is something computed anew in each turn of a loop? Compute "
        "it once, before."
    )


def _seconds(fn: Callable[..., Any], values: tuple) -> float:
    best = float("inf")
    for _ in range(2):
        given = snapshot(values)
        with contextlib.redirect_stdout(io.StringIO()):
            start = time.perf_counter()
            fn(*given)
            best = min(best, time.perf_counter() - start)
        if best > ENOUGH:
            break
    return best
