"""Chapter 16: the figure's arrays, every exhibit's symptom, what is refused as a diagnosis."""

from __future__ import annotations

import numpy as np
import pytest

from ptq_classroom.chapters.ch16 import figures, symptoms
from ptq_classroom.chapters.ch16.exercises import EXERCISES, ORDER
from ptq_classroom.chapters.ch16.museum import EXHIBITS
from ptq_classroom.kit.examine import examine


def test_the_figure_goes_from_broken_to_repaired():
    fig, alt = figures.symptoms({"codes": (2.0, 20.0, "dB"), "peaks": (10.0, 92.0, "%")})
    broken, repaired = fig.axes[0].lines
    assert np.asarray(broken.get_xdata()).tolist() == [2, 10]
    assert np.asarray(repaired.get_xdata()).tolist() == [20, 92]
    assert "codes 2.0 to 20.0 dB; peaks 10.0 to 92.0 %" in alt


def test_every_exhibit_has_an_exercise_and_a_symptom():
    assert set(ORDER) == set(EXHIBITS) == set(symptoms.SYMPTOMS)
    assert [e.id for e in EXERCISES] == [f"16.{n}" for n in range(1, 9)]


@pytest.mark.parametrize("name", ["codes", "affine", "linear", "collecting", "folding", "channels"])
def test_a_repair_brings_decibels(name: str):
    exhibit = EXHIBITS[name]
    broken, repaired = (symptoms.symptom(name, p) for p in (exhibit.broken, exhibit.repaired))
    assert repaired > broken + 5


@pytest.mark.parametrize("answer", [None, ("codes",), ("cast before saturate", 3), (1, len)])
def test_what_is_no_diagnosis_is_said(answer):
    result = examine(EXERCISES[0], lambda: answer)
    assert result.status == "failed"
    assert result.failure is not None
    assert result.failure.headline == "this is no diagnosis"
