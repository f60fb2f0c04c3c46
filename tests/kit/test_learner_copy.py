"""my_course/ is made from notebooks/, and nothing that a learner changed is ever overwritten."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ptq_classroom.kit import learner_copy
from ptq_classroom.kit.learner_copy import learner_version, make


def notebook(text: str = "hello", pictures: int = 0) -> str:
    picture = {"output_type": "display_data", "data": {"image/png": "A" * 100_000}, "metadata": {}}
    cells = [
        {"cell_type": "markdown", "id": "a", "metadata": {}, "source": [text]},
        {
            "cell_type": "code", "id": "b", "metadata": {"tags": ["stub"]}, "execution_count": 3,
            "source": ["def f(x):\n", "    raise NotImplementedError"],
            "outputs": [picture] * pictures,
        },
        {
            "cell_type": "code", "id": "c", "metadata": {"tags": ["solution", "hide-input"]},
            "execution_count": 4, "source": ["def f_solution(x): return x"], "outputs": [],
        },
    ]  # fmt: skip
    widgets = {"application/vnd.jupyter.widget-state+json": {"state": {}}}
    return json.dumps(
        {"cells": cells, "metadata": {"widgets": widgets}, "nbformat": 4, "nbformat_minor": 5}
    )


@pytest.fixture
def root(tmp_path: Path) -> Path:
    course = tmp_path / "a course"
    (course / "notebooks" / "images").mkdir(parents=True)
    (course / "notebooks" / ".ipynb_checkpoints").mkdir()
    (course / "notebooks" / ".ipynb_checkpoints" / "x.ipynb").write_text("{}")
    (course / "notebooks" / "images" / "p.png").write_bytes(b"png")
    (course / "notebooks" / "fingerprint.json").write_text("{}")
    for name in ("00_start.ipynb", "01_affine.ipynb"):
        (course / "notebooks" / name).write_text(notebook(name, 1), encoding="utf-8")
    return course


def rewrite(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    os.utime(path, ns=(time.time_ns() + 10**9, time.time_ns() + 10**9))


def test_first_copy(root: Path):
    done = make(root)
    assert done == ["added    00_start.ipynb", "added    01_affine.ipynb", "added    images/p.png"]
    copy = json.loads((root / "my_course" / "00_start.ipynb").read_text(encoding="utf-8"))
    assert [c["id"] for c in copy["cells"]] == ["a", "b"]
    assert copy["cells"][1]["outputs"] == []
    assert copy["cells"][1]["execution_count"] is None
    assert "widgets" not in copy["metadata"]
    assert (root / "my_course" / "images" / "p.png").read_bytes() == b"png"
    assert not (root / "my_course" / ".ipynb_checkpoints").exists()


def test_second_run_does_nothing(root: Path):
    make(root)
    before = {p: p.stat().st_mtime_ns for p in (root / "my_course").rglob("*")}
    assert make(root) == []
    assert {p: p.stat().st_mtime_ns for p in (root / "my_course").rglob("*")} == before


def test_re_executing_a_chapter_changes_nothing(root: Path):
    make(root)
    rewrite(root / "notebooks" / "00_start.ipynb", notebook("00_start.ipynb", 3))
    assert make(root) == []


def test_untouched_copies_follow_the_course(root: Path):
    make(root)
    rewrite(root / "notebooks" / "00_start.ipynb", notebook("better"))
    assert make(root) == ["updated  00_start.ipynb (you had not changed it)"]
    assert "better" in (root / "my_course" / "00_start.ipynb").read_text(encoding="utf-8")


def test_a_learners_work_is_never_overwritten(root: Path):
    make(root)
    mine = root / "my_course" / "00_start.ipynb"
    mine.write_text("my work", encoding="utf-8")
    for version, name in (("2", "00_start.new.ipynb"), ("3", "00_start.new.ipynb")):
        rewrite(root / "notebooks" / "00_start.ipynb", notebook(version))
        assert make(root) == [
            f"kept     00_start.ipynb; the course's new version is beside it: {name}"
        ]
        assert mine.read_text(encoding="utf-8") == "my work"
        assert f'"{version}"' in (mine.parent / name).read_text(encoding="utf-8")
    beside = mine.parent / "00_start.new.ipynb"
    beside.write_text("my work as well", encoding="utf-8")
    rewrite(root / "notebooks" / "00_start.ipynb", notebook("4"))
    assert make(root)[0].endswith("00_start.new2.ipynb")
    assert beside.read_text(encoding="utf-8") == "my work as well"
    assert make(root) == []


def test_a_file_that_was_there_before_is_kept(root: Path):
    (root / "my_course").mkdir()
    mine = root / "my_course" / "01_affine.ipynb"
    mine.write_text("mine", encoding="utf-8")
    assert "beside it: 01_affine.new.ipynb" in make(root)[1]
    assert mine.read_text(encoding="utf-8") == "mine"


def test_new_chapters_are_added_and_deleted_copies_come_back(root: Path):
    make(root)
    (root / "notebooks" / "02_range.ipynb").write_text(notebook("02"), encoding="utf-8")
    (root / "my_course" / "01_affine.ipynb").unlink()
    assert make(root) == ["added    01_affine.ipynb", "added    02_range.ipynb"]


def test_a_lost_record_loses_no_work(root: Path):
    make(root)
    (root / "my_course" / "00_start.ipynb").write_text("mine", encoding="utf-8")
    (root / "my_course" / learner_copy.RECORD).write_text("{ broken", encoding="utf-8")
    make(root)
    assert (root / "my_course" / "00_start.ipynb").read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize(
    "damage",
    ["[]", "3", "null", '{"00_start.ipynb": 3}',
     '{"00_start.ipynb": {"made": "abc", "current": ""}}',
     '{"00_start.ipynb": {"stamp": 1, "made": [[1]], "current": "x"}}', "\\udcff"],
)  # fmt: skip
def test_a_damaged_record_loses_no_work_and_is_mended(root: Path, damage: str):
    make(root)
    (root / "my_course" / "00_start.ipynb").write_text("mine", encoding="utf-8")
    state = root / "my_course" / learner_copy.RECORD
    state.write_text(damage, encoding="utf-8")
    make(root)
    assert (root / "my_course" / "00_start.ipynb").read_text(encoding="utf-8") == "mine"
    assert set(json.loads(state.read_text(encoding="utf-8"))) == {
        "00_start.ipynb", "01_affine.ipynb", "images/p.png",
    }  # fmt: skip
    assert make(root) == []


@pytest.mark.parametrize(
    "damage",
    [
        "<<<<<<< HEAD\n{}\n=======\n{}\n>>>>>>> other\n",
        "[]",
        "{}",
        '{"cells": [3], "metadata": {}}',
        "\xff",
    ],
)
def test_a_damaged_notebook_is_skipped_with_a_line_and_the_others_come(root: Path, damage: str):
    place = root / "notebooks" / "00_start.ipynb"
    place.write_bytes(damage.encode("latin-1"))
    done = make(root)
    assert [line.split()[:2] for line in done] == [
        ["skipped", "00_start.ipynb:"], ["added", "01_affine.ipynb"], ["added", "images/p.png"],
    ]  # fmt: skip
    assert "\n" not in done[0]
    rewrite(place, notebook("mended"))
    assert make(root) == ["added    00_start.ipynb"]


KILLED = """
import os, runpy, signal, sys
from pathlib import Path
module = runpy.run_path(sys.argv[1])
files, left = module["FILES"], [int(sys.argv[3])]
write = files["write"]
def killed(path, data):
    if left[0] == 0:
        path.parent.mkdir(exist_ok=True)
        path.with_name(f".{path.name}.{os.getpid()}.tmp").write_bytes(data[:10])
        os.kill(os.getpid(), signal.SIGKILL)
    left[0] -= 1
    write(path, data)
