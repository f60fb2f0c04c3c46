"""Build a chapter's notebook from a script: deterministic cell ids, tags and exercise cells.

The .ipynb that `write` leaves is the source that is committed; the script may be thrown away. The
conventions (tags, metadata keys, file names) are in ptq_classroom/README.md.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import textwrap
from collections import Counter
from pathlib import Path
from typing import Any

from ptq_classroom.kit import exercises


class NotebookBuilder:
    """Cells in order; every method appends and returns None.

    >>> nb = NotebookBuilder("03", "KL calibration", module="ptq_course/ranges/kl.py")
    >>> nb.md("# KL calibration"); nb.code("import torch"); nb.write("notebooks/03_kl.ipynb")
    """

    def __init__(self, chapter: str, title: str, module: str = ""):
        self.about = {"chapter": chapter, "title": title, "module": module}
        self.cells: list[dict[str, Any]] = []
        self._ids: Counter[str] = Counter()

    def md(self, text: str, tags: tuple[str, ...] = ()) -> None:
        """A markdown cell."""
        self._add("markdown", text, tags)

    def code(self, source: str, tags: tuple[str, ...] = (), exercise: str = "") -> None:
        """A code cell."""
        self._add("code", source, tags, exercise)

    def hidden(self, source: str, tags: tuple[str, ...] = ()) -> None:
        """A folded code cell (set-up that would distract)."""
        self._add("code", source, ("hide-input", *tags))

    def core(self, minutes: int = 50) -> None:
        """Mark the beginning of the core."""
        self.md(f"## Core ({minutes} minutes)", ("core",))

    def extension(self, minutes: int = 40) -> None:
        """Mark the beginning of the extension."""
        self.md(f"## Extension ({minutes} minutes)", ("extension",))

    def exercise(self, id: str, stub: str, text: str = "") -> None:
        """Card (title, minutes, difficulty, `text`), stub cell, and the cell that checks it.

        `stub` is the learner's starting point: signature, docstring, `raise NotImplementedError`.
        """
        e = exercises.get(id)
        dots = "●" * e.difficulty + "○" * (5 - e.difficulty)
        card = f"### Exercise {id} · {e.title}\n\n{e.minutes} minutes · difficulty {dots}"
        self._add("markdown", f"{card}\n\n{_clean(text)}".strip(), ("exercise",), id)
        self._add("code", stub, ("stub",), id)
        self._add("code", f'check("{id}", {e.function})', ("check",), id)

    def solution(self, id: str, source: str | Any = "") -> None:
        """The folded solution, under a name of its own (`kl_solution`), checked strictly.

        `source` defines `<function>_solution`; without it the reference's own source is taken.
        """
        e = exercises.get(id)
        name = f"{e.function}_solution"
        if not source:
            source = inspect.getsource(e.reference).replace(
                f"def {e.reference.__name__}(", f"def {name}(", 1
            )
        source = f'{_clean(source)}\n\n\ncheck("{id}", {name}, strict=True)'
        self._add("code", source, ("solution", "hide-input"), id)

    def write(self, path: str | Path) -> Path:
        """Write the notebook, without outputs; execute it with scripts/execute_notebooks.py."""
        path = Path(path)
        notebook = {
            "cells": self.cells,
            "metadata": {
                "kernelspec": {
                    "display_name": "Python 3",
                    "language": "python",
                    "name": "python3",
                },
                "language_info": {"name": "python"},
                "ptq": self.about,
            },
            "nbformat": 4,
            "nbformat_minor": 5,
        }
        text = json.dumps(notebook, ensure_ascii=False, indent=1, sort_keys=True) + "\n"
        path.write_text(text, encoding="utf-8", newline="\n")
        return path

    def _add(self, kind: str, source: str, tags: tuple[str, ...] = (), exercise: str = "") -> None:
        source = _clean(source)
        metadata: dict[str, Any] = {"tags": list(tags)} if tags else {}
        if exercise:
            metadata["ptq"] = {"exercise": exercise}
        if "hide-input" in tags:
            metadata["jupyter"] = {"source_hidden": True}
        cell: dict[str, Any] = {
            "cell_type": kind,
            "id": self._id(kind, source),
            "metadata": metadata,
            "source": source.splitlines(keepends=True),
        }
        if kind == "code":
            cell |= {"execution_count": None, "outputs": []}
        self.cells.append(cell)

    def _id(self, kind: str, source: str) -> str:
        """The same text gives the same id in every run, wherever it stands."""
        name = f"{kind[:4]}-{hashlib.sha256(source.encode()).hexdigest()[:10]}"
        self._ids[name] += 1
        return name if self._ids[name] == 1 else f"{name}-{self._ids[name]}"


def _clean(source: str) -> str:
    return textwrap.dedent(source).strip("\n").rstrip()
