"""The README's snippets run as they stand, and keep what its table promises."""

from __future__ import annotations

import re

import pytest

from ptq_classroom import load_split, loader
from ptq_course.deploy import onnx
from ptq_course.diagnosis import top1_on

MOST_LOST = 0.005  # of the test pictures: issue and README promise half a point


def chapter_map(root):
    """number of a chapter -> what the fourth column of README's table names, and whether planned"""
    text = (root / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d\d) \|([^|]*)\|[^|]*\|([^|]*)\|", text, flags=re.MULTILINE)
    return {
        number: (re.findall(r"`([^`]+)`", modules), "planned" in title)
        for number, title, modules in rows
    }


def files_of(root, place):
    """The files that an entry of the map stands for: a file, or all of a folder."""
    path = root / "ptq_course" / place
    return {path} if place.endswith(".py") else set(path.rglob("*.py"))


def test_every_file_of_a_room_has_its_chapter(root):
    rooms = [path for path in (root / "ptq_course").iterdir() if path.is_dir()]
    every = {file for room in rooms for file in room.rglob("*.py") if file.name != "__init__.py"}
    entries = [place for places, _ in chapter_map(root).values() for place in places]
    shown = set().union(*(files_of(root, place) for place in entries))
    missing = sorted(file.relative_to(root).as_posix() for file in every - shown)
    assert len(every) > 50
    assert missing == [], "name them (or their folder) in README's table of chapters"


def test_every_file_that_a_chapter_names_is_there(root):
    """A planned chapter may name a room that is still to come, but no file that has gone."""
    chapters = chapter_map(root)
    assert len(chapters) == 18
    for number, (places, planned) in chapters.items():
        assert places or planned, f"chapter {number} names no module"
        for place in places:
            there = all(file.is_file() for file in files_of(root, place)) and files_of(root, place)
            assert there or (planned and place == "improve/"), f"chapter {number}: {place}"


@pytest.mark.slow
def test_the_snippets_run_and_the_int8_file_loses_at_most_half_a_point(
    root, tmp_path, monkeypatch, capsys
):
    page = (root / "README.md").read_text(encoding="utf-8")
    convert, diagnose, reach = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(convert, names)
    assert "percentile" in capsys.readouterr().out
    evaluate = top1_on(loader(load_split("test")))
    before = evaluate(names["model"]).mean().item()
    runtime = onnx.session(tmp_path / "resnet_int8.onnx")
    assert before - evaluate(runtime).mean().item() <= MOST_LOST
    exec(diagnose, names)
    assert "Is the drop real?" in capsys.readouterr().out
    exec(reach, names)
    assert "held-out test part, 500 examples" in capsys.readouterr().out
    assert names["result"].reached
