"""The exit quizzes: one right choice, a cause for each wrong one, and what `quiz` prints."""

from __future__ import annotations

import json
import re

import pytest

from ptq_classroom.kit import quiz as kit
from ptq_classroom.kit.exercises import CHAPTERS
from ptq_classroom.kit.quiz import NAMES, Question, answers, questions, quiz

EVERY = sorted(p.name[2:] for p in CHAPTERS.glob("ch[0-9][0-9]"))
ALL = [(chapter, i) for chapter in EVERY for i in range(len(questions(chapter)))]
each = pytest.mark.parametrize(("chapter", "i"), ALL, ids=[f"{c}.q{i + 1}" for c, i in ALL])

BREAD = Question(
    "What rises?",
    right=("dough", "yeast makes gas"),
    wrong=(("stone", "it has no yeast"), ("water", "it evaporates, which is another thing")),
)


@pytest.mark.parametrize("chapter", EVERY)
def test_a_chapter_has_five_different_questions(chapter: str):
    asked = questions(chapter)
    assert len({q.text for q in asked}) == len(asked) == len(NAMES)
    assert len({q.answer for q in asked}) > 1, "always the same letter"
    longest = sum(len(q.right[0]) > max(len(c) for c, _ in q.wrong) for q in asked)
    assert longest <= 3, f"the longest choice is right in {longest} of 5: that gives it away"


@pytest.mark.parametrize("chapter", EVERY)
def test_the_notebook_asks_them_and_folds_the_answers(chapter: str):
    (path,) = (CHAPTERS.parents[1] / "notebooks").glob(f"{chapter}_*.ipynb")
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    asks, tells = (
        [c for c in cells if tag in c["metadata"].get("tags", ())]
        for tag in ("quiz", "quiz-answers")
    )
    empty = ", ".join(f"{name}=None" for name in NAMES)
    assert ["".join(c["source"]) for c in asks] == [f'quiz("{chapter}", {empty})']
    assert ["".join(c["source"]).splitlines()[-1] for c in tells] == [f'answers("{chapter}")']
    assert tells[0]["metadata"]["jupyter"] == {"source_hidden": True, "outputs_hidden": True}


@each
def test_a_question_has_one_right_choice_and_a_cause_for_each_wrong_one(chapter: str, i: int):
    question = questions(chapter)[i]
    choices = question.choices
    assert len(question.wrong) >= 2
    assert len(choices) == 1 + len(question.wrong) == len({c for c, _ in choices.values()})
    comments = [comment for _, comment in choices.values()]
    assert len(set(comments)) == len(comments), "each wrong choice has its own explanation"
    assert all(len(comment.split()) >= 5 for comment in comments)
    assert [letter for letter, row in choices.items() if row == question.right] == [question.answer]
    assert question.text.endswith(("?", "."))


def printed(capsys: pytest.CaptureFixture, *given: str | None) -> str:
    quiz("00", *given)
    return capsys.readouterr().out


def test_nothing_is_given_away_before_an_answer(capsys):
    said = printed(capsys)
    assert said == printed(capsys)
    assert said.rstrip().endswith("run the cell again.")
    asked = questions("00")
    flat = " ".join(said.split())
    for q in asked:
        assert q.text in flat
        for choice, comment in q.choices.values():
            assert choice in flat
            assert comment not in flat
    assert "✓" not in said
    assert max(map(len, said.splitlines())) <= 88


def test_each_answer_gets_its_own_verdict(capsys):
    for i, question in enumerate(questions("00")):
        for letter, (_, comment) in question.choices.items():
            given: list[str | None] = [None] * 5
            given[i] = f" {letter.upper()}) "
            said = printed(capsys, *given)
            assert comment in " ".join(said.split())
            right = letter == question.answer
            assert f"{'✓' if right else '✗'} {letter}: " in said
            assert f"{int(right)} of 5 right; still open: " in said
            assert f"q{i + 1}" not in said.splitlines()[-1]


def test_all_right(capsys):
    said = printed(capsys, *(q.answer for q in questions("00")))
    assert said.splitlines()[-1] == "5 of 5 right"
    answers("00")
    folded = capsys.readouterr().out
    assert re.findall(r"^q\d (\w)\)", folded, re.MULTILINE) == [q.answer for q in questions("00")]


@pytest.mark.parametrize("letter", ["z", "", "ab", 3])
def test_a_letter_that_is_no_choice_leaves_the_question_open(capsys, letter):
    said = printed(capsys, letter)
    assert f"{letter!r} is none of a, b, c" in said
    assert "still open" not in said or "q1" in said.splitlines()[-1]
    assert "0 of 5 right" not in said


def test_the_order_of_the_choices_is_in_their_text_alone():
    turned = Question(BREAD.text, BREAD.right, BREAD.wrong[::-1])
    assert turned.choices == BREAD.choices
    assert BREAD.choices[BREAD.answer] == BREAD.right


def test_a_chapter_without_a_quiz_is_named():
    with pytest.raises(KeyError, match="no quiz for chapter '77'; there are 00"):
        kit.questions("77")
