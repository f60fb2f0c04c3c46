"""A folder of submissions of every kind is graded in one command; nothing that they try works."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import made_submissions
import pytest

from ptq_classroom.teaching import reports, scores
from ptq_classroom.teaching.journal import Journal

ROOT = Path(__file__).resolve().parents[2]
LINUX = sys.platform.startswith("linux")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not LINUX, reason="the hostile ones are for Linux's protections"),
]
IDS = ("01.1", "01.2", "01.3")


def command(place, table, *more):
    python = [sys.executable, "-m", "ptq_classroom.teaching.grading"]
    limits = ["--timeout", "8", "--memory", "384", "--jobs", "2"]
    return [*python, str(place), "--csv", str(table), *limits, *more]


def rows(table):
    with open(table, encoding="utf-8-sig", newline="") as file:
        return {row["student"]: row for row in csv.DictReader(file)}


def verdicts(table):
    details = table.with_name(f"{table.stem}.details{table.suffix}")
    with open(details, encoding="utf-8-sig", newline="") as file:
        return {(row["student"], row["exercise"]): row for row in csv.DictReader(file)}


@pytest.fixture(scope="module")
def graded(tmp_path_factory):
    base = tmp_path_factory.mktemp("class")
    place = base / "submissions"
    place.mkdir()
    expected = made_submissions.make(place)
    before = sorted(p.relative_to(base) for p in base.rglob("*"))
    order = command(place, base / "grades.csv", "--report", str(base / "report"), "--seed", "7")
    done = subprocess.run(order, capture_output=True, text=True, cwd=base, timeout=280)
    return base, expected, before, done


def test_the_command_succeeds_and_names_the_protection(graded):
    _, _, _, done = graded
    assert done.returncode == 0, done.stderr[-2000:]
    assert "graded: 100%" in done.stderr
    assert "Protection: a time limit;" in done.stdout


def test_every_cell_of_the_table(graded):
    base, expected, _, _ = graded
    found = rows(base / "grades.csv")
    assert sorted(found) == sorted(expected)
    for student, (outcomes, _) in expected.items():
        scores = {id: str(int(outcomes.get(id, "passed") == "passed")) for id in IDS}
        row = found[student]
        assert {id: row[id] for id in IDS} == scores, student
        assert row["score"] == str(sum(map(int, scores.values())))
        assert (row["out_of"], row["seed"]) == ("3", "7")
        assert row["protection"].startswith("a time limit;")
        loud = {id for id, outcome in outcomes.items() if outcome in ("stopped", "refused")}
        assert all(f"{id}: {outcomes[id]}" in row["remarks"] for id in loud), student


def test_every_outcome_and_its_cause(graded):
    base, expected, _, _ = graded
    found = verdicts(base / "grades.csv")
    for student, (outcomes, word) in expected.items():
        for id in IDS:
            row = found[student, id]
            assert row["outcome"] == outcomes.get(id, "passed"), (student, id, row["cause"])
        assert word in found[student, "01.1"]["cause"], student
        assert found[student, "01.1"]["cause"] or found[student, "01.1"]["score"] == "1" or (
            found[student, "01.1"]["outcome"] == "not attempted"
        )  # fmt: skip


def test_fresh_cases_are_asked(graded):
    base, _, _, _ = graded
    found = verdicts(base / "grades.csv")
    assert {found["anna", id]["cases"] for id in IDS} == {"fresh"}


def test_odd_names_are_shown_to_the_teacher(graded):
    base, _, _, _ = graded
    found = rows(base / "grades.csv")
    assert "gc" in found["patches"]["look_at"]
    assert "importlib" in found["borrows in secret"]["look_at"]
    assert {found[name]["look_at"] for name in ("anna", "bert", "zoe", "lazy")} == {""}


def test_nothing_was_written_but_the_results(graded):
    base, _, before, _ = graded
    made = {p.relative_to(base) for p in base.rglob("*")} - set(before)
    results = {"grades.csv", "grades.csv.journal", "grades.details.csv", "report"}
    assert {path.parts[0] for path in made} == results
    places = (Path.home() / "ptq-written", Path("/var/tmp/ptq-written"), ROOT / "ptq-written")
    assert not any(map(Path.exists, places))


def test_the_reports_name_and_count_the_misconceptions(graded):
    base, expected, _, _ = graded
    rows = list(Journal(base / "grades.csv.journal").rows.values())
    counted = reports.misconceptions(rows)
    numbers = [n for *_, n in counted]
    assert numbers == sorted(numbers, reverse=True)
    assert counted[0] == ("01.1", "the scale comes first, then the zero point", 2)
    refused = reports.misconceptions(rows, ("refused",))
    assert [(id, n) for id, _, n in refused] == [("01.1", 2)]
    page = (base / "report" / "index.html").read_text(encoding="utf-8")
    assert "2^bits is the number of codes" in page
    assert "01.1 uses importlib" in page
    assert len(list((base / "report").glob("*.html"))) == len(expected) + 1
    one = (base / "report" / reports.page_name("levels")).read_text(encoding="utf-8")
    assert "2^bits is the number of codes" in one
    assert "<strong>2 of 3</strong>" in one


def test_what_a_student_wrote_is_escaped(tmp_path):
    verdict = {"exercise": "01.1", "outcome": "failed", "cause": "<script>1</script>", "score": 0,
               "text": "<b>", "cases": "fresh", "suspicious": []}  # fmt: skip
    row = {"student": "=<i>../x", "notes": ["<u>"], "verdicts": [verdict]}
    reports.write(tmp_path, [row], ["01.1"], 1, "none")
    pages = sorted(path.name for path in tmp_path.iterdir())
    assert pages == sorted(["index.html", reports.page_name(row["student"])])
    for page in pages:
        text = (tmp_path / page).read_text(encoding="utf-8")
        assert not any(word in text for word in ("<script>", "<b>", "<i>", "<u>"))
    line = scores.table([row], ["01.1"], 1, "none").splitlines()[1]
    assert line.startswith("'=")  # a spreadsheet runs what begins with =


def test_again_grades_only_what_has_changed(graded):
    base, _, _, _ = graded
    table, place = base / "grades.csv", base / "submissions"
    before = Journal(base / "grades.csv.journal").rows
    late = place / "late" / "01.ipynb"
    late.parent.mkdir()
    late.write_text(made_submissions.filled({}), encoding="utf-8")
    done = subprocess.run(command(place, table), capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    after = Journal(base / "grades.csv.journal").rows
    assert {name: after[name] for name in before} == before
    assert rows(table)["late"]["score"] == "3"
    assert rows(table)["late"]["seed"] == "7"  # the cases of the others


def test_killed_in_the_middle_it_resumes(tmp_path):
    place, table = tmp_path / "all", tmp_path / "grades.csv"
    for number in range(5):
        (place / f"s{number}").mkdir(parents=True)
        answers = made_submissions.doing("import time; time.sleep(0.1)")
        text = made_submissions.filled(answers if number else {})
        (place / f"s{number}" / "01.ipynb").write_text(text, encoding="utf-8")
    journal = tmp_path / "grades.csv.journal"
    running = subprocess.Popen(
        command(place, table), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    end = time.monotonic() + 120
    while len(Journal(journal).rows) < 2 and time.monotonic() < end:
        assert running.poll() is None
        time.sleep(0.02)
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    first = Journal(journal)
    assert 2 <= len(first.rows) < 5
    assert set(rows(table)) <= set(first.rows)  # what stands in the table is whole
    with open(journal, "a") as file:
        file.write('{"student": "torn", "dig')  # as if it had died while it wrote
    done = subprocess.run(command(place, table), capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    second = Journal(journal)
    assert second.head["seed"] == first.head["seed"]
    assert {name: second.rows[name] for name in first.rows} == first.rows
    assert {name: row["score"] for name, row in rows(table).items()} == {
        "s0": "3", "s1": "2", "s2": "2", "s3": "2", "s4": "2",
    }  # fmt: skip


def test_a_folder_without_submissions_is_said(tmp_path):
    done = subprocess.run(command(tmp_path, tmp_path / "g.csv"), capture_output=True, text=True)
    assert done.returncode == 1
    assert "holds no submission" in done.stderr
    assert not (tmp_path / "g.csv").exists()


def test_a_journal_drops_what_is_torn(tmp_path):
    journal = Journal(tmp_path / "j")
    journal.begin({"seed": 1}, again=False)
    journal.add({"student": "a", "verdicts": []})
    with open(tmp_path / "j", "a") as file:
        file.write(json.dumps({"student": "b"}))
    assert list(Journal(tmp_path / "j").rows) == ["a"]
