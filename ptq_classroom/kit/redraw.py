"""Pixels of a figure that is drawn again and again: what stays is drawn once.

Ticks with their labels take four fifths of a redraw (measured with Matplotlib 3.11: 24 of 30 ms)
and seldom change. They are a layer of their own, drawn again only when an axis changes, and laid
over what moves.
"""

from __future__ import annotations

import io
from typing import Any

from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from ptq_classroom.kit.show import DPI, PAGE

HARDLY, WELL = 1, 9  # how hard zlib tries: a picture on the page is soon replaced


class Redraw:
    """A figure with an Agg canvas, as PNG bytes; TypeError for another canvas.

    The layout is computed at the first picture and then kept.
    """

    def __init__(self, fig: Figure) -> None:
        if not isinstance(fig.canvas, FigureCanvasAgg):
            raise TypeError(f"a redraw needs an Agg canvas, as figure() makes it, not {fig.canvas}")
        self.fig, self.canvas = fig, fig.canvas
        self._kept: dict[Axis, tuple[tuple[Any, ...], Image.Image, tuple[int, int]]] = {}
        self._laid_out = False

    def page(self) -> bytes:
        """The picture for the page, at its resolution, as quickly as it goes."""
        self._lay_out()
        self.fig.set_dpi(PAGE)
        axes = self._axes()
        ticks = [self._only(axis) for axis in axes]
        for axis in axes:
            axis.set_animated(True)  # leaves it out
        self.canvas.draw()
        for axis in axes:
            axis.set_animated(False)
        picture = self._pixels()
        for layer, place in ticks:
            picture.alpha_composite(layer, place)
        self.fig.set_dpi(DPI)
        return _png(picture, HARDLY)

    def print(self) -> bytes:
        """The picture at the resolution of a figure, small in bytes."""
        self._lay_out()
        self.canvas.draw()
        return _png(self._pixels(), WELL)

    def _lay_out(self) -> None:
        if not self._laid_out:
            self.canvas.draw()
            self.fig.set_layout_engine("none")
            self._laid_out = True

    def _axes(self) -> list[Axis]:
        shown = [ax for ax in self.fig.axes if ax.get_visible() and ax.axison]
        return [axis for ax in shown for axis in (ax.xaxis, ax.yaxis) if axis.get_visible()]

    def _only(self, axis: Axis) -> tuple[Image.Image, tuple[int, int]]:
        """One axis alone, on nothing, and its place in the picture: kept as long as it is true."""
        state, kept = _state(axis), self._kept.get(axis)
        if kept is None or kept[0] != state:
            renderer = self.canvas.get_renderer()
            renderer.clear()
            axis.draw(renderer)
            picture = self._pixels()
            box = picture.getbbox() or (0, 0, 1, 1)
            self._kept[axis] = kept = (state, picture.crop(box), box[:2])
        return kept[1:]

    def _pixels(self) -> Image.Image:
        size = self.canvas.get_width_height(physical=True)
        return Image.frombytes("RGBA", size, bytes(self.canvas.buffer_rgba()))


def _state(axis: Axis) -> tuple[Any, ...]:
    """What the pixels of an axis depend on; a `frame` changes nothing else of one."""
    chosen = (axis.get_major_locator(), axis.get_major_formatter(), axis.get_minor_locator())
    return (*axis.get_view_interval(), axis.get_scale(), axis.label.get_text(), *chosen)


def _png(picture: Image.Image, effort: int) -> bytes:
    out = io.BytesIO()
    picture.convert("RGB").save(out, format="png", compress_level=effort)
    return out.getvalue()
