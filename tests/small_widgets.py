"""Every chapter's widget on small data: what the kernel's and the browser's tests drive."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ptq_classroom import chapters
from ptq_classroom.kit.explorer import Explorer
from ptq_course import PTQQuantizer, to_integer
from ptq_course.ranges.histograms import DyadicHistogram

FOLDER = Path(chapters.__file__).parent
NAMES = sorted(path.parent.name for path in FOLDER.glob("ch*/widget.py"))


def of(name: str) -> Any:
    return import_module(f"ptq_classroom.chapters.{name}.widget")


def ch03() -> Explorer:
    hist = DyadicHistogram()
    hist.update(torch.cat([torch.rand(20_000), torch.tensor([60.0])]))
    ends = np.array([1.0, 60.0])
    return of("ch03").explorer(hist, {bits: (ends, [90.0, 50.0]) for bits in (4, 8)}, 93.0)


def ch06() -> Explorer:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    x = torch.randn(200, 8)
    x[0] *= 50
    quantizer = PTQQuantizer(model).observe([x], progress=False)
    return of("ch06").explorer(quantizer, model, x, ("minmax", "percentile"))


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, 4), nn.Conv2d(8, 8, 3, padding=1)
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        x = torch.relu(self.first(x))
        return self.fc((x + self.second(x)).mean((2, 3)))


def ch08() -> Explorer:
    torch.manual_seed(0)
    quantizer = PTQQuantizer(Residual()).observe([torch.rand(8, 3, 48, 48)], progress=False)
    pictures = torch.randint(0, 256, (6, 3, 48, 48), dtype=torch.uint8)
    integer = to_integer(quantizer.compute_qparams("minmax").convert())
    return of("ch08").explorer(integer, pictures, "second")


def ch09() -> Explorer:
    live = {"standard": np.linspace(-1, 3, 1000), "flash": np.linspace(-1, 100, 1000)}
    measured = {
        (rule, shift): of("ch09").Measured([1, 10, top], [5.0, 1.0, 0.5], [60.0, 90.0, 80.0 - top])
        for rule, top in (("minmax", 60), ("percentile", 30))
        for shift in live
    }
    return of("ch09").explorer((1, 10, 100), live, {"standard": 93.0, "flash": 60.0}, measured)


def ch15() -> Explorer:
    counts = {"ReLU": (6, 0, 2), "GELU": (0, 12, 20), "residual sum": (0, 12, 26)}
    found = {
        (behind, directly): of("ch15").Found(
            nodes, {n: (0.5 if directly else 1.5) + n / 100 for n in of("ch15").BATCHES}
        )
        for behind, nodes in counts.items()
        for directly in (True, False)
    }
    return of("ch15").explorer(found)


# Made from a small network or a few numbers, where the chapter hands over what it measured.
MADE: dict[str, Callable[[], Explorer]] = {
    "ch03": ch03, "ch06": ch06, "ch08": ch08, "ch09": ch09, "ch15": ch15,
}  # fmt: skip


@cache
def explorer(name: str) -> Explorer:
    return MADE[name]() if name in MADE else of(name).explorer()
