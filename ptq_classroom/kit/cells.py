"""Whether a function is the one that the newest cell with its `def` was to define."""

from __future__ import annotations

import ast
import inspect
import os
import re
from collections.abc import Callable
from typing import Any


def outdated(fn: Callable[..., Any]) -> str:
    """What became of the newest cell that defines `fn`'s name, where it did not define `fn`.

    A cell with a syntax error, or one that stops before its `def`, leaves the older function in
    place: nobody wants that one checked. "" where all is well, and outside of a notebook.
    """
    shell, own = notebook(), inspect.unwrap(fn)
    name = getattr(own, "__name__", "")
    if shell is None or not inspect.isfunction(own) or shell.user_ns.get(name) is not fn:
        return ""
    if os.path.exists(own.__code__.co_filename):  # of a file, not of a cell
        return ""
    try:
        source = inspect.getsource(own).strip()
    except (OSError, TypeError):
        return ""
    history = shell.history_manager
    typed, parsed = history.input_hist_raw, history.input_hist_parsed
    begins = re.compile(rf"^[ \t]*def {re.escape(name)}\b", re.MULTILINE)
    newest = max((i for i, cell in enumerate(typed) if begins.search(cell)), default=0)
    if not newest or source in typed[newest] or source in parsed[newest]:
        return ""
    try:
        ast.parse(parsed[newest])
    except SyntaxError as error:
        why = f"has a syntax error in line {error.lineno} ({error.msg})"
    else:
        why = "stopped before its `def`"
    return f"your newest cell with `def {name}` {why}: mend it, run it, then check again"


def notebook() -> Any:
    """The notebook's shell, or None where Python runs without one."""
    try:
        from IPython import get_ipython
    except ImportError:
        return None
    return get_ipython()
