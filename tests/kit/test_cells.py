"""`check` looks at the newest cell's function, or says what became of that cell."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from bootstrap import setup
from bootstrap.environment import Environment
from nbclient import NotebookClient

from ptq_classroom.kit import kernel_start

ROOT = Path(kernel_start.__file__).resolve().parents[2]
IMPORT = "from ptq_classroom import check"
RIGHT = """def wrap(value, bits):
    half = 2 ** (bits - 1)
    return (value + half) % (2 * half) - half"""
WRONG = "def wrap(value, bits):\n    return value"
CHECK = 'check("prep.2", wrap)'
PASSES = "✓ prep.2 wrap passes"


@pytest.fixture(scope="module")
def run():
    """Run cells in a fresh namespace of one kernel; returns what each of them shows."""
    folder = os.environ.get("PYTHONPATH", "")
    paths = {"PYTHONPATH": os.pathsep.join([str(ROOT), folder])}
    start = {"PYTHONSTARTUP": kernel_start.__file__}
    client = NotebookClient(nbformat.v4.new_notebook(), timeout=300, allow_errors=True)
    with client.setup_kernel(env={**os.environ, **paths, **start}):

        def shown(*sources: str) -> list[str]:
            texts = []
            for source in ("%reset -f", "%reset -f in", *sources):
                cell = nbformat.v4.new_code_cell(source)
                client.nb.cells = [cell]
                client.execute_cell(cell, 0, store_history=True)
                texts.append("".join(text for output in cell.outputs for text in words(output)))
            return texts[2:]

        yield shown


def words(output) -> list[str]:
    """Printed text, or a traceback."""
    return output.get("traceback", [output.get("text", "")])


@pytest.mark.parametrize(
    ("newest", "said"),
    [
        ("def wrap(value, bits):\n    return value +", "has a syntax error in line 2 (invalid"),
        ("def wrap(value, bits)\n    return value", "has a syntax error in line 1 (expected ':')"),
        ("nothing_of_that_name\n" + WRONG, "stopped before its `def`"),
        ("@nothing_of_that_name\n" + WRONG, "stopped before its `def`"),
        ("%%time\ndef wrap(value, bits):\n    return value +", ""),  # an error inside of %%time
    ],
)
def test_a_cell_that_failed_does_not_let_the_old_function_pass(run, newest: str, said: str):
    texts = run(IMPORT, RIGHT, CHECK, newest, CHECK, RIGHT, CHECK)
    assert texts[2].startswith(PASSES)
    assert f"✗ prep.2 wrap: your newest cell with `def wrap` {said}" in texts[4]
    assert texts[6].startswith(PASSES)


@pytest.mark.parametrize(
    "cells",
    [
        [WRONG, "%%time\n" + RIGHT],
        [WRONG, RIGHT + "\n\n" + CHECK],
        [WRONG, "import functools\n" + RIGHT, "wrap = functools.cache(wrap)"],
        [RIGHT, "import torch", "wrap = torch.no_grad()(wrap)"],
        [RIGHT, "right = wrap", WRONG, "wrap = None", "wrap = right"],
        [RIGHT, "def unwrap(value):\n    return value +"],
        [WRONG, "if True:\n    " + RIGHT.replace("\n", "\n    ")],
    ],
)
def test_what_was_defined_is_checked(run, cells: list[str]):
    if "wrap = right" in cells:  # given on purpose, under a name of its own
        assert run(IMPORT, *cells[:3], 'check("prep.2", right)')[-1].startswith(PASSES)
        return
    assert run(IMPORT, *cells, CHECK)[-1].startswith(PASSES)


def test_a_missing_check_says_run_the_first_cell(run):
    (said,) = run(CHECK)
    assert "NameError" in said
    assert "`check` comes from the notebook's first cell: run the first cell" in said
    assert "first cell" not in run("x = some_name_of_mine")[0]


def test_so_does_a_kernel_that_something_else_started(tmp_path: Path):
    """`setup` puts the file where IPython looks; here a folder stands for that environment's."""
    place = Environment(tmp_path, managed=True)
    setup.write_kernel_start(place)
    start = "import sys, IPython; from IPython.core.application import ENV_CONFIG_DIRS as there\n"
    start += f"there[:] = [{str(tmp_path / 'etc' / 'ipython')!r}]\n"
    start += f"IPython.start_ipython(['--colors=nocolor', '-c', {CHECK!r}])"
    home = {**os.environ, "IPYTHONDIR": str(tmp_path / "home")}
    home.pop("PYTHONSTARTUP", None)
    run = subprocess.run(
        [sys.executable, "-c", start], capture_output=True, text=True, timeout=60, env=home
    )
    assert "NameError: name 'check' is not defined" in run.stdout
    assert "`check` comes from the notebook's first cell: run the first cell" in run.stdout


def test_a_python_without_a_notebook_starts_as_ever():
    command = [sys.executable, kernel_start.__file__]
    assert subprocess.run(command, capture_output=True, check=True, timeout=60).stderr == b""
