"""The student's process: `python -m ptq_classroom.teaching.worker` (on Linux a warm template).

It defines the student's function and answers calls. It holds no expected value, and decides
nothing: the judge is another process. On Linux a template imports PyTorch once, inside the view
without anybody's work, and forks a process for each exercise; elsewhere each is started anew.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys

from ptq_classroom.teaching import linux, sandbox


def template(control: socket.socket, root: str) -> None:
    """Fork a process for each request: a socket comes over `control`, the process's id goes back.

    `kill N` ends one and answers its exit status.
    """
    linux.die_with_parent()
    names = sandbox.enter_view(root)
    _load()
    control.send(b"ready")
    while True:
        words, handles, _, _ = socket.recv_fds(control, 100, 1)
        if not words:
            return
        what, *rest = words.decode().split()
        if what == "fork":
            process = os.fork()
            if process == 0:
                control.close()
                _apart(handles[0], names)
            os.close(handles[0])
            control.send(str(process).encode())
        else:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(rest[0]), signal.SIGKILL)
            status = os.waitpid(int(rest[0]), 0)[1]
            control.send(str(os.waitstatus_to_exitcode(status)).encode())


def _apart(handle: int, names: list[str]) -> None:
    """Serve on `handle` in a process namespace of its own, where there is one; never returns."""
    linux.die_with_parent()
    os.setsid()
    layers = list(names)
    if names:
        with contextlib.suppress(OSError):
            linux.unshare(linux.NEW_PID)
            layers.append("process")
            inner = os.fork()
            if inner:
                os.close(handle)
                status = os.waitpid(inner, 0)[1]
                os._exit(os.waitstatus_to_exitcode(status) & 0xFF)
            linux.die_with_parent()
    try:
        serve(socket.socket(fileno=handle), layers)
    except BaseException:
        os._exit(70)
    os._exit(0)


def _load() -> None:
    import copy  # noqa: F401
    import math  # noqa: F401
    import typing  # noqa: F401

    import numpy.random  # noqa: F401
    import torch
    import torch.fx

    from ptq_classroom.teaching import student, wire  # noqa: F401
    from ptq_course.grids import affine, metrics  # noqa: F401

    torch.set_num_threads(1)
    sandbox.SIZE.measure()


def serve(connection: socket.socket, layers: list[str]) -> None:
    """Shut this process in, say what holds, then answer requests until the channel closes."""
    from ptq_classroom.teaching import wire
    from ptq_classroom.teaching.student import Requests

    _silence(connection.fileno())
    channel = wire.Channel(connection)
    order, _ = channel.receive()
    limits = sandbox.Limits(order["seconds"], order["megabytes"])
    user = order.get("user")
    layers = sandbox.shut_in(layers, limits, order["folder"], user)
    holds = sandbox.holds(layers, limits, order["canary"])
    channel.send({"layers": layers, "holds": holds})
    student = Requests(channel)
    while True:
        message, blobs = channel.receive()
        getattr(student, message["do"])(message, blobs)


def _silence(keep: int) -> None:
    """Prints go nowhere, and no handle of the course but one stays open."""
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(null, number)
    if os.name == "posix":
        os.closerange(3, keep)
        os.closerange(keep + 1, 4096)


def main() -> None:
    """`template FD ROOT` on Linux; elsewhere `connect PORT WORD`, one process for one exercise."""
    what, number, word = sys.argv[1:]
    if what == "template":
        template(socket.socket(fileno=int(number)), word)
        return
    connection = socket.create_connection(("127.0.0.1", int(number)))
    connection.sendall(word.encode())
    _load()
    serve(connection, [])


if __name__ == "__main__":
    main()
