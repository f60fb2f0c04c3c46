"""Chapter 17: the task, its score and references, the figures' arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from ptq_classroom.chapters.ch17 import figures, task
from ptq_course.simulation.qconfig import QConfig
from ptq_course.simulation.quantizer import PTQQuantizer


@pytest.fixture
def short(monkeypatch):
    """The same task with few pictures."""
    monkeypatch.setattr(task, "COUNTS", dict.fromkeys(task.COUNTS, 100))
    task.pictures.cache_clear()
    yield
    task.pictures.cache_clear()


def test_a_solution_is_scored_on_pictures_of_its_own(short):
    assert len(set(task.SEEDS.values())) == 3
    quantizer = PTQQuantizer(task.network(), config=QConfig.onnxruntime())
    quantizer.observe(task.calibration(), ranges="kl", progress=False)
    found = task.score(quantizer.compute_qparams("kl").convert(), rounds=1)
    assert found.classes == ["INT8"]
    assert 0.6 < found.accuracy < 1
    assert found.change[0] > -0.1
    assert 1 <= found.rank <= found.of == 6
    assert f"rank      {found.rank} of 6" in str(found)
    x, labels = task.practice()
    assert len(x) == len(labels) == 100
    assert not torch.equal(x, task.pictures("score")[0])


def test_references_are_of_several_strengths():
    references = task.references()
    accuracies = [r["accuracy"] for r in references.values()]
    assert max(accuracies) - min(accuracies) > 0.1
    assert {r["size"] <= task.BUDGETS["INT4"] for r in references.values()} == {True, False}
    assert all(r["size"] <= task.BUDGETS["INT8"] for r in references.values())


def test_figures_hold_the_numbers():
    dark = np.full((2, 3, 4, 4), 30, dtype=np.uint8)
    _, alt = figures.pairs(dark + 70, dark, ["cat", "dog"])
    assert "mean byte 100 by daylight, 30 at dusk" in alt
    solutions = {"a": (0.26, 80.0), "b": (0.14, 85.0)}
    fig, alt = figures.over_size(solutions, task.BUDGETS, 87.0, 84.5)
    axes: list[Any] = list(fig.axes)
    dots = [line for line in axes[0].lines if line.get_marker() == "o"]
    assert sorted(float(line.get_ydata()[0]) for line in dots) == [80.0, 85.0]
    assert alt.startswith("b is the most accurate")
