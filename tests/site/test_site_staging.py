"""What the page makes of notebooks and texts, wrong ones above all."""

from __future__ import annotations

import base64
import json
import struct
import zlib
from pathlib import Path

import pytest
from web_page import build, npm, pages
from web_page.errors import PageError
from web_page.links import page_of, rewritten
from web_page.notebooks import VIEW, stage

ROOT = Path(__file__).resolve().parents[2]


def png() -> str:
    """A black picture of 4 x 2 pixels, in base64."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 2, 8, 0, 0, 0, 0))
    data = header + chunk(b"IDAT", zlib.compress(b"\0\0\0\0\0" * 2)) + chunk(b"IEND", b"")
    return base64.b64encode(b"\x89PNG\r\n\x1a\n" + data).decode()


def shown(data: dict, **metadata: dict) -> dict:
    return {"output_type": "display_data", "data": data, "metadata": metadata}


def figure(alt: str = "A line that rises") -> dict:
    return shown({"image/png": png(), "text/plain": alt}, **{"image/png": {"alt": alt, "width": 3}})


def widget(title: str = "Widget: A slider") -> dict:
    return shown({VIEW: {"model_id": "1", "version_major": 2}, "text/plain": title})


def code(source: str = "1", tags: tuple[str, ...] = (), outputs: tuple[dict, ...] = ()) -> dict:
    metadata = {"tags": list(tags)} if tags else {}
    return {
        "cell_type": "code", "execution_count": 1, "id": "a", "metadata": metadata,
        "outputs": list(outputs), "source": source,
    }  # fmt: skip


def text(source: str, tags: tuple[str, ...] = ()) -> dict:
    return {"cell_type": "markdown", "id": "b", "metadata": {"tags": list(tags)}, "source": source}


@pytest.fixture
def staged(tmp_path):
    """Stages a notebook of these cells; returns its widgets and the notebook as staged."""
    root = tmp_path / "root"
    (root / "notebooks").mkdir(parents=True)
    for name in ("README.md", "LICENSE", "notebooks/02_next.ipynb"):
        (root / name).write_text("{}")

    def run(*cells: dict, live: bool = True) -> tuple[list, dict]:
        metadata = {"ptq": {"chapter": "01"}, "widgets": {"state": {}}}
        notebook = {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
        file = root / "notebooks" / "01_first.ipynb"
        file.write_text(json.dumps(notebook))
        widgets = stage(file, root, tmp_path / "out", live)
        made = (tmp_path / "out" / "notebooks" / "01_first.ipynb").read_text(encoding="utf-8")
        return widgets, json.loads(made)

    return run


def test_every_broken_link_and_mute_picture_is_named_with_its_cell(staged):
    with pytest.raises(PageError) as problem:
        staged(
            text("see [this](03_missing.ipynb)"),
            text("[fine](02_next.ipynb), `[no link](x)`, [out](https://example.org/x)"),
            code(outputs=(figure(" "),)),
            text("and [that](../docs/none.md) and [those](../../outside.md)"),
        )
    place = "notebooks/01_first.ipynb, cell"
    assert problem.value.findings == [
        f"{place} 1: the link [this](03_missing.ipynb) leads nowhere",
        f"{place} 3: a picture without an alt text; use show(fig, alt)",
        f"{place} 4: the link [that](../docs/none.md) leads nowhere",
        f"{place} 4: the link [those](../../outside.md) leads nowhere",
    ]


@pytest.mark.parametrize(
    ("file", "target", "page"),
    [
        ("notebooks/01_a.ipynb", "../README.md#chapters", "../index.md#chapters"),
        ("notebooks/01_a.ipynb", "../ptq_course/grids/affine.py", "ptq_course.grids.affine"),
        ("notebooks/01_a.ipynb", "../ptq_course/deploy/onnx", "ptq_course.deploy.onnx"),
        ("notebooks/01_a.ipynb", "../ptq_course/grids/__init__.py", "ptq_course.grids"),
        ("notebooks/01_a.ipynb", "02_range_calibration.ipynb", "02_range_calibration.ipynb"),
        ("notebooks/01_a.ipynb", "../data/README.md", "../data/README.md"),
        ("docs/clinic.md", "../recipes/lost_points.py", "recipe-lost-points"),
        ("README.md", "docs/claims.md", "docs/claims.md"),
        ("README.md", "TEACHING.md", "TEACHING.md"),
        ("data/README.md", "../LICENSE", ""),
        ("README.md", "docs/nothing.md", None),
        ("README.md", "../elsewhere", None),
    ],
)  # fmt: skip
def test_where_a_link_leads_on_the_page(file, target, page):
    assert page_of(target, file, ROOT) == page


def test_only_links_change():
    before = "[`affine.py`](ptq_course/grids/affine.py) ![a](docs/x.png) [l](LICENSE) [m](#here)\n"
    fence = "```python\n[a](nowhere.md)\n```\n"
    after = "[`affine.py`](ptq_course.grids.affine) ![a](docs/x.png) l [m](#here)\n"
    assert rewritten(before + fence, "README.md", ROOT) == after + fence


def test_folded_cells_say_what_they_hold(staged):
    _, notebook = staged(
        code(tags=("solution", "hide-input")),
        code(tags=("proof", "hide-input")),
        code(tags=("quiz-answers", "hide-input")),
        code(tags=("stub",)),
        text("previous, next", tags=("links",)),
    )
    solution, proof, answers, stub = (cell["metadata"] for cell in notebook["cells"])
    assert solution["mystnb"]["code_prompt_show"] == "Show the solution"
    assert proof["mystnb"]["code_prompt_show"].startswith("Show the proof")
    assert answers["tags"] == ["quiz-answers", "hide-cell"]  # its output is the answer
    assert "mystnb" not in stub


def test_pictures_become_files_that_keep_their_words(staged, tmp_path):
    _, notebook = staged(code(outputs=(figure('Up "and" <away>'), figure('Up "and" <away>'))))
    first, second = notebook["cells"][0]["outputs"]
    assert first == second
    shown = first["data"]["text/html"]
    assert 'alt="Up &quot;and&quot; &lt;away&gt;" width="3" height="2"' in shown
    (file,) = (tmp_path / "out" / "_static" / "pictures").iterdir()
    assert f'src="../_static/pictures/{file.name}"' in shown
    assert file.read_bytes() == base64.b64decode(png())


@pytest.mark.parametrize("live", [True, False])
def test_a_widget_is_shown_for_what_it_is(staged, live):
    line = shown({"text/markdown": "scale 1 · error 0", "text/plain": "scale 1 · error 0"})
    bar = widget("calibrating: 0%")
    widgets, notebook = staged(
        text("### Try it\n\nLook at [the next](02_next.ipynb)."),
        code(outputs=(bar, widget(), line, figure("The first state"), figure("No state"))),
        live=live,
    )
    outputs = [o["data"].get("text/html", "") for o in notebook["cells"][1]["outputs"]]
    assert len(outputs) == (5 if live else 4)  # the bar is gone
    assert "lab-note" in outputs[0]
    assert any("inert" in o and VIEW in o for o in outputs) == live
    assert ("widgets" in notebook["metadata"]) == live
    ((found),) = widgets
    assert (found.title, found.chapter) == ("A slider", "01")
    assert [(state.readout, state.alt) for state in found.states] == [
        ("scale 1 · error 0", "The first state")
    ]
    page = pages.widget_page(widgets)
    assert "## 01 · A slider" in page
    assert "### Scale 1\n\nerror 0\n" in page
    assert "[the next](notebooks/02_next.ipynb)" in page
    assert "### Try it" not in page
    assert 'src="_static/pictures/' in page
    assert "The first state" in page


def test_a_widget_without_pictures_of_its_states_is_named(staged):
    with pytest.raises(PageError, match=r"cell 2: the widget 'A slider' has no pictures"):
        staged(text("Try it"), code(outputs=(widget(), figure())))


def test_the_reference_has_every_public_module_and_no_private_one():
    made = pages.reference(ROOT / "ptq_course")
    named = {
        line.split()[-1] for page in made.values() for line in page.splitlines() if "::" in line
    }
    files = {
        ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for file in (ROOT / "ptq_course").rglob("*.py")
    }
    public = {name for name in files if "._" not in name}
    assert named - {".."} >= public
    assert not any("._" in name for name in named)


def test_every_recipe_has_its_heading_and_its_code():
    page = pages.recipes(sorted((ROOT / "recipes").glob("*.py")))
    assert page.count("(recipe-") == page.count("```python") == 10
    assert '```python\n"""' not in page  # its docstring is the heading


