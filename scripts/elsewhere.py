"""The course from a public address: badges for Colab and Binder, and a cell that installs it there.

`link_chapters.py --repository owner/name` writes them. The pictures of the badges lie in
docs/badges/: no page of the course loads anything from a network.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from bootstrap import pins

TAG = "elsewhere"
COLAB = "https://colab.research.google.com/github"
BINDER = "https://mybinder.org/v2/gh"
BADGE = re.compile(re.escape(COLAB) + r"/([\w.-]+/[\w.-]+)/blob/([\w./-]+)/notebooks/")
BEFORE = "## Two commands\n"  # in README.md, the heading that the badges stand above
INSTALL = """\
import importlib.util

if importlib.util.find_spec("ptq_classroom") is None:  # not here yet, as on Colab
    import os
    import subprocess
    import sys

    pip = [sys.executable, "-m", "pip", "install", "--quiet"]
    git = ["git", "clone", "--quiet", "--depth=1", "--branch={branch}"]
    if not os.path.isdir("ptq-course"):
        subprocess.run([*git, "https://github.com/{repository}", "ptq-course"], check=True)
    torch = {torch}
    subprocess.run([*pip, *torch], check=True)
    subprocess.run([*pip, "-e", "./ptq-course[course]"], check=True)
    sys.path.insert(0, os.path.abspath("ptq-course"))"""


@dataclass(frozen=True)
class Address:
    """A repository on GitHub and one of its branches; ValueError where they cannot be that."""

    repository: str
    branch: str = "main"

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", self.repository, re.ASCII):
            raise ValueError(f"--repository is owner/name (or none), not {self.repository!r}")
        if not re.fullmatch(r"[\w.-]+(/[\w.-]+)*", self.branch, re.ASCII):
            raise ValueError(f"{self.branch!r} is no name of a branch")

    def badges(self, name: str, up: str = "") -> str:
        """Both badges for one notebook; up: the way to the course's folder."""
        colab = f"{COLAB}/{self.repository}/blob/{self.branch}/notebooks/{name}"
        binder = f"{BINDER}/{self.repository}/{self.branch.replace('/', '%2F')}"
        binder += f"?urlpath=lab%2Ftree%2Fmy_course%2F{name}"
        return (
            f"[![Open this chapter in Colab]({up}docs/badges/colab.svg)]({colab}) "
            f"[![Open this chapter on Binder]({up}docs/badges/binder.svg)]({binder})"
        )

    def cell(self) -> dict[str, Any]:
        """The first code cell: fetches and installs the course where it is missing, else nothing.

        As course.py does it: PyTorch first and alone, from the index without CUDA.
        """
        torch = ["--no-deps", f"--extra-index-url={pins.TORCH_INDEX}", f"torch=={pins.TORCH}"]
        listed = json.dumps(torch)
        source = INSTALL.format(branch=self.branch, repository=self.repository, torch=listed)
        return {
            "cell_type": "code",
            "execution_count": 1,
            "id": TAG,
            "metadata": {"jupyter": {"source_hidden": True}, "tags": [TAG, "hide-input"]},
            "outputs": [],
            "source": source.splitlines(keepends=True),
        }


def found(text: str) -> Address | None:
    """The address that a text's badges lead to."""
    there = BADGE.search(text)
    return Address(*there.groups()) if there else None


def with_cell(cells: list[dict[str, Any]], address: Address | None) -> list[dict[str, Any]]:
    """A notebook's cells with the cell of this address before the first code cell, or with none.

    Execution counts stay 1, 2, ...: those of the cells behind it move by one.
    """
    cells = [cell for cell in _moved(cells, -1) if TAG not in _tags(cell)]
    if address is None:
        return cells
    first = next((n for n, cell in enumerate(cells) if cell["cell_type"] == "code"), len(cells))
    return [*cells[:first], address.cell(), *_moved(cells[first:], +1, always=True)]


def in_readme(text: str, address: Address | None, first: str) -> str:
    """README with a line of badges above its commands, or without; first: where they lead to."""
    text = re.sub(r"\[!\[[^\n]*docs/badges/[^\n]*\n\n(?=" + re.escape(BEFORE) + ")", "", text)
    if address is None:
        return text
    return text.replace(BEFORE, f"{address.badges(first)}\n\n{BEFORE}", 1)


def _tags(cell: dict[str, Any]) -> list[str]:
    return cell["metadata"].get("tags", [])


def _moved(cells: list[dict[str, Any]], by: int, always: bool = False) -> list[dict[str, Any]]:
    """Cells with other execution counts; by default only where the cell of this file stands."""
    if not always and not any(TAG in _tags(cell) for cell in cells):
        return cells
    moved = []
    for cell in cells:
        if cell["cell_type"] == "code" and cell.get("execution_count"):
            cell = {**cell, "execution_count": cell["execution_count"] + by}
            cell["outputs"] = [
                {**output, "execution_count": output["execution_count"] + by}
                if output.get("execution_count")
                else output
                for output in cell["outputs"]
            ]
        moved.append(cell)
    return moved
