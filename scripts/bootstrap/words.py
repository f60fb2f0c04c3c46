"""Lines for a terminal of 80 columns, and guesses at what was meant."""

from __future__ import annotations

import difflib
import textwrap
from collections.abc import Iterable

WIDTH = 80


def fitted(text: str, before: str = "", between: str | None = None) -> str:
    """The text in lines of at most 80 columns; a word that is longer (a path) stays whole.

    before: what the first line starts with; between: what the others do, spaces by default. Line
    ends and indents of the text itself stay.
    """
    rest = " " * len(before) if between is None else between
    lines: list[str] = []
    for line in text.splitlines() or [""]:
        indent = line[: len(line) - len(line.lstrip())]
        lines += textwrap.wrap(
            line,
            WIDTH - len(rest),
            subsequent_indent=indent,
            break_long_words=False,
            break_on_hyphens=False,
        ) or [""]
    return "\n".join(f"{rest if number else before}{line}" for number, line in enumerate(lines))


def meant(word: str, known: Iterable[str]) -> str:
    """ " Did you mean 'x'?" with a leading space, or nothing where no known word is near."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""
