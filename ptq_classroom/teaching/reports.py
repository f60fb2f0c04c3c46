"""A page for each student that names the misconceptions, and one for the class that counts them.

Plain HTML without scripts; whatever a student wrote is escaped.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from html import escape
from pathlib import Path

from ptq_classroom.kit import exercises
from ptq_classroom.kit.learner_file import write as write_file

STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto;
       padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; margin: 1rem 0; }
th, td { text-align: left; vertical-align: top; padding: .35rem .6rem;
         border-bottom: 1px solid #8884; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
pre { overflow-x: auto; background: #8881; padding: .6rem; font-size: .85rem;
      white-space: pre-wrap; }
.bar { display: inline-block; height: .8em; background: #3b6fb6; vertical-align: baseline; }
small, footer { opacity: .8; }
"""
WORDS = {
    "passed": "✓ passed",
    "failed": "✗ wrong",
    "not attempted": "○ not attempted",
    "missing": "○ missing",
    "stopped": "✗ stopped",
    "refused": "✗ refused",
}
CASES = {
    "fresh": "on the cases of the course and on fresh ones",
    "shipped": "on the cases of the course",
}


def write(
    folder: Path, rows: Sequence[dict], ids: Sequence[str], seed: int, protection: str
) -> None:
    """index.html for the class, and a page a student."""
    folder.mkdir(parents=True, exist_ok=True)
    said = escape(f"Seed {seed}. While it was graded: {protection}.")
    foot = f"<footer><p><small>{said}</small></p></footer>"
    pages = {row["student"]: page_name(row["student"]) for row in rows}
    for row in rows:
        _save(folder / pages[row["student"]], row["student"], student(row), foot)
    _save(folder / "index.html", "The class", course(rows, ids, pages), foot)


def page_name(student: str) -> str:
    """A file name of plain characters, one a student."""
    plain = re.sub(r"[^A-Za-z0-9_-]+", "-", student).strip("-")[:40] or "student"
    mark = "" if plain == student else "-" + hashlib.sha256(student.encode()).hexdigest()[:6]
    return f"{'student-' if plain == 'index' else ''}{plain}{mark}.html"


def student(row: dict) -> str:
    """The body of a student's page."""
    verdicts = row["verdicts"]
    right = sum(v["score"] for v in verdicts)
    parts = [f"<p><strong>{right} of {len(verdicts)}</strong> exercises right.</p>"]
    parts += [f"<p>{escape(note)}</p>" for note in row["notes"]]
    for verdict in verdicts:
        exercise = exercises.get(verdict["exercise"])
        parts.append(f"<h2>{escape(exercise.id)} {escape(exercise.title)}</h2>")
        parts.append(f"<p>{WORDS[verdict['outcome']]}{_because(verdict)}</p>")
        if verdict["text"] and verdict["outcome"] == "failed":
            text = escape(verdict["text"])
            parts.append(f"<details><summary>What was found</summary><pre>{text}</pre></details>")
        if verdict["outcome"] == "failed" and exercise.hints:
            symptoms = "; ".join(escape(symptom) for symptom, _ in exercise.hints)
            parts.append(f'<p><small>hint("{exercise.id}") answers: {symptoms}</small></p>')
    return "\n".join(parts)


def _because(verdict: dict) -> str:
    if verdict["outcome"] == "passed":
        return f", {CASES[verdict['cases']]}"
    return f": {escape(verdict['cause'])}" if verdict["cause"] else ""


def course(rows: Sequence[dict], ids: Sequence[str], pages: dict[str, str]) -> str:
    """The body of the class's page."""
    return "\n".join((
        f"<p>{len(rows)} submissions, {len(ids)} exercises.</p>",
        "<h2>Exercises</h2>", _exercises(rows, ids),
        "<h2>Misconceptions, most frequent first</h2>", _counted(misconceptions(rows)),
        "<h2>Stopped and refused</h2>", _counted(misconceptions(rows, ("stopped", "refused"))),
        "<h2>Students</h2>", _students(rows, ids, pages),
    ))  # fmt: skip


def _exercises(rows: Sequence[dict], ids: Sequence[str]) -> str:
    lines = []
    for id in ids:
        outcomes = Counter(v["outcome"] for r in rows for v in r["verdicts"] if v["exercise"] == id)
        right = outcomes["passed"]
        wide = round(100 * right / max(1, len(rows)))
        title = escape(f"{id} {exercises.get(id).title}")
        rest = ", ".join(f"{n} {name}" for name, n in outcomes.most_common() if name != "passed")
        lines.append(
            f'<tr><td>{title}</td><td class="n">{right} of {len(rows)}</td>'
            f'<td style="width:30%"><span class="bar" style="width:{wide}%"></span></td>'
            f"<td>{rest}</td></tr>"
        )
    return _table(("exercise", "n:right", "share", "the others"), lines)


def misconceptions(
    rows: Sequence[dict], outcomes: Sequence[str] = ("failed",)
) -> list[tuple[str, str, int]]:
    """(exercise, cause, how many students) of verdicts with these outcomes, most frequent first."""
    found = Counter(
        (v["exercise"], v["cause"])
        for row in rows
        for v in row["verdicts"]
        if v["outcome"] in outcomes and v["cause"]
    )
    return [(id, cause, n) for (id, cause), n in sorted(found.items(), key=lambda x: (-x[1], x[0]))]


def _counted(found: list[tuple[str, str, int]]) -> str:
    most = max((n for *_, n in found), default=1)
    lines = [
        f'<tr><td class="n">{n}</td><td style="width:15%">'
        f'<span class="bar" style="width:{round(100 * n / most)}%"></span></td>'
        f"<td>{escape(id)}</td><td>{escape(cause)}</td></tr>"
        for id, cause, n in found
    ]
    return _table(("n:students", "", "exercise", "cause"), lines) if lines else "<p>None.</p>"


def _students(rows: Sequence[dict], ids: Sequence[str], pages: dict[str, str]) -> str:
    lines = []
    for row in rows:
        verdicts = {v["exercise"]: v for v in row["verdicts"]}
        marks = "".join(
            f"<td>{WORDS[verdicts[id]['outcome']] if id in verdicts else 'not graded'}</td>"
            for id in ids
        )
        right = sum(v["score"] for v in verdicts.values())
        odd = [f"{id} uses {', '.join(v['suspicious'])}" for id, v in verdicts.items()
               if v["suspicious"]]  # fmt: skip
        look = escape("; ".join([*row["notes"], *odd]))
        name = f'<a href="{pages[row["student"]]}">{escape(row["student"])}</a>'
        lines.append(f'<tr><td>{name}</td><td class="n">{right}</td>{marks}<td>{look}</td></tr>')
    return _table(("student", "n:right", *ids, "look at"), lines)


def _table(heads: Sequence[str], lines: list[str]) -> str:
    row = "".join(
        f'<th class="n">{escape(h[2:])}</th>' if h.startswith("n:") else f"<th>{escape(h)}</th>"
        for h in heads
    )
    body = "\n".join(lines)
    return f"<table><thead><tr>{row}</tr></thead><tbody>\n{body}\n</tbody></table>"


def _save(path: Path, title: str, body: str, foot: str) -> None:
    page = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n"
        f"<body><h1>{escape(title)}</h1>\n{body}\n{foot}</body></html>\n"
    )
    write_file(path, page.encode("utf-8"))
