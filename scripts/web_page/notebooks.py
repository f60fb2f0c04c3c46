"""A committed notebook as the page shows it: pictures as files, folded cells named, no dead parts.

The cells' text and outputs stay what they are. Nothing is executed.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from web_page.errors import PageError
from web_page.links import rewritten

Cell = dict[str, Any]
VIEW = "application/vnd.jupyter.widget-view+json"
WIDGET = "Widget: "
SHOW = "code_prompt_show"
FOLDED = {  # by tag: what the line says that opens a folded cell
    "solution": "Show the solution",
    "proof": "Show the proof: what must hold",
    "quiz-answers": "Show the answers",
}
IN_THE_LAB = (
    "These controls move in the lab (`python course.py lab`), where Python runs. Here they show "
    "how it looks there; the pictures below show some of its states."
)
STATES_ONLY = (
    "In the lab (`python course.py lab`) this is a picture with controls. The pictures below show "
    "some of its states."
)


@dataclass(frozen=True)
class State:
    """One picture of a widget: the line under its controls, the picture's alt text and HTML."""

    readout: str
    alt: str
    picture: str


@dataclass(frozen=True)
class Widget:
    """A widget of a chapter: its notebook, title, the text before it, pictures of its states."""

    notebook: str
    chapter: str
    title: str
    task: str
    states: tuple[State, ...]


def text_of(part: str | list[str]) -> str:
    """A notebook's text, which is a string or a list of lines."""
    return part if isinstance(part, str) else "".join(part)


def stage(file: Path, root: Path, target: Path, live: bool) -> list[Widget]:
    """Write the page's version of one notebook below `target`; returns the widgets in it.

    live: whether the page has the script that draws saved widgets. Pictures go to
    `target`/_static/pictures. Raises PageError with every broken link and picture without alt text.
    """
    name = file.relative_to(root).as_posix()
    notebook = json.loads(file.read_text(encoding="utf-8"))
    findings: list[str] = []
    widgets: list[Widget] = []
    cells: list[Cell] = []
    for number, cell in enumerate(notebook["cells"]):
        place = f"{name}, cell {number + 1}"
        tags = cell["metadata"].get("tags", [])
        if "links" in tags:  # previous and next: the page has its own
            continue
        try:
            if cell["cell_type"] == "markdown":
                cell["source"] = rewritten(text_of(cell["source"]), name, root, place)
            else:
                code_cell(cell, place, target, live)
                before = cells[-1] if cells else {"source": ""}
                widgets += widgets_of(cell, before, notebook, name, place)
        except PageError as problem:
            findings += problem.findings
        cells.append(cell)
    if findings:
        raise PageError(findings)
    notebook["cells"] = cells
    if not (live and widgets):  # what the widgets' script would draw
        notebook["metadata"].pop("widgets", None)
    out = target / name
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(notebook, ensure_ascii=False), encoding="utf-8")
    return widgets


def code_cell(cell: Cell, place: str, target: Path, live: bool) -> None:
    """Name what a folded cell holds; make its pictures files and its widgets honest."""
    tags = cell["metadata"].setdefault("tags", [])
    for tag, prompt in FOLDED.items():
        if tag in tags:
            cell["metadata"]["mystnb"] = {SHOW: prompt, "code_prompt_hide": "Fold it again"}
    if "quiz-answers" in tags:  # here the output is what must not be seen at once
        cell["metadata"]["tags"] = [t for t in tags if t != "hide-input"] + ["hide-cell"]
    outputs = []
    for output in cell["outputs"]:
        data = output.get("data", {})
        if VIEW in data:
            if not is_explorer(output):  # a progress bar that is at its end says nothing any more
                continue
            title = text_of(data["text/plain"]).removeprefix(WIDGET)
            outputs.append(note(IN_THE_LAB if live else STATES_ONLY, title))
            if not live:
                continue
            output = frozen(output)
        elif "image/png" in data:
            alt = output["metadata"].get("image/png", {}).get("alt", "")
            if not alt.strip():
                raise PageError([f"{place}: a picture without an alt text; use show(fig, alt)"])
            output = {
                "output_type": "display_data",
                "data": {"text/html": picture(output, alt, target), "text/plain": alt},
                "metadata": {"alt": alt},
            }
        outputs.append(output)
    cell["outputs"] = outputs


def is_explorer(output: dict[str, Any]) -> bool:
    """Whether a widget output is one with controls, not a progress bar."""
    return text_of(output["data"].get("text/plain", "")).startswith(WIDGET)


def frozen(output: dict[str, Any]) -> dict[str, Any]:
    """A saved widget to look at: no kernel would answer, so nothing of it takes the focus."""
    view = json.dumps(output["data"][VIEW])
    shown = f'<div class="lab-widget" inert><script type="{VIEW}">{view}</script></div>'
    plain = output["data"]["text/plain"]
    data = {"text/html": shown, "text/plain": plain}
    return {"output_type": "display_data", "data": data, "metadata": {}}


def note(text: str, title: str) -> dict[str, Any]:
    """An output that says this to the reader, about the widget of this title."""
    code = html.escape(text).replace("`python course.py lab`", "<code>python course.py lab</code>")
    data = {"text/html": f'<p class="lab-note">{code}</p>', "text/plain": text}
    return {"output_type": "display_data", "data": data, "metadata": {"widget": title}}


def picture(output: dict[str, Any], alt: str, target: Path) -> str:
    """The HTML of a PNG output, whose bytes become a file named by them."""
    data = base64.b64decode(text_of(output["data"]["image/png"]))
    name = f"{hashlib.sha256(data).hexdigest()[:16]}.png"
    folder = target / "_static" / "pictures"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data)
    wide, high = (int.from_bytes(data[k : k + 4], "big") for k in (16, 20))
    width = int(output["metadata"]["image/png"].get("width", wide))
    return (
        f'<img class="picture" src="../_static/pictures/{name}" alt="{html.escape(alt)}" '
        f'width="{width}" height="{round(width * high / wide)}" loading="lazy">'
    )


def widgets_of(
    cell: Cell, before: Cell, notebook: dict[str, Any], name: str, place: str
) -> list[Widget]:
    """The widget that a staged cell shows, with the pictures of its states, if it shows one."""
    title, states, readout = "", [], ""
    for output in cell["outputs"]:
        data = output.get("data", {})
        shown = text_of(data.get("text/html", ""))
        title = output.get("metadata", {}).get("widget", title)
        if "text/markdown" in data:
            readout = text_of(data["text/markdown"])
        elif title and 'class="picture"' in shown and readout:
            states.append(State(readout, output["metadata"]["alt"], shown))
            readout = ""
    if not title:
        return []
    if not states:
        raise PageError(
            [f"{place}: the widget {title!r} has no pictures of its states; use show(static=[...])"]
        )
    chapter = notebook["metadata"]["ptq"]["chapter"]
    return [Widget(name, chapter, title, text_of(before["source"]), tuple(states))]
