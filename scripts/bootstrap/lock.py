"""One program at a time: a lock file that holds the number of the process that has it.

The operating system keeps the lock, not the file: it ends with its process, however that ends, so
that what a killed program has left behind is taken over, and a number given to another process by
now misleads nobody.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

# Windows lets nobody read what is locked: the byte lies far behind the number.
FAR = 1 << 20
TAKEN = {errno.EACCES, errno.EAGAIN, errno.EDEADLK}


class LockedError(Exception):
    """Another process has the lock; ``process`` is its number, or None while it writes it."""

    def __init__(self, path: Path, process: int | None) -> None:
        super().__init__(f"{path} is locked by process {process or '(unknown)'}")
        self.process = process


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of a file, which is made and stays; LockedError where another has it.

    Where files cannot be locked (some network folders), nothing is held and nothing raised.
    """
    handle = os.open(path, os.O_CREAT | os.O_RDWR, 0o644)
    try:
        try:
            _lock(handle)
        except OSError as problem:
            if problem.errno in TAKEN:
                raise LockedError(path, _process(handle)) from problem
        _write(handle, str(os.getpid()))
        yield
        _write(handle, "")
    finally:
        os.close(handle)  # gives the lock back, too


def _write(handle: int, text: str) -> None:
    os.ftruncate(handle, 0)
    os.lseek(handle, 0, os.SEEK_SET)
    os.write(handle, text.encode())


def _process(handle: int) -> int | None:
    os.lseek(handle, 0, os.SEEK_SET)
    text = os.read(handle, 32)
    return int(text) if text.isdigit() else None


def _lock(handle: int) -> None:
    """Take the lock at once, or raise OSError."""
    if os.name == "nt":
        import msvcrt

        os.lseek(handle, FAR, os.SEEK_SET)
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
