"""What an old Python and an unfit machine are told."""

import ast
import os
import shutil
import subprocess
import sys

import pytest
from bootstrap import pins


def told(*machine, **options):
    """What an unfit machine is told."""
    return str(pins.refusal(*machine, **options))


def test_an_old_python_is_told_which_serve():
    said = told((3, 8), "linux", "x86_64", path="")
    assert "This is Python 3.8." in said
    assert "3.11, 3.12, 3.13, 3.14" in said
    assert "python3.12 course.py lab" in said


def test_a_python_on_the_path_that_works_is_named_and_a_broken_one_is_not(tmp_path):
    for name, body in (("python3.13", "exit 1"), ("python3.12", "exit 0")):
        file = tmp_path / name
        file.write_text(f"#!/bin/sh\n{body}\n")
        file.chmod(0o755)
    if os.name == "nt":
        pytest.skip("shell scripts")
    assert pins.found(str(tmp_path)) == ["python3.12"]
    assert "    python3.12 course.py lab" in told((3, 9), "linux", "x", path=str(tmp_path))


LAUNCHER = """\
 -V:3.15 *        C:\\Python315\\python.exe
 -V:3.13-32       C:\\Python313-32\\python.exe
 -V:3.12          C:\\Users\\Ada Lovelace\\Python312\\python.exe
 -3.11-64         C:\\Python311\\python.exe
"""


def test_windows_is_told_what_its_launcher_can_start(monkeypatch):
    assert pins.found_by_launcher(LAUNCHER) == ["py -3.12", "py -3.11"]
    monkeypatch.setattr(pins, "listed", lambda: LAUNCHER)
    assert "    py -3.12 course.py lab" in told((3, 9), "win32", "amd64")
    monkeypatch.setattr(pins, "listed", lambda: "")
    said = told((3, 9), "win32", "amd64")
    assert "Install one of them" in said
    assert "    py -3.12 course.py lab" in said


def test_a_machine_without_the_launcher(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert pins.listed() == ""


def test_an_intel_mac_is_sent_to_a_hub():
    said = told((3, 12), "darwin", "x86_64")
    assert f"version {pins.TORCH} has no wheel" in said
    assert "environment.yml" in said
    assert pins.refusal((3, 12), "darwin", "arm64") is None


def test_this_python_serves():
    assert pins.refusal(sys.version_info[:2], sys.platform, "anything") is None
    assert not pins.serves((3, 10))
    assert not pins.serves((3, 15))


@pytest.mark.parametrize("name", ["course.py", "scripts/bootstrap/pins.py"])
def test_old_pythons_can_read_far_enough_to_be_told(root, name):
    """No syntax newer than 2.7, which the grammar of today can only be asked about by its nodes."""
    tree = ast.parse((root / name).read_text(encoding="utf-8"), feature_version=(3, 4))
    newer = (ast.JoinedStr, ast.AnnAssign, ast.NamedExpr, ast.AsyncFunctionDef, ast.Nonlocal)
    assert [node for node in ast.walk(tree) if isinstance(node, newer)] == []
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    assert not any(f.returns or f.args.kwonlyargs or f.args.posonlyargs for f in functions)
    assert not any(argument.annotation for f in functions for argument in f.args.args)


@pytest.mark.parametrize("python", ["python2.7", "python3.6", "python3.8", "python3.10"])
def test_an_old_python_of_this_machine_gets_the_message(root, tmp_path, python):
    program = shutil.which(python)
    if program is None or not pins.runs(program):
        pytest.skip(f"no {python} here")
    variables = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    command = [program, str(root / "course.py"), "lab"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=variables)
    assert done.returncode == 2
    assert done.stderr.startswith(f"This is Python {python.removeprefix('python')}.")
