"""Chapter 16: the figure's arrays, every exhibit's symptom, what is refused as a diagnosis."""

from __future__ import annotations

import numpy as np
import pytest

from ptq_classroom.chapters.ch16 import figures, symptoms
from ptq_classroom.chapters.ch16.exercises import EXERCISES, ORDER
from ptq_classroom.chapters.ch16.museum import EXHIBITS
from ptq_classroom.kit.examine import examine
from ptq_course.grids.metrics import paired_bootstrap


def test_the_figure_goes_from_broken_to_repaired():
    """Percent and decibels have an axis each; one that has no exhibit is not drawn."""
    codes, peaks = (2.0, 20.0, "dB"), (10.0, 92.0, "%")
    fig, alt = figures.symptoms({"codes": codes, "peaks": peaks})
    drawn = [[np.asarray(line.get_xdata()).tolist() for line in ax.lines] for ax in fig.axes]
    assert drawn == [[[10], [92]], [[2], [20]]]
    assert ["%" in ax.get_xlabel() for ax in fig.axes] == [True, False]
    assert len(figures.symptoms({"codes": codes})[0].axes) == 1
    assert "codes 2.0 to 20.0 dB; peaks 10.0 to 92.0 %" in alt


def test_every_exhibit_has_an_exercise_and_a_symptom():
    assert set(ORDER) == set(EXHIBITS) == set(symptoms.SYMPTOMS)
    assert [e.id for e in EXERCISES] == [f"16.{n}" for n in range(1, 10)]
    names = [e.function.removeprefix("diagnose_") for e in EXERCISES[:-1]]
    assert names == list(ORDER)


def test_one_repair_of_two_is_not_enough():
    none, ranges, peaks, both = (
        symptoms.released(*repairs)
        for repairs in ((), ("ranges",), ("peaks",), ("ranges", "peaks"))
    )
    for worse in (none, ranges, peaks):
        assert paired_bootstrap(worse, both)[1] > 0.1
    assert both.equal(
        symptoms.right(
            symptoms.with_rounded_inputs(
                EXHIBITS["peaks"].repaired(symptoms.net(), list(symptoms.batches()))
            )
        )
    )


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
