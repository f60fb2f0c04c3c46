"""The source of a learner's function with all that it uses: imports, helpers, classes, constants.

What cannot be written down is refused with a `ValueError` that says what it is.
"""

from __future__ import annotations

import ast
import inspect
import linecache
import symtable
import textwrap
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

PROVIDED = {"math", "np", "torch", "Tensor"}  # by the file's header


def block(name: str, fn: Callable[..., Any]) -> str:
    """Imports, helpers and constants that `fn` uses, then `fn` itself, to be found under `name`."""
    lines: list[str] = []
    own = _gather(fn, lines, set())
    tree = ast.parse("\n".join(lines))
    if name not in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}:
        lines.append(f"{name} = {own}")
    imports = [line for line in lines if line.startswith(("import ", "from "))]
    rest = [line for line in lines if line not in imports]
    return "\n".join(imports) + ("\n\n\n" if imports else "") + "\n\n\n".join(rest) + "\n"


def _gather(fn: Callable[..., Any], lines: list[str], seen: set[str]) -> str:
    """Append what `fn` uses and its source; returns the name that the source defines."""
    source, fn = _function_source(fn)
    seen.add(fn.__name__)
    _gather_names(source, fn.__globals__, lines, seen)
    lines.append(source)
    return fn.__name__


def _gather_names(source: str, space: dict[str, Any], lines: list[str], seen: set[str]) -> None:
    for name in sorted(_globals_used(source)):
        if name in seen or name in PROVIDED or name not in space:
            continue
        seen.add(name)
        lines.extend(_provide(name, space[name], space, lines, seen))


def _function_source(fn: Callable[..., Any]) -> tuple[str, types.FunctionType]:
    """The source of a plain function, decorators included, and the function that it defines."""
    fn = inspect.unwrap(fn)  # under @torch.no_grad() and everything else that uses functools.wraps
    if not isinstance(fn, types.FunctionType):
        raise ValueError(
            f"only a function written with `def` can be saved, and this is a {type(fn).__name__}"
        )
    if fn.__name__ == "<lambda>":
        raise ValueError("a lambda cannot be saved: it has to be written with `def`")
    try:
        source = textwrap.dedent(inspect.getsource(fn)).rstrip()
    except (OSError, TypeError):
        raise ValueError(f"the source of `{fn.__name__}` cannot be found") from None
    if fn.__closure__:
        variables = ", ".join(fn.__code__.co_freevars)
        if any(
            isinstance(value, types.FunctionType)
            for value in inspect.getclosurevars(fn)[0].values()
        ):
            raise ValueError(
                f"it is hidden in `{fn.__name__}`, which uses {variables} of a function around it: "
                "write functools.wraps into your decorator, or define it in its own cell"
            )
        raise ValueError(
            f"`{fn.__name__}` is defined inside another function and uses its {variables}; "
            "define it in its own cell"
        )
    kind = type(ast.parse(source).body[0])
    if kind is not ast.FunctionDef:
        raise ValueError(f"`{fn.__name__}` is not written with a plain `def`")
    return source, fn


def _provide(
    name: str, value: Any, space: dict[str, Any], lines: list[str], seen: set[str]
) -> list[str]:
    """The lines that make `value` known under `name`; what they need goes to `lines` before."""
    if isinstance(value, types.ModuleType):
        return [f"import {value.__name__} as {name}"]
    if constant := _constant(value):
        return [f"{name} = {constant}"]
    own_name, module = getattr(value, "__name__", None), getattr(value, "__module__", None)
    if getattr(torch, own_name or "", None) is value:
        return [f"from torch import {own_name} as {name}"]
    if module and module != "__main__" and own_name:
        return [f"from {module} import {own_name} as {name}"]
    if isinstance(value, type):
        source = _class_source(value, space)
        seen.add(own_name)
        _gather_names(source, space, lines, seen)
        lines.append(source)
        return [] if own_name == name else [f"{name} = {own_name}"]
    if own_name and callable(value):
        own_name = _gather(value, lines, seen)
        return [] if own_name == name else [f"{name} = {own_name}"]
    raise ValueError(
        f"it uses `{name}` of the notebook, a {type(value).__name__}; "
        "pass it as an argument instead"
    )


def _constant(value: Any) -> str | None:
    """Source that gives the same value: numbers, strings, tuples, lists, types of tensors."""
    if isinstance(value, torch.dtype):
        return repr(value)
    if isinstance(value, np.generic):
        plain = value.item()
        inner = None if isinstance(plain, np.generic) else _constant(plain)
        return inner and f"np.{type(value).__name__}({inner})"
    if isinstance(value, float) and not np.isfinite(value):
        return f'float("{value}")'
    try:
        return repr(value) if ast.literal_eval(repr(value)) == value else None
    except (ValueError, SyntaxError, TypeError):
        return None


def _class_source(value: type, space: dict[str, Any]) -> str:
    """The source of a class of the notebook: inspect looks for those in a module's file only."""
    methods = [inspect.unwrap(m) for m in vars(value).values() if callable(m)]
    places = [m.__code__.co_filename for m in methods if isinstance(m, types.FunctionType)]
    cells = [name for name, entry in reversed(linecache.cache.items()) if entry[1:2] == (None,)]
    for place in [*places, *cells]:
        lines = linecache.getlines(place)
        if not any(value.__name__ in line for line in lines):
            continue
        try:
            tree = ast.parse("".join(lines))
        except SyntaxError:  # a cell with a magic command
            continue
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and node.name == value.__name__:
                first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
                return "".join(lines[first - 1 : node.end_lineno]).rstrip()
    raise ValueError(f"the source of the class `{value.__name__}` cannot be found")


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
