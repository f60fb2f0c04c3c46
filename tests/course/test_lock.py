"""One set-up at a time, and a lock that no dead program keeps."""

import subprocess
import sys
import time

import pytest
from bootstrap import lock

HOLDS = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from bootstrap import lock
with lock.alone(Path(sys.argv[2])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(root, tmp_path):
    """Another program that holds the lock; give (program, file of the lock)."""
    file = tmp_path / ".setup.lock"
    command = [sys.executable, "-c", HOLDS, str(root / "scripts"), str(file)]
    program = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert program.stdout is not None
    assert program.stdout.readline() == "held\n"
    yield program, file
    program.kill()
    program.wait()


def test_the_second_waits_until_the_first_is_killed(holder, monkeypatch, capsys):
    program, file = holder
    paused = []

    def sleep(seconds):
        paused.append(seconds)
        program.kill()  # as kill -9 does
        program.wait()

    monkeypatch.setattr(lock.time, "sleep", sleep)
    with lock.alone(file):
        assert paused
    assert "another start is setting the course up" in capsys.readouterr().out


def test_a_free_lock_and_a_folder_without_locks_do_not_wait(tmp_path):
    start = time.monotonic()
    for _ in range(2):
        with lock.alone(tmp_path / "lock"):
            pass
    with lock.alone(tmp_path / "no such folder" / "lock"):
        pass
    assert time.monotonic() - start < 60
