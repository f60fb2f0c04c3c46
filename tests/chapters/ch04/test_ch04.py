"""Figures, widget and the table of operations of chapter 04."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from torch import nn

from ptq_classroom.chapters.ch04 import figures, widget
from ptq_classroom.chapters.ch04.exercises import BRANCH, CHAIN, TWO_RELUS, qdq_pairs, suspects
from ptq_classroom.chapters.ch04.figures import operations, places, readers
from ptq_classroom.chapters.ch04.rounding import observe_values, round_values
from ptq_classroom.kit import exercises
from ptq_classroom.kit.examine import examine
from ptq_classroom.pictures.models import load_model
from ptq_course.graph import plan, trace
from ptq_course.graph.fusion import fuse

MERGE = ("bn", "relu")


@pytest.fixture(scope="module", params=["resnet", "mobilenet"])
def traced(request: pytest.FixtureRequest):
    return trace(load_model(request.param))


def test_the_table_has_every_operation_but_identities(traced):
    ops = operations(traced)
    convolutions = sum(isinstance(m, nn.Conv2d) for m in traced.modules())
    kinds = [kind for kind, _ in ops.values()]
    assert kinds.count("conv") == kinds.count("bn") == convolutions
    assert all(source in ops for _, inputs in ops.values() for source in inputs)


def test_the_exercise_counts_the_places_of_the_plan(traced):
    fused = fuse(traced)
    planned = places(plan(fused))
    assert len(planned) == len(set(planned)) == qdq_pairs(operations(traced), MERGE)
    assert set(planned) <= set(operations(fused))


def test_an_unknown_kind_is_named():
    with pytest.raises(KeyError, match="Tanh"):
        operations(trace(nn.Sequential(nn.Conv2d(3, 3, 1), nn.Tanh())))


def test_two_readers_that_would_merge_do_not():
    assert qdq_pairs(TWO_RELUS, MERGE) == 5
    wrong = exercises.get("04.2").diagnoses
    counts = {cause: fn(TWO_RELUS, MERGE) for fn, cause in wrong}
    assert counts["two ReLUs read it: neither reads it alone, so neither merges"] == 4


@pytest.mark.parametrize("kind", [list, tuple, set, np.array, iter, dict.fromkeys])
def test_any_collection_of_names_is_accepted(kind):
    assert examine(exercises.get("04.3"), lambda m: kind(suspects(m))).status == "passed"


@pytest.mark.parametrize("kind", [" ".join, len, lambda names: [n.encode() for n in names]])
def test_something_else_than_names_is_said(kind):
    failure = examine(exercises.get("04.3"), lambda m: kind(suspects(m))).failure
    assert failure.headline == "suspects should return a list of names"


def test_only_rounded_values_change_the_output():
    traced = trace(load_model("resnet"))
    x = torch.randn(4, 3, 48, 48, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        plain = traced(x)
        assert torch.equal(round_values(traced, {}, 8)(x), plain)
        calibrators = observe_values(traced, ["relu"], x)
        fine, coarse = (round_values(traced, calibrators, bits)(x) - plain for bits in (8, 3))
    assert 0 < fine.abs().max() < coarse.abs().max()


def test_groups_join_only_what_alone_reads_the_value():
    assert figures.groups(CHAIN, MERGE) == {
        "x": ["x"],
        "relu1": ["conv1", "bn1", "relu1"],
        "conv2": ["conv2"],
    }
    assert figures.groups(BRANCH, MERGE)["conv1"] == ["conv1"]
    assert readers(BRANCH, "conv1") == ["relu1", "add"]


def test_the_diagram_draws_a_box_for_each_group_and_a_dot_for_each_pair():
    ops = operations(trace(load_model("resnet")))
    fig, alt = figures.block_diagram(ops, "layer1_relu2", "layer2_relu2", MERGE)
    assert [len(ax.patches) for ax in fig.axes] == [10, 5]
    dots = [sum(line.get_marker() == "o" for line in ax.lines) for ax in fig.axes]
    assert dots == [10, 5 + 2]  # two stand in the legend
    tints = [[line.get_color() for line in ax.lines if line.get_marker() == "o"] for ax in fig.axes]
    assert [t.count(figures.GREY) for t in tints] == [1, 1 + 1]  # what comes in, and its legend
    assert "after fusion a Q/DQ pair below each of conv1 + bn1 + relu1, conv2 + bn2" in alt


def test_the_diagram_does_not_give_the_count_away():
    ops = operations(trace(load_model("resnet")))
    fig, alt = figures.block_diagram(ops, "layer1_relu2", "layer2_relu2", MERGE)
    titles = [ax.get_title() + ax.get_title(loc="left") for ax in fig.axes]
    assert titles == ["before fusion", "after fusion"]
    assert not re.search(r"\d+ (boxes|Q/DQ)", alt)


def test_spread_of_layers_plots_both_ratios():
    fig, alt = figures.spread_of_layers({"net": {"a": (2.0, 9.0), "b": (3.0, 3.2)}})
    before, after = fig.axes[0].lines[:2]
    assert list(before.get_xdata()) == [2.0, 3.0]
    assert list(after.get_xdata()) == [9.0, 3.2]
    assert "1 of 2 layers grows by more than a tenth, most of all that of a, from 2.0 to 9.0" in alt


def test_channel_ranges_are_relative_to_the_median():
    fig, alt = figures.channel_ranges([1, 2, 3], [10, 5, 1], "conv")
    assert [bar.get_height() for bar in fig.axes[0].patches] == pytest.approx([0.2, 1.0, 2.0])
    assert "between 0.2 and 2 times" in alt


def test_by_batch_size_and_gamma():
    fig, alt = figures.by_batch_size([1, 8], [20.0, 90.0], [95.0, 95.0])
    assert [list(line.get_ydata()) for line in fig.axes[0].lines] == [[95, 95], [20, 90]]
    assert "20 percent with 1 in a batch, 90 with 8" in alt
    gamma, beta = torch.tensor([-1.0, 2.0, 3.0]), torch.tensor([0.0, 1.0, 2.0])
    fig, alt = figures.told_by_gamma(gamma, torch.tensor([1.0, 2.0, 3.0]), beta, -beta)
    assert list(fig.axes[0].lines[1].get_xdata()) == [1.0, 2.0, 3.0]
    assert "|gamma|, correlation 1.00" in alt
    assert "beta, correlation -1.00" in alt


@pytest.fixture(scope="module")
def picture():
    return widget.GammaOverSigma()


def heights(picture: widget.GammaOverSigma) -> np.ndarray:
    return np.array([bar.get_height() for bar in picture.bars])


def test_a_loud_channel_costs_the_others_and_not_itself(picture):
    picture.frame(ratio=1.0, bits=5, scales=widget.SHARED)
    even = heights(picture)
    picture.frame(ratio=8.0, bits=5, scales=widget.SHARED)
    loud = heights(picture)
    others = np.arange(widget.CHANNELS) != widget.LOUD
    assert (loud[others] < even[others] - 8).all()
    assert loud[widget.LOUD] == pytest.approx(even[widget.LOUD], abs=1e-3)


def test_own_scales_make_the_ratio_irrelevant(picture):
    picture.frame(ratio=1.0, bits=5, scales=widget.OWN)
    before = heights(picture)
    readout, alt = picture.frame(ratio=40.0, bits=5, scales=widget.OWN)
    assert heights(picture) == pytest.approx(before, abs=1e-3)
    assert "reaches ±40" in readout
    assert widget.OWN in alt
    assert picture.reach.get_text() == "axis cut: up to ±40"
    w = widget.folded(40.0)[widget.LOUD]
    assert picture.up.get_visible() == bool(w.max() > widget.VIEW)
    assert picture.down.get_visible() == bool(w.min() < -widget.VIEW)


def test_marks_are_the_values_of_codes(picture):
    picture.frame(ratio=4.0, bits=4, scales=widget.SHARED)
    levels = {round(segment[0][1], 4) for segment in picture.ticks.get_segments()}
    assert levels == {round(k * 4 / 7, 4) for k in (-2, -1, 0, 1, 2)}
    rounded = np.unique(np.round(picture.moved.get_ydata(), 4))
    assert np.allclose(rounded * 7 / 4, np.round(rounded * 7 / 4), atol=1e-3)


def test_the_explorer_answers_to_its_controls():
    explorer = widget.explorer()
    first = explorer.set(ratio=20.0, bits=5, scales=widget.SHARED)
    assert explorer.set(scales=widget.OWN) != first
