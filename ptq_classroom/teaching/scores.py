"""The tables: one row a student with a column for each exercise, and one row for each verdict."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from ptq_classroom.kit.learner_file import write

FIRST = ("student", "score", "out_of")
LAST = ("remarks", "look_at", "seed", "protection")
DETAILS = ("student", "exercise", "score", "outcome", "cause", "cases", "suspicious")


def table(rows: Sequence[dict], ids: Sequence[str], seed: int, protection: str) -> str:
    """The gradebook as CSV. remarks: what a score alone does not say. look_at: exercises whose
    answers use names that an answer hardly needs."""
    lines: list[list[object]] = [[*FIRST, *ids, *LAST]]
    for row in rows:
        verdicts = {v["exercise"]: v for v in row["verdicts"]}
        scores = [verdicts[id]["score"] if id in verdicts else 0 for id in ids]
        marks = [f"{id}: {v['outcome']}" for id, v in verdicts.items() if v["outcome"] in LOUD]
        odd = [f"{id} ({', '.join(v['suspicious'])})" for id, v in verdicts.items()
               if v["suspicious"]]  # fmt: skip
        remarks = "; ".join([*row["notes"], *marks])
        lines.append([safe(row["student"]), sum(scores), len(ids), *scores, safe(remarks),
                      safe("; ".join(odd)), seed, protection])  # fmt: skip
    return _csv(lines)


LOUD = ("stopped", "refused")


def details(rows: Sequence[dict]) -> str:
    """Every verdict with its misconception, as CSV."""
    lines: list[list[object]] = [[*DETAILS]]
    for row in rows:
        for verdict in row["verdicts"]:
            found = {**verdict, "student": row["student"]}
            found["suspicious"] = " ".join(found["suspicious"])
            lines.append([safe(found[name]) for name in DETAILS])
    return _csv(lines)


def save(path: Path, text: str) -> None:
    """Replace the file in one step."""
    write(path, text.encode("utf-8-sig"))  # with this mark Excel reads it as UTF-8


def safe(value: object) -> object:
    """No cell that a spreadsheet would run as a formula, no control character."""
    if not isinstance(value, str):
        return value
    text = "".join(c if c.isprintable() else " " for c in value)
    return "'" + text if text[:1] in ("=", "+", "-", "@") else text


def _csv(lines: list) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(lines)
    return out.getvalue()
