"""Badges for Colab and Binder, and the cell that installs the course there, without a network."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import link_chapters
import nbformat
import pytest
from bootstrap import pins
from elsewhere import TAG, Address
from test_notebooks import faults

CHAPTERS = ("01_affine_quantization.ipynb", "prep_self_test.ipynb")
ADDRESS = ["--repository", "someone/ptq-course"]


@pytest.fixture
def course(tmp_path: Path, root: Path) -> Path:
    """README and two notebooks."""
    (tmp_path / "notebooks").mkdir()
    for name in CHAPTERS:
        shutil.copy(root / "notebooks" / name, tmp_path / "notebooks")
    shutil.copy(root / "README.md", tmp_path)
    run(tmp_path, "--repository", "none")
    return tmp_path


def contents(course: Path) -> dict[str, bytes]:
    files = [*course.glob("notebooks/*"), course / "README.md"]
    return {path.name: path.read_bytes() for path in files}


def run(course: Path, *words: str) -> int:
    return link_chapters.main(list(words), course / "notebooks")


def test_none_takes_away_what_an_address_wrote_byte_for_byte(course: Path):
    before = contents(course)
    run(course, *ADDRESS)
    with_one = contents(course)
    assert all(with_one[name] != text for name, text in before.items())
    run(course)  # without the option: as it is
    assert contents(course) == with_one
    run(course, "--repository", "other/name", "--branch", "next/one")
    text = b"".join(contents(course).values())
    assert b"someone/" not in text
    assert b"other/name/blob/next/one/notebooks/01_affine_quantization.ipynb" in text
    assert b"other/name/next%2Fone?urlpath=lab%2Ftree%2Fmy_course%2Fprep_self_test.ipynb" in text
    run(course, "--repository", "none")
    assert contents(course) == before


def test_the_badges_have_alt_texts_and_pictures_that_are_here(course: Path, root: Path):
    run(course, *ADDRESS)
    readme = (course / "README.md").read_text("utf-8")
    places = [(readme, "")]
    for name in CHAPTERS:
        cells = json.loads((course / "notebooks" / name).read_text("utf-8"))["cells"]
        places.append(("".join(cells[-1]["source"]), "../"))
    for text, up in places:
        for host, on in (("colab", "in Colab"), ("binder", "on Binder")):
            assert f"[![Open this chapter {on}]({up}docs/badges/{host}.svg)](https://" in text
            assert (root / "docs" / "badges" / f"{host}.svg").is_file()
    line = next(line for line in readme.split("\n") if "badges/colab" in line)
    assert "blob/main/notebooks/01_affine_quantization.ipynb" in line  # the first with a number


@pytest.mark.parametrize("name", CHAPTERS)
def test_the_notebook_keeps_all_rules(course: Path, name: str):
    run(course, *ADDRESS)
    path = course / "notebooks" / name
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert faults(notebook, name) == []
    assert path.read_text("utf-8") == nbformat.writes(notebook).rstrip("\n") + "\n"
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    assert TAG in first.metadata.tags
    assert first.outputs == []


@pytest.mark.parametrize("wrong", ["name", "a/b/c", "a b/c", "https://github.com/a/b", "a/b?x"])
def test_what_is_no_repository_changes_nothing(course: Path, wrong: str):
    before = contents(course)
    with pytest.raises(SystemExit):
        run(course, "--repository", wrong)
    with pytest.raises(SystemExit):
        run(course, *ADDRESS, "--branch", 'main", "--upload-pack=x')
    assert contents(course) == before


def source() -> str:
    return "".join(Address("someone/ptq-course").cell()["source"])


def printed(code: str) -> str:
    """What a Python prints for this code; it must print nothing else."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout


def test_where_the_course_is_the_cell_does_nothing():
    """No program is started, the path stays, and no name but `importlib` is left."""
    start = "import sys\nsys.addaudithook(lambda event, _: 'subprocess' in event and 1 / 0)\n"
    end = "\nprint(sorted(name for name in dir() if name[0] != '_'), sys.path)"
    assert printed(start + source() + end) == printed(start + "import importlib.util" + end)


def test_where_it_is_missing_the_cell_clones_and_installs(tmp_path: Path):
    """git and pip are stand-ins that write down what they are told."""
    programs, log = tmp_path / "bin", tmp_path / "log"
    programs.mkdir()
    git = programs / "git"
    git.write_text(f'#!/bin/sh\necho git "$@" >> {log}\nfor last; do :; done\nmkdir "$last"\n')
    git.chmod(git.stat().st_mode | stat.S_IEXEC)
    (tmp_path / "pip").mkdir()
    (tmp_path / "pip" / "__init__.py").touch()
    (tmp_path / "pip" / "__main__.py").write_text(
        f"import sys\nprint('pip', *sys.argv[1:], file=open({str(log)!r}, 'a'))"
    )
    # Without any installed library, and with what finds an editable installation gone, too.
    start = "import sys\nsys.path[:] = [p for p in sys.path if 'packages' not in p]\n"
    start += "sys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in repr(f)]\n"
    environment = {
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(tmp_path),  # the stand-in for pip
    }
    command = [sys.executable, "-c", f"{start}{source()}\nprint(sys.path[0])"]
    for _ in range(2):  # the second time the clone is there
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=True
        )
        assert done.stdout == f"{tmp_path / 'ptq-course'}\n"
        assert done.stderr == ""
    pip = [
        f"pip install --quiet --no-deps --extra-index-url={pins.TORCH_INDEX} torch=={pins.TORCH}",
        "pip install --quiet -e ./ptq-course[course]",
    ]
    clone = "git clone --quiet --depth=1 --branch=main https://github.com/someone/ptq-course"
    assert log.read_text().splitlines() == [f"{clone} ptq-course", *pip, *pip]
