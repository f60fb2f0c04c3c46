"""Chapter 00's figures: what was plotted, and what the alt text says."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ptq_classroom.chapters.ch00 import figures, five_steps
from ptq_classroom.kit.prediction import Prediction
from ptq_classroom.pictures.classes import CLASS_NAMES
from ptq_classroom.pictures.datasets import Split, to_input


@pytest.fixture(scope="module")
def split() -> Split:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(48).repeat(2)
    images = torch.randint(0, 200, (96, 3, 48, 48), generator=generator, dtype=torch.uint8)
    modes = np.array(["night"] * 3 + ["normal"] * 93)
    return Split(images, labels, modes)


def one_hot(classes: list[int]) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(classes), 48).float()


def shown_image(ax) -> np.ndarray:
    return np.asarray(ax.get_images()[0].get_array())


def test_one_ordinary_picture_of_each_class(split: Split):
    fig, alt = figures.classes(split)
    axes = [ax for ax in fig.axes if ax.get_images()]
    assert len(axes) == 48
    assert [ax.get_title().replace("\n", " ").strip() for ax in axes] == CLASS_NAMES
    place = 48  # the first picture of class 0 that is not a night picture
    np.testing.assert_array_equal(shown_image(axes[0]), split.images[place].permute(1, 2, 0))
    assert "48 classes" in alt
    assert "12 of animal" in alt


def test_prediction_shows_probabilities_of_both_networks(split: Split):
    fp, q = torch.zeros(48), torch.zeros(48)
    fp[10], q[11] = 5.0, 4.0
    fig, alt = figures.prediction(split.images[10], {"FP32": fp, "INT8": q}, truth=10)
    bars = fig.axes[1].containers
    first = [patch.get_width() for patch in bars[0]]
    assert len(first) == len(list(bars[1])) == 4
    assert max(first) == pytest.approx(100 * fp.softmax(0)[10].item())
    assert f"FP32: {CLASS_NAMES[10]} 76 percent" in alt
    assert any("✓" in label.get_text() for label in fig.axes[1].get_yticklabels())


def test_prediction_always_lists_the_truth(split: Split):
    fp = torch.zeros(48)
    fp[20:30] = torch.arange(10.0) + 3
    _, alt = figures.prediction(split.images[0], {"FP32": fp}, truth=0)
    assert f"{CLASS_NAMES[0]} 0 percent" in alt


def test_flipped_names_both_answers_and_who_was_right(split: Split):
    fp, q = one_hot(list(range(48)) * 2), one_hot([1, 1, *range(2, 48), *range(48)])
    fig, alt = figures.flipped(split, fp, q, torch.tensor([0]))
    title = fig.axes[0].get_title()
    assert title == f"FP32 ✓ {CLASS_NAMES[0]}\nINT8 ✗ face with sunglasses"  # shortened to fit
    assert fig.axes[0].title.get_color() == figures.LOST
    assert f"{CLASS_NAMES[0]} to {CLASS_NAMES[1]}" in alt
    back, _ = figures.flipped(split, q, fp, [0])
    assert back.axes[0].title.get_color() == figures.GAINED


def test_what_a_network_sees_is_the_picture_again(split: Split):
    x = to_input(split.images[:3])
    coarse = (x / 2).round() * 2
    fig, alt = figures.seen({"FP32": x, "coarse": coarse}, ["a", "b", "c"])
    first = shown_image(fig.axes[0])
    assert abs(first.astype(int) - split.images[0].permute(1, 2, 0).numpy()).max() <= 1
    assert [ax.get_title(loc="center") for ax in fig.axes] == ["a", "b", "c", "", "", ""]
    assert len(np.unique(shown_image(fig.axes[3]))) == len(coarse[0].unique())
    few = [len(p.unique()) for p in coarse]
    assert f"coarse: {', '.join(f'{k} {n}' for k, n in zip('abc', few, strict=True))}" in alt
    least = few.index(min(few))
    assert alt.startswith(f"A {'abc'[least]} picture of {len(x[least].unique())} different values")
    assert f"keeps {min(few)} in coarse." in alt


def test_beside_a_dark_picture_stands_a_brightened_copy(split: Split):
    images = split.images[:2].clone()
    images[0] //= 8  # an eighth of the byte is a sixty-fourth of the light
    x = to_input(images)
    fig, _ = figures.seen({"FP32": x, "again": x}, ["night", "normal"])
    shown = [shown_image(ax).astype(float) for ax in fig.axes]
    assert len(shown) == 2 * 3  # the second picture has no copy
    assert shown[1].mean() > 3 * shown[0].mean()
    gain = int(fig.axes[1].get_title().split("x")[0])
    np.testing.assert_allclose(shown[1], shown[0] * gain**0.5, atol=gain**0.5)
    np.testing.assert_array_equal(shown[4], shown[1])

    changed = Split(images, split.labels[:2], split.modes[:2])
    wrong = one_hot([int(k + 1) % 48 for k in changed.labels])
    fig, alt = figures.flipped(changed, one_hot(changed.labels.tolist()), wrong, [0, 1])
    assert [ax.get_title().startswith("the same") for ax in fig.axes[:3]] == [False, True, False]
    assert alt.startswith("2 pictures that only FP32 names right, then 0 that only INT8 does; 1 ")


def test_difference_in_points_and_the_guess_at_its_negative():
    rows = {"first": (-0.02, -0.03, -0.01), "second": (0.001, -0.004, 0.006)}
    fig, alt = figures.difference(rows, Prediction("loss", 5.0, "points"))
    (ax,) = fig.axes
    line = ax.containers[0].lines[0]
    np.testing.assert_allclose(line.get_xdata(), [-2.0, 0.1])
    ends = ax.containers[0].lines[2][0].get_segments()
    np.testing.assert_allclose(ends[0][:, 0], [-3.0, -1.0])
    guesses = [ln for ln in ax.lines if list(ln.get_xdata()) == [-5.0, -5.0]]
    assert len(guesses) == 1
    assert ax.get_xlim()[0] < -5
    assert "first -2.0 points, from -3.0 to -1.0" in alt


@pytest.mark.parametrize("guess", [None, 2.0])
def test_scoreboard_draws_three_bars_and_converts_the_guesses(guess: float | None):
    guesses = [Prediction(str(i), guess) for i in range(3)]
    fig, alt = figures.scoreboard(
        {"FP32": 93.0, "INT8": 91.0},
        {"FP32": 1.6, "INT8": 0.4},
        {"FP32": 1.0, "INT8": 1.5, "unguarded": 1.8},
        guesses,
    )
    widths = [[round(p.get_width(), 6) for p in ax.containers[0]] for ax in fig.axes]
    assert widths == [[93.0, 91.0], [1.6, 0.4], [1.0, 1.5, 1.8]]
    drawn = [line.get_xdata()[0] for ax in fig.axes for line in ax.lines]
    assert drawn == ([] if guess is None else [91.0, 0.8, 2.0])
    assert "INT8 ~1.5" in alt  # a tilde before what varies from run to run


@pytest.mark.parametrize("guess", [(1, 8, 4), (4, 3.7, 2.4), (20, 1, 1), (-5, 0.1, 100)])
def test_a_guess_can_be_read_and_crosses_no_value(guess: tuple[float, ...]):
    fig, _ = figures.scoreboard(
        {"FP32": 93.0, "INT8": 89.0},
        {"FP32": 1.56, "INT8": 0.42},
        {"FP32": 1.0, "INT8": 2.4, "unguarded": 2.5},
        [Prediction(str(i), g) for i, g in enumerate(guess)],
    )
    fig.canvas.draw()
    for ax in fig.axes:
        (said,) = [t for t in ax.texts if t.get_text() == "your guess"]
        assert said.get_window_extent().y0 > ax.bbox.y1  # above the bars, not on them
        assert not said.get_window_extent().overlaps(ax.title.get_window_extent())
        assert not said.get_window_extent().overlaps(ax._left_title.get_window_extent())
        values = [t for t in ax.texts if t is not said]
        assert len(values) == len(ax.containers[0])
        line = ax.transData.transform((ax.lines[0].get_xdata()[0], 0))[0]
        for box in (t.get_window_extent() for t in values):
            assert not box.x0 <= line <= box.x1


def test_the_class_above_the_picture_is_not_cut_off(split: Split):
    fig, _ = figures.prediction(split.images[0], {"FP32": torch.arange(48.0)}, truth=0)
    fig.canvas.draw()
    assert fig.axes[0].title.get_window_extent().y1 <= fig.bbox.y1


def test_fewer_bits_plots_what_it_says():
    rows = {"simple": (92.0, 2.5), "better": (92.5, 89.0)}
    fig, alt = figures.fewer_bits((8, 4), rows, 93.0)
    np.testing.assert_array_equal(fig.axes[0].lines[0].get_ydata(), [92.0, 2.5])
    np.testing.assert_array_equal(fig.axes[0].lines[1].get_ydata(), [92.5, 89.0])
    assert [t.get_text() for t in fig.axes[0].get_xticklabels()] == ["8", "4"]
    assert "simple: 8 bits 92.0, 4 bits 2.5; better: 8 bits 92.5, 4 bits 89.0. FP32 93.0" in alt


def test_the_five_steps_show_real_pictures_and_cut_the_rare():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (9, 3, 48, 48), dtype=np.uint8)
    values = np.append(rng.exponential(1.0, 10_000), 50.0)
    fig, alt = five_steps.five_steps(images, values)
    assert len(fig.axes) == 5
    assert [ax.get_title(loc="center")[0] for ax in fig.axes] == list("12345")
    wall = shown_image(fig.axes[1])
    np.testing.assert_array_equal(wall[3:51, 3:51], images[0].transpose(1, 2, 0))
    assert "10,001 activations" in alt
    assert "the largest is 50" in alt
    assert alt.index("prepare") < alt.index("calibrate") < alt.index("validate")
