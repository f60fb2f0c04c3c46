"""One start at a time: a lock that the system takes back from a program that ends, however."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

PAUSE = 0.2  # seconds between two attempts


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """Hold the lock of the file `path`, once no other program does.

    Where the file system knows no locks, or the folder cannot be written to, go on without one.
    """
    try:
        handle = os.open(path, os.O_CREAT | os.O_RDWR)
    except OSError:
        yield
        return
    try:
        told = False
        while not _taken(handle):
            if not told:
                print("[setup] another start is setting the course up; waiting for it", flush=True)
            told = True
            time.sleep(PAUSE)
        yield
    finally:
        os.close(handle)  # which gives the lock back


def _taken(handle: int) -> bool:
    """Whether the lock is now ours (or there are none here); False: another program has it."""
    try:
        if os.name == "nt":
            import msvcrt

            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        pass
    return True
