"""The page for teachers is up to date and speaks of every chapter that there is."""

import re
from pathlib import Path

import common_mistakes
import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "TEACHING.md").read_text(encoding="utf-8")
CHAPTERS = sorted(p.name[:2] for p in (ROOT / "notebooks").glob("[0-9]*.ipynb"))


def test_the_table_of_mistakes_is_current():
    assert common_mistakes.written(PAGE) == PAGE, "python scripts/common_mistakes.py --write"


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_each_lab_has_its_page(chapter):
    """With minute marks that rise, a place where students stop, and what to cut."""
    (script,) = re.findall(rf"^\*\*{chapter} .*?(?=\n\n)", PAGE, flags=re.DOTALL | re.MULTILINE)
    assert "*Stuck*" in script
    assert "*Cut*" in script
    timed = script.split("*Stuck*")[0]
    marks = [int(m) for m in re.findall(r"\.(?:\*\*)?\s(\d+) [a-z]", timed)]
    assert marks == sorted(marks)
    assert len(marks) >= 4
    assert marks[-1] < 50


def test_exercises_that_a_lab_names_are_in_its_notebook():
    for chapter, exercise in re.findall(r"exercise\s(\d\d)\.(\d)", PAGE):
        (path,) = (ROOT / "notebooks").glob(f"{chapter}_*.ipynb")
        assert f"Exercise {chapter}.{exercise} " in path.read_text(encoding="utf-8")


def test_the_concept_test_has_twelve_items_and_answers():
    part = PAGE.split("## A concept test")[1].split("\n## ")[0]
    items = re.findall(r"^(\d+)\. ", part, flags=re.MULTILINE)
    answers = re.findall(r"(\d+)([abcd])\b", part.split("Answers:")[1].split("Items")[0])
    assert items == [str(n) for n in range(1, 13)] == [n for n, _ in answers]
    assert {letter for _, letter in answers} == set("abcd")
