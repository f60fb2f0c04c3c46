"""Writing files that several programs write: one at a time, and whole or not at all.

Standard library only, and nothing of this package: course.py loads it before anything is installed.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

WAIT = 15.0  # seconds: a notebook waits this long for its turn
OLD = 600.0  # seconds: where no one can be asked whether a writer lives, it is dead after these
PAUSE = 0.02
# What is written beside its place, by `write` below and by ptq_course/deploy/files.py.
_UNFINISHED = re.compile(r"\.(?P<writer>\d+)\.(?:tmp|partial)")


@contextlib.contextmanager
def alone(
    path: Path, seconds: float | None = None, waiting: Callable[[], object] = lambda: None
) -> Iterator[None]:
    """Hold the lock beside `path` (`.my_ptq.py.lock`), which a program loses when it ends, however.

    seconds: how long to wait for another program before TimeoutError (WAIT by default).
    waiting: called once where another one is waited for. Where the folder cannot be written to, or
    its file system has no locks, it goes on without one.
    """
    lock = path.with_name(f".{path.name}.lock")
    end = time.monotonic() + (WAIT if seconds is None else seconds)
    told = False
    while (handle := _taken(lock)) is None:
        if time.monotonic() > end:
            raise TimeoutError(f"another program, perhaps a notebook that hangs, holds {lock}")
        if not told:
            waiting()
        told = True
        time.sleep(PAUSE)
    try:
        yield
    finally:
        if handle >= 0:
            with contextlib.suppress(OSError):  # Windows deletes no file that is open
                lock.unlink()
            os.close(handle)


def write(path: Path, data: bytes) -> None:
    """Replace the file's bytes in one step; readers see the old ones or the new ones."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        part.write_bytes(data)
        _replaced(part, path)
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Remove what programs that were killed while they wrote have left in a folder and below."""
    for file in list(folder.rglob("*.tmp")) + list(folder.rglob("*.partial")):
        unfinished = _UNFINISHED.search(file.name)
        if unfinished and not _may_live(int(unfinished["writer"]), file):
            with contextlib.suppress(OSError):
                file.unlink()


def _may_live(process: int, file: Path) -> bool:
    """Whether the program that writes this file may still be at it."""
    try:
        if os.name == "nt":  # there, os.kill would end it
            return time.time() - file.stat().st_mtime < OLD
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        pass
    return True


def _replaced(part: Path, path: Path, tries: int = 25) -> None:
    """os.replace, again where Windows refuses while another program has the file open."""
    for left in reversed(range(tries)):
        try:
            os.replace(part, path)
            return
        except PermissionError:
            if os.name != "nt" or not left:
                raise
            time.sleep(PAUSE)


def _taken(lock: Path) -> int | None:
    """The handle of the lock's file once it is ours, -1 where there are no locks, else None."""
    try:
        handle = os.open(lock, os.O_CREAT | os.O_RDWR)
    except OSError:
        return -1
    try:
        _lock(handle)
        if os.name == "nt" or os.path.samestat(os.fstat(handle), os.stat(lock)):
            return handle
    except (BlockingIOError, PermissionError, FileNotFoundError):
        pass  # another has it, or has just deleted this file and given it back
    except OSError:
        return handle
    os.close(handle)
    return None


def _lock(handle: int) -> None:
    if os.name == "nt":
        import msvcrt

        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
