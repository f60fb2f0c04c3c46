"""`Explorer`: sliders, a text readout and a picture that is redrawn by updating its artists.

The picture is an HTML widget whose <img alt> is replaced: measured about twice as fast as drawing
into an Output widget or `interact`, and deterministic when notebooks are executed for CI.
"""

from __future__ import annotations

import asyncio
import html
import secrets
from collections.abc import Callable, Sequence
from typing import Any

import ipywidgets as w
from matplotlib.figure import Figure

from ptq_classroom.kit.controls import Choice, Slider
from ptq_classroom.kit.explorer_page import READOUT, under
from ptq_classroom.kit.redraw import Redraw
from ptq_classroom.kit.show import PAGE, for_the_page, img, show_picture

PAUSE = 0.005  # seconds: changes that arrive meanwhile are drawn as one


class Explorer:
    """Controls + readout + picture around one pure function.

    frame(**values) -> (readout, alt): updates the artists of `fig` for these control values and
    returns the readout line and the picture's alt text. It is called once at the start, then after
    changes; changes that arrive while it draws are merged into one. Where it is a method, its
    object is `artists`: what the chapter drew.
    """

    def __init__(
        self,
        fig: Figure,
        controls: Sequence[Slider | Choice],
        frame: Callable[..., tuple[str, str]],
        title: str = "",
    ):
        self.fig, self.frame, self.title = fig, frame, title
        self.artists = getattr(frame, "__self__", None)
        self.controls = {c.name: c for c in controls}
        built = {c.name: c.build() for c in controls}
        self.inputs = {name: main for name, (main, _) in built.items()}
        self._readout, self._picture = w.HTML().add_class(READOUT), w.HTML()
        self._redraw, self.redraws = Redraw(fig), 0
        self._pending: asyncio.TimerHandle | None = None
        self._held = False
        head = [w.HTML(f"<b>{html.escape(title)}</b>")] if title else []
        self.box = w.VBox([*head, *(row for _, row in built.values()), self.readout, self.picture])
        self.draw()
        for main in self.inputs.values():
            main.observe(self._changed, names="value")

    @property
    def readout(self) -> w.HTML:
        """The line under the controls, as it is shown."""
        return self._readout

    @property
    def picture(self) -> w.HTML:
        """The picture as it is shown: HTML whose <img> each redraw replaces."""
        return self._picture

    @property
    def values(self) -> dict[str, Any]:
        """What the controls say now."""
        return {name: _tidy(main.value) for name, main in self.inputs.items()}

    def set(self, **values: Any) -> tuple[str, str]:
        """Move controls and draw at once; returns (readout, alt)."""
        self._held = True
        try:
            for name, value in values.items():
                self.inputs[name].value = value
        finally:
            self._held = False
        return self.draw()

    def draw(self) -> tuple[str, str]:
        """Draw the frame of the present values; an error in it is shown in the readout."""
        self._pending = None
        try:
            readout, alt = self.frame(**self.values)
            self.picture.value = img(self._redraw.page(), alt, dpi=PAGE)
        except Exception as error:
            self.readout.value = f"<pre>{html.escape(f'{type(error).__name__}: {error}')}</pre>"
            if not self.redraws:
                raise
            return "", ""
        self.readout.value = html.escape(readout)
        self.redraws += 1
        return readout, alt

    def static(self, settings: Sequence[dict[str, Any]]) -> list[tuple[bytes, str, str]]:
        """The frames of several settings: (PNG bytes, readout, alt text) of each."""
        before, frames = self.values, []
        for setting in settings:
            readout, alt = self.frame(**{**before, **setting})
            frames.append((self._redraw.print(), readout, alt))
        self.frame(**before)
        return frames

    def show(self, static: Sequence[dict[str, Any]] = ()) -> None:
        """Display the live widget and, in a notebook that is committed, frames of some settings.

        Under a live widget the frames would only repeat it.
        """
        from IPython.display import display

        display(self)
        if not for_the_page():
            mark = f"ptq-{secrets.token_hex(4)}"
            self.box.add_class(mark)
            display(under(mark, self.title, self.controls.values()), raw=True)
        for data, readout, alt in self.static(static) if for_the_page() else ():
            display({"text/markdown": readout, "text/plain": readout}, raw=True)
            show_picture(data, alt)

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, Any]:
        bundle = self.box._repr_mimebundle_(**kwargs) or {}
        bundle = bundle[0] if isinstance(bundle, tuple) else bundle
        return {**bundle, "text/plain": f"Widget: {self.title or 'explorer'}"}

    def _changed(self, _change: dict) -> None:
        if self._held or self._pending is not None:
            return
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self.draw()
            return
        self._pending = loop.call_later(PAUSE, self.draw)


def _tidy(value: Any) -> Any:
    """1.3 where a slider's arithmetic made 1.2999999999999998."""
    return float(f"{value:.9g}") if isinstance(value, float) else value
