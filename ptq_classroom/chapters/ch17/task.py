"""The task of the capstone: a camera at dusk that nobody has quantized for.

The pictures are drawn when they are asked for, with seeds of their own; the ones that score are
never shown. References are solutions of several strengths, recorded by `benchmarks/capstone.py`.
"""

from __future__ import annotations

import json
import tempfile
import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ptq_classroom.pictures.camera import to_input
from ptq_classroom.pictures.conditions import Shift
from ptq_classroom.pictures.generator import EmojiGenerator
from ptq_classroom.pictures.models import load_model
from ptq_course.deploy.checkpoint import save, size_report
from ptq_course.deploy.onnx import export, session
from ptq_course.deploy.session import Speedup, timings
from ptq_course.grids.metrics import paired_bootstrap
from ptq_course.simulation.quantized import QuantizedModel

DUSK = Shift(gain=0.35, noise=1.5)
NETWORK = "resnet"
LIMIT = 0.025  # the lower end of the interval of the loss, as a share
BUDGETS = {"INT8": 0.27, "INT4": 0.15}  # checkpoint over FP32's weights
SEEDS = {"calibration": 1_700_001, "practice": 1_700_002, "score": 1_700_003}
COUNTS = {"calibration": 300, "practice": 1000, "score": 1000}


@cache
def pictures(part: str) -> tuple[Tensor, Tensor]:
    """Inputs [N, 3, 48, 48] and labels [N] of "calibration", "practice" or "score"."""
    images, labels = EmojiGenerator(seed=SEEDS[part], shift=DUSK).batch(COUNTS[part])
    return to_input(images), labels


def calibration() -> list[Tensor]:
    """300 pictures from the camera, in batches, without labels."""
    return list(pictures("calibration")[0].split(50))


def practice() -> tuple[Tensor, Tensor]:
    """1,000 pictures with labels, to choose by."""
    return pictures("practice")


@cache
def network() -> nn.Module:
    """The FP32 network, which was trained on brighter pictures."""
    return load_model(NETWORK)


def right(run: Any, part: str = "practice") -> Tensor:
    """1.0 for each picture that a network or a session answers right."""
    x, labels = pictures(part)
    with torch.no_grad():
        outputs = torch.cat([run(chunk.clone()) for chunk in x.split(250)])
    return (outputs.argmax(1) == labels).double()


def size_ratio(quantized: QuantizedModel) -> float:
    """The checkpoint's bytes, codes packed, over those of the weights in FP32."""
    with tempfile.TemporaryDirectory() as folder:
        report = size_report(save(quantized, Path(folder) / "model.safetensors"))
    return report.file_bytes / report.fp32_bytes


@dataclass(frozen=True)
class Score:
    """What `score` measured on pictures that nobody has seen.

    change: (mean, low, high) of the accuracy minus FP32's. size: see `size_ratio`. speed: of the
    file in ONNX Runtime at 32 pictures. rank: 1 where no reference of its class is better.
    """

    accuracy: float
    change: tuple[float, float, float]
    size: float
    speed: Speedup
    rank: int
    of: int

    @property
    def classes(self) -> list[str]:
        """The classes whose size budget is kept."""
        return [name for name, budget in BUDGETS.items() if self.size <= budget]

    @property
    def accepted(self) -> bool:
        """Whether loss and size keep the brief."""
        return self.change[1] >= -LIMIT and bool(self.classes)

    def __str__(self) -> str:
        mean, low, high = (100 * v for v in self.change)
        kept = ", ".join(self.classes) or "no class"
        return "\n".join((
            f"accuracy  {100 * self.accuracy:.1f} %, against FP32 {mean:+.1f} points "
            f"({low:+.1f} to {high:+.1f}), allowed {-100 * LIMIT:+.1f}",
            f"size      {self.size:.3f} of FP32: keeps the budget of {kept}",
            f"speed     ~{self.speed.median:.1f}x FP32's",
            f"rank      {self.rank} of {self.of}",
            "accepted" if self.accepted else "not accepted",
        ))  # fmt: skip

    __repr__ = __str__


def score(quantized: QuantizedModel, rounds: int = 5) -> Score:
    """Accuracy, size and speed of a solution, its file run by ONNX Runtime, and its rank."""
    before = right(network(), "score")
    size, x = size_ratio(quantized), pictures("score")[0][:32].clone()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # 4 bits count in the checkpoint; the file holds them as int8
        files = [Path(folder) / f"{name}.onnx" for name in ("fp32", "mine")]
        models = (network(), quantized)
        runs = [session(export(m, x, file)) for m, file in zip(models, files, strict=True)]
        after = right(runs[1], "score")
        seconds = timings(dict(zip(("fp32", "mine"), runs, strict=True)), x, rounds)
    change = paired_bootstrap(before, after)
    accuracy = after.mean().item()
    small = size <= BUDGETS["INT4"]
    rivals = [
        r["accuracy"] for r in references().values() if (r["size"] <= BUDGETS["INT4"]) == small
    ]
    rank = 1 + sum(rival > accuracy for rival in rivals)
    speed = Speedup.of(seconds["fp32"], seconds["mine"])
    return Score(accuracy, change, size, speed, rank, len(rivals) + 1)


def references() -> dict[str, dict[str, float]]:
    """Solutions of several strengths: name -> accuracy, size."""
    return json.loads(Path(__file__).with_name("references.json").read_text(encoding="utf-8"))
