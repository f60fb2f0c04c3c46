"""The wrong answers that the checks know, as a page for teachers.

python scripts/common_mistakes.py            all of them, by exercise
python scripts/common_mistakes.py --write    the first of each exercise, into TEACHING.md
"""

from __future__ import annotations

import sys
from pathlib import Path

from ptq_classroom.kit.exercises import Exercise, everything

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "TEACHING.md"
BEGIN, END = "<!-- mistakes:begin -->\n", "<!-- mistakes:end -->"
SHOWN = 2


def causes(exercise: Exercise) -> list[str]:
    """The diagnoses of an exercise, each once, in the order in which they stand."""
    return list(dict.fromkeys(sentence for _, sentence in exercise.diagnoses))


def table() -> str:
    """A Markdown table: each exercise with its first diagnoses."""
    rows = ["| exercise | what goes wrong |", "|---|---|"]
    for exercise in everything():
        said = "; ".join(cause.replace("|", "\\|") for cause in causes(exercise)[:SHOWN])
        rows.append(f"| {exercise.id} {exercise.title} | {said} |")
    return "\n".join(rows) + "\n"


def written(page: str) -> str:
    """The page with a table that is up to date."""
    before, rest = page.split(BEGIN)
    return before + BEGIN + table() + END + rest.split(END)[1]


def main(arguments: list[str]) -> None:
    """Print all, or write the page."""
    if arguments == ["--write"]:
        PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
        return
    for exercise in everything():
        print(f"{exercise.id} {exercise.title}")
        for cause in causes(exercise):
            print(f"    - {cause}")


if __name__ == "__main__":
    main(sys.argv[1:])
