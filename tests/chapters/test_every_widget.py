"""Every chapter's widget through what a learner sees: the bytes of the picture, after each control.

The objects beside it (artists, readout) may move while the page does not: here the page is read.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from typing import Any

import pytest
from small_widgets import NAMES, explorer


def shown(widget: Any) -> Iterator[str]:
    """The bytes of every picture that a box of widgets has on the page, from its first to its last.

    As the browser finds them: through the children, not through attributes of Python objects.
    """
    for child in getattr(widget, "children", ()):
        yield from shown(child)
    if not hasattr(widget, "children"):
        yield from re.findall(r'src="data:image/png;base64,([^"]+)"', str(widget.value))


def positions(control: Any) -> list[Any]:
    """The far ends of a control: where a learner sees most."""
    if hasattr(control, "options"):
        return [value for _, value in control._options_full]
    base = getattr(control, "base", None)
    return [end if base is None else base**end for end in (control.min, control.max)]


@pytest.mark.parametrize("name", NAMES)
def test_the_picture_changes_after_each_control_is_moved(name: str):
    made = explorer(name)
    start = {control: main.value for control, main in made.inputs.items()}
    (before,) = shown(made.box)
    for control, main in made.inputs.items():
        seen = {before}
        for value in positions(main):
            main.value = value
            (now,) = shown(made.box)
            seen.add(now)
            main.value = start[control]
            (again,) = shown(made.box)
            assert again == before, f"{control} back at {start[control]}: another picture"
        assert len(seen) > 1, f"{control} moves no pixel"


@pytest.mark.parametrize("name", NAMES)
def test_the_readout_and_the_alt_text_are_on_the_page(name: str):
    made = explorer(name)
    page = [child.value for child in made.box.children if hasattr(child, "value")]
    readout, alt = made.draw()
    assert readout
    assert html.escape(readout) in page
    assert alt
    assert "<img alt=" in made.box.children[-1].value


def test_nothing_can_be_put_in_the_place_of_the_picture():
    with pytest.raises(AttributeError):
        explorer("ch02").picture = "something else"
