"""Figures and setting of chapter 14: the plotted arrays, what is recorded, the exercises."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from ptq_classroom.chapters.ch14 import figures, setting
from ptq_classroom.chapters.ch14.exercises import distill_loss, ste_backward
from ptq_course.grids.affine import IntGrid
from ptq_course.improve.distillation import distillation_loss
from ptq_course.improve.straight_through import round_through


def axes_of(fig: Any) -> list[Any]:
    """The panels; what they hold has more attributes than matplotlib's types say."""
    return list(fig.axes)


def test_through_says_where_the_gradient_is():
    x = np.linspace(-2, 2, 9)
    fig, alt = figures.through(x, x.round().clip(-1, 1), (abs(x) <= 1).astype(float))
    assert list(axes_of(fig)[1].lines[0].get_ydata()) == [0, 0, 1, 1, 1, 1, 1, 0, 0]
    assert "1 from -1 to 1 and 0 outside" in alt
    assert "3 steps" in alt


def test_answers_are_in_percent():
    fig, alt = figures.answers(["cat", "dog"], {"label": [1, 0], "T = 2": [0.7, 0.3]}, "cat")
    assert [bar.get_width() for bar in axes_of(fig)[1].patches] == pytest.approx([70, 30])
    assert "T = 2 cat 70, dog 30" in alt


def test_learning_starts_where_the_training_did():
    curves, bands = {"labels": [82.0, 86.0]}, {"labels": [[81, 85], [83, 87]]}
    fig, alt = figures.learning([50, 100], curves, bands, 80.0, 93.5)
    assert list(axes_of(fig)[0].lines[0].get_ydata()) == [80, 82, 86]
    assert list(axes_of(fig)[0].lines[0].get_xdata()) == [0, 50, 100]
    assert "from 80.0 % to labels 86.0 after 100 steps" in alt


def test_accuracies_are_drawn_in_percent():
    fig, alt = figures.accuracies({"a": (0.5, 0.4, 0.6)}, 0.935)
    assert [bar.get_width() for bar in axes_of(fig)[0].patches] == pytest.approx([50])
    assert "a 50.0 %" in alt


def test_the_record_fits_the_setting():
    record = setting.recorded()
    assert set(record["short"]) == set(record["long"]) == set(setting.KINDS)
    assert (record["steps"], record["every"]) == (setting.STEPS, setting.EVERY)
    for draws in record["short"].values():
        assert {len(draw) for draw in draws} == {setting.STEPS // setting.EVERY}
        assert all(50 < value < 100 for draw in draws for value in draw)


def test_the_exercises_and_the_course_agree():
    grid, scale = IntGrid(3), 0.5
    x = torch.linspace(-4, 4, 41, requires_grad=True)
    g = torch.linspace(1, 2, 41)
    round_through(x, torch.tensor(scale), torch.tensor(0.0), grid).backward(g)
    assert x.grad is not None
    assert torch.equal(ste_backward(g, x.detach(), scale, grid.qmin, grid.qmax), x.grad)
    torch.manual_seed(0)
    a, b = torch.randn(6, 4), torch.randn(6, 4)
    assert distill_loss(a, b, 3.0) == pytest.approx(distillation_loss(a, b, 3.0).item(), rel=1e-5)
