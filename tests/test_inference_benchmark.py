"""benchmarks/inference.py: its ratios and verdicts, and one quick run of all its parts."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ptq_course.deploy.session import Speedup, Timing

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "benchmarks" / "inference.py"


@pytest.fixture(scope="module")
def inference():
    spec = importlib.util.spec_from_file_location("inference", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_ratio_is_the_median_over_the_turns(inference, capsys):
    """One slow turn of both, and one slow turn of one: the fastest calls would say 3x."""
    seconds = {
        "FP32": Timing(0.003, 0.004, (0.004, 0.040, 0.004, 0.003, 0.004)),
        "INT8": Timing(0.001, 0.002, (0.002, 0.020, 0.001, 0.0015, 0.020)),
    }
    found = inference.show("title", seconds, "FP32")
    assert found == {"INT8": Speedup(2.0, 2.0, 2.0)}
    assert "2.00x (2.00 to 2.00)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("speed", "size", "missed"), [(2.1, 0.27, False), (1.9, 0.27, True), (2.1, 0.3, True)]
)
def test_the_goals_are_judged(inference, capsys, speed, size, missed):
    assert inference.judge(Speedup(speed, speed - 1, speed + 1), size, 2) == missed
    said = capsys.readouterr().out
    assert ("MISS" in said) == missed
    assert "INT8, 8-bit weights, exact" in said


@pytest.mark.parametrize(("batch", "cost", "missed"), [(1, 1.9, False), (32, 1.9, True)])
def test_the_simulation_has_a_budget_for_each_batch(inference, capsys, batch, cost, missed):
    assert inference.over_budget("mobilenet", batch, Speedup(cost, cost, cost)) == missed
    assert ("MISS" in capsys.readouterr().out) == missed


@pytest.mark.slow
def test_a_quick_run_measures_every_part():
    run = subprocess.run(
        [sys.executable, str(SCRIPT), "--quick", "--only", "resnet"],
        capture_output=True, text=True, timeout=600, cwd=ROOT, env={**os.environ},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-2000:]
    for words in (
        "guard on",
        "guard off",
        "7-bit",
        "fake-quantized",
        "integer-only",
        "_int_mm",
        "budget",
    ):
        assert words in run.stdout