files["write"] = killed
module["make"](Path(sys.argv[2]))
"""


@pytest.mark.skipif(os.name == "nt", reason="kill -9")
@pytest.mark.parametrize("writes", range(6))
@pytest.mark.parametrize("first", [True, False])
def test_a_start_that_is_killed_anywhere_leaves_no_trace(root: Path, writes: int, first: bool):
    """At any of its writes; then the course is updated once more before the next start."""
    if not first:
        make(root)
        for name in ("00_start.ipynb", "01_affine.ipynb"):
            rewrite(root / "notebooks" / name, notebook("second"))
        (root / "my_course" / "01_affine.ipynb").write_text("mine", encoding="utf-8")
    command = [sys.executable, "-c", KILLED, learner_copy.__file__, str(root), str(writes)]
    killed = subprocess.run(command, check=False)
    assert killed.returncode in (0, -9)
    assert killed.returncode == -9 or writes > 3
    for name in ("00_start.ipynb", "01_affine.ipynb"):
        rewrite(root / "notebooks" / name, notebook("third"))
    make(root)
    copy = root / "my_course"
    assert '"third"' in (copy / "00_start.ipynb").read_text(encoding="utf-8")
    expected = {"00_start.ipynb", "01_affine.ipynb", "images", learner_copy.RECORD}
    if first:
        assert '"third"' in (copy / "01_affine.ipynb").read_text(encoding="utf-8")
    else:
        assert (copy / "01_affine.ipynb").read_text(encoding="utf-8") == "mine"
        assert '"third"' in (copy / "01_affine.new.ipynb").read_text(encoding="utf-8")
        expected.add("01_affine.new.ipynb")
    assert {path.name for path in copy.iterdir()} == expected
    assert make(root) == []


def test_two_first_starts_at_once(root: Path):
    for number in range(40):
        (root / "notebooks" / f"{number}.ipynb").write_text(notebook(str(number)), encoding="utf-8")
    code = "import runpy, sys, pathlib; m = runpy.run_path(sys.argv[1]); print('ready', flush=True)"
    code += "; input(); print(len(m['make'](pathlib.Path(sys.argv[2]))))"
    command = [sys.executable, "-c", code, learner_copy.__file__, str(root)]
    pipe = subprocess.PIPE
    starts = [subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) for _ in range(3)]
    for start in starts:
        assert start.stdout is not None
        assert start.stdout.readline() == "ready\n"
    for start in starts:
        assert start.stdin is not None
        start.stdin.write("\n")
        start.stdin.flush()
    made = [int(start.communicate(timeout=120)[0]) for start in starts]
    assert sorted(made) == [0, 0, 43]
    assert make(root) == []
    assert len(list((root / "my_course").glob("*"))) == 44


def test_solutions_of_the_committed_notebooks_do_not_reach_the_learner():
    folder = Path(learner_copy.__file__).resolve().parents[2] / "notebooks"
    for path in folder.glob("*.ipynb"):
        copy = json.loads(learner_version(path.read_text(encoding="utf-8")))
        for cell in copy["cells"]:
            assert "solution" not in cell["metadata"].get("tags", ())
            assert not cell.get("outputs")


def test_command_is_fast_and_needs_no_torch(root: Path):
    make(root)
    script = root / "ptq_classroom" / "kit" / "learner_copy.py"
    script.parent.mkdir(parents=True)
    for name in ("learner_copy.py", "learner_file.py"):
        shutil.copy(Path(learner_copy.__file__).with_name(name), script.parent)
    spy = "import sys, runpy; runpy.run_path(sys.argv[1]); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", spy, str(script)], check=True)
    before = os.times()
    out = subprocess.run([sys.executable, str(script)], check=True, capture_output=True, text=True)
    after = os.times()
    took = sum(after[2:4]) - sum(before[2:4])  # processor time of children, however busy others are
    assert out.stdout == "my_course/ is up to date\n"
    assert took < 0.5
