"""The pages that are made from other things than a Markdown file: contents, glossary, widgets,
recipes, reference."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from pathlib import Path

from ptq_classroom.kit.glossary import Term
from web_page.notebooks import Widget

CONTENTS = """
```{{toctree}}
:hidden:
:caption: Chapters

{chapters}
```

```{{toctree}}
:hidden:
:caption: Look up

glossary
widgets
Clinic <docs/clinic>
Recipes <docs/recipes>
Claims, tested <docs/claims>
Data <data/README>
Reference <api/index>
```

```{{toctree}}
:hidden:
:caption: Teach and contribute

For teachers <TEACHING>
Change the course <CONTRIBUTING>
What changed <CHANGELOG>
```
"""
ROOMS = ("grids", "ranges", "graph", "simulation", "improve", "integer", "deploy", "diagnosis")


def contents(readme: str, notebooks: Sequence[str], package: Path) -> str:
    """The landing page: README, its modules led to their reference, and the order of all pages."""

    def module(match: re.Match[str]) -> str:
        path = match[1].rstrip("/")
        if not (package / path).exists():
            return match[0]
        return f"[{match[0]}](ptq_course.{path.removesuffix('.py').replace('/', '.')})"

    rows = [
        re.sub(r"`([\w/]+(?:/|\.py))`", module, line) if line.startswith("|") else line
        for line in readme.splitlines()
    ]
    chapters = "\n".join(f"notebooks/{name}" for name in notebooks)
    return "\n".join(rows) + "\n" + CONTENTS.format(chapters=chapters)


def slug(term: str) -> str:
    """A term as a part of an address, as Sphinx makes it for a glossary."""
    return re.sub(r"[^A-Za-z0-9]+", "-", term).strip("-")


def glossary(terms: Sequence[Term], notebooks: Sequence[str]) -> str:
    """The page of all terms (reStructuredText), by the alphabet, with their Chinese names."""
    chapter_of = {name.partition("_")[0]: name for name in notebooks}
    parts = [
        "Glossary",
        "========",
        "",
        "Every term of the course: its Chinese name, what it means, the chapter that teaches",
        "it, and what toolkits call it. Elsewhere the first mention of a term on a page is",
        "underlined with dots; point to it, or move to it with the Tab key, and it explains",
        "itself.",
        "",
        ".. role:: zh",
        "",
        ".. glossary::",
        "   :sorted:",
        "",
    ]
    for entry in terms:
        chapter = "the self-test" if entry.chapter == "prep" else f"chapter {entry.chapter}"
        link = f":doc:`{chapter} <notebooks/{chapter_of[entry.chapter]}>`"
        parts += [f"   {entry.term}", f"      :zh:`{entry.zh}` · {link}", ""]
        parts += [f"      {plain(entry.definition)}", ""]
        if entry.toolkits:
            named = "; ".join(f"{kit}: {plain(name)}" for kit, name in entry.toolkits.items())
            parts += [f"      In toolkits: {named}.", ""]
    return "\n".join(parts)


def plain(text: str) -> str:
    """Text that reStructuredText takes for nothing but text."""
    return re.sub(r"([\\*`|_])", r"\\\1", text)


def widget_page(widgets: Sequence[Widget]) -> str:
    """A picture of each widget's states for readers without a kernel (Markdown)."""
    parts = [
        "# Widgets, as pictures",
        "",
        "In the lab each of these is a picture with controls. Here are some of its states, for",
        "readers without Python at hand: first what to try and to look for, then the pictures. The",
        "line above each is what the widget says about it; the text that a screen reader gets is",
        "folded below.",
        "",
    ]
    for widget in widgets:
        page = f"notebooks/{Path(widget.notebook).name}"
        parts += [f"## {widget.chapter} · {widget.title}", "", f"From [the chapter]({page}).", ""]
        parts += [task_of(widget.task), ""]
        for state in widget.states:
            heading, *rest = state.readout.split(" · ")
            parts += [f"### {heading[:1].upper()}{heading[1:]}", "", " · ".join(rest), ""]
            parts += [state.picture.replace('src="../', 'src="'), ""]
            parts += ["<details><summary>In words</summary>", "", state.alt, "", "</details>", ""]
    return "\n".join(parts)


def task_of(text: str) -> str:
    """What the chapter says just before a widget, without headings (they would cut the page)."""
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    here = re.sub(r"\]\(([\w-]+\.ipynb)", r"](notebooks/\1", "\n".join(lines))
    return here.replace("](../", "](").strip()


def recipes(files: Sequence[Path]) -> str:
    """The recipes, each with its first sentence and its code (Markdown)."""
    parts = ["# Recipes", ""]
    parts += ["The tested recipes of [the clinic](clinic.md): copy one, or call its `run`.", ""]
    for file in files:
        source = file.read_text(encoding="utf-8")
        says = ast.get_docstring(ast.parse(source)) or ""
        title, _, why = says.partition(": ")
        code = source.partition('"""\n')[2].strip()
        parts += [f"(recipe-{file.stem.replace('_', '-')})=", f"## {title.rstrip('.')}", ""]
        parts += [why[:1].upper() + why[1:], "", f"File: `recipes/{file.name}`", ""]
        parts += ["```python", code, "```", ""]
    return "\n".join(parts)


def reference(package: Path) -> dict[str, str]:
    """The pages of the API reference by name: an index, the root's modules, one page a room."""
    opening = [
        "Reference",
        "=========",
        "",
        "What every public name of ``ptq_course`` does, from its docstring, room by room.",
        "*[source]* leads to the code. Each chapter walks through a part of it; the table of",
        ":doc:`chapters </index>` says which.",
        "",
        ".. toctree::",
        "",
        *(f"   {room}" for room in ("root", *ROOMS)),
        "",
    ]
    pages = {"index": "\n".join(opening)}
    top = [m for m in modules(package) if m.count(".") == 1 and m.rpartition(".")[2] not in ROOMS]
    pages["root"] = module_page("ptq_course", ["ptq_course", *top])
    for room in ROOMS:
        dotted = f"ptq_course.{room}"
        pages[room] = module_page(dotted, [dotted, *modules(package / room, dotted)])
    return pages


def modules(folder: Path, dotted: str = "ptq_course") -> list[str]:
    """Dotted names of the public modules in a folder, those of its subfolders included."""
    found = []
    for path in sorted(folder.iterdir()):
        name = f"{dotted}.{path.stem}"
        if path.stem.startswith("_"):
            continue
        if (path / "__init__.py").exists():
            found += [name, *modules(path, name)]
        elif path.suffix == ".py":
            found.append(name)
    return found


def module_page(title: str, names: Sequence[str]) -> str:
    """A page with the reference of these modules, the first of which is the page's own."""
    parts = [title, "=" * len(title), ""]
    for name in names:
        if name != names[0]:
            short = name.removeprefix(f"{names[0]}.")
            parts += [short, "-" * len(short), ""]
        parts += [f".. automodule:: {name}", "   :members:", "   :ignore-module-all:", ""]
    return "\n".join(parts)
