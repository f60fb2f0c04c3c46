"""The judge's end: start a student's process, and a stand-in for the function that runs there."""

from __future__ import annotations

import builtins
import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from ptq_classroom.kit import exercises
from ptq_classroom.kit.examine import NotAttempted, Probe
from ptq_classroom.kit.expect import Failure
from ptq_classroom.teaching import changes, sandbox, wire

START = 60.0  # seconds that a process may take to begin
NO_MEMORY = ("MemoryError", "DefaultCPUAllocator")


class Ended(BaseException):
    """The student's process is late, gone or talks nonsense; no `except Exception` may hide it."""


class Student:
    """One student's process."""

    def __init__(self, channel: wire.Channel, kill: Callable[[], int]):
        self._channel, self._kill = channel, kill
        self._codec = wire.Codec(self._stand_in, describe_modules=True)
        self._busy = False
        self.uses: list[str] = []  # functions of the course that the student's code called
        self.layers: list[str] = []
        self.holds: dict[str, bool] = {}

    def begin(self, limits: sandbox.Limits, folder: str, canary: str, user: int | None) -> None:
        """Give the limits; afterwards `layers` and `holds` say what protects."""
        self._channel.deadline = time.monotonic() + START
        order = {"seconds": limits.seconds, "megabytes": limits.megabytes}
        said, _ = self._talk({**order, "folder": folder, "canary": canary, "user": user})
        self.layers, self.holds = said["layers"], said["holds"]
        self._channel.deadline = time.monotonic() + limits.seconds

    def read(self, name: str, data: bytes) -> dict:
        """{"exercises": [...]} or {"refused": why}; nothing of the file is run."""
        return self._talk({"do": "read", "name": name}, [data])[0]

    def define(self, exercise: exercises.Exercise, name: str, data: bytes, allowed: list) -> dict:
        """Define the function there: {"function": stand-in, "suspicious": [...]}, or why not."""
        lookup, _ = self._codec.pack(_but(exercise))
        order = {"do": "define", "name": name, "exercise": exercise.id, "allowed": allowed}
        order |= {"function": exercise.function, "learner": lookup}
        first, _ = self._talk(order, [data])
        if "refused" in first:
            return first
        second, _ = self._listen()
        if "made" in second:
            second["function"] = self._codec.unpack(second["made"], [])
        return {**first, **second}

    def classes(self, data: bytes, base: str, inputs: torch.Tensor, seconds: float) -> Any:
        """The classes that a checkpoint's network names, or the error in words."""
        self._channel.deadline = time.monotonic() + seconds
        packed, blobs = self._codec.pack(inputs)
        order = {"do": "network", "base": base, "inputs": packed}
        said, blobs = self._talk(order, [data, *blobs])
        if "raised" in said:
            return f"{said['raised']['type']}: {said['raised']['text']}"
        try:
            return self._codec.unpack(said["value"], blobs)
        except (wire.Unreadable, KeyError) as error:
            raise Ended("its process sent what is no answer") from error

    def end(self) -> str:
        """End the process; what became of it, in words, where it had ended by itself."""
        status = self._kill()
        with contextlib.suppress(OSError):
            self._channel.close()
        return "" if status == -9 else f"it left with status {status}"

    def call(self, number: int, args: tuple, kwargs: dict) -> Any:
        """Call what the student's process holds under a number."""
        packed, blobs = self._codec.pack((args, kwargs))
        said, blobs = self._talk({"do": "call", "id": number, "given": packed}, blobs)
        try:
            while "ask" in said:
                said, blobs = self._talk(*self._answer(said, blobs))
            self.uses += [str(name)[:120] for name in said.get("uses", ())][:10]
            if "raised" in said:
                if any(word in f"{said['raised']}" for word in NO_MEMORY):
                    raise Ended("memory")  # else each further case would fill it again
                raise _rebuilt(said["raised"])
            split = int(said["split"])
            value, _ = self._codec.unpack(said["value"], blobs[:split])
            left = blobs[split:]
            changes.carry_over(args, said["after"], lambda part: self._codec.unpack(part, left))
            _leave_hooks(int(said["hooks"]))
        except (wire.Unreadable, KeyError, TypeError, ValueError, AttributeError) as error:
            if hasattr(error, "told"):
                raise
            raise Ended("its process sent what is no answer") from error
        return value

    def _answer(self, said: dict, blobs: list[bytes]) -> tuple[dict, list[bytes]]:
        """What the function of the judge's that it asks for gives."""
        args, kwargs = self._codec.unpack(said["given"], blobs)
        try:
            with _no_longer_than(self._channel.deadline):
                result = self._codec.held[said["ask"]](*args, **kwargs)
            value, blobs = self._codec.pack(result)
            after, more = self._codec.pack(args)
            reply = {"value": value, "split": len(blobs), "after": after}
            return reply, [*blobs, *more]
        except Exception as error:
            return {"raised": [type(error).__name__, str(error)[:500]]}, []

    def _talk(self, message: dict, blobs: list[bytes] | None = None) -> tuple[dict, list[bytes]]:
        try:
            self._channel.send(message, blobs)
        except (wire.Late, wire.Gone, wire.Unreadable) as error:
            raise _ended(error) from error
        return self._listen()

    def _listen(self) -> tuple[dict, list[bytes]]:
        try:
            message, blobs = self._channel.receive()
        except (wire.Late, wire.Gone, wire.Unreadable) as error:
            raise _ended(error) from error
        if not isinstance(message, dict):
            raise Ended("its process sent what is no answer")
        return message, blobs

    def _stand_in(self, kind: str, number: int, name: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            return self.call(number, args, kwargs)

        if kind == "function":
            call.__name__ = call.__qualname__ = name
            return call
        return _Network(call, name) if kind == "module" else _Thing(name)


def _but(exercise: exercises.Exercise) -> Callable[..., Any]:
    """`learner.function` of the notebooks, for all exercises but one: no mistake counts twice."""

    def function(name: str, quiet: bool = False) -> Callable[..., Any]:
        known = {e.function: e.reference for e in exercises.everything()}
        if name == exercise.function or name not in known:
            raise NotImplementedError(f"{name} is what this exercise asks for")
        return known[name]

    return function


class _Network(torch.nn.Module):
    """A network that stays in the student's process."""

    def __init__(self, call: Callable[..., Any], name: str):
        super().__init__()
        self._call, self._name = call, name

    def forward(self, *args: Any) -> Any:
        return self._call(*args)

    def __deepcopy__(self, _: dict) -> _Network:
        return self


class _Thing:
    def __init__(self, name: str):
        self._name = name

    def __repr__(self) -> str:
        return f"a {self._name}"


@contextlib.contextmanager
def _no_longer_than(deadline: float) -> Iterator[None]:
    """What a student's process asks for may not keep the judge busy either (Unix only)."""
    if not hasattr(signal, "setitimer"):
        yield
        return

    def late(*_: Any) -> None:
        raise Ended("time")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, max(0.01, deadline - time.monotonic()))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _leave_hooks(count: int) -> None:
    import torch.nn.modules.module as place

    for _ in range(min(count, 10) - len(place._global_forward_hooks)):
        torch.nn.modules.module.register_module_forward_hook(lambda *_: None)


