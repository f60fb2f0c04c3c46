"""The style, `show` with its alt text, and the common pieces (plotted arrays, not pixels)."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from ptq_classroom.kit import pieces
from ptq_classroom.kit import show as base


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list:
    """What was displayed, as (data, metadata), in the lab: no variable says otherwise."""
    import IPython.display

    calls: list = []

    def display(data, *, metadata, raw):
        assert raw is True
        calls.append((data, metadata))

    monkeypatch.setattr(IPython.display, "display", display)
    monkeypatch.delenv("PTQ_FIGURES", raising=False)
    return calls


def falling() -> base.Figure:
    fig, ax = base.figure(4, 2)
    ax.plot([0, 1], [1, 0])
    return fig


def size_of(picture: str) -> tuple[int, int]:
    return Image.open(io.BytesIO(base64.b64decode(picture))).size


def test_in_the_lab_a_figure_is_html_that_carries_its_alt_text(shown: list):
    base.show(falling(), 'a "falling" line & more')
    ((data, metadata),) = shown
    assert sorted(data) == ["text/html", "text/plain"]
    assert data["text/plain"] == 'a "falling" line & more'
    assert 'alt="a &quot;falling&quot; line &amp; more"' in data["text/html"]
    assert "max-width:100%" in data["text/html"]
    assert size_of(re.search(r"base64,([^\"]+)", data["text/html"]).group(1)) == (576, 288)
    assert 'width="400"' in data["text/html"]  # 144 dots where a page has 100
    assert metadata == {}


def test_for_a_page_a_figure_is_a_picture_with_its_alt_text_beside_it(
    shown: list, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PTQ_FIGURES", "png")
    base.show(falling(), 'a "falling" line & more')
    ((data, metadata),) = shown
    assert sorted(data) == ["image/png", "text/plain"]
    assert metadata == {"image/png": {"alt": data["text/plain"], "width": 400}}
    assert data["text/plain"] == 'a "falling" line & more'
    assert size_of(data["image/png"]) == (576, 288)


def test_show_needs_an_alt_text(shown: list):
    with pytest.raises(ValueError, match="alt text"):
        base.show(base.figure()[0], " ")
    assert shown == []


def test_show_closes_a_pyplot_figure(shown: list):
    import matplotlib.pyplot as plt

    fig = plt.figure()
    base.show(fig, "empty")
    assert not plt.fignum_exists(fig.number)


def test_the_same_figure_gives_the_same_bytes():
    def draw() -> bytes:
        fig, ax = base.figure()
        ax.plot([1, 2, 3], **base.color(1))
        return base.png(fig)

    assert draw() == draw()


def test_series_differ_in_colour_and_line():
    styles = [base.color(i) for i in range(6)]
    assert len({s["color"] for s in styles}) == 6
    assert len({str(s["linestyle"]) for s in styles}) == 6


def test_colours_are_petroff10():
    import matplotlib.style

    library = matplotlib.style.library.get("petroff10")
    if library is None:
        pytest.skip("this Matplotlib has no petroff10")
    cycle = [c["color"] for c in library["axes.prop_cycle"]]
    assert [c.lower() for c in cycle] == list(base.COLORS)


def test_describe_curve():
    text = base.describe_curve([1, 2, 3], [5.0, np.nan, 2.0], "bits", "error (dB)", {"best": 3})
    assert text.startswith("Curve of error (dB) over bits from 1 to 3: starts at 5, ends at 2")
    assert text.endswith("best at 3.")


def test_describe_histogram_counts_what_is_outside():
    text = base.describe_histogram([1, 2, 1], [0, 1, 2, 3], "x", low=0.0, high=2.0)
    assert "from 0 to 3" in text
    assert "highest between 1 and 2" in text
    assert "leaves 25 percent outside" in text
    assert base.describe_bars(["a", "b"], [1, 2.5], "MB") == "Bars of MB: a 1, b 2.5."


def test_histogram_and_band():
    _, ax = base.figure()
    x = np.linspace(-1, 1, 1001)
    counts, edges = pieces.histogram(ax, x, bins=10, low=-0.5, high=0.5, label="value (V)")
    assert counts.sum() == 1001
    stairs = ax.patches[0].get_data()
    assert np.array_equal(stairs.values, counts)
    assert np.array_equal(stairs.edges, edges)
    assert [line.get_xdata()[0] for line in ax.lines] == [-0.5, 0.5]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("value (V)", "count")


def test_number_line_moves_values_to_the_nearest_level():
    _, ax = base.figure()
    values, nearest = pieces.number_line(ax, [-1, 0, 1], [0.4, 7.0, -0.6])
    assert nearest.tolist() == [0, 1, -1]
    assert len(ax.texts) == len(values)  # one arrow each
    assert pieces.number_line(ax, [0, 1])[0].size == 0


def test_sweep_marks_its_optimum():
    _, ax = base.figure()
    pieces.sweep_curve(ax, [1, 2, 3], [3, 1, 2], x_label="T", y_label="KL", best=1, name="KL")
    assert ax.lines[1].get_xdata() == [2]
    assert [t.get_text() for t in ax.texts] == ["best: 2", "KL"]


def test_accuracy_bars_with_intervals():
    _, ax = base.figure()
    pieces.accuracy_bars(ax, ["a", "b"], [90, 80], [88, 79], [91, 82], reference=93)
    assert [p.get_width() for p in ax.patches] == [90, 80]
    segments = ax.collections[0].get_segments()
    assert [tuple(s[:, 0]) for s in segments] == [(88, 91), (79, 82)]
    assert "FP32 93.0" in [t.get_text() for t in ax.texts]


@pytest.mark.parametrize("shape", [(10, 3, 8, 8), (10, 8, 8, 3)])
def test_image_grid(shape):
    images = np.arange(np.prod(shape), dtype=np.uint64).astype(np.uint8).reshape(shape)
    fig = pieces.image_grid(images, [str(i) for i in range(10)], columns=4)
    drawn = [np.asarray(ax.images[0].get_array()) for ax in fig.axes if ax.images]
    assert len(drawn) == 10
    assert drawn[0].shape == (8, 8, 3)
    expected = images[3].transpose(1, 2, 0) if shape[1] == 3 else images[3]
    assert np.array_equal(drawn[3], expected)


def test_small_multiples_draws_each_setting():
    fig, results = pieces.small_multiples(
        lambda ax, k: ax.plot([0, k])[0].get_ydata()[1], [{"k": k} for k in range(4)], columns=3
    )
    assert results == [0, 1, 2, 3]
    assert len(fig.axes) == 6


def test_points_says_a_change_with_its_interval():
    assert base.points((0.0286, 0.021, 0.0364)) == "+2.9 points (+2.1 to +3.6)"
    assert base.points((-0.1, -0.18, -0.02)) == "-10.0 points (-18.0 to -2.0)"
