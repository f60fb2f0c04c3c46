"""What lab and test would run; and JupyterLab started for real."""

import json
import os
import socket
import subprocess
import sys
import time
import types
import urllib.request

import pytest
from bootstrap import commands, environment
from course_folder import make_usable


def test_test_runs_everything_when_nothing_is_named(course, handed):
    commands.run(["test"], "help")
    (course / "notebooks" / "00_a.ipynb").write_text("{}")
    commands.run(["test"], "help")
    assert handed == [
        ["-m", "pytest", "tests", "--notebooks"],
        ["-m", "pytest", "tests", "notebooks", "--notebooks"],
    ]


@pytest.mark.parametrize(
    "options",
    [
        ["-q"],
        ["-k", "two words"],
        ["-n", "2", "--dist", "loadfile"],
        ["--tb=short", "-x"],
        ["-m", "a"],
    ],
)
def test_options_alone_leave_nothing_out(course, handed, options):
    (course / "notebooks" / "00_a.ipynb").write_text("{}")
    commands.run(["test", *options], "help")
    assert handed == [["-m", "pytest", "tests", "notebooks", "--notebooks", *options]]


@pytest.mark.parametrize(
    "place",
    [
        "notebooks/00_a.ipynb",
        "notebooks",
        "notebooks/",
        "my_course/00_a.ipynb",
        "elsewhere/x.ipynb::3",
    ],
)
def test_a_notebook_is_run_as_one(handed, place):
    commands.run(["test", "-x", place], "help")
    commands.run(["test", "tests", place], "help")
    commands.run(["test", "--nbval-lax", place], "help")
    assert handed == [
        ["-m", "pytest", "--notebooks", "-x", place],
        ["-m", "pytest", "--notebooks", "tests", place],
        ["-m", "pytest", "--nbval-lax", place],
    ]


def test_pytest_arguments_go_on_as_they_are(handed):
    commands.run(["test", "-k", "notebooks", "tests/course"], "help")
    assert handed.pop() == ["-m", "pytest", "-k", "notebooks", "tests/course"]
    commands.run(["test", "tests/test_affine.py", "-k", "two words"], "help")
    assert handed == [["-m", "pytest", "tests/test_affine.py", "-k", "two words"]]


