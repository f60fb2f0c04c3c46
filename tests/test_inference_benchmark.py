"""benchmarks/inference.py: its ratios and verdicts, and one quick run of all its parts."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ptq_course.deploy.session import Timing

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "benchmarks" / "inference.py"


@pytest.fixture(scope="module")
def inference():
    spec = importlib.util.spec_from_file_location("inference", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_ratio_is_the_peers_time_over_the_contestants(inference, capsys):
    seconds = {"FP32": Timing(0.004, 0.006), "INT8": Timing(0.002, 0.004)}
    assert inference.show("title", seconds, "FP32") == {"INT8": (2.0, 1.5)}
    assert "INT8" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("speed", "size", "missed"), [(2.1, 0.27, False), (1.9, 0.27, True), (2.1, 0.3, True)]
)
def test_the_goals_are_judged(inference, capsys, speed, size, missed):
    assert inference.judge(speed, size, 2) == missed
    assert ("MISS" in capsys.readouterr().out) == missed


@pytest.mark.slow
def test_a_quick_run_measures_every_part():
    run = subprocess.run(
        [sys.executable, str(SCRIPT), "--quick", "--only", "resnet"],
        capture_output=True, text=True, timeout=600, cwd=ROOT, env={**os.environ},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-2000:]
    for words in ("guard on", "guard off", "7-bit", "fake-quantized", "integer-only", "_int_mm"):
        assert words in run.stdout
