"""`--notebooks`: outputs are compared where the fingerprint matches, else assertions are run."""

import shutil
import subprocess
import sys

import execute_notebooks
import pytest
from bootstrap import fingerprint
from nbformat.v4 import new_code_cell, new_notebook, new_output

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def here():
    return fingerprint.here()


@pytest.fixture
def course(root, tmp_path):
    """A course's folder (its name has a space) with what pytest needs to run a notebook."""
    folder = tmp_path / "a course"
    shutil.copytree(root / "scripts" / "bootstrap", folder / "scripts" / "bootstrap")
    (folder / "tests").mkdir()
    (folder / "notebooks").mkdir()
    for name in ("conftest.py", "pyproject.toml", "tests/nbval_sanitize.cfg"):
        shutil.copy(root / name, folder / name)
    return folder


def notebook(folder, *cells):
    """A notebook of cells given as (source, what is recorded as printed)."""
    recorded = [
        new_code_cell(
            source, execution_count=n, outputs=[new_output("stream", name="stdout", text=text)]
        )
        for n, (source, text) in enumerate(cells, start=1)
    ]
    metadata = {"kernelspec": {"name": "python3", "display_name": "P", "language": "python"}}
    path = folder / "notebooks" / "00_a.ipynb"
    execute_notebooks.write(new_notebook(cells=recorded, metadata=metadata), path)


def run(folder):
    command = [sys.executable, "-m", "pytest", "notebooks", "--notebooks", "-p", "no:cacheprovider"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def test_a_changed_output_fails_where_the_fingerprint_matches(course, here):
    notebook(course, ("print(1 + 1)", "3\n"))
    fingerprint.record(here, course / "notebooks" / "fingerprint.json")
    done = run(course)
    assert "outputs compared strictly" in done.stdout
    assert "Cell outputs differ" in done.stdout
    assert done.returncode == 1


def test_what_may_differ_is_taken_out_before_comparing(course, here):
    notebook(
        course,
        ("print('took 0.123 s, ~2.41x faster')", "took 9.87 s, ~3.3x faster\n"),
        ("print(object())", "<object object at 0x7f0123456789>\n"),
        ("import os; print(os.environ['OMP_NUM_THREADS'], os.environ['PYTHONHASHSEED'])", "2 0\n"),
    )
    fingerprint.record(here, course / "notebooks" / "fingerprint.json")
    done = run(course)
    assert "3 passed" in done.stdout.splitlines()[-1], done.stdout


def test_elsewhere_outputs_are_not_compared_but_assertions_hold(course, here):
    versions = here["versions"] | {"torch": "2.4.0"}
    fingerprint.record(here | {"versions": versions}, course / "notebooks" / "fingerprint.json")
    notebook(course, ("print(1 + 1)", "3\n"))
    done = run(course)
    assert "outputs are NOT compared" in done.stdout
    assert "torch 2.4.0 there" in done.stdout
    assert "1 passed" in done.stdout.splitlines()[-1]
    notebook(course, ("assert 1 + 1 == 3", ""))
    assert run(course).returncode == 1