def test_lab_makes_the_copy_and_opens_chapter_00(course, handed, capsys):
    notebook = {"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    for name in ("00_start_here", "01_affine"):
        (course / "notebooks" / f"{name}.ipynb").write_text(json.dumps(notebook))
    assert commands.run(["lab", "--no-browser", "--port", "8899"], "help") == 0
    (words,) = handed
    assert words[:3] == ["-m", "jupyterlab", f"--ServerApp.root_dir={course}"]
    assert "--LabApp.default_url=/lab/tree/my_course/00_start_here.ipynb" in words
    assert words[-3:] == ["--no-browser", "--port", "8899"]
    assert (course / "my_course" / "01_affine.ipynb").exists()
    assert "[my_course] added" in capsys.readouterr().out


def test_lab_never_overwrites_what_the_learner_wrote(course, handed):
    source = course / "notebooks" / "00_start_here.ipynb"
    notebook = {"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    source.write_text(json.dumps(notebook))
    commands.run(["lab"], "help")
    mine = course / "my_course" / "00_start_here.ipynb"
    mine.write_text("mine")
    source.write_text(json.dumps(notebook | {"metadata": {"changed": 1}}))
    commands.run(["lab"], "help")
    assert mine.read_text() == "mine"


def test_the_environment_s_own_kernel_and_programs_come_first(course, monkeypatch):
    monkeypatch.setenv("JUPYTER_PATH", "elsewhere")
    monkeypatch.setenv("PYTHONPATH", "elsewhere")
    made = make_usable(course)
    variables = environment.child_variables(made)
    assert variables["PATH"].split(os.pathsep)[0] == str(made.python.parent)
    kernels = variables["JUPYTER_PATH"].split(os.pathsep)
    assert kernels == [str(course / ".venv" / "share" / "jupyter"), "elsewhere"]
    assert "PYTHONPATH" not in variables


def test_the_environment_s_python_takes_over(course, monkeypatch):
    made = make_usable(course)
    seen = {}

    def execve(*words):  # the real one does not come back either
        seen.update(run=words)
        raise SystemExit

    stand_in = types.SimpleNamespace(
        name="posix", chdir=lambda place: seen.update(place=place), execve=execve
    )
    monkeypatch.setattr(commands, "os", stand_in)
    with pytest.raises(SystemExit):
        commands.hand_over(made, ["-m", "pytest"])
    program, words, variables = seen["run"]
    assert (program, words) == (str(made.python), [str(made.python), "-m", "pytest"])
    assert variables["PYTHONUTF8"] == "1"
    assert seen["place"] == course


def test_windows_runs_it_waits_and_leaves_ctrl_c_to_it(course, monkeypatch):
    made = make_usable(course)
    seen = []
    stand_in = types.SimpleNamespace(name="nt", chdir=seen.append)
    monkeypatch.setattr(commands, "os", stand_in)
    monkeypatch.setattr(commands.signal, "signal", lambda *words: seen.append(words))
    monkeypatch.setattr(commands.subprocess, "call", lambda words, env: seen.append(words) or 7)
    assert commands.hand_over(made, ["-m", "pytest"]) == 7
    place, (interrupt, handler), words = seen
    assert (place, words) == (course, [str(made.python), "-m", "pytest"])
    assert (interrupt, handler) == (commands.signal.SIGINT, commands.signal.SIG_IGN)


def test_a_console_that_lacks_a_character_is_no_traceback(root):
    variables = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import course; course.main(['--help']);"
        "print('\\u2713 done')"
    )
    command = [sys.executable, "-c", code, str(root)]
    done = subprocess.run(command, capture_output=True, text=True, env=variables)
    assert done.stdout.endswith("? done\n"), done.stderr


def test_help_and_unknown_commands(capsys):
    assert commands.run([], "the help") == 0
    assert "the help" in capsys.readouterr().out
    assert commands.run(["lap"], "the help") == 2
    assert "'lap'" in capsys.readouterr().err


def test_ctrl_c_is_no_traceback(monkeypatch, capsys):
    def stop():
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, "ready", stop)
    assert commands.run(["lab"], "help") == 130
    assert "continues" in capsys.readouterr().err


@pytest.mark.slow
def test_jupyterlab_starts_on_chapter_00_in_a_path_with_spaces(course, handed):
    notebook = {"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    (course / "notebooks" / "00_start_here.ipynb").write_text(json.dumps(notebook))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    commands.run(["lab", "--no-browser", f"--port={port}", "--IdentityProvider.token=t"], "help")
    log = open(course / "lab.log", "w+")  # noqa: SIM115  (closed with the server, below)
    command = [sys.executable, *handed[0]]
    server = subprocess.Popen(command, cwd=course, stdout=log, stderr=subprocess.STDOUT)
    try:
        place = f"http://127.0.0.1:{port}/api/contents/my_course/00_start_here.ipynb?token=t"
        answer = wait_for(place, server, seconds=120)
    finally:
        server.terminate()
        server.wait(30)
        log.seek(0)
        said = log.read()
        log.close()
    assert answer["name"] == "00_start_here.ipynb", said
    assert f":{port}/lab/tree/my_course/00_start_here.ipynb" in said


def wait_for(place, server, seconds):
    """The JSON that a server answers with, once it is up."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and server.poll() is None:
        try:
            with urllib.request.urlopen(place, timeout=10) as answer:
                return json.load(answer)
        except OSError:
            time.sleep(0.3)
    return {"name": f"no answer; the server's status is {server.poll()}"}


def test_the_commands_work_from_another_folder(root, tmp_path):
    command = [sys.executable, str(root / "course.py"), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0
    assert "python course.py lab" in done.stdout
