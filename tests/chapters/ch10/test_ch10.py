"""Figures, widths and widget of chapter 10, and what the exercises say against the course."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from ptq_classroom.chapters.ch10 import figures, widget, widths
from ptq_classroom.chapters.ch10.exercises import greedy, iou, one_at_a_time
from ptq_classroom.pictures import boxes
from ptq_classroom.pictures.average_precision import draws, f1_by_scene, match
from ptq_classroom.pictures.boxes import Detections
from ptq_classroom.pictures.detection import DETECTED, load_scenes
from ptq_course.diagnosis.allocation import Option, path, total
from ptq_course.grids.affine import IntGrid
from ptq_course.simulation.layers import weight_qparams


@pytest.fixture(scope="module")
def net():
    return widths.folded()


@pytest.fixture(scope="module")
def scenes():
    return load_scenes("scenes_test")[:20]


def found_in(scenes, shift=0.0, score=0.9):
    """Detections that are the objects themselves, moved by so many pixels."""
    count = len(scenes.labels)
    return Detections(
        scenes.boxes + shift, torch.full((count,), score), scenes.labels, scenes.scene, len(scenes)
    )


def test_boxes_are_drawn_and_counted(scenes):
    fig, alt = figures.boxes(scenes, {"a": found_in(scenes), "b": found_in(scenes, score=0.1)}, [3])
    objects = len(scenes.objects(3)[1])
    assert len(fig.axes[0].patches) == 2 * objects  # white on black
    assert len(fig.axes[1].patches) == 0
    assert f"a {objects} of {objects}; b 0 of {objects}" in alt
    assert alt.endswith("Scores: a 0.90 to 0.90.")
    assert fig.axes[0].texts[0].get_text() == f"{DETECTED[scenes.objects(3)[1][0]]} 0.90"


def test_precision_over_recall():
    fig, alt = figures.precision_recall([True, False, True], 4, "frog", 0.4)
    line = fig.axes[0].lines[0]
    assert np.asarray(line.get_xdata()) == pytest.approx([0.25, 0.25, 0.5])
    assert np.asarray(line.get_ydata()) == pytest.approx([1, 0.5, 2 / 3])
    assert "average precision 0.40" in alt


def test_one_grid_counts_the_levels():
    before = torch.linspace(0, 1, 50)
    after = (before / 0.4).round() * 0.4
    fig, alt = figures.one_grid(before, after, 0.4)
    assert len(fig.axes[1].get_yticks()) == 3
    assert "3 values, 0.00, 0.40, 0.80" in alt


def test_changes_are_in_points():
    fig, alt = figures.changes({"a": (-0.02, -0.03, -0.01)})
    assert fig.axes[0].lines[0].get_xdata() == pytest.approx([-2])
    assert "a -2.0 (-3.0 to -1.0)" in alt


def test_sweeps_name_the_largest():
    fig, alt = figures.sweeps({"lost": {"a": 0.1, "b": -1e-6}, "won": {"a": 0.05, "b": 0.2}})
    widths_ = [
        bar.get_path().get_extents(bar.get_patch_transform()).width for bar in fig.axes[1].patches
    ]
    assert widths_ == pytest.approx([5, 20])
    assert "lost: a 10.0, b 0.0; won: b 20.0" in alt
    assert "-0.0" not in alt + "".join(text.get_text() for text in fig.axes[0].texts)


def test_pareto_draws_the_path_and_the_others():
    fig, alt = figures.pareto({"x": (1e5, 0.5), "y": (1.3e5, 0.9)}, {"z": (3e5, 0.95)})
    assert np.asarray(fig.axes[0].lines[0].get_ydata()).tolist() == [50, 90]
    assert "x with 100 kB and 50.0 % to y with 130 kB" in alt
    assert "z 300 kB 95.0 %" in alt


def test_rounding_is_the_quantizers(net):
    layer = widths.layers(net)["head"]
    for name, per_channel in (("per_tensor", False), ("per_channel", True)):
        qparams = weight_qparams(layer, IntGrid(4, narrow=True), name)
        rounded = widths.rounded(layer.weight.detach(), 4, per_channel)
        codes = rounded / qparams.scale.reshape(-1, *[1] * (3 if per_channel else 0))
        assert (codes - codes.round()).abs().max() < 1e-4
        assert codes.abs().max() == pytest.approx(7)


def test_with_widths_leaves_the_network_alone(net):
    before = {name: value.clone() for name, value in net.state_dict().items()}
    bits = {"head": 16, "stem.0": 4}
    other = widths.with_widths(net, bits)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    weight = widths.layers(other)["head"].weight
    assert torch.equal(weight, before["head.weight"].half().float())
    assert len(widths.layers(other)["stem.0"].weight.unique()) <= 15
    everything = sum(layer.weight.numel() for layer in widths.layers(net).values())
    assert widths.file_bytes(net, {}) == 4 * everything
    assert widths.file_bytes(net, bits) == (
        4 * everything - 2 * 816 - (4 * 2592 - 2592 // 2 - widths.SCALE_BYTES)
    )


def test_the_widget_spends_what_it_is_given():
    picture = widget.Budget()
    for budget in (0, 2, 14):
        readout, alt = picture.frame(budget)
        plan = picture.plans[budget]
        assert plan.bytes <= picture.plans[0].bytes + 1000 * budget
        assert [bar.get_width() == 16 for bar in picture.bars] == [
            name in plan.wide for name in picture.layers
        ]
        assert f"{100 * plan.score:.1f}" in readout
        assert f"{budget} kB" in alt
    assert picture.plans[2].wide == ("head",)
    assert picture.plans[2].score > picture.plans[0].score + 0.1
    assert list(picture.dot.get_xdata()) == [14]
    assert picture.frame(3)[0] == picture.frame(2)[0], "between two steps: the nearest"


def test_the_exercise_and_the_course_agree_on_overlap():
    low = 20 * torch.rand(30, 2, generator=torch.Generator().manual_seed(0))
    made = torch.cat([low, low + 5], 1)
    assert torch.allclose(iou(made[:15], made[15:]), boxes.iou(made[:15], made[15:]))


def test_greedy_is_on_the_courses_way_where_everything_fits_in_turn():
    losses, extra = {"a": 5.0, "b": 1.0, "c": 3.0}, {"a": 10, "b": 10, "c": 2}
    options = {n: {16: Option(extra[n], 0.0), 4: Option(0, losses[n])} for n in losses}
    for widths_ in path(options):
        wide = {name for name, bits in widths_.items() if bits == 16}
        assert set(greedy(losses, extra, total(options, widths_).bytes)) == wide


def test_one_at_a_time_puts_every_weight_back():
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    before = [parameter.clone() for parameter in net.parameters()]
    lost = one_at_a_time(net, lambda model: -model(torch.ones(1, 4)).square().sum().item())
    assert list(lost) == ["0", "2"]
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


def test_f1_counts_right_wrong_and_missing(scenes):
    assert f1_by_scene(found_in(scenes), scenes).tolist() == [1.0] * len(scenes)
    assert f1_by_scene(found_in(scenes, shift=90.0), scenes).max() == 0
    assert f1_by_scene(found_in(scenes, score=0.1), scenes).max() == 0
    one = scenes.scene == 0
    half = Detections(
        scenes.boxes[one][:1], torch.ones(1), scenes.labels[one][:1], torch.zeros(1).long(),
        len(scenes),
    )  # fmt: skip
    assert f1_by_scene(half, scenes)[0] == pytest.approx(2 / (1 + int(one.sum())))


def test_draws_of_two_networks_belong_together(scenes):
    good = match(found_in(scenes), scenes, (0.5,))
    assert draws(good, 20).tolist() == pytest.approx([1.0] * 20)
    worse = match(found_in(scenes, shift=3.0), scenes, (0.5,))
    assert np.array_equal(draws(worse, 20), draws(worse, 20))
    assert not np.array_equal(draws(worse, 20), draws(worse, 20, seed=1))
