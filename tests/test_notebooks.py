"""Rules that every notebook keeps, read from the file; running them is nbval's part.

`faults` lists what is wrong with one notebook. Each rule is also shown to find its fault.
"""

import ast
import copy
import json
import re
import statistics
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
CHAPTERS = [path for path in NOTEBOOKS if path.name[:1].isdigit()]
MAX_LINES = 15
MEDIAN_LINES = 6
MAX_CORE_CELLS = 20
MAX_CORE_WORDS = 1_300
MAX_BYTES = 1_600_000
TOO_LONG: set[str] = set()  # not there yet; none joins this list
EXERCISE_TAGS = {"stub", "check", "solution"}
QUIZ_TAGS = {"quiz", "quiz-answers"}
ELSEWHERE = "elsewhere"  # installs the course on Colab; written by scripts/link_chapters.py
TAGS = (
    EXERCISE_TAGS
    | QUIZ_TAGS
    | {ELSEWHERE, "links", "core", "extension", "exercise", "hide-input", "proof"}
)
NOT_COUNTED = EXERCISE_TAGS | QUIZ_TAGS | {ELSEWHERE, "proof"}
FOLDED = {"solution", "proof", "quiz-answers"}
WIDGET_STATE = "application/vnd.jupyter.widget-state+json"
MACHINE = re.compile(r"(?<![\w.:/])/(?:home|root|work|tmp|opt|Users)/[\w.-]+|[A-Z]:\\+Users\\")
SKIPPED_BY_NBVAL = re.compile(r"NBVAL_|nbval-|PYTEST_VALIDATE_IGNORE", re.IGNORECASE)


class Pictures(HTMLParser):
    """Collects the attributes of every <img>."""

    def __init__(self, html):
        super().__init__()
        self.found = []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        if tag == "img":
            self.found.append(dict(attributes))


def text_of(value):
    return value if isinstance(value, str) else "".join(value)


def code_cells(notebook):
    return [(n, c) for n, c in enumerate(notebook.cells) if c.cell_type == "code"]


def tags_of(cell):
    return set(cell.metadata.get("tags", []))


def execution_faults(notebook):
    run = [(n, c) for n, c in code_cells(notebook) if text_of(c.source).strip()]
    for expected, (number, cell) in enumerate(run, start=1):
        if cell.execution_count != expected:
            yield f"cell {number} has execution count {cell.execution_count}, not {expected}"
    for number, cell in run:
        for output in cell.outputs:
            if output.output_type == "error":
                yield f"cell {number} ends in {output.ename}"
            if output.get("name") == "stderr":
                yield f"cell {number} prints to stderr: {text_of(output.text)[:60]!r}"


def html_faults(place, html):
    for picture in Pictures(html).found:
        if not (picture.get("alt") or "").strip():
            yield f"{place} shows a picture without alt text"
        if (picture.get("src") or "").startswith(("http:", "https:", "//")):
            yield f"{place} shows a picture from the network"


def picture_faults(notebook):
    for number, cell in enumerate(notebook.cells):
        if cell.cell_type == "markdown":
            yield from html_faults(f"cell {number}", text_of(cell.source))
            for alt, source in re.findall(r"!\[([^\]]*)\]\(([^)]*)\)", text_of(cell.source)):
                if not alt.strip():
                    yield f"cell {number} shows a picture without alt text"
                if source.startswith("http"):
                    yield f"cell {number} shows a picture from the network"
        for output in cell.get("outputs", []):
            data, metadata = output.get("data", {}), output.get("metadata", {})
            for kind in data:
                if kind.startswith("image/") and not metadata.get(kind, {}).get("alt", "").strip():
                    yield f"cell {number} shows {kind} without alt text"
            if Pictures(text_of(data.get("text/html", ""))).found:
                yield f"cell {number} shows a picture in HTML, which sanitizing viewers drop"
    for model in widget_models(notebook).values():
        if model["model_name"] == "ImageModel":
            yield "an Image widget has no alt text: use HTML with <img alt>"
        if model["model_name"] == "HTMLModel":
            yield from html_faults("a widget", model["state"].get("value", ""))


def widget_models(notebook):
    return notebook.metadata.get("widgets", {}).get(WIDGET_STATE, {}).get("state", {})


