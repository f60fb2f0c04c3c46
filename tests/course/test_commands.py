"""What lab and test would run; and JupyterLab started for real."""

import ast
import json
import os
import re
import socket
import subprocess
import sys
import time
import types
import urllib.request

import pytest
from bootstrap import commands, environment, progress, words
from course_folder import make_usable

from ptq_classroom.kit import exercises

TWO = ("-n", "2", "--dist", "loadfile")


@pytest.fixture(autouse=True)
def two_processors(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 2)


def test_test_runs_everything_when_nothing_is_named(course, handed):
    commands.run(["test"], "help")
    (course / "notebooks" / "00_a.ipynb").write_text("{}")
    commands.run(["test"], "help")
    assert handed == [
        ["-m", "pytest", "tests", "--notebooks", *TWO],
        ["-m", "pytest", "tests", "notebooks", "--notebooks", *TWO],
    ]


@pytest.mark.parametrize(
    "options",
    [
        ["-q"],
        ["--tb=short", "-x"],
        ["-m", "a"],
    ],
)
def test_options_alone_leave_nothing_out(course, handed, options):
    (course / "notebooks" / "00_a.ipynb").write_text("{}")
    commands.run(["test", *options], "help")
    assert handed == [["-m", "pytest", "tests", "notebooks", "--notebooks", *TWO, *options]]


@pytest.mark.parametrize(
    "options", [["-n", "0"], ["-n4", "--dist", "loadfile"], ["--pdb"], ["-s"], ["--capture=no"]]
)
def test_one_process_where_two_do_not_serve(handed, options, monkeypatch):
    commands.run(["test", *options], "help")
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    commands.run(["test"], "help")
    everything = ["-m", "pytest", "tests", "--notebooks"]
    assert handed == [[*everything, *options], everything]


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
    (handed_over,) = handed
    assert handed_over[:3] == ["-m", "jupyterlab", f"--ServerApp.root_dir={course}"]
    assert "--LabApp.default_url=/lab/tree/my_course/00_start_here.ipynb" in handed_over
    assert handed_over[-3:] == ["--no-browser", "--port", "8899"]
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


def test_site_builds_where_it_was_asked_to(course, handed, tmp_path, monkeypatch):
    """A folder is meant from where the learner stands, not from the course's folder."""
    monkeypatch.chdir(tmp_path)
    assert commands.run(["site"], "help") == 0
    assert commands.run(["site", "page"], "help") == 0
    builder = str(course / "scripts" / "build_site.py")
    assert handed == [[builder], [builder, str(tmp_path / "page")]]


@pytest.mark.parametrize("arguments", [["a", "b"], ["--open"]])
def test_site_takes_one_folder(handed, capsys, arguments):
    assert commands.run(["site", *arguments], "help") == 2
    assert not handed
    assert f"found {' '.join(arguments)}" in capsys.readouterr().err


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


COMMANDS = ["lab", "test", "progress", "site", "doctor", "setup", "bundle"]


@pytest.fixture
def nothing_is_done(course, monkeypatch):
    """Whatever starts a program or sets up fails the test."""

    def never(*words, **options):
        raise AssertionError(f"{words} was run")

    for name in ("setup", "hand_over", "current", "ready", "refresh_copy"):
        monkeypatch.setattr(commands, name, never)
    for name in ("run", "Popen", "call"):
        monkeypatch.setattr(subprocess, name, never)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_after_each_command_installs_nothing(nothing_is_done, capsys, name):
    said = set()
    for arguments in ([name, "--help"], [name, "-h"], ["help", name], [name, "--help", "-x"]):
        assert commands.run(arguments, "the help") == 0
        said.add(capsys.readouterr().out)
    (text,) = said
    assert text.startswith(f"python course.py {name}")


@pytest.mark.parametrize(
    ("arguments", "guess"),
    [
        (["lap"], "'lab'"),
        (["docter"], "'doctor'"),
        (["setup", "--agian"], "'--again'"),
        (["help", "tset"], "'test'"),
        (["frobnicate"], None),
        (["doctor", "now"], None),
        (["progress", "03"], None),
    ],
)
def test_what_is_not_known_is_refused_with_a_guess(nothing_is_done, capsys, arguments, guess):
    assert commands.run(arguments, "the help") == 2
    said = capsys.readouterr().err
    assert arguments[-1] in said
    assert (f"Did you mean {guess}?" in said) if guess else ("Did you mean" not in said)


def test_the_help(root, capsys):
    for arguments in ([], ["help"], ["-h"], ["--help"]):
        assert commands.run(arguments, "the help") == 0
        assert capsys.readouterr().out == "the help\n"
    text = (root / "course.py").read_text(encoding="utf-8")
    assert re.findall(r"^    python course.py (\w+)", text, flags=re.MULTILINE) == COMMANDS


def test_what_is_printed_fits_80_columns(root, capsys):
    """Help, refusals, and the doctor's report of this very machine."""
    text = str(ast.get_docstring(ast.parse((root / "course.py").read_text(encoding="utf-8"))))
    for arguments in [[], ["lap"], ["doctor"], ["progress"], *([name, "-h"] for name in COMMANDS)]:
        commands.run(arguments, text)
        said = capsys.readouterr()
        lines = (said.out + said.err).splitlines()
        assert lines
        assert [line for line in lines if len(line) > 80] == []


def test_long_words_stay_whole_and_indents_stay():
    text = words.fitted("see /" + "x" * 90 + "\n    run: " + "word " * 20, before="[setup] ")
    lines = text.splitlines()
    assert lines[0] == "[setup] see"
    assert lines[1] == "        /" + "x" * 90
    assert lines[2].startswith("            run: word")
    assert lines[3].startswith("            word")
    assert max(map(len, [lines[0], *lines[2:]])) <= 80


def test_progress_counts_what_my_ptq_py_holds(course, capsys):
    def notebook(title, *ids):
        cells = [{"cell_type": "markdown", "metadata": {}, "source": [f"# {title}\n", "more"]}]
        marked = [{"cell_type": "code", "metadata": {"ptq": {"exercise": id}}, "source": []}
                  for id in ids for _ in range(4)]  # fmt: skip
        return json.dumps({"cells": cells + marked})

    folder = course / "notebooks"
    (folder / "00_a.ipynb").write_text(notebook("Chapter 00 · Start", "00.1", "00.2"))
    (folder / "01_b.ipynb").write_text(notebook("01 · Affine", "01.1"))
    (folder / "02_c.ipynb").write_text(notebook("02 · None"))
    (folder / "prep.ipynb").write_text(notebook("Prep · Test", "prep.1"))
    assert commands.run(["progress"], "help") == 0
    assert "0 of 4 exercises are passed" in capsys.readouterr().out
    (course / "my_course").mkdir()
    (course / "my_course" / "my_ptq.py").write_text(
        "# >>> 00.2\ndef f(): ...\n# <<< 00.2\n\n\n# >>> 01.1\nx = 1\n# <<< 01.1\n# <<< 99.9\n"
    )
    assert commands.run(["progress"], "help") == 0
    rows = capsys.readouterr().out.splitlines()
    assert rows[:3] == [
        "Prep · Test   0 of  1  next: prep.1",
        "00 · Start    1 of  2  next: 00.1",
        "01 · Affine   1 of  1  complete",
    ]
    assert rows[-1].startswith("2 of 4 exercises are passed.")


def test_progress_reads_the_course_s_own_notebooks(root):
    found = [id for ids in progress.exercises(root / "notebooks").values() for id in ids]
    assert sorted(found) == sorted(exercise.id for exercise in exercises.everything())


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
