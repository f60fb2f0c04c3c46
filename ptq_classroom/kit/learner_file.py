"""Writing a file that several notebooks write: one process at a time, and whole or not at all."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

WAIT = 15.0  # seconds: a notebook waits this long for its turn
STALE = 10.0  # seconds: writing takes milliseconds, so an older lock belongs to nobody any more
PAUSE = 0.02


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """Hold the lock beside `path` (`.my_ptq.py.lock`); TimeoutError where others never leave it."""
    lock = path.with_name(f".{path.name}.lock")
    end = time.monotonic() + WAIT
    while not _taken(lock):
        if time.monotonic() > end:
            raise TimeoutError(f"another notebook holds {lock}; delete that file if none is open")
        time.sleep(PAUSE)
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)


def write(path: Path, text: str) -> None:
    """Replace the file's text in one step; readers see the old text or the new one."""
    part = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        part.write_text(text, encoding="utf-8", newline="\n")
        _replaced(part, path)
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


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


def _taken(lock: Path) -> bool:
    try:
        os.close(os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        return True
    except FileExistsError:
        pass
    except PermissionError:  # on Windows also: a lock that is being deleted this moment
        if os.name != "nt" or not lock.exists():
            raise
    with contextlib.suppress(OSError):  # gone meanwhile, or taken away by another that waits
        if time.time() - lock.stat().st_mtime > STALE:
            lock.unlink()
    return False