def test_a_module_in_readme_s_table_leads_to_its_reference():
    table = "| `grids/affine.py`, `integer/` | `no/such.py` |"
    page = pages.contents(f"`grids/affine.py`\n{table}\n", ["01_a"], ROOT / "ptq_course")
    assert page.startswith("`grids/affine.py`\n| [`grids/affine.py`](ptq_course.grids.affine), ")
    assert "[`integer/`](ptq_course.integer) | `no/such.py` |" in page
    assert "notebooks/01_a\n" in page


@pytest.fixture
def no_network(monkeypatch):
    monkeypatch.setattr(npm, "fetch", lambda package, cache: None)


def test_a_folder_of_other_files_is_never_replaced(tmp_path, no_network, capsys):
    (tmp_path / "thesis.txt").write_text("mine")
    assert build.main([str(tmp_path)]) == 1
    assert "holds other files" in capsys.readouterr().err
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_a_build_that_fails_leaves_the_page_that_was_there(tmp_path, no_network):
    root, out = tmp_path / "root", tmp_path / "page"
    (root / "notebooks").mkdir(parents=True)
    for name in build.PAGES:
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text("# A page\n\n[gone](gone.md)\n")
    out.mkdir()
    (out / build.MARK).write_text("")
    (out / "index.html").write_text("the old page")
    with pytest.raises(PageError) as problem:
        build.build(out, root, tmp_path / "npm")
    assert len(problem.value.findings) == len(build.PAGES)
    assert (out / "index.html").read_text() == "the old page"
    assert not [path for path in tmp_path.iterdir() if "making" in path.name]


def test_without_the_network_the_page_says_what_it_lacks(tmp_path, no_network, capsys):
    assert build.scripts(tmp_path / "npm", tmp_path / "cache") is False
    said = capsys.readouterr().out
    assert "formulas are shown as their source" in said
    assert "widgets are shown by pictures only" in said
    assert [file.name for file in (tmp_path / "npm").iterdir()] == ["none.js"]
