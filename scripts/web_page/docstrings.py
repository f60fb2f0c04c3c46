"""The course's docstrings are plain text, laid out for reading; here they become reStructuredText.

Paragraphs stay paragraphs, what is indented stays as it stands, and lines that begin with a name
and a colon ("bits: 2 to 16") become items of a list.
"""

from __future__ import annotations

import re
import textwrap

ITEM = re.compile(r"^([*a-z_][\w*.]*(?:(?:,| and| or) [*a-z_][\w*.]*)*):\s+(\S.*)$")
NEXT = re.compile(r"(?<=[.;]) (?=[a-z_]\w*: )")  # "bits: 2 to 16. signed: ..." are two items
CODE = re.compile(r"``(.+?)``|`([^`]+)`", re.DOTALL)


def converted(lines: list[str]) -> list[str]:
    """A docstring's lines as reStructuredText."""
    text = textwrap.dedent("\n".join(lines)).strip("\n")
    made: list[str] = []
    for number, block in enumerate(re.split(r"\n\s*\n", text)):
        if block.strip():
            made += [*_block(block.splitlines(), first=not number), ""]
    return made


def _block(lines: list[str], first: bool) -> list[str]:
    """One block: prose, a list, or text laid out in columns; first: it begins with the summary."""
    deep = [len(line) - len(line.lstrip()) for line in lines]
    if min(deep) >= 2 or any(re.search(r"\S {3,}\S", line) for line in lines):
        return [".. code-block:: text", "", *(f"    {line}" for line in lines)]
    made: list[str] = []
    in_list = False
    paragraph: list[str] = []

    def flush() -> None:
        if not paragraph:
            return
        text = " ".join(paragraph)
        for item in NEXT.split(text) if in_list else [text]:
            named = ITEM.match(item) if in_list else None
            if named:
                made.append(f"- ``{named[1]}``: {escaped(named[2])}")
            else:
                made.append(("- " if in_list else "") + escaped(item))
        made.append("")
        paragraph.clear()

    for k, line in enumerate(lines):
        item, bullet = ITEM.match(line), re.match(r"^[-*] +(.*)$", line)
        if item and not (first and k == 0) and (k == 0 or in_list or _ends(lines[k - 1])):
            flush()
            in_list = True
            paragraph.append(line)
        elif bullet:
            flush()
            in_list = True
            paragraph.append(bullet[1])
        elif in_list and re.match(r"Raises? |Returns? ", line) and deep[k] == 0:
            flush()
            in_list = False
            paragraph.append(line)
        else:
            paragraph.append(line.strip())
    flush()
    return made[:-1]


def _ends(line: str) -> bool:
    """Whether a line ends a sentence or opens a list."""
    return line.rstrip().endswith((".", ":", ";", ")"))


def escaped(text: str) -> str:
    """Prose with its code marked as code, and nothing else that reStructuredText would act on."""
    made, at = [], 0
    for match in CODE.finditer(text):
        code = " ".join((match[1] or match[2]).split())
        if code:  # an escaped space on both sides: letters may touch it
            made += [_quoted(text[at : match.start()]), f"\\ ``{code}``\\ "]
            at = match.end()
    # What begins with an escaped space is a paragraph, whatever else it looks like.
    return "\\ " + "".join([*made, _quoted(text[at:])])


def _quoted(text: str) -> str:
    return re.sub(r"([\\*`|_]|:(?=:))", r"\\\1", text)
