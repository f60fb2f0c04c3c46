"""The learner's own functions: what passed a check in my_course/ is kept in my_course/my_ptq.py.

Each exercise is one block between two marker lines. `function("kl")` gives the learner's function,
or the course's where there is none, and says which. The file is valid Python at all times.
"""

from __future__ import annotations

import ast
import functools
import inspect
import linecache
import os
import symtable
import textwrap
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ptq_course.classroom import exercises
from ptq_course.classroom.values import like, snapshot

HEADER = '''"""Your functions: `check` writes here whatever passes. Change them in the notebooks."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

'''
_PROVIDED = {"math", "np", "torch", "Tensor"}


def home() -> Path | None:
    """The my_course/ folder that this process works in, or None."""
    here = Path(os.environ.get("PTQ_MY_COURSE") or Path.cwd())
    return next((p for p in (here, *here.parents) if p.name == "my_course"), None)


def save(exercise: exercises.Exercise, fn: Callable[..., Any]) -> None:
    """Put the source of `fn` into my_ptq.py (only inside my_course/), replacing its older block."""
    folder = home()
    if folder is None:
        return
    try:
        block = _block(exercise, fn)
        path = folder / "my_ptq.py"
        old = path.read_text(encoding="utf-8") if path.exists() else HEADER
        new = _replace(old, exercise.id, block)
        alone = exercises.examine(exercise, _load(new, exercise, path))
        if alone.status != "passed":
            raise ValueError(f"without the notebook around it, {alone.failure or 'it is a stub'}")
    except Exception as error:  # whatever it is, a passed check stays passed
        print(f"  (not saved into my_ptq.py: {error})")
        return
    if not path.exists() or new != old:
        part = path.with_suffix(".tmp")
        part.write_text(new, encoding="utf-8")
        os.replace(part, path)
    print("  saved into my_course/my_ptq.py")


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
    space: dict[str, Any] = {"__name__": "my_ptq"}
    exec(compile(source, str(path), "exec"), space)
    return space[exercise.function]


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


def _block(exercise: exercises.Exercise, fn: Callable[..., Any]) -> str:
    """Imports, helpers and constants that `fn` uses, then `fn` itself."""
    lines: list[str] = []
    _gather(fn, lines, set())
    tree = ast.parse("\n".join(lines))
    names = {n.name for n in tree.body if isinstance(n, ast.FunctionDef)}
    if exercise.function not in names:
        lines.append(f"{exercise.function} = {fn.__name__}")
    imports = [line for line in lines if line.startswith(("import ", "from "))]
    rest = [line for line in lines if line not in imports]
    return "\n".join(imports) + ("\n\n\n" if imports else "") + "\n\n\n".join(rest) + "\n"


def _gather(fn: Callable[..., Any], lines: list[str], seen: set[str]) -> None:
    source = textwrap.dedent(inspect.getsource(fn))
    tree = ast.parse(source)
    if not isinstance(tree.body[0], ast.FunctionDef):
        raise ValueError("only a function written with `def` can be saved")
    if fn.__closure__:
        raise ValueError("the function is defined inside another one; define it in its own cell")
    seen.add(fn.__name__)
    for name in sorted(_globals_used(source)):
        if name in seen or name in _PROVIDED or name not in fn.__globals__:
            continue
        seen.add(name)
        lines_of_name = _provide(name, fn.__globals__[name], lines, seen)
        lines.extend(lines_of_name)
    lines.append(source.rstrip())


def _provide(name: str, value: Any, lines: list[str], seen: set[str]) -> list[str]:
    if isinstance(value, types.ModuleType):
        return [f"import {value.__name__} as {name}"]
    home_module = getattr(value, "__module__", None)
    if isinstance(value, torch.dtype) or _literal(value):
        return [f"{name} = {value!r}"]
    if getattr(torch, getattr(value, "__name__", ""), None) is value:
        return [f"from torch import {value.__name__} as {name}"]
    if home_module and home_module != "__main__" and hasattr(value, "__name__"):
        return [f"from {home_module} import {value.__name__} as {name}"]
    if isinstance(value, types.FunctionType):
        _gather(value, lines, seen)
        return [] if value.__name__ == name else [f"{name} = {value.__name__}"]
    raise ValueError(f"it uses `{name}` of the notebook; pass it as an argument instead")


def _literal(value: Any) -> bool:
    """Whether Python reads the value's repr as the same value: numbers, strings, tuples, lists."""
    try:
        return ast.literal_eval(repr(value)) == value
    except (ValueError, SyntaxError, TypeError):
        return False


def _globals_used(source: str) -> set[str]:
    """Names that the source takes from its module, decorators and defaults included."""
    source = "from __future__ import annotations\n" + source
    used: set[str] = set()
    todo = [symtable.symtable(source, "cell", "exec")]
    while todo:
        table = todo.pop()
        for symbol in table.get_symbols():
            top = table.get_type() == "module"
            if symbol.is_referenced() and (symbol.is_global() or top):
                used.add(symbol.get_name())
        todo.extend(t for t in table.get_children() if "annot" not in str(t.get_type()).lower())
    return used
