"""What students handed in: one folder, one notebook or one my_ptq.py for each. Only read here."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

LARGEST = 32 << 20  # bytes of one file
KINDS = (".ipynb", ".py", ".safetensors")  # the last: a network for the capstone


@dataclass(frozen=True)
class Submission:
    """A student's name and files; `digest` changes with any byte of them."""

    student: str
    files: tuple[Path, ...]
    digest: str
    skipped: tuple[str, ...] = ()


def find(place: Path) -> list[Submission]:
    """The submissions in a folder, by name. Hidden names are no submissions.

    NotADirectoryError where there is no folder, ValueError where it holds no submission.
    """
    if not place.is_dir():
        raise NotADirectoryError(f"{place} is no folder: give the one that holds the submissions")
    found = []
    for path in sorted(place.iterdir()):
        if path.name.startswith((".", "__")) or path.is_symlink():
            continue
        if path.is_dir():
            found.append(_made(path.name, sorted(_files(path)), path))
        elif path.suffix in (".ipynb", ".py"):
            found.append(_made(path.stem, [path], place))
    if not found:
        raise ValueError(
            f"{place} holds no submission: one folder, one notebook or one my_ptq.py a student"
        )
    names = [one.student for one in found]
    if doubled := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"handed in twice, as a folder and as a file: {', '.join(doubled)}")
    return found


def read(path: Path) -> bytes:
    """The bytes of a plain file; OSError for anything else and for a file that is too long.

    It is opened without following a link and looked at once open, so it cannot be swapped.
    """
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | _NONBLOCK)
    with os.fdopen(handle, "rb") as file:
        state = os.fstat(file.fileno())
        if not stat.S_ISREG(state.st_mode):
            raise OSError(f"{path.name} is no plain file")
        if state.st_size > LARGEST:
            raise OSError(f"{path.name} has {state.st_size >> 20} MB, more than {LARGEST >> 20}")
        return file.read()


_NONBLOCK = getattr(os, "O_NONBLOCK", 0)  # a named pipe does not make it wait


def _files(folder: Path) -> Iterator[Path]:
    for base, folders, names in os.walk(folder):  # links to folders are not followed
        folders[:] = [name for name in folders if not name.startswith((".", "__"))]
        for name in names:
            if not name.startswith(".") and Path(name).suffix in KINDS:
                yield Path(base, name)


def _made(student: str, paths: list[Path], base: Path) -> Submission:
    digest, files, skipped = hashlib.sha256(), [], []
    for path in paths:
        try:
            data = read(path)
        except OSError as problem:
            skipped.append(f"{path.name}: {problem.strerror or problem}")
            continue
        digest.update(f"{path.relative_to(base)} {len(data)}\n".encode() + data)
        files.append(path)
    return Submission(student, tuple(files), digest.hexdigest(), tuple(skipped))
