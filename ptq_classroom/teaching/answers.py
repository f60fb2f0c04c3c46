"""Find a student's function in what was handed in, with the statements that it needs, no others.

A notebook's cells are parsed and never run as a whole: of its code only those statements run that
bind a name which the function uses, and what they use in turn. A broken cell elsewhere, a slow
figure, a print at the end do not matter. Runs in the student's process.
"""

from __future__ import annotations
import __future__

import ast
import builtins
import json
import linecache
import re
import symtable
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

START = (
    "import math\nimport numpy as np\nimport torch\nfrom torch import Tensor, nn\n"
    "import copy\nfrom typing import *\nfrom collections.abc import *\n"
)
_BLOCK = re.compile(r"^# >>> (\S+)\n(.*?)^# <<< \1\n", re.MULTILINE | re.DOTALL)
# What an answer hardly needs, and an attack does. Found ones are shown to the teacher.
_MODULES = frozenset(
    (
        "atexit", "builtins", "ctypes", "gc", "importlib", "inspect", "multiprocessing", "os",
        "pty", "signal", "socket", "subprocess", "sys", "threading",
    )
)  # fmt: skip
_NAMES = frozenset(
    ("__import__", "__builtins__", "compile", "eval", "exec", "exit", "globals", "open")
)
_ATTRIBUTES = frozenset(
    (
        "__builtins__", "__code__", "__globals__", "__subclasses__", "_getframe", "setprofile",
        "settrace",
    )
)  # fmt: skip
_STRINGS = ("ptq_course", "ptq_classroom", *_ATTRIBUTES)


class NoAnswer(Exception):
    """Nothing to grade: the sentence says why."""


@dataclass
class Cell:
    """A piece of code: its name in tracebacks, its source, the exercise that it belongs to."""

    name: str
    source: str
    exercise: str = ""
    tree: ast.Module | None = field(default=None, repr=False)
    error: str = ""

    def __post_init__(self) -> None:
        text = re.sub(r"^(\s*)[%!].*$", r"\1pass", self.source, flags=re.MULTILINE)
        try:
            self.tree = ast.parse(text, self.name)
        except SyntaxError as error:
            self.error = f"syntax error in line {error.lineno}: {error.msg}"
        except (ValueError, RecursionError, MemoryError) as error:
            self.error = f"cannot be parsed ({type(error).__name__})"


