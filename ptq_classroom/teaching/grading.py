"""`python course.py grade`: grade a folder of submissions, several at a time, and write the tables.

This process never runs a student's code. Judges (`judge.py`) are processes of their
own, one for each job; one that dies is started again.
"""

from __future__ import annotations

import argparse
import os
import secrets
import sys
from pathlib import Path

from tqdm import tqdm

from ptq_classroom.teaching import reports, scores, submissions
from ptq_classroom.teaching.jobs import Jobs
from ptq_classroom.teaching.journal import Journal
from ptq_classroom.teaching.sandbox import PROTECTIONS, Limits
from ptq_classroom.teaching.submissions import Submission


def grade(
    place: Path,
    table: Path,
    report: Path | None = None,
    jobs: int = 2,
    limits: Limits | None = None,
    chapters: list[str] | None = None,
    seed: int | None = None,
    again: bool = False,
) -> str:
    """Grade what is new in `place`, write the tables (and reports); returns what protected.

    Rows appear in `table` as submissions are done. Called again after an interruption, or after
    more was handed in, it grades only what has no row yet or has changed.
    """
    limits = limits or Limits()
    found = submissions.find(place)
    journal = Journal(table.with_name(table.name + ".journal"))
    if seed is None:
        seed = journal.head.get("seed") if not again else None
    seed = secrets.randbelow(2**31) if seed is None else seed
    work = Jobs(min(jobs, len(found)), limits, seed)
    try:
        head = {"seed": seed, "seconds": limits.seconds, "megabytes": limits.megabytes}
        notes, seen = _scan(work, found, chapters)
        ids = _ids(seen)
        head |= {"chapters": seen}
        kept = journal.head.get("fresh", {}) if journal.head.get("seed") == seed else {}
        head["fresh"] = _fresh(work, [id for id in ids if id not in kept]) | kept
        protection = said(work.protection())
        journal.begin(head, again)
        fresh = {id: head["fresh"].get(id, []) for id in ids}
        _grade(work, journal, table, found, notes, fresh, seed, protection)
    finally:
        work.close()
    rows = [journal.rows[one.student] for one in found]
    if report is not None:
        reports.write(report, rows, ids, seed, protection)
    return protection


def _scan(
    work: Jobs, found: list[Submission], chapters: list[str] | None
) -> tuple[dict[str, list[str]], list[str]]:
    """(student -> notes, chapters): which files cannot be read, what the class has worked on."""
    notes = {one.student: list(one.skipped) for one in found}
    seen: set[str] = set(chapters or ())

    def enter(student: str, answer: dict | None) -> None:
        answer = answer or {"notes": ["it could not be read"]}
        notes[student] += answer.get("notes", [])
        if not chapters:
            seen.update(answer.get("chapters", []))

    orders = [(one.student, {"do": "scan", "paths": [*map(str, one.files)]}) for one in found]
    work.run(orders, enter)
    if not seen:
        raise ValueError(
            "no cell of the submissions names its exercise: say which chapters with --chapters"
        )
    return notes, sorted(seen, key=lambda name: (name != "prep", name))


def _ids(chapters: list[str]) -> list[str]:
    from ptq_classroom.kit import exercises

    return [exercise.id for chapter in chapters for exercise in exercises.load(chapter)]


def _fresh(work: Jobs, ids: list[str]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    with tqdm(total=len(ids), desc="fresh cases", disable=not ids, leave=False) as bar:

        def enter(id: str, answer: dict | None) -> None:
            found[id] = (answer or {}).get("fair", [])
            bar.update()

        work.run([(id, {"do": "fair", "id": id}) for id in ids], enter)
    return found


def _grade(
    work: Jobs, journal: Journal, table: Path, found: list[Submission],
    notes: dict[str, list[str]], fresh: dict[str, list[int]], seed: int, protection: str,
) -> None:  # fmt: skip
    def is_done(one: Submission) -> bool:
        row = journal.rows.get(one.student)
        return row is not None and row["digest"] == one.digest

    def show() -> None:
        rows = [journal.rows[one.student] for one in found if is_done(one)]
        scores.save(table, scores.table(rows, list(fresh), seed, protection))
        scores.save(_details(table), scores.details(rows))

    todo = {one.student: one for one in found if not is_done(one)}
    with tqdm(total=len(found), initial=len(found) - len(todo), desc="graded") as bar:

        def enter(student: str, answer: dict | None) -> None:
            answer = answer or {"error": "the judge itself ended"}
            row = {"student": student, "digest": todo[student].digest, "notes": notes[student]}
            row["notes"] = [*row["notes"], *answer.get("notes", ())]
            if "error" in answer:
                row["notes"] = [*row["notes"], f"NOT GRADED, {answer['error']}"]
            row |= {"verdicts": answer.get("verdicts", []), "seconds": answer.get("seconds", 0)}
            journal.add(row)
            show()
            bar.update()

        orders = [(name, {"do": "grade", "paths": [*map(str, one.files)], "fresh": fresh})
                  for name, one in todo.items()]  # fmt: skip
        work.run(orders, enter)
    show()


def _details(table: Path) -> Path:
    return table.with_name(f"{table.stem}.details{table.suffix}")


def said(protection: dict) -> str:
    """The protection in words: what was tried and held, what did not, by which means."""
    holds = protection["holds"]
    good = [text for name, text in PROTECTIONS.items() if holds[name]]
    bad = [text for name, text in PROTECTIONS.items() if not holds[name]]
    means = ", ".join(protection["layers"]) or "nothing but time limits"
    text = "; ".join(["a time limit", *good])
    return f"{text} (by {means})" + (f"; NOT IN FORCE: {'; '.join(bad)}" if bad else "")


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python course.py grade", add_help=False)
    parser.add_argument("--at", type=Path, default=Path())  # where the command was given
    parser.add_argument("submissions", type=Path)
    parser.add_argument("--csv", type=Path, default=Path("grades.csv"))
    parser.add_argument("--report", type=Path)
    parser.add_argument("--jobs", type=int, default=max(1, (os.cpu_count() or 2) // 2))
    parser.add_argument("--timeout", type=float, default=20.0)
    parser.add_argument("--memory", type=int, default=1024)
    parser.add_argument("--chapters")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--again", action="store_true")
    told = parser.parse_args(arguments)
    os.chdir(told.at)
    try:
        protection = grade(
            told.submissions, told.csv, told.report, max(1, told.jobs),
            Limits(told.timeout, told.memory),
            told.chapters.split(",") if told.chapters else None, told.seed, told.again,
        )  # fmt: skip
    except (OSError, ValueError) as problem:
        print(problem, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped. The same command goes on where it was.", file=sys.stderr)
        return 130
    print(f"\nProtection: {protection}")
    print(f"Grades: {told.csv}; each verdict: {_details(told.csv)}")
    if told.report:
        print(f"Reports: {told.report / 'index.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
