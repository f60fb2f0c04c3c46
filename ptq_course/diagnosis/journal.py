"""What `reach` has measured already, in a JSON file, so that it can go on after an interruption.

Chapter 10. The file holds numbers only. No network has to be kept in it: every step is
deterministic, and the line of the best one builds it again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ptq_course.deploy.files import write_atomically
from ptq_course.errors import DataIntegrityError, QuantizationError

FORMAT = "ptq_course reach 2"
CLOSE = 1e-5  # between two measurements of FP32, in units of the score


class Journal:
    """Results by name, written after each. path: None keeps them for this run only.

    key: a digest of everything that must not change between two runs (`key_of`).
    Raises DataIntegrityError for a file that is no journal, QuantizationError where it belongs to
    another model, config or calibration set, or its folder does not exist.
    """

    def __init__(self, path: str | Path | None, key: str) -> None:
        self.path = None if path is None else Path(path)
        self.key, self.results = key, {}
        if self.path is None:
            return
        if self.path.is_dir() or not self.path.parent.is_dir():
            raise QuantizationError(
                f"resume: {self.path} is no file in an existing folder; create the folder first."
            )
        if self.path.exists():
            self.results = self._read(self.path)

    def _read(self, path: Path) -> dict[str, Any]:
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            form, key, results = found["format"], found["key"], found["results"]
            assert form == FORMAT
            assert isinstance(results, dict)
        except (ValueError, KeyError, TypeError, AssertionError, RecursionError) as error:
            raise DataIntegrityError(
                f"resume: {path} is damaged or not a file of reach ({type(error).__name__}); "
                "delete it, or name another."
            ) from error
        if key != self.key:
            raise QuantizationError(
                f"resume: {path} was written for another model, calibration set, config or split; "
                "name another file, or delete this one."
            )
        return results

    def get(self, name: str, make: Callable[[], Any]) -> Any:
        """The result of that name, or what ``make()`` returns, JSON, written down at once."""
        if name not in self.results:
            self.put(name, make())
        return self.results[name]

    def put(self, name: str, value: Any) -> None:
        self.results[name] = value
        if self.path is not None:
            text = json.dumps({"format": FORMAT, "key": self.key, "results": self.results})
            write_atomically(self.path, text.encode())

    def check_reference(self, scores: Tensor) -> None:
        """Write FP32's scores down; QuantizationError where they are not those of the last run."""
        before = self.results.get("FP32 scores")
        if before is not None:
            same = len(before) == len(scores) and torch.allclose(
                torch.tensor(before).double(), scores, atol=CLOSE, rtol=CLOSE
            )
            if not same:
                raise QuantizationError(
                    f"resume: evaluate gives other scores for FP32 than when {self.path} was "
                    "written: it must score the same examples in the same order. Name another "
                    "file, or delete this one."
                )
        else:
            self.put("FP32 scores", scores.tolist())


def key_of(model: nn.Module, first_batch: list[Tensor], *settings: object) -> str:
    """SHA-256 of the weights, one batch of calibration data and the settings."""
    found = hashlib.sha256(repr(settings).encode())
    for name, tensor in [*model.state_dict().items(), *enumerate(first_batch)]:
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()
