"""`--notebooks`: outputs are compared where the fingerprint matches, else assertions are run."""

import re
import shutil
import subprocess
import sys

import execute_notebooks
import pytest
from bootstrap import fingerprint
from nbformat.v4 import new_code_cell, new_notebook, new_output
from nbval.plugin import get_sanitize_patterns


def sanitized(root, text):
    """A text as nbval compares it."""
    patterns = get_sanitize_patterns((root / "tests" / "nbval_sanitize.cfg").read_text("utf-8"))
    assert len(patterns) == 8
    for pattern, replacement in patterns:
        text = re.sub(pattern, replacement, text)
    return text


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("~2.4x faster", "~ 1,024.9x faster"),
        ("took 0.123 s, 12 ms", "took 98 s, 7.5 ms"),
        ("<object at 0x7f01234567>", "<object at 0x56789abcde0>"),
        ("a.b/ipykernel_12/345.py:1", "c/ipykernel_9/8.py:1"),
        (" 10%|#   | 1/10 [00:01<00:09, 1.2it/s]", "100%|####| 10/10 [00:03<00:00]"),
        ("10/10 [00:00&lt;00:00, 97.9it/s]", "10/10 [01:12&lt;00:00, 1.9it/s]"),
        ('<img src="data:image/png;base64,AAAA+/==">', '<img src="data:image/png;base64,B">'),
    ],
)
def test_what_may_differ_is_the_same_to_nbval(root, one, other):
    assert sanitized(root, one) == sanitized(root, other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("accuracy 93.1 %", "accuracy 93.2 %"),
        ("scale 0.0123", "scale 0.0124"),
        ("8 bits", "4 bits"),
        ("0.27x of the size", "0.28x of the size"),
        ("[0, 255]", "[0, 254]"),
        ("12 samples", "13 samples"),
        ("1/10 of [0, 1]", "2/10 of [0, 1]"),
    ],
)
def test_what_must_agree_still_differs(root, one, other):
    assert sanitized(root, one) != sanitized(root, other)


@pytest.mark.parametrize("unit", ["9", "A", "x ", "~1 ", "1/2 [", "0x", "ipykernel_1/"])
def test_a_long_line_is_no_trouble(root, unit):
    """A pattern that backtracks over a long line would not come back from this."""
    assert sanitized(root, unit * (300_000 // len(unit)))


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


@pytest.mark.slow
def test_a_changed_output_fails_where_the_fingerprint_matches(course, here):
    notebook(course, ("print(1 + 1)", "3\n"))
    fingerprint.record(here, course / "notebooks" / "fingerprint.json")
    done = run(course)
    assert "outputs compared strictly" in done.stdout
    assert "Cell outputs differ" in done.stdout
    assert done.returncode == 1


@pytest.mark.slow
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


@pytest.mark.slow
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
