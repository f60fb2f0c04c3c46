"""The glossary is complete and consistent, and no chapter uses a term before it is taught."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from ptq_classroom import term
from ptq_classroom.kit import glossary
from ptq_classroom.kit.glossary import find, order, terms, too_early

NOTEBOOKS = sorted(
    (p for p in (Path(glossary.__file__).parents[2] / "notebooks").glob("*.ipynb")),
    key=lambda p: order(p.stem.split("_")[0]) if p.stem[:2].isdigit() else -1,
)


def test_it_covers_the_course():
    assert len(terms()) >= 60
    assert {e.chapter for e in terms()} >= {"prep", *(f"{n:02}" for n in range(18))}
    assert [order(e.chapter) for e in terms()] == sorted(order(e.chapter) for e in terms())
    assert sum(bool(e.toolkits) for e in terms()) >= 40


def test_entries_are_well_formed():
    toolkits = {"PyTorch", "TensorRT", "ONNX Runtime", "AIMET"}
    for e in terms():
        assert re.search(r"[\u4e00-\u9fff]", e.zh) or e.zh == e.term, e.term
        assert e.definition.endswith("."), e.term
        assert "\n" not in e.definition
        assert set(e.toolkits) <= toolkits


def test_no_name_belongs_to_two_terms():
    names = [glossary._plain(n) for e in terms() for n in {glossary._plain(x) for x in e.names}]
    assert sorted(names) == sorted(set(names))


@pytest.mark.parametrize("word", ["zero point", "zero_point", "Zero-Point", "零点"])
def test_find(word: str, capsys):
    assert find(word).term == "zero point"
    term(word)
    said = capsys.readouterr().out
    assert "零点 · taught in chapter 01" in said
    assert "AIMET" in said


def test_unknown_words_are_refused_with_a_suggestion():
    with pytest.raises(KeyError, match=r"did you mean .*clipping threshold"):
        find("threshold")


@pytest.mark.parametrize(
    ("text", "chapter", "found"),
    [
        ("The zero-point is an integer.", "00", ["zero point (chapter 01)"]),
        ("The zero\npoint is an integer.", "00", ["zero point (chapter 01)"]),
        ("The zero point is an integer.", "01", []),
        ("Later: zero points (see chapter 01).", "00", []),
        ("See chapter 01.\n\nZero points.", "00", ["zero point (chapter 01)"]),
        ("Per-channel and fused (chapters 04 and 05).", "00", []),
        ("`zero_point` and $zero point$ and [a link](zero point)", "00", []),
        ("defused, confused and unfused wires", "00", []),
        ("we fuse layers", "00", ["layer fusion (chapter 04)"]),
        ("- fuse (see chapter 04)\n- zero point", "00", ["zero point (chapter 01)"]),
        ("a KL of 0.1; klaxon", "02", ["Kullback-Leibler divergence (chapter 03)"]),
        ("ste and Ste", "03", []),
    ],
)
def test_scan(text: str, chapter: str, found: list[str]):
    assert too_early(text, chapter) == found


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_no_term_is_used_before_it_is_taught(path: Path):
    chapter = path.stem.split("_")[0]
    if chapter != "prep" and not chapter.isdigit():
        pytest.skip("not a numbered chapter")
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    read = (c for c in cells if "links" not in c["metadata"].get("tags", ()))
    text = "\n\n".join("".join(c["source"]) for c in read if c["cell_type"] == "markdown")
    assert too_early(text, chapter) == []
