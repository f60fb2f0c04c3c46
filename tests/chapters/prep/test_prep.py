"""The figures self-test: what its figures plot."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from ptq_classroom.chapters.prep import figures
from ptq_classroom.kit import exercises


def test_the_dial_has_every_integer_and_marks_the_wrap():
    fig, alt = figures.dial(4)
    (ax,) = fig.axes
    codes = {t.get_text(): t for t in ax.texts if t.get_text().lstrip("-").isdigit()}
    assert sorted(map(int, codes)) == list(range(-8, 8))
    assert [n for n, t in codes.items() if t.get_fontweight() == "bold"] == ["-8", "7"]
    assert "7 + 1 = -8" in [t.get_text() for t in ax.texts]
    assert "One step beyond 7 stands -8" in alt
    place = {n: t.get_position() for n, t in codes.items()}
    assert place["0"][1] == pytest.approx(1.2)  # zero at the top,
    assert place["1"][0] > 0  # counting clockwise


def test_tails_counts_the_same_twice_and_names_the_lonely_ones():
    values = np.concatenate([np.random.default_rng(0).standard_normal(1000), [9.0, 10.0, 12.0]])
    fig, alt = figures.tails(values)
    linear, log = fig.axes
    assert (linear.get_yscale(), log.get_yscale()) == ("linear", "log")
    for ax in fig.axes:
        assert ax.patches[0].get_data().values.sum() == 1003
    assert "shows the 3 beyond the widest gap" in alt


def test_noisy_waves_have_the_ratio_they_claim():
    fig, alt = figures.noisy_waves((10, 20, 40))
    for ax, level in zip(fig.axes, (10, 20, 40), strict=True):
        noisy, wave = (line.get_ydata() for line in ax.lines)
        ratio = 10 * np.log10((wave**2).sum() / ((noisy - wave) ** 2).sum())
        assert ratio == pytest.approx(level, abs=1e-6)
    assert "10 dB, 20 dB, 40 dB" in alt
    assert "dotted: the wave itself" in fig.get_supxlabel()
    assert "32 %, 10 %, 1 %" in alt


@pytest.mark.parametrize("shape", [(8, 3, 2, 1), (8, 3, 1, 0), (7, 3, 3, 2), (5, 5, 1, 0)])
def test_kernel_places_are_those_of_a_convolution(shape: tuple[int, int, int, int]):
    size, kernel, stride, padding = shape
    fig, alt = figures.kernel_places(size, kernel, stride, padding)
    expected = nn.Conv1d(1, 1, kernel, stride, padding)(torch.zeros(1, 1, size)).shape[-1]
    outputs = [t for t in fig.axes[0].texts if t.get_text().startswith("output")]
    assert len(outputs) == expected
    assert f"{expected} places" in alt


def test_the_exercises_fit_the_half_hour():
    """Seven exercises, and two minutes of reading for each."""
    chosen = exercises.load("prep")
    assert len(chosen) == 7
    assert sum(e.minutes for e in chosen) + 2 * 7 <= 32
