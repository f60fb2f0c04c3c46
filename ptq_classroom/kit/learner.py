"""The learner's own functions: what passed a check in my_course/ is kept in my_course/my_ptq.py.

Each exercise is one block between two marker lines. `function("kl")` gives the learner's function,
or the course's where there is none, and says which. The file is valid Python at all times.
"""

from __future__ import annotations

import contextlib
import functools
import io
import linecache
import os
import sys
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ptq_classroom.kit import exercises, learner_file, learner_source
from ptq_classroom.kit.examine import examine
from ptq_classroom.kit.values import like, snapshot

HEADER = '''"""Your functions: `check` writes here whatever passes. Change them in the notebooks."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

'''


def home() -> Path | None:
    """The my_course/ folder of a course that this process works in, or None.

    A folder of that name anywhere else is not the learner's copy: course.py and the package stand
    beside it. PTQ_MY_COURSE, where set, names the folder and is believed.
    """
    told = os.environ.get("PTQ_MY_COURSE")
    here = Path(told or Path.cwd())
    folders = [folder for folder in (here, *here.parents) if folder.name == "my_course"]
    return next((folder for folder in folders if told or _in_a_course(folder)), None)


def _in_a_course(folder: Path) -> bool:
    return (folder.parent / "course.py").is_file() and (folder.parent / "ptq_course").is_dir()


def save(exercise: exercises.Exercise, fn: Callable[..., Any]) -> None:
    """Put the source of `fn` into my_ptq.py (only inside my_course/), replacing its older block.

    Other notebooks may save at the same moment: the file is read again under its lock.
    """
    folder = home()
    if folder is None:
        return
    path = folder / "my_ptq.py"
    try:
        block = learner_source.block(exercise.function, fn)
        _passes_alone(exercise, _replace(_read(path), exercise.id, block), path)
        with learner_file.alone(path):
            old = _read(path)
            new = _replace(old, exercise.id, block)
            compile(new, str(path), "exec")  # the file as a whole must stay valid Python
            if not path.exists() or new != old:
                learner_file.write(path, new.encode("utf-8"))
    except Exception as error:  # whatever it is, a passed check stays passed
        print(f"  (not saved into my_ptq.py: {_reason(error)})")
    else:
        print("  saved into my_course/my_ptq.py")


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else HEADER


def _passes_alone(exercise: exercises.Exercise, text: str, path: Path) -> None:
    """Check the block as the file will hold it; what it prints and warns of was seen before."""
    linecache.cache[str(path)] = (len(text), None, text.splitlines(keepends=True), str(path))
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            alone = examine(exercise, _load(text, exercise, path))
            said = str(alone.failure or "it is a stub")
    finally:
        linecache.cache.pop(str(path), None)  # the file on the disk is another one still
    if alone.status != "passed":
        raise ValueError(f"without the notebook around it, {said}")


def _reason(error: Exception) -> str:
    if isinstance(error, PermissionError):
        return (
            f"{error.strerror}; is the folder read-only, or the file open in another program? "
            f"Then run the check again ({error.filename})"
        )
    return str(error) or type(error).__name__


def function(name: str, quiet: bool = False) -> Callable[..., Any]:
    """The learner's function of that name if it passed its check, else the course's own.

    A check accepts lists, arrays and tensors alike. Here the learner's result is converted to the
    type that the course's version returns, so that the cells behind may rely on it.
    """
    exercise = next((e for e in exercises.everything() if e.function == name), None)
    if exercise is None:
        known = ", ".join(e.function for e in exercises.everything())
        raise KeyError(f"no exercise builds {name!r}; there are {known}")
    own, note = _own(exercise)
    if not quiet:
        print(f"{name} ({exercise.id}): {note}")
    return conforming(exercise, own) if own else exercise.reference


def conforming(exercise: exercises.Exercise, fn: Callable[..., Any]) -> Callable[..., Any]:
    """`fn`, its result converted to the type that the reference returns on the first case."""
    if not isinstance(fn, types.FunctionType) or not exercise.cases:
        return fn

    @functools.cache
    def example() -> Any:
        _, inputs = next(iter(exercise.cases()))
        return exercise.reference(*snapshot(tuple(inputs.values())))

    @functools.wraps(fn)
    def converted(*args: Any, **kwargs: Any) -> Any:
        result = fn(*args, **kwargs)
        try:
            given = {a.dtype for a in args if isinstance(a, torch.Tensor)}
            return like(example(), result, given)
        except (TypeError, ValueError):  # no such conversion: the cell behind will say so
            return result

    return converted


def holds(exercise: exercises.Exercise) -> bool:
    """Whether my_ptq.py has a version of this exercise."""
    folder = home()
    return folder is not None and _span(_read(folder / "my_ptq.py"), exercise.id)[0] >= 0


def _own(exercise: exercises.Exercise) -> tuple[Callable[..., Any] | None, str]:
    folder = home()
    path = folder / "my_ptq.py" if folder else None
    if path is None or not path.exists():
        return None, "the course's version"
    text = path.read_text(encoding="utf-8")
    if _span(text, exercise.id)[0] < 0:
        return None, "the course's version (yours has not passed its check yet)"
    linecache.checkcache(str(path))
    try:
        return _load(text, exercise, path), "yours, from my_ptq.py"
    except Exception as error:
        return None, f"the course's version (yours fails to load: {type(error).__name__}: {error})"


def _load(text: str, exercise: exercises.Exercise, path: Path) -> Callable[..., Any]:
    """Run one block, at its own line numbers; helpers of other blocks cannot interfere."""
    compile(text, str(path), "exec")  # the file as a whole must stay valid Python
    start, end = _span(text, exercise.id)
    source = HEADER + "\n" * (text[:start].count("\n") - HEADER.count("\n")) + text[start:end]
    module = types.ModuleType("my_ptq")
    before = sys.modules.get(module.__name__)
    sys.modules[module.__name__] = module  # a dataclass looks its own module up while it is made
    try:
        exec(compile(source, str(path), "exec"), vars(module))
    finally:
        del sys.modules[module.__name__]
        if before is not None:
            sys.modules[module.__name__] = before
    return getattr(module, exercise.function)


def _markers(id: str) -> tuple[str, str]:
    return f"# >>> {id}\n", f"# <<< {id}\n"


def _span(text: str, id: str) -> tuple[int, int]:
    begin, finish = _markers(id)
    start, end = text.find(begin), text.find(finish)
    return (start, end + len(finish)) if 0 <= start < end else (-1, -1)


def _replace(text: str, id: str, block: str) -> str:
    begin, finish = _markers(id)
    block = f"{begin}{block.rstrip()}\n{finish}"
    start, end = _span(text, id)
    if start >= 0:
        return text[:start] + block + text[end:]
    return text.rstrip() + "\n\n\n" + block
