"""scripts/execute_notebooks.py: the same bytes every time, its own kernel, nothing half-done."""

import json
import sys

import execute_notebooks
import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

PICTURES = """\
import matplotlib.pyplot as plt
figure, axes = plt.subplots(figsize=(2, 1))
axes.plot([1, 3, 2])
plt.show()"""

WIDGETS = """\
import io
import ipywidgets as widgets
buffer = io.BytesIO()
figure.savefig(buffer, format="png", metadata={"Software": None})
image = widgets.Image(value=buffer.getvalue())
readout = widgets.HTML('<img alt="three points" src="data:image/png;base64,AAAA">')
slider = widgets.IntSlider(value=3, description="bits")
slider.observe(lambda change: setattr(readout, "value", f"{change['new']} bits"), "value")
slider.value = 5
widgets.VBox([slider, image, readout])"""

PROGRESS = """\
import time
from tqdm.auto import tqdm
for _ in tqdm(range(4)):
    time.sleep(0.05)"""

PRINTS = """\
import sys
print("one")
sys.stdout.flush()
time.sleep(0.3)
print("two")"""


def notebook_of(*sources):
    cells = [
        new_code_cell(source, id=f"cell-{number}", metadata={"tags": ["kept"]})
        for number, source in enumerate(sources)
    ]
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    return new_notebook(cells=cells, metadata=metadata)


@pytest.fixture
def small(tmp_path):
    path = tmp_path / "small notebook.ipynb"
    execute_notebooks.write(notebook_of(PICTURES, WIDGETS, PROGRESS, PRINTS), path)
    return path


@pytest.mark.slow
def test_executing_twice_gives_the_same_bytes(small):
    assert execute_notebooks.run([small], timeout=60) == []
    once = small.read_bytes()
    assert execute_notebooks.run([small], timeout=60) == []
    assert small.read_bytes() == once

    notebook = nbformat.read(small, as_version=4)
    assert [cell.execution_count for cell in notebook.cells] == [1, 2, 3, 4]
    assert [cell.metadata for cell in notebook.cells] == [{"tags": ["kept"]}] * 4
    assert "version" not in notebook.metadata.language_info
    assert "image/png" in notebook.cells[0].outputs[-1].data
    (printed,) = notebook.cells[3].outputs
    assert printed.text == "one\ntwo\n"
    state = notebook.metadata.widgets[execute_notebooks.WIDGET_STATE]["state"]
    assert sorted(state) == [f"{number:032x}" for number in range(len(state))]
    box = notebook.cells[1].outputs[-1].data["application/vnd.jupyter.widget-view+json"]
    assert state[box["model_id"]]["model_name"] == "VBoxModel"
    children = [
        name.removeprefix("IPY_MODEL_") for name in state[box["model_id"]]["state"]["children"]
    ]
    assert [state[name]["model_name"] for name in children] == [
        "IntSliderModel",
        "ImageModel",
        "HTMLModel",
    ]
    assert state[children[2]]["state"]["value"] == "5 bits"
    assert "/4" in json.dumps(state)
    assert "it/s" not in json.dumps(state)


def test_the_own_kernel_is_used_even_if_another_is_registered(tmp_path, monkeypatch):
    spec = tmp_path / "data" / "kernels" / "python3"
    spec.mkdir(parents=True)
    description = {"argv": ["/nonexistent/python"], "display_name": "x", "language": "python"}
    (spec / "kernel.json").write_text(json.dumps(description))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "data"))
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "data"))
    path = tmp_path / "which.ipynb"
    cells = "import sys, os; print(sys.executable)", "print(os.environ['OMP_NUM_THREADS'])"
    execute_notebooks.write(notebook_of(*cells), path)
    done = execute_notebooks.execute(path, timeout=60)
    assert [cell.outputs[0].text.strip() for cell in done.cells] == [sys.executable, "2"]


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("raise ValueError('the reason')", "the reason"),
        ("import sys; print('a warning', file=sys.stderr)", "cell 0 prints to stderr"),
        ("import time; time.sleep(30)", "1 seconds"),
    ],
)
def test_a_notebook_that_failed_is_not_written(tmp_path, capsys, source, said):
    path = tmp_path / "broken.ipynb"
    execute_notebooks.write(notebook_of(source), path)
    before = path.read_bytes()
    assert execute_notebooks.run([path], timeout=1) == ["broken.ipynb"]
    assert path.read_bytes() == before
    assert said in capsys.readouterr().out


def test_one_fingerprint_speaks_for_all_notebooks(tmp_path, monkeypatch, capsys):
    for name in ("a.ipynb", "b.ipynb"):
        execute_notebooks.write(notebook_of("1"), tmp_path / name)
    file = tmp_path / "fingerprint.json"
    monkeypatch.setattr(execute_notebooks.fingerprint, "FILE", file)
    monkeypatch.setattr(execute_notebooks.fingerprint, "recorded", lambda: {"versions": {"x": "1"}})
    monkeypatch.setattr(execute_notebooks.fingerprint, "here", lambda: {"versions": {"x": "2"}})
    monkeypatch.setattr(execute_notebooks, "run", lambda chosen, timeout: pytest.fail("ran"))
    file.write_text("{}")
    assert execute_notebooks.main([str(tmp_path / "a.ipynb")]) == 1
    assert "x 1 there, 2 here" in capsys.readouterr().out


def test_progress_times_are_recognised_and_other_brackets_kept():
    pattern = execute_notebooks.PROGRESS_TIMES
    assert pattern.sub("", " 10/10 [00:00&lt;00:00, 97.98it/s]") == " 10/10"
    assert pattern.sub("", " 3/3 [01:10<00:00, 23.4s/it]") == " 3/3"
    assert pattern.sub("", "the range [-127, 127]") == "the range [-127, 127]"
