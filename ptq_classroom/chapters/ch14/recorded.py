"""What `benchmarks/distillation.py` measured for chapter 14: accuracy and time of five draws."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("recorded.json")
DRAWS = (1, 2, 3, 4, 5)
STUDENT = 2.776  # 97.5 % of Student's t with len(DRAWS) - 1 = 4 degrees of freedom lie below


def recorded() -> dict[str, Any]:
    """The whole file.

    "rounding" and "training": name -> "accuracy", percent at every so many steps for each draw (a
    rounding has one entry), and "seconds" of each draw. "long": the same of one long run each.
    """
    return json.loads(FILE.read_text(encoding="utf-8"))


def final(row: dict[str, Any]) -> list[float]:
    """Accuracy in percent at the end of each draw."""
    return [draw[-1] for draw in row["accuracy"]]


def band(values: Sequence[float]) -> tuple[float, float]:
    """Where one more draw lies in 95 of 100 cases, given five: (low, high).

    The prediction interval of a normal distribution whose mean and spread are both estimated:
    mean +- t s sqrt(1 + 1/n) (Student, "The probable error of a mean", 1908).
    """
    if len(values) != len(DRAWS):
        raise ValueError(f"band: {len(values)} values; the factor is that of {len(DRAWS)} draws")
    middle = statistics.mean(values)
    reach = STUDENT * statistics.stdev(values) * math.sqrt(1 + 1 / len(values))
    return middle - reach, middle + reach


def in_band(live: float, values: Sequence[float]) -> bool:
    """Whether what was just measured lies where one more draw is expected."""
    low, high = band(values)
    return low <= live <= high


def seconds(row: dict[str, Any]) -> float:
    """Mean seconds of one core that a draw took, the calibration of ranges included."""
    return statistics.mean(row["seconds"]) + recorded()["nearest"]["seconds"]