def read(name: str, data: bytes) -> list[Cell]:
    """The cells of a notebook or of a my_ptq.py; NoAnswer where it is neither."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise NoAnswer("not a text file") from None
    if not name.endswith(".ipynb"):
        blocks = [Cell(f"<{name}>", "\n" * text[: m.start(2)].count("\n") + m[2], m[1])
                  for m in _BLOCK.finditer(text)]  # fmt: skip
        return blocks or [Cell(f"<{name}>", text)]
    try:
        rows = json.loads(text)["cells"]
        cells = []
        for number, row in enumerate(rows, start=1):
            meta = row.get("metadata") or {}
            if row["cell_type"] != "code" or "solution" in (meta.get("tags") or ()):
                continue
            source = row["source"]
            source = source if isinstance(source, str) else "".join(source)
            key = str((meta.get("ptq") or {}).get("exercise", ""))
            kind = "" if {"check", "exercise"} & {*(meta.get("tags") or ())} else key
            cells.append(Cell(f"<cell {number}>", source, kind))
    except (ValueError, RecursionError):
        raise NoAnswer("not a notebook: the file is no JSON") from None
    except (KeyError, TypeError, AttributeError):
        raise NoAnswer("not a notebook: its cells are broken") from None
    return cells


def exercises_in(cells: list[Cell]) -> list[str]:
    """Ids of the exercises that cells belong to, in order."""
    return list(dict.fromkeys(cell.exercise for cell in cells if cell.exercise))


@dataclass
class Answer:
    """The statements that make a function, in order, and the suspicious names in them.

    A helper that fails is left out: the function may never reach it, and if it does, it says so.
    """

    function: str
    parts: list[tuple[Cell, ast.stmt]]

    @property
    def suspicious(self) -> list[str]:
        found = set()
        for _, node in self.parts:
            found |= {*_suspicious(node)}
        return sorted(found)

    def run(self, learner: Any) -> Any:
        """Run the statements; returns the function. learner: what that name of the kit is here."""
        space: dict[str, Any] = {"__name__": "answer", "__builtins__": __builtins__}
        _execute(START, "<start>", space)
        for cell, node in self.parts:
            lines = cell.source.splitlines(keepends=True)
            linecache.cache[cell.name] = (len(cell.source), None, lines, cell.name)
            tree = ast.Module([node], [])
            code = compile(tree, cell.name, "exec", _FUTURE, dont_inherit=True)
            try:
                exec(code, space)
            except Exception:
                if self.function in _bound(node):
                    raise
            space["learner"] = learner
        return space[self.function]


_FUTURE = __future__.annotations.compiler_flag
_BUILTINS = {*dir(builtins)}


def _execute(source: str, name: str, space: dict[str, Any]) -> None:
    exec(compile(source, name, "exec"), space)


def find(cells: list[Cell], exercise: str, function: str, alone: bool) -> Answer:
    """The answer to an exercise; NoAnswer where there is none. alone: from its own block only."""
    own = [cell for cell in cells if cell.exercise == exercise]
    homes = [cell for cell in own if _binds_top(cell, function)]
    homes = homes or [cell for cell in cells if _defines(cell, function)]
    if not homes:
        if broken := next((cell.error for cell in own if cell.error), ""):
            raise NoAnswer(broken)
        raise NoAnswer(f"there is no function {function}")
    pool = own if alone else cells
    wanted, todo = set(), {function}
    chosen: dict[tuple[int, int], ast.stmt] = {}
    while todo:
        name = todo.pop()
        wanted.add(name)
        for i, cell in enumerate(pool):
            if name == function and cell not in homes:
                continue
            for j, node in enumerate(cell.tree.body if cell.tree else ()):
                if (i, j) not in chosen and name in _bound(node) and not _calls_learner(node):
                    chosen[i, j] = node
                    todo |= _used(node) - wanted - _BUILTINS
    return Answer(function, [(pool[i], chosen[i, j]) for i, j in sorted(chosen)])


def _binds_top(cell: Cell, name: str) -> bool:
    return cell.tree is not None and any(
        name in _bound(node) and not _calls_learner(node) for node in cell.tree.body
    )


def _defines(cell: Cell, name: str) -> bool:
    return cell.tree is not None and any(
        isinstance(node, ast.FunctionDef) and node.name == name for node in cell.tree.body
    )


def _calls_learner(node: ast.stmt) -> bool:
    """`quantize = learner.function("quantize")` of the notebook's own text is nobody's answer."""
    return isinstance(node, ast.Assign) and any(
        isinstance(part, ast.Name) and part.id in ("learner", "predict") for part in ast.walk(node)
    )


def _bound(node: ast.stmt) -> set[str]:
    """Names that a top-level statement binds."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {node.name}
    if isinstance(node, ast.Expr):
        return set()
    found = set()
    for part in _outside_functions(node):
        if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store):
            found.add(part.id)
        elif isinstance(part, ast.FunctionDef | ast.ClassDef):
            found.add(part.name)
        elif isinstance(part, ast.Import | ast.ImportFrom):
            found |= {(alias.asname or alias.name).split(".")[0] for alias in part.names}
    if isinstance(node, ast.Assign):  # f.x = ..., table["x"] = ...
        found |= {name for t in node.targets if (name := _base(t))}
    return found


def _base(target: ast.expr) -> str:
    while isinstance(target, ast.Attribute | ast.Subscript):
        target = target.value
    return target.id if isinstance(target, ast.Name) else ""


def _outside_functions(node: ast.AST) -> Iterator[ast.AST]:
    yield node
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
        return
    for child in ast.iter_child_nodes(node):
        yield from _outside_functions(child)


def _used(node: ast.stmt) -> set[str]:
    """Names that a top-level statement takes from the module, in functions inside it too."""
    table = symtable.symtable(ast.unparse(ast.Module([_FUTURE_IMPORT, node], [])), "cell", "exec")
    used, todo = set(), [table]
    while todo:
        table = todo.pop()
        top = table.get_type() == "module"
        used |= {
            symbol.get_name()
            for symbol in table.get_symbols()
            if symbol.is_referenced() and (symbol.is_global() or top)
        }
        todo += [t for t in table.get_children() if "annot" not in str(t.get_type()).lower()]
    return used


_FUTURE_IMPORT = ast.parse("from __future__ import annotations").body[0]


def _suspicious(node: ast.AST) -> Iterator[str]:
    for part in ast.walk(node):
        if isinstance(part, ast.Name) and part.id in _NAMES:
            yield part.id
        elif isinstance(part, ast.Attribute) and part.attr in _ATTRIBUTES:
            yield part.attr
        elif isinstance(part, ast.Import | ast.ImportFrom):
            named = [alias.name for alias in part.names] + [getattr(part, "module", None) or ""]
            yield from (name for name in named if name.split(".")[0] in _MODULES)
        elif isinstance(part, ast.Constant):
            text = part.value if isinstance(part.value, str) else ""
            short = text if len(text) < 60 else ""  # a docstring may say anything
            yield from (word for word in _STRINGS if word in short)
