"""Redraw: the same picture as Matplotlib draws, though what stays is not drawn again."""

from __future__ import annotations

import io

import numpy as np
import pytest
from example_explorer import Staircase
from matplotlib.axis import Axis
from PIL import Image

from ptq_classroom.kit.redraw import Redraw
from ptq_classroom.kit.show import PAGE


def decoded(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)), dtype=np.int16)


def by_matplotlib(redraw: Redraw) -> np.ndarray:
    """The figure as one drawing, at the resolution of the page."""
    dpi = redraw.fig.dpi
    redraw.fig.set_dpi(PAGE)
    redraw.canvas.draw()
    picture = np.asarray(redraw.canvas.buffer_rgba())[..., :3].astype(np.int16)
    redraw.fig.set_dpi(dpi)
    return picture


@pytest.fixture
def stairs() -> Staircase:
    return Staircase()


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Axis]:
    """Which axes were drawn."""
    seen: list[Axis] = []
    draw = Axis.draw
    monkeypatch.setattr(Axis, "draw", lambda axis, *a, **k: (seen.append(axis), draw(axis, *a))[1])
    return seen


def same_picture(redraw: Redraw) -> None:
    got, wanted = decoded(redraw.page()), by_matplotlib(redraw)
    assert got.shape == wanted.shape
    far = np.abs(got - wanted).max(axis=2) > 8
    assert far.mean() < 2e-3  # where a mark crosses an axis, which of them is on top


CHANGES = {
    "a line": lambda ax, line: line.set_ydata(np.sin(np.arange(801) / 50)),
    "limits": lambda ax, line: ax.set_xlim(-1, 1),
    "a label": lambda ax, line: ax.set_xlabel("another name"),
    "ticks": lambda ax, line: ax.set_yticks([-3, 0, 3], ["low", "zero", "high"]),
    "a scale": lambda ax, line: ax.set_yscale("symlog"),
    "no axes at all": lambda ax, line: ax.set_axis_off(),
}


@pytest.mark.parametrize("what", CHANGES)
def test_it_is_the_picture_that_matplotlib_draws(stairs: Staircase, what: str):
    redraw = Redraw(stairs.fig)
    same_picture(redraw)
    before = redraw.page()
    CHANGES[what](stairs.ax, stairs.line)
    assert redraw.page() != before
    same_picture(redraw)


def test_only_the_axis_that_changed_is_drawn_again(stairs: Staircase, drawn: list[Axis]):
    redraw = Redraw(stairs.fig)
    redraw.page()
    drawn.clear()
    for bits in (2, 3, 4):
        stairs.frame(bits, 2.0, "nearest")
        redraw.page()
    assert drawn == []
    stairs.ax.set_xlim(-2, 2)
    redraw.page()
    assert drawn == [stairs.ax.xaxis]


def test_a_printed_frame_has_all_pixels_and_its_axes(stairs: Staircase):
    redraw = Redraw(stairs.fig)
    page, frame = decoded(redraw.page()), decoded(redraw.print())
    assert frame.shape[1] == round(stairs.fig.get_figwidth() * stairs.fig.dpi)
    assert frame.shape[1] > page.shape[1]
    left = frame[:, : frame.shape[1] // 12]  # labels of the y axis
    assert (left < 128).any()
    assert not any(axis.get_animated() for axis in (stairs.ax.xaxis, stairs.ax.yaxis))
