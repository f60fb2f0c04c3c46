"""Docstrings become reStructuredText, terms explain themselves, finished pages are read again."""

from __future__ import annotations

import inspect

import docutils.core
import pytest
from docutils import nodes
from hypothesis import example, given
from hypothesis import strategies as st
from web_page import checking, extension
from web_page.docstrings import converted
from web_page.errors import PageError

PIECES = (
    "word", "a_b_", "*args", "**kw", "`code`", "``more``", "|x|", "bits: 2 to 16.", "q = x / s",
    "-1", "- item", "\\alpha", "`open", "x_", "(1, -1)", "Raises ValueError", "e.g.:", "1.", "::",
    "[1]_", "scale   [C]", "#. x", ".. note::", "a`b`c", ":role:`x`", "`x`s", "<a_>", "+---+",
    "====", ">>> x",
)  # fmt: skip
LINES = st.lists(
    st.tuples(st.sampled_from(("", "", "", "    ")), st.lists(st.sampled_from(PIECES), max_size=4)),
    max_size=8,
)


def parsed(text: str) -> nodes.document:
    options = {"report_level": 2, "halt_level": 5, "warning_stream": False}
    return docutils.core.publish_doctree(text, settings_overrides=options)


@given(LINES)
@example([("", ["bits: 2 to 16."]), ("", ["Raises ValueError"]), ("", ["word"])])
def test_any_docstring_is_read_without_a_complaint(lines):
    source = [indent + " ".join(pieces) for indent, pieces in lines]
    document = parsed("\n".join(converted(source)))
    assert not [node.astext() for node in document.findall(nodes.system_message)]
    words = [word for _, pieces in lines for word in pieces if word == "word"]
    assert document.astext().count("word") == len(words)  # nothing is lost, nothing twice


def test_names_with_a_colon_become_a_list_and_columns_stay():
    docstring = """What it does: a summary.

    bits: 2 to 16. signed: two's
    complement.
    narrow, wide: others
    Raises ValueError for the rest.

        per token   [B, T]
    """
    document = parsed("\n".join(converted(inspect.cleandoc(docstring).splitlines())))
    items = [node.astext() for node in document.findall(nodes.list_item)]
    assert items == ["bits: 2 to 16.", "signed: two's complement.", "narrow, wide: others"]
    paragraphs = [node.astext() for node in document.children if isinstance(node, nodes.paragraph)]
    assert paragraphs == ["What it does: a summary.", "Raises ValueError for the rest."]
    assert [node.astext() for node in document.findall(nodes.literal_block)] == [
        "per token   [B, T]"
    ]


def marked(text: str, page: str = "index") -> list[tuple[str, str]]:
    document = parsed(text)
    extension.mark_terms(None, document, page)
    found = document.findall(extension.term_mention)
    assert document.astext() == parsed(text).astext()  # the words stay what they are
    return [(node.astext(), node["term"]) for node in found]


def test_the_first_mention_of_a_term_explains_itself():
    text = """
Zero point
==========

A ``zero point`` and `a scale <https://example.org>`__. The *zero point*, the zero-point again,
per-channel
quantization, Batch norms, awqs and unquantizedness; GPTQ.
"""
    assert marked(text) == [
        ("zero point", "zero-point"),
        ("per-channel\nquantization", "per-channel-quantization"),
        ("Batch norms", "batch-norm"),
        ("GPTQ", "GPTQ"),
    ]
    assert marked(text, "glossary") == marked(text, "api/grids") == []


def test_a_table_keeps_no_empty_head_and_no_sign_alone():
    for first, heads in (("x", 1), (" ", 0)):
        line = "+---+-------+"
        rows = [line, f"| {first} |       |", "+===+=======+", "| a | b 3 % |", line]
        document = parsed("\n".join(rows))
        extension.mend_tables(None, document)
        assert len(list(document.findall(nodes.thead))) == heads
        assert "b 3\N{NO-BREAK SPACE}%" in document.astext()


def test_every_form_of_every_term_is_found_and_known_to_the_script():
    for entry in extension.terms():
        for name in entry.names:
            ((found, term),) = marked(f"The {name} here.")[:1] or [(None, None)]
            assert (found, term) == (name, extension.slug(entry.term)), name
        assert f'"{extension.slug(entry.term)}": {{"term": ' in extension.definitions()


def page(folder, name: str, body: str) -> None:
    file = folder / name
    file.parent.mkdir(exist_ok=True)
    file.write_text(f"<html><body>{body}</body></html>")


def test_a_page_without_faults_passes(tmp_path):
    (tmp_path / "p.png").write_text("")
    page(
        tmp_path, "a.html", '<h1 id="x y">A</h1><img src="p.png" alt="words"><a href="#x%20y">a</a>'
    )
    page(
        tmp_path,
        "b/b.html",
        '<a href="../a.html?q=1#x y">a</a> <a href="https://example.org">e</a>',
    )
    assert checking.check(tmp_path) == 2


@pytest.mark.parametrize(
    ("body", "finding"),
    [
        ('<a href="none.html">x</a>', "the link to 'none.html' leads to no file"),
        ('<a href="#none">x</a>', "the link to '#none' leads to no such place of its page"),
        ('<img src="p.png" alt=" ">', "the picture p.png has no alt text"),
        ('<img src="q.png" alt="q">', "'q.png', which it loads, is not there"),
        ('<script src="https://cdn.example/x.js"></script>', "loads 'https://cdn.example/x.js'"),
        ('<link rel="stylesheet" href="//cdn.example/x.css">', "loads '//cdn.example/x.css'"),
    ],
)
def test_what_is_dead_or_mute_or_elsewhere_is_named_with_its_page(tmp_path, body, finding):
    (tmp_path / "p.png").write_text("")
    page(tmp_path, "sub/a.html", body.replace("p.png", "../p.png"))
    with pytest.raises(PageError) as problem:
        checking.check(tmp_path)
    (found,) = problem.value.findings
    assert found.replace("../", "").startswith(f"sub/a.html: {finding}")
