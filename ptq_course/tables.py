"""A table that prints in a terminal and renders in a notebook; nothing here knows what it shows."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

Row = TypeVar("Row")


def text_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns aligned with spaces, a rule under the heading."""
    lines = [columns, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    text = ["  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in lines]
    text.insert(1, "  ".join("-" * w for w in widths))
    return "\n".join(text)


def html_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str] = ()
) -> str:
    """The same as HTML, with notes as paragraphs below it."""

    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(c)}</{tag}>" for c in cells) + "</tr>"

    body = "".join(line(row, "td") for row in rows)
    below = "".join(f"<p>{html.escape(note)}</p>" for note in notes)
    return f"<table>{line(columns, 'th')}{body}</table>{below}"


def lowest_first(rows: Iterable[Row], value: Callable[[Row], float | None]) -> list[Row]:
    """The rows that have a value, in its order; of equals, the one given first."""
    pairs = [(found, row) for row in rows if (found := value(row)) is not None]
    return [row for _, row in sorted(pairs, key=lambda pair: pair[0])]


def decibels(value: float | None) -> str:
    """One decimal, as precise as such a measurement is; "-" where there is none."""
    return "-" if value is None else f"{value:.1f}" if math.isfinite(value) else str(value)


def points(share: float) -> str:
    """A difference of shares in percentage points with its sign: -0.012 is "-1.2"."""
    return f"{round(100 * share, 1) + 0.0:+.1f}"
