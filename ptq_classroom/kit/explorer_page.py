"""What stands under a live explorer: a script for keyboard and screen reader, and a note.

ipywidgets 8.1 gives Python no way to name a slider's handle, to say its unit, or to make a live
region. The script (explorer.js) sets such attributes on the explorer's own elements; anywidget
could do it too, but brings an extension of JupyterLab for a few attributes. The note says what to
do where the kernel that the widget lived in is gone; the script hides it as long as it is alive.
"""

from __future__ import annotations

import html
import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from ptq_classroom.kit.controls import Slider

READOUT = "ptq-readout"  # CSS class of the line under the controls
NOTE = (
    "Run this cell again: its sliders live in the notebook's kernel, which has been stopped or "
    "restarted. The cells before it come first: Run > Run All Above Selected Cell."
)


def under(mark: str, title: str, controls: Iterable[object]) -> dict[str, str]:
    """The output, by MIME type. mark: the CSS class of this explorer's box, of no other one."""
    note = f"{mark}-note"
    facts: dict[str, Any] = {
        "mark": mark,
        "title": title,
        "note": note,
        "sliders": [_spoken(control) for control in controls if isinstance(control, Slider)],
    }
    literal = json.dumps(facts).replace("<", "\\u003c")  # no end of a script inside
    script = _script().replace("EXPLORER", literal, 1)
    text = f'<p class="{note}"><em>{html.escape(NOTE)}</em></p>\n<script>\n{script}</script>'
    return {"text/html": text, "text/plain": NOTE}


def _spoken(slider: Slider) -> dict[str, Any]:
    """A slider as a screen reader says it."""
    return {
        "label": slider.label or slider.name,
        "unit": slider.unit,
        "log": slider.log,
        "digits": slider.digits,
    }


@cache
def _script() -> str:
    return Path(__file__).with_name("explorer.js").read_text(encoding="utf-8")
