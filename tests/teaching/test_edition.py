"""The learner's edition, and the one in nbgrader's markup with its round trip."""

import ast
import importlib.util
import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from ptq_classroom.kit import exercises
from ptq_classroom.kit.examine import examine
from ptq_classroom.teaching import edition
from ptq_classroom.teaching import nbgrader as markup

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def cells(text):
    return [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]


def source(cell):
    return "".join(cell["source"])


def test_the_learners_edition_has_no_solution_and_no_output(tmp_path):
    names = edition.write(ROOT / "notebooks", tmp_path / "out")
    assert {path.name for path in NOTEBOOKS} <= set(names)
    for path in NOTEBOOKS:
        text = (tmp_path / "out" / path.name).read_text(encoding="utf-8")
        found = cells(text)
        assert not any(cell["outputs"] for cell in found)
        assert not any("_solution" in source(cell) for cell in found)
        stubs = [cell for cell in found if "stub" in cell["metadata"].get("tags", ())]
        assert len(stubs) == text.count('"stub"')
        assert all("NotImplementedError" in source(cell) for cell in stubs)


def test_nothing_is_written_over(tmp_path):
    (tmp_path / "mine").write_text("work")
    with pytest.raises(FileExistsError, match="not empty"):
        edition.write(ROOT / "notebooks", tmp_path)
    with pytest.raises(FileExistsError, match="not empty"):
        markup.write(ROOT / "notebooks", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_the_command_needs_nothing_installed(tmp_path):
    order = [sys.executable, "-I", "-S", str(ROOT / "course.py"), "learner", str(tmp_path / "out")]
    done = subprocess.run(order, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / NOTEBOOKS[0].name).exists()
    done = subprocess.run([*order[:-1], str(tmp_path / "nb"), "--nbgrader"], capture_output=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "nb" / "nbgrader_config.py").exists()
    done = subprocess.run([*order[:-1]], capture_output=True, text=True)
    assert done.returncode == 2
    assert "one new folder" in done.stderr


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name[:5])
def test_each_stub_holds_its_solution_and_each_check_a_point(path):
    found = cells(markup.marked_up(path.read_text(encoding="utf-8")))
    chapter = path.name.split("_")[0]
    ids = [exercise.id for exercise in exercises.load(chapter)]
    marked = [cell for cell in found if "nbgrader" in cell["metadata"]]
    names = [cell["metadata"]["nbgrader"]["grade_id"] for cell in marked]
    assert sorted(names) == sorted(
        f"{kind}_{id.replace('.', '_')}" for id in ids for kind in ("answer", "check")
    )
    for cell in marked:
        data, text = cell["metadata"]["nbgrader"], source(cell)
        ast.parse(text)
        assert data["schema_version"] == 3
        assert data["solution"] is not data["grade"]
        assert data["locked"] is data["grade"]
        if data["grade"]:
            assert data["points"] == 1
            assert "strict=True" in text
        else:
            assert text.count(markup.BEGIN) == text.count(markup.END) == 1
            assert "_solution" not in text
            cleared = re.sub(f"{markup.BEGIN}.*{markup.END}", "raise NotImplementedError", text,
                             flags=re.DOTALL)  # fmt: skip
            ast.parse(cleared)


def test_a_marked_up_answer_passes_its_check():
    text = markup.marked_up(NOTEBOOKS[1].read_text(encoding="utf-8"))
    space = runpy.run_path(str(ROOT / "ptq_classroom" / "chapters" / "ch01" / "exercises.py"))
    for cell in cells(text):
        data = cell["metadata"].get("nbgrader")
        if data and data["solution"]:
            exec(source(cell), space)
    for exercise in exercises.load("01"):
        assert examine(exercise, space[exercise.function]).status == "passed"


# Beside the environment, which it would change for learners: .ci/run puts it there.
APART = ROOT / "build" / "nbgrader"
LIBRARY = APART / "nbgrader"


@pytest.mark.slow
@pytest.mark.skipif(
    not (importlib.util.find_spec("nbgrader") or LIBRARY.is_dir()),
    reason="no nbgrader: it is in the extra `teach`, which the set-up leaves out",
)
def test_round_trip_through_nbgrader(tmp_path):
    course = tmp_path / "course"
    markup.write(ROOT / "notebooks", course)
    place = course / "source" / "chapter_01" / "01_affine_quantization.ipynb"
    shorten(place)
    for chapter in (course / "source").iterdir():
        if chapter.name != "chapter_01":
            next(chapter.iterdir()).unlink()
            chapter.rmdir()
    solved = place.read_text(encoding="utf-8")
    nbgrader(course, "generate_assignment", "chapter_01", "--create")
    released = (course / "release" / "chapter_01" / place.name).read_text(encoding="utf-8")
    stubs = [c for c in cells(released) if c["metadata"].get("nbgrader", {}).get("solution")]
    assert len(stubs) == 3
    assert all(source(c).rstrip().endswith("raise NotImplementedError") for c in stubs)
    assert "round(grid.qmin" not in released
    assert "round(grid.qmin" in solved
    wrong = solved.replace("round(grid.qmin", "int(grid.qmin").replace("codes.clamp", "(codes).abs")
    for student, text in (("right", solved), ("wrong", wrong)):
        target = course / "submitted" / student / "chapter_01" / place.name
        target.parent.mkdir(parents=True)
        target.write_text(text, encoding="utf-8")
    nbgrader(course, "autograde", "chapter_01")
    nbgrader(course, "export", "--to", "grades.csv")
    lines = (course / "grades.csv").read_text().splitlines()
    heads = lines[0].split(",")
    table = [dict(zip(heads, line.split(","), strict=True)) for line in lines[1:]]
    scores = {row["student_id"]: float(row["score"]) for row in table}
    assert scores == {"right": 3, "wrong": 1}
    assert {float(row["max_score"]) for row in table} == {3}


def shorten(path):
    """Keep the first code cell and the cells with points: the rest takes its time."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    kept = [code[0], *(cell for cell in code if "nbgrader" in cell["metadata"])]
    path.write_text(json.dumps({**notebook, "cells": kept}), encoding="utf-8")


def nbgrader(folder, *words):
    paths = (str(ROOT), str(APART), os.environ.get("PYTHONPATH", ""))
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    beside = APART / "bin"
    places = (Path(sys.executable).parent, beside, env["PATH"])  # it calls alembic
    env["PATH"] = os.pathsep.join(map(str, places))
    done = subprocess.run([sys.executable, "-m", "nbgrader", *words], cwd=folder, env=env,
                          capture_output=True, text=True, timeout=200)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
