"""What judge and student's process say to each other: JSON and plain bytes, never a pickle.

A message is a frame: two lengths, JSON, then the raw numbers of its arrays. What comes from the
student's process is read as data: it can become numbers, names and containers, and no code runs.
Things that cannot travel (a function, a finished network) stay where they are under a number.
"""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from ptq_classroom.teaching import modules
from ptq_course.grids.affine import IntGrid, QParams

LARGEST, LONGEST = 64 << 20, 8 << 20  # bytes of one message, and of its JSON
_HEAD = struct.Struct("<II")
_GRID = ("bits", "signed", "narrow")


class Unreadable(Exception):
    """The other side sent what is no message."""


class Late(Exception):
    """The other side did not answer in time."""


class Gone(Exception):
    """The other side has ended."""


class Channel:
    """Frames over a socket; a deadline (time.monotonic) ends every wait."""

    def __init__(self, connection: socket.socket):
        self._socket = connection
        self.deadline = float("inf")

    def send(self, message: dict, blobs: list[bytes] | None = None) -> None:
        """Send a message; Unreadable where it is too long, Late or Gone as for `receive`."""
        blobs = blobs or []
        text = json.dumps({**message, "sizes": [len(blob) for blob in blobs]}).encode()
        size = sum(map(len, blobs))
        _bounded(len(text), size)
        self._wait_no_longer()
        with _said_plainly():
            self._socket.sendall(b"".join((_HEAD.pack(len(text), size), text, *blobs)))

    def receive(self) -> tuple[dict, list[bytes]]:
        """The next message; Unreadable where it is none, Late after the deadline, Gone at last."""
        text, size = _HEAD.unpack(self._exactly(_HEAD.size))
        _bounded(text, size)
        body, rest = self._exactly(text), self._exactly(size)
        try:
            message = json.loads(body)
            sizes = message.pop("sizes")
            if sum(sizes) != size or min(sizes, default=0) < 0:
                raise Unreadable("the lengths do not add up")
        except (ValueError, RecursionError, AttributeError, KeyError, TypeError) as error:
            raise Unreadable("no message") from error
        blobs, at = [], 0
        for length in sizes:
            blobs.append(rest[at : at + length])
            at += length
        return message, blobs

    def close(self) -> None:
        """End the conversation."""
        self._socket.close()

    def _exactly(self, count: int) -> bytes:
        parts, left = [], count
        while left:
            self._wait_no_longer()
            with _said_plainly():
                part = self._socket.recv(min(left, 1 << 16))
            if not part:
                raise Gone
            parts.append(part)
            left -= len(part)
        return b"".join(parts)

    def _wait_no_longer(self) -> None:
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise Late
        self._socket.settimeout(None if left == float("inf") else left)


def _bounded(text: int, size: int) -> None:
    if text + size > LARGEST or text > LONGEST:
        raise Unreadable(f"a message of {text + size} bytes is too long")


@contextlib.contextmanager
def _said_plainly() -> Iterator[None]:
    try:
        yield
    except TimeoutError as error:
        raise Late from error
    except OSError as error:
        raise Gone from error


