"""Start the processes that run students' code, each with its limits and a folder of its own."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from ptq_classroom.teaching import sandbox, wire
from ptq_classroom.teaching.remote import START, Student

COMMAND = [sys.executable, "-m", "ptq_classroom.teaching.worker"]


FOLDER = "ptq-grade-"


class Processes:
    """Starts student's processes. warm: forked from a template, else each one anew."""

    def __init__(self, limits: sandbox.Limits, warm: bool = sys.platform.startswith("linux")):
        self.limits = limits
        _remove_leftovers()
        self.folder = Path(tempfile.mkdtemp(prefix=f"{FOLDER}{os.getpid()}-"))
        self._canary = self.folder / "somebody-elses-answer"
        self._canary.write_text("secret")
        self._control: socket.socket | None = None
        if warm:
            self._control, theirs = socket.socketpair()
            (self.folder / "root").mkdir()
            self._template = subprocess.Popen(
                [*COMMAND, "template", str(theirs.fileno()), str(self.folder / "root")],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=_variables(),
            )  # fmt: skip
            theirs.close()
            self._control.settimeout(START)
            if self._control.recv(100) != b"ready":
                raise RuntimeError("the template for student's processes did not start")

    def start(self, limits: sandbox.Limits | None = None) -> Student:
        """A process, shut in and ready. limits: others than usual."""
        scratch = Path(tempfile.mkdtemp(dir=self.folder, prefix="scratch-"))
        if self._control is not None:
            ours, theirs = socket.socketpair()
            socket.send_fds(self._control, [b"fork"], [theirs.fileno()])
            theirs.close()
            process = int(self._control.recv(100))
            student = Student(wire.Channel(ours), lambda: self._kill(process))
        else:
            connection, running = _connected()
            student = Student(wire.Channel(connection), lambda: _end(running))
        user = 60_000 + os.getpid() % 5_000 if _is_root() else None
        if user is not None:
            os.chown(scratch, user, user)
            os.chmod(self.folder, 0o755)
            os.chmod(self._canary, 0o644)
        student.begin(limits or self.limits, str(scratch), str(self._canary), user)
        return student

    def close(self) -> None:
        """End the template and remove what the processes left."""
        if self._control is not None:
            self._control.close()
            self._template.kill()
            self._template.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _kill(self, process: int) -> int:
        assert self._control is not None
        self._control.send(f"kill {process}".encode())
        return int(self._control.recv(100))


def _remove_leftovers() -> None:
    """Remove the folders of judges that were killed."""
    for path in Path(tempfile.gettempdir()).glob(f"{FOLDER}*-*"):
        number = path.name.removeprefix(FOLDER).split("-")[0]
        if os.name != "posix" or not number.isdigit():
            continue
        try:
            os.kill(int(number), 0)
        except ProcessLookupError:
            shutil.rmtree(path, ignore_errors=True)
        except OSError:
            continue


def _connected() -> tuple[socket.socket, subprocess.Popen]:
    """A new process that has called back; a word in its arguments tells it from strangers."""
    word = secrets.token_hex(16)
    with socket.create_server(("127.0.0.1", 0)) as door:
        port = str(door.getsockname()[1])
        running = subprocess.Popen([*COMMAND, "connect", port, word], env=_variables())
        door.settimeout(START)
        while True:
            connection, _ = door.accept()
            connection.settimeout(START)
            if connection.recv(len(word), socket.MSG_WAITALL) == word.encode():
                return connection, running
            connection.close()


def _is_root() -> bool:
    return hasattr(os, "geteuid") and os.geteuid() == 0 and not sys.platform.startswith("linux")


def _variables() -> dict[str, str]:
    paths = [str(sandbox.COURSE), os.environ.get("PYTHONPATH", "")]
    return {
        **{k: v for k, v in os.environ.items() if k in _KEPT},
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "OMP_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }


_KEPT = ("PATH", "LANG", "LC_ALL", "SYSTEMROOT", "TEMP", "TMP", "TMPDIR", "LD_LIBRARY_PATH", "HOME")


def _end(running: subprocess.Popen) -> int:
    running.kill()
    return running.wait()
