"""Figures and setting of chapter 14: the plotted arrays, what is recorded, the exercises."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from ptq_classroom.chapters.ch14 import figures, recorded, setting
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
    shares = {"label": [1, 0], "T = 2": torch.tensor([0.7, 0.3])}
    fig, alt = figures.answers(["cat", "dog"], shares, "cat")
    assert [bar.get_width() for bar in axes_of(fig)[1].patches] == pytest.approx([70, 30])
    assert "T = 2 cat 70, dog 30" in alt
    assert alt.startswith("The largest share of cat falls from 100 to 70 %")


def test_learning_starts_where_the_training_did():
    curves, bands = {"labels": [82.0, 86.0]}, {"labels": [(81, 83), (85, 87)]}
    fig, alt = figures.learning([50, 100], curves, bands, 80.0, 93.5)
    assert list(axes_of(fig)[0].lines[0].get_ydata()) == [80, 82, 86]
    assert list(axes_of(fig)[0].lines[0].get_xdata()) == [0, 50, 100]
    assert "from 80.0 % to labels 86.0 after 100 steps" in alt
    (shade,) = axes_of(fig)[0].collections
    assert {tuple(v) for v in shade.get_paths()[0].vertices} >= {(50, 81), (50, 83), (100, 87)}


def test_seconds_show_every_draw_and_the_band():
    spent = {"GPTQ": (3.0, [80.0, 81.0, 82.0, 81.0, 81.0]), "labels": (12.0, [85.0] * 4 + [86.0])}
    fig, alt = figures.over_seconds(spent, {"labels": 85.5}, 93.5)
    band_, draws, *_ = axes_of(fig)[0].lines
    assert band_.get_ydata() == pytest.approx(recorded.band(spent["GPTQ"][1]))
    assert list(draws.get_ydata()) == spent["GPTQ"][1]
    assert list(draws.get_xdata()) == [3.0] * 5
    assert "GPTQ 81.0 % after 3 s; labels 85.2 % after 12 s" in alt


def test_a_sixth_draw_lies_in_the_band_of_five_in_95_of_100_cases():
    draws = np.random.default_rng(16).normal(85, 1.5, (4000, 6)).tolist()
    inside = np.mean([recorded.in_band(six, five) for *five, six in draws])
    assert inside == pytest.approx(0.95, abs=0.012)
    with pytest.raises(ValueError, match="4 values"):
        recorded.band([1.0] * 4)


def test_accuracies_are_drawn_in_percent():
    fig, alt = figures.accuracies({"a": (0.5, 0.4, 0.6), "b": (0.9, 0.8, 0.95)}, 0.935)
    assert [bar.get_width() for bar in axes_of(fig)[0].patches] == pytest.approx([50, 90])
    assert alt.startswith("The least effort, a, keeps 50.0 %, the most, b, 90.0 %; FP32 93.5 %.")


def test_the_record_fits_the_setting():
    record = recorded.recorded()
    assert set(record["training"]) == set(record["long"]) == set(setting.KINDS)
    assert set(record["rounding"]) == {"GPTQ", "AdaRound"}
    assert (record["steps"], record["every"]) == (setting.STEPS, setting.EVERY)
    assert setting.FRESH not in recorded.DRAWS
    for part, points in (("rounding", 1), ("training", setting.STEPS // setting.EVERY)):
        for row in record[part].values():
            assert len(row["accuracy"]) == len(row["seconds"]) == len(recorded.DRAWS)
            assert {len(draw) for draw in row["accuracy"]} == {points}
            assert all(50 < value < 100 for draw in row["accuracy"] for value in draw)


def test_draws_of_calibration_pictures_differ():
    first, other = setting.few(), setting.few(1)
    assert len(first) == len(other) == 512
    assert torch.equal(other.images, setting.few(1).images)
    assert not torch.equal(first.images, other.images)


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
