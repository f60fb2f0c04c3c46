"""A wrong answer, written as the one thing that it does differently from the right one.

`mutation(kl, "np.log( => np.log2(")` is `kl` with that fragment of its source replaced. The source
shows in tracebacks and to `inspect.getsource`, as if somebody had typed it.
"""

from __future__ import annotations

import ast
import functools
import inspect
import linecache
import textwrap
from collections.abc import Callable
from typing import Any


def mutation(original: Callable[..., Any], *changes: str) -> Callable[..., Any]:
    """`original` with each change "before => after" made once, one after the other.

    A fragment stands in the function's statements (not in signature or docstring) exactly once;
    else ValueError says how often. "before =>" takes it away. Names are those of the original's
    module.
    """
    name = original.__name__
    head, body = _source(original)
    for change in changes:
        before, arrow, after = (part.strip() for part in change.partition("=>"))
        found = body.count(before) if before else 0
        if not arrow or found != 1:
            raise ValueError(
                f"mutation of {name}: {change!r} needs a fragment that stands in it once, "
                f"then => and its replacement; this one stands there {found} times"
            )
        body = body.replace(before, after)
    title = f"{name} with {'; '.join(changes)}"
    lines = (head + body).splitlines(keepends=True)
    linecache.cache[f"<{title}>"] = (len(head + body), None, lines, f"<{title}>")
    space: dict[str, Any] = {}
    exec(compile(head + body, f"<{title}>", "exec"), original.__globals__, space)
    made = space[name]
    made.__name__ = made.__qualname__ = title
    return made


@functools.cache
def _source(fn: Callable[..., Any]) -> tuple[str, str]:
    """The source up to the docstring's end, and the statements behind it."""
    source = textwrap.dedent(inspect.getsource(fn))
    node = ast.parse(source).body[0]
    assert isinstance(node, ast.FunctionDef)
    first = node.body[1 if ast.get_docstring(node) else 0].lineno - 1
    lines = source.splitlines(keepends=True)
    return "".join(lines[:first]), "".join(lines[first:])
