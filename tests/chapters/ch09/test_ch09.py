"""Figures and widget of chapter 09: the plotted arrays and the pure frame."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest
import torch

from ptq_classroom.chapters.ch09 import figures, shift_figures, trials, widget
from ptq_classroom.kit.prediction import Prediction
from ptq_classroom.pictures.camera import MEAN, STD
from ptq_classroom.pictures.datasets import Split
from ptq_course.errors import QuantizationError
from ptq_course.ranges.summaries import MinMax

SIZES = (1, 10, 100)


def test_pictures_carry_their_titles():
    images = torch.stack([torch.zeros(3, 8, 8), torch.full((3, 8, 8), 200.0)]).to(torch.uint8)
    fig, alt = figures.pictures(images, ["night, 0.1", "flash, 136"])
    assert [ax.get_title(loc="center") for ax in fig.axes] == ["night, 0.1", "flash, 136"]
    assert "night, 0.1 (mean byte 0)" in alt
    assert "flash, 136 (mean byte 200)" in alt


def test_coverage_draws_the_median_and_most_of_the_draws():
    highs = np.array([[1.0, 10.0, 100.0], [3.0, 30.0, 100.0], [2.0, 20.0, 100.0]])
    clipped = np.array([[9.0, 1.0, 0.0], [3.0, 0.0, 0.0], [6.0, 0.5, 0.0]])
    fig, alt = figures.coverage(SIZES, highs, clipped)
    (left,), (right,) = (ax.lines for ax in fig.axes)
    assert list(left.get_ydata()) == [2, 20, 100]
    assert list(right.get_ydata()) == [6, 0.5, 0]
    band = fig.axes[0].collections[0].get_paths()[0].vertices[:, 1]
    assert band.min() == pytest.approx(1.1)  # 5 % of the way from 1 to 3, by linear quantiles
    assert "median 2 with 1 picture, 100 with 100" in alt


def test_missing_draws_the_law_and_what_was_found():
    fig, alt = figures.missing(SIZES, {"flash": [0.97, 0.8, 0.1]}, {"flash": 0.025})
    law, marks = fig.axes[0].lines[:2]
    assert law.get_ydata()[0] == pytest.approx(97.5)
    assert law.get_ydata()[-1] == pytest.approx(100 * 0.975**100)
    assert list(marks.get_ydata()) == pytest.approx([97, 80, 10])
    assert "for sets of 1, 10, 100: flash, 2.5 percent of the pictures: 97.0, 80.0, 10.0" in alt
    assert alt.startswith(
        "At none of these sizes is the chance to miss each mode at most 5 percent"
    )
    _, alt = figures.missing(SIZES, {"flash": [0.97, 0.05, 0.0]}, {"flash": 0.2})
    assert alt.startswith("Sets of 10 pictures miss each mode with a chance of at most 5 percent")


def by_samples(**kwargs):
    values = np.array([[80.0, 92.0, 90.0], [90.0, 94.0, np.nan]])
    accuracy = {rule: {"all": values - i, "night": values - 30} for i, rule in enumerate("ab")}
    return figures.by_samples(SIZES, accuracy, {"all": 93.5, "night": 70.0}, **kwargs)


def test_by_samples_draws_means_and_the_worst_and_best_draw():
    fig, alt = by_samples()
    titles = [ax.get_title(loc="left") for ax in fig.axes]
    assert titles == ["all, a", "all, b", "night, a", "night, b"]
    (bars,) = fig.axes[0].containers  # whiskers of one rule in each panel: none cross
    assert bars.get_label() == "a"
    line, _, (stems,) = bars
    assert list(line.get_ydata()) == [85, 93, 90]
    assert [list(segment[:, 1]) for segment in stems.get_segments()] == [
        [80, 90],
        [92, 94],
        [90, 90],
    ]
    np.testing.assert_array_equal(fig.axes[0].lines[-2].get_ydata(), [84, 92, 89])  # pale
    assert "mean of 2 orders; bars: worst to best" in fig.get_suptitle()
    assert "night: a 55.0, 63.0, 60.0, b 55.0, 63.0, 60.0" in alt
    assert "falls by 3.0 points from its best size" in alt


def test_by_samples_draws_the_guesses_that_were_made():
    before = len(by_samples()[0].axes[0].lines)
    guesses = {1: Prediction("09.0 (1)", 88.0, "%"), 10: Prediction("09.0 (10)", None, "%")}
    fig, _ = by_samples(guesses=guesses)
    drawn = fig.axes[0].lines[before:]
    assert [(*line.get_xdata(), *line.get_ydata()) for line in drawn] == [(1, 88.0)]


def test_losses_writes_every_number_into_its_cell():
    lost = [[0.5, 30.0], [-2.0, 3.25]]
    fig, alt = shift_figures.losses(["ours", "noise"], {"all": ["KL"], "flash": ["KL"]}, lost)
    cells = {t.get_position(): t.get_text() for t in fig.axes[0].texts}
    assert [cells[0, 0], cells[1, 0], cells[0, 1], cells[1, 1]] == ["0.5", "30.0", "-2.0", "3.2"]
    assert np.asarray(fig.axes[0].images[0].get_array()).tolist() == [[0.5, 30.0], [0.0, 3.25]]
    assert "The largest in each row: ours 30.0, noise 3.2" in alt
    assert alt.startswith("Most is lost with ")


def test_noticed_sets_the_monitor_beside_the_cost():
    lost = {
        "minmax": {"standard": (0.02, -0.01, 0.05), "dark": (0.22, 0.15, 0.28)},
        "percentile": {"standard": (0.01, 0.005, 0.02), "dark": (-0.02, -0.04, 0.01)},
    }
    clipped = {"minmax": [0, 0], "percentile": [0.1, 0.01]}
    fig, alt = shift_figures.noticed(["standard", "dark"], clipped, lost)
    widths = [[bar.get_width() for bar in ax.patches] for ax in fig.axes]
    assert widths == [[0, 0, 0.1, 0.01], pytest.approx([2, 22, 1, -2])]
    drawn = [[s[:, 0].tolist() for s in c.get_segments()] for c in fig.axes[1].collections]
    assert np.array(drawn) == pytest.approx(np.array([[[-1, 5], [15, 28]], [[0.5, 2], [-4, 1]]]))
    said = "dark with min-max: 0.00 percent clipped and 22.0 points lost (from 15.0 to 28.0)"
    assert alt.startswith(f"Most is lost on {said}. Most is clipped on standard with percentile")
    assert alt.endswith("2 of 4 intervals of the loss lie above 0.")
    assert {t.get_text() for t in fig.axes[1].texts} >= {
        "min-max (plain)",
        "percentile (hatched)",
        "+22.0",
        "-2.0",
    }


def explorer():
    live = {"standard": np.linspace(-1, 3, 1000), "flash": np.linspace(-1, 100, 1000)}
    measured = {
        (rule, shift): widget.Measured([1, 10, top], [5.0, 1.0, 0.5], [60.0, 90.0, 80.0 - top / 10])
        for rule, top in (("minmax", 100), ("percentile", 30))
        for shift in live
    }
    return widget.explorer(SIZES, live, {"standard": 93.0, "flash": 60.0}, measured)


@pytest.fixture(scope="module")
def shown():
    return explorer()


def test_the_frame_shows_what_was_measured(shown):
    readout, alt = shown.set(samples=100, shift="flash", rule="minmax")
    assert "min-max from 100 pictures" in readout
    assert "the min-max range of 100" in alt
    assert "on flash pictures 0.50 % of the input values clipped" in readout
    assert "top-1 70.0 % (FP32 60.0 %)" in readout
    assert "0.50 percent of the values" in alt
    figure = shown.artists
    light = 100 * STD + MEAN
    assert list(figure.edge.get_xdata()) == pytest.approx([light] * 2)
    assert figure.kept.get_x() + figure.kept.get_width() == pytest.approx(light)
    title = figure.top.get_title(loc="left") or figure.top.get_title()
    assert title == "flash live pictures, min-max from 100 pictures"
    assert (list(figure.here.get_xdata()), list(figure.here.get_ydata())) == ([100], [70.0])
    assert list(figure.reference.get_ydata()) == [60.0, 60.0]


def test_there_is_a_position_for_each_size_that_was_measured(shown):
    assert shown.controls["samples"].options == SIZES
    readout, _ = shown.set(samples=SIZES[0], shift="standard", rule="percentile")
    assert f"percentile from {SIZES[0]} picture" in readout


def test_live_pictures_change_with_the_shift(shown):
    shown.set(shift="standard")
    standard = shown.artists.live.get_data().values.copy()
    shown.set(shift="flash")
    flash = shown.artists.live.get_data().values
    bright = widget.EDGES[:-1] > 3
    assert flash[bright].sum() > 50 > 1 > standard[bright].sum()
    assert standard.sum() == pytest.approx(100, abs=0.1)


def test_a_measurement_that_is_missing_is_named():
    measured = {("minmax", "standard"): widget.Measured([1], [1], [1])}
    with pytest.raises(QuantizationError, match=r"missing: .*'minmax', 'dark'"):
        widget.SamplesAndShift(
            (1,), {"standard": [0.0], "dark": [0.0]}, {"standard": 1.0, "dark": 1.0}, measured
        )


def test_the_examples_are_of_every_kind():
    modes = np.array(["normal"] * 3 + ["flash"] * 4 + ["night"] * 3)
    peaks = np.array([150.0, 3.0, 20.0, 90.0, 136.0, 99.0, 1.0, 0.1, 0.2, 0.3])
    images = torch.full((10, 3, 8, 8), 120, dtype=torch.uint8)
    images[8] = 30  # dark: a copy stands beside it
    split = Split(images, torch.zeros(10), modes)
    fig, alt = figures.examples(split, peaks)
    titles = [ax.get_title(loc="center") for ax in fig.axes]
    assert titles == [
        "flash, 90", "flash, 136", "flash, 99", "normal, 150", "normal, 3",
        "night, 0.1", "night, 0.2", "33x the light",
    ]  # fmt: skip
    assert alt.startswith("The largest value is 150 in a normal picture, and only 0.1 in a night")


@pytest.fixture(scope="module")
def exam() -> trials.Exam:
    modes = np.array(["normal"] * 1100)
    modes[[5, 1050]], modes[1060] = "night", "flash"
    images = torch.zeros(1100, 3, 4, 4, dtype=torch.uint8)
    images[:, 0] = torch.arange(1100)[:, None, None] % 2 * 200
    return trials.Exam(Split(images, torch.arange(1100) % 2, modes))


def test_the_exam_asks_a_thousand_and_every_rare_picture(exam: trials.Exam):
    counts = {kind: int(mask.sum()) for kind, mask in exam.groups.items()}
    assert counts == {"all pictures": 1000, "night": 2, "flash": 1}
    right = exam.answers(lambda x: torch.stack([-x[:, 0, 0, 0], x[:, 0, 0, 0]], 1))
    assert right.shape == (1002,)
    assert exam.accuracy(right) == 100
    wrong = right.clone()
    wrong[:250] = 0
    assert exam.accuracy(wrong) == 75
    assert exam.change(right, wrong)[0] == -0.25
    assert exam.change(right, wrong, "night")[0] == -0.5


def test_the_table_has_a_place_for_each_order_and_size(exam: trials.Exam):
    full, none = torch.ones(1002), torch.zeros(1002)
    right = {("kl", 0, 1): full, ("kl", 1, 1): none, ("kl", 0, 10): none}
    found = trials.table(exam, right, ("kl",), (1, 10))["kl"]["flash"]
    np.testing.assert_array_equal(found, [[100, 0], [0, np.nan]])


def test_coverage_and_missed_agree_with_counting():
    values = np.arange(10.0)
    singles = [MinMax() for _ in values]
    for single, value in zip(singles, values, strict=True):
        single.update(torch.tensor([value]))

    def summary_of(pictures):
        merged = MinMax()
        for i in pictures:
            merged.merge(singles[i])
        return merged

    rng = np.random.default_rng(0)
    live = torch.tensor([1.0, 20.0, 30.0, 2.0])
    highs, clipped = trials.coverage(summary_of, live, (10,), rng, draws=3, pictures=10)
    assert highs.tolist() == [[9.0]] * 3
    assert clipped.tolist() == [[50.0]] * 3
    assert trials.missed(values > 8, (1, 10), rng) == [pytest.approx(0.9, abs=0.05), 0.0]


def test_an_election_flatters_its_winner():
    rng = np.random.default_rng(0)
    equals = torch.from_numpy(rng.random((20, 1000)) < 0.9).double()
    lead, later = trials.election(equals, 100, rng)
    assert lead > later + 2
    assert abs(later) < 1


def test_sets_are_sorted_by_whether_they_met_a_large_value():
    class Marks:
        def accuracy(self, right: float) -> float:
            return right

    large = np.zeros(20, bool)
    large[4] = True
    places = [int(np.flatnonzero(np.random.default_rng(d).permutation(20) == 4)[0]) for d in (0, 1)]
    right: Any = {
        ("minmax", draw, size): float(100 * draw + size) for draw in (0, 1) for size in (1, 3, 20)
    }
    right["kl", 0, 20] = -1.0
    met, free, first = trials.by_what_they_met(cast(trials.Exam, Marks()), right, large)
    assert first == [place + 1 for place in places]
    assert sorted(met + free) == [3.0, 20.0, 103.0, 120.0]
    assert {20.0, 120.0} <= set(met), "the whole set holds it"
    assert (3.0 in met) == (places[0] < 3)
    assert (103.0 in met) == (places[1] < 3)
