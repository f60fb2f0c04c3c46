"""The course's one glossary: `term("zero point")` shows what it means and who calls it what.

The table is glossary.json: English and Chinese name, one sentence, other forms of the word, the
names in PyTorch/torchao, TensorRT, ONNX Runtime and AIMET where they differ, and the chapter that
teaches it.
"""

from __future__ import annotations

import functools
import json
import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Term:
    """One entry. `scan` says whether a notebook is searched for it (not for everyday words)."""

    term: str
    zh: str
    chapter: str
    definition: str
    forms: tuple[str, ...]
    toolkits: dict[str, str]
    scan: bool = True

    @property
    def names(self) -> tuple[str, ...]:
        """The term and its other forms."""
        return (self.term, *self.forms)


@functools.cache
def terms() -> tuple[Term, ...]:
    """Every entry, in the order of the chapters."""
    text = (Path(__file__).parent / "glossary.json").read_text(encoding="utf-8")
    return tuple(Term(**{**e, "forms": tuple(e["forms"])}) for e in json.loads(text))


def find(word: str) -> Term:
    """The entry of a term, of another form of it, or of its Chinese name; else KeyError."""
    wanted = _plain(word)
    for entry in terms():
        if wanted in {_plain(n) for n in (*entry.names, entry.zh)}:
            return entry
    close = [e.term for e in terms() if wanted in _plain(e.term) or _plain(e.term) in wanted]
    hint = f"; did you mean {', '.join(close)}?" if close else ""
    raise KeyError(f"{word!r} is not in the glossary{hint}")


def term(word: str) -> None:
    """Print one entry."""
    entry = find(word)
    chapter = "the prep self-test" if entry.chapter == "prep" else f"chapter {entry.chapter}"
    print(f"{entry.term} · {entry.zh} · taught in {chapter}")
    print(f"  {entry.definition}")
    for toolkit, name in entry.toolkits.items():
        print(f"  {toolkit + ':':<14}{name}")


def order(chapter: str) -> int:
    """Place of a chapter in the course: the prep self-test, then 00, 01, ..."""
    return -1 if chapter == "prep" else int(chapter)


def too_early(text: str, chapter: str) -> list[str]:
    """Terms in a chapter's markdown that a later chapter teaches, as 'term (chapter NN)'.

    A paragraph, list item or table row that says "chapter NN" (NN later than this one) may use the
    terms of that chapter. Code spans, links and formulas are not searched.
    """
    here, found = order(chapter), []
    for paragraph in re.split(r"\n\s*\n|\n(?=\s*[-*|\d])", _prose(text)):
        promised = {int(n) for n in re.findall(r"chapters?\s+(\d\d)", paragraph)}
        if promised:  # "chapters 05 and 06"
            promised |= {int(n) for n in re.findall(r"(?:,|and|or|to)\s+(\d\d)\b", paragraph)}
        for entry in terms():
            later = entry.scan and order(entry.chapter) > here
            if later and order(entry.chapter) not in promised and _uses(paragraph, entry):
                found.append(f"{entry.term} (chapter {entry.chapter})")
    return sorted(set(found))


def _uses(paragraph: str, entry: Term) -> bool:
    return any(_pattern(name).search(paragraph) for name in entry.names)


@functools.cache
def _pattern(name: str) -> re.Pattern[str]:
    words = re.escape(name).replace(r"\ ", r"[\s-]+")
    flags = 0 if name.isupper() or len(name) <= 3 else re.IGNORECASE
    return re.compile(rf"(?<![\w-]){words}(?![\w])", flags)


def _prose(text: str) -> str:
    text = re.sub(r"```.*?```", " ", text, flags=re.DOTALL)
    text = re.sub(r"`[^`]*`|\$\$.*?\$\$|\$[^$\n]*\$", " ", text, flags=re.DOTALL)
    return re.sub(r"\]\([^)]*\)", "]", text)


def _plain(word: str) -> str:
    return re.sub(r"[\s_-]+", " ", word.strip().lower())
