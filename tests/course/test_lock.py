"""scripts/bootstrap/lock.py: one process at a time, and what killed ones leave is taken over."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import execute_notebooks
import pytest
from bootstrap.lock import LockedError, locked

SCRIPTS = Path(execute_notebooks.__file__).parent
HOLD = """\
import sys; sys.path.insert(0, sys.argv[1])
from pathlib import Path
from bootstrap.lock import locked
with locked(Path(sys.argv[2])):
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def other(tmp_path):
    """Another process that holds the lock until it reads a line."""
    order = [sys.executable, "-c", HOLD, str(SCRIPTS), str(tmp_path / "lock")]
    process = subprocess.Popen(order, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    with process:
        yield process
        process.kill()


def test_the_other_process_is_named_and_keeps_its_lock(tmp_path, other):
    for _ in range(2):  # the refused one must not have given it back
        with pytest.raises(LockedError) as error, locked(tmp_path / "lock"):
            pytest.fail("two have the lock")
        assert error.value.process == other.pid


def test_it_is_free_when_the_other_is_done(tmp_path, other):
    other.communicate("\n", timeout=20)
    assert other.returncode == 0
    with locked(tmp_path / "lock"):
        assert (tmp_path / "lock").read_text() == str(os.getpid())
    assert (tmp_path / "lock").read_text() == ""


def test_what_a_killed_process_left_is_taken_over(tmp_path, other):
    other.kill()
    other.wait(timeout=20)
    assert (tmp_path / "lock").read_text() == str(other.pid)
    with locked(tmp_path / "lock"):
        pass


def test_the_number_of_a_living_process_alone_locks_nothing(tmp_path):
    """It may have been given to another process since."""
    (tmp_path / "lock").write_text(str(os.getpid()))
    with locked(tmp_path / "lock"):
        pass


def test_an_error_inside_gives_it_back(tmp_path):
    with pytest.raises(ZeroDivisionError), locked(tmp_path / "lock"):
        _ = 1 / 0
    with locked(tmp_path / "lock"):
        pass


@pytest.mark.parametrize("content", [b"", b"12ab", b"\xff\xfe"])
def test_a_number_not_yet_written_is_none(tmp_path, other, content):
    (tmp_path / "lock").write_bytes(content)
    with pytest.raises(LockedError, match="unknown") as error, locked(tmp_path / "lock"):
        pytest.fail("two have the lock")
    assert error.value.process is None


def test_a_second_run_over_the_notebooks_is_refused(tmp_path, other, monkeypatch, capsys):
    monkeypatch.setattr(execute_notebooks.fingerprint, "FILE", tmp_path / "fingerprint.json")
    monkeypatch.setattr(execute_notebooks, "LOCK", "lock")
    monkeypatch.setattr(execute_notebooks, "run", lambda chosen, timeout: pytest.fail("ran"))
    assert execute_notebooks.main([]) == 1
    assert f"Process {other.pid} executes notebooks here" in capsys.readouterr().out
    assert not (tmp_path / "fingerprint.json").exists()


def test_a_run_holds_the_lock_while_it_executes(tmp_path, monkeypatch):
    path = tmp_path / "a.ipynb"
    path.write_text("{}")
    seen = []

    def run(chosen, timeout):
        with pytest.raises(LockedError), locked(tmp_path / execute_notebooks.LOCK):
            pytest.fail("a second run began")
        seen.append((chosen, timeout))
        return ["a.ipynb"]

    monkeypatch.setattr(execute_notebooks.fingerprint, "FILE", tmp_path / "fingerprint.json")
    monkeypatch.setattr(execute_notebooks, "run", run)
    assert execute_notebooks.main([str(path), "--timeout", "7"]) == 1
    assert seen == [([path], 7)]
    with locked(tmp_path / execute_notebooks.LOCK):
        pass