def _ended(error: Exception) -> Ended:
    words = {wire.Late: "time", wire.Gone: "gone"}
    return Ended(words.get(type(error), "its process sent what is no answer"))


def _rebuilt(told: dict) -> Exception:
    """The error that the student's code raised, as one of this process."""
    kind, text = str(told["type"]), str(told["text"])
    found = getattr(builtins, kind, None)
    if not (isinstance(found, type) and issubclass(found, Exception)):
        found = type(kind[:60], (Exception,), {})
    try:
        error = found(text)
    except TypeError:  # such as UnicodeDecodeError
        error = Exception(f"{kind}: {text}")
    error.told = told  # type: ignore[attr-defined]
    return error


class RemoteProbe(Probe):
    """A probe around a function of another process: errors were located there."""

    def account(self, error: Exception) -> Exception:
        told = getattr(error, "told", None)
        if told is None:
            return super().account(error)
        stub = str(told.get("stub") or "")
        if stub == self.exercise.function:
            return NotAttempted()
        if ids := [e.id for e in exercises.everything() if stub and e.function == stub]:
            return Failure(f"{stub} is still a stub: do {ids[0]} first")
        failure = Failure(f"raised {type(error).__name__}: {error}")
        if line := told.get("line"):
            failure.location = f"line {line[0]} in {line[2]}: {line[1]}"
        else:
            failure.headline = f"could not be called as {self.exercise.signature}"
            failure.expected, failure.got = (
                self.exercise.signature,
                f"{type(error).__name__}: {error}",
            )
        return failure
