"""Links between the chapters: in the order of reading, to files that are there, the same twice."""

from __future__ import annotations

import json
import shutil

import link_chapters
import pytest


def made(folder, name, *sources):
    cells = [{"cell_type": "markdown", "metadata": {}, "source": [text]} for text in sources]
    (folder / name).write_text(json.dumps({"cells": cells}), encoding="utf-8")


def last(folder, name):
    return json.loads((folder / name).read_text(encoding="utf-8"))["cells"][-1]["source"][0]


def test_each_chapter_leads_to_its_neighbours_and_the_self_test_comes_first(tmp_path):
    made(tmp_path, "00_start.ipynb", "# 00 · Start\n\ntext")
    made(tmp_path, "01_next.ipynb", "# 01 · Next")
    made(tmp_path, "prep.ipynb", "# Self-test")
    assert link_chapters.link(tmp_path) == ["prep.ipynb", "00_start.ipynb", "01_next.ipynb"]
    contents = link_chapters.CONTENTS
    assert last(tmp_path, "prep.ipynb") == f"{contents} · next: [00 · Start](00_start.ipynb)"
    assert last(tmp_path, "01_next.ipynb") == f"previous: [00 · Start](00_start.ipynb) · {contents}"
    assert link_chapters.link(tmp_path) == []


def test_a_chapter_that_is_gone_is_linked_no_more(tmp_path):
    for name in ("00_a.ipynb", "01_b.ipynb", "02_c.ipynb"):
        made(tmp_path, name, f"# {name}")
    link_chapters.link(tmp_path)
    (tmp_path / "01_b.ipynb").unlink()
    assert link_chapters.link(tmp_path) == ["00_a.ipynb", "02_c.ipynb"]
    assert "01_b" not in last(tmp_path, "00_a.ipynb") + last(tmp_path, "02_c.ipynb")


def test_a_notebook_without_a_heading_is_refused(tmp_path):
    made(tmp_path, "00_a.ipynb", "text")
    with pytest.raises(ValueError, match="heading"):
        link_chapters.link(tmp_path)


def test_only_the_last_cell_of_a_real_chapter_changes(tmp_path, root):
    path = root / "notebooks" / "prep_self_test.ipynb"
    shutil.copy(path, tmp_path)
    before = json.loads(path.read_text(encoding="utf-8"))
    link_chapters.link(tmp_path)
    after = json.loads((tmp_path / path.name).read_text(encoding="utf-8"))
    kept = [c for c in before["cells"] if "links" not in c["metadata"].get("tags", ())]
    assert after["cells"][:-1] == kept
    assert {**after, "cells": []} == {**before, "cells": []}
