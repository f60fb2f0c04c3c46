"""What the student's process does for the judge: define the function, call it, watch it."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
import types
from typing import Any

from ptq_classroom.teaching import answers, changes, sandbox
from ptq_classroom.teaching.wire import Codec

COURSE = str(sandbox.COURSE)
OURS = (os.path.join(COURSE, "ptq_course"), os.path.join(COURSE, "ptq_classroom"))
TEACHING = os.path.join(COURSE, "ptq_classroom", "teaching")
OWN = ("<cell", "<my_ptq")  # places of what was handed in
WATCHED_CALLS = 3  # of each function; watching slows loops down


class Requests:
    """Answers to the judge's requests."""

    def __init__(self, channel: Any):
        self.channel = channel
        self.codec = Codec(self._theirs, describe_modules=True, trusts=True)
        self.allowed: tuple[str, ...] = ()
        self.uses: list[str] = []
        self.calls = 0

    def read(self, message: dict, blobs: list[bytes]) -> None:
        """Which exercises a file holds; nothing of it is run."""
        try:
            found = answers.exercises_in(answers.read(message["name"], blobs[0]))
            self.channel.send({"exercises": found})
        except answers.NoAnswer as reason:
            self.channel.send({"refused": str(reason)})

    def define(self, message: dict, blobs: list[bytes]) -> None:
        """Make the function of an exercise; what is suspicious is told before anything runs."""
        self.allowed = tuple(message["allowed"])
        name = message["name"]
        try:
            cells = answers.read(name, blobs[0])
            alone = not name.endswith(".ipynb")
            answer = answers.find(cells, message["exercise"], message["function"], alone)
        except answers.NoAnswer as reason:
            self.channel.send({"refused": str(reason)})
            return
        self.channel.send({"suspicious": answer.suspicious})
        try:
            learner = types.SimpleNamespace(function=self.codec.unpack(message["learner"], []))
            function = answer.run(learner)
        except Exception as error:
            self.channel.send({"raised": _account(error)})
            return
        if not callable(function):
            self.channel.send({"refused": f"{message['function']} is no function"})
            return
        packed, _ = self.codec.pack(function)
        self.channel.send({"made": packed})

    def network(self, message: dict, blobs: list[bytes]) -> None:
        """Read a checkpoint of the capstone's network and name the class of each picture."""
        import torch

        from ptq_classroom.pictures.models import load_model
        from ptq_course.deploy.checkpoint import load

        path = os.path.abspath("network.safetensors")
        with open(path, "wb") as file:
            file.write(blobs[0])
        try:
            x = self.codec.unpack(message["inputs"], blobs[1:])
            with torch.no_grad():
                model = load(path, load_model(message["base"])).eval()
                answers = torch.cat([model(part).argmax(1) for part in x.split(100)])
        except Exception as error:
            self.channel.send({"raised": _account(error)})
            return
        packed, blobs = self.codec.pack(answers)
        self.channel.send({"value": packed}, blobs)

    def call(self, message: dict, blobs: list[bytes]) -> None:
        """Call what is held here under a number; the result, and what became of the arguments."""
        args, kwargs = self.codec.unpack(message["given"], blobs)
        self.calls += 1
        try:
            with self._watched(self.calls <= WATCHED_CALLS):
                result = self.codec.held[message["id"]](*args, **kwargs)
            value = self.codec.pack((result, _told(result)), describe=False)
        except Exception as error:
            self.channel.send({"raised": _account(error), "uses": self.uses})
            return
        after = self.codec.pack(args, describe=True)
        self.channel.send({"uses": self.uses, "value": value[0], "split": len(value[1]),
                           "after": after[0], "hooks": _global_hooks()},
                          [*value[1], *after[1]])  # fmt: skip

    def _theirs(self, kind: str, number: int, name: str) -> Any:
        """A function or an object of the judge's."""

        def ask(*args: Any, **kwargs: Any) -> Any:
            packed, blobs = self.codec.pack((args, kwargs))
            self.channel.send({"ask": number, "given": packed}, blobs)
            reply, blobs = self.channel.receive()
            if "raised" in reply:
                raise _error(*reply["raised"])
            own, left = blobs[: reply["split"]], blobs[reply["split"] :]
            changes.carry_over(args, reply["after"], lambda part: self.codec.unpack(part, left))
            return self.codec.unpack(reply["value"], own)

        if kind == "function":
            ask.__name__ = ask.__qualname__ = name
            ask._ptq_theirs = number  # type: ignore[attr-defined]
            return ask
        return type(name, (), {"_ptq_theirs": number})()

    @contextlib.contextmanager
    def _watched(self, really: bool) -> Any:
        """Note which functions of the course the student's code calls."""
        if not really:
            yield
            return

        def look(frame: types.FrameType, event: str, _: Any) -> None:
            if event != "call" or not _is_ours(frame) or frame.f_code.co_name == "<module>":
                return
            before = frame.f_back
            while before and not before.f_code.co_filename.startswith((*OURS, *OWN)):
                before = before.f_back
            if before is not None and (_is_ours(before) or _is_helper(before)):
                return
            name = f"{frame.f_globals.get('__name__')}.{frame.f_code.co_qualname}"
            if not name.startswith(self.allowed) and name not in self.uses:
                self.uses.append(name[:120])

        sys.setprofile(look)
        try:
            yield
        finally:
            sys.setprofile(None)


def _is_ours(frame: types.FrameType) -> bool:
    place = frame.f_code.co_filename
    return place.startswith(OURS) and not place.startswith(TEACHING)


def _is_helper(frame: types.FrameType) -> bool:
    """This folder's own code, unless it is the call of the answer itself."""
    own = frame.f_code.co_filename.startswith(TEACHING)
    return own and frame.f_code is not Requests.call.__code__


def _told(result: Any) -> str:
    return type(result).__name__


def _global_hooks() -> int:
    import torch.nn.modules.module as place

    return len(place._global_forward_hooks)


def _account(error: BaseException) -> dict:
    """What the judge has to know of an error: never more than text."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if f.filename.startswith(OWN)]
    line = [own[-1].lineno, (own[-1].line or "").strip()[:200], own[-1].name] if own else None
    last = frames[-1] if frames else None
    stub = isinstance(error, NotImplementedError) and last is not None and last in own
    return {
        "type": type(error).__name__,
        "text": str(error)[:500],
        "line": line,
        "stub": last.name if stub and last else "",
        "defining": not own,
    }


def _error(kind: str, text: str) -> Exception:
    import builtins

    found = getattr(builtins, kind, None)
    return found(text) if isinstance(found, type) and issubclass(found, Exception) else Exception(
        f"{kind}: {text}"
    )  # fmt: skip
