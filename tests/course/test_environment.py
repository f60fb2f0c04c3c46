"""When an environment is complete, and which one is used."""

import json
import os
import sys
import types
from pathlib import Path

import pytest
from bootstrap import environment, fingerprint, pins
from bootstrap.environment import Environment
from course_folder import make_usable


def complete(folder):
    made = make_usable(folder)
    made.stamp_file.write_text(environment.stamp(made))
    return made


def test_the_stamp_holds_until_something_it_depends_on_changes(course, monkeypatch):
    made = complete(course)
    assert made.complete
    with monkeypatch.context() as patch:
        patch.setattr(pins, "TORCH", "9.9.9")
        assert not made.complete
    (course / "pyproject.toml").write_text("[project]\nname = 'y'\n")
    assert not made.complete


@pytest.mark.parametrize("damage", ["stamp", "python", "version", "moved"])
def test_what_makes_an_environment_incomplete(course, damage):
    made = complete(course)
    if damage == "stamp":
        made.stamp_file.unlink()
    elif damage == "python":
        made.python.unlink()
    elif damage == "version":
        (made.folder / "pyvenv.cfg").write_text("version = 3.13.0\n")
    else:
        made = Environment(course.rename(course.with_name("moved")) / ".venv", managed=True)
    assert not made.complete


def test_an_environment_of_an_unfit_python_is_not_usable(course):
    assert make_usable(course).usable
    assert not make_usable(course, version="3.9.1").usable
    assert make_usable(course, version="3.14.0a1").version == (3, 14)


def test_an_active_environment_with_the_course_is_used_and_never_changed(tmp_path, monkeypatch):
    root, site = tmp_path / "ptq course", tmp_path / "site"
    info = site / "ptq_course-0.1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: ptq-course\nVersion: 0.1.0\n")
    (info / "direct_url.json").write_text(json.dumps({"url": root.as_uri(), "dir_info": {}}))
    monkeypatch.setattr(environment.sysconfig, "get_path", lambda name: str(site))
    made = environment.current(root)
    assert not made.managed
    assert made.complete
    assert made.python == Path(sys.executable)
    other = environment.current(tmp_path / "another copy")
    assert other.managed
    assert other.folder == tmp_path / "another copy" / ".venv"


def test_where_windows_keeps_the_interpreter(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "os", types.SimpleNamespace(name="nt"))
    made = Environment(tmp_path, managed=True)
    assert made.python == tmp_path / "Scripts" / "python.exe"


def test_programs_speak_utf8_and_their_threads_do_not_spin_unless_told(course, monkeypatch):
    for name in ("PYTHONUTF8", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    made = make_usable(course)
    variables = environment.child_variables(made)
    assert (variables["PYTHONUTF8"], variables["GOMP_SPINCOUNT"]) == ("1", "1000")
    assert fingerprint.KERNEL_VARIABLES["GOMP_SPINCOUNT"] == "1000"
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    assert environment.child_variables(made)["GOMP_SPINCOUNT"] == "7"


def test_an_answer_in_any_encoding_is_read(course):
    if os.name == "nt":
        pytest.skip("shell scripts")
    made = make_usable(course)
    made.python.write_text("#!/bin/sh\nprintf 'gr\\303\\274n \\377'\n")
    made.python.chmod(0o755)
    assert environment.ask(made, "-V") == "gr\u00fcn \ufffd"