class Codec:
    """Values to JSON and back. held: what stays on this side, by its number.

    stand_in(kind, number, name): what the other side's function, module or object is here.
    """

    def __init__(
        self,
        stand_in: Callable[[str, int, str], Any],
        describe_modules: bool,
        trusts: bool = False,
    ):
        self.trusts = trusts  # whether the source of a class may be run
        self.held: dict[int, Any] = {}
        self._stand_in = stand_in
        self._describe = describe_modules

    def pack(self, value: Any, describe: bool | None = None) -> tuple[Any, list[bytes]]:
        """(JSON, raw numbers) of a value. describe: send a module's layers, or keep it here."""
        blobs: list[bytes] = []
        return self._pack(value, blobs, self._describe if describe is None else describe), blobs

    def hold(self, value: Any) -> int:
        for number, kept in self.held.items():
            if kept is value:
                return number
        self.held[len(self.held)] = value
        return len(self.held) - 1

    def _pack(self, value: Any, blobs: list[bytes], describe: bool) -> Any:
        if value is None or isinstance(value, bool | str):
            return value if isinstance(value, bool | None) else str(value)
        if isinstance(value, int):
            return {"t": "int", "v": str(int(value))} if abs(value) > 2**53 else int(value)
        if isinstance(value, float) and not isinstance(value, np.generic):
            return float(value)
        if (theirs := getattr(value, "_ptq_theirs", None)) is not None:
            return {"t": "yours", "id": theirs}
        if isinstance(value, torch.Tensor):
            return self._tensor(value, blobs)
        if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "biuf":
            return _array(np.asarray(value), blobs, "scalar" if value.ndim == 0 else "array")
        if isinstance(value, np.ndarray) and value.dtype.kind == "U":
            return {"t": "words", "v": value.ravel().tolist(), "s": list(value.shape)}
        if isinstance(value, torch.dtype):
            return {"t": "dtype", "v": str(value).removeprefix("torch.")}
        if isinstance(value, list | tuple | set | frozenset):
            kind = next(k for k in (list, tuple, set, frozenset) if isinstance(value, k))
            return {"t": kind.__name__, "v": [self._pack(v, blobs, describe) for v in value]}
        if isinstance(value, dict):
            pairs = [[self._pack(part, blobs, describe) for part in kv] for kv in value.items()]
            return {"t": "dict", "v": pairs}
        if isinstance(value, IntGrid):
            return {"t": "grid", "v": [getattr(value, name) for name in _GRID]}
        if isinstance(value, QParams):
            parts = (value.scale, value.zero_point, value.grid, value.block_size)
            return {"t": "qparams", "v": [self._pack(p, blobs, describe) for p in parts]}
        if isinstance(value, torch.nn.Module) and describe:
            return modules.describe(value, lambda part: self._pack(part, blobs, describe))
        return self._other(value, blobs, describe)

    def _other(self, value: Any, blobs: list[bytes], describe: bool) -> Any:
        if type(value).__name__ == "ModelProto":
            blobs.append(value.SerializeToString())
            return {"t": "onnx", "b": len(blobs) - 1}
        if hasattr(value, "__next__") or type(value).__name__ in ("dict_keys", "dict_values"):
            return {"t": "iterator", "v": [self._pack(v, blobs, describe) for v in value]}
        kind = "module" if isinstance(value, torch.nn.Module) else "object"
        kind = "function" if kind == "object" and callable(value) else kind
        name = getattr(value, "__name__", None) or type(value).__name__
        return {"t": "mine", "kind": kind, "id": self.hold(value), "name": str(name)[:80]}

    def _tensor(self, value: torch.Tensor, blobs: list[bytes]) -> Any:
        plain = value.detach().cpu().contiguous()
        half = plain.dtype is torch.bfloat16
        packed = _array((plain.view(torch.int16) if half else plain).numpy(), blobs, "tensor")
        return {**packed, "bfloat16": half, "grad": bool(value.requires_grad)}

    def unpack(self, value: Any, blobs: list[bytes]) -> Any:
        """The value of (JSON, raw numbers); Unreadable for anything that is none."""
        try:
            return self._unpack(value, blobs)
        except Unreadable:
            raise
        except Exception as error:
            raise Unreadable(f"{type(error).__name__}: {error}") from error

    def _unpack(self, value: Any, blobs: list[bytes]) -> Any:
        if not isinstance(value, dict):
            if isinstance(value, list):
                raise Unreadable("a bare list")
            return value
        kind, v = value["t"], value.get("v")

        def parts() -> list:
            return [self._unpack(part, blobs) for part in value["v"]]

        plain: dict[str, Callable[[], Any]] = {
            "int": lambda: int(str(v)),
            "list": parts,
            "tuple": lambda: tuple(parts()),
            "set": lambda: set(parts()),
            "frozenset": lambda: frozenset(parts()),
            "iterator": lambda: iter(parts()),
            "dict": lambda: {self._unpack(a, blobs): self._unpack(b, blobs) for a, b in value["v"]},
            "array": lambda: _to_array(value, blobs).copy(),
            "words": lambda: np.array([str(w) for w in value["v"]]).reshape(value["s"]),
            "scalar": lambda: _to_array(value, blobs)[()],
            "tensor": lambda: _to_tensor(value, blobs),
            "dtype": lambda: _dtype(str(v)),
            "grid": lambda: IntGrid(**dict(zip(_GRID, value["v"], strict=True))),
            "qparams": lambda: QParams(*parts()),
            "module": lambda: modules.build(
                value, lambda part: self._unpack(part, blobs), self.trusts
            ),
            "onnx": lambda: _to_onnx(blobs[value["b"]]),
            "yours": lambda: self.held[value["id"]],
            "mine": lambda: self._stand_in(
                str(value["kind"]), int(value["id"]), str(value["name"])[:80]
            ),
        }
        return plain[kind]()


def _array(array: np.ndarray, blobs: list[bytes], kind: str) -> dict:
    blobs.append(np.ascontiguousarray(array).tobytes())
    return {"t": kind, "d": array.dtype.str, "s": list(array.shape), "b": len(blobs) - 1}


def _to_array(value: dict, blobs: list[bytes]) -> np.ndarray:
    dtype = np.dtype(str(value["d"]))
    if dtype.kind not in "biuf":
        raise Unreadable(f"an array of {dtype}")
    return np.frombuffer(blobs[value["b"]], dtype).reshape([int(n) for n in value["s"]])


def _to_tensor(value: dict, blobs: list[bytes]) -> torch.Tensor:
    tensor = torch.from_numpy(_to_array(value, blobs).copy())
    if value.get("bfloat16"):
        tensor = tensor.view(torch.bfloat16)
    return tensor.requires_grad_() if value.get("grad") and tensor.is_floating_point() else tensor


def _dtype(name: str) -> torch.dtype:
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype):
        raise Unreadable(f"no type of tensors: {name[:40]}")
    return found


def _to_onnx(data: bytes) -> Any:
    import onnx

    model = onnx.ModelProto()
    model.ParseFromString(data)
    return model
