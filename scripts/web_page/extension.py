"""Sphinx's part of the page: docstrings, terms that explain themselves, what is mended."""

from __future__ import annotations

import json
import re
from functools import cache
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

from ptq_classroom.kit.glossary import Term, terms
from web_page.docstrings import converted
from web_page.pages import slug

# Where a mention is none, or where a link would not do.
SKIPPED = (
    nodes.literal, nodes.literal_block, nodes.reference, nodes.title, nodes.math, nodes.math_block,
    nodes.raw, nodes.target, nodes.caption, nodes.comment, nodes.Admonition, nodes.problematic,
)  # fmt: skip
NO_TERMS = ("glossary", "CHANGELOG", "CONTRIBUTING", "api/", "docs/recipes")  # beginnings of pages


MENDED = {
    "furo_navigation_tree": [('role="heading"', 'role="heading" aria-level="2"')],
    "body": [
        (' aria-label="Toggle hidden content"', ""),  # it would hide what the line says
        ("</li>\n<ul>", "\n<ul>"),  # a list inside a list is part of an item
    ],
}


class term_mention(nodes.Inline, nodes.TextElement):
    """The first mention of a term on a page."""


@cache
def forms() -> tuple[re.Pattern[str], dict[str, Term], set[str]]:
    """A pattern of every form of every term, longest first; the term of each form, plain; and the
    plain forms that are written in capitals only.

    A plural counts as its term.
    """
    known = {plain(name): entry for entry in reversed(terms()) for name in entry.names}
    names = sorted((n for entry in terms() for n in entry.names), key=len, reverse=True)
    capitals = {plain(name) for name in names} - {plain(n) for n in names if not n.isupper()}
    words = "|".join(re.escape(name).replace(r"\ ", r"[\s-]+") for name in names)
    return re.compile(rf"(?<![\w-])(?:{words})s?(?![\w-])", re.IGNORECASE), known, capitals


def plain(word: str) -> str:
    """A form of a term without case, hyphens and line ends."""
    return re.sub(r"[\s-]+", " ", word).lower()


def mark_terms(app: Sphinx | None, doctree: nodes.document, docname: str) -> None:
    """Replace the first mention of each term on a page by a link that explains it."""
    if docname.startswith(NO_TERMS):
        return
    pattern, known, capitals = forms()
    seen: set[str] = set()
    for text in [t for t in doctree.findall(nodes.Text) if not inside(t, SKIPPED)]:
        made: list[nodes.Node] = []
        at, content = 0, text.astext()
        for match in pattern.finditer(content):
            form = plain(match[0])
            if form not in known:  # a plural
                form = form.removesuffix("s")
            entry = known[form]
            if entry.term in seen or (form in capitals and not match[0][: len(form)].isupper()):
                continue
            seen.add(entry.term)
            made.append(nodes.Text(content[at : match.start()]))
            made.append(term_mention(match[0], match[0], term=slug(entry.term)))
            at = match.end()
        if made:
            text.parent.replace(text, [*made, nodes.Text(content[at:])])


def inside(node: nodes.Node, kinds: tuple[type, ...]) -> bool:
    """Whether a node stands in one of these kinds."""
    parent = node.parent
    while parent is not None:
        if isinstance(parent, kinds):
            return True
        parent = parent.parent
    return False


def open_term(self: Any, node: term_mention) -> None:
    """A link to the glossary, so that it serves without scripts, on a phone, and by keyboard."""
    page = self.builder.get_relative_uri(self.docnames[0] if self.docnames else "", "glossary")
    term = node["term"]
    self.body.append(f'<a class="term" data-term="{term}" href="{page}#term-{term}">')


def close_term(self: Any, node: term_mention) -> None:
    """The end of the link."""
    self.body.append("</a>")


def mend_tables(app: Sphinx | None, doctree: nodes.document) -> None:
    """A table of two columns written in Markdown has an empty head: it is none.

    A number stays with its percent sign, in a narrow column too.
    """
    for head in list(doctree.findall(nodes.thead)):
        if not head.astext().strip():
            head.parent.remove(head)
    for cell in doctree.findall(nodes.entry):
        for text in list(cell.findall(nodes.Text)):
            if (kept := text.replace(" %", "\N{NO-BREAK SPACE}%")) != text:
                text.parent.replace(text, nodes.Text(kept))


def convert_docstring(
    app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    """autodoc hands over the lines of a docstring and takes them back changed."""
    lines[:] = converted(lines)


def tidy(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: object) -> None:
    """Mend what the theme and the extensions leave in a page that a screen reader stumbles over."""
    for part, changes in MENDED.items():
        for old, new in changes:
            if part in context:
                context[part] = context[part].replace(old, new)


def definitions() -> str:
    """The script that knows what every term means."""
    known = {
        slug(entry.term): {"term": entry.term, "zh": entry.zh, "says": entry.definition}
        for entry in terms()
    }
    return f"window.courseTerms = {json.dumps(known, ensure_ascii=False)};\n"


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.add_node(term_mention, html=(open_term, close_term))
    app.connect("doctree-resolved", mark_terms)
    app.connect("html-page-context", tidy, priority=900)  # after the theme
    app.connect("doctree-read", mend_tables)
    app.connect("autodoc-process-docstring", convert_docstring)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
