"""The exit quiz: `quiz("03", q1="b")` asks five questions about a chapter and says why not.

The questions are data, in `chapters/chNN/quiz.py`: each has one right choice with its reason and
two or more wrong ones, each with the misconception behind it. Plain text in, plain text out: no
widget, the same output in every run, and nothing to do for whoever executes the notebook.
"""

from __future__ import annotations

import hashlib
import importlib
import textwrap
from dataclasses import dataclass

from ptq_classroom.kit.exercises import CHAPTERS

LETTERS = "abcdef"
NAMES = ("q1", "q2", "q3", "q4", "q5")
HEAD = "Exit quiz of chapter {chapter}: five questions, one right choice each."
ASK = 'Answer with a letter in place of None, q1="a" say, and run the cell again.'


@dataclass(frozen=True)
class Question:
    """One question. `right` is (choice, why it is right), `wrong` are (choice, what is wrong)."""

    text: str
    right: tuple[str, str]
    wrong: tuple[tuple[str, str], ...]

    @property
    def choices(self) -> dict[str, tuple[str, str]]:
        """Letter -> (choice, comment), in an order that only the choices' own text decides."""
        mixed = sorted((self.right, *self.wrong), key=lambda row: _digest(self.text + row[0]))
        return dict(zip(LETTERS, mixed, strict=False))

    @property
    def answer(self) -> str:
        """The letter of the right choice."""
        return next(letter for letter, row in self.choices.items() if row == self.right)


def questions(chapter: str) -> tuple[Question, ...]:
    """The five questions of a chapter ("03" or "prep"); KeyError where it has no quiz."""
    folder = chapter if chapter == "prep" else f"ch{chapter}"
    if not (CHAPTERS / folder / "quiz.py").is_file():
        there = sorted(p.parent.name.removeprefix("ch") for p in CHAPTERS.glob("*/quiz.py"))
        raise KeyError(f"no quiz for chapter {chapter!r}; there are {', '.join(there)}")
    return importlib.import_module(f"ptq_classroom.chapters.{folder}.quiz").QUESTIONS


def quiz(
    chapter: str,
    q1: str | None = None,
    q2: str | None = None,
    q3: str | None = None,
    q4: str | None = None,
    q5: str | None = None,
) -> None:
    """Print the questions of a chapter, and below each answered one whether it is right, and why.

    A letter that is no choice is explained and counts as no answer, so the notebook runs on.
    """
    given = (q1, q2, q3, q4, q5)
    print(HEAD.format(chapter=chapter))
    right, open_ = 0, []
    for name, question, letter in zip(NAMES, questions(chapter), given, strict=True):
        print(f"\n{_wrapped(f'{name}  {question.text}', '', 4)}")
        for other, (choice, _) in question.choices.items():
            print(_wrapped(f"{other}) {choice}", "    ", 7))
        said, answered = _verdict(question, letter)
        right += said.startswith("✓")
        if said:
            print(_wrapped(said, "    ", 6))
        if not answered:
            open_.append(name)
    print("\n" + (ASK if len(open_) == len(NAMES) else _score(right, open_)))


def answers(chapter: str) -> None:
    """Print the right choices with their reasons; the committed notebook folds this away."""
    for name, question in zip(NAMES, questions(chapter), strict=True):
        choice, why = question.right
        print(_wrapped(f"{name} {question.answer}) {choice}: {why}", "", 6))


def _verdict(question: Question, letter: str | None) -> tuple[str, bool]:
    """What to print below the choices, and whether the question is answered."""
    if letter is None:
        return "", False
    picked = str(letter).strip().lower().rstrip(")")
    if picked not in question.choices:
        return f"{letter!r} is none of {', '.join(question.choices)}", False
    _, comment = question.choices[picked]
    return f"{'✓' if picked == question.answer else '✗'} {picked}: {comment}", True


def _score(right: int, open_: list[str]) -> str:
    rest = f"; still open: {', '.join(open_)}" if open_ else ""
    return f"{right} of {len(NAMES)} right{rest}"


def _wrapped(text: str, indent: str, hanging: int) -> str:
    return textwrap.fill(text, 88, initial_indent=indent, subsequent_indent=" " * hanging)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()
