"""A small chapter in a real kernel: stub, solution, prediction, figure and widget.

The committed form (in notebooks/) must give the same outputs twice, pictures included, without any
sanitizer; the learner's form (in my_course/) saves what passes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from ptq_classroom.kit.authoring import NotebookBuilder
from ptq_classroom.kit.learner_copy import learner_version, make

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
pytestmark = pytest.mark.slow


def chapter(answer: str = "raise NotImplementedError") -> NotebookBuilder:
    nb = NotebookBuilder("prep", "Self-test")
    nb.md("# A chapter")
    nb.code("from ptq_classroom import check, hint, learner, predict, show")
    nb.core(30)
    nb.code('guess = predict("prep.2", None, unit="bits", low=1, high=9)')
    nb.exercise("prep.2", f"def wrap(value, bits):\n    {answer}")
    nb.solution("prep.2")
    nb.code('hint("prep.2")')
    nb.code('print(learner.function("wrap")(128, 8))')
    nb.extension(10)
    nb.code(
        "from ptq_classroom.kit.show import figure\n"
        "fig, ax = figure()\nax.plot([1, 2])\nguess.draw(ax)\nshow(fig, 'a rising line')"
    )
    nb.code(
        "import example_explorer\n"
        "explorer = example_explorer.explorer()\nexplorer.show(static=[{'bits': 2}, {'bits': 8}])"
    )
    return nb


@pytest.fixture
def course(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("notebooks", "ptq_course"):
        (tmp_path / name).mkdir()
    (tmp_path / "course.py").touch()
    paths = [str(ROOT), str(HERE), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(p for p in paths if p))
    return tmp_path


def execute(path: Path) -> list[str]:
    """Run a notebook in its own folder; returns the text of each code cell."""
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=300, record_timing=False).execute(
        cwd=str(path.parent), env=dict(os.environ)
    )
    nbformat.write(notebook, path)
    texts = []
    for cell in notebook.cells:
        if cell.cell_type == "code":
            parts = [o.get("text") or o["data"]["text/plain"] for o in cell.outputs]
            texts.append("".join(parts))
    return texts


def test_the_committed_form_is_deterministic(course: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PTQ_FIGURES", "png")  # as execute_notebooks.py sets it
    path = chapter().write(course / "notebooks" / "prep_self_test.ipynb")
    texts = execute(path)
    assert texts[1] == "no prediction made: prep.2 (a number from 1 to 9, in bits)\n"
    assert texts[3].startswith("○ prep.2 wrap not attempted yet (")
    assert texts[4] == "✓ prep.2 wrap passes\n"
    assert "the course's version" in texts[6]
    assert texts[6].endswith("-128\n")
    assert texts[7] == "a rising line"
    assert texts[8].startswith("Widget: Staircase")
    assert "Staircase of 255 steps" in texts[8]
    command = [sys.executable, "-m", "pytest", "--nbval", "-q", "-p", "no:cacheprovider"]
    timeout = ["--nbval-cell-timeout", "300", f"--rootdir={course}"]
    ran = subprocess.run(
        [*command, *timeout, str(path)],
        cwd=course,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert ran.returncode == 0, ran.stdout[-3000:]


def test_the_learners_form_saves_what_passes(course: Path):
    chapter().write(course / "notebooks" / "prep_self_test.ipynb")
    make(course)
    mine = course / "my_course" / "prep_self_test.ipynb"
    notebook = json.loads(mine.read_text(encoding="utf-8"))
    stub = next(c for c in notebook["cells"] if "stub" in c["metadata"].get("tags", ()))
    stub["source"] = [
        "def wrap(value, bits):\n",
        "    half = 2 ** (bits - 1)\n",
        "    return (value + half) % (2 * half) - half",
    ]
    mine.write_text(json.dumps(notebook), encoding="utf-8")
    texts = execute(mine)
    assert texts[3] == "✓ prep.2 wrap passes\n  saved into my_course/my_ptq.py\n"
    assert "yours, from my_ptq.py" in texts[5]
    assert "half = 2 ** (bits - 1)" in (course / "my_course" / "my_ptq.py").read_text("utf-8")


def test_cell_ids_are_stable_and_unique():
    first, second = chapter().cells, chapter().cells
    assert [c["id"] for c in first] == [c["id"] for c in second]
    assert len({c["id"] for c in first}) == len(first)


def test_the_builder_writes_a_valid_notebook(tmp_path: Path):
    path = chapter().write(tmp_path / "x.ipynb")
    nbformat.validate(nbformat.read(path, as_version=4))
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    solution = next(c for c in cells if "solution" in c["metadata"].get("tags", ()))
    assert solution["metadata"]["jupyter"] == {"source_hidden": True}
    assert solution["metadata"]["tags"] == ["solution", "hide-input"]
    assert "def wrap_solution(value: int, bits: int)" in "".join(solution["source"])
    assert "".join(solution["source"]).endswith('check("prep.2", wrap_solution, strict=True)')
    assert "wrap_solution" not in learner_version(path.read_text(encoding="utf-8"))
