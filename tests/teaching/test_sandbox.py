"""The protections that are reported are those in force, layer by layer."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from ptq_classroom.kit import exercises
from ptq_classroom.kit.examine import examine
from ptq_classroom.teaching import linux, processes, sandbox
from ptq_classroom.teaching.processes import Processes
from ptq_classroom.teaching.remote import RemoteProbe

ROOT = Path(__file__).resolve().parents[2]
LINUX = sys.platform.startswith("linux")
needs_linux = pytest.mark.skipif(not LINUX, reason="namespaces, Landlock and seccomp are Linux's")

ALONE = """
import json, os, socket, sys, threading
from ptq_classroom.teaching import sandbox
place, canary, hosts = sys.argv[1:]
limits = sandbox.Limits(5, 256)
layers = sandbox.shut_in([], limits, place)
found = {"layers": layers, "holds": sandbox.holds(layers, limits, canary)}
tried = {}
def attempt(name, do):
    try:
        do()
        tried[name] = "done"
    except Exception as error:
        tried[name] = type(error).__name__
attempt("read", lambda: open(canary).read())
attempt("write", lambda: open(canary + ".mine", "w"))
attempt("own", lambda: open(os.path.join(place, "mine"), "w").write("x"))
attempt("answers", lambda: open(hosts).read())
attempt("socket", lambda: socket.socket())
attempt("fork", lambda: os.fork())
attempt("program", lambda: os.execv("/bin/true", ["true"]))
attempt("thread", lambda: threading.Thread(target=int).start())
attempt("memory", lambda: bytearray(1 << 30))
print(json.dumps({**found, "tried": tried}))
"""


@needs_linux
def test_without_namespaces_landlock_and_seccomp_hold(tmp_path):
    if not linux.landlock_version():
        pytest.skip("this kernel has no Landlock")
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir()
    outside.mkdir()
    (outside / "canary").write_text("secret")
    answers = ROOT / "ptq_classroom" / "chapters" / "ch01" / "exercises.py"
    order = [sys.executable, "-c", ALONE, str(inside), str(outside / "canary"), str(answers)]
    done = subprocess.run(order, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["layers"] == ["landlock", "seccomp"]
    assert found["holds"] == dict.fromkeys(sandbox.PROTECTIONS, True)
    assert found["tried"] == {
        "read": "PermissionError", "write": "PermissionError", "own": "done",
        "answers": "PermissionError", "socket": "PermissionError", "fork": "PermissionError",
        "program": "PermissionError", "thread": "done", "memory": "MemoryError",
    }  # fmt: skip
    assert [path.name for path in outside.iterdir()] == ["canary"]


def test_without_any_layer_nothing_is_claimed(tmp_path):
    (tmp_path / "canary").write_text("secret")
    found = sandbox.holds([], sandbox.Limits(5, 16), str(tmp_path / "canary"))
    assert found == dict.fromkeys(sandbox.PROTECTIONS, False)


@needs_linux
def test_what_a_killed_judge_left_is_removed():
    dead = subprocess.Popen(["true"])
    dead.wait()
    left = Path(tempfile.mkdtemp(prefix=f"ptq-grade-{dead.pid}-"))
    own = Path(tempfile.mkdtemp(prefix=f"ptq-grade-{os.getpid()}-"))
    processes._remove_leftovers()
    assert (left.exists(), own.exists()) == (False, True)
    own.rmdir()


@needs_linux
def test_a_students_process_is_shut_in():
    running = Processes(sandbox.Limits(20, 256))
    try:
        student = running.start()
        assert student.layers[-1:] == ["seccomp"]
        assert student.holds["files"]
        assert student.holds["writes"]
        assert student.holds["network"]
        assert student.holds["processes"]
        assert student.holds["memory"]
        assert student.end() == ""
    finally:
        running.close()
    assert not running.folder.exists()


@pytest.mark.parametrize("warm", [pytest.param(True, marks=needs_linux), False])
def test_a_function_is_called_where_it_was_defined(warm):
    exercise = exercises.get("01.2")
    data = b"# >>> 01.2\ndef quantize(x, scale, zero_point, grid):\n" + (
        b"    codes = torch.round(x / scale) + zero_point\n"
        b"    return codes.clamp(grid.qmin, grid.qmax).to(grid.dtype)\n# <<< 01.2\n"
    )
    running = Processes(sandbox.Limits(30, 256), warm)
    try:
        student = running.start()
        said = student.define(exercise, "my_ptq.py", data, ["ptq_course.grids.affine.IntGrid"])
        assert said["suspicious"] == []
        result = examine(exercise, said["function"], watch=RemoteProbe)
        assert (result.status, student.uses) == ("passed", [])
        assert student.end() == ""
    finally:
        running.close()


def test_answers_are_not_in_the_view():
    seen = sandbox.visible()
    hidden = [ROOT / "notebooks", ROOT / "tests", ROOT / "ptq_classroom/chapters/ch01/exercises.py",
              ROOT / "ptq_classroom/chapters/ch16/museum.py"]  # fmt: skip
    for place in hidden:
        assert not {place, *place.parents} & {*seen}
    assert ROOT / "ptq_course" in seen
