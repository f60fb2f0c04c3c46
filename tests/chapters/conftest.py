"""Every figure that a test of a chapter draws can be read: checked behind each test."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import legible
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

MADE: list[Figure] = []  # since the present test of a chapter began


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Before the fixtures of a chapter's test: what tests elsewhere drew is none of its figures."""
    MADE.clear()


@pytest.fixture(scope="session")
def _drawn() -> Iterator[list[Figure]]:
    """The figures that this test and its fixtures have made."""
    begin = FigureCanvasAgg.__init__

    def recorded(self: Any, figure: Figure, *args: Any, **kwargs: Any) -> None:
        begin(self, figure, *args, **kwargs)
        MADE.append(figure)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FigureCanvasAgg, "__init__", recorded)
        yield MADE


@pytest.fixture(autouse=True)
def every_figure_can_be_read(_drawn: list[Figure]) -> Iterator[None]:
    """Words of at least 8 pt and 4.5 to 1, at 144 dots an inch, in every figure of this test."""
    yield
    found = []
    while _drawn:
        figure = _drawn.pop()
        if figure.axes:
            found += legible.complaints(figure)
    assert not found, "\n".join(dict.fromkeys(found))