def length_faults(notebook, name):
    lengths = []
    for number, cell in code_cells(notebook):
        lines = len(text_of(cell.source).splitlines())
        if lines > MAX_LINES and not tags_of(cell) & {"solution", "stub"}:
            yield f"cell {number} has {lines} lines, more than {MAX_LINES}"
        if not tags_of(cell) & NOT_COUNTED:
            lengths.append(lines)
    median = statistics.median(lengths or [0])
    if median > MEDIAN_LINES:
        yield f"the median of code cells is {median:g} lines, more than {MEDIAN_LINES}"
    if not name[:1].isdigit():
        return  # a self-test has neither core nor extension
    marks = {tag: number for number, c in enumerate(notebook.cells) for tag in tags_of(c)}
    missing = {"core", "extension"} - set(marks)
    if missing:
        yield f"no cell is tagged {' or '.join(sorted(missing))}"
        return
    before = [c for n, c in code_cells(notebook) if n < marks["extension"]]
    core = [c for c in before if not tags_of(c) & NOT_COUNTED]
    if len(core) > MAX_CORE_CELLS:
        yield f"{len(core)} code cells before the extension, more than {MAX_CORE_CELLS}"


def core_words(notebook):
    """Words of the text from `core` to `extension`, without what is folded away in <details>.

    A formula counts as one word, a link's address as none.
    """
    words, inside = 0, False
    for cell in notebook.cells:
        inside = (inside or "core" in tags_of(cell)) and "extension" not in tags_of(cell)
        if inside and cell.cell_type == "markdown":
            text = re.sub(r"<details>.*?</details>", "", text_of(cell.source), flags=re.DOTALL)
            text = re.sub(r"\$\$.*?\$\$|\$[^$\n]*\$", " x ", text, flags=re.DOTALL)
            text = re.sub(r"\]\([^)]*\)", "]", text)
            words += len(re.findall(r"[^\W_][\w'’.,-]*", text))
    return words


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_the_core_is_short_enough_to_read(path):
    words = core_words(nbformat.read(path, as_version=4))
    if path.stem in TOO_LONG:
        assert words > MAX_CORE_WORDS, "take it out of TOO_LONG"
    else:
        assert words <= MAX_CORE_WORDS, f"{words} words in the core"


def test_words_are_counted_from_the_core_to_the_extension():
    notebook = good()
    notebook.cells[0].source = "Two words, [a link](far/away.html) and $a + b$ or 1,300."
    notebook.cells[-1].source = "not counted"
    notebook.cells.insert(0, new_markdown_cell("nor this"))
    notebook.cells.insert(2, new_markdown_cell("One <details><summary>x</summary>y z</details>"))
    assert core_words(notebook) == 9


def tree_of(cell):
    """The cell's statements; a magic or shell line counts as nothing."""
    lines = text_of(cell.source).splitlines()
    return ast.parse("\n".join("" if x.lstrip().startswith(("%", "!")) else x for x in lines))


def called(node):
    """The last part of the name of a called function: `np.testing.assert_allclose` -> its end."""
    function = getattr(node, "func", None)
    return getattr(function, "attr", getattr(function, "id", ""))


def asserts(node):
    return isinstance(node, ast.Assert) or called(node).startswith("assert_")


def shows(node):
    return called(node) in {"print", "show", "display", "compare", "check", "predict", "explorer"}


SETUP = ast.Assign | ast.AnnAssign | ast.AugAssign | ast.Import | ast.ImportFrom | ast.FunctionDef


def proves(statement):
    """Whether a statement of a proof's top level asserts, or prepares an assertion."""
    if isinstance(statement, ast.For | ast.With):
        return all(map(proves, statement.body))
    calls = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call)
    return isinstance(statement, SETUP | ast.Assert) or calls


OWN_SCOPE = ast.Lambda | ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp


