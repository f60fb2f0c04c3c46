"""Fresh cases for every grading: the seeds that exercises write down are mixed with the run's own.

A fresh seed counts only where the course's own right answers pass on it and its wrong ones fail.
Where no seed changes the cases (a fixed list of numbers), only the shipped ones are asked.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from ptq_classroom.kit import exercises
from ptq_classroom.kit.examine import examine
from ptq_classroom.kit.values import same

TRIES = 6


def mixed(seed: int, run: int) -> int:
    """One seed of both, below 2**31."""
    digest = hashlib.sha256(f"{seed} {run}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


@contextlib.contextmanager
def fresh(run: int | None) -> Iterator[None]:
    """While it lasts, generators of the cases start elsewhere; None changes nothing.

    The subject keeps its seeds: those of a bootstrap are part of what it computes.
    """
    if run is None:
        yield
        return
    made, generator, global_seed = np.random.default_rng, torch.Generator, torch.manual_seed

    def of_subject() -> bool:
        return str(sys._getframe(2).f_globals.get("__name__")).startswith("ptq_course")

    def default_rng(seed: Any = None) -> np.random.Generator:
        return made(mixed(seed, run) if isinstance(seed, int) and not of_subject() else seed)

    class Generator(generator):
        def manual_seed(self, seed: int) -> Any:
            return super().manual_seed(mixed(seed, run))

    def manual_seed(seed: int) -> Any:
        return global_seed(mixed(seed, run))

    np.random.default_rng, torch.Generator, torch.manual_seed = default_rng, Generator, manual_seed
    try:
        yield
    finally:
        np.random.default_rng, torch.Generator = made, generator
        torch.manual_seed = global_seed


@functools.cache
def fair(id: str, run: int, wanted: int = 2) -> tuple[int, ...]:
    """Up to `wanted` seeds, drawn from the run's, on which shipped answers fare as they should."""
    exercise = exercises.get(id)
    shipped = _inputs(exercise, None)
    found: list[int] = []
    for number in range(TRIES):
        seed = mixed(number, run)
        if same(shipped, _inputs(exercise, seed), rtol=0):
            return ()
        if _fares_well(exercise, seed):
            found.append(seed)
        if len(found) == wanted:
            break
    return tuple(found)


def _inputs(exercise: exercises.Exercise, seed: int | None) -> list:
    with fresh(seed), _quiet():
        return [args for args, _, _ in examine(exercise, exercise.reference).calls]


def _fares_well(exercise: exercises.Exercise, seed: int) -> bool:
    bare = dataclasses.replace(exercise, diagnoses=())  # no causes: they take most of the time

    def passes(fn: Callable[..., Any]) -> bool:
        with _quiet():
            return examine(bare, fn).status == "passed"

    with fresh(seed):
        right = all(map(passes, (exercise.reference, *exercise.accepted)))
        return right and not any(passes(wrong) for wrong, _ in exercise.diagnoses)


def _quiet() -> Any:
    return warnings.catch_warnings(action="ignore")
