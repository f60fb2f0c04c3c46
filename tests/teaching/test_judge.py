"""Judged from another process, an answer fares as it does in a notebook."""

import inspect
import json
import re
import sys
from pathlib import Path

import pytest

from ptq_classroom.kit import exercises
from ptq_classroom.kit.examine import examine
from ptq_classroom.kit.learner_copy import learner_version
from ptq_classroom.teaching import allowed, capstone, seeds
from ptq_classroom.teaching.judge import Judge
from ptq_classroom.teaching.sandbox import Limits

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="takes minutes without a fork")


@pytest.fixture(scope="module")
def judge():
    made = Judge(Limits(30, 1024), seed=11)
    yield made
    made.processes.close()


def with_solutions(path):
    """A notebook whose stubs hold the course's solutions, as a student would write them."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        cell["outputs"] = []
        tags = cell["metadata"].get("tags", ())
        if "solution" in tags:
            source = re.sub(r"\ncheck\(.*", "", "".join(cell["source"]))
            cell["source"] = source.replace("_solution(", "(")
            cell["metadata"]["tags"] = ["stub"]
        elif "stub" in tags:
            cell["source"] = ""
    return json.dumps(notebook)


def blocks(id, source, folder):
    path = folder / "my_ptq.py"
    start = "import torch\nfrom torch import Tensor, nn\nfrom typing import Any\n"
    path.write_text(f"# >>> {id}\n{start}{source}\n# <<< {id}\n", encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name[:5])
def test_every_solution_of_the_course_passes(path, judge, tmp_path):
    handed_in = tmp_path / path.name
    handed_in.write_text(with_solutions(path), encoding="utf-8")
    chapter = path.name.split("_")[0]
    assert judge.scan([str(handed_in)]) == {"chapters": [chapter], "notes": []}
    ids = [exercise.id for exercise in exercises.load(chapter)]
    found = judge.grade([str(handed_in)], {id: [] for id in ids})["verdicts"]
    wrong = {v["exercise"]: (v["outcome"], v["cause"]) for v in found if v["outcome"] != "passed"}
    assert wrong == {}
    assert [v["exercise"] for v in found] == ids
    assert not any(v["suspicious"] for v in found)


def test_a_blank_notebook_is_not_attempted(judge, tmp_path):
    path = NOTEBOOKS[4]
    (tmp_path / "04.ipynb").write_text(
        learner_version(path.read_text(encoding="utf-8")), encoding="utf-8"
    )
    ids = [exercise.id for exercise in exercises.load("04")]
    found = judge.grade([str(tmp_path / "04.ipynb")], {id: [] for id in ids})["verdicts"]
    assert {v["outcome"] for v in found} == {"not attempted"}


# Of these the arguments change, keep hooks, or are functions: what happens there has to come back.
CARRIED = ("prep.3", "prep.7", "04.3", "06.1", "06.2")


@pytest.mark.parametrize("id", CARRIED)
def test_the_cause_is_the_one_that_a_notebook_names(id, judge, tmp_path):
    exercise = exercises.get(id)
    compared = 0
    for wrong, _ in exercise.diagnoses[:4] + exercise.diagnoses[-3:]:
        source = inspect.getsource(wrong)
        if not source.startswith(f"def {exercise.function}("):
            continue
        here = examine(exercise, wrong)
        (there,) = judge.grade([blocks(id, source, tmp_path)], {id: []})["verdicts"]
        assert here.failure is not None
        assert (there["outcome"], there["cause"]) == (here.status, here.failure.cause)
        compared += 1
    assert compared >= 2


def test_an_error_is_located_in_the_students_own_line(judge, tmp_path):
    source = "def wrap(value, bits):\n    return [][value]\n"
    (found,) = judge.grade([blocks("prep.2", source, tmp_path)], {"prep.2": []})["verdicts"]
    assert found["cause"] == "raised IndexError: list index out of range"
    assert "in wrap: return [][value]" in found["text"]


def test_fresh_cases_differ_and_are_fair():
    first, second = seeds.fair("01.2", 1), seeds.fair("01.2", 2)
    assert len(first) == len(second) == 2
    assert not {*first} & {*second}
    assert seeds.fair("prep.2", 1) == ()  # a fixed list of numbers
    exercise = exercises.get("01.2")
    with seeds.fresh(first[0]):
        assert examine(exercise, exercise.reference).status == "passed"


def test_a_seed_on_which_a_right_answer_fails_is_not_taken(monkeypatch):
    monkeypatch.setattr(seeds, "_fares_well", lambda exercise, seed: seed % 2 == 0)
    seeds.fair.cache_clear()
    found = seeds.fair("01.2", 5)
    seeds.fair.cache_clear()
    assert found
    assert all(seed % 2 == 0 for seed in found)


def test_what_an_answer_may_call():
    bootstrap = "ptq_course.grids.metrics.paired_bootstrap"
    assert bootstrap in allowed.names("01.3")
    assert bootstrap not in allowed.names("00.2")  # which asks for it
    assert allowed.names("00.3") == ("ptq_course.",)
    assert not any("quantize" in name for name in allowed.names("01.2"))


def test_a_broken_checkpoint_is_said(judge, tmp_path):
    (tmp_path / "net.safetensors").write_bytes(b"\xff" * 100)
    found = judge.grade([str(tmp_path / "net.safetensors")], {})
    assert found["notes"][0].startswith("net.safetensors: cannot be scored: DataIntegrityError")


def test_the_pictures_of_the_capstone_are_hidden_ones():
    x, labels, before = capstone.hidden(3)
    other, _, _ = capstone.hidden(4)
    assert x.shape == other.shape
    assert not x.equal(other)
    assert not x.equal(capstone.task.pictures("score")[0])
    said = capstone.verdict("a", labels, 10**5, 3)
    assert said.startswith(f"a: 100.0 % on {len(before)} hidden pictures")
    assert capstone.verdict("a", "nonsense", 1, 3) == "a: its process gave no answers"
