"""What Linux offers an ordinary user to shut a process in: called directly, no program needed.

User, mount, process, network and IPC namespaces (unshare(2)), Landlock (landlock(7)) and a system
call filter (seccomp(2)). Each function raises OSError where the kernel refuses.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
from collections.abc import Iterable
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True) if os.name == "posix" else None
_MACHINE = platform.machine()

NEW_NS, NEW_UTS, NEW_IPC = 0x20000, 0x4000000, 0x8000000
NEW_USER, NEW_PID, NEW_NET = 0x10000000, 0x20000000, 0x40000000
_RDONLY, _REMOUNT, _BIND, _REC, _PRIVATE = 1, 32, 4096, 16384, 1 << 18
# Where an answer may write. Not /tmp: the course itself may lie there, and would be out of sight.
SCRATCH = "/scratch"
_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 22, 38


def _done(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def unshare(flags: int) -> None:
    """Leave the namespaces that `flags` name for new ones."""
    _done(_libc.unshare(flags), "unshare")


def die_with_parent() -> None:
    """Be killed when the process that started this one ends."""
    _done(_libc.prctl(_PR_SET_PDEATHSIG, 9, 0, 0, 0), "prctl")


def new_namespaces() -> list[str]:
    """Enter new namespaces; returns which. As root without user namespaces: the others."""
    rest = NEW_NS | NEW_NET | NEW_IPC | NEW_UTS
    user, group = os.geteuid(), os.getegid()
    try:
        unshare(NEW_USER | rest)
    except OSError:
        if user != 0:
            raise
        unshare(rest)
        return ["mount", "network"]
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"1000 {user} 1")
    Path("/proc/self/gid_map").write_text(f"1000 {group} 1")
    return ["user", "mount", "network"]


def mount(source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    """mount(2)."""
    arguments = [text and text.encode() for text in (source, target, kind)]
    _done(_libc.mount(*arguments, ctypes.c_ulong(flags), data and data.encode()), f"mount {target}")


def show_only(visible: Iterable[Path], root: str) -> None:
    """Make `root`, an empty folder, show these files and folders alone, read-only; move into it."""
    mount("none", "/", None, _REC | _PRIVATE)
    mount("none", root, "tmpfs", 2 | 4, "size=1m,mode=755")
    for path in visible:
        _bind(path, Path(root + str(path)))
    for place in (SCRATCH, "/dev"):
        Path(root + place).mkdir(exist_ok=True)
    for device in ("/dev/null", "/dev/zero", "/dev/urandom"):
        _bind(Path(device), Path(root + device), writable=True)
    mount("none", root, None, _REMOUNT | _RDONLY | 2 | 4, "size=1m,mode=755")
    os.chroot(root)
    os.chdir("/")


def _bind(path: Path, target: Path, writable: bool = False) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists() or target.is_symlink():
        return
    if path.is_symlink():
        target.symlink_to(os.readlink(path))
        return
    if path.is_dir():
        target.mkdir()
    else:
        target.touch()
    mount(str(path), str(target), None, _BIND | _REC)
    if writable:
        return
    flags = os.statvfs(target).f_flag
    locked = flags & (2 | 4 | 8 | 1024 | 2048) | ((1 << 21) if flags & 4096 else 0)
    mount("none", str(target), None, _BIND | _REMOUNT | _RDONLY | locked)


def private_scratch(megabytes: int) -> None:
    """An empty SCRATCH of this process's own, in memory."""
    unshare(NEW_NS)
    mount("none", SCRATCH, "tmpfs", 2 | 4, f"size={megabytes}m,mode=777")


def drop_capabilities() -> None:
    """Give up what a new user namespace brings."""
    header = struct.pack("Ii", 0x20080522, 0)
    _done(_libc.capset(header, struct.pack("6I", *[0] * 6)), "capset")


