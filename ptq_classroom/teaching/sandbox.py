"""Shut the process that runs a student's code in, and find out by trying what really holds.

Three layers where Linux has them: namespaces (a root folder without anybody's work, no network),
Landlock, a filter of system calls. Limits of time, memory and file size hold on every Unix.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ptq_classroom.teaching import linux

COURSE = Path(__file__).resolve().parents[2]
SYSTEM = tuple(map(Path, ("/usr", "/lib", "/lib32", "/lib64", "/bin", "/etc/ld.so.cache",
                          "/etc/localtime", "/etc/alternatives")))  # fmt: skip
SCRATCH_MB = 64
# What a protection is called, and what a try must not be able to do.
PROTECTIONS = {
    "files": "no file of others can be read",
    "writes": "nothing can be written outside",
    "network": "no network",
    "processes": "no new processes",
    "memory": "a limit of memory",
}


@dataclass(frozen=True)
class Limits:
    """seconds: wall clock for one exercise. megabytes: beyond what PyTorch itself takes."""

    seconds: float = 20.0
    megabytes: int = 1024


def visible() -> list[Path]:
    """Files and folders that student's code may read: Python, the course without its answers."""
    prefixes = [Path(p) for p in (sys.prefix, sys.base_prefix, sys.exec_prefix)]
    own = [COURSE / "ptq_course", COURSE / "data", *_without_answers()]
    paths = [*prefixes, *(p.resolve() for p in prefixes), *SYSTEM, *own]
    known = {path for path in paths if path.exists()}
    return sorted(path for path in known if not known & {*path.parents})


def listed() -> list[Path]:
    """Folders of the course whose names may be listed."""
    return [COURSE / "ptq_classroom"]


def _without_answers() -> Iterator[Path]:
    room = COURSE / "ptq_classroom"
    for path in sorted(room.iterdir()):
        if path.name not in ("chapters", "__pycache__"):
            yield path
    for folder in sorted((room / "chapters").iterdir()):
        if folder.is_dir() and folder.name != "__pycache__":
            hidden = ("exercises.py", "museum.py", "quiz.py", "__pycache__")
            yield from (path for path in sorted(folder.iterdir()) if path.name not in hidden)
        elif folder.is_file():
            yield folder


def enter_view(root: str) -> list[str]:
    """Namespaces for a process and all that it forks; returns their names ([] where refused).

    root: an empty folder, where the root of the view is put.
    """
    if not sys.platform.startswith("linux"):
        return []
    try:
        names = linux.new_namespaces()
        linux.show_only(visible(), root)
    except OSError as problem:
        print(f"no namespaces: {problem}", file=sys.stderr)
        return []
    return names


def shut_in(names: list[str], limits: Limits, folder: str, user: int | None = None) -> list[str]:
    """The last step, in the process that will run the student's code; returns the layers that took.

    names: what `enter_view` returned. folder: where it may write, without namespaces.
    """
    layers = list(names)
    if names:
        linux.private_scratch(SCRATCH_MB)
        folder = linux.SCRATCH
    os.chdir(folder)
    os.environ.update(HOME=folder, TMPDIR=folder)
    if sys.platform.startswith("linux"):
        with contextlib.suppress(OSError):
            seen = [Path("/")] if names else visible()
            linux.landlock([*seen, Path("/dev")], [Path(folder), Path("/dev/null")], listed())
            layers.append("landlock")
    _limit(limits, own_users="user" in names)
    if user is not None:
        os.setgroups([])
        os.setgid(user)
        os.setuid(user)
    if sys.platform.startswith("linux"):
        with contextlib.suppress(OSError):
            linux.drop_capabilities()
        with contextlib.suppress(OSError):
            linux.filter_calls()
            layers.append("seccomp")
    return layers


def _limit(limits: Limits, own_users: bool) -> None:
    try:
        import resource
    except ImportError:  # Windows
        return
    rows = {
        "RLIMIT_AS": SIZE.bytes + (limits.megabytes << 20),
        "RLIMIT_CPU": int(limits.seconds) + 2,
        "RLIMIT_FSIZE": SCRATCH_MB << 20,
        "RLIMIT_NOFILE": 64,
        "RLIMIT_CORE": 0,
    }
    if own_users:  # elsewhere it would count all processes of the teacher
        rows["RLIMIT_NPROC"] = 64
    for name, value in rows.items():
        with contextlib.suppress(OSError, ValueError):
            if name != "RLIMIT_AS" or sys.platform.startswith("linux"):
                resource.setrlimit(getattr(resource, name), (value, value))


class _Size:
    """Bytes of address space that a process has mapped; 0 where the system does not say."""

    def __init__(self) -> None:
        self._file = None
        self.bytes = 0
        with contextlib.suppress(OSError):  # opened before /proc is out of sight
            self._file = open("/proc/self/statm")  # noqa: SIM115
        self.measure()

    def measure(self) -> None:
        if self._file is not None:
            self._file.seek(0)
            self.bytes = int(self._file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")


SIZE = _Size()


def holds(layers: list[str], limits: Limits, canary: str) -> dict[str, bool]:
    """Which protections are in force, found by trying. canary: a file that nobody else may see."""
    closed = {"network", "seccomp"} & {*layers}  # a machine without a net proves nothing
    return {
        "files": not _can_read(canary),
        "writes": not any(map(_can_write, (canary, canary + ".new"))),
        "network": bool(closed) and not _can_connect(),
        "processes": not _can_fork(),
        "memory": not _can_take((limits.megabytes + 256) << 20),
    }


def _can_read(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            file.read(1)
            return True
    except OSError:
        return False


def _can_write(path: str) -> bool:
    try:
        with open(path, "ab"):
            return True
    except OSError:
        return False


def _can_connect() -> bool:
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect(("192.0.2.1", 9))  # of the block for documentation; nothing is sent
            return True
    except OSError:
        return False


def _can_fork() -> bool:
    if not hasattr(os, "fork"):
        return True
    try:
        child = os.fork()
    except OSError:
        return False
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    return True


def _can_take(size: int) -> bool:
    try:
        mmap.mmap(-1, size).close()
        return True
    except (OSError, ValueError, MemoryError):
        return False