def bound(node):
    """Names that a cell leaves behind, without those of a function's body or a comprehension."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        yield node.name
    elif isinstance(node, ast.alias):
        yield node.asname or node.name.split(".")[0]
    elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        yield node.id
    elif not isinstance(node, OWN_SCOPE):
        for child in ast.iter_child_nodes(node):
            yield from bound(child)


def proof_faults(notebook):
    """Assertions stand alone, in folded cells tagged `proof`, and no other cell notices those."""
    of_a_proof = {}  # name -> the proof that bound it last
    for number, cell in code_cells(notebook):
        tree, tags = tree_of(cell), tags_of(cell)
        nodes, names = list(ast.walk(tree)), set(bound(tree))
        if "proof" in tags:
            of_a_proof |= dict.fromkeys(names, number)
            if any(map(shows, nodes)) or not all(map(proves, tree.body)):
                yield f"the proof in cell {number} does more than assert"
            if not any(map(asserts, nodes)):
                yield f"the proof in cell {number} asserts nothing"
            continue
        if any(map(asserts, nodes)) and not tags & EXERCISE_TAGS:
            yield f"cell {number} asserts: that belongs in a cell of its own, tagged proof"
        stored = {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        stored |= {n.arg for n in nodes if isinstance(n, ast.arg)}
        used = {n.id for n in nodes if isinstance(n, ast.Name)} - stored
        for name in sorted(used & set(of_a_proof)):
            yield f"cell {number} uses {name} of the proof in cell {of_a_proof[name]}"
        of_a_proof = {n: place for n, place in of_a_proof.items() if n not in names}


def metadata_faults(notebook):
    known = {"kernelspec", "language_info", "ptq", "widgets"}
    for key in sorted(set(notebook.metadata) - known):
        yield f"metadata {key!r} of the notebook"
    if notebook.metadata.get("kernelspec", {}).get("name") != "python3":
        yield "the kernel is not called python3"
    if "version" in notebook.metadata.get("language_info", {}):
        yield "the version of Python is recorded"
    for module in filter(None, notebook.metadata.get("ptq", {}).get("module", "").split(", ")):
        if not (ROOT / module).exists():
            yield f"the module {module} is not there"
    models = widget_models(notebook)
    if sorted(models) != [f"{number:032x}" for number in range(len(models))]:
        yield "widget ids are not numbered"
    for number, cell in enumerate(notebook.cells):
        for key in sorted(set(cell.metadata) - {"tags", "ptq", "jupyter"}):
            yield f"metadata {key!r} of cell {number}"
        for tag in sorted(tags_of(cell) - TAGS):
            yield f"unknown tag {tag!r} of cell {number}"
        if SKIPPED_BY_NBVAL.search(text_of(cell.source)) or any(
            map(SKIPPED_BY_NBVAL.search, tags_of(cell))
        ):
            yield f"cell {number} asks nbval to look away"
        folded = cell.metadata.get("jupyter", {}).get("source_hidden", False)
        if "quiz-answers" in tags_of(cell) and not cell.metadata.jupyter.get("outputs_hidden"):
            yield f"the answers in cell {number} are not folded"
        for tag in sorted(tags_of(cell) & FOLDED):
            if not folded or "hide-input" not in tags_of(cell):
                yield f"the {tag} in cell {number} is not folded"


def machine_faults(notebook):
    for number, cell in enumerate(notebook.cells):
        text = json.dumps(cell).replace("\\\\", "\\").replace("\\n", "\n")
        for place in sorted(set(MACHINE.findall(text))):
            yield f"cell {number} names {place}"


def faults(notebook, name="00_name"):
    return [
        *execution_faults(notebook),
        *picture_faults(notebook),
        *length_faults(notebook, name),
        *proof_faults(notebook),
        *metadata_faults(notebook),
        *machine_faults(notebook),
    ]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_notebook_keeps_the_rules(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert faults(notebook, path.name) == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_file_is_small_and_written_as_the_script_writes(path):
    written = path.read_text(encoding="utf-8")
    assert len(written.encode()) < MAX_BYTES
    assert written == nbformat.writes(nbformat.read(path, as_version=4)).rstrip("\n") + "\n"


def test_the_table_of_the_readme_agrees_with_the_notebooks():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (prep|\d\d) \| (.+?) \|", readme, flags=re.MULTILINE)
    present = {number for number, title in rows if "planned" not in title}
    assert {path.stem.split("_")[0] for path in NOTEBOOKS} == present


def sanitized(notebook, template="classic"):
    """Alt texts of the pictures that a page keeps whose HTML was sanitized, as code hosts do it.

    Of nbconvert's own templates only "classic" writes them; others say that there is none.
    """
    from nbconvert import HTMLExporter

    exporter = HTMLExporter(sanitize_html=True, template_name=template)
    page, _ = exporter.from_notebook_node(notebook)
    pictures = [p for p in Pictures(page).found if (p.get("src") or "").startswith("data:image/")]
    return [picture["alt"] for picture in pictures]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_figure_is_left_where_html_is_sanitized(path):
    notebook = nbformat.read(path, as_version=4)
    outputs = [o for _, c in code_cells(notebook) for o in c.outputs if "data" in o]
    figures = [o for o in outputs if any(k.startswith("image/") for k in o.data)]
    assert len(figures) >= sum("show(" in text_of(c.source) for _, c in code_cells(notebook))
    assert sanitized(notebook) == [o.data["text/plain"] for o in figures]
    assert len(sanitized(notebook, "lab")) == len(figures)


def test_a_figure_in_html_would_be_lost():
    notebook = good()
    assert sanitized(notebook) == ["a line rising"]
    notebook.cells[1].outputs[0].data = nbformat.from_dict({"text/html": HTML})
    assert sanitized(notebook) == sanitized(notebook, "lab") == []


PNG = {"image/png": "iVBORw0KGgo=", "text/plain": "a line rising"}
ALT = {"image/png": {"alt": "a line rising"}}
HTML = '<img alt="a line rising" src="data:image/png;base64,iVBORw0KGgo=">'


def proof(source, count=3):
    metadata = {"tags": ["proof", "hide-input"], "jupyter": {"source_hidden": True}}
    return new_code_cell(source, execution_count=count, metadata=metadata)


def good():
    """A small notebook that keeps every rule."""
    notebook = new_notebook(
        cells=[
            new_markdown_cell("# Title", metadata={"tags": ["core"]}),
            new_code_cell(
                "show(figure)",
                execution_count=1,
                outputs=[new_output("display_data", data=PNG, metadata=ALT)],
            ),
            new_code_cell(
                "def f_solution():\n    return 1",
                execution_count=2,
                metadata={"tags": ["solution", "hide-input"], "jupyter": {"source_hidden": True}},
            ),
            proof("double = 2 * figure\nassert double > 1"),
            new_markdown_cell("## Extension", metadata={"tags": ["extension"]}),
        ],
        metadata={"kernelspec": {"name": "python3", "display_name": "P", "language": "python"}},
    )
    return copy.deepcopy(notebook)


def test_a_good_notebook_has_no_faults():
    assert faults(good()) == []


def spoil(change):
    notebook = good()
    change(notebook, notebook.cells[1])
    return faults(notebook)


def stream(name, text):
    return new_output("stream", name=name, text=text)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda n, c: c.update(execution_count=None), "execution count None"),
        (lambda n, c: c.update(execution_count=7), "execution count 7"),
        (lambda n, c: c.outputs.append(new_output("error", ename="E", evalue="")), "ends in E"),
        (lambda n, c: c.outputs.append(stream("stderr", "careful")), "stderr: 'careful'"),
        (lambda n, c: c.outputs[0].update(metadata={}), "image/png without alt"),
        (lambda n, c: c.outputs[0].metadata["image/png"].update(alt=" "), "image/png without alt"),
        (lambda n, c: c.outputs[0].data.update({"text/html": HTML}), "picture in HTML"),
        (lambda n, c: n.cells[0].update(source="<img src='a.png'>"), "without alt"),
        (lambda n, c: n.cells[0].update(source="![](a.png)"), "without alt"),
        (lambda n, c: n.cells[0].update(source="![a](https://x.org/a.png)"), "from the network"),
        (lambda n, c: c.update(source="\n".join("x" * 16)), "16 lines"),
        (lambda n, c: c.update(source="\n".join("x" * 7)), "median of code cells is 7"),
        (lambda n, c: n.cells[4].metadata.clear(), "no cell is tagged extension"),
        (lambda n, c: n.metadata.update(toc={}), "metadata 'toc'"),
        (lambda n, c: n.metadata.update(ptq={"module": "a/b.py"}), "module a/b.py is not there"),
        (lambda n, c: n.metadata.kernelspec.update(name="other"), "python3"),
        (lambda n, c: n.metadata.update(language_info={"version": "3.11.7"}), "version of Python"),
        (lambda n, c: c.metadata.update(execution={}), "'execution' of cell 1"),
        (lambda n, c: c.metadata.update(tags=["nbval-skip"]), "look away"),
        (lambda n, c: c.update(source="# NBVAL_IGNORE_OUTPUT\n1"), "look away"),
        (lambda n, c: n.cells[2].metadata.pop("jupyter"), "solution in cell 2 is not folded"),
        (lambda n, c: n.cells[3].metadata.pop("jupyter"), "proof in cell 3 is not folded"),
        (lambda n, c: n.cells[3].metadata.update(tags=["proof"]), "proof in cell 3 is not folded"),
        (lambda n, c: c.update(source="assert 1"), "cell 1 asserts"),
        (lambda n, c: c.update(source="if 1:\n    x.assert_close(1, 1)"), "cell 1 asserts"),
        (lambda n, c: n.cells[3].update(source="x = 1"), "cell 3 asserts nothing"),
        (lambda n, c: n.cells[3].update(source="assert 1\nprint(1)"), "more than assert"),
        (lambda n, c: n.cells[3].update(source="assert 1\n1 + 1"), "more than assert"),
        (lambda n, c: n.cells[3].update(source="while 1:\n    assert 1"), "more than assert"),
        (
            lambda n, c: n.cells.insert(4, new_code_cell("double", execution_count=4)),
            "cell 4 uses double of the proof in cell 3",
        ),
        (
            lambda n, c: c.outputs.append(stream("stdout", "/" + "home/ada/x")),
            "names /" + "home/ada",
        ),
        (lambda n, c: c.outputs.append(stream("stdout", "C:\\Users\\ada")), "names C:"),
    ],
)
def test_each_fault_is_found(change, said):
    found = spoil(change)
    assert any(said in fault for fault in found), found


def test_a_proof_may_use_a_name_that_is_bound_anew_before_it_is_used():
    notebook = good()
    notebook.cells[1].source = "double = 1"
    notebook.cells.insert(4, new_code_cell("[double for double in (1, 2)]", execution_count=4))
    notebook.cells.insert(5, new_code_cell("double = 3", execution_count=5))
    notebook.cells.insert(6, new_code_cell("double", execution_count=6))
    assert faults(notebook) == []
    notebook.cells[5].source = "1"
    assert faults(notebook) == ["cell 6 uses double of the proof in cell 3"]


def test_too_many_core_cells_are_found_and_exercises_and_proofs_are_not_counted():
    notebook = good()
    extra = [new_code_cell("1", execution_count=4 + i) for i in range(MAX_CORE_CELLS - 1)]
    stubs = [new_code_cell("1", metadata={"tags": ["stub"]}, execution_count=23)]
    notebook.cells[4:4] = [*extra, *stubs, proof("assert 1", 24)]
    assert faults(notebook) == []
    notebook.cells[-1:-1] = [new_code_cell("1", execution_count=25)]
    assert "21 code cells before the extension" in faults(notebook)[0]


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({"model_name": "ImageModel", "state": {}}, "Image widget"),
        ({"model_name": "HTMLModel", "state": {"value": "<img src='x'>"}}, "a widget shows"),
    ],
)
def test_faults_of_widgets_are_found(model, said):
    notebook = good()
    notebook.metadata.widgets = nbformat.from_dict({WIDGET_STATE: {"state": {"0" * 32: model}}})
    assert [fault for fault in faults(notebook) if said in fault]
    notebook.metadata.widgets = nbformat.from_dict({WIDGET_STATE: {"state": {"abc": model}}})
    assert "widget ids are not numbered" in faults(notebook)


def test_the_learners_copy_keeps_proofs_and_keeps_them_folded():
    from ptq_classroom.kit.learner_copy import learner_version

    copied = nbformat.reads(learner_version(nbformat.writes(good())), as_version=4)
    assert [sorted(tags_of(cell)) for cell in copied.cells] == [
        ["core"], [], ["hide-input", "proof"], ["extension"],
    ]  # fmt: skip
    assert copied.cells[2].metadata.jupyter.source_hidden
