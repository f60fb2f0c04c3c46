"""`course.py grade` and `learner` reach what does the work, with places as they were meant."""

from pathlib import Path

import pytest
from bootstrap import commands

from ptq_classroom.teaching import grading


@pytest.fixture
def handed_over(monkeypatch):
    seen = []
    monkeypatch.setattr(commands, "ready", lambda: "environment")
    monkeypatch.setattr(commands, "hand_over", lambda where, words: seen.append(words) or 0)
    return seen


def test_grade_is_handed_to_the_environment_with_the_working_folder(
    handed_over, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert commands.run(["grade", "subs", "--csv", "a.csv"], "help") == 0
    start = ["-m", "ptq_classroom.teaching.grading", "--at", str(tmp_path)]
    assert handed_over == [[*start, "subs", "--csv", "a.csv"]]


def test_grade_without_a_folder_says_what_it_needs(handed_over, capsys):
    assert commands.run(["grade"], "help") == 2
    assert "needs the folder of submissions" in capsys.readouterr().err
    assert handed_over == []


def test_places_are_meant_from_there(tmp_path, monkeypatch, capsys):
    seen = {}
    monkeypatch.setattr(grading, "grade", lambda *words: seen.update(at=Path.cwd()) or "all")
    monkeypatch.chdir(tmp_path.parent)
    assert grading.main(["--at", str(tmp_path), "subs", "--memory", "5"]) == 0
    assert seen["at"] == tmp_path
    assert "Protection: all" in capsys.readouterr().out


def test_every_option_that_is_known_is_in_the_help():
    said = commands.HELP["grade"]
    for option in ("--csv", "--report", "--jobs", "--timeout", "--memory", "--chapters", "--seed",
                   "--again"):  # fmt: skip
        assert option in said