def no_new_privileges() -> None:
    """Nothing that this process starts may gain rights."""
    _done(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl")


# Landlock: rights of files, in the order of their bits ------------------------------------------

_RIGHTS_BY_VERSION = {1: 13, 2: 14, 3: 15, 4: 15}  # version -> how many bits it knows
_READ, _READ_FILE = 0b1101, 0b0101
_FILE_RIGHTS = 0b1000000000000111 | (1 << 14)


def landlock_version() -> int:
    """Landlock's version, 0 where the kernel has none."""
    return max(0, _libc.syscall(444, None, ctypes.c_size_t(0), 1)) if _libc else 0


def landlock(readable: Iterable[Path], writable: Iterable[Path], listable: Iterable[Path]) -> None:
    """Allow reading below `readable`, everything below `writable`, no other file, no network."""
    version = landlock_version()
    if not version:
        raise OSError("no Landlock")
    every = (1 << _RIGHTS_BY_VERSION.get(version, 16)) - 1
    attributes = struct.pack("QQQ", every, 3 if version >= 4 else 0, 3 if version >= 6 else 0)
    attributes = attributes[: 24 if version >= 6 else 16 if version >= 4 else 8]
    ruleset = _libc.syscall(444, attributes, ctypes.c_size_t(len(attributes)), 0)
    _done(ruleset, "landlock_create_ruleset")
    rows = [(p, _READ) for p in readable] + [(p, every) for p in writable]
    for path, rights in [*rows, *((p, 0b1000) for p in listable)]:
        if not path.exists():
            continue
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        allowed = rights if path.is_dir() else rights & _FILE_RIGHTS
        rule = struct.pack("=Qi", allowed & every, place)
        _done(_libc.syscall(445, ruleset, 1, rule, 0), f"landlock_add_rule {path}")
        os.close(place)
    no_new_privileges()
    _done(_libc.syscall(446, ruleset, 0), "landlock_restrict_self")
    os.close(ruleset)


# seccomp: calls that are refused ----------------------------------------------------------------

_CALLS = {  # clone, clone3, then what answers EPERM
    "x86_64": (0xC000003E, 56, (
        41, 42, 53, 57, 58, 59, 62, 101, 129, 161, 165, 166, 155, 200, 248, 249, 250, 272, 298, 308,
        310, 311, 312, 321, 322, 323, 425, 434, 438,
    )),
    "aarch64": (0xC00000B7, 220, (
        198, 199, 203, 221, 129, 117, 130, 40, 39, 41, 51, 217, 218, 219, 97, 241, 268, 270, 271,
        272, 280, 281, 282, 425, 434, 438,
    )),
}  # fmt: skip
_CLONE3, _CLONE_THREAD = 435, 0x10000


def filter_calls() -> None:
    """No new process, program, socket, mount, signal to others, or look into another process."""
    if _MACHINE not in _CALLS:
        raise OSError(f"no list of calls for {_MACHINE}")
    architecture, clone, refused = _CALLS[_MACHINE]
    load, equal, at_least, any_bit, answer = 0x20, 0x15, 0x35, 0x45, 0x06
    allow, no, missing, kill = 0x7FFF0000, 0x00050001, 0x00050000 | 38, 0x80000000
    rows = [
        (load, 0, 0, 4), (equal, 1, 0, architecture), (answer, 0, 0, kill),
        (load, 0, 0, 0), (at_least, 0, 1, 0x40000000), (answer, 0, 0, no),
        (equal, 0, 1, _CLONE3), (answer, 0, 0, missing),  # then the C library uses clone
        (equal, 0, 4, clone), (load, 0, 0, 16), (any_bit, 0, 1, _CLONE_THREAD),
        (answer, 0, 0, allow), (answer, 0, 0, no),
    ]  # fmt: skip
    for number in refused:
        rows += [(equal, 0, 1, number), (answer, 0, 0, no)]
    rows.append((answer, 0, 0, allow))
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *row) for row in rows))
    program = struct.pack("HxxxxxxP", len(rows), ctypes.addressof(code))
    no_new_privileges()
    _done(_libc.prctl(_PR_SET_SECCOMP, 2, program, 0, 0), "seccomp")
